"""prime_rl: pools by difficulty, drawn from in fixed proportions."""

from __future__ import annotations

import numpy as np

from curriculum.arrays import Bools, Floats
from tests.bench.arms.base import Groups, Rollouts, Task

_HARD_UP_TO, _NORMAL_UP_TO = 0.25, 0.75
_OUTSIDE_WEIGHT = 0.2
_MAX_ROUNDS = 10
_DECAY, _HOPELESS, _SATURATED = 0.9, 0.05, 0.95


class PrimeRl:
    """Draw with replacement by the last group's mean: up to .25 weighs .2, up to .75 1, else .2.

    A prompt not yet seen weighs 1. A group without advantage is replaced by another draw.

    Source: prime-rl@559b447.
    Differs: a step gives up after ten rounds of replacements.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        self._task, self._rng = task, rng
        self.weight_N = np.ones(len(task))

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        size, kept = self._task.batch_size, Groups.none()
        for _ in range(_MAX_ROUNDS):
            share_N = self.weight_N / self.weight_N.sum()
            drawn = self._rng.choice(len(self._task), size - len(kept), p=share_N)
            rolled = rollouts.sample(drawn, self._task.group_size)
            self.observe(rolled)
            kept = Groups.join(kept, rolled.take(rolled.mixed_M))
            if len(kept) == size:
                break
        return kept

    def observe(self, groups: Groups) -> None:
        """Put the prompts of these groups into their pools."""
        normal_M = (groups.rate_M > _HARD_UP_TO) & (groups.rate_M <= _NORMAL_UP_TO)
        self.weight_N[groups.index_M] = _weight(normal_M)


class PrimeRlDecayed(PrimeRl):
    """The same by decayed counts: ``s, f <- .9 old + new``, ``p = (1 + s) / (2 + s + f)``.

    Below .05 a prompt is hopeless, above .95 saturated; these weigh .2 [U].

    Source: prime-rl, pull request 3262, not merged.
    """

    def __init__(self, task: Task, rng: np.random.Generator) -> None:
        super().__init__(task, rng)
        self.passes_N, self.fails_N = np.zeros(len(task)), np.zeros(len(task))

    def observe(self, groups: Groups) -> None:
        i = groups.index_M
        self.passes_N[i] = _DECAY * self.passes_N[i] + groups.reward_M
        self.fails_N[i] = _DECAY * self.fails_N[i] + groups.attempts_M - groups.reward_M
        total_M = self.passes_N[i] + self.fails_N[i]
        rate_M = (1.0 + self.passes_N[i]) / (2.0 + total_M)
        self.weight_N[i] = _weight((rate_M >= _HOPELESS) & (rate_M <= _SATURATED))


def _weight(inside_M: Bools) -> Floats:
    return np.where(inside_M, 1.0, _OUTSIDE_WEIGHT)
