from dataclasses import replace

import numpy as np
import pytest

from curriculum import (
    REFERENCE_ATTEMPTS,
    Block,
    InvalidInputError,
    ProbeBudget,
    Reason,
    SelectionConfig,
    select_probes,
    select_references,
    sentinels,
)

CONFIG = SelectionConfig()
NOBODY = np.zeros(0, dtype=np.int64)


def probes(pool, budget, sentinels_S=NOBODY, *, seed=0, config=CONFIG):
    rng = np.random.default_rng(seed)
    return select_probes(pool.fit(), pool, config, budget, sentinels_S, rng)


def by_reason(selection, reason):
    chosen = selection.reasons_B == reason
    return selection.indices_B[chosen], selection.attempt_counts_B[chosen]


def test_prompts_that_may_be_at_the_edge_come_before_those_that_are_sure(make_pool):
    # 40 of each: surely half, surely hopeless, surely mastered; two attempts, one passed; none.
    passes = np.repeat([200.0, 0.0, 400.0, 1.0, 0.0], 40)
    fails = np.repeat([200.0, 400.0, 0.0, 1.0, 0.0], 40)
    pool = make_pool(200, passes_N=passes, fails_N=fails)
    chosen, _ = by_reason(probes(pool, ProbeBudget(200, 128)), Reason.PROBE)
    assert len(chosen) > 15
    assert (chosen >= 160).all()  # a first look tells more than a third one
    chosen, _ = by_reason(probes(pool, ProbeBudget(200, 2000)), Reason.PROBE)
    assert sorted(chosen.tolist()) == list(range(160, 200))


@pytest.mark.parametrize("hint", [(0.05, 0.0), (0.0, 0.05), (0.05, 0.05)])
def test_a_first_look_comes_before_another_one_of_nearly_equal_belief(make_pool, hint):
    # Of next to no weight: it may raise what an attempt would tell or lower it, but by little.
    passes, fails = (np.repeat([0.0, share], 100) for share in hint)
    pool = make_pool(200, passes_N=passes, fails_N=fails)
    chosen, _ = by_reason(probes(pool, ProbeBudget(200, 200)), Reason.PROBE)
    assert len(chosen) > 20
    assert (chosen < 100).all()


def test_an_old_answer_is_asked_again_when_the_policy_has_moved(make_pool):
    passes = np.repeat([48.0, 0.0], 50)

    def at(step):
        old = Block(0.0, np.full(100, 96.0), passes)
        none = Block(float(step), np.zeros(100), np.zeros(100))
        return make_pool(100, blocks=(old, none), policy_step=step)

    soon = probes(at(1), ProbeBudget(100, 400))
    assert by_reason(soon, Reason.PROBE)[0].size == 0
    assert soon.shortfall == "0 of 100: attempts at the others would tell next to nothing"
    late, _ = by_reason(probes(at(5000), ProbeBudget(100, 400)), Reason.PROBE)
    assert (late < 50).sum() > 40  # at the edge, as far as anybody knew


def test_budget_and_places_are_kept(make_pool):
    pool = make_pool(500)
    tight = probes(pool, ProbeBudget(500, 61))
    assert 58 <= tight.attempt_counts_B.sum() <= 61
    few = probes(pool, ProbeBudget(7, 1000))
    assert len(few.indices_B) == 7
    assert not tight.shortfall
    assert not few.shortfall
    assert probes(pool, ProbeBudget(10, 3)).attempt_counts_B.tolist() == [3]
    half = probes(make_pool(5, free_N=np.arange(5) > 0), ProbeBudget(10, 1000))
    assert len(half.indices_B) == 2
    assert half.shortfall == "2 of 10: 1 prompts are leased, half of the pool is left to training"


def test_nobody_is_chosen_twice_and_leased_prompts_never(make_pool):
    free = np.arange(300) % 3 > 0
    fails = np.where(np.arange(300) < 150, 60.0, 0.0)
    pool = make_pool(300, fails_N=fails, free_N=free)
    fixed = np.arange(0, 300, 7)
    for seed in range(20):
        batch = probes(pool, ProbeBudget(200, 2000), fixed, seed=seed)
        assert len(set(batch.indices_B.tolist())) == len(batch.indices_B)
        assert free[batch.indices_B].all()


def test_with_a_fixed_number_everybody_gets_it_settled_or_not(make_pool):
    passes = np.repeat([200.0, 0.0, 400.0, 0.0], 10)
    pool = make_pool(40, passes_N=passes, fails_N=np.repeat([200.0, 400.0, 0.0, 0.0], 10))
    batch = probes(pool, ProbeBudget(40, 40 * 3, attempt_count=3), np.arange(5))
    assert sorted(batch.indices_B.tolist()) == list(range(40))
    assert set(batch.attempt_counts_B) == {3}


