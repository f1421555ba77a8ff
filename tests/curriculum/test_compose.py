from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum import (
    STRATEGIES,
    InvalidInputError,
    Reason,
    SelectionConfig,
    compose_batch,
)

NO_RESERVES = SelectionConfig(review_share=0.0, reach_share=0.0)


def compose(pool, config, prompt_count, seed=0):
    return compose_batch(pool.fit(), pool, config, prompt_count, np.random.default_rng(seed))


def pool_of(make_pool, passes, **given):
    passes = np.asarray(passes, dtype=float)
    return make_pool(len(passes), passes_N=passes, fails_N=8.0 - passes, **given)


def random_pool(make_pool, seed, prompt_count):
    rng = np.random.default_rng(seed)
    visited = rng.random(prompt_count) < 0.7
    passes = rng.binomial(8, rng.beta(0.3, 0.3, prompt_count)) * visited
    return make_pool(
        prompt_count,
        passes_N=passes * 1.0,
        fails_N=(8.0 - passes) * visited,
        domain_N=rng.integers(0, 3, prompt_count).astype(np.int32),
        domains=("code", "logic", "math"),
        last_served_step_N=np.where(visited, rng.integers(80, 101, prompt_count), -1),
        free_N=rng.random(prompt_count) < 0.8,
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    prompt_count=st.integers(0, 300),
    wanted=st.integers(0, 200),
    strategy=st.sampled_from(sorted(STRATEGIES)),
    shares=st.sampled_from([{}, {"math": 0.5}, {"code": 0.2, "math": 0.8}, {"absent": 0.4}]),
    reserve=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_a_batch_is_distinct_free_and_as_large_as_the_pool_allows(
    make_pool, seed, prompt_count, wanted, strategy, shares, reserve
):
    pool = random_pool(make_pool, seed, prompt_count)
    config = SelectionConfig(
        strategy=strategy, domain_shares=shares, review_share=reserve, reach_share=reserve
    )
    selection = compose(pool, config, wanted, seed)
    indices = selection.indices_B
    assert len(set(indices.tolist())) == len(indices) == min(wanted, pool.free_N.sum())
    assert pool.free_N[indices].all()
    assert (selection.shortfall == "") == (len(indices) == wanted)
    reach = selection.reasons_B == Reason.REACH
    assert (selection.attempt_counts_B[~reach] == 8).all()
    assert ((selection.attempt_counts_B >= 8) & (selection.attempt_counts_B <= 32)).all()
    for name in ("pass_rate_B", "pass_rate_low_B", "pass_rate_high_B"):
        value = getattr(selection, name)
        assert ((value >= 0.0) & (value <= 1.0)).all()
    assert (selection.pass_rate_low_B <= selection.pass_rate_high_B).all()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("prompt_count", [50, 5000])
def test_the_same_seed_gives_the_same_batch_and_another_gives_another(
    make_pool, strategy, prompt_count
):
    pool = random_pool(make_pool, 1, prompt_count)
    config = SelectionConfig(strategy=strategy)
    one, two, other = (compose(pool, config, 20, seed) for seed in (3, 3, 4))
    for entry in fields(one):
        np.testing.assert_array_equal(getattr(one, entry.name), getattr(two, entry.name))
    assert one.indices_B.tolist() != other.indices_B.tolist()


def test_a_model_holds_whatever_is_leased_meanwhile(make_pool):
    pool = random_pool(make_pool, 2, 2000)
    leased = replace(pool, free_N=np.arange(2000) % 3 == 0)
    model, config = pool.fit(), NO_RESERVES
    cached = compose_batch(model, leased, config, 64, np.random.default_rng(0))
    assert cached.indices_B.tolist() == compose(leased, config, 64).indices_B.tolist()


def test_a_dry_pool_says_why(make_pool):
    pool = make_pool(10, free_N=np.arange(10) < 3)
    assert compose(pool, SelectionConfig(), 8).shortfall == (
        "3 of 8: 7 prompts are leased, the rest of the pool is empty"
    )
    assert compose(make_pool(2), SelectionConfig(), 8).shortfall == (
        "2 of 8: the pool holds no more prompts"
    )
    empty = compose(make_pool(0, domains=()), SelectionConfig(), 8)
    assert (len(empty.indices_B), empty.shortfall) == (0, "0 of 8: the pool holds no more prompts")


def test_the_edge_is_preferred_to_what_is_known_to_be_hopeless_or_solved(make_pool):
    passes = np.tile([0.0, 8.0, 4.0, 0.0, 8.0], 400)
    selection = compose(pool_of(make_pool, passes), NO_RESERVES, 100)
    assert (passes[selection.indices_B] == 4.0).mean() > 0.9
    assert set(selection.reasons_B) == {Reason.EDGE}


def test_a_prompt_without_attempts_is_explored(make_pool):
    known = np.arange(50) >= 20
    pool = make_pool(50, passes_N=4.0 * known, fails_N=4.0 * known)
    selection = compose(pool, NO_RESERVES, 50)
    explored = selection.reasons_B == Reason.EXPLORE
    np.testing.assert_array_equal(explored, selection.indices_B < 20)


@pytest.mark.parametrize("wanted", [16, 100])
def test_review_and_reach_get_their_shares_on_average(make_pool, wanted):
    pool = pool_of(make_pool, np.tile([0.0, 8.0, 4.0], 700))
    config = SelectionConfig(review_share=0.02, reach_share=0.01)
    reasons = np.concatenate([compose(pool, config, wanted, s).reasons_B for s in range(300)])
    for reason, share in ((Reason.REVIEW, 0.02), (Reason.REACH, 0.01)):
        # .02 * 16 = .32 places a batch: sd .47, standard error over 300 batches .027; times 4
        assert abs((reasons == reason).sum() / 300 - share * wanted) < 0.11


def test_review_takes_mastered_prompts_and_reach_beyond_ones_with_more_attempts(make_pool):
    passes = np.tile([0.0, 8.0, 4.0], 100) * 5
    pool = make_pool(300, passes_N=passes, fails_N=40.0 - passes)
    config = SelectionConfig(review_share=0.2, reach_share=0.3, reach_attempt_factor=3)
    selection = compose(pool, config, 50)
    review, reach = (selection.reasons_B == r for r in (Reason.REVIEW, Reason.REACH))
    assert (review.sum(), reach.sum()) == (10, 15)
    assert (passes[selection.indices_B[review]] == 40.0).all()
    assert (passes[selection.indices_B[reach]] == 0.0).all()
    assert set(selection.attempt_counts_B[reach]) == {24}
    assert (selection.pass_rate_B[reach] < 0.05).all()


def test_the_edge_takes_the_places_that_review_and_reach_cannot_fill(make_pool):
    config = SelectionConfig(review_share=0.4, reach_share=0.4)
    selection = compose(pool_of(make_pool, np.full(100, 4.0)), config, 30)
    assert (selection.reasons_B == Reason.EDGE).sum() == 30


def mostly_leased_pool(make_pool, last_served_step, **given):
    """The given prompts, free, in a pool so large that its rest is not cut short."""
    leased = 200
    last = np.concatenate([last_served_step, np.full(leased, -1)])
    free = np.arange(len(last)) < len(last_served_step)
    passes = np.full(len(last), 4.0)
    return pool_of(make_pool, passes, last_served_step_N=last, free_N=free, **given)


def test_a_prompt_rests_until_its_steps_have_passed(make_pool):
    config = replace(NO_RESERVES, rest_steps=5)
    pool = mostly_leased_pool(make_pool, [100, 96, 95, -1, 3])
    assert sorted(compose(pool, config, 3).indices_B.tolist()) == [2, 3, 4]
    early = mostly_leased_pool(make_pool, [0, -1, 0, -1, 0], policy_step=2)
    assert sorted(compose(early, config, 2).indices_B.tolist()) == [1, 3]


def test_the_rest_is_waived_for_the_longest_rested_when_nothing_else_is_left(make_pool):
    pool = mostly_leased_pool(make_pool, [100, 97, 98, 99, 0, 96])
    selection = compose(pool, NO_RESERVES, 4)
    filled = selection.reasons_B == Reason.FILL
    assert sorted(selection.indices_B[filled].tolist()) == [1, 2, 5]
    assert selection.indices_B[~filled].tolist() == [4]
    assert selection.shortfall == ""


def test_of_a_small_pool_at_most_a_quarter_rests(make_pool):
    last = np.repeat([96, 97, 98, 99], 10)
    pool = pool_of(make_pool, np.full(40, 4.0), last_served_step_N=last)
    # 40 prompts, 4 a step: 2 steps of rest make 8 of them rest, 3 would make 12.
    reasons = compose(pool, replace(NO_RESERVES, rest_steps=50), 4).reasons_B
    assert set(reasons) == {Reason.EDGE}
    served = [compose(pool, NO_RESERVES, 4, seed).indices_B for seed in range(20)]
    assert set(last[np.concatenate(served)]) == {96, 97, 98}


def test_without_rest_a_prompt_may_be_served_at_once(make_pool):
    pool = pool_of(make_pool, np.full(4, 4.0), last_served_step_N=np.full(4, 100))
    selection = compose(pool, replace(NO_RESERVES, rest_steps=0), 4)
    assert set(selection.reasons_B) == {Reason.EDGE}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("prompt_count", [300, 9000])
def test_domain_shares_hold_for_every_strategy(make_pool, strategy, prompt_count):
    domain = np.where(np.arange(prompt_count) % 10 == 0, 2, np.arange(prompt_count) % 2)
    pool = pool_of(
        make_pool,
        np.full(prompt_count, 4.0),
        domain_N=domain.astype(np.int32),
        domains=("code", "logic", "math"),
    )
    config = SelectionConfig(strategy=strategy, domain_shares={"math": 0.6, "code": 0.26})
    selection = compose(pool, config, 30)
    # .6 and .26 of 30 are 18 and 7.8, the rest 4.2.
    code, logic, math = np.bincount(domain[selection.indices_B], minlength=3).tolist()
    assert math == 18
    assert (code, logic) in {(7, 5), (8, 4)}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_domain_that_ran_dry_leaves_its_places_to_the_others(make_pool, strategy):
    domain = (np.arange(100) >= 4).astype(np.int32)
    pool = pool_of(make_pool, np.full(100, 4.0), domain_N=domain, domains=("math", "code"))
    config = SelectionConfig(strategy=strategy, domain_shares={"math": 0.5})
    selection = compose(pool, config, 20)
    assert np.bincount(domain[selection.indices_B]).tolist() == [4, 16]
    assert Reason.FILL not in selection.reasons_B


def test_uniform_serves_each_prompt_once_before_any_twice(make_pool):
    config, last = SelectionConfig(strategy="uniform"), np.full(40, -1)
    orders = []
    for step in range(10):
        pool = make_pool(40, last_served_step_N=last, policy_step=step)
        selection = compose(pool, config, 8, seed=step)
        assert set(selection.reasons_B) == {Reason.UNIFORM}
        last = last.copy()
        last[selection.indices_B] = step
        orders.extend(selection.indices_B.tolist())
    assert sorted(orders[:40]) == sorted(orders[40:]) == list(range(40))
    assert orders[:40] != list(range(40))


def test_uniform_does_not_look_at_the_evidence(make_pool):
    # 8 of 16 prompts 2,000 times: the share of each has a standard error of .5/sqrt(2000) = .011
    pool, config = pool_of(make_pool, np.repeat([0.0, 4.0], 8)), SelectionConfig(strategy="uniform")
    model, rng, seen = pool.fit(), np.random.default_rng(0), np.zeros(16)
    for _ in range(2000):
        seen[compose_batch(model, pool, config, 8, rng).indices_B] += 1
    np.testing.assert_allclose(seen / 2000, 0.5, atol=0.05)


def test_thompson_takes_the_candidates_nearest_to_a_half(make_pool):
    passes = np.repeat([0.0, 400.0, 800.0], 100)
    pool = make_pool(300, passes_N=passes, fails_N=800.0 - passes)
    config = replace(NO_RESERVES, strategy="thompson")
    assert (passes[compose(pool, config, 50).indices_B] == 400.0).all()


def test_the_batch_is_shuffled(make_pool):
    pool = pool_of(make_pool, np.full(200, 4.0))
    config = SelectionConfig(strategy="uniform", domain_shares={"math": 1.0})
    indices = compose(pool, config, 200).indices_B.tolist()
    assert indices != sorted(indices)


def test_a_pool_that_contradicts_itself_is_refused(make_pool):
    with pytest.raises(InvalidInputError, match="free_N"):
        make_pool(3, free_N=np.ones(2, dtype=bool))
    with pytest.raises(InvalidInputError, match="domain_N=1: must be below 1 domains"):
        make_pool(2, domain_N=np.array([0, 1], dtype=np.int32))
    with pytest.raises(InvalidInputError, match="prompt_count=-1: must be >= 0"):
        compose(make_pool(2), SelectionConfig(), -1)
