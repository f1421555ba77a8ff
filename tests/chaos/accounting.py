"""What trainers and probers were told, against what the ledger holds.

Attempts are entered twice: before their report is first sent, and when it is acknowledged. So at
any moment, whatever is in flight, the ledger must hold at least what was acknowledged before it was
read and at most what had been sent when it was read; at the end, with every report acknowledged,
both are equal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""(2, N): each prompt's passes and fails."""
Part = Mapping[int, list[float]]
"""Rewards by prompt index: what one report carries."""
T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """What one comparison found, in attempts."""

    acknowledged: int
    lost: int
    double: int
    leased_twice: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.double or self.leased_twice)

    def __str__(self) -> str:
        text = f"acknowledged={self.acknowledged:,} lost={self.lost} double={self.double}"
        return text + (f" leased_twice={self.leased_twice}" if self.leased_twice else "")


class Books:
    """The books of one run; every worker writes into them."""

    def __init__(self, prompt_count: int) -> None:
        self._lock = threading.Lock()
        self._sent = np.zeros((2, prompt_count), np.int64)
        self._acknowledged = np.zeros((2, prompt_count), np.int64)
        self._holders: dict[int, tuple[str, float]] = {}
        self.leased_twice: list[str] = []

    @property
    def acknowledged_count(self) -> int:
        return int(self._acknowledged.sum())

    def sending(self, part: Part) -> None:
        with self._lock:
            _enter(self._sent, part)

    def acknowledge(self, part: Part) -> None:
        with self._lock:
            _enter(self._acknowledged, part)

    def lease(self, batch_id: str, prompts: list[int], expire_s: float) -> None:
        """Note a batch that was received; whoever holds one of its prompts must have let it go."""
        with self._lock:
            for prompt in prompts:
                holder, until_s = self._holders.get(prompt, ("", 0.0))
                if holder not in ("", batch_id) and time.time() < until_s:
                    self.leased_twice.append(f"p{prompt}: {holder} and {batch_id}")
                self._holders[prompt] = (batch_id, expire_s)

    def let_go(self, batch_id: str, prompts: list[int]) -> None:
        """Note prompts that the next call completes or releases, before it is made."""
        with self._lock:
            for prompt in prompts:
                if self._holders.get(prompt, ("", 0.0))[0] == batch_id:
                    del self._holders[prompt]

    def compare(self, read_ledger: Callable[[], Counts]) -> Verdict:
        """What is missing from the ledger, and what is too much; also while reports go on."""
        with self._lock:
            acknowledged = self._acknowledged.copy()
        ledger = read_ledger()
        with self._lock:
            sent = self._sent.copy()
        return Verdict(
            acknowledged=int(acknowledged.sum()),
            lost=int(np.maximum(acknowledged - ledger, 0).sum()),
            double=int(np.maximum(ledger - sent, 0).sum()),
            leased_twice=len(self.leased_twice),
        )


def _enter(counts: Counts, part: Part) -> None:
    for prompt, rewards in part.items():
        passed = sum(reward >= 1.0 for reward in rewards)
        counts[0, prompt] += passed
        counts[1, prompt] += len(rewards) - passed


def prompt_index(prompt_id: str) -> int:
    """The number of `p17`."""
    return int(prompt_id[1:])
