"""A small OpenAI-compatible server that is right with a known probability.

`python known_rates_server.py SEED` prints its port. A prompt tells its pass rate and how to answer:

    What is 17 + 25? Think aloud. (p=0.3750)
    What is 17 + 25? Say the number alone. (p=0.3750)

The n-th completion of a prompt is the same whatever else is asked and in which order. What it has
handed out is told at `/tally`: by prompt, all completions and those that were right.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT = re.compile(r"What is (\d+) \+ (\d+)\? (.*) \(p=([\d.]+)\)")
ALOUD = "Think aloud."
ALONE = "Say the number alone."

RIGHT = {
    ALOUD: ("{a} + {b} = {sum}.", "Not {wrong}: the sum is {sum}.0", "So it is\n\n{sum}"),
    ALONE: ("{sum}", " {sum}\n"),
}
WRONG = {
    ALOUD: ("{sum}? No: {a} + {b} = {wrong}", "It is -{sum}.", "{sum}.5", "No idea."),
    ALONE: ("{wrong}", "-{sum}", "{sum}.", "{sum} {sum}", ""),
}


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # 5 by default, and more connections at once would be reset
    daemon_threads = True


class Writer:
    """Draws completions and counts them."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._randoms: dict[str, random.Random] = {}
        self._tally: dict[str, list[int]] = {}

    def complete(self, prompt: str, count: int) -> list[str]:
        with self._lock:
            rng = self._randoms.setdefault(prompt, random.Random(f"{self._seed} {prompt}"))
            counts = self._tally.setdefault(prompt, [0, 0])
            return [self._write(prompt, rng, counts) for _ in range(count)]

    def tally(self) -> dict[str, list[int]]:
        with self._lock:
            return {prompt: list(counts) for prompt, counts in self._tally.items()}

    def _write(self, prompt: str, rng: random.Random, counts: list[int]) -> str:
        a, b, manner, rate = PROMPT.fullmatch(prompt).groups()
        is_right = rng.random() < float(rate)
        counts[0] += 1
        counts[1] += is_right
        total = int(a) + int(b)
        form = rng.choice((RIGHT if is_right else WRONG)[manner])
        return form.format(a=a, b=b, sum=total, wrong=total + rng.choice((-10, -1, 1, 100)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    writer: Writer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = self.writer.complete(asked["prompt"], asked["n"])
        self._answer({"choices": [{"text": text} for text in texts]})

    def do_GET(self) -> None:
        self._answer(self.writer.tally())

    def _answer(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Silent."""


def main(seed: str) -> None:
    Handler.writer = Writer(seed)
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
