"""Allotting attempts to chosen prompts: a budget by marginal gain, or enough for a first pass."""

import numpy as np

from curriculum.arrays import Floats, Ints
from curriculum.belief import Belief
from curriculum.errors import require

_FIRST_WIDTH = 64  # attempts of one prompt whose gains are computed at first
_PIECE = 256  # attempts of all prompts that are looked at together
_TIE = 1e-12  # a chance that misses the wanted one by rounding alone has reached it


def allocate_attempts(
    belief: Belief,
    rollout_budget: int,
    *,
    least: int = 2,
    most: int,
    cost_B: Floats | None = None,
) -> Ints:
    """Spread a budget of attempts over the prompts so that most groups are expected to be mixed.

    ``max_n  sum_i mixed_i(n_i) / cost_i   with  least <= n_i <= most,  sum_i n_i = budget``

    ``mixed_i(n) = P(0 < passes < n) = 1 - E[p^n] - E[(1-p)^n]``, so that the attempt after the n-th
    gains ``mixed(n+1) - mixed(n) = E[p^n (1-p)] + E[(1-p)^n p]``. Both integrands fall with n at
    every p, hence so does the gain: the sum is concave in every n_i from 1 on, and to take the
    largest gains one after the other is exact. (At n = 0 it is not concave: a first attempt alone
    gains nothing, which is why prompts get `least` at once.) Under ``p ~ Beta(a, b)``

    ``E[(1-p)^n p] = a/(a+b) prod_{j<n} (b+j) / (a+b+j+1)``,  ``E[p^n (1-p)]`` with a, b exchanged,

    by ``E[(1-p)^n p] = B(a+1, b+n) / B(a, b)``: products of factors below 1, in which nothing
    cancels. Prompts that are believed to be equal differ by one attempt at most, the first ones
    getting more. A budget below ``B least`` serves those prompts alone that gain most by their
    first `least` attempts, as many as it can.

    Source: Fox (1966), Oper. Res. 14:210-213, greedy allocation under separable concave returns.

    Args:
        belief: B beliefs.
        rollout_budget: attempts in all, >= 0.
        least: attempts below which a prompt is not worth serving, >= 2.
        most: attempts of one prompt, >= least.
        cost_B: (B,) > 0, expected tokens of an attempt, in any unit. A prompt of twice the cost has
            to gain twice as much per attempt; the budget stays one of attempts.

    Returns:
        (B,) 0 or in [least, most]. They add up to the budget, or to less when every prompt that is
        served has `most`, or the budget is below `least`.

    Raises:
        InvalidInputError: an argument outside its range.
    """
    require(least >= 2, "least", least, ">= 2")
    require(most >= least, "most", most, f">= least, {least}")
    require(rollout_budget >= 0, "rollout_budget", rollout_budget, ">= 0")
    prompt_count = len(belief.alpha_N)
    cost_B = np.ones(prompt_count) if cost_B is None else cost_B
    require(cost_B.shape == belief.alpha_N.shape, "cost_B.shape", cost_B.shape, "the belief's")
    cheapest = cost_B.min(initial=np.inf)  # NaN if there is one
    require(cheapest > 0.0 and np.isfinite(cost_B).all(), "cost_B", cost_B, "finite and > 0")
    served_count = min(prompt_count, rollout_budget // least)
    served_B = np.arange(prompt_count)
    if served_count < prompt_count:
        first_B = (_gains(belief, least) / cost_B).sum(axis=0)
        served_B = np.sort(np.argsort(-first_B, kind="stable")[:served_count])
    counts_B = np.zeros(prompt_count, dtype=np.int64)
    if served_count:
        served = belief.take(served_B)
        counts_B[served_B] = _spend(served, rollout_budget, least, most, cost_B[served_B])
    return counts_B


def _spend(belief: Belief, budget: int, least: int, most: int, cost_B: Floats) -> Ints:
    """`allocate_attempts` where the budget is enough for `least` each. Gains are computed as far as
    they are bought, which is mostly much less than `most`."""
    prompt_count = len(cost_B)
    extra = budget - least * prompt_count
    width = max(_FIRST_WIDTH, 2 * budget // prompt_count)
    while True:
        width = min(width, most)
        gain_GB = _gains(belief, width)[least - 1 :] / cost_B
        counts_B = least + _largest_by_column(gain_GB, extra)
        if width == most or counts_B.max() < width:
            return counts_B
        width *= 2


def attempts_for_first_pass(belief: Belief, chance: float, *, least: int, most: int) -> Ints:
    """The fewest attempts among which a pass is as likely as wanted.

    ``min { n : 1 - E[(1-p)^n] >= chance }``,  ``E[(1-p)^n] = prod_{j<n} (b+j) / (a+b+j)``

    clipped to [least, most]. Uncertainty makes it larger than the n of the mean pass rate: fails
    speak against the pass rates at which a pass would have come soon.

    Args:
        belief: N beliefs.
        chance: in (0, 1).
        least: >= 1.
        most: >= least.

    Returns:
        (N,) in [least, most].

    Raises:
        InvalidInputError: an argument outside its range.
    """
    require(0.0 < chance < 1.0, "chance", chance, "in (0, 1)")
    require(least >= 1, "least", least, ">= 1")
    require(most >= least, "most", most, f">= least, {least}")
    total_N = belief.alpha_N + belief.beta_N
    needed_N = np.ones(len(total_N), dtype=np.int64)
    none_N = np.ones(len(total_N))
    short = np.arange(len(total_N))  # prompts whose chance is too small so far
    for start in range(0, most - 1, _PIECE):  # the last attempt's chance is not needed
        step_G = np.arange(start, min(start + _PIECE, most - 1.0))[:, np.newaxis]
        fails_GN = (belief.beta_N[short] + step_G) / (total_N[short] + step_G)
        none_GN = none_N[short] * np.multiply.accumulate(fails_GN, axis=0)
        is_short_GN = 1.0 - none_GN < chance - _TIE
        needed_N[short] += np.count_nonzero(is_short_GN, axis=0)
        none_N[short] = none_GN[-1]
        short = short[is_short_GN[-1]]
        if not len(short):
            break
    return np.maximum(needed_N, least)


def _gains(belief: Belief, most: int) -> Floats:
    """(most - 1, B): what the second, third, … attempt adds to the chance of a mixed group."""
    require(belief.alpha_N.ndim == 1, "belief", belief.alpha_N.shape, "of one axis")
    total_B = belief.alpha_N + belief.beta_N
    step_G = np.arange(most - 1.0)[:, np.newaxis]
    gain_GB = np.zeros((most - 1, len(total_B)))
    for one_B, other_B in (
        (belief.alpha_N, belief.beta_N),
        (belief.beta_N, belief.alpha_N),
    ):
        factor_GB = (other_B + step_G) / (total_B + step_G + 1.0)
        factor_GB[0] *= one_B / total_B
        gain_GB += np.multiply.accumulate(factor_GB, axis=0)
    return gain_GB


def _largest_by_column(value_GB: Floats, count: int) -> Ints:
    """How many of the `count` largest values each column holds; of equal ones the first rows'
    count, and in a row the first columns'."""
    if count >= value_GB.size:
        return np.full(value_GB.shape[1], value_GB.shape[0])
    if count == 0:
        return np.zeros(value_GB.shape[1], dtype=np.int64)
    threshold = np.partition(value_GB, value_GB.size - count, axis=None)[value_GB.size - count]
    is_above_GB = value_GB > threshold
    equal = np.flatnonzero(value_GB == threshold)[: count - np.count_nonzero(is_above_GB)]
    at_threshold_B = np.bincount(equal % value_GB.shape[1], minlength=value_GB.shape[1])
    counts_B: Ints = np.count_nonzero(is_above_GB, axis=0) + at_threshold_B
    return counts_B
