"""Attempts by marginal gain against every other way to spend them; and enough for a first pass."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from curriculum.allocate import allocate_attempts, attempts_for_first_pass
from curriculum.belief import Belief
from curriculum.errors import InvalidInputError

WIDE = Belief(np.array([1.0, 0.3, 8.0, 0.02, 40.0]), np.array([1.0, 5.0, 0.5, 6.0, 40.0]))


def believed(*pairs):
    alpha, beta = np.array(pairs, dtype=np.float64).T
    return Belief(alpha, beta)


def drawn(rng, count):
    return Belief(rng.gamma(0.7, 3.0, count) + 1e-3, rng.gamma(0.7, 3.0, count) + 1e-3)


def mixed(belief, index, count):
    """By the beta-binomial of scipy, which knows nothing of marginal gains."""
    law = stats.betabinom(count, belief.alpha_N[index], belief.beta_N[index])
    return float(law.pmf(np.arange(1, count)).sum())


def value(belief, counts, cost=None):
    cost = np.ones(len(counts)) if cost is None else cost
    return sum(mixed(belief, i, n) / cost[i] for i, n in enumerate(counts) if n)


def every_spending(prompt_count, budget, least, most):
    counts = range(least, most + 1)
    return (n for n in itertools.product(counts, repeat=prompt_count) if sum(n) == budget)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("is_costly", [False, True])
def test_no_other_spending_of_the_budget_is_worth_more(seed, is_costly):
    rng = np.random.default_rng(seed)
    belief, least, most = drawn(rng, 4), int(rng.integers(2, 4)), 6
    cost = rng.uniform(0.2, 5.0, 4) if is_costly else None
    budget = int(rng.integers(4 * least, 4 * most + 1))
    counts = allocate_attempts(belief, budget, least=least, most=most, cost_B=cost)
    assert counts.sum() == budget
    assert counts.min() >= least
    assert counts.max() <= most
    best = max(value(belief, n, cost) for n in every_spending(4, budget, least, most))
    assert value(belief, counts, cost) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 5, 7])
def test_a_budget_too_small_for_all_serves_those_that_gain_most(budget):
    counts = allocate_attempts(WIDE, budget, most=8)
    # Two attempts are mixed with the chance 2 E[p (1 - p)] = 2 ab / ((a + b)(a + b + 1)).
    pairs = zip(WIDE.alpha_N, WIDE.beta_N, strict=True)
    first = [2 * a * b / ((a + b) * (a + b + 1)) for a, b in pairs]
    best = sorted(range(5), key=lambda i: -first[i])[: budget // 2]
    assert set(np.flatnonzero(counts)) == set(best)
    assert counts[counts > 0].min(initial=2) == 2
    assert counts.sum() == (budget if budget > 1 else 0)


def test_cost_decides_who_is_served_by_a_small_budget():
    belief = believed((1, 1), (1, 1), (1, 1))
    cost = np.array([3.0, 1.0, 2.0])
    assert allocate_attempts(belief, 2, most=4, cost_B=cost).tolist() == [0, 2, 0]
    assert allocate_attempts(belief, 4, most=4, cost_B=cost).tolist() == [0, 2, 2]


def test_a_budget_too_large_gives_every_prompt_the_most():
    assert allocate_attempts(WIDE, 5 * 9 + 1, most=9).tolist() == [9] * 5
    assert allocate_attempts(WIDE, 5 * 9, most=9).tolist() == [9] * 5
    assert allocate_attempts(WIDE, 5 * 9 - 1, most=9).sum() == 44
    assert allocate_attempts(WIDE, 1000, least=4, most=4).tolist() == [4] * 5


def test_equal_prompts_differ_by_one_attempt_at_most_and_the_first_get_more():
    belief = Belief(np.full(7, 2.0), np.full(7, 3.0))
    assert allocate_attempts(belief, 24, most=32).tolist() == [4, 4, 4, 3, 3, 3, 3]


def test_a_prompt_that_is_surely_solved_gets_the_least_and_an_even_one_soon_has_enough():
    belief = believed((1e6, 1.0), (1e6, 1e6), (50.0, 950.0))
    counts = allocate_attempts(belief, 40, most=32)
    assert counts[0] == 2
    # A fair coin's 10th attempt gains 2^-9; a pass rate of .05 gains more until the 30th or so.
    assert counts[1] < 12 < counts[2]


def test_the_gain_of_every_attempt_is_exact():
    """Against rational arithmetic: the one attempt that is left goes where it gains more by a
    billionth."""
    belief, a, b = believed((3, 5), (1, 1)), Fraction(3), Fraction(5)
    none, only, chances = Fraction(1), Fraction(1), []
    for n in range(16):
        none, only = none * (b + n) / (a + b + n), only * (a + n) / (a + b + n)
        chances.append(1 - none - only)
    gains = [later - earlier for earlier, later in itertools.pairwise(chances)]
    assert gains == sorted(gains, reverse=True)
    for n, gain in enumerate(gains[1:], start=3):
        uniform = Fraction(2, n * (n + 1))  # the n-th attempt's gain at a uniform belief
        for tilt, expected in ((1 + 1e-9, [n, n - 1]), (1 - 1e-9, [n - 1, n])):
            cost = np.array([1.0, tilt * float(uniform / gain)])
            counts = allocate_attempts(belief, 2 * n - 1, least=n - 1, most=n, cost_B=cost)
            assert counts.tolist() == expected


@pytest.mark.parametrize(
    ("pair", "expected"),
    [((1e-9, 1e-9), 32), ((1e-300, 5.0), 32), ((1e9, 1e-9), 32), ((1e9, 1e9), 31)],
)
def test_extreme_beliefs_are_spent_on_without_a_warning(pair, expected):
    counts = allocate_attempts(believed(pair, (1.0, 1.0)), 40, most=32)
    assert counts.tolist() == [40 - expected, expected]


def test_one_prompt_may_have_nearly_the_whole_of_a_large_budget():
    """However far its gains have to be computed, they are bought while they are the largest."""
    belief = believed((1e6, 1e6), (1e6, 1e6), (1.0, 999.0))
    counts = allocate_attempts(belief, 600, most=32_767)
    assert counts.sum() == 600
    assert counts[2] > 540
    assert allocate_attempts(belief, 600, most=500).tolist() == [50, 50, 500]
    wide = allocate_attempts(drawn(np.random.default_rng(8), 40), 4000, most=4000)
    narrow = allocate_attempts(drawn(np.random.default_rng(8), 40), 4000, most=int(wide.max()))
    assert wide.max() > 150
    assert np.array_equal(wide, narrow)


def test_an_empty_batch_gets_nothing():
    empty = Belief(np.empty(0), np.empty(0))
    assert allocate_attempts(empty, 100, most=8).shape == (0,)
    assert attempts_for_first_pass(empty, 0.5, least=1, most=8).shape == (0,)


def test_the_same_arguments_give_the_same_attempts():
    belief = drawn(np.random.default_rng(5), 300)
    first = allocate_attempts(belief, 2400, most=32)
    assert np.array_equal(allocate_attempts(belief, 2400, most=32), first)
    order = np.random.default_rng(6).permutation(300)
    moved = Belief(belief.alpha_N[order], belief.beta_N[order])
    assert np.array_equal(allocate_attempts(moved, 2400, most=32), first[order])


def test_a_large_batch_takes_less_than_five_milliseconds():
    belief = drawn(np.random.default_rng(0), 512)
    times_s = []
    for _ in range(20):
        start = time.process_time()
        allocate_attempts(belief, 512 * 8, most=32)
        times_s.append(time.process_time() - start)
    assert min(times_s) < 5e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"least": 1}, "least=1: must be >= 2"),
        ({"least": 5, "most": 4}, "most=4: must be >= least, 5"),
        ({"rollout_budget": -1}, "rollout_budget=-1: must be >= 0"),
        ({"cost_B": np.ones(2)}, "cost_B.shape="),
        ({"cost_B": np.array([1.0, 0.0, 1.0, 1.0, 1.0])}, "cost_B="),
        ({"cost_B": np.array([1.0, np.nan, 1.0, 1.0, 1.0])}, "cost_B="),
        ({"cost_B": np.array([1.0, np.inf, 1.0, 1.0, 1.0])}, "cost_B="),
    ],
)
def test_arguments_outside_their_range_are_refused_by_name(arguments, said):
    with pytest.raises(InvalidInputError) as caught:
        allocate_attempts(WIDE, **{"rollout_budget": 20, "most": 8, **arguments})
    assert str(caught.value).startswith(said)


# Enough for a first pass


@pytest.mark.parametrize("chance", [0.05, 0.5, 0.8, 0.99])
def test_one_attempt_fewer_would_not_do(chance):
    belief = drawn(np.random.default_rng(2), 60)
    counts = attempts_for_first_pass(belief, chance, least=1, most=64)

    def of_none(index, n):
        return stats.betabinom(n, belief.alpha_N[index], belief.beta_N[index]).pmf(0)

    for index, n in enumerate(counts.tolist()):
        if n < 64:
            assert 1 - of_none(index, n) >= chance - 1e-9
        if n > 1:
            assert 1 - of_none(index, n - 1) < chance


def test_a_uniform_belief_needs_n_with_n_over_n_plus_one():
    # E[(1-p)^n] = 1 / (n + 1): chances that are reached exactly need no attempt more.
    belief = believed((1.0, 1.0), (1e9, 1.0))
    for n in (*range(1, 40), 255, 256, 257, 258, 512, 513, 3000):
        counts = attempts_for_first_pass(belief, n / (n + 1), least=1, most=32_767)
        assert counts.tolist() == [n, 1]


def test_attempts_for_a_first_pass_stay_within_their_bounds():
    belief = believed((100.0, 1.0), (1e-12, 10.0), (1.0, 9.0))
    assert attempts_for_first_pass(belief, 0.5, least=4, most=16).tolist() == [4, 16, 9]
    assert attempts_for_first_pass(belief, 0.5, least=7, most=7).tolist() == [7, 7, 7]


def test_doubt_about_the_pass_rate_asks_for_more_attempts_than_its_mean():
    sure, unsure = believed((1000.0, 19_000.0)), believed((0.05, 0.95))
    # At a known .05 it is ln .5 / ln .95 = 13.5.
    assert attempts_for_first_pass(sure, 0.5, least=1, most=1024).tolist() == [14]
    assert attempts_for_first_pass(unsure, 0.5, least=1, most=1024).tolist() == [1024]


@pytest.mark.parametrize(
    ("chance", "bounds", "said"),
    [
        (0.0, (1, 8), "chance=0.0: must be in (0, 1)"),
        (1.0, (1, 8), "chance=1.0: must be in (0, 1)"),
        (float("nan"), (1, 8), "chance=nan: must be in (0, 1)"),
        (0.5, (0, 8), "least=0: must be >= 1"),
        (0.5, (9, 8), "most=8: must be >= least, 9"),
    ],
)
def test_a_bad_wish_for_a_first_pass_is_refused_by_name(chance, bounds, said):
    with pytest.raises(InvalidInputError) as caught:
        attempts_for_first_pass(WIDE, chance, least=bounds[0], most=bounds[1])
    assert str(caught.value) == said
