"""Trainers and probers: they lease, report in parts, repeat, and note what they are told."""

from __future__ import annotations

import bisect
import itertools
import random
import threading
import time
from collections.abc import Callable

from curriculum_api.errors import CurriculumError
from curriculum_api.status import AWAY
from curriculum_api.v1 import batch_pb2
from curriculum_client import Batch, TrainerClient
from curriculum_probe.patience import Patience
from curriculum_probe.service import Service
from tests.chaos.accounting import Books, Part, prompt_index

RUN_ID = "chaos"
BATCH_PROMPTS = 64
PROBE_PROMPTS = 16
REPEATED_SHARE = 0.1
"""Of the reports, those that are sent again although they were acknowledged."""
RELEASED_SHARE = 0.05
"""Of the batches, those that are given back half done."""
LONGEST_PAUSE_S = 0.08
STEP_BATCHES = 4
PATIENCE_S = 120.0

Forgives = Callable[[CurriculumError], bool]


class Steps:
    """The policy step that all trainers are at: it goes on with their batches."""

    def __init__(self) -> None:
        self._batches = itertools.count()
        self.now = 0

    def advance(self) -> int:
        self.now = next(self._batches) // STEP_BATCHES
        return self.now


class Worker:
    """A thread that works in rounds until it is told to finish.

    `forgives` says which refusals are no error: where a store may lose what it acknowledged, a
    batch may be gone.
    """

    def __init__(self, name: str, books: Books, steps: Steps, seed: int) -> None:
        self.name, self.books, self.steps = name, books, steps
        self.rng = random.Random(f"{seed}/{name}")
        self.errors: list[str] = []
        self.forgives: Forgives = lambda error: False
        self._answers_s: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Have it end its round, with every report acknowledged."""
        self._stop.set()

    def join(self, limit_s: float = 180.0) -> None:
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self.errors.append(f"{self.name}: did not finish within {limit_s:g} s")

    def round(self, number: int) -> None:
        """Lease and report once."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring what is not acknowledged yet to its end."""

    def close(self) -> None:
        """Disconnect."""

    def succeeded(self) -> None:
        """Note that a call did."""
        self._answers_s.append(time.monotonic())

    def answered_s(self, after_s: float) -> float | None:
        """When a call first succeeded after that time, on the monotonic clock."""
        at = bisect.bisect_right(self._answers_s, after_s)
        return self._answers_s[at] if at < len(self._answers_s) else None

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                break
            self._carefully(lambda number=number: self.round(number))
            self._stop.wait(self.rng.uniform(0, LONGEST_PAUSE_S))
        self._carefully(self.settle)
        self._carefully(self.close)

    def _carefully(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CurriculumError as error:
            if not self.forgives(error):
                self.errors.append(f"{self.name}: {type(error).__name__}: {error}")
        except Exception as error:  # the boundary: whatever ends a worker must be told
            self.errors.append(f"{self.name}: {type(error).__name__}: {error}")


class Trainer(Worker):
    """A trainer with the public client. An impatient one lets the client keep its reports."""

    def __init__(
        self, name: str, target: str, books: Books, steps: Steps, seed: int, *, patient: bool
    ) -> None:
        super().__init__(name, books, steps, seed)
        self._patient = patient
        self._kept: list[Part] = []
        self._client = TrainerClient(
            target, RUN_ID, consumer=name, timeout_s=15, retry_s=PATIENCE_S if patient else 0.3
        )

    def round(self, number: int) -> None:
        step = self.steps.advance()
        try:
            batch = self._client.next_batch(BATCH_PROMPTS, policy_step=step)
        except AWAY:
            if self._patient:
                raise
            return  # the same sequence number asks for the same batch again
        self._flushed()
        prompts = [prompt_index(p.prompt_id) for p in batch]
        assert batch.lease_expire_time is not None
        self.books.lease(batch.batch_id, prompts, batch.lease_expire_time.timestamp())
        slots = [[*range(p.attempt_count)] for p in batch]
        abandon = self.rng.random() < RELEASED_SHARE
        for part, ends in self._parts(batch, slots, abandon):
            self._report(batch, part, ends, step)
        if abandon:
            self._release(batch, prompts)

    def settle(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self._client.buffered_reports and time.monotonic() < deadline:
            try:
                self._client.flush()
            except AWAY:
                time.sleep(0.1)
        self._flushed()
        if self._kept:
            self.errors.append(f"{self.name}: {len(self._kept)} reports were never sent")

    def close(self) -> None:
        self._client.close()

    def _parts(self, batch: Batch, slots: list[list[int]], abandon: bool):
        """Two to four reports with rewards by prompt; groups may be split over them. Also which
        prompts a report completes."""
        count = self.rng.randint(2, 4)
        left = {prompt_index(p.prompt_id): p.attempt_count for p in batch}
        for part in range(count - 1 if abandon else count):
            rewards: dict[int, list[float]] = {}
            for prompt, open_count in left.items():
                share = open_count if part == count - 1 else self.rng.randint(0, open_count)
                if share:
                    chance = (prompt % 10) / 9
                    rewards[prompt] = [float(self.rng.random() < chance) for _ in range(share)]
            left = {p: n - len(rewards.get(p, ())) for p, n in left.items()}
            ends = [p for p, n in left.items() if not n]
            left = {p: n for p, n in left.items() if n}
            if rewards:
                yield rewards, ends

    def _report(self, batch: Batch, part: Part, ends: list[int], step: int) -> None:
        self.books.let_go(batch.batch_id, ends)
        self.books.sending(part)
        name = f"{self.rng.getrandbits(64):x}"
        rewards = {f"p{prompt}": values for prompt, values in part.items()}
        receipt = self._client.report(batch, rewards, policy_step=step, part=name)
        if receipt is None:
            self._kept.append(part)
            return
        self._flushed()
        self.books.acknowledge(part)
        if self.rng.random() < REPEATED_SHARE:
            again = self._client.report(batch, rewards, policy_step=step, part=name)
            if again is not None and not again.duplicate:
                self.errors.append(f"{self.name}: a repeated report was not told to be one")

    def _flushed(self) -> None:
        """A call succeeded, and before it the client sent what it had kept."""
        self.succeeded()
        if not self._client.buffered_reports:
            for part in self._kept:
                self.books.acknowledge(part)
            self._kept.clear()

    def _release(self, batch: Batch, prompts: list[int]) -> None:
        self.books.let_go(batch.batch_id, prompts)
        try:
            self._client.release(batch)
        except AWAY:
            if self._patient:
                raise
        else:
            self._flushed()


class Prober(Worker):
    """A prober with the worker's own service layer."""

    def __init__(self, name: str, target: str, books: Books, steps: Steps, seed: int) -> None:
        super().__init__(name, books, steps, seed)
        # Never set: a prober told to stop would give up a report, whose fate nobody then knows.
        self._service = Service(target, RUN_ID, patience=Patience(PATIENCE_S, threading.Event()))

    def round(self, number: int) -> None:
        step = self.steps.now
        name = f"{self.name}-{number}"
        batch = self._service.lease(name, PROBE_PROMPTS, policy_step=step, attempt_count=4).batch
        self.succeeded()
        prompts = [prompt_index(served.prompt.prompt_id) for served in batch.prompts]
        self.books.lease(batch.batch_id, prompts, batch.lease_expire_time.seconds)
        half = len(prompts) // 2
        for first, chunk in ((0, batch.prompts[:half]), (half, batch.prompts[half:])):
            if chunk:
                self._report(f"{name}.{first}", batch, chunk, step)

    def close(self) -> None:
        self._service.close()

    def _report(self, name: str, batch: batch_pb2.Batch, chunk, step: int) -> None:
        part = {
            prompt_index(served.prompt.prompt_id): [
                float(self.rng.random() < 0.5) for _ in range(served.attempt_count)
            ]
            for served in chunk
        }
        outcomes = batch_pb2.Outcomes()
        for served, rewards in zip(chunk, part.values(), strict=True):
            outcomes.slots.extend([served.slot] * len(rewards))
            outcomes.rewards.extend(rewards)
        self.books.let_go(batch.batch_id, list(part))
        self.books.sending(part)
        self._service.report(name, batch, policy_step=step, outcomes=outcomes)
        self.succeeded()
        self.books.acknowledge(part)
