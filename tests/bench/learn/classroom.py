"""The environment: prompts are questions, rollouts are attempts of a policy that learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.arrays import Floats, Ints
from tests.bench.arms import CheatingError, Groups, Task
from tests.bench.learn.domains import FAMILIES, Question
from tests.bench.learn.policy import Attempts, Policy
from tests.bench.learn.size import Size


@dataclass(frozen=True)
class Spent:
    """What a run has cost so far.

    Attributes:
        rollouts: attempts sampled, whatever for.
        tokens: characters written in them.
        steps: training steps.
    """

    rollouts: int = 0
    tokens: int = 0
    steps: int = 0


class Classroom:
    """Samples with the current weights, verifies, and trains on the groups that an arm returns.

    Tickets are given out in the order of the draws, so the groups of a step are kept by counting
    them; an arm that extends groups would break that count and is refused. A step whose rollouts
    go beyond the budget is not trained on: for every arm learning ends with the same number.

    Attributes:
        task: what an arm is told.
        spent: in the steps that were trained on.
        is_over: whether the budget is spent.
        trained_N: how often each prompt was trained on.
    """

    def __init__(self, policy: Policy, pool: Sequence[Question], size: Size) -> None:
        self._policy, self._pool, self._budget = policy, pool, size.rollout_budget
        self.task = Task(
            domain_N=np.array([FAMILIES.index(question.family) for question in pool]),
            domain_count=len(FAMILIES),
            features_NK=features(pool),
            batch_size=size.batch_size,
            group_size=size.group_size,
        )
        self.spent, self.is_over = Spent(), False
        self.trained_N = np.zeros(len(pool), dtype=np.int64)
        self._first_ticket = 0
        self._step: list[tuple[int, Attempts]] = []

    def policy_step(self, step: int) -> int:
        """Every rollout of a step is made by the weights it begins with."""
        return step

    def true_pass_rate(self) -> Floats:
        """Nobody knows it."""
        raise CheatingError("true_pass_rate: a real policy has to be sampled")

    def draw(self, index_M: Ints, attempts_M: Ints) -> Floats:
        """Attempts at these prompts: see `tests.bench.arms.base.Draw`."""
        groups = self._policy.attempt([self._pool[i] for i in index_M], attempts_M)
        self._step += zip(index_M.tolist(), groups, strict=True)
        passes_M = np.array([group.reward_G.sum() for group in groups])
        return np.repeat(passes_M[:, None], 4, axis=1)  # rewards are 0 or 1, and true

    def train(self, groups: Groups, signal_M: Floats) -> None:
        """One step on the attempts behind the groups; then they are forgotten."""
        chosen = [self._of(ticket) for ticket in groups.ticket_M.tolist()]
        for (index, attempts), known, passes in zip(
            chosen, groups.index_M, groups.reward_M, strict=True
        ):
            if index != known or attempts.reward_G.sum() != passes:
                raise CheatingError("groups: must be sampled anew in each step, never extended")
        rolled = [attempts for _, attempts in self._step]
        spent = Spent(
            self.spent.rollouts + sum(len(attempts.reward_G) for attempts in rolled),
            self.spent.tokens + sum(attempts.token_count for attempts in rolled),
            self.spent.steps + 1,
        )
        self.is_over = spent.rollouts > self._budget
        if not self.is_over:
            self.spent = spent
            np.add.at(self.trained_N, groups.index_M, 1)
            self._policy.improve([self._pool[i] for i, _ in chosen], [each for _, each in chosen])
        self._first_ticket += len(self._step)
        self._step = []

    def _of(self, ticket: int) -> tuple[int, Attempts]:
        place = ticket - self._first_ticket
        if not 0 <= place < len(self._step):
            raise CheatingError(f"ticket={ticket}: must be of the present step")
        return self._step[place]


def features(questions: Sequence[Question]) -> Floats:
    """(N, 3) what a user sees without solving anything, standardised.

    The length of the question, the count of its parts, and how many different characters it has.
    """
    raw_NK = np.array(
        [(len(q.text), sum(c in "+-,:" for c in q.text), len(set(q.text))) for q in questions],
        dtype=np.float64,
    )
    standard_NK: Floats = (raw_NK - raw_NK.mean(axis=0)) / np.maximum(raw_NK.std(axis=0), 1e-9)
    return standard_NK
