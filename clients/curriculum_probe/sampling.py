"""How completions are sampled: as the run says that its trainer does, so that probes tell of the
policy that is trained."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from curriculum_api.errors import CurriculumError, InvalidRequestError
from curriculum_api.v1 import run_pb2
from curriculum_probe.threads import in_thread

LOOK_AGAIN_S = 60.0
"""Who changes a run does so by hand, and one call a minute is nothing to a server."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """By the contract's names; the defaults are for what neither the run nor a flag says."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    chat: bool = False

    def __str__(self) -> str:
        return " ".join(_shown(field.name, getattr(self, field.name)) for field in fields(self))


def chosen(run: run_pb2.Run, flags: Mapping[str, Any]) -> Sampling:
    """What the run says, then what the flags say; None of a flag says nothing.

    Raises:
        InvalidRequestError: a flag contradicts the run.
    """
    of_run = _said(run)
    of_flags = {name: _plain(value) for name, value in flags.items() if value is not None}
    for name, value in of_flags.items():
        if _differ(name, value, of_run):
            change = shlex.quote(f"sampling.{_shown(name, value)}")
            raise InvalidRequestError(
                f"{_shown(name, value)}: run_id={run.run_id!r} is sampled with "
                f"{_shown(name, of_run[name])}; leave the flag out, or change the run: "
                f"curriculum runs update {run.run_id} --set {change}"
            )
    return Sampling(**{**of_flags, **of_run})


class Watch:
    """Warns of a run that is sampled otherwise by now: engines keep what they began with."""

    def __init__(self, used: Sampling) -> None:
        self._used = used
        self._warned_of: dict[str, Any] = {}

    async def keep_looking(self, read_run: Callable[[], run_pb2.Run]) -> None:
        """Without end. A run that cannot be read is others' to tell of."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            try:
                self.look(await in_thread(read_run))
            except CurriculumError:
                continue

    def look(self, run: run_pb2.Run) -> None:
        """Warn once of each change."""
        of_run, used = _said(run), vars(self._used)
        changed = {name: of_run[name] for name in of_run if _differ(name, used[name], of_run)}
        if changed and changed != self._warned_of:
            logger.warning(
                "sampling changed run=%s %s; until this worker is restarted it samples with %s",
                run.run_id,
                " ".join(_shown(name, value) for name, value in changed.items()),
                " ".join(_shown(name, used[name]) for name in changed),
            )
        self._warned_of = changed


def _said(run: run_pb2.Run) -> dict[str, Any]:
    """What the run says of its sampling."""
    return {field.name: _plain(value) for field, value in run.config.sampling.ListFields()}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) else tuple(value)


def _differ(name: str, value: Any, of_run: Mapping[str, Any]) -> bool:
    if name == "stop" and name in of_run:
        return set(value) != set(of_run[name])
    return name in of_run and bool(value != of_run[name])


def _shown(name: str, value: Any) -> str:
    """As it is set on the command line; a stop may be a line's end."""
    return f"{name}={json.dumps(value, ensure_ascii=False)}"