def test_sentinels_that_are_due_have_a_tenth_of_the_budget(make_pool):
    pool = make_pool(400, free_N=np.arange(400) != 15)
    seen = set()
    for seed in range(40):
        batch = probes(pool, ProbeBudget(400, 320), np.arange(16), seed=seed)
        indices, attempts = by_reason(batch, Reason.SENTINEL)
        assert len(indices) in (4, 5)  # in groups of 8
        assert set(attempts) == {8}
        seen |= set(indices.tolist())
    assert seen == set(range(15))


def test_long_shots_are_taken_at_prompts_beyond_the_edge_alone(make_pool):
    fails = np.repeat([0.0, 60.0], 200)
    pool = make_pool(400, fails_N=fails)
    counts = []
    for seed in range(200):
        indices, attempts = by_reason(probes(pool, ProbeBudget(400, 256), seed=seed), 10)
        counts.append(len(indices))
        assert (indices >= 200).all()
        assert ((attempts > 8) & (attempts <= 32)).all()
    # 256 / 20 / 32 = .4 of one on average; its standard error is sqrt(.24 / 200) = .035
    assert np.mean(counts) == pytest.approx(0.4, abs=0.12)


def test_sentinels_are_some_of_every_domain_and_stay_when_the_pool_grows():
    domain_N = np.repeat([0, 1, 2], [5000, 10, 300])
    fixed = sentinels(domain_N, 4, seed=3)
    assert np.bincount(domain_N[fixed], minlength=4).tolist() == [16, 10, 16, 0]
    assert len(set(fixed.tolist())) == len(fixed)
    assert np.array_equal(fixed, sentinels(domain_N, 4, seed=3))
    assert not np.array_equal(fixed, sentinels(domain_N, 4, seed=4))
    grown = sentinels(np.append(domain_N, np.full(500, 0)), 4, seed=3)
    # One of 11 is new, so that 16 / 11 are expected to go; 7 or more with a chance below 1 in 1000.
    assert len(np.setdiff1d(fixed, grown)) < 7


def test_sentinels_do_not_follow_the_order_of_the_pool():
    fixed = sentinels(np.zeros(100_000, dtype=np.int32), 1, seed=0)
    # The mean of 16 places has a standard deviation of 1 / sqrt(12 * 16) of the pool's length.
    assert abs(fixed.mean() / 100_000 - 0.5) < 4 / np.sqrt(192)


def test_references_are_sentinels_first_and_then_what_was_attempted_most(make_pool):
    passes = np.zeros(50)
    passes[20:30] = np.arange(1, 11)
    pool = make_pool(50, passes_N=passes, fails_N=passes)
    known = np.zeros(50, dtype=np.int64)
    known[:2], known[29] = 60, REFERENCE_ATTEMPTS
    batch = select_references(
        pool.fit(), pool, ProbeBudget(50, 64 * 5), known, np.array([0, 1, 2, 3])
    )
    assert batch.indices_B.tolist() == [0, 1, 2, 3, 28, 27]
    assert batch.attempt_counts_B.tolist() == [4, 4, 64, 64, 64, 64]
    assert set(batch.reasons_B) == {Reason.REFERENCE}
    rest = select_references(
        pool.fit(), pool, ProbeBudget(50, 10_000), np.full(50, 64), np.array([0, 1])
    )
    assert len(rest.indices_B) == 0
    assert rest.shortfall == (
        "0 of 50: the others that are sampled have 64 attempts of the reference policy"
    )


def test_a_large_pool_is_sampled_and_gives_as_good_a_batch(make_pool):
    rng = np.random.default_rng(0)
    size = 300_000
    passes = np.where(rng.random(size) < 0.5, 0.0, 200.0)  # settled, but for one in a hundred
    passes[::100], fails = 0.0, 200.0 - passes
    fails[::100] = 0.0
    pool = make_pool(size, passes_N=passes, fails_N=fails)
    chosen, _ = by_reason(probes(pool, ProbeBudget(200, 800)), Reason.PROBE)
    assert len(chosen) > 150
    assert (chosen % 100 == 0).all()


@pytest.mark.parametrize("field", ["prompt_count", "rollout_budget", "attempt_count"])
def test_a_budget_out_of_range_is_refused(field):
    with pytest.raises(InvalidInputError, match=f"{field}=-1"):
        replace(ProbeBudget(1, 1, 1), **{field: -1})
