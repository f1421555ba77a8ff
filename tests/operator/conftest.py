"""A real gRPC server in front of a hand-written OperatorService, and the command line against it.

A test that asks only for `target` and `curriculum` works against any server: override `target`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from curriculum_api.channel import CHANNEL_OPTIONS
from curriculum_api.v1 import operator_service_pb2 as pb
from curriculum_api.v1 import prompt_pb2, run_pb2, stats_pb2
from curriculum_api.v1.operator_service_pb2_grpc import (
    OperatorServiceServicer,
    add_OperatorServiceServicer_to_server,
)
from curriculum_operator.cli import cli
from tests.operator.examples import busy_stats


@dataclass
class FakeRun:
    run: run_pb2.Run
    prompts: dict[str, prompt_pb2.Prompt] = field(default_factory=dict)
    stats: stats_pb2.RunStats = field(default_factory=stats_pb2.RunStats)


@dataclass
class FakeService(OperatorServiceServicer):
    """Runs in a dict. `calls_until_away` counts AddPrompts down; at 0 they are UNAVAILABLE."""

    runs: dict[str, FakeRun] = field(default_factory=dict)
    calls_until_away: int | None = None
    lose_next_answer: bool = False
    add_sizes: list[int] = field(default_factory=list)
    points: list[stats_pb2.BoundaryPoint] = field(default_factory=list)
    compared: dict[str, Any] = field(default_factory=dict)
    """What CompareBoundary says of the steps that it compared."""
    metadata: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def _run(self, run_id, context):
        self.metadata.append(dict(context.invocation_metadata()))
        if run_id not in self.runs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"run_id={run_id}: no such run")
        return self.runs[run_id]

    def CreateRun(self, request, context):
        run = run_pb2.Run(run_id=request.run_id, config=request.config)
        if not run.config.selection.HasField("strategy"):
            run.config.selection.strategy = "edge"
        known = self.runs.setdefault(request.run_id, FakeRun(run))
        if known.run.config != run.config:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"run_id={request.run_id}: is taken")
        return pb.CreateRunResponse(run=known.run)

    def GetRun(self, request, context):
        return pb.GetRunResponse(run=self._run(request.run_id, context).run)

    def ListRuns(self, request, context):
        names = sorted(self.runs)
        start = int(request.page_token or 0)
        end = start + 2  # small pages, so that a list has more than one
        token = str(end) if end < len(names) else ""
        found = [self.runs[name].run for name in names[start:end]]
        return pb.ListRunsResponse(runs=found, next_page_token=token)

    def UpdateRun(self, request, context):
        known = self._run(request.run_id, context)
        if request.config.HasField("seed"):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "seed: fixed at creation")
        known.run.config.MergeFrom(request.config)
        return pb.UpdateRunResponse(run=known.run)

    def DeleteRun(self, request, context):
        self._run(request.run_id, context)
        del self.runs[request.run_id]
        return pb.DeleteRunResponse()

    def AddPrompts(self, request, context):
        with self.lock:
            self._count_down(context)
            known = self._run(request.run_id, context)
            for prompt in request.prompts:
                if known.prompts.get(prompt.prompt_id, prompt) != prompt:
                    details = f"prompt_id={prompt.prompt_id}: is there with other content"
                    context.abort(grpc.StatusCode.ALREADY_EXISTS, details)
            new = [prompt for prompt in request.prompts if prompt.prompt_id not in known.prompts]
            known.prompts |= {prompt.prompt_id: prompt for prompt in new}
            known.run.prompt_count = len(known.prompts)
            self.add_sizes.append(len(request.prompts))
            if self.lose_next_answer:
                self.lose_next_answer = False
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            return pb.AddPromptsResponse(
                added_count=len(new),
                existing_count=len(request.prompts) - len(new),
                prompt_count=len(known.prompts),
            )

    def _count_down(self, context):
        if self.calls_until_away == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        if self.calls_until_away is not None:
            self.calls_until_away -= 1

    def ListPrompts(self, request, context):
        states = [
            self._state(number, prompt)
            for number, prompt in enumerate(self._run(request.run_id, context).prompts.values())
        ]
        wanted = [
            state
            for state in states
            if request.domain in ("", state.domain)
            and (not request.HasField("band") or request.band == state.band)
        ]
        start = int(request.page_token or 0)
        end = start + min(request.page_size, 10)
        token = str(end) if end < len(wanted) else ""
        return pb.ListPromptsResponse(prompts=wanted[start:end], next_page_token=token)

    def _state(self, number, prompt):
        rate = (number % 11) / 10
        return prompt_pb2.PromptState(
            prompt_id=prompt.prompt_id,
            domain=prompt.domain,
            band=1 + number % 4,
            pass_rate=rate,
            pass_rate_low=max(0, rate - 0.2),
            pass_rate_high=min(1, rate + 0.2),
            attempt_count=8 * number,
            pass_count=3 * number,
            last_served_step=number or None,
        )

    def GetPrompt(self, request, context):
        prompts = self._run(request.run_id, context).prompts
        if request.prompt_id not in prompts:
            details = f"prompt_id={request.prompt_id}: no such prompt"
            context.abort(grpc.StatusCode.NOT_FOUND, details)
        number = list(prompts).index(request.prompt_id)
        history = [
            prompt_pb2.PromptHistoryPoint(
                first_policy_step=5 * window,
                last_policy_step=5 * window + 4,
                attempt_count=8,
                pass_count=min(8, window),
                mean_reward=min(1, window / 8),
            )
            for window in range(number)
        ]
        prompt = prompts[request.prompt_id]
        return pb.GetPromptResponse(
            prompt=prompt, state=self._state(number, prompt), history=history
        )

    def GetStats(self, request, context):
        return pb.GetStatsResponse(stats=self._run(request.run_id, context).stats)

    def CompareBoundary(self, request, context):
        self._run(request.run_id, context)
        asked = set(request.ks)
        points = [p for p in self.points if p.k in asked]
        return pb.CompareBoundaryResponse(points=points, **self.compared)


@contextmanager
def serving(service: FakeService) -> Iterator[str]:
    """The address of a real server in front of the service."""
    with ThreadPoolExecutor(max_workers=4) as workers:
        server = grpc.server(workers, options=CHANNEL_OPTIONS)
        add_OperatorServiceServicer_to_server(service, server)
        port = server.add_insecure_port("localhost:0")
        server.start()
        yield f"localhost:{port}"
        server.stop(grace=None).wait()


@dataclass(frozen=True)
class Curriculum:
    """The command `curriculum`, in this process."""

    target: str

    def __call__(self, *args: str, stdin: str | bytes | None = None, **env: str) -> Result:
        """Fails the test on anything that is not a foreseen exit."""
        settings = {"CURRICULUM_SERVER": self.target, "COLUMNS": "80"} | env
        result = CliRunner().invoke(cli, args, input=stdin, env=settings)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        assert "Traceback" not in result.output
        return result

    def ok(self, *args: str, stdin: str | bytes | None = None, **env: str) -> str:
        result = self(*args, stdin=stdin, **env)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *args: str, stdin: str | bytes | None = None):
        return json.loads(self.ok(*args, "--json", stdin=stdin))

    def error(self, *args: str, stdin: str | bytes | None = None, code: int = 1) -> str:
        """What a failing command says on stderr; it says nothing on stdout."""
        result = self(*args, stdin=stdin)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def serve():
    """Puts a server in front of a service, as a context."""
    return serving


@pytest.fixture
def target(service) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture
def curriculum(target) -> Curriculum:
    return Curriculum(target)


@pytest.fixture
def curriculum_at():
    """The command line against a given address."""
    return Curriculum


@pytest.fixture
def math(curriculum) -> str:
    """A run to fill."""
    curriculum.ok("runs", "create", "math")
    return "math"


@pytest.fixture
def write_lines(tmp_path):
    """Writes JSON Lines; text stays as it is."""

    def write(*records: object, name: str = "prompts.jsonl"):
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


@pytest.fixture
def busy_run(curriculum, service) -> str:
    """A run whose numbers and names strain the layout."""
    curriculum.ok("runs", "create", "busy")
    service.runs["busy"].stats.CopyFrom(busy_stats())
    return "busy"
