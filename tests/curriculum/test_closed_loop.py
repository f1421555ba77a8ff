"""Simulated runs: does selection find the edge, keep looking around, and use what is known?"""

import numpy as np
import pytest

from curriculum import Block, SelectionConfig, compose_batch

PROMPTS, BATCH, STEPS, WARM_UP, WINDOW = 1500, 32, 160, 60, 5


def simulate(make_pool, config):
    """Mixed share of the groups after the warm-up, and how often each prompt was served."""
    rng = np.random.default_rng(7)
    pass_rate = rng.beta(0.25, 0.25, PROMPTS)
    windows = STEPS // WINDOW
    passes, attempts = np.zeros((2, windows, PROMPTS), dtype=np.int64)
    served, last = np.zeros(PROMPTS), np.full(PROMPTS, -1)
    mixed, model = [], None
    for step in range(STEPS):
        window = step // WINDOW
        blocks = tuple(
            Block((WINDOW * w + min(WINDOW * w + WINDOW - 1, step)) / 2, attempts[w], passes[w])
            for w in range(window + 1)
        )
        pool = make_pool(PROMPTS, blocks=blocks, last_served_step_N=last, policy_step=step)
        if window == 0 or step % WINDOW == 0:
            model = pool.fit()
        batch = compose_batch(model, pool, config, BATCH, rng)
        index, count = batch.indices_B, batch.attempt_counts_B
        passed = rng.binomial(count, pass_rate[index])
        mixed.append(((passed > 0) & (passed < count)).mean())
        passes[window, index] += passed
        attempts[window, index] += count
        served[index] += 1
        last[index] = step
    return np.mean(mixed[WARM_UP:]), served


def test_edge_finds_mixed_groups_and_does_not_serve_the_same_few_for_ever(make_pool):
    uniform, _ = simulate(make_pool, SelectionConfig(strategy="uniform"))
    edge, served = simulate(make_pool, SelectionConfig())
    # E[mixed] under Beta(.25, .25) and G = 8 is .42; 3,200 groups: standard error .009
    assert abs(uniform - 0.42) < 0.036
    assert edge > uniform + 0.25
    assert (served > 0).mean() > 0.4, "it looks around"
    assert served.max() <= STEPS / 5 + 1, "the rest period bounds the visits of one prompt"
    effective = served.sum() ** 2 / (served**2).sum()
    assert effective > 0.2 * PROMPTS


@pytest.mark.parametrize("seed", range(3))
def test_a_learned_prior_picks_the_right_ones_of_those_nobody_visited(make_pool, sigmoid, seed):
    # 600 of 4,000 prompts were visited once; the features explain .8 of the variance in logits.
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(4000, 6)).astype(np.float16)
    logit = features @ np.array([2.0, -1.5, 1.0, 0.0, 0.0, 0.5]) + rng.normal(0.0, 1.3, 4000)
    rate, visited = sigmoid(logit), np.arange(4000) < 600
    attempts = 8 * visited
    block = Block(0.0, attempts, rng.binomial(attempts, rate))
    config = SelectionConfig(review_share=0.0, reach_share=0.0)

    def mixed(features_NK):
        pool = make_pool(4000, blocks=(block,), features_NK=features_NK, free_N=~visited)
        index = compose_batch(pool.fit(), pool, config, 200, rng).indices_B
        assert not visited[index].any()
        return (1.0 - rate[index] ** 8 - (1.0 - rate[index]) ** 8).mean()

    # Blind choice takes the mean over the pool, .5 or so; with a standard error of .4 / sqrt(200).
    blind, seeing = mixed(None), mixed(features)
    everywhere = (1.0 - rate**8 - (1.0 - rate) ** 8)[~visited].mean()
    assert abs(blind - everywhere) < 4 * 0.03
    assert seeing > everywhere + 0.2
