"""A small real server of `/v1/completions`, and the command against it and the real server."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_probe import cli


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # 5 by default, and more connections at once would be reset


class Endpoint:
    """Answers "right" to a prompt named by a pass rate, such as "0.25 x", that often."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.failures: list[tuple[int, str]] = []
        """Status and body of the next answers; status 0 breaks the connection."""
        self.refused: set[str] = set()
        self.max_choices = 1_000_000
        self.tells_usage = True
        self.on_request: Callable[[int], None] = lambda _number: None
        """Called with each request's number, from 1, before it is answered."""
        self.answer: Callable[[str], str] = self._answer
        self._randoms: dict[str, random.Random] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def complete(self, request: dict[str, Any]) -> tuple[int, str]:
        with self._lock:
            self.requests.append(request)
            number = len(self.requests)
        self.on_request(number)
        with self._lock:
            if self.failures:
                return self.failures.pop(0)
            if request["model"] != "stub":
                return 404, json.dumps({"error": {"message": "The model `other` does not exist."}})
            if request["prompt"] in self.refused:
                return 400, json.dumps({"message": "the prompt is too long"})
            count = min(request["n"], self.max_choices)
            choices = [{"text": self.answer(request["prompt"])} for _ in range(count)]
        document: dict[str, Any] = {"choices": choices}
        if self.tells_usage:
            document["usage"] = {"completion_tokens": 7 * count + 3}
        return 200, json.dumps(document)

    def _answer(self, prompt: str) -> str:
        passes = self._randoms.setdefault(prompt, random.Random(prompt)).random() < rate_of(prompt)
        self.right[prompt] += passes
        return " right\n" if passes else "wrong"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                found = self.path == "/v1/completions"
                status, body = endpoint.complete(json.loads(content)) if found else (404, "?")
                if status:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body.encode())

            def log_message(self, *_args: object) -> None:
                """Silent."""

        return Handler


def rate_of(prompt: str) -> float:
    return float(prompt.split()[0])


class Process:
    """The command as a process of its own."""

    def __init__(self, arguments: list[str], log_file: Path) -> None:
        self._log_file = log_file
        with log_file.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", MAIN, *arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self._log_file.read_text()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Its exit code, once it ends by itself."""
        return self._process.wait(30)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


MAIN = "import sys; from curriculum_probe.main import main; sys.exit(main())"


class Pool:
    """One run's prompts: adding them, and what the ledger holds of them."""

    def __init__(self, stubs: Any, run_id: str) -> None:
        self._stubs, self.run_id = stubs, run_id

    def add(self, text: str, payload: dict[str, Any], name: str | None = None) -> None:
        prompt = prompt_pb2.Prompt(
            prompt_id=name or text, domain="d", text=text, payload_json=json.dumps(payload)
        )
        self._stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=self.run_id, prompts=[prompt]))

    def add_rates(self, *rates: float) -> list[str]:
        """Prompts that the endpoint passes that often; their names are their texts."""
        texts = [f"{rate} #{number}" for number, rate in enumerate(rates)]
        for text in texts:
            self.add(text, {"answer": "right"})
        return texts

    def prompt(self, name: str) -> op.GetPromptResponse:
        return self._stubs.operator.GetPrompt(
            op.GetPromptRequest(run_id=self.run_id, prompt_id=name)
        )

    def attempts(self) -> dict[str, int]:
        return {name: state.attempt_count for name, state in self._states().items()}

    def passes(self) -> dict[str, int]:
        return {name: state.pass_count for name, state in self._states().items()}

    def leased(self) -> set[str]:
        states = self._states().items()
        return {name for name, state in states if state.HasField("lease_expire_time")}

    def _states(self) -> dict[str, prompt_pb2.PromptState]:
        request = op.ListPromptsRequest(run_id=self.run_id, page_size=1000)
        return {
            state.prompt_id: state for state in self._stubs.operator.ListPrompts(request).prompts
        }


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


@pytest.fixture
def pool(stubs: Any, new_run: Callable[..., str]) -> Pool:
    """An empty one."""
    return Pool(stubs, new_run())


@pytest.fixture
def pool_of(stubs: Any, new_run: Callable[..., str]) -> Callable[..., Pool]:
    """An empty one of a run with a configuration."""
    return lambda **config: Pool(stubs, new_run(**config))


@pytest.fixture
def command(server: Any, endpoint: Endpoint, pool: Pool) -> Callable[..., list[str]]:
    """The command's arguments, each replaced or removed (None) by a keyword."""

    def build(**changes: object) -> list[str]:
        options: dict[str, object] = {
            "server": server.address,
            "run": pool.run_id,
            "engine": "openai",
            "endpoint": endpoint.url,
            "model": "stub",
            "policy_step": 0,
            "attempts": 8,
            "rounds": 1,
            "patience": 10,
        }
        options |= changes
        given = {name: value for name, value in options.items() if value is not None}
        return [
            argument
            for name, value in given.items()
            for each in (value if isinstance(value, list) else [value])
            for argument in (f"--{name.replace('_', '-')}", str(each))
        ]

    return build


@pytest.fixture
def start(command: Callable[..., list[str]], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start the command as a process; it does not end by itself unless it is told to."""
    numbers = itertools.count()
    with ExitStack() as started:

        def begin(**changes: object) -> Process:
            log_file = tmp_path / f"worker-{next(numbers)}.log"
            process = Process(command(**{"rounds": None, **changes}), log_file)
            started.callback(process.close)
            return process

        yield begin


@pytest.fixture
def probe(command: Callable[..., list[str]]) -> Callable[..., int]:
    """Run the command in this process; its exit code."""
    return lambda **changes: cli.main(command(**changes))


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line that a failed command has printed."""

    def read() -> str:
        printed = capsys.readouterr()
        assert printed.out == ""
        [line] = printed.err.splitlines()
        return line

    return read


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVER", "TOKEN", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.delenv(f"CURRICULUM_{name}", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _info_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "curriculum_probe")
