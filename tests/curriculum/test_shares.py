"""Which domain, and which prompt of a domain: learned shares, caps, wear and tokens."""

from dataclasses import replace

import numpy as np
import pytest

from curriculum import Block, Model, Prior, SelectionConfig, compose_batch
from curriculum.dynamics import Dynamics
from curriculum.shares import domain_shares, learning_progress
from curriculum.worth import Worth

DOMAINS = ("code", "logic", "math")
NO_RESERVES = {"review_share": 0.0, "reach_share": 0.0, "rest_steps": 0}


def drifting(*drift):
    prior = Prior(np.zeros(len(drift)), np.zeros(0), np.full(len(drift), 2.0))
    return Model(prior, Dynamics(1e-3, np.array([drift]), 0.0))


def test_progress_is_motion_either_way_and_a_floor():
    # |.02|, |-.04| and 0 have the mean .02, a tenth of which is left to each.
    np.testing.assert_allclose(
        learning_progress(drifting(0.02, -0.04, 0.0)), [0.022, 0.042, 0.002], rtol=1e-12
    )
    progress = learning_progress(drifting(0.0, 0.0))
    assert progress[0] == progress[1] > 0.0


def test_learned_shares_divide_what_fixed_ones_leave():
    config = SelectionConfig(domain_shares={"math": 0.2}, learned_shares=0.5)
    shares = domain_shares(config, DOMAINS, drifting(0.03, 0.01, 0.5))
    # The mean over all three domains is .18; .03 + .018 and .01 + .018 of .8 * .5.
    assert shares["math"] == 0.2
    assert shares["code"] == pytest.approx(0.4 * 0.048 / 0.076)
    assert shares["logic"] == pytest.approx(0.4 * 0.028 / 0.076)


def test_shares_are_not_learned_for_one_domain_or_none_or_unasked():
    fixed = {"math": 0.2, "code": 0.3}
    config = SelectionConfig(domain_shares=fixed, learned_shares=1.0)
    assert domain_shares(config, DOMAINS, drifting(0.1, 0.1, 0.1)) == fixed
    unasked = SelectionConfig(learned_shares=0.0)
    assert domain_shares(unasked, DOMAINS, drifting(0.1, 0.1, 0.1)) == {}
    assert domain_shares(SelectionConfig(learned_shares=1.0), (), drifting()) == {}


def moving_pool(make_pool, moving):
    """Three domains of equal difficulty, of which one rises by .02 logits a step."""
    rng, domain = np.random.default_rng(3), np.arange(900) % 3
    logit, blocks = rng.normal(-0.5, 1.5, 900), []
    for block in range(16):
        logit = logit + (domain == moving) * 0.02 * 5.0
        attempts = 8 * (rng.random(900) < 0.4)
        blocks.append(
            Block(5.0 * block, attempts, rng.binomial(attempts, 1.0 / (1.0 + np.exp(-logit))))
        )
    given = {"domain_N": domain.astype(np.int32), "domains": DOMAINS, "policy_step": 77}
    return make_pool(900, blocks=tuple(blocks), **given), domain


@pytest.mark.parametrize("moving", [0, 1, 2])
def test_learned_shares_follow_the_domain_that_moves(make_pool, moving):
    pool, domain = moving_pool(make_pool, moving)
    model, rng = pool.fit(), np.random.default_rng(0)
    config = SelectionConfig(learned_shares=1.0, sharpness=1.0, **NO_RESERVES)
    places = np.bincount(domain[compose_batch(model, pool, config, 60, rng).indices_B])
    expected = 60 * domain_shares(config, DOMAINS, model)[DOMAINS[moving]]
    assert abs(places[moving] - expected) <= 1.0
    assert places[moving] > 30 > 15 > places.min() > 0


