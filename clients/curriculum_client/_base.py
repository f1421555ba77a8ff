"""What the blocking and the asyncio client have in common: everything but waiting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from curriculum_api.channel import TlsConfig
from curriculum_api.errors import InvalidRequestError
from curriculum_client import _forks
from curriculum_client._core import Core
from curriculum_client._link import Link
from curriculum_client._settings import OnUnavailable, Settings, from_environment


class ClientBase:
    """A trainer's client of one run.

    Batches. `next_batch` names its request "consumer-sequence". Clients with one `consumer` and one
    sequence, such as the ranks of a job, are given the same batches; those that should be given
    different ones need different consumers. The sequence starts at 0: a new job on a run that was
    used before resumes with `load_state_dict`, or rolls the run back; better, it has its own run.

    Reports. Each counts once, however often it is sent, and different reports of one batch add up.
    Two reporters may report equal content for different attempts, so every process that reports
    needs its own `reporter`, the same again when it resumes. Left out, it is made of `consumer` and
    the environment's RANK, and a forked or unpickled copy makes up its own; a copy's reports are
    then not recognised after a crash. Where reports have names of their own, say the rollout's uid,
    pass them as `part` instead.

    Failures. Every call is repeated with growing delays while the service is away, until `retry_s`
    has passed; one attempt may take `timeout_s`. Then reports are kept, up to
    `max_buffered_reports`, and sent before the next call; any other call raises. One that is
    refused when it is sent late is raised by the call that sent it, which is then not made itself,
    unless it is a report.
    With `on_unavailable="uniform"`, `next_batch` draws uniformly from the prompts it served before
    (the newest 64 MiB of them) instead of raising: reason "uniform-fallback", batch_id "". Nothing
    of such a batch counts; `fallback_batches` says how many there were.

    Processes and threads. Threads may share a client. It connects when it is first used, and may be
    pickled at any time and, unless it is an asyncio client that has connected, forked while no
    other thread is amid a call, its buffered reports included. For this, importing the package sets
    GRPC_ENABLE_FORK_SUPPORT unless it is set: import it before grpc.

    Args:
        target: "host:port", "unix:/path" or any other name that gRPC resolves.
        run_id: The run.
        consumer: Whose sequence of batches this is.
        reporter: Whose reports these are; see above.
        timeout_s: Deadline of one attempt at a call, in seconds.
        retry_s: How long a call is repeated while the service is away, in seconds; 0 for never.
        token: Bearer token; needs `tls` or a network that you trust.
        tls: Credentials; None for plain text.
        on_unavailable: "raise" or "uniform".
        max_buffered_reports: Reports kept while the service is away; 0 for none.
    """

    _transport: ClassVar[Any]

    def __init__(
        self,
        target: str,
        run_id: str,
        *,
        consumer: str = "default",
        reporter: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 120.0,
        token: str | None = None,
        tls: TlsConfig | None = None,
        on_unavailable: OnUnavailable = "raise",
        max_buffered_reports: int = 1024,
    ) -> None:
        settings = Settings(
            target=target,
            run_id=run_id,
            consumer=consumer,
            reporter=reporter,
            timeout_s=timeout_s,
            retry_s=retry_s,
            token=token,
            tls=tls,
            on_unavailable=on_unavailable,
            max_buffered_reports=max_buffered_reports,
        )
        self._begin(Core(settings))

    @classmethod
    def from_environment(cls, **options: Any) -> Self:
        """A client made from variables, for code that a framework calls where none can be handed
        over: CURRICULUM_RUN, and, where set, CURRICULUM_SERVER (localhost:50051),
        CURRICULUM_CONSUMER, CURRICULUM_TOKEN and CURRICULUM_TLS_CA, _CERT and _KEY. `options` are
        the constructor's, and come before them. Reports are told apart from those of every other
        process, unless a `reporter` is named.

        Raises:
            InvalidRequestError: No run is named.
        """
        arguments = from_environment(os.environ) | options
        if not arguments["run_id"]:
            raise InvalidRequestError("CURRICULUM_RUN='': must name the run")
        client = cls(**arguments)
        client.after_fork()
        return client

    def _begin(self, core: Core) -> None:
        self._core = core
        self._link = Link(core.settings, self._transport)
        _forks.watch(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"core": self._core}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["core"])
        self._core.become_copy()

    def after_fork(self) -> None:
        """Be a copy; called in every forked child."""
        self._core.become_copy()

    def __repr__(self) -> str:
        settings = self._core.settings
        return (
            f"{type(self).__name__}({settings.target!r}, run_id={settings.run_id!r}, "
            f"consumer={settings.consumer!r}, timeline={self.timeline})"
        )

    @property
    def timeline(self) -> int | None:
        """The run's timeline, as far as this client knows; None before the first batch."""
        return self._core.timeline

    @property
    def is_reporter_shared(self) -> bool:
        """Whether other processes that are started alike report under the same name."""
        settings = self._core.settings
        return "RANK" not in os.environ and self._core.reporter == settings.default_reporter()

    @property
    def buffered_reports(self) -> int:
        """Reports that wait for the service to come back."""
        return self._core.delivery.buffered_count

    @property
    def fallback_batches(self) -> int:
        """Batches drawn by the client itself; always 0 unless `on_unavailable="uniform"`."""
        return self._core.fallback_batch_count

    def state_dict(self) -> dict[str, Any]:
        """Sequence numbers and timeline, for the trainer's checkpoint; survives JSON.

        Buffered reports are not part of it: `checkpoint` and `flush` send them.
        """
        return self._core.state_dict()

    def rejoin(self) -> None:
        """Take the run's timeline as it is, after somebody else has rolled it back.

        Until then every call is a ConflictError, so that nobody goes on unknowingly with batches
        that are void.
        """
        self._core.timeline = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called; before or after `rollback`, which is a call.

        Raises:
            InvalidRequestError: The state is of another run or consumer.
        """
        self._core.load_state_dict(state)
