"""What an Atropos environment needs around it: the API, an inference server and a trainer."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
from atroposlib.envs.base import APIServerConfig, BaseEnvConfig, ScoredDataGroup
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from curriculum_client import AsyncTrainerClient
from curriculum_client.adapters.atropos import CurriculumEnv

GROUP_SIZE = 4
GROUPS_PER_BATCH = 2


class Inference(BaseHTTPRequestHandler):
    """Answers "What is i + i?": always rightly if i % 4 is 0, never if 1, else to every other."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = re.search(r"What is (\d+)", str(asked.get("prompt")))
        i = int(found[1]) if found else 0
        rights = [i % 4 != 1 and (i % 4 == 0 or k % 2 == 0) for k in range(asked.get("n", 1))]
        choices = [
            {"index": k, "finish_reason": "stop", "text": f" It is {2 * i + (not right)}"}
            for k, right in enumerate(rights)
        ]
        answer = {"id": "1", "object": "text_completion", "created": 1, "model": "tiny"}
        body = json.dumps({**answer, "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Silent."""


@contextmanager
def inference_server() -> Iterator[str]:
    """The base_url of one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inference)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def api_server(folder: Path) -> Iterator[str]:
    """The URL of Atropos's own API server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "atroposlib.cli.run_api", "--host", "127.0.0.1"]
    with (folder / "api.log").open("w") as log:
        process = subprocess.Popen([*command, "--port", port], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def save_tokenizer(folder: Path) -> None:
    """One of characters."""
    codes = {chr(code): code - 31 for code in range(32, 127)} | {"?": 0}
    characters = Tokenizer(models.WordLevel(codes, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=characters, unk_token="?").save_pretrained(folder)


class Trainer:
    """A trainer of nothing: it registers, and takes batches."""

    def __init__(self, url: str, folder: Path, first_step: int = 0) -> None:
        self.url = url
        self.registration = {
            "wandb_group": "group",
            "wandb_project": "project",
            "batch_size": GROUP_SIZE * GROUPS_PER_BATCH,
            "max_token_len": 512,
            "checkpoint_dir": str(folder),
            "save_checkpoint_interval": 4,
            "starting_step": first_step,
            "num_steps": 1000,
        }
        self.batches: list[list[dict[str, Any]]] = []

    async def register(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.post(f"{self.url}/register", json=self.registration) as got:
                        assert got.status == 200
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)
            await self.take(session)  # until it asks for a batch, environments wait

    async def train(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                if not await self.take(session):
                    await asyncio.sleep(0.05)

    async def take(self, session: aiohttp.ClientSession) -> bool:
        async with session.get(f"{self.url}/batch") as answer:
            batch = (await answer.json())["batch"]
        if batch:
            self.batches.append(batch)
        return bool(batch)


class SumEnv(CurriculumEnv):
    """Notes what it was asked to collect, and what it gave."""

    name = "sums"
    client: AsyncTrainerClient
    prompt_count: int | None = None

    async def setup(self) -> None:
        self.asked: list[str] = []
        self.given: dict[str, list[float]] = {}
        self.examined: list[list[float]] = []
        self.use_curriculum(self.client, prompt_count=self.prompt_count)

    async def collect_trajectories(self, item: Any) -> tuple[Any, list[Any]]:
        self.asked.append(item.prompt_id)
        group = await self.roll_out(item.text, item.payload["answer"])
        self.given[item.prompt_id] = group["scores"]
        return group, []

    async def roll_out(self, text: str, answer: int) -> ScoredDataGroup:
        completion = await self.server.completion(prompt=text, n=GROUP_SIZE, max_tokens=8)
        prompt = self.tokenizer.encode(text)
        group = ScoredDataGroup(tokens=[], masks=[], scores=[])
        for choice in completion.choices:
            answered = self.tokenizer.encode(choice.text)
            group["tokens"].append(prompt + answered)
            group["masks"].append([-100] * len(prompt) + answered)
            group["scores"].append(float(choice.text.split()[-1] == str(answer)))
        return group

    async def evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As environments do that evaluate by their own rollouts."""
        item = {"text": "What is 2 + 2?"}
        self.examined.append((await self.roll_out(item["text"], 4))["scores"])


def make_env(
    kind: type[SumEnv],
    client: AsyncTrainerClient,
    *,
    api: str,
    inference: str,
    tokenizer: Path,
    **config: Any,
) -> SumEnv:
    settings: dict[str, Any] = {
        "group_size": GROUP_SIZE,
        "max_num_workers": 4,
        "max_token_length": 256,
        "steps_per_eval": 4,
        "use_wandb": False,
        "wandb_name": "sums",
        "rollout_server_url": api,
        "tokenizer_name": str(tokenizer),
        "total_steps": 5,
    }
    served = APIServerConfig(
        base_url=inference,
        api_key="x",
        model_name="tiny",
        server_type="openai",
        health_check=False,
    )
    kind.client = client
    return kind(BaseEnvConfig(**settings | config), [served])


async def finish(env: SumEnv) -> None:
    """Waits for an environment's rollouts, and for what it reports."""
    await asyncio.gather(*env.workers, return_exceptions=True)
    await env._supply.drain()


async def begin(env: SumEnv, count: int) -> None:
    """Has `count` items rolled out, as env_manager does."""
    if not hasattr(env, "asked"):
        await env.setup()
    env.config.batch_size, env.max_num_workers = GROUP_SIZE * count, count
    env.status_dict = {"queue_size": 0, "self_queue_size": 0}
    await env.add_train_workers()


async def run_to_the_end(env: SumEnv, folder: Path, first_step: int = 0) -> Trainer:
    """Runs an environment for its total_steps, under an API server of its own."""
    with api_server(folder) as url:
        env.config.rollout_server_url = url
        async with training(url, folder, first_step) as trainer:
            await env.env_manager()
    return trainer


@asynccontextmanager
async def training(url: str, folder: Path, first_step: int = 0) -> AsyncIterator[Trainer]:
    """A trainer that takes batches meanwhile."""
    trainer = Trainer(url, folder, first_step)
    await trainer.register()
    task = asyncio.create_task(trainer.train())
    try:
        yield trainer
    finally:
        task.cancel()