def test_uniform_follows_no_learning_progress(make_pool):
    pool, domain = moving_pool(make_pool, 1)
    config = SelectionConfig(strategy="uniform", learned_shares=1.0)
    batch = compose_batch(pool.fit(), pool, config, 900, np.random.default_rng(0))
    half = compose_batch(pool.fit(), pool, config, 450, np.random.default_rng(0))
    assert len(batch.indices_B) == 900
    # 150 on average of 300; sd of a hypergeometric draw: 450 of 900, sqrt(150 * 1/2 * 2/3) = 7
    assert abs(np.bincount(domain[half.indices_B])[1] - 150) < 35


def test_half_learned_shares_leave_the_other_half_to_the_draw(make_pool):
    pool, domain = moving_pool(make_pool, 1)
    model = pool.fit()
    config = SelectionConfig(learned_shares=0.5, **NO_RESERVES)
    batch = compose_batch(model, pool, config, 60, np.random.default_rng(0))
    shares = domain_shares(config, DOMAINS, model)
    places = np.bincount(domain[batch.indices_B], minlength=3)
    assert len(batch.indices_B) == 60
    assert sum(shares.values()) == pytest.approx(0.5)
    assert all(places[i] >= int(60 * shares[name]) for i, name in enumerate(DOMAINS))


