"""A few prompts of each domain that are sampled again and again."""

import numpy as np

from curriculum.arrays import Ints

SENTINELS_PER_DOMAIN = 16
"""Prompts differ so much that 16 tell a domain's mean pass rate to about .1, however often they are
sampled. But they are always the same ones: with 8 attempts each they show to about .05 by how much
the domain has moved between two windows."""
_MARGIN = 4.0  # candidates per place; fewer than places come once in 10**13 domains


def sentinels(domain_N: Ints, domain_count: int, seed: int) -> Ints:
    """Up to 16 prompts of each domain, chosen without regard to what is known of them.

    Those with the smallest of N random numbers, each of which follows from the seed and the
    prompt's index alone. So they stay the same in a pool that does not grow, and of one that
    doubles about half of them do.

    Args:
        domain_N: (N,) in [0, D).
        domain_count: D.
        seed: of the run.

    Returns:
        Indices, by domain.
    """
    number_N = np.random.default_rng(seed).random(len(domain_N))  # the first N of one stream
    size_D = np.bincount(domain_N, minlength=domain_count)
    limit_D = _MARGIN * SENTINELS_PER_DOMAIN / np.maximum(size_D, 1)
    near_C = np.flatnonzero(number_N < limit_D[domain_N])
    near_C = near_C[np.lexsort((number_N[near_C], domain_N[near_C]))]
    count_D = np.bincount(domain_N[near_C], minlength=domain_count)
    first_D = np.cumsum(count_D) - count_D
    rank_C = np.arange(len(near_C)) - first_D[domain_N[near_C]]
    chosen: Ints = near_C[rank_C < SENTINELS_PER_DOMAIN]
    return chosen
