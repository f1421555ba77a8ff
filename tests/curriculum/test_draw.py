"""The weighted draw against exact enumeration."""

from itertools import permutations

import numpy as np
import pytest

from curriculum import STRATEGIES, SelectionConfig, compose_batch

SUCCESSES = np.array([40.0, 5.0, 70.0, 20.0, 79.0])  # of 80
CONFIG = SelectionConfig(sharpness=1.5, rest_steps=0, review_share=0.0, reach_share=0.0)


def inclusion_probabilities(weights, count):
    """Chance of each index in `count` successive draws without replacement."""
    chances = np.zeros(len(weights))
    for order in permutations(range(len(weights)), count):
        chance, left = 1.0, weights.sum()
        for index in order:
            chance *= weights[index] / left
            left -= weights[index]
        chances[list(order)] += chance
    return chances


def drawn_shares(pool, count, draws):
    prior, rng = pool.fit_prior(), np.random.default_rng(5)
    seen = np.zeros(len(pool))
    for _ in range(draws):
        seen[compose_batch(prior, pool, CONFIG, count, rng).indices_B] += 1
    return seen / draws


@pytest.mark.parametrize("copies", [1, 40], ids=["among all", "by proposals"])
def test_prompts_are_drawn_in_proportion_to_their_weights_without_replacement(make_pool, copies):
    # With 40 copies of each prompt of which only the first is free, the pool is large enough for
    # the draw by proposals; the law is the same.
    successes = np.tile(SUCCESSES, copies)
    free = np.arange(len(successes)) < len(SUCCESSES)
    pool = make_pool(
        len(successes), successes_N=successes, failures_N=80.0 - successes, free_N=free
    )
    prior = pool.fit_prior()
    weights = STRATEGIES["edge"].weigh(pool.belief_at(np.arange(5), prior), CONFIG)
    assert 0.0 < weights.min() < 0.5 * weights.max() <= 0.5
    expected = inclusion_probabilities(weights, 2)
    # the standard error of a share is at most .5 / sqrt(4,000) = .008; 4 of them
    np.testing.assert_allclose(drawn_shares(pool, 2, 4000)[:5], expected, atol=0.032)


def test_a_large_pool_is_drawn_by_weight_too(make_pool):
    # 300 prompts at the edge and 2,700 mastered: with replacement the edge would get the share
    # 300 w1 / (300 w1 + 2700 w2) of a draw; 3 of 3,000 without replacement hardly differ.
    successes = np.where(np.arange(3000) < 300, 4.0, 8.0)
    pool = make_pool(3000, successes_N=successes, failures_N=8.0 - successes)
    prior = pool.fit_prior()
    weights = STRATEGIES["edge"].weigh(pool.belief_at(np.arange(3000), prior), CONFIG)
    expected = 3 * weights[:300].sum() / weights.sum()
    seen = drawn_shares(pool, 3, 2000)[:300].sum()
    # sd of the edge's count is below sqrt(3)/2, its standard error over 2,000 draws below .02; and
    # the finite pool moves it by about 3 * 3/300/2 = .015 at most
    assert abs(seen - expected) < 4 * 0.02 + 0.015
