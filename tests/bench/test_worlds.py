"""The simulated learners learn as their description says, and the race runs to its end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.bench.arms import PEERS, PROBED, PRODUCT, Probed
from tests.bench.fakes import G, groups_of
from tests.bench.harness import run
from tests.bench.worlds import __main__ as worlds
from tests.bench.worlds.catalogue import WORLDS
from tests.bench.worlds.learner import Learner, World
from tests.bench.worlds.race import race, uniform_target


def test_worlds_run_end_to_end(monkeypatch, capsys, tmp_path):
    tiny = World("tiny", prompt_count=200, batch_size=16, uniform_steps=15)
    monkeypatch.setitem(WORLDS, "bimodal", tiny)
    options = (
        f"--seeds 2 --processes 1 --out {tmp_path} --worlds bimodal --arms dapo oracle edge_spare"
    )
    monkeypatch.setattr(sys, "argv", ["worlds", *options.split()])
    worlds.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for key in ("ratio_to_mopps", "ratio_to_dapo", "ratio_to_oracle", "worst_ratio_to_uniform"):
        assert result[key] > 0.0
    assert set(result["probed"]) == {"edge_spare"}
    rows = result["worlds"]["bimodal"]["arms"]
    assert set(rows) == {"edge", "edge_spare", "uniform", "mopps_1", "dapo", "oracle"}
    assert rows["uniform"]["rollouts"] == 15 * 16 * G
    assert rows["oracle"]["rollouts"] < rows["uniform"]["rollouts"]
    assert (tmp_path / "worlds.png").stat().st_size > 0


def test_a_prober_on_spare_gpus_saves_training_rollouts():
    world = replace(WORLDS["bimodal"], prompt_count=2000, batch_size=32, uniform_steps=80)
    saved = []
    for seed in range(3):
        target = uniform_target(PEERS["uniform"], world, seed)
        alone = race(PRODUCT["edge"], world, seed, target)
        probed = race(PROBED["edge_spare"], world, seed, target)
        saved.append(1 - probed.rollouts / alone.rollouts)
    # A sixth in the full worlds, with a standard deviation of about .03 per world and seed.
    assert np.mean(saved) > 0.05


@pytest.mark.parametrize(("on_spare_capacity", "charge"), [(True, 1.0), (False, 1.5)])
def test_probes_are_charged_unless_they_are_made_on_spare_capacity(on_spare_capacity, charge):
    world = replace(WORLDS["bimodal"], prompt_count=2000, batch_size=32)
    build = partial(Probed, share=0.5, on_spare_capacity=on_spare_capacity)
    course = run(build, Learner(world, np.random.default_rng(0)), np.random.default_rng(1), 10)
    # A step's probes are at most what is left over short of a group.
    assert course.charged == pytest.approx(charge * 10 * 32 * G, rel=0.04)


def test_graded_and_noisy_worlds_draw_what_they_say():
    rate = {}
    for name, world in {
        "plain": World("", domain_count=1),
        "noisy": World("", domain_count=1, false_pass=0.2, false_fail=0.2),
        "graded": World("", domain_count=1, graded=True),
    }.items():
        learner = Learner(world, np.random.default_rng(5))
        every = np.arange(len(learner.task))
        drawn = learner.draw(every, np.full(len(every), G)) / G
        rate[name] = (drawn[:, 0].mean(), learner.true_pass_rate().mean())
    # means over 64,000 attempts: standard error below .002
    assert rate["plain"][0] == pytest.approx(rate["plain"][1], abs=0.008)
    assert rate["graded"][0] == pytest.approx(rate["graded"][1], abs=0.008)
    # .8 of the right attempts and .2 of the wrong ones pass
    assert rate["noisy"][0] == pytest.approx(0.6 * rate["noisy"][1] + 0.2, abs=0.008)


def still_world(**changes):
    """Nothing moves in it but by training."""
    return World("", prompt_count=300, drift=0.0, forgetting=0.0, **changes)


def train_on(learner, prompt, signal):
    """How the logits of the pool move."""
    before = learner._logit(np.arange(300))
    learner.train(groups_of([prompt], [4]), np.array([signal]))
    return learner._logit(np.arange(300)) - before


def test_training_moves_the_prompt_its_domain_and_its_topic_and_nothing_else():
    learner = Learner(still_world(), np.random.default_rng(2))
    moved_N = train_on(learner, 7, 0.5)
    domain_N, topic_N = learner.task.domain_N, learner._topic_N
    related_N = (domain_N == domain_N[7]) | (topic_N == topic_N[7])
    assert (moved_N[related_N] > 0.0).all()
    assert not moved_N[~related_N].any()
    assert moved_N.argmax() == 7


def test_a_group_without_a_signal_moves_nothing_and_one_used_again_teaches_half():
    learner = Learner(still_world(), np.random.default_rng(2))
    assert not train_on(learner, 7, 0.0).any()
    other = Learner(still_world(tiring=1e9), np.random.default_rng(2))
    first, again = train_on(other, 9, 0.5), train_on(other, 9, 0.5)
    assert again == pytest.approx(first / 2)


def test_a_domain_that_is_not_trained_is_forgotten():
    world = replace(still_world(), forgetting=0.1, domain_count=2)
    learner = Learner(world, np.random.default_rng(2))
    of_domain = [int(np.flatnonzero(learner.task.domain_N == domain)[0]) for domain in (0, 1)]
    train_on(learner, of_domain[0], 0.5)
    gained = learner._ability_D[0]
    train_on(learner, of_domain[1], 0.5)
    assert learner._ability_D[0] == pytest.approx(0.9 * gained)
