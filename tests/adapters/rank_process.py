"""One rank of a training, as a process of its own; it does what it is told, line by line.

Each line of standard input is a list: the name of a method of `Rank`, and its arguments. Each line
of standard output is what it gave, or what it raised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curriculum_client import Feed, TrainerClient

ROOT = Path(__file__).parents[2]

Served = list[tuple[str, str, int]]
"""Of each prompt: prompt_id, lease, attempt_count."""


class Rank:
    """The methods that a rank may be told."""

    def __init__(self, target: str, run_id: str, **feed: Any) -> None:
        self.client = TrainerClient(target, run_id=run_id)
        self.feed = Feed(self.client, **feed)

    def ask(self, request_id: str, prompt_count: int, policy_step: int) -> Served:
        """The batch of that name."""
        batch = self.client.next_batch(prompt_count, policy_step=policy_step, request_id=request_id)
        return [(served.prompt_id, served.lease, served.attempt_count) for served in batch]

    def next_batch(self) -> Served:
        """The feed's."""
        return [(p.prompt_id, p.lease, p.attempt_count) for p in self.feed.next_batch()]

    def report(
        self,
        leases: Sequence[str],
        rewards: Sequence[float],
        step: int,
        part: str | None = None,
    ) -> int:
        """How many attempts were counted by it, or by an equal one before."""
        receipt = self.feed.report(leases, rewards, policy_step=step, part=part)
        assert receipt is not None
        return receipt.attempt_count

    def train(self, steps: int, rank: int, world_size: int) -> list[Served]:
        """Steps of every world_size-th attempt, waiting for nobody."""
        batches = []
        for step in range(steps):
            batch = self.next_batch()
            rows = [(lease, k % 2) for _, lease, count in batch for k in range(count)]
            mine = rows[rank::world_size]
            self.report([lease for lease, _ in mine], [float(reward) for _, reward in mine], step)
            batches.append(batch)
        return batches

    def checkpoint(self, name: str, step: int) -> None:
        """Mark it."""
        self.client.checkpoint(name, step)

    def state(self) -> dict[str, Any]:
        """The feed's."""
        return self.feed.state_dict()

    def resume(self, state: Mapping[str, Any], name: str | None, request_id: str) -> None:
        """To a state, and where it is named to a checkpoint."""
        self.feed.load_state_dict(state)
        if name is not None:
            self.client.rollback(name, request_id=request_id)


class RankProcess:
    """A rank seen from the test."""

    def __init__(self, target: str, run_id: str, rank: int, /, **feed: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.adapters.rank_process", target, run_id, json.dumps(feed)],
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank)},  # as torchrun does
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, method: str, *args: Any) -> None:
        """Begin; `answer` waits."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *args]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the oldest thing gave that it was told."""
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def __call__(self, method: str, *args: Any) -> Any:
        self.tell(method, *args)
        return self.answer()

    def kill(self) -> None:
        """With kill -9, whatever it is doing."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    target, run_id, feed = sys.argv[1:]
    rank = Rank(target, run_id, **json.loads(feed))
    for line in sys.stdin:
        method, *args = json.loads(line)
        try:
            answer = {"value": getattr(rank, method)(*args)}
        except Exception as error:  # the boundary of the process: the test shall have it
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
