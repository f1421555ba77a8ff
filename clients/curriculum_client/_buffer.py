"""Reports that wait for the service to come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from curriculum_api.errors import CurriculumError, StoreUnavailableError
from curriculum_api.v1.trainer_service_pb2 import ReportOutcomesRequest
from curriculum_client._forks import ProcessLock


class ReportBuffer:
    """A bounded queue. Its requests carry their ids, so sending one twice counts it once."""

    def __init__(self, max_report_count: int) -> None:
        self._max_report_count = max_report_count
        self._reports: deque[ReportOutcomesRequest] = deque()
        self._lock = ProcessLock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {**vars(self), "_reports": self._reports.copy()}

    def __len__(self) -> int:
        return len(self._reports)

    @property
    def head(self) -> ReportOutcomesRequest | None:
        """The report to send first."""
        try:
            return self._reports[0]
        except IndexError:
            return None

    def keep(self, reports: Sequence[ReportOutcomesRequest], because: CurriculumError) -> None:
        """Keep all of these.

        Raises:
            StoreUnavailableError: They are too many, and none of them was kept.
        """
        with self._lock:
            if len(self._reports) + len(reports) <= self._max_report_count:
                self._reports.extend(reports)
                return
        raise StoreUnavailableError(
            f"max_buffered_reports={self._max_report_count}: reached, so this report was not kept "
            f"while the service is away: {because}"
        ) from because

    def remove(self, report: ReportOutcomesRequest) -> bool:
        """Remove the head if it is this one; False when someone else did."""
        with self._lock:
            if self.head is not report:
                return False
            self._reports.popleft()
            return True
