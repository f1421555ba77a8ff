"""The server round a fake run: its port, its failures and its records."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from curriculum_api.channel import CHANNEL_OPTIONS
from curriculum_api.errors import (
    STATUS_NAMES,
    CurriculumError,
    InvalidRequestError,
    NotFoundError,
    StateError,
    StoreUnavailableError,
)
from curriculum_api.v1 import operator_service_pb2, probe_service_pb2, trainer_service_pb2
from curriculum_api.v1.prompt_pb2 import Prompt
from curriculum_client._async_client import AsyncTrainerClient
from curriculum_client._batch import Batch, decode_batch
from curriculum_client._client import TrainerClient
from curriculum_client._forks import ProcessLock
from curriculum_client.testing._run import FakeRun, Rules

_TRAINER = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]
_PROBE = probe_service_pb2.DESCRIPTOR.services_by_name["ProbeService"]
_OPERATOR = operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"]
_THREADS = 32  # calls at once, all of which `delay_s` may hold


class FakeCurriculum:
    """A run and its server, in this process. It serves while entered; the records stay.

    Args:
        prompts: Texts, or mappings with a `text` and, as in a line of prompts.jsonl, `prompt_id`
            ("p0", "p1", … if absent), `domain`, `payload`, `tags` and `features`.
        group_size: Attempts of each prompt.
        seed: Another seed serves the prompts in another order.
        lease_ttl_s: How long a prompt is withheld from other batches; `expire_leases` ends it now.
        reward_range: Rewards outside it are refused.
        pass_threshold: An attempt passes from this reward on; None for the largest.
    """

    run_id = "fake"

    def __init__(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        group_size: int = 8,
        *,
        seed: int = 0,
        lease_ttl_s: float = 3600.0,
        reward_range: tuple[float, float] = (0.0, 1.0),
        pass_threshold: float | None = None,
    ) -> None:
        threshold = reward_range[1] if pass_threshold is None else pass_threshold
        rules = Rules(group_size, seed, lease_ttl_s, reward_range, threshold)
        self._run = FakeRun(_prompts(prompts), rules)
        self._lock = ProcessLock()
        self._failures: list[tuple[CurriculumError, str | None, bool]] = []
        self._is_gone = threading.Event()
        self._server: Any = None
        self._port = 0
        self.delay_s = 0.0
        """Pause before every answer, in seconds; set it at any time."""
        self.calls: list[tuple[str, str]] = []
        """Method and status of every call that arrived: ("NextBatch", "UNAVAILABLE")."""

    def client(self, **options: Any) -> TrainerClient:
        """A client of the run; `options` are the constructor's."""
        return TrainerClient(self.target, self.run_id, **options)

    def async_client(self, **options: Any) -> AsyncTrainerClient:
        """The same for asyncio."""
        return AsyncTrainerClient(self.target, self.run_id, **options)

    @property
    def target(self) -> str:
        """Where it listens, or did before it went away."""
        if not self._port:
            raise StateError("FakeCurriculum: must be entered, as a context manager")
        return f"127.0.0.1:{self._port}"

    @property
    def batches(self) -> list[Batch]:
        """Every batch that was made, in order; a repeated request makes none."""
        with self._lock:
            return list(map(decode_batch, self._run.served))

    @property
    def unreported(self) -> list[Batch]:
        """Batches of this timeline with prompts neither reported in full nor released."""
        with self._lock:
            return [decode_batch(x.message) for x in self._run.leases.values() if x.open_slots]

    @property
    def rewards(self) -> dict[str, list[float]]:
        """What was counted of each prompt, in order, as float32. A rollback takes back its part."""
        with self._lock:
            return {name: list(row) for name, row in sorted(self._run.ledger.rewards.items())}

    @property
    def attempts(self) -> Counter[str]:
        """How many attempts were counted of each prompt."""
        return Counter({prompt_id: len(row) for prompt_id, row in self.rewards.items()})

    def expire_leases(self) -> None:
        """Return what is leased to the pool, as if `lease_ttl_s` had passed. Late reports count."""
        with self._lock:
            for lease in self._run.leases.values():
                lease.is_expired = True

    def fail_next(
        self,
        count: int = 1,
        error: CurriculumError | type[CurriculumError] = StoreUnavailableError,
        *,
        method: str | None = None,
        is_applied: bool = False,
    ) -> None:
        """Answer the next calls with an error.

        Args:
            count: How many calls.
            error: Clients retry StoreUnavailableError, DeadlineError and OverloadedError.
            method: The RPC, "NextBatch" say; None for any.
            is_applied: Whether the call takes effect and only its answer is lost.
        """
        if method is not None and method not in _TRAINER.methods_by_name:
            raise InvalidRequestError(f"method={method!r}: must be one of TrainerService")
        given = error("injected by fail_next") if isinstance(error, type) else error
        with self._lock:
            self._failures += [(given, method, is_applied)] * count

    def go_away(self) -> None:
        """Stop listening and break all connections. What the run holds stays."""
        _serving.discard(self)
        self._stop()

    def come_back(self) -> None:
        """Listen again, where it did."""
        if self not in _serving:
            self._start()
            _serving.add(self)

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.go_away()

    def _start(self) -> None:
        self._is_gone.clear()
        # Without the option two fakes could share a port.
        options = (*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0))
        self._server = grpc.server(ThreadPoolExecutor(_THREADS), options=options)
        handlers = tuple(map(self._handlers, (_TRAINER, _PROBE, _OPERATOR)))
        self._server.add_generic_rpc_handlers(handlers)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def _stop(self) -> None:
        if self._server is not None:
            self._is_gone.set()
            self._server.stop(None).wait()
            self._server = None

    def _handlers(self, service: Any) -> Any:
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                partial(self._serve, method.name) if service is _TRAINER else _refuse,
                GetMessageClass(method.input_type).FromString,
                GetMessageClass(method.output_type).SerializeToString,
            )
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _serve(self, method: str, request: Any, context: Any) -> Any:
        self._is_gone.wait(self.delay_s)
        with self._lock:
            answer = self._answer(method, request)
            is_error = isinstance(answer, CurriculumError)
            status = _status(answer) if is_error else grpc.StatusCode.OK
            self.calls.append((method, status.name))
        if is_error:
            context.abort(status, str(answer))
        return answer

    def _answer(self, method: str, request: Any) -> Any:
        """A response or an error."""
        failures = [failure for failure in self._failures if failure[1] in (None, method)]
        if failures:
            self._failures.remove(failures[0])
            if not failures[0][2]:
                return failures[0][0]
        try:
            if request.run_id != self.run_id:
                raise NotFoundError(f"run_id={request.run_id!r}: there is no such run")
            response = getattr(self._run, method)(request)
        except CurriculumError as error:
            return error
        return failures[0][0] if failures else response


