"""Gets requests to the service: retries, and keeps reports while it is away.

Before a call is made every buffered report is sent, in order. One that is refused then is removed
and raised, and the call at hand is not made, unless it is a report: that is sent or kept first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from curriculum_api.errors import (
    AlreadyExistsError,
    ConflictError,
    CurriculumError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    StateError,
)
from curriculum_api.status import AWAY
from curriculum_api.v1.trainer_service_pb2 import ReportOutcomesRequest, ReportOutcomesResponse
from curriculum_client._batch import Receipt, decode_receipt
from curriculum_client._buffer import ReportBuffer
from curriculum_client._flow import Call, Flow, retried
from curriculum_client._settings import Settings

REFUSED = (
    InvalidRequestError,
    NotFoundError,
    AlreadyExistsError,
    StateError,
    ConflictError,
    PermissionDeniedError,
)
"""The service has judged the report and will not take it; after any other error it is kept."""

_log = logging.getLogger("curriculum_client")


class Delivery:
    """The way to the service. `patient` calls are retried for up to `retry_s`, others not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._buffer = ReportBuffer(settings.max_buffered_reports)
        self.is_away = False
        """Whether the last call found the service away."""

    @property
    def buffered_count(self) -> int:
        """Reports kept."""
        return len(self._buffer)

    def call(self, method: str, request: Message, *, patient: bool = True) -> Flow[Any]:
        """Make a call once no report is buffered."""
        yield from self.flush(patient=patient)
        return (yield from self._send(method, request, patient=patient))

    def report(self, reports: Sequence[ReportOutcomesRequest]) -> Flow[Receipt | None]:
        """Send the pieces of a report, or keep those that could not be sent and return None."""
        unsent, total = deque(reports), Receipt()
        # A trainer need not wait with every report for a service that is known to be away.
        patient = not self.is_away
        refusal: CurriculumError | None = None
        try:
            try:
                yield from self.flush(patient=patient)
            except REFUSED as error:  # of what was kept; what is at hand is as good as it was
                refusal = error
            while unsent:
                total += yield from self._send_report(unsent[0], patient=patient)
                unsent.popleft()
        except AWAY as error:
            self._buffer.keep(unsent, error)
            _log.warning(
                "report buffered run=%s batch=%s buffered=%d because=%s",
                self._settings.run_id,
                unsent[0].batch_id,
                len(self._buffer),
                error,
            )
        if refusal is not None:
            raise refusal
        return None if unsent else total

    def flush(self, *, patient: bool = True) -> Flow[Receipt]:
        """Send what is buffered; raise what was refused, once all others were sent."""
        total = Receipt()
        refused: list[tuple[ReportOutcomesRequest, CurriculumError]] = []
        interruption: CurriculumError | None = None
        # Threads may do this at once: a report that is sent twice counts once, and whoever
        # removes it answers for it.
        while (report := self._buffer.head) is not None:
            try:
                receipt = yield from self._send_report(report, patient=patient)
            except REFUSED as error:
                if self._buffer.remove(report):
                    refused.append((report, error))
            except CurriculumError as error:
                interruption = error
                break
            else:
                total += receipt if self._buffer.remove(report) else Receipt()
        if refused:
            raise _refusal(refused)
        if interruption is not None:
            raise interruption
        return total

    def close(self, failure: BaseException | None) -> Flow[None]:
        """Flush; while another exception is on its way, only try, and note on it what is lost."""
        try:
            yield from self.flush(patient=failure is None)
        except CurriculumError as error:
            if failure is None:
                error.add_note(f"unsent_reports={len(self._buffer)}")
                raise
            failure.add_note(f"curriculum_client: unsent_reports={len(self._buffer)}: {error}")

    def _send_report(self, report: ReportOutcomesRequest, *, patient: bool) -> Flow[Receipt]:
        response: ReportOutcomesResponse = yield from self._send(
            "ReportOutcomes", report, patient=patient
        )
        return decode_receipt(response.receipt)

    def _send(self, method: str, request: Message, *, patient: bool) -> Flow[Any]:
        call = Call(method, request, self._settings.timeout_s)
        try:
            response = yield from retried(call, self._settings.retry_s if patient else 0.0)
        except CurriculumError as error:
            self.is_away = isinstance(error, AWAY)
            raise
        self.is_away = False
        return response


def _refusal(refused: Sequence[tuple[ReportOutcomesRequest, CurriculumError]]) -> CurriculumError:
    report, error = refused[0]
    refusal = type(error)(
        f"batch_id={report.batch_id!r}: its buffered report was refused ({len(refused)} in all): "
        f"{error}"
    )
    refusal.__cause__ = error
    for report, error in refused[1:]:
        refusal.add_note(f"batch_id={report.batch_id!r}: {error}")
    return refusal
