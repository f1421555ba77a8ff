"""mopps: posterior sampling on beta beliefs that are discounted per visit."""

from __future__ import annotations

import numpy as np

from tests.bench.arms.base import Groups, Loader, Rollouts, Task

_CANDIDATE_RATIO = 16  # on MATH; 8 elsewhere


class Mopps:
    """Of the next candidates those whose sampled pass rate is nearest to 1/2.

    ``g_i ~ Beta(a_i, b_i)``, the B smallest ``(g_i - 1/2)**2`` of ``min(16 B, N)`` candidates;
    then, for these only, with the observed rate s of n attempts and the start ``a = b = 1``,

        a <- lambda a + (1 - lambda) + s n,   b <- lambda b + (1 - lambda) + (1 - s) n

    Source: MoPPS, Qu et al. (2025), arXiv 2507.04632, eqs. 6 to 9; thu-rllab/MoPPS@a883f51.

    Args:
        decay: lambda; the authors use 1 on MATH, .5 on Countdown and Geo3k.
    """

    def __init__(self, task: Task, rng: np.random.Generator, *, decay: float = 1.0) -> None:
        self._task, self._rng, self._loader = task, rng, Loader(len(task), rng)
        self._decay = decay
        self.alpha_N, self.beta_N = np.ones(len(task)), np.ones(len(task))

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        candidates = self._loader.next(_CANDIDATE_RATIO * self._task.batch_size)
        drawn_C = self._rng.beta(self.alpha_N[candidates], self.beta_N[candidates])
        nearest = np.argsort((drawn_C - 0.5) ** 2)[: self._task.batch_size]
        groups = rollouts.sample(candidates[nearest], self._task.group_size)
        self.observe(groups)
        return groups

    def observe(self, groups: Groups) -> None:
        """Update the beliefs over the prompts of these groups."""
        i = groups.index_M
        for counts_N, new_M in (
            (self.alpha_N, groups.reward_M),
            (self.beta_N, groups.attempts_M - groups.reward_M),
        ):
            counts_N[i] = self._decay * counts_N[i] + (1.0 - self._decay) + new_M