_serving: weakref.WeakSet[FakeCurriculum] = weakref.WeakSet()


def _before_fork() -> None:
    """A process that serves cannot be forked: grpc skips what makes its children safe, and some
    crash. So the server stops for a moment, and clients ask again."""
    for fake in list(_serving):
        fake._stop()


def _after_in_parent() -> None:
    for fake in list(_serving):
        fake._start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_serving.clear
    )


def _refuse(_request: Message, context: Any) -> None:
    context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        "FakeCurriculum plays TrainerService alone; for the others start a curriculum-server",
    )


def _status(error: CurriculumError) -> Any:
    names = [STATUS_NAMES[kind] for kind in type(error).__mro__ if kind in STATUS_NAMES]
    return grpc.StatusCode[names[0] if names else "INTERNAL"]


def _prompts(given: Iterable[str | Mapping[str, Any]]) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}
    for number, each in enumerate(given):
        fields = {"text": each} if isinstance(each, str) else dict(each)
        fields = {"prompt_id": f"p{number}", "domain": "default", **fields}
        if "payload" in fields:
            fields["payload_json"] = json.dumps(fields.pop("payload"))
        try:
            prompt = Prompt(**fields)
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"prompts[{number}]: {error}") from error
        if prompts.setdefault(prompt.prompt_id, prompt) is not prompt:
            raise InvalidRequestError(f"prompts[{number}]: prompt_id={prompt.prompt_id!r} is taken")
    return list(prompts.values())
