"""Reasoning Gym tasks from easy to far beyond a tiny model, and how their answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import reasoning_gym

PASS_SCORE = 0.99
"""Some scorers give a wrong answer a few hundredths, or half for the wrong format."""

WARM_SEED, POOL_SEED, HELD_OUT_SEED = 1_000_000, 2_000_000, 3_000_000
"""Far apart: instance i of a seed is instance i - 1 of the next seed."""

MOST_PER_LEVEL = 4000
"""Instances to look through for so many different ones."""


@dataclass(frozen=True)
class Level:
    """One family of tasks at one difficulty."""

    family: str
    difficulty: int
    warm_share: float
    """How much of it the model sees before reinforcement learning, in [0, 1]."""
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.difficulty}"


@dataclass(frozen=True)
class Task:
    """One instance."""

    level: Level
    question: str
    answer: str
    metadata: Mapping[str, Any]

    @property
    def payload(self) -> dict[str, Any]:
        """What `score` needs, as the pool keeps it."""
        return {"family": self.level.family, "answer": self.answer, "metadata": self.metadata}


@dataclass(frozen=True)
class TaskSets:
    """Instances for the warm start, for reinforcement learning, and for measuring."""

    warm: list[Task]
    pool: list[Task]
    held_out: list[Task]
    """None is in the pool. The smallest sums and products are too few to be new to the model."""


def _ladder(
    family: str, warm_shares: Mapping[int, float], parameter: str, **fixed: Any
) -> Iterator[Level]:
    for difficulty, share in warm_shares.items():
        exactly = {f"min_{parameter}": difficulty, f"max_{parameter}": difficulty}
        yield Level(family, difficulty, share, exactly | fixed)


LEVELS = (
    *_ladder("chain_sum", {2: 1, 3: 0.7, 4: 0.3, 5: 0, 6: 0}, "terms", min_digits=1, max_digits=1),
    *_ladder("products", {1: 0.5, 2: 0}, "digits"),
    *_ladder("spell_backward", {3: 1, 4: 1, 5: 0.8, 6: 0.4, 7: 0.2, 8: 0, 9: 0}, "word_len"),
    *_ladder("palindrome_generation", {3: 0.5, 4: 0.5, 5: 0.5, 6: 0.3, 7: 0, 8: 0}, "length"),
    *_ladder("spiral_matrix", {2: 0.2, 3: 0.2}, "n"),
    *_ladder(
        "number_sorting",
        {2: 0.5, 3: 0.3, 4: 0, 5: 0},
        "numbers",
        min_decimals=0,
        max_decimals=0,
        min_value=0,
        max_value=99,
    ),
)


def make_tasks(
    *, warm_count_per_level: int, pool_count_per_level: int, held_out_count_per_level: int
) -> TaskSets:
    """The same tasks whenever it is called with the same numbers; fewer where there are no more."""
    warm, pool, held_out = list[Task](), list[Task](), list[Task]()
    for level in LEVELS:
        warm += islice(_instances(level, WARM_SEED), round(warm_count_per_level * level.warm_share))
        held_out += islice(_distinct(_instances(level, HELD_OUT_SEED)), held_out_count_per_level)
    kept_back = {task.question for task in held_out}
    for level in LEVELS:
        others = _distinct(_instances(level, POOL_SEED), kept_back)
        pool += islice(others, pool_count_per_level)
    return TaskSets(warm, pool, held_out)


def score(completion: str, payload: Mapping[str, Any]) -> float:
    """1 for an answer that the family's own verifier takes for right, else 0."""
    entry = {"answer": payload["answer"], "metadata": payload["metadata"]}
    try:
        value = _scorer(payload["family"])(completion, entry)
    except Exception:  # verifiers raise on some of what a model writes
        return 0.0
    return float(value >= PASS_SCORE)


@cache
def _scorer(family: str) -> Callable[[str, Mapping[str, Any]], float]:
    scorer: Callable[[str, Mapping[str, Any]], float] = reasoning_gym.get_score_answer_fn(family)
    return scorer


def _instances(level: Level, seed: int) -> Iterator[Task]:
    data = reasoning_gym.create_dataset(
        level.family, size=MOST_PER_LEVEL, seed=seed, **level.settings
    )
    for entry in data:
        yield Task(level, entry["question"], entry["answer"], entry["metadata"])


def _distinct(tasks: Iterable[Task], known: Iterable[str] = ()) -> Iterator[Task]:
    """Those whose questions are new."""
    seen = set(known)
    for task in tasks:
        if task.question not in seen:
            seen.add(task.question)
            yield task
