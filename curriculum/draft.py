"""A batch while it is being composed."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from curriculum.arrays import Bytes, Ints
from curriculum.config import SelectionConfig
from curriculum.evidence import Block, gather
from curriculum.pool import Pool, Reason

_NEVER_RESTING = np.iinfo(np.int64).max
_RESTING_SHARE = 4  # of a small pool at most a quarter rests, or the rest would choose the batch


class Draft:
    """What is in the batch, and what may still come in: free, rested, and within a domain's places.

    Invariants: a prompt is taken at most once and only if it was free; no more are taken than the
    places that were left. Mutable, and local to one call of `compose_batch`.
    """

    def __init__(
        self,
        pool: Pool,
        config: SelectionConfig,
        prompt_count: int,
        *,
        rng: np.random.Generator,
        resting: bool,
        shares: Mapping[str, float],
    ) -> None:
        self._pool = pool
        self._cap = config.max_share if resting else 1.0
        self._cap_steps = config.max_share_steps
        self._free_N = pool.free_N.copy()
        rest_steps = min(config.rest_steps, len(pool) // (_RESTING_SHARE * max(prompt_count, 1)))
        rested_step = max(pool.policy_step - rest_steps, -1)  # -1: never served is rested
        self._latest_step = rested_step if resting and rest_steps else _NEVER_RESTING
        self._share_D, self.left_K = domain_places(pool.domains, shares, prompt_count, rng)
        self._indices: list[Ints] = []
        self._reasons: list[Bytes] = []

    @property
    def missing_count(self) -> int:
        """Places that are left."""
        return int(self.left_K.sum())

    def open_among(self, candidates_C: Ints) -> Ints:
        """Those of the candidates that are free and rested, in the same order."""
        rested_C = self._pool.last_served_step_N[candidates_C] <= self._latest_step
        return self._below_cap(candidates_C[rested_C & self._free_N[candidates_C]])

    def all_open(self) -> Ints:
        """Every prompt that is free and rested."""
        rested_N = self._pool.last_served_step_N <= self._latest_step
        return self._below_cap(np.flatnonzero(self._free_N & rested_N))

    def _below_cap(self, candidates_C: Ints) -> Ints:
        """Those that did not have their share of the latest attempts yet."""
        if self._cap >= 1.0:
            return candidates_C
        recent, most = self._recent
        below_C: Ints = candidates_C[gather(recent, candidates_C).trained.sum(axis=0) <= most]
        return below_C

    @cached_property
    def _recent(self) -> tuple[list[Block], float]:
        """The blocks that count, and the most attempts that one prompt may have had in them."""
        since = self._pool.policy_step - self._cap_steps
        recent = [block for block in self._pool.blocks if block.mid_step > since]
        return recent, self._cap * sum(block.trained_count for block in recent)

    def of_share(self, indices_M: Ints, share: int) -> Ints:
        """Those of the prompts that would take the share's places."""
        return indices_M if len(self.left_K) == 1 else indices_M[self._shares(indices_M) == share]

    def _shares(self, indices_M: Ints) -> Ints:
        return self._share_D[self._pool.domain_N[indices_M]]

    def take(self, indices_M: Ints, reason: Reason, limit: int | None = None) -> int:
        """Take distinct open prompts in order, while their places and the limit last."""
        if len(self.left_K) > 1:
            share_M, admitted_M = self._shares(indices_M), np.zeros(len(indices_M), dtype=bool)
            for share, left in enumerate(self.left_K):
                admitted_M[np.flatnonzero(share_M == share)[:left]] = True
            indices_M = indices_M[admitted_M]
        indices_M = indices_M[: min(self.missing_count, len(indices_M) if limit is None else limit)]
        self._free_N[indices_M] = False
        self.left_K -= np.bincount(self._shares(indices_M), minlength=len(self.left_K))
        self._indices.append(indices_M)
        self._reasons.append(np.full(len(indices_M), reason, dtype=np.uint8))
        return len(indices_M)

    def waive_shares(self) -> None:
        """Let any domain take the places that are left."""
        self.left_K = self.left_K.sum(keepdims=True)
        self._share_D = np.zeros_like(self._share_D)

    def waive_rest(self) -> None:
        """Let resting prompts in, and those that had their share."""
        self._latest_step, self._cap = _NEVER_RESTING, 1.0

    def taken(self) -> tuple[Ints, Bytes]:
        """Indices and reasons so far."""
        if not self._indices:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8)
        return np.concatenate(self._indices), np.concatenate(self._reasons)


def domain_places(
    domains: tuple[str, ...],
    shares_by_name: Mapping[str, float],
    prompt_count: int,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Places of each listed domain, its share on average; the last share is of all other domains.

    The quotas are laid end to end, and a place falls to whichever lies at u, u + 1, u + 2, … for
    one uniform u: each share gets its quota rounded up or down, and shares of less than a place
    get one in so many batches. Rounding to the nearest would never serve them.

    Source: Madow (1949), Ann. Math. Stat. 20:333-354, systematic sampling.

    Returns:
        share_D, the number of each domain's share, and places_K, which sum to `prompt_count`.
    """
    listed = {name: number for number, name in enumerate(shares_by_name)}
    shares = [*shares_by_name.values()]
    quota_K = np.array([*shares, max(1.0 - sum(shares), 0.0)])
    ends_K = np.cumsum(quota_K) / quota_K.sum() * prompt_count
    ends_K[-1] = prompt_count  # whatever the sum was rounded to
    places_K = np.diff(np.floor(ends_K + rng.random()).astype(np.int64), prepend=0)
    share_D = np.array([listed.get(name, len(listed)) for name in domains], dtype=np.int64)
    return share_D, places_K
