import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from curriculum import (
    Belief,
    InvalidInputError,
    mixed_probability,
    mixed_probability_at,
)
from curriculum.beta import log_beta_binomial

parameters = st.floats(1e-3, 1e4)
group_sizes = st.integers(2, 70)


def belief(alpha, beta):
    return Belief(np.atleast_1d(float(alpha)), np.atleast_1d(float(beta)))


@given(parameters, parameters)
def test_mean_and_sd_are_those_of_the_beta_distribution(alpha, beta):
    oracle = stats.beta(alpha, beta)
    assert belief(alpha, beta).mean[0] == pytest.approx(oracle.mean(), rel=1e-12)
    assert belief(alpha, beta).sd[0] == pytest.approx(oracle.std(), rel=1e-9)


def test_beliefs_are_taken_by_index_or_mask_and_joined():
    whole = Belief(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    back = Belief.join([whole.take(np.array([2, 0])), whole.take(np.array([False, True, False]))])
    assert (back.alpha_N.tolist(), back.beta_N.tolist()) == ([3.0, 1.0, 2.0], [6.0, 4.0, 5.0])


@given(parameters, parameters, group_sizes)
def test_the_log_probability_of_passes_is_that_of_the_beta_binomial(alpha, beta, attempts):
    passes = np.arange(attempts + 1)
    many = Belief(np.full(attempts + 1, alpha), np.full(attempts + 1, beta))
    expected = stats.betabinom(attempts, alpha, beta).logpmf(passes)
    assert log_beta_binomial(passes, attempts, many) == pytest.approx(expected, abs=1e-8)
    one = log_beta_binomial(1, attempts, belief(alpha, beta))
    assert one[0] == pytest.approx(expected[1], abs=1e-8)


@given(st.floats(0.0, 1.0), group_sizes)
def test_mixed_at_a_known_rate_is_its_closed_form(pass_rate, group_size):
    closed = 1.0 - pass_rate**group_size - (1.0 - pass_rate) ** group_size
    assert mixed_probability_at(np.array([pass_rate]), group_size)[0] == pytest.approx(
        closed, abs=1e-14
    )


def test_mixed_at_a_tiny_rate_keeps_its_digits():
    # 1 - (1-q)**G - q**G = G q - G (G-1) q**2 / 2 + ..., for q -> 0 and G > 2
    mixed = mixed_probability_at(np.array([0.0, 1e-18, 1e-9, 1.0]), 8)
    np.testing.assert_allclose(mixed, [0.0, 8e-18, 8e-9 - 28e-18, 0.0], rtol=1e-12)


@given(parameters, parameters, group_sizes)
def test_mixed_for_a_belief_is_the_beta_binomial(alpha, beta, group_size):
    oracle = stats.betabinom(group_size, alpha, beta)
    expected = 1.0 - oracle.pmf(0) - oracle.pmf(group_size)
    mixed = mixed_probability(belief(alpha, beta), group_size)[0]
    assert mixed == pytest.approx(expected, abs=1e-8)


def test_mixed_for_a_sharp_belief_is_mixed_at_its_mean():
    sharp = belief(3e9, 7e9)
    assert mixed_probability(sharp, 8) == pytest.approx(
        mixed_probability_at(np.array([0.3]), 8), abs=1e-8
    )


def test_mixed_for_a_hopeless_prompt_keeps_its_digits():
    # to first order in a: sum over j < G of a / (b + j), less the all-pass chance of order a too:
    # a B(G, b) with B(2, 1) = 1/2, so for G = 2, b = 1 it is a (1 + 1/2) - a / 2 = a
    assert mixed_probability(belief(1e-13, 1.0), 2)[0] == pytest.approx(1e-13, rel=1e-9)


def test_a_group_of_one_is_never_mixed_and_refused():
    with pytest.raises(InvalidInputError, match="group_size=1: must be >= 2"):
        mixed_probability(belief(1, 1), 1)
    with pytest.raises(InvalidInputError, match="group_size=1: must be >= 2"):
        mixed_probability_at(np.array([0.5]), 1)


def test_a_rate_outside_zero_and_one_is_refused():
    with pytest.raises(InvalidInputError, match="pass_rate"):
        mixed_probability_at(np.array([1.2]), 8)
