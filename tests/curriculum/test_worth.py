"""What a group is worth, against enumeration of everything that it may show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curriculum import Belief, InvalidInputError, mixed_probability
from curriculum.worth import Worth, expected_mixed

FIRST_LOOK = 8.0
group_sizes = st.sampled_from([2, 4, 8, 16])
parameters = st.floats(0.02, 300.0)


def believed(alpha, beta):
    return Belief(np.atleast_1d(np.float64(alpha)), np.atleast_1d(np.float64(beta)))


def enumerated_gain(alpha, beta, bar, group_size):
    """Over all passes of one more group of at most 16: E[max(mixed', bar)] - max(mixed, bar)."""
    seen = min(group_size, 16)
    chances = stats.betabinom(seen, alpha, beta).pmf(np.arange(seen + 1))
    after = [
        max(mixed_probability(believed(alpha + k, beta + seen - k), group_size)[0], bar)
        for k in range(seen + 1)
    ]
    return chances @ after - max(mixed_probability(believed(alpha, beta), group_size)[0], bar)


def at(worth, alpha, beta, *, is_new=False):
    return worth.at(believed(alpha, beta), np.array([is_new]))[0]


@settings(deadline=None)  # the first example of a group size builds its table
@given(parameters, parameters, st.floats(0.0, 1.0), group_sizes)
def test_worth_is_mixed_and_what_every_outcome_would_lift_over_the_bar(alpha, beta, bar, size):
    worth, mixed = Worth.over(bar, size, 1.0), mixed_probability(believed(alpha, beta), size)[0]
    gain = enumerated_gain(alpha, beta, bar, size)
    # Interpolation costs .004 for mixed, as promised, and twice that for a gain with its kinks.
    assert at(worth, alpha, beta) == pytest.approx(mixed + gain, abs=0.012)
    expected = mixed + FIRST_LOOK * gain
    assert at(worth, alpha, beta, is_new=True) == pytest.approx(expected, abs=0.004 + 8 * 0.008)


def test_at_a_node_of_the_table_nothing_is_interpolated():
    nodes = np.exp(np.linspace(np.log(0.01), np.log(2e3), 64))
    for alpha, beta, size in ((nodes[20], nodes[27], 8), (nodes[3], nodes[40], 64)):
        mixed, gain = (
            mixed_probability(believed(alpha, beta), size)[0],
            enumerated_gain(alpha, beta, 0.6, size),
        )
        assert at(Worth.over(0.6, size, 4.0), alpha, beta) == pytest.approx(
            mixed + 4.0 * gain, abs=1e-5
        )


@pytest.mark.parametrize("bar", [0.0, 1.0])
def test_what_cannot_cross_the_bar_gains_nothing(bar):
    # Whatever comes is above 0 and below 1, and on average it is what was expected.
    rng = np.random.default_rng(0)
    alpha, beta = np.exp(rng.uniform(np.log(0.02), np.log(1e3), (2, 2000)))
    belief, is_new = Belief(alpha, beta), rng.random(2000) < 0.5
    worth = Worth.over(bar, 8, 5.0).at(belief, is_new)
    np.testing.assert_allclose(worth, expected_mixed(belief, 8), atol=1e-9)


def test_a_known_prompt_far_from_the_bar_gains_nothing_and_an_unknown_one_much():
    worth = Worth.over(0.9, 8, 1.0)
    known, unknown = ((0.5, 100.0), (1.0, 1.0))
    for alpha, beta in (known, unknown):
        gain = at(worth, alpha, beta) - expected_mixed(believed(alpha, beta), 8)[0]
        assert gain == pytest.approx(enumerated_gain(alpha, beta, 0.9, 8), abs=0.01)
    assert enumerated_gain(*known, 0.9, 8) < 1e-4 < 0.01 < enumerated_gain(*unknown, 0.9, 8)


@settings(deadline=None)  # the first example of a group size builds its table
@given(parameters, parameters, group_sizes, st.booleans())
def test_without_optimism_only_the_chance_of_mixing_counts(alpha, beta, size, is_new):
    worth = at(Worth.over(0.7, size, 0.0), alpha, beta, is_new=is_new)
    assert worth == expected_mixed(believed(alpha, beta), size)[0]


@settings(deadline=None)  # the first example of a group size builds its table
@given(parameters, parameters, st.floats(0.0, 1.0), group_sizes)
def test_a_prompt_and_its_mirror_image_are_worth_the_same(alpha, beta, bar, size):
    worth = Worth.over(bar, size, 4.0)
    assert at(worth, alpha, beta) == pytest.approx(at(worth, beta, alpha), abs=1e-9)


@pytest.mark.parametrize("group_size", [2, 3, 8, 16, 64, 256, 1024])
def test_the_table_of_mixed_is_within_four_thousandths(group_size):
    rng = np.random.default_rng(group_size)
    belief = Belief(*np.exp(rng.uniform(np.log(0.01), np.log(2e3), (2, 20_000))))
    error = expected_mixed(belief, group_size) - mixed_probability(belief, group_size)
    assert np.abs(error).max() < 0.004


def test_a_large_group_teaches_like_one_of_sixteen():
    # For Beta(1, 1) each of 0..16 passes is equally likely; all but none and all leave the next
    # group of 64 mixed with near certainty, by 1 - 2 B(1 + k + 64, 17 - k) / B(1 + k, 17 - k) ...
    def mixed(a, b):
        total = 1.0
        for one, other in ((a, b), (b, a)):
            total -= np.prod([(other + j) / (one + other + j) for j in range(64)])
        return total

    after = np.mean([max(mixed(1 + k, 17 - k), 0.9) for k in range(17)])
    gain = after - max(mixed(1, 1), 0.9)
    assert at(Worth.over(0.9, 64, 1.0), 1.0, 1.0) == pytest.approx(mixed(1, 1) + gain, abs=0.008)


def test_the_chances_of_a_group_are_those_of_the_beta_binomial():
    # Beta(2, 3), G = 2, the bar .3: mixed 2 ab / ((a+b)(a+b+1)) is .4, after 0, 1 and 2 passes
    # (2,5): 20/56, (3,4): 24/56, (4,3): 24/56, all above the bar; with the bar 0.4 only 0 passes
    # (chance b (b+1) / 30 = .4) fall below, by .4 - 20/56.
    assert mixed_probability(believed(2.0, 3.0), 2)[0] == pytest.approx(0.4)
    assert enumerated_gain(2.0, 3.0, 0.3, 2) == pytest.approx(0.0, abs=1e-12)
    lifted = 0.4 * (0.4 - 20 / 56)
    assert enumerated_gain(2.0, 3.0, 0.4, 2) == pytest.approx(lifted, abs=1e-12)
    assert at(Worth.over(0.4, 2, 1.0), 2.0, 3.0) == pytest.approx(0.4 + lifted, abs=0.012)


def test_a_group_of_one_is_refused():
    with pytest.raises(InvalidInputError, match="group_size=1: must be >= 2"):
        Worth.over(0.5, 1, 1.0)
