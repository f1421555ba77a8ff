"""The learner reads, writes and learns as it says, and the comparison runs to its end."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.bench.arms import CheatingError, Rollouts
from tests.bench.learn import __main__ as main
from tests.bench.learn.classroom import Classroom, Spent
from tests.bench.learn.domains import (
    CHARACTERS,
    FAMILIES,
    MAX_ANSWER,
    MAX_QUESTION,
    distinct,
    is_right,
    level_count,
    slipped,
)
from tests.bench.learn.policy import Attempts, Policy, Training, rewards
from tests.bench.learn.report import at_equal_tokens, difference, halved_at
from tests.bench.learn.size import SIZES, Size
from tests.bench.learn.transformer import (
    END,
    PAD,
    Shape,
    decode,
    encode,
    log_probability,
    padded_left,
    sample,
)
from tests.bench.learn.trial import Measurement, Outcome, prepare

CPU = torch.device("cpu")
TINY = Size(
    shape=Shape(width=32, layers=2, heads=2),
    training=Training(warm_steps=5, warm_batch=16),
    warm_count=10,
    pool_count=120,
    held_out_count=60,
    batch_size=8,
    group_size=4,
    rollout_budget=400,
    measurements=2,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def questions(count=2):
    return [q for f in FAMILIES for level in range(3) for q in distinct(f, level, count, 5)]


def tiny_policy(**changes):
    return Policy(TINY.shape, replace(TINY.training, **changes), CPU, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_level_can_be_asked_and_its_answer_is_right(family):
    for level in range(level_count(family)):
        asked = distinct(family, level, 20, 3)
        assert len({question.text for question in asked}) == len(asked) == 20
        for question in asked:
            assert set(question.text + question.answer) <= set(CHARACTERS)
            assert len(question.text) <= MAX_QUESTION
            assert len(question.answer) <= MAX_ANSWER
            assert is_right(question, question.answer)
            assert not is_right(question, question.answer + "a")


def test_a_palindrome_other_than_the_one_expected_is_right():
    question = next(
        q for q in distinct("palindrome_generation", 1, 50, 3) if len(set(q.answer)) == 2
    )
    other = question.answer[1] + question.answer[0] * 2 + question.answer[1]
    assert other != question.answer
    assert is_right(question, other)


def test_a_slip_changes_characters_as_often_as_it_says_and_nothing_else():
    rng, asked = random.Random(2), distinct("spell_backward", 5, 400, 3)
    pairs = [(q.answer, slipped(q, 0.4, rng).answer) for q in asked]
    letters = [pair for answers in pairs for pair in zip(*answers, strict=True)]
    changed = np.mean([right != written for right, written in letters])
    # of 3200 characters; a random letter is the right one once in 26. Standard error .0086
    assert changed == pytest.approx(0.4 * 25 / 26, abs=0.03)
    assert slipped(asked[0], 0.0, rng) == asked[0]


def test_only_a_finished_text_is_decoded():
    assert decode([*encode("3+4"), END, PAD]) == "3+4"
    assert decode(encode("3+4")) is None
    assert decode([*encode("3"), PAD, END]) is None


def test_answers_written_step_by_step_have_the_probability_of_those_read_at_once():
    policy = tiny_policy()
    codes_BP = padded_left([q.text for q in questions(1)], CPU)
    drawn = sample(policy.model, codes_BP, 3, 6, torch.Generator().manual_seed(0))
    memory, last = policy.model.read(codes_BP), codes_BP[:, -1, None, None].expand(-1, 3, 1)
    stepwise = []
    with torch.no_grad():
        for place in range(drawn.shape[2]):
            log_p = policy.model.write(last, memory).log_softmax(-1)
            last = drawn[..., place : place + 1]
            chosen = log_p[:, :, 0].gather(-1, last)
            stepwise.append(chosen.masked_fill(last == PAD, 0.0))
        at_once = log_probability(policy.model, codes_BP, drawn)
    torch.testing.assert_close(torch.cat(stepwise, -1), at_once, atol=1e-5, rtol=1e-4)


def test_padding_on_the_left_changes_nothing():
    policy, text = tiny_policy(), "T" + "cab" + "="
    answer = torch.tensor([[[*encode("abc"), END]]])
    alone = padded_left([text], CPU)
    beside = padded_left([text, "N<9,6,8,3,4="], CPU)[:1]
    assert beside.shape[1] > alone.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(
            log_probability(policy.model, alone, answer),
            log_probability(policy.model, beside, answer),
        )


def test_samples_follow_the_model():
    policy = tiny_policy()
    codes_BP = padded_left(["Tab="], CPU)
    count = 20_000
    drawn = sample(policy.model, codes_BP, count, 1, torch.Generator().manual_seed(0))
    first = codes_BP[:, -1, None, None]
    with torch.no_grad():
        logits = policy.model.write(first, policy.model.read(codes_BP))
    expected = logits[0, 0, 0].softmax(-1).numpy()
    share = np.bincount(drawn.flatten().numpy(), minlength=len(expected)) / count
    # five standard errors of a share
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected / count) + 1e-9)


def test_a_step_makes_what_passed_likelier_and_a_group_without_spread_moves_nothing():
    policy, question = tiny_policy(rate=1e-3), questions(1)[0]
    right, wrong = [*encode(question.answer), END], [*encode("z" * len(question.answer)), END]
    codes_GA = torch.tensor([right, wrong])
    group = Attempts(codes_GA, rewards(question, codes_GA))
    assert group.reward_G.tolist() == [1.0, 0.0]

    def log_p():
        with torch.no_grad():
            codes_BP = padded_left([question.text], CPU)
            return log_probability(policy.model, codes_BP, codes_GA[None]).sum(-1)[0]

    before = log_p()
    policy.improve([question], [Attempts(codes_GA, np.zeros(2))])
    assert torch.equal(log_p(), before)
    policy.improve([question], [group])
    after = log_p()
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_groups_of_different_sizes_come_back_in_the_order_asked_for():
    policy, asked = tiny_policy(rows=16), questions(1)
    attempts_M = np.arange(len(asked)) % 3 + 1
    groups = policy.attempt(asked, attempts_M)
    assert [len(group.reward_G) for group in groups] == attempts_M.tolist()
    policy.improve(asked, groups)


def test_a_classroom_charges_every_rollout_and_refuses_groups_it_has_forgotten():
    pool = questions()
    room = Classroom(tiny_policy(), pool, TINY)
    rollouts = Rollouts(room.draw, len(pool))
    first = rollouts.sample(np.array([3, 1]), 4)
    second = rollouts.sample(np.array([1, 2]), np.array([2, 5]))
    room.train(second, np.zeros(2))
    assert room.spent == Spent(15, room.spent.tokens, 1)
    assert room.spent.tokens > 0
    assert room.trained_N[[1, 2, 3]].tolist() == [1, 1, 0]
    with pytest.raises(CheatingError, match="present step"):
        room.train(first, np.zeros(2))


def test_groups_that_were_extended_are_refused():
    pool = questions()
    room = Classroom(tiny_policy(), pool, TINY)
    rollouts = Rollouts(room.draw, len(pool))
    rollouts.extend(rollouts.sample(np.array([3, 1]), 4), 4)
    groups = rollouts.sample(np.array([5]), 4)  # its ticket is 2, its place 4
    with pytest.raises(CheatingError, match="never extended"):
        room.train(groups, np.zeros(1))


def test_a_step_beyond_the_budget_is_not_trained_on():
    pool = questions()
    policy = tiny_policy()
    room = Classroom(policy, pool, replace(TINY, rollout_budget=10))
    rollouts = Rollouts(room.draw, len(pool))
    room.train(rollouts.sample(np.array([0, 1]), 4), np.zeros(2))
    spent, weights = room.spent, policy.weights
    room.train(rollouts.sample(np.array([0]), 4), np.zeros(1))
    assert room.is_over
    assert room.spent == spent
    assert all(np.array_equal(weights[name], w) for name, w in policy.weights.items())


def test_arms_of_a_seed_share_all_and_no_held_out_prompt_is_in_the_pool():
    once, again = prepare(3, TINY, "cpu"), prepare(3, TINY, "cpu")
    assert {q.text for q in once.pool}.isdisjoint(q.text for q in once.held_out)
    assert once.pool == again.pool
    assert all(np.array_equal(w, again.weights[name]) for name, w in once.weights.items())
    other = prepare(4, TINY, "cpu")
    assert {q.text for q in once.pool} != {q.text for q in other.pool}


def outcome(*points, mixed=0.1):
    curve = tuple(Measurement(Spent(8 * t, t, t), p, 0.5, mixed, 0.2) for t, p in points)
    return Outcome(curve, None, np.zeros(0), 1.0)


def test_arms_are_compared_seed_by_seed_and_at_equal_tokens():
    results = {
        "edge": [outcome((0, 0.1), (100, 0.3)), outcome((0, 0.2), (100, 0.5))],
        "uniform": [outcome((0, 0.1), (200, 0.2)), outcome((0, 0.2), (200, 0.3))],
    }
    assert difference(results, ("edge", "uniform"), "pass_at_1").mean == pytest.approx(0.15)
    # half way uniform has .15 and .25
    assert at_equal_tokens(results, "edge", "uniform").mean == pytest.approx(0.2)


def test_a_pool_is_used_up_when_half_as_much_of_it_is_mixed():
    start, middle, end = (
        outcome((t, 0.1), mixed=m).curve[0] for t, m in ((0, 0.3), (1, 0.16), (2, 0.1))
    )
    assert halved_at(Outcome((start, middle, end), None, np.zeros(0), 1.0)) == 16
    assert halved_at(Outcome((start, middle), None, np.zeros(0), 1.0)) is None


def test_learning_is_compared_end_to_end(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(SIZES, "small", TINY)
    options = f"--seeds 2 --processes 1 --device cpu --out {tmp_path} --arms uniform dapo edge"
    monkeypatch.setattr(sys, "argv", ["learn", *options.split()])
    main.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for arm in ("uniform", "dapo", "edge"):
        assert result[arm]["rollouts"]["mean"] <= 400
        for seed, curve in enumerate(result[arm]["curves"]):
            assert curve[0] == result["uniform"]["curves"][seed][0]  # the same warm start
        has_trained = result[arm]["steps"]["mean"] > 0.0  # dapo may find too few mixed groups
        shares = result[arm]["trained_by_family"].values()
        assert sum(shares) == pytest.approx(float(has_trained), abs=1e-3)
    assert result["uniform"]["steps"]["mean"] == 400 // (8 * 4)
    for pair in ("edge_minus_uniform", "edge_minus_dapo"):
        assert set(result[pair]["pass_at_16"]) == {"mean", "low", "high"}
    assert (tmp_path / "learn.png").stat().st_size > 0
