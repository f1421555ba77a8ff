"""The compared methods follow their authors' rules, pay for what they roll out, and see no more."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from tests.bench.arms import (
    PEERS,
    PRODUCT,
    Adarft,
    CheatingError,
    Dapo,
    Dots,
    Edge,
    Greso,
    Mopps,
    Oracle,
    Pcl,
    PrimeRl,
    PrimeRlDecayed,
    Rollouts,
    Sec,
    Speed,
    Task,
    Uniform,
    edge,
)
from tests.bench.arms.base import Groups, Loader
from tests.bench.arms.dots import attend
from tests.bench.arms.edge import Ledger
from tests.bench.fakes import G, groups_of, rng, rollouts_of, task_of
from tests.bench.harness import run
from tests.bench.worlds.learner import Learner, World


def test_an_epoch_visits_every_prompt_once_before_any_twice():
    loader = Loader(10, rng())
    drawn = np.concatenate([loader.next(4) for _ in range(5)])
    assert sorted(drawn[:10]) == list(range(10))
    assert sorted(drawn[10:]) == list(range(10))
    assert len(set(loader.next(99))) == 10, "at most the pool"


def test_uniform_trains_on_one_group_of_each_prompt_it_draws():
    arm, rollouts = Uniform(task_of(12, 6), rng()), rollouts_of(np.zeros(12))
    served = np.concatenate([arm.step(s, rollouts).index_M for s in range(2)])
    assert sorted(served) == list(range(12))
    assert rollouts.charged == 12 * G


def test_dapo_draws_three_batches_a_round_and_throws_the_surplus_away():
    # 60 prompts, 3 B = 30 a round, all mixed with certainty 1 - 2/256 each: one round is enough
    arm, rollouts = Dapo(task_of(60, 10), rng()), rollouts_of(np.full(60, 0.5))
    groups = arm.step(0, rollouts)
    assert len(groups) == 10
    assert groups.mixed_M.all()
    assert rollouts.charged == 30 * G


def test_dapo_gives_up_after_ten_rounds():
    arm, rollouts = Dapo(task_of(60, 10), rng()), rollouts_of(np.zeros(60))
    assert len(arm.step(0, rollouts)) == 0
    assert rollouts.charged == 10 * 30 * G


def test_speed_spends_four_attempts_on_those_that_do_not_qualify_and_24_on_the_others():
    # half the pool never passes; B = 6 trains 6 / 3 = 2 prompts of 24 attempts, 8 screened a round
    arm = Speed(task_of(40, 6), rng())
    rollouts = rollouts_of(np.where(np.arange(40) % 2, 0.5, 0.0))
    groups = arm.step(0, rollouts)
    assert len(groups) == 2
    assert set(groups.attempts_M) == {24}
    # four of the eight qualified in the first round, two of which wait
    assert rollouts.charged == 8 * 4 + 4 * 20
    assert len(arm.step(1, rollouts)) == 2
    assert rollouts.charged == 8 * 4 + 4 * 20, "what is left over is used first"


def test_mopps_updates_only_what_it_trained_on_by_the_published_rule():
    arm = Mopps(task_of(3, 1), rng(), decay=0.5)
    arm.observe(groups_of([1], [6]))  # .5 * 1 + .5 + 6 = 7 and .5 * 1 + .5 + 2 = 3
    assert arm.alpha_N.tolist() == [1, 7, 1]
    assert arm.beta_N.tolist() == [1, 3, 1]
    arm.observe(groups_of([1], [0]))  # .5 * 7 + .5 + 0 = 4 and .5 * 3 + .5 + 8 = 10
    assert (arm.alpha_N[1], arm.beta_N[1]) == (4, 10)


def test_mopps_takes_those_whose_sampled_rate_is_nearest_to_a_half():
    arm = Mopps(task_of(64, 4), rng())
    arm.alpha_N[:], arm.beta_N[:] = 1e6, 1.0
    arm.alpha_N[8:12], arm.beta_N[8:12] = 1e6, 1e6  # all but certainly 1/2; the others 1
    assert sorted(arm.step(0, rollouts_of(np.ones(64))).index_M) == [8, 9, 10, 11]


def test_greso_keeps_with_the_power_of_the_streak_and_never_below_a_hundredth():
    arm = Greso(task_of(4, 1), rng())
    arm.kept_probability = np.array([0.5, 0.2])
    assert arm.observe(groups_of([0, 1, 2], [8, 0, 4])).tolist() == [1, 1, 1]
    arm.observe(groups_of([0, 1], [8, 0]))
    assert arm.keep_probability(np.arange(4)) == pytest.approx([0.25, 0.04, 1, 1])
    for _ in range(3):
        arm.observe(groups_of([1], [0]))
    assert arm.keep_probability(np.array([1])) == pytest.approx(0.01)  # .2**5 is below
    arm.observe(groups_of([0], [0]))
    assert arm.streak_N[0] == -1, "a hard group after easy ones begins a new streak"


def test_greso_moves_its_probabilities_towards_the_target_shares():
    arm = Greso(task_of(4, 1), rng())
    arm.adapt(np.array([0.25 / 3, 0.1]))  # easy at its target of 1/12, hard below 1/6
    assert arm.kept_probability == pytest.approx([0.49, 0.51])
    for _ in range(100):
        arm.adapt(np.array([1.0, 0.0]))
    assert arm.kept_probability == pytest.approx([0.05, 0.95])


def test_greso_first_draws_one_and_a_half_batches():
    arm, rollouts = Greso(task_of(100, 8), rng()), rollouts_of(np.full(100, 0.5))
    assert len(arm.step(0, rollouts)) == 8
    assert rollouts.charged == 12 * G


def test_adarft_pays_128_rollouts_per_prompt_and_moves_its_target():
    arm, rollouts = Adarft(task_of(20, 5), rng()), rollouts_of(np.repeat([1.0, 0.0], 10))
    groups = arm.step(0, rollouts)
    assert rollouts.charged == 20 * 128 + 5 * G
    assert (groups.index_M < 10).all(), "T starts at 0: the easiest"
    assert arm.target == pytest.approx(50 * np.tanh(1.0))
    arm.observe(0.25)
    assert arm.target == pytest.approx(50 * np.tanh(1.0) - 50 * np.tanh(0.5))
    arm.observe(0.0)
    assert arm.target == 0.0, "clipped"


def test_dots_pays_its_references_every_second_step():
    arm, rollouts = Dots(task_of(100, 8), rng()), rollouts_of(np.full(100, 0.5))
    costs = []
    for step in range(4):
        before = rollouts.charged
        groups = arm.step(step, rollouts)
        costs.append(rollouts.charged - before)
        assert len(groups) == 8
    # 4 references at steps 0 and 2; 8 fresh prompts at first, then 4 and 4 from the buffer
    assert costs == [(4 + 8) * G, 4 * G, (4 + 4) * G, 4 * G]


def test_attention_is_a_softmax_over_the_references():
    predicted = attend(np.array([[1.0], [0.0]]), np.array([[np.log(3.0)], [0.0]]), np.array([1, 0]))
    assert predicted == pytest.approx([0.75, 0.5], rel=1e-6)


def test_pcl_takes_the_predicted_values_nearest_to_a_half():
    features = np.repeat([[1.0], [0.0]], 50, axis=0)
    arm = Pcl(task_of(100, 5, features_NK=features), rng())
    arm.observe(groups_of(range(10), [8] * 10))  # what has the feature always passes
    assert arm.value(np.array([20]))[0] > arm.value(np.array([70]))[0] > 0.5
    assert (arm.step(0, rollouts_of(np.full(100, 0.5))).index_M >= 50).all()


def test_sec_pays_a_category_its_mean_absolute_advantage():
    arm = Sec(task_of(4, 2, domain_count=2), rng())
    arm.observe(groups_of([0, 2, 1], [4, 8, 8]))  # domain 0: advantages 1 and 0; domain 1: 0
    assert arm.value_D.tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("passes", "weight"), [(0, 0.2), (2, 0.2), (3, 1.0), (6, 1.0), (7, 0.2), (8, 0.2)]
)
def test_prime_rl_weighs_by_the_last_group(passes, weight):
    arm = PrimeRl(task_of(2, 1), rng())
    arm.observe(groups_of([1], [passes]))
    assert arm.weight_N.tolist() == [1.0, weight]


def test_prime_rl_3262_calls_a_prompt_hopeless_below_a_twentieth():
    arm = PrimeRlDecayed(task_of(1, 1), rng())
    weights = []
    for _ in range(3):  # f = 8, 15.2, 21.7; p = 1 / (2 + f) = .1, .058, .042
        arm.observe(groups_of([0], [0]))
        weights.append(float(arm.weight_N[0]))
    assert weights == [1.0, 1.0, 0.2]


def test_the_oracle_takes_the_largest_true_chance_of_a_mixed_group():
    truth = np.linspace(0, 1, 21)
    arm = Oracle(task_of(21, 3), rng(), true_pass_rate=lambda: truth)
    assert sorted(arm.step(0, rollouts_of(truth)).index_M) == [9, 10, 11]


def test_edge_serves_what_compose_batch_composed(monkeypatch):
    seen = []

    def compose(prior, pool, config, count, generator):
        seen.append((pool.policy_step, config.group_size, count))
        return composed(prior, pool, config, count, generator)

    composed = edge.compose_batch
    monkeypatch.setattr(edge, "compose_batch", compose)
    arm, rollouts = Edge(task_of(50, 5), rng()), rollouts_of(np.full(50, 0.5))
    groups = arm.step(7, rollouts)
    assert seen == [(7, G, 5)]
    assert rollouts.charged == groups.attempts_M.sum()


def test_the_ledger_of_edge_keeps_blocks_as_the_server_does():
    ledger = Ledger(1, window_steps=5)
    for step, passes in ((0, 3), (3, 5), (7, 2), (11, 8)):
        ledger.add(step, groups_of([0], [passes]))
    ledger.turn(12)
    # window 0 is step 0; then 1-5, 6-10 and the open one, from 11 to now
    seen = [(b.mid_step, b.attempts_N[0], b.passes_N[0]) for b in ledger.blocks(12)]
    assert seen == [(0.0, 8, 3), (3.0, 8, 5), (8.0, 8, 2), (11.5, 8, 8)]
    assert ledger.blocks(9)[-1].mid_step == 11.0, "the first step of the open one at least"


def test_the_ledger_of_edge_merges_old_windows():
    ledger = Ledger(2, window_steps=1)
    for step in range(40):
        ledger.add(step, groups_of([0], [step % 9]))
    blocks = ledger.blocks(40)
    assert len(blocks) < 20
    assert sum(int(b.attempts_N[0]) for b in blocks) == 40 * G
    assert sum(b.passes_N[0] for b in blocks) == sum(step % 9 for step in range(40))


@pytest.mark.parametrize("name", [*PEERS, *PRODUCT])
def test_every_arm_trains_on_groups_it_paid_for(name):
    environment = Learner(World("", prompt_count=400, batch_size=12), np.random.default_rng(1))
    drawn = []

    def draw(index_M, attempts_M):
        drawn.append(int(attempts_M.sum()))
        return Learner.draw(environment, index_M, attempts_M)

    environment.draw = draw
    course = run({**PEERS, **PRODUCT}[name], environment, rng(), 6)
    assert course.charged == sum(drawn)
    assert all(0 < step.groups <= 12 for step in course.steps)
    assert 0.0 < course.useful_share() <= 1.0


def test_an_arm_is_told_nothing_of_the_truth():
    told = {field.name for field in fields(Task)}
    assert told == {"domain_N", "domain_count", "features_NK", "batch_size", "group_size"}

    def shown(true_reward, both):
        rollouts = Rollouts(lambda index_M, _: np.array([[4.0, 4.0, true_reward, both]]), 1)
        groups = rollouts.sample(np.array([0]), G)
        return [*vars(groups).values(), *vars(rollouts.extend(groups, G)).values()]

    assert shown(true_reward=0.0, both=0.0) == shown(true_reward=4.0, both=4.0)


def test_cheating_is_refused():
    rollouts = rollouts_of(np.full(5, 0.5))
    groups = rollouts.sample(np.arange(5), G)
    with pytest.raises(CheatingError, match="must be as they were rolled out"):
        rollouts.trained(replace(groups, reward_M=groups.reward_M + 1), 5)
    with pytest.raises(CheatingError, match="must be as they were rolled out"):
        rollouts.trained(groups_of([0], [4]).take(slice(1)), 5)
    with pytest.raises(CheatingError, match="must be at most 4"):
        rollouts.trained(groups, 4)
    with pytest.raises(CheatingError, match="all distinct"):
        rollouts.trained(Groups.join(groups, groups), 10)
    with pytest.raises(CheatingError, match="prompts of the pool"):
        rollouts.sample(np.array([5]), G)
    with pytest.raises(CheatingError, match="attempts"):
        rollouts.sample(np.array([0]), 0)
    assert rollouts.charged == 5 * G


def test_a_verifier_that_only_makes_noise_teaches_nothing():
    # rewards and truth vary independently: n = 4, true 1 1 0 0, rewards 1 0 1 0
    rollouts = Rollouts(lambda index_M, _: np.array([[2.0, 2.0, 2.0, 1.0]]), 1)
    signal_M, mixed_M = rollouts.trained(rollouts.sample(np.array([0]), 4), 1)
    assert mixed_M.all()
    assert signal_M == pytest.approx(0.0)
