import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from curriculum import InvalidInputError, beta_cdf, beta_quantile, credible_interval

parameters = st.floats(0.01, 1e5)


# Below 1e-308 the digits of x itself are few.
@given(st.floats(0.0, 1.0, allow_subnormal=False), parameters, parameters)
def test_the_cdf_is_scipys(x, alpha, beta):
    assert beta_cdf(x, alpha, beta) == pytest.approx(special.betainc(alpha, beta, x), abs=1e-9)


def test_the_cdf_ends_are_exact():
    assert beta_cdf(np.array([0.0, 1.0]), 0.3, 7.0).tolist() == [0.0, 1.0]


def test_the_quantile_inverts_the_cdf():
    rng = np.random.default_rng(0)
    alpha, beta = np.exp(rng.uniform(np.log(0.05), np.log(1e4), (2, 300)))
    for mass in (0.05, 0.5, 0.95):
        expected = special.betaincinv(alpha, beta, mass)
        np.testing.assert_allclose(beta_quantile(mass, alpha, beta), expected, atol=1e-9)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_intervals_are_within_a_hundredth_of_the_exact_ones(level):
    rng = np.random.default_rng(1)
    alpha, beta = np.exp(rng.uniform(np.log(0.05), np.log(1e4), (2, 40_000)))
    low, high = credible_interval(alpha, beta, level)
    tail, mean = (1.0 - level) / 2.0, alpha / (alpha + beta)
    exact_low = np.minimum(special.betaincinv(alpha, beta, tail), mean)
    exact_high = np.maximum(special.betaincinv(alpha, beta, 1.0 - tail), mean)
    assert np.abs(low - exact_low).max() <= 0.01
    assert np.abs(high - exact_high).max() <= 0.01


def test_an_interval_holds_its_mean_even_if_the_mass_lies_at_one_end():
    alpha, beta = np.array([0.01, 2.0]), np.array([2.0, 0.01])
    low, high = credible_interval(alpha, beta)
    mean = alpha / (alpha + beta)
    assert special.betaincinv(0.01, 2.0, 0.95) < mean[0] == high[0]
    assert low[1] == mean[1]


def test_parameters_beyond_the_table_still_give_an_interval():
    low, high = credible_interval(np.array([1e-6, 1e9]), np.array([1e9, 1e-6]))
    np.testing.assert_allclose(low, [0.0, 1.0], atol=0.01)
    np.testing.assert_allclose(high, [0.0, 1.0], atol=0.01)


def test_impossible_arguments_are_refused():
    one = np.ones(1)
    for call in (
        lambda: beta_cdf(1.5, 1.0, 1.0),
        lambda: beta_quantile(0.5, 0.0, 1.0),
        lambda: credible_interval(one, one, 1.0),
        lambda: credible_interval(one, -one),
        lambda: credible_interval(one, np.ones(2)),
    ):
        with pytest.raises(InvalidInputError):
            call()
