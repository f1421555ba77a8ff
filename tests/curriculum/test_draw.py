"""The weighted draw against exact enumeration."""

from itertools import permutations

import numpy as np
import pytest

from curriculum import STRATEGIES, Belief, SelectionConfig, compose_batch
from curriculum.strategies import edge
from curriculum.strategies.base import Choice
from curriculum.worth import Worth, expected_mixed

PASSES = np.array([40.0, 5.0, 70.0, 20.0, 79.0])  # of 80
# Without optimism a weight is the chance of a mixed group to the power of the sharpness, whatever
# bar and best worth the looks at the pool have found.
CONFIG = SelectionConfig(
    sharpness=1.5, optimism=0.0, rest_steps=0, review_share=0.0, reach_share=0.0
)


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


def weigh(pool, indices):
    choice = Choice(pool, pool.fit(), CONFIG, indices, 1)
    return STRATEGIES["edge"].appraise(choice, np.random.default_rng(0))(indices)


def drawn_shares(pool, count, draws):
    model, rng = pool.fit(), np.random.default_rng(5)
    seen = np.zeros(len(pool))
    for _ in range(draws):
        seen[compose_batch(model, pool, CONFIG, count, rng).indices_B] += 1
    return seen / draws


@pytest.mark.parametrize("copies", [1, 40], ids=["among all", "by proposals"])
def test_prompts_are_drawn_in_proportion_to_their_weights_without_replacement(make_pool, copies):
    # With 40 copies of each prompt of which only the first is free, the pool is large enough for
    # the draw by proposals; the law is the same.
    passes = np.tile(PASSES, copies)
    free = np.arange(len(passes)) < len(PASSES)
    pool = make_pool(len(passes), passes_N=passes, fails_N=80.0 - passes, free_N=free)
    weights = weigh(pool, np.arange(5))
    assert 0.0 < weights.min() < 0.5 < weights.max() == 1.0
    expected = inclusion_probabilities(weights, 2)
    # the standard error of a share is at most .5 / sqrt(2,000) = .011; 4 of them
    np.testing.assert_allclose(drawn_shares(pool, 2, 2000)[:5], expected, atol=0.045)


def test_a_large_pool_is_drawn_by_weight_too(make_pool):
    # 300 prompts at the edge and 2,700 mastered: with replacement the edge would get the share
    # 300 w1 / (300 w1 + 2700 w2) of a draw; 3 of 3,000 without replacement hardly differ.
    passes = np.where(np.arange(3000) < 300, 4.0, 8.0)
    pool = make_pool(3000, passes_N=passes, fails_N=8.0 - passes)
    weights = weigh(pool, np.arange(3000))
    expected = 3 * weights[:300].sum() / weights.sum()
    seen = drawn_shares(pool, 3, 1000)[:300].sum()
    # sd of the edge's count is below sqrt(3)/2, its standard error over 1,000 draws below .028; and
    # the finite pool moves it by about 3 * 3/300/2 = .015 at most
    assert abs(seen - expected) < 4 * 0.028 + 0.015


def test_the_bar_is_the_margin_of_the_batch_among_those_that_are_open(make_pool, monkeypatch):
    # A tenth of the free prompts is known to be at .5 and the rest at .2: a batch of three tenths
    # of them ends with one at .2, however many others are leased.
    bars = []

    class Recording(Worth):
        @staticmethod
        def over(bar, group_size, optimism):
            bars.append(bar)
            return Worth.over(bar, group_size, optimism)

    monkeypatch.setattr(edge, "Worth", Recording)
    index = np.arange(20_000)
    passes = np.where(index < 2000, 200.0, 80.0)
    for stride, count in ((1, 6000), (10, 600)):
        free = index % stride == 0
        pool = make_pool(20_000, passes_N=passes, fails_N=400.0 - passes, free_N=free)
        compose_batch(pool.fit(), pool, CONFIG, count, np.random.default_rng(0))
    margin = expected_mixed(Belief(np.array([80.5]), np.array([320.5])), 8)[0]
    np.testing.assert_allclose(bars, margin, atol=0.01)
