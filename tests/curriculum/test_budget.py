"""Attempts of a batch: groups, long shots, and a budget for all."""

import numpy as np
import pytest

from curriculum import InvalidInputError, Reason, SelectionConfig, compose_batch

PLAIN = SelectionConfig(review_share=0.0, reach_share=0.0, rest_steps=0)


def tiled(make_pool, tile, attempts, prompts=300, **given):
    passes = np.tile(np.array(tile, dtype=float), prompts // len(tile))
    return make_pool(prompts, passes_N=passes, fails_N=attempts - passes, **given)


def compose(pool, config, count, budget=None, seed=0):
    rng = np.random.default_rng(seed)
    return compose_batch(pool.fit(), pool, config, count, rng, rollout_budget=budget)


@pytest.mark.parametrize("budget", [80, 81, 400, 1279, 1280])
def test_a_budget_is_spent_exactly(make_pool, budget):
    # 40 prompts take 2 to 32 attempts each: 80 to 1,280 are possible.
    batch = compose(tiled(make_pool, [1, 4, 6], 8.0), PLAIN, 40, budget)
    assert batch.attempt_counts_B.sum() == budget
    assert batch.attempt_counts_B.min() >= 2
    assert batch.attempt_counts_B.max() <= 32
    assert (len(batch.indices_B), batch.shortfall) == (40, "")


def test_what_nobody_can_take_of_a_budget_is_left(make_pool):
    batch = compose(tiled(make_pool, [4], 8.0), PLAIN, 10, 10 * 32 + 7)
    assert batch.attempt_counts_B.tolist() == [32] * 10


def test_a_budget_too_small_for_all_says_whom_it_left_out(make_pool):
    batch = compose(tiled(make_pool, [1, 4, 6], 8.0), PLAIN, 40, 21)
    assert batch.attempt_counts_B.sum() in (20, 21)
    assert len(batch.indices_B) == 10
    assert batch.shortfall == "10 of 40: rollout_budget=21 is spent"
    for name in ("reasons_B", "pass_rate_B", "pass_rate_low_B", "pass_rate_high_B"):
        assert len(getattr(batch, name)) == 10


def test_a_budget_gives_more_attempts_to_what_is_rarely_mixed(make_pool):
    # At a pass rate of 1/2 the ninth attempt adds 2**-8 to the chance of a mixed group, at 1/10
    # some .9**8 * .1 = .04.
    pool = tiled(make_pool, [4, 36, 20], 40.0)
    batch = compose(pool, SelectionConfig(sharpness=0.0, **_off()), 60, 480)
    given = {kind: batch.attempt_counts_B[batch.indices_B % 3 == kind].mean() for kind in range(3)}
    assert given[2] < 7.0 < 8.5 < min(given[0], given[1])
    assert given[0] == pytest.approx(given[1], rel=0.1)


def _off():
    return {"review_share": 0.0, "reach_share": 0.0, "rest_steps": 0}


def test_no_budget_at_all_serves_nobody_and_less_is_refused(make_pool):
    pool = tiled(make_pool, [4], 8.0)
    batch = compose(pool, PLAIN, 5, 0)
    assert (len(batch.indices_B), batch.shortfall) == (0, "0 of 5: rollout_budget=0 is spent")
    with pytest.raises(InvalidInputError, match="rollout_budget=-3"):
        compose(pool, PLAIN, 5, -3)


def hopeless_pool(make_pool):
    return tiled(make_pool, [0, 20], 40.0, prompts=400)


def test_a_long_shot_gets_the_attempts_that_show_a_pass_with_the_chance_wanted(make_pool):
    pool = hopeless_pool(make_pool)
    config = SelectionConfig(
        review_share=0.0, reach_share=0.5, reach_chance=0.2, reach_attempt_factor=8
    )
    batch = compose(pool, config, 20)
    reach = batch.reasons_B == Reason.REACH
    belief = pool.beliefs(pool.fit(), batch.indices_B[reach])
    for alpha, beta, count in zip(
        belief.alpha_N, belief.beta_N, batch.attempt_counts_B[reach], strict=True
    ):
        # P(no pass among n) = prod (b + j) / (a + b + j)
        none = np.cumprod([(beta + j) / (alpha + beta + j) for j in range(64)])
        assert count == np.clip(np.argmax(1.0 - none >= 0.2) + 1 if none[-1] <= 0.8 else 64, 8, 64)
    assert reach.sum() == 10
    assert (batch.attempt_counts_B[~reach] == 8).all()


def test_long_shots_have_their_share_of_a_budget_first(make_pool):
    config = SelectionConfig(review_share=0.0, reach_share=0.25)
    batch = compose(hopeless_pool(make_pool), config, 20, 512)
    reach = batch.reasons_B == Reason.REACH
    assert batch.attempt_counts_B.sum() == 512
    # Five long shots of 32 are 160 attempts, of which a quarter of 512 = 128 pays four.
    assert sorted(batch.attempt_counts_B[reach].tolist())[-4:] == [32] * 4


def test_tokens_count_in_a_budget_too(make_pool):
    # In a hurry for mixed groups per token, a prompt of four times the tokens gets fewer attempts.
    tokens = np.where(np.arange(300) % 2 == 0, 100, 400) * 40
    pool = tiled(make_pool, [12], 40.0, tokens_N=tokens)
    config = SelectionConfig(token_weight=1.0, sharpness=0.0, **_off())
    batch = compose(pool, config, 60, 480)
    cheap = batch.indices_B % 2 == 0
    assert batch.attempt_counts_B.sum() == 480
    assert batch.attempt_counts_B[cheap].mean() > batch.attempt_counts_B[~cheap].mean() + 2.0


@pytest.mark.parametrize("factor", [1, 8, 64])
def test_a_budget_gives_nobody_more_than_four_groups(make_pool, factor):
    # Some .002 of the attempts on the hopeless pass: to see one takes hundreds.
    pool = tiled(make_pool, [0, 0, 20], 40.0)
    config = SelectionConfig(
        group_size=4, reach_share=0.5, reach_attempt_factor=factor, review_share=0.0, rest_steps=0
    )
    batch = compose(pool, config, 40, 400)
    assert (batch.reasons_B == Reason.REACH).any()
    assert batch.attempt_counts_B.max() <= 16
    assert batch.attempt_counts_B.sum() == 400
