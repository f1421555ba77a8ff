import numpy as np
import pytest
from scipy import special

from curriculum import Band, Belief, InvalidInputError, bands_settled, classify_bands


def random_beliefs(count, seed=0):
    rng = np.random.default_rng(seed)
    alpha, beta = np.exp(rng.uniform(np.log(0.01), np.log(2e3), (2, count)))
    return Belief(alpha, beta)


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.95), (0.02, 0.8), (0.3, 0.6)])
def test_bands_follow_the_posterior_median(low, high):
    belief = random_beliefs(20_000)
    below = special.betainc(belief.alpha_N, belief.beta_N, low)
    above = special.betainc(belief.beta_N, belief.alpha_N, 1.0 - high)
    clear = (np.abs(below - 0.5) > 0.005) & (np.abs(above - 0.5) > 0.005)
    expected = np.where(below > 0.5, Band.BEYOND, np.where(above > 0.5, Band.MASTERED, Band.EDGE))
    bands = classify_bands(belief, np.ones(20_000, dtype=np.int64), low, high)
    assert bands.dtype == np.uint8
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(bands[clear], expected[clear])


def test_a_prompt_without_any_attempt_is_unseen_whatever_is_believed():
    belief = Belief(np.array([0.01, 0.01]), np.array([9.0, 9.0]))
    bands = classify_bands(belief, np.array([0, 8]), 0.05, 0.95)
    assert bands.tolist() == [Band.UNSEEN, Band.BEYOND]


def test_settled_means_that_the_band_holds_nine_tenths_of_the_mass():
    belief, low, high = random_beliefs(20_000, seed=1), 0.05, 0.95
    below = special.betainc(belief.alpha_N, belief.beta_N, low)
    above = special.betainc(belief.beta_N, belief.alpha_N, 1.0 - high)
    answer = bands_settled(belief, low, high)
    inside = np.max([below, above, 1.0 - below - above], axis=0)
    assert inside[answer].min() > 0.9 - 0.005
    sure = (below > 0.905) | (above > 0.905) | ((below < 0.045) & (above < 0.045))
    assert answer[sure].all()


def test_limits_out_of_order_are_refused():
    belief = random_beliefs(1)
    with pytest.raises(InvalidInputError, match="edge_low"):
        classify_bands(belief, np.ones(1), 0.9, 0.1)
    with pytest.raises(InvalidInputError, match="edge_low"):
        bands_settled(belief, 0.0, 0.9)


def test_band_arrays_of_different_lengths_are_refused():
    with pytest.raises(InvalidInputError, match="shapes"):
        classify_bands(random_beliefs(2), np.ones(3), 0.05, 0.95)
