"""A small OpenAI-compatible server over a tiny model: `python completions_server.py FOLDER`."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: Any
    tokenizer: Any
    turn = threading.Lock()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_chat = self.path == "/v1/chat/completions"
        prompt = asked["messages"][0]["content"] if is_chat else asked["prompt"]
        with self.turn:
            texts, token_count = self.complete(prompt, asked)
        choices = [{"message": {"content": text}} if is_chat else {"text": text} for text in texts]
        document = {"choices": choices, "usage": {"completion_tokens": token_count}}
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @torch.inference_mode()
    def complete(self, prompt: str, asked: dict[str, Any]) -> tuple[list[str], int]:
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]] * asked["n"])
        rows = self.model.generate(
            ids,
            do_sample=asked["temperature"] > 0,
            temperature=asked["temperature"] or 1.0,
            top_p=asked.get("top_p", 1.0),
            top_k=0,
            max_new_tokens=asked["max_tokens"],
        )[:, ids.shape[1] :]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        for stop in asked.get("stop", []):
            texts = [text.partition(stop)[0] for text in texts]
        return texts, int((rows != self.tokenizer.pad_token_id).sum())

    def log_message(self, *_args: object) -> None:
        """Silent."""


def main(folder: str) -> None:
    torch.set_num_threads(1)
    Handler.model = AutoModelForCausalLM.from_pretrained(folder).eval()
    Handler.tokenizer = AutoTokenizer.from_pretrained(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
