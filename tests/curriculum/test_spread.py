"""Graded rewards: what counts is how far those of one prompt differ."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import Block, SelectionConfig, compose_batch
from curriculum.evidence import gather_squares
from curriculum.spread import fit_grain, relative_spread

CONFIG = SelectionConfig(review_share=0.0, reach_share=0.0, rest_steps=0)
counts = st.lists(st.tuples(st.integers(0, 64), st.floats(0.0, 1.0)), min_size=1, max_size=20)


@given(counts)
def test_rewards_of_zero_and_one_have_the_spread_of_passes(drawn):
    attempts = np.array([n for n, _ in drawn], dtype=np.float64)
    passes = np.floor(attempts * [share for _, share in drawn])
    assert fit_grain(passes, passes, attempts) == 1.0
    np.testing.assert_array_equal(relative_spread(passes, passes, attempts, 1.0), 1.0)


def test_a_constant_reward_weighs_ever_less():
    # The advantage of eight rewards of .5 is 0, however "unsolved" their mean says the prompt is.
    attempts = 8.0 * np.arange(6)
    spread = relative_spread(attempts / 2.0, attempts / 4.0, attempts, 1.0)
    assert spread[0] == 1.0
    # within = n/4 - (n/2)**2/n = 0 and the most is n/4: sqrt((0 + 1) / (n/4 + 1))
    np.testing.assert_allclose(spread, 1.0 / np.sqrt(attempts / 4.0 + 1.0), rtol=1e-12)
    assert (np.diff(spread) < 0.0).all()


def test_the_spread_is_relative_to_the_pools():
    # Rewards uniform on [0, 1]: Var is 1/12 where passes of mean 1/2 have 1/4.
    attempts = np.full(4000, 16.0)
    rewards = np.random.default_rng(0).random((4000, 16))
    sums, squares = rewards.sum(axis=1), np.square(rewards).sum(axis=1)
    grain = fit_grain(sums, squares, attempts)
    # Of n rewards, within is 15/16 of n/12 and the most is n/4 - 1/12: (15/12) / (4 - 1/12) = .319;
    # its standard error is below 1 / sqrt(64,000) = .004 of 1.
    assert grain == pytest.approx((15 / 12) / (4 - 1 / 12), rel=0.016)
    spread = relative_spread(sums, squares, attempts, grain)
    assert spread.mean() == pytest.approx(1.0, abs=0.02)


def test_the_grain_stays_within_its_bounds():
    attempts = np.full(100, 64.0)
    assert fit_grain(attempts / 2.0, attempts / 4.0, attempts) == 0.125
    assert fit_grain(np.zeros(0), np.zeros(0), np.zeros(0)) == 1.0


def test_squares_are_summed_over_blocks_in_their_unit():
    block = Block(0.0, np.array([8, 8]), np.array([40, 0]), squares_N=np.array([30, 0]), unit=10.0)
    assert gather_squares((block, block), np.array([0])).tolist() == [6.0]
    assert gather_squares((Block(0.0, np.array([8]), np.array([4])),), np.array([0])) is None


def graded_pool(make_pool):
    """All means are 1/2. The first third's rewards are 0 or 1, the second's .3 or .7, the last's
    .5; in fixed point of 1/1000."""
    attempts = np.full(1200, 16)
    square = np.repeat([500, 290, 250], 400) * 16
    block = Block(90.0, attempts, 500 * attempts, squares_N=square, unit=1000.0)
    return make_pool(1200, blocks=(block,))


def test_a_graded_pool_serves_those_whose_rewards_differ(make_pool):
    pool = graded_pool(make_pool)
    model = pool.fit()
    assert 0.125 < model.grain < 1.0
    batch = compose_batch(model, pool, CONFIG, 120, np.random.default_rng(0))
    third = np.bincount(batch.indices_B // 400, minlength=3)
    # Relative to rewards of 0 or 1, the sd of the others is .4 and 0, before the prior's part; its
    # 16th power leaves nothing of them.
    assert third.tolist() == [120, 0, 0]


def test_finer_rewards_tell_more_of_a_mean(make_pool):
    # Two thirds of the variance of passes is not there, so as many attempts count for more.
    pool = graded_pool(make_pool)
    model = pool.fit()
    belief = pool.beliefs(model, np.array([0]))
    kappa = model.prior.concentration_D[0]
    assert belief.alpha_N[0] + belief.beta_N[0] > 0.8 * (kappa + 16.0 / model.grain)
    assert belief.mean[0] == pytest.approx(0.5, abs=1e-6)
