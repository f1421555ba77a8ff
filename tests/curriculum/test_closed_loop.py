"""A static world of bimodal pass rates: does selection find its edge, and keep looking around?"""

import numpy as np

from curriculum import SelectionConfig, compose_batch

PROMPTS, BATCH, STEPS, WARM_UP = 1500, 32, 160, 60


def simulate(make_pool, config):
    """Mixed share of the groups after the warm-up, and how often each prompt was served."""
    rng = np.random.default_rng(7)
    pass_rate = rng.beta(0.25, 0.25, PROMPTS)
    successes, failures, served = (np.zeros(PROMPTS) for _ in range(3))
    attempts, last = np.zeros(PROMPTS, dtype=np.int64), np.full(PROMPTS, -1)
    mixed = []
    for step in range(STEPS):
        pool = make_pool(
            PROMPTS,
            successes_N=successes,
            failures_N=failures,
            attempts_N=attempts,
            last_served_step_N=last,
            policy_step=step,
        )
        batch = compose_batch(pool.fit_prior(), pool, config, BATCH, rng)
        index, count = batch.indices_B, batch.attempt_counts_B
        passes = rng.binomial(count, pass_rate[index])
        mixed.append(((passes > 0) & (passes < count)).mean())
        successes, failures = successes * config.discount, failures * config.discount
        successes[index] += passes
        failures[index] += count - passes
        attempts[index] += count
        served[index] += 1
        last[index] = step
    return np.mean(mixed[WARM_UP:]), served


def test_edge_finds_mixed_groups_and_does_not_serve_the_same_few_for_ever(make_pool):
    uniform, _ = simulate(make_pool, SelectionConfig(strategy="uniform"))
    edge, served = simulate(make_pool, SelectionConfig())
    # E[mixed] under Beta(.25, .25) and G = 8 is .42; 3,200 groups: standard error .009
    assert abs(uniform - 0.42) < 0.036
    assert edge > uniform + 0.15
    assert (served > 0).mean() > 0.9, "nearly all prompts are looked at"
    assert served.max() <= STEPS / 5 + 1, "the rest period bounds the visits of one prompt"
    effective = served.sum() ** 2 / (served**2).sum()
    assert effective > 0.35 * PROMPTS
