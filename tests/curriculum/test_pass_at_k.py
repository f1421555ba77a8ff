from itertools import combinations

import numpy as np
import pytest

from curriculum import InvalidInputError, pass_at_k


@pytest.mark.parametrize("attempts", range(1, 8))
def test_it_is_the_share_of_subsets_with_a_pass(attempts):
    for passes in range(attempts + 1):
        results = [1] * passes + [0] * (attempts - passes)
        for k in range(1, attempts + 1):
            subsets = list(combinations(results, k))
            expected = sum(map(any, subsets)) / len(subsets)
            estimate = pass_at_k(np.array([attempts]), np.array([passes]), k)[0]
            assert estimate == pytest.approx(expected, abs=1e-12)


def test_it_is_unbiased():
    # E over c ~ Binomial(n, p) of the estimate is 1 - (1-p)**k, by enumeration of c
    from scipy.stats import binom

    attempts, pass_rate = 20, 0.13
    passes = np.arange(attempts + 1)
    estimate = pass_at_k(np.full(attempts + 1, attempts), passes, 6)
    mean = estimate @ binom.pmf(passes, attempts, pass_rate)
    assert mean == pytest.approx(1.0 - (1.0 - pass_rate) ** 6, abs=1e-12)


def test_too_few_attempts_give_nan_and_extremes_are_exact():
    estimate = pass_at_k(np.array([3, 4, 4, 4, 0]), np.array([3, 0, 1, 4, 0]), 4)
    np.testing.assert_array_equal(estimate, [np.nan, 0.0, 1.0, 1.0, np.nan])


def test_counts_of_a_long_run_stay_exact():
    # 1 - C(n-1, k) / C(n, k) = k / n for a single pass
    assert pass_at_k(np.array([10**6]), np.array([1]), 7)[0] == pytest.approx(7e-6, abs=1e-9)


def test_no_prompts_give_no_estimates():
    assert pass_at_k(np.zeros(0, dtype=int), np.zeros(0, dtype=int), 3).shape == (0,)


def test_impossible_counts_are_refused():
    with pytest.raises(InvalidInputError, match="passes"):
        pass_at_k(np.array([2]), np.array([3]), 1)
    with pytest.raises(InvalidInputError, match="k=0: must be >= 1"):
        pass_at_k(np.array([2]), np.array([1]), 0)
