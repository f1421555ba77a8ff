"""Beliefs late in a long run, when most of what was seen is long ago."""

import numpy as np
import pytest

from curriculum.arrays import Bools, Floats, Ints
from tests.bench.arms.base import Groups, Task
from tests.bench.arms.edge import Edge, pool_of

PROMPTS, BATCH, STEPS = 1000, 16, 720


class Climber:
    """Three domains, each of which is mastered in the end.

    ``logit p_i = 1.5 (skill - hardness_i)``; a domain's skill rises with its mixed groups.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.domain_N = self._rng.integers(0, 3, PROMPTS).astype(np.int32)
        spread = self._rng.normal(0.0, 1.5, PROMPTS)
        self.hardness_N = np.array([0.0, 1.5, 3.0])[self.domain_N] + spread
        self._skill_D = np.full(3, -1.0)

    @property
    def pass_rate_N(self) -> Floats:
        return 1.0 / (1.0 + np.exp(1.5 * (self.hardness_N - self._skill_D[self.domain_N])))

    def sample(self, index_M: Ints, attempts_M: Ints) -> Groups:
        passes_M = self._rng.binomial(attempts_M, self.pass_rate_N[index_M])
        rate_M = passes_M / attempts_M
        spread_M = np.sqrt(rate_M * (1.0 - rate_M))
        return Groups(index_M, index_M, attempts_M, passes_M.astype(float), spread_M)

    def train(self, index_M: Ints, mixed_M: Bools) -> None:
        mixed_D = np.bincount(self.domain_N[index_M[mixed_M]], minlength=3) / BATCH
        self._skill_D += 0.013 * (0.3 * mixed_D.sum() + 2.0 * mixed_D)


@pytest.mark.parametrize(("is_described", "most"), [(True, 0.004), (False, 0.006)])
def test_beliefs_keep_up_with_a_policy_that_has_learned_nearly_everything(is_described, most):
    # Squared errors of .001 and .002 here; of .009 where all that is old is one block, and of .14
    # where prompts that failed at the start stay hopeless and nothing else is known of them.
    learner = Climber(3)
    hint_N = learner.hardness_N + np.random.default_rng(4).normal(0.0, 0.5, PROMPTS)
    hints = ((hint_N - hint_N.mean()) / hint_N.std())[:, None] if is_described else None
    task = Task(learner.domain_N, 3, hints, BATCH, 8)
    arm, served_N = Edge(task, np.random.default_rng(5)), np.full(PROMPTS, -1)
    for step in range(STEPS):
        groups = arm.step(step, learner)
        learner.train(groups.index_M, groups.mixed_M)
        served_N[groups.index_M] = step
    pool = pool_of(task, arm.ledger, STEPS, served_N)
    error_N = pool.beliefs(pool.fit()).mean - learner.pass_rate_N
    assert learner.pass_rate_N.mean() > 0.9
    assert np.mean(error_N**2) < most
