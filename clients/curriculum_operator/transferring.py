"""Moves runs between a server and files, a few megabytes at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curriculum_api.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
)
from curriculum_api.v1.operator_service_pb2 import (
    ExportRunRequest,
    ExportRunResponse,
    GetRunRequest,
    ImportRunRequest,
    ImportRunResponse,
)
from curriculum_api.v1.run_pb2 import Run, RunPart
from curriculum_operator.archive import Manifest, Reader, writing
from curriculum_operator.connection import Connection
from curriculum_operator.paging import pages

EXPORT_TRIES = 10
"""A run in training gets a window every few steps, and an export begins anew when it does."""
CALL_BYTES = 4 * 1024 * 1024
CALL_PARTS = 1_000
DOCUMENT = "run.json"

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Exported:
    """What a file holds."""

    manifest: Manifest
    content_bytes: int
    try_count: int


@dataclass(frozen=True)
class Mover:
    """Moves one run."""

    connection: Connection
    patience_s: float

    def export(self, run_id: str, path: Path, version: str, advance: Advance) -> Exported:
        """Writes the run; begins anew when its layout changes meanwhile.

        Raises:
            ConflictError: it changed each time.
        """
        for tries in range(1, EXPORT_TRIES + 1):
            try:
                exported = self._export(run_id, path, version, advance)
                return replace(exported, try_count=tries)
            except ConflictError as error:
                conflict = error
        raise ConflictError(
            f"{conflict}\nThat happened {EXPORT_TRIES} times. Export while the trainer rests, or "
            "with larger windows: curriculum runs update RUN --set window_steps=…"
        )

    def _export(self, run_id: str, path: Path, version: str, advance: Advance) -> Exported:
        with writing(path) as writer:
            document: dict[str, Any] = {}
            for page in pages(lambda token: self._fetch(run_id, token)):
                for part in page.parts:
                    writer.add(part.name, part.content)
                    if part.name == DOCUMENT:
                        document = json.loads(part.content)["document"]
                advance(len(page.parts))
            manifest = Manifest(
                run_id=run_id,
                written_by=version,
                create_time=datetime.now(UTC).isoformat(timespec="seconds"),
                prompt_count=document["prompt_count"],
                window_count=len(document["windows"]),
                members=writer.members,
            )
            writer.finish(manifest)
        return Exported(manifest, writer.byte_count, 1)

    def _fetch(self, run_id: str, token: str) -> ExportRunResponse:
        request = ExportRunRequest(run_id=run_id, page_token=token)
        response: ExportRunResponse = self.connection.call_patiently(
            self.connection.stub.ExportRun, request, patience_s=self.patience_s
        )
        return response

    def check_name(self, run_id: str) -> None:
        """Refuses a name that is taken before anything is sent."""
        try:
            self.connection.call(self.connection.stub.GetRun, GetRunRequest(run_id=run_id))
        except NotFoundError:
            return
        raise AlreadyExistsError(
            f"run_id={run_id!r}: exists; name another one behind the file, or delete it first"
        )

    def import_(self, reader: Reader, run_id: str, advance: Advance) -> Run:
        """Sends every part of a checked file, then makes the run.

        The request's name follows from the content, so that a repeat takes an interrupted import
        up again.
        """
        request_id = f"file-{reader.digest[:32]}"
        for parts in _calls(reader):
            self._send(ImportRunRequest(run_id=run_id, request_id=request_id, parts=parts))
            advance(len(parts))
        return self._send(ImportRunRequest(run_id=run_id, request_id=request_id, commit=True))

    def _send(self, request: ImportRunRequest) -> Run:
        response: ImportRunResponse = self.connection.call_patiently(
            self.connection.stub.ImportRun, request, patience_s=self.patience_s
        )
        return response.run


def check(reader: Reader, advance: Advance) -> None:
    """Reads every part once; raises BadArchiveError for one that is damaged."""
    for name in reader.names:
        reader.read(name)
        advance(1)
    if DOCUMENT not in reader.manifest.members:
        raise InvalidRequestError(f"{DOCUMENT} is missing; nothing was imported")


def _calls(reader: Reader) -> Iterator[list[RunPart]]:
    parts: list[RunPart] = []
    size = 0
    for name in reader.names:
        part = RunPart(name=name, content=reader.read(name))
        part_size = part.ByteSize()
        if parts and (size + part_size > CALL_BYTES or len(parts) == CALL_PARTS):
            yield parts
            parts, size = [], 0
        parts.append(part)
        size += part_size
    if parts:
        yield parts
