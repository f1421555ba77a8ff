"""A few prompts of each domain that are sampled again and again."""

import numpy as np

from curriculum.arrays import Floats, Ints

SENTINELS_PER_DOMAIN = 16
"""Of 16 prompts with 8 attempts each the mean pass rate has a standard error of about .1, of four
windows' worth of attempts hardly less: prompts differ more than attempts do. But these are always
the same ones, so what shows is by how much they moved, to about .04 per window."""
_MARGIN = 4.0  # candidates per place; fewer than places come once in 10**13 domains


def sentinels(domain_N: Ints, domain_count: int, seed: int) -> Ints:
    """Up to 16 prompts of each domain, chosen without regard to what is known of them.

    Those with the smallest of N random numbers that follow from the seed and the prompt's index
    alone. So they stay the same in a pool that does not grow, and of one that doubles about half
    of them do.

    Args:
        domain_N: (N,) in [0, D).
        domain_count: D.
        seed: of the run.

    Returns:
        Indices, by domain.
    """
    number_N = _random_numbers(len(domain_N), seed)
    size_D = np.bincount(domain_N, minlength=domain_count)
    limit_D = _MARGIN * SENTINELS_PER_DOMAIN / np.maximum(size_D, 1)
    near_C = np.flatnonzero(number_N < limit_D[domain_N])
    near_C = near_C[np.lexsort((number_N[near_C], domain_N[near_C]))]
    count_D = np.bincount(domain_N[near_C], minlength=domain_count)
    first_D = np.cumsum(count_D) - count_D
    rank_C = np.arange(len(near_C)) - first_D[domain_N[near_C]]
    chosen: Ints = near_C[rank_C < SENTINELS_PER_DOMAIN]
    return chosen


def _random_numbers(count: int, seed: int) -> Floats:
    """In [0, 1), each from the seed and its place.

    Source: Steele, Lea and Flood (2014), OOPSLA: splitmix64.
    """
    with np.errstate(over="ignore"):  # modulo 2**64
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
