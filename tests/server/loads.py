"""Trainers that go on asking and reporting whatever happens to the store meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from tests.server.driving import RunDriver

RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
GROUP_SIZE = 4


class Load:
    """One thread per driver, each on the next batch as soon as its last one is reported.

    Requests are repeated under their name until they are answered, as the clients do.
    """

    def __init__(self, drivers: Sequence[RunDriver], batch_size: int = 4) -> None:
        self.attempts: Counter[str] = Counter()
        """Acknowledged, by run."""
        self.refused: Counter[str] = Counter()
        """Answers after which a request was repeated, by status."""
        self.waited_s = 0.0
        """The longest that a request took, repeats included."""
        self.twice: list[str] = []
        """Prompts that a batch brought while another that was not reported yet held them."""
        self._batch_size = batch_size
        self._runs = {driver.run_id for driver in drivers}
        self._held: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(f"worker{n}", driver), daemon=True)
            for n, driver in enumerate(drivers)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        if self._failure is not None:
            raise self._failure

    def wait_for_progress(self, attempts: int = 200, timeout_s: float = 20.0) -> None:
        """Until every run got so many attempts from now on."""
        before = self.attempts.copy()
        deadline = time.monotonic() + timeout_s
        while any(self.attempts[run] - before[run] < attempts for run in self._runs):
            assert self._failure is None, self._failure
            assert time.monotonic() < deadline, f"no progress; refused: {dict(self.refused)}"
            time.sleep(0.01)

    def _guarded(self, name: str, driver: RunDriver) -> None:
        try:
            self._work(name, driver)
        except BaseException as error:
            self._failure = error
            self._stopping.set()

    def _work(self, name: str, driver: RunDriver) -> None:
        number = 0
        while not self._stopping.is_set():
            request = driver.next_request(f"{name}-{number}", count=self._batch_size)
            batch = self._insist(driver.stubs.trainer.NextBatch, request).batch
            held = {(driver.run_id, p.prompt.prompt_id) for p in batch.prompts}
            with self._lock:
                self.twice += [prompt_id for _, prompt_id in held & self._held]
                self._held |= held
            if not held:
                continue
            groups = {p.slot: [1.0] * 2 + [0.0] * (p.attempt_count - 2) for p in batch.prompts}
            report = driver.report_request(batch, groups, request_id=f"{name}-{number}")
            with self._lock:
                self._held -= held
            receipt = self._insist(driver.stubs.trainer.ReportOutcomes, report).receipt
            with self._lock:
                self.attempts[driver.run_id] += receipt.attempt_count
            number += 1

    def _insist(self, call: Callable[..., Any], request: Any) -> Any:
        started = time.monotonic()
        while True:
            try:
                answer = call(request, timeout=20)
            except grpc.RpcError as error:
                status = error.code()
                if status not in RETRIED:
                    raise
                with self._lock:
                    self.refused[f"{status.name}: {error.details()[:60]}"] += 1
                if time.monotonic() - started > 30:
                    raise
                time.sleep(0.02)
            else:
                with self._lock:
                    self.waited_s = max(self.waited_s, time.monotonic() - started)
                return answer
