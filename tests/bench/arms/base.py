"""What an arm is: a way to choose prompts that sees what a user sees, and pays for every rollout.

Axes: N prompts of the pool, B prompts of a training step, M groups, K features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from curriculum.arrays import Bools, Floats, Ints

# What an environment answers for M groups, as sums over their attempts:
# (M, 4) reward, reward squared, true reward, reward times true reward.
Draw = Callable[[Ints, Ints], Floats]


class CheatingError(RuntimeError):
    """An arm used what it was not given."""


@dataclass(frozen=True)
class Task:
    """All that an arm is told beforehand.

    Attributes:
        domain_N: index of each prompt's domain.
        domain_count: D.
        features_NK: numeric attributes of each prompt, standardised, or None.
        batch_size: B, the groups of a training step.
        group_size: G, attempts in a group.
    """

    domain_N: Ints
    domain_count: int
    features_NK: Floats | None
    batch_size: int
    group_size: int

    def __len__(self) -> int:
        return len(self.domain_N)


def embed(task: Task) -> Floats:
    """(N, K) features beside one column per domain."""
    one_hot = np.eye(task.domain_count)[task.domain_N] if task.domain_count > 1 else None
    parts = [part for part in (task.features_NK, one_hot) if part is not None]
    return np.concatenate(parts, axis=1) if parts else np.ones((len(task), 1))


@dataclass(frozen=True)
class Groups:
    """Rolled out groups, as a trainer sees them.

    Attributes:
        ticket_M: names a group in `Rollouts`; nothing is to be read from it.
        index_M: the prompt.
        attempts_M: rollouts made.
        reward_M: sum of the rewards, each in [0, 1]: the passes, if rewards are 0 or 1.
        spread_M: standard deviation of the rewards; 0 is a group without advantage.
    """

    ticket_M: Ints
    index_M: Ints
    attempts_M: Ints
    reward_M: Floats
    spread_M: Floats

    def __len__(self) -> int:
        return len(self.ticket_M)

    @property
    def mixed_M(self) -> Bools:
        """Whether a group can teach anything."""
        return self.spread_M > 0.0

    @property
    def rate_M(self) -> Floats:
        """Mean reward."""
        return self.reward_M / self.attempts_M

    def take(self, which: Bools | Ints | slice) -> Groups:
        """Some of the groups."""
        return Groups(*(column[which] for column in _columns(self)))

    @staticmethod
    def join(*parts: Groups) -> Groups:
        """The groups of all parts in order."""
        joined = zip(*(_columns(part) for part in parts), strict=True)
        return Groups(*(np.concatenate(columns) for columns in joined))

    @staticmethod
    def none() -> Groups:
        """No groups."""
        whole, real = np.empty(0, np.int64), np.empty(0)
        return Groups(whole, whole, whole, real, real)


def _columns(groups: Groups) -> tuple[Ints, Ints, Ints, Floats, Floats]:
    return (
        groups.ticket_M,
        groups.index_M,
        groups.attempts_M,
        groups.reward_M,
        groups.spread_M,
    )


class Arm(Protocol):
    """A method of choosing prompts. Built as ``Arm(task, rng)``; the rng is its only randomness."""

    def step(self, policy_step: int, rollouts: Rollouts) -> Groups:
        """Roll out as it likes, learn from what it saw, and give the groups to train on."""


class Rollouts:
    """The only door to the environment. Charges every rollout and remembers what it gave out."""

    def __init__(self, draw: Draw, prompt_count: int) -> None:
        self._draw, self._prompt_count = draw, prompt_count
        self._sums = np.zeros((1024, 4))
        self._attempts, self._prompts = np.zeros(1024, np.int64), np.zeros(1024, np.int64)
        self._count = 0
        self.charged = 0

    def sample(
        self, index_M: Ints, attempts: Ints | int, *, on_spare_capacity: bool = False
    ) -> Groups:
        """New groups, one for each entry; a prompt may occur more than once.

        Args:
            index_M: prompts.
            attempts: of each.
            on_spare_capacity: made beside the run, and not charged.
        """
        index_M = np.asarray(index_M)
        attempts_M = np.broadcast_to(np.asarray(attempts), index_M.shape)
        inside = np.all((index_M >= 0) & (index_M < self._prompt_count))
        if not (np.issubdtype(index_M.dtype, np.integer) and index_M.ndim == 1 and inside):
            raise CheatingError(f"index_M={index_M!r}: must be prompts of the pool")
        ticket_M = np.arange(self._count, self._count + len(index_M))
        self._grow(len(index_M))
        self._prompts[ticket_M] = index_M
        before, groups = self.charged, self._roll(ticket_M, attempts_M)
        if on_spare_capacity:
            self.charged = before
        return groups

    def extend(self, groups: Groups, attempts: int) -> Groups:
        """More attempts for groups that exist."""
        self._require_genuine(groups)
        return self._roll(groups.ticket_M, np.full(len(groups), attempts))

    def trained(self, groups: Groups, group_limit: int) -> tuple[Floats, Bools]:
        """What training on these groups teaches, and which of them are mixed.

        The gradient of a group points as far as its rewards and the truth vary together:
        ``signal = cov(reward, true reward) / sd(reward)``, which is the standard deviation of the
        rewards if the verifier makes no mistakes, and 0 if all rewards are equal.

        Raises:
            CheatingError: a group that was not rolled out, or more of them than a step holds.
        """
        self._require_genuine(groups)
        if len(groups) > group_limit or len(np.unique(groups.ticket_M)) < len(groups):
            raise CheatingError(
                f"groups={len(groups)}: must be at most {group_limit}, all distinct"
            )
        reward_M, square_M, true_M, both_M = (
            self._sums[groups.ticket_M] / groups.attempts_M[:, None]
        ).T
        spread_M = _spread(reward_M, square_M)
        mixed_M = spread_M > 0.0
        covariance_M = both_M - reward_M * true_M
        return np.divide(covariance_M, spread_M, np.zeros(len(groups)), where=mixed_M), mixed_M

    def _roll(self, ticket_M: Ints, attempts_M: Ints) -> Groups:
        if np.any(attempts_M < 1):
            raise CheatingError("attempts: must be >= 1")
        index_M = self._prompts[ticket_M]
        self._sums[ticket_M] += self._draw(index_M, attempts_M)
        self._attempts[ticket_M] += attempts_M
        self.charged += int(attempts_M.sum())
        total_M = self._attempts[ticket_M]
        reward_M, square_M = self._sums[ticket_M, :2].T
        return Groups(
            ticket_M, index_M, total_M, reward_M, _spread(reward_M / total_M, square_M / total_M)
        )

    def _grow(self, count: int) -> None:
        self._count += count
        while self._count > len(self._attempts):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
            self._attempts = np.concatenate([self._attempts, np.zeros_like(self._attempts)])
            self._prompts = np.concatenate([self._prompts, np.zeros_like(self._prompts)])

    def _require_genuine(self, groups: Groups) -> None:
        known = np.all((groups.ticket_M >= 0) & (groups.ticket_M < self._count))
        if not known or not (
            np.array_equal(self._prompts[groups.ticket_M], groups.index_M)
            and np.array_equal(self._attempts[groups.ticket_M], groups.attempts_M)
            and np.array_equal(self._sums[groups.ticket_M, 0], groups.reward_M)
        ):
            raise CheatingError("groups: must be as they were rolled out")


def _spread(mean_M: Floats, square_M: Floats) -> Floats:
    variance_M = square_M - mean_M * mean_M
    return np.sqrt(np.where(variance_M > 1e-12, variance_M, 0.0))


class Loader:
    """Prompts in shuffled epochs: each once before any twice."""

    def __init__(self, prompt_count: int, rng: np.random.Generator) -> None:
        self._rng, self._prompt_count = rng, prompt_count
        self._queue = rng.permutation(prompt_count)
        self.epoch = 0

    def next(self, count: int) -> Ints:
        """The next `count` prompts, distinct; at most the pool."""
        count = min(count, self._prompt_count)
        if len(self._queue) < count:
            self.epoch += 1
            shuffled = self._rng.permutation(self._prompt_count)
            late = np.isin(shuffled, self._queue)  # what is left of the old epoch comes first
            self._queue = np.concatenate([self._queue, shuffled[~late], shuffled[late]])
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken
