"""slime's data source and hook, driven as slime drives them. It is not on PyPI: its Sample and its
rollout are played here. test_slime_miles.py runs the rollout of its fork."""

from __future__ import annotations

import os
import random
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from types import ModuleType

import pytest

from curriculum_client import InvalidRequestError, StateError
from curriculum_client.adapters import slime
from curriculum_client.adapters.slime import CurriculumDataSource
from tests.adapters.contract import parameters_of, recorded

ROLLOUT_BATCH_SIZE = 4
GROUP_SIZE = 4


@dataclass
class Sample:
    """As much of slime.utils.types.Sample as a rollout needs."""

    group_index: int | None = None
    index: int | None = None
    prompt: object = ""
    response_length: int = 0
    label: str | None = None
    reward: object = None
    metadata: dict = field(default_factory=dict)


class Rollout:
    """slime's generate_rollout: over-samples, shows the filter every finished group, and then the
    hook. Groups finish in a random order; a pass is a reward of 1."""

    def __init__(self, args, source, *, keep=lambda group: True, pass_rate=0.5):
        self.args, self.source, self.keep, self.pass_rate = args, source, keep, pass_rate
        self.random = random.Random(0)
        self.seen = []

    def __call__(self):
        pending, data, finished = [], [], []
        while len(data) < self.args.rollout_batch_size:
            if len(pending) < self.args.rollout_batch_size - len(data):
                asked = self.source.get_samples(self.args.over_sampling_batch_size)
                assert len(asked) == self.args.over_sampling_batch_size
                pending += asked
            group = pending.pop(self.random.randrange(len(pending)))
            for sample in group:
                sample.response_length = 7
                sample.reward = float(self.random.random() < self.pass_rate)
            finished.append(group)
            if self.keep(group):
                data.append(group)
        self.seen.append(data)
        slime.report(self.args, finished, self.source.get_samples)
        self.source.add_samples(pending if self.args.partial_rollout else [])
        return data


def mixed(group):
    return len({sample.reward for sample in group}) == 2


@pytest.fixture
def make_args(tmp_path):
    def make(**changes):
        arguments = {
            "rollout_batch_size": ROLLOUT_BATCH_SIZE,
            "over_sampling_batch_size": ROLLOUT_BATCH_SIZE,
            "n_samples_per_prompt": GROUP_SIZE,
            "partial_rollout": False,
            "apply_chat_template": False,
            "label_key": "answer",
            "reward_key": None,
            "save": str(tmp_path),
            "load": str(tmp_path),
        }
        return Namespace(**(arguments | changes))

    return make


@pytest.fixture
def new_source(server, new_run, new_process, monkeypatch, make_args):
    """Makes data sources as so many processes would: each has its own client."""
    types = ModuleType("slime.utils.types")
    types.Sample = Sample
    monkeypatch.setitem(sys.modules, "slime", ModuleType("slime"))
    monkeypatch.setitem(sys.modules, "slime.utils", ModuleType("slime.utils"))
    monkeypatch.setitem(sys.modules, "slime.utils.types", types)
    selection = {"group_size": GROUP_SIZE, "reach_attempt_factor": 1}
    new_process(RUN=new_run(64, selection=selection), SERVER=server.address)

    def make(source=CurriculumDataSource, **changes):
        new_process()
        return source(make_args(**changes))

    return make


@pytest.fixture
def stats(stats, new_source):
    return lambda: stats(os.environ["CURRICULUM_RUN"])


def prompts_of(groups):
    return sorted(group[0].metadata["prompt_id"] for group in groups)


@pytest.mark.parametrize("name", ["get_samples", "save", "load"])
def test_the_data_source_has_the_methods_that_slime_calls(name):
    contract = recorded("slime")
    method = getattr(CurriculumDataSource, name)
    contract.check(f"slime.rollout.data_source.DataSource.{name}", method)


def test_the_data_source_and_the_hook_have_the_signatures_of_the_fork():
    contract = recorded("miles")
    for name in ("get_samples", "add_samples", "save", "load"):
        method = getattr(CurriculumDataSource, name)
        contract.check(f"miles.rollout.data_source.DataSource.{name}", method)
    source = "miles.rollout.data_source.RolloutDataSourceWithBuffer"
    contract.check(source, parameters_of(CurriculumDataSource))
    contract.check("--rollout-all-samples-process-path", slime.report)


def test_groups_carry_the_prompt_its_label_and_its_payload(new_source):
    first, second = new_source().get_samples(2)
    assert [len(first), len(second)] == [GROUP_SIZE, GROUP_SIZE]
    assert [sample.group_index for sample in first + second] == [0] * 4 + [1] * 4
    assert [sample.index for sample in first + second] == list(range(8))
    for sample in first:
        number = int(sample.metadata["prompt_id"][1:])
        assert sample.prompt == f"What is {number} + {number}?"
        assert sample.label == sample.metadata["answer"] == 2 * number
    first[0].metadata["seen"] = True
    assert "seen" not in first[1].metadata


def test_no_label_is_made_up(new_source):
    [[sample, *_]] = new_source(label_key=None).get_samples(1)
    assert sample.label is None


def test_every_finished_group_is_counted_once_whether_it_was_filtered_or_not(new_source, stats):
    source = new_source()
    source._feed.prefetch = False
    rollout = Rollout(source.args, source, keep=mixed, pass_rate=0.8)
    for _ in range(3):
        rollout()
    seen = stats()
    kept = sum(map(len, rollout.seen))
    assert kept == 3 * ROLLOUT_BATCH_SIZE == seen.mixed_group_count
    assert seen.group_count > kept  # those that the filter dropped
    assert seen.attempt_count == GROUP_SIZE * seen.group_count
    assert seen.policy_step == 2


