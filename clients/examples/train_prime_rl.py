"""Where prime-rl's orchestrator is given its tasks by the curriculum.

    curriculum-server &
    CURRICULUM_RUN=math python clients/examples/train_prime_rl.py

`Orchestrator` stands for prime-rl's, with made-up rollouts and in as few lines as show when a
sampler is called; prime-rl itself is not needed. Lines that end in `# curriculum` are what goes
into your launcher, after the orchestrator was made as its configuration says. Switch difficulty
pools and online difficulty filtering off there. The run's group_size must be 8.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from typing import Any

from curriculum_client import Feed, TrainerClient  # curriculum
from curriculum_client.adapters.prime_rl import CurriculumTaskSampler  # curriculum

ROLLOUTS_PER_EXAMPLE, EXAMPLES_PER_STEP = 8, 16


class Orchestrator:
    """Draws tasks, has them rolled out, and shows every group to its sampler before filtering."""

    def __init__(self, tasks: Iterator[dict[str, Any]] | None = None) -> None:
        self.sampler: Any = tasks
        self.step = 0

    def run(self, step_count: int) -> None:
        while self.step < step_count:
            tasks = [next(self.sampler) for _ in range(EXAMPLES_PER_STEP)]
            for task in tasks:
                self.sampler.observe(self.roll_out(task))
            self.step += 1
            print(f"step {self.step}:", self.sampler.metrics(), flush=True)

    def roll_out(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """By a model that gets some tasks always right, some never, and learns the others."""
        skill = random.Random(task["example_id"]).uniform(-2, 2) + self.step / 50
        return [
            {"example_id": task["example_id"], "reward": float(random.gauss(0, 0.5) < skill)}
            for _ in range(ROLLOUTS_PER_EXAMPLE)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    made, args = Orchestrator(), parser.parse_args()
    client = TrainerClient.from_environment()  # curriculum
    feed = Feed(client, EXAMPLES_PER_STEP, attempts_per_prompt=ROLLOUTS_PER_EXAMPLE)  # curriculum
    made.sampler = CurriculumTaskSampler(feed, policy_step=lambda: made.step)  # curriculum
    with client, feed:
        made.run(args.steps)


if __name__ == "__main__":
    main()