def serve(make_pool, config, *, prompts, batch, steps):
    """Serves from a static pool for some steps; attempts by step, (steps, prompts)."""
    rng, window = np.random.default_rng(11), 5
    rate = np.concatenate([np.full(prompts // 10, 0.5), np.full(prompts - prompts // 10, 0.02)])
    counts, passes = np.zeros((2, steps, prompts), dtype=np.int64)
    last, model = np.full(prompts, -1), None
    for step in range(steps):
        starts = range(0, step + 1, window)
        blocks = tuple(
            Block(
                (start + min(start + window - 1, step)) / 2,
                counts[slice(start, start + window)].sum(axis=0),
                passes[slice(start, start + window)].sum(axis=0),
            )
            for start in starts
        )
        pool = make_pool(prompts, blocks=blocks, last_served_step_N=last.copy(), policy_step=step)
        if model is None or step % window == 0 or step < window:
            model = pool.fit()
        chosen = compose_batch(model, pool, config, batch, rng)
        counts[step, chosen.indices_B] = chosen.attempt_counts_B
        passes[step, chosen.indices_B] = rng.binomial(
            chosen.attempt_counts_B, rate[chosen.indices_B]
        )
        last[chosen.indices_B] = step
    return counts


def test_a_cap_holds_over_two_hundred_steps(make_pool):
    # 20 prompts at the edge among 200, 8 a step: without a cap they are served all the time. In
    # 50 steps 400 groups are made; a cap of .01 lets a prompt begin its fifth group, not a sixth.
    free, capped = (
        serve(
            make_pool,
            SelectionConfig(max_share=share, max_share_steps=50, wear_visits=0.0, **NO_RESERVES),
            prompts=200,
            batch=8,
            steps=200,
        )
        for share in (1.0, 0.01)
    )
    worst = {}
    for name, counts in (("free", free), ("capped", capped)):
        ends = range(60, 200, 5)  # where windows end, so that blocks and steps agree
        spans = np.array(
            [counts[end - 45 : end].sum(axis=0) / counts[end - 45 : end].sum() for end in ends]
        )
        worst[name] = spans.max()
    assert worst["free"] > 0.03
    # The share is judged on the blocks of 45 to 50 steps before the serving; one group more may
    # follow: .01 of 400 groups and one, of at least 360.
    assert worst["capped"] <= (0.01 * 400 + 1) / 360 + 1e-9
    assert (capped.sum(axis=1) == 64).all(), "every batch was full"


def test_a_cap_is_relaxed_when_nothing_else_is_left(make_pool):
    # 10 prompts, 8 a step: everybody has had a tenth, and the cap is a fiftieth.
    config = SelectionConfig(max_share=0.02, **NO_RESERVES)
    counts = serve(make_pool, config, prompts=10, batch=8, steps=12)
    assert ((counts > 0).sum(axis=1) == 8).all()


def test_wear_spreads_the_visits(make_pool):
    effective = {}
    for wear in (0.0, 2.0):
        config = SelectionConfig(wear_visits=wear, **NO_RESERVES)
        visits = (serve(make_pool, config, prompts=300, batch=6, steps=120) > 0)[30:].sum(axis=0)
        effective[wear] = visits.sum() ** 2 / np.square(visits, dtype=np.float64).sum()
    assert effective[2.0] > 1.2 * effective[0.0]


def test_prompts_wear_the_sooner_the_faster_the_policy_moves(make_pool):
    # All passed in half of their attempts, in one visit or in six. With a sharpness of 2 the latter
    # are weighed by ((1 + 1/8) / (1 + 6/8))**2 = .41, at six times the pace by (14/8 / (44/8))**2.
    often = np.arange(1000) < 500
    attempts = 8.0 + 40.0 * often
    pool = make_pool(1000, passes_N=attempts / 2, fails_N=attempts / 2)
    config = SelectionConfig(wear_visits=8.0, sharpness=2.0, optimism=0.0, **NO_RESERVES)
    model = pool.fit()
    served = {}
    for pace in (1.0, 6.0):
        dynamics = replace(model.dynamics, diffusion=model.dynamics.diffusion * pace**2)
        assert dynamics.pace == pytest.approx(pace * model.dynamics.pace)
        faster = replace(model, dynamics=dynamics)
        batch = compose_batch(faster, pool, config, 200, np.random.default_rng(0))
        served[pace] = np.count_nonzero(often[batch.indices_B])
    # 58 and 18 of 200 are expected, with standard errors of 6 and 4.
    assert served[6.0] < 38 < served[1.0]


def costly_pool(make_pool, prompts=1000):
    """Every other prompt takes four times the tokens; nothing else differs."""
    attempts = np.full(prompts, 16)
    tokens = attempts * np.where(np.arange(prompts) % 2 == 0, 100, 400)
    return make_pool(prompts, passes_N=attempts / 2, fails_N=attempts / 2, tokens_N=tokens)


@pytest.mark.parametrize(("weight", "least", "most"), [(0.0, 0.35, 0.65), (1.0, 0.99, 1.0)])
def test_tokens_count_against_a_prompt_as_far_as_they_are_weighed(make_pool, weight, least, most):
    # At weight 0 the share of cheap ones in 200 has a standard error of .035.
    pool, config = costly_pool(make_pool), SelectionConfig(token_weight=weight, **NO_RESERVES)
    batch = compose_batch(pool.fit(), pool, config, 200, np.random.default_rng(0))
    assert least <= (batch.indices_B % 2 == 0).mean() <= most


def test_the_cost_of_a_prompt_is_its_own_mean_as_far_as_it_is_known(make_pool):
    pool = costly_pool(make_pool, 2)
    # The mean is 250 a attempt; 16 own attempts and 8 of the mean: (16 * .4 + 8) / 24 and so on.
    cost = pool.look(np.arange(2), pool.fit()).relative_cost()
    np.testing.assert_allclose(cost, [(16 * 0.4 + 8) / 24, (16 * 1.6 + 8) / 24], rtol=1e-12)
    silent = make_pool(2, tokens_N=np.zeros(2, dtype=np.int64))
    assert silent.look(np.arange(2), silent.fit()).relative_cost().tolist() == [1.0, 1.0]


def test_many_small_domains_cost_no_choice_each(make_pool, monkeypatch):
    weighed = []
    over = Worth.over

    def counted(*arguments):
        weighed.append(arguments)
        return over(*arguments)

    monkeypatch.setattr(Worth, "over", counted)
    domains = tuple(f"rank {number}" for number in range(256))
    pool = make_pool(512, domain_N=np.arange(512) % 256, domains=domains)
    batch = compose_batch(pool.fit(), pool, SelectionConfig(), 128, np.random.default_rng(0))
    assert len(batch.indices_B) == 128
    assert len(weighed) < 8
