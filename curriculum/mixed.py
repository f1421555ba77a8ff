"""The chance that a group is mixed: the only groups a policy gradient learns from."""

import numpy as np

from curriculum.arrays import Floats
from curriculum.belief import Belief
from curriculum.errors import require


def mixed_probability_at(pass_rate: Floats, group_size: int) -> Floats:
    """Chance of a pass and a fail among G independent attempts at a known pass rate.

    ``P(0 < passes < G) = 1 - p**G - (1 - p)**G``

    0 at p = 0 and 1, at most ``1 - 2**(1-G)`` at 1/2. With q = min(p, 1 - p) it is the chance of at
    least one rare outcome less that of only rare ones; the first grows by
    ``A(m+n) = A(m) + A(n) - A(m) A(n)``, which loses no digits at small q and needs no logarithm.

    Args:
        pass_rate: any shape, in [0, 1].
        group_size: G >= 2.

    Raises:
        InvalidInputError: an argument outside its range.
    """
    require(np.all((pass_rate >= 0.0) & (pass_rate <= 1.0)), "pass_rate", "array", "in [0, 1]")
    require(group_size >= 2, "group_size", group_size, ">= 2")
    rare = np.minimum(pass_rate, 1.0 - pass_rate)
    some, only = rare, rare
    for bit in f"{group_size:b}"[1:]:
        some, only = some * (2.0 - some), only * only
        if bit == "1":
            some, only = some + rare - some * rare, only * rare
    return some - only


def mixed_probability(belief: Belief, group_size: int) -> Floats:
    """Chance that a group is mixed when the pass rate is only believed: the beta-binomial.

    ``1 - B(a+G, b) / B(a, b) - B(a, b+G) / B(a, b)``

    ``B(a, b+G) / B(a, b) = prod_{j<G} (b+j) / (a+b+j)``, so no gamma function is needed. The rarer
    outcome is put first and summed as logarithms, which keeps the digits when a or b is tiny.

    Source: Skellam (1948), J. R. Stat. Soc. B 10:257-261.

    Args:
        belief: N beliefs.
        group_size: G >= 2.

    Returns:
        (N,) in [0, 1).

    Raises:
        InvalidInputError: G < 2.
    """
    require(group_size >= 2, "group_size", group_size, ">= 2")
    rare = np.minimum(belief.alpha_N, belief.beta_N)
    total = belief.alpha_N + belief.beta_N
    log_none, log_only = np.zeros_like(rare), np.zeros_like(rare)
    for attempt in range(group_size):
        log_none += np.log1p(-rare / (total + attempt))
        log_only += np.log((rare + attempt) / (total + attempt))
    mixed: Floats = np.maximum(-np.expm1(log_none) - np.exp(log_only), 0.0)
    return mixed
