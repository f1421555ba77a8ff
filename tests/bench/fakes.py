"""Pools, groups and environments made up for tests."""

from __future__ import annotations

import numpy as np

from tests.bench.arms.base import Groups, Rollouts, Task

G = 8


def task_of(prompt_count, batch_size, domain_count=1, features_NK=None):
    domain_N = (np.arange(prompt_count) % domain_count).astype(np.int32)
    return Task(domain_N, domain_count, features_NK, batch_size, G)


def rollouts_of(pass_rate_N):
    """Every attempt of prompt i passes with the given rate; 0 and 1 are certain."""
    rng = np.random.default_rng(3)

    def draw(index_M, attempts_M):
        passes_M = rng.binomial(attempts_M, pass_rate_N[index_M])
        return np.repeat(passes_M[:, None].astype(float), 4, axis=1)

    return Rollouts(draw, len(pass_rate_N))


def groups_of(index_M, passes_M):
    """Groups of 8 as if they had been rolled out."""
    index_M, passes_M = np.array(index_M), np.array(passes_M, dtype=float)
    rate_M = passes_M / G
    spread_M = np.sqrt(rate_M * (1 - rate_M))
    return Groups(index_M, index_M, np.full(len(index_M), G), passes_M, spread_M)


def rng():
    return np.random.default_rng(0)