def test_groups_that_a_rollout_dropped_unfinished_go_back_to_the_pool(new_source, stats):
    source = new_source(over_sampling_batch_size=3 * ROLLOUT_BATCH_SIZE)
    source._feed.prefetch = False
    Rollout(source.args, source)()
    seen = stats()
    assert seen.group_count == ROLLOUT_BATCH_SIZE
    assert seen.leased_prompt_count == 0


def test_a_partial_rollout_is_finished_in_the_next(new_source, stats):
    source = new_source(over_sampling_batch_size=2 * ROLLOUT_BATCH_SIZE, partial_rollout=True)
    source._feed.prefetch = False
    rollout = Rollout(source.args, source)
    rollout()
    assert stats().leased_prompt_count == ROLLOUT_BATCH_SIZE
    begun = prompts_of(source._partial)
    [*again, _, _, _, _] = source.get_samples(2 * ROLLOUT_BATCH_SIZE)
    assert prompts_of(again) == begun
    assert set(begun).isdisjoint(prompts_of(source.get_samples(ROLLOUT_BATCH_SIZE)))


def test_a_batch_may_be_spread_over_rollouts(new_source, stats):
    source = new_source(over_sampling_batch_size=2 * ROLLOUT_BATCH_SIZE)
    for step in range(2):
        groups = source.get_samples(ROLLOUT_BATCH_SIZE)
        for sample in [sample for group in groups for sample in group]:
            sample.reward = 1.0
        slime.report(source.args, groups, source.get_samples)
        assert stats().group_count == (step + 1) * ROLLOUT_BATCH_SIZE


def test_evaluation_samples_are_not_counted(new_source, stats):
    source = new_source()
    groups = source.get_samples(1)
    evaluated = [Sample(reward=1.0, metadata={"rm_type": "math"}) for _ in range(4)]
    for sample in groups[0]:
        sample.reward = 1.0
    slime.report(source.args, [*groups, evaluated], source.get_samples)
    assert stats().attempt_count == GROUP_SIZE


def test_an_aborted_sample_is_not_counted_and_its_attempt_given_back(new_source, stats):
    source = new_source(over_sampling_batch_size=1)
    source._feed.prefetch = False
    [group] = source.get_samples(1)
    for sample, reward in zip(group, [1.0, None, 0.0, None], strict=True):
        sample.reward = reward
    slime.report(source.args, [group], source.get_samples)
    seen = stats()
    assert (seen.attempt_count, seen.pass_count, seen.leased_prompt_count) == (2, 1, 0)


def test_a_reward_may_be_an_entry_of_a_dictionary(new_source, stats):
    source = new_source(reward_key="score")
    [group] = source.get_samples(1)
    for sample, reward in zip(group, [{"score": 1.0}, None, {"score": 0.0}, None], strict=True):
        sample.reward = reward
    slime.report(source.args, [group], source.get_samples)
    assert (stats().attempt_count, stats().pass_count) == (2, 1)


def test_the_next_batch_is_asked_for_while_the_trainer_learns(new_source, stats, wait_until):
    source = new_source()
    Rollout(source.args, source)()
    wait_until(lambda: stats().leased_prompt_count == ROLLOUT_BATCH_SIZE)
    assert stats().policy_step == 1


@pytest.mark.parametrize("partial", [False, True])
def test_a_resumed_training_gets_the_same_batches(new_source, stats, partial):
    def play(source, count):
        rollout = Rollout(source.args, source)
        return [prompts_of(rollout()) for _ in range(count)]

    first = new_source(partial_rollout=partial)
    first.load(-1)
    play(first, 2)
    first.save(1)
    counted = stats().attempt_count
    expected = play(first, 3)
    second = new_source(partial_rollout=partial)
    second.load(1)
    assert stats().attempt_count == counted
    assert play(second, 3) == expected
    assert second._feed.policy_step == first._feed.policy_step == 5


def test_what_was_saved_for_another_run_is_refused(new_source, new_run, monkeypatch):
    source = new_source()
    Rollout(source.args, source)()
    source.save(0)
    monkeypatch.setenv("CURRICULUM_RUN", new_run(4))
    with pytest.raises(InvalidRequestError, match="run_id"):
        new_source().load(0)


def test_a_training_that_takes_up_the_curriculum_midway_starts_it_anew(new_source, stats):
    source = new_source()
    source._feed.prefetch = False
    source.load(41)
    Rollout(source.args, source)()
    assert stats().policy_step == 42


def test_several_samples_for_one_attempt_are_refused(new_source):
    source = new_source()
    [[sample, *_]] = source.get_samples(1)
    with pytest.raises(InvalidRequestError, match="gave 2 samples for one attempt"):
        slime.report(source.args, [[[sample, sample]]], source.get_samples)


def test_the_hook_needs_our_data_source(make_args):
    with pytest.raises(InvalidRequestError, match="must be a CurriculumDataSource"):
        slime.report(make_args(), [], [].append)


def test_a_group_size_above_the_runs_is_refused(new_source, stats):
    with pytest.raises(InvalidRequestError, match=f"must be {2 * GROUP_SIZE}"):
        new_source(n_samples_per_prompt=2 * GROUP_SIZE).get_samples(1)
    assert stats().leased_prompt_count == 0


def test_a_process_without_slime_is_told_so(new_source, monkeypatch):
    for name in ("slime.utils.types", "miles"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StateError, match="slime: must be installed"):
        new_source()


def test_what_is_made_of_a_prompt_may_be_overridden(new_source):
    class Messages(CurriculumDataSource):
        def prompt_of(self, served):
            return [{"role": "user", "content": served.text}]

    [[sample, *_]] = new_source(Messages).get_samples(1)
    assert sample.prompt[0]["content"].startswith("What is ")
