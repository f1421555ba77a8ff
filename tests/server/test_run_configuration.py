"""Creating and changing runs: defaults, refusals, and what is fixed."""

from __future__ import annotations

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_server.engine.config import RunConfig, SamplingConfig

_numbers = itertools.count()


def a_new_name():
    return f"configured-{next(_numbers)}"


def selection(**fields):
    return {"selection": run_pb2.SelectionConfig(**fields)}


def sampling(**fields):
    return {"sampling": run_pb2.SamplingConfig(**fields)}


def channels(*rows):
    return {
        "channels": [
            run_pb2.Channel(name=name, min_value=low, max_value=high) for name, low, high in rows
        ]
    }


REFUSED = [
    (selection(strategy="greedy"), "config.selection.strategy='greedy': must be one of edge,"),
    (selection(strategy=""), "config.selection.strategy='': must be one of"),
    (selection(group_size=1), "config.selection.group_size=1: must be in [2, 1024]"),
    (selection(group_size=1025), "config.selection.group_size=1025: must be in [2, 1024]"),
    (
        selection(discount=0.9),
        "config.selection.discount=0.9: must be absent; how fast evidence is forgotten is learned",
    ),
    (selection(discount=0.0), "config.selection.discount=0.0: must be absent"),
    (selection(optimism=-0.5), "config.selection.optimism=-0.5: must be"),
    (selection(optimism=10.5), "config.selection.optimism=10.5: must be"),
    (selection(optimism=math.inf), "config.selection.optimism=inf: must be"),
    (selection(sharpness=-1.0), "config.selection.sharpness=-1.0: must be"),
    (selection(sharpness=65.0), "config.selection.sharpness=65.0: must be"),
    (selection(sharpness=math.nan), "config.selection.sharpness=nan: must be"),
    (selection(rest_steps=1_000_001), "config.selection.rest_steps=1000001: must be"),
    (selection(review_share=-0.1), "config.selection.review_share=-0.1: must be in [0, 1]"),
    (selection(review_share=math.nan), "config.selection.review_share=nan: must be in [0, 1]"),
    (selection(reach_share=1.1), "config.selection.reach_share=1.1: must be in [0, 1]"),
    (
        selection(review_share=0.75, reach_share=0.5),
        "config.selection.review_share + reach_share=1.25: must be in [0, 1]",
    ),
    (selection(reach_attempt_factor=0), "config.selection.reach_attempt_factor=0: must be"),
    (selection(reach_attempt_factor=65), "config.selection.reach_attempt_factor=65: must be"),
    (selection(domain_shares={"math": 1.5}), "config.selection.domain_shares[math]=1.5: must be"),
    (selection(domain_shares={"math": -0.1}), "config.selection.domain_shares[math]=-0.1: must"),
    (
        selection(domain_shares={"math": 0.75, "code": 0.5}),
        "config.selection.domain_shares=1.25: must be shares that sum to at most 1",
    ),
    (selection(edge_low=-0.1), "config.selection.edge_low=-0.1: must be"),
    (selection(edge_low=0.5), "config.selection.edge_low=0.5: must be"),
    (selection(edge_high=0.5), "config.selection.edge_high=0.5: must be"),
    (selection(edge_high=1.5), "config.selection.edge_high=1.5: must be"),
    (selection(candidate_ratio=0), "config.selection.candidate_ratio=0: must be"),
    (selection(candidate_ratio=1025), "config.selection.candidate_ratio=1025: must be"),
    (selection(reach_chance=0.0), "config.selection.reach_chance=0.0: must be in (0, 1)"),
    (selection(reach_chance=1.0), "config.selection.reach_chance=1.0: must be in (0, 1)"),
    (selection(reach_chance=math.nan), "config.selection.reach_chance=nan: must be in (0, 1"),
    (selection(token_weight=-0.1), "config.selection.token_weight=-0.1: must be in [0, 1]"),
    (selection(token_weight=1.1), "config.selection.token_weight=1.1: must be in [0, 1]"),
    (selection(max_share=0.0), "config.selection.max_share=0.0: must be in (0, 1]"),
    (selection(max_share=1.1), "config.selection.max_share=1.1: must be in (0, 1]"),
    (selection(max_share_steps=0), "config.selection.max_share_steps=0: must be"),
    (selection(max_share_steps=1_000_001), "max_share_steps=1000001: must be at most 1e+06"),
    (selection(learned_shares=1.1), "config.selection.learned_shares=1.1: must be in [0, 1]"),
    (selection(learned_shares=math.nan), "config.selection.learned_shares=nan: must be"),
    ({"reward_min": math.nan}, "config.reward_min=nan: must be finite"),
    ({"reward_min": -math.inf}, "config.reward_min=-inf: must be finite"),
    ({"reward_min": 1.0}, "config.reward_max=1.0: must be finite and above 1"),
    ({"reward_min": 0.5, "reward_max": 0.25}, "config.reward_max=0.25: must be finite and above"),
    ({"reward_max": math.inf}, "config.reward_max=inf: must be finite and above 0"),
    ({"pass_threshold": 0.0}, "config.pass_threshold=0.0: must be in (0, 1]"),
    ({"pass_threshold": 1.1}, "config.pass_threshold=1.1: must be in (0, 1]"),
    ({"pass_threshold": math.nan}, "config.pass_threshold=nan: must be in (0, 1]"),
    ({"window_steps": 0}, "config.window_steps=0: must be in [1, 100000]"),
    ({"window_steps": 100_001}, "config.window_steps=100001: must be in [1, 100000]"),
    ({"max_policy_lag": 1_000_001}, "config.max_policy_lag=1000001: must be in [0, 1000000]"),
    (sampling(temperature=-0.1), "config.sampling.temperature=-0.1: must be finite and at least 0"),
    (sampling(temperature=math.inf), "config.sampling.temperature=inf: must be finite"),
    (sampling(temperature=math.nan), "config.sampling.temperature=nan: must be finite"),
    (sampling(top_p=0.0), "config.sampling.top_p=0.0: must be in (0, 1]"),
    (sampling(top_p=1.5), "config.sampling.top_p=1.5: must be in (0, 1]"),
    (sampling(top_p=math.nan), "config.sampling.top_p=nan: must be in (0, 1]"),
    (sampling(max_tokens=0), "config.sampling.max_tokens=0: must be in [1, 1000000]"),
    (sampling(max_tokens=1_000_001), "config.sampling.max_tokens=1000001: must be in"),
    (sampling(stop=["."] * 17), "config.sampling.stop=17 texts: must be at most 16"),
    (sampling(stop=[".", ""]), "config.sampling.stop=0 bytes: must be 1 to 256 bytes each"),
    (sampling(stop=["é" * 129]), "config.sampling.stop=258 bytes: must be 1 to 256 bytes each"),
    ({"lease_ttl": Duration()}, "config.lease_ttl=0s: must be"),
    ({"lease_ttl": Duration(seconds=-5)}, "config.lease_ttl=-5s: must be"),
    ({"lease_ttl": Duration(seconds=1, nanos=500_000_000)}, "config.lease_ttl=1.5s: must be"),
    ({"lease_ttl": Duration(seconds=604_801)}, "lease_ttl=604801s: must be in [1s, 604800s]"),
    (channels(("", 0, 1)), "config.channels.name='': must be 1 to 64 characters of a-z, 0-9 and _"),
    (channels(("Entropy", 0, 1)), "config.channels.name='Entropy': must be"),
    (channels(("a" * 65, 0, 1)), "must be 1 to 64 characters of a-z, 0-9 and _"),
    (channels(("a", 1, 1)), "config.channels[a].max_value=1.0: must be finite and above 1"),
    (channels(("a", 0, math.inf)), "config.channels[a].max_value=inf: must be finite and above 0"),
    (channels(("a", 0, 1), ("a", 0, 2)), "config.channels.name='a': must be declared once"),
    (
        channels(*((f"c{i}", 0, 1) for i in range(17))),
        "config.channels=17 channels: must be at most 16",
    ),
    ({"objective": {"pass": 1}}, "config.objective[pass]=1.0: must be of the reward or a channel"),
    (
        {"objective": {"b": 1}, **channels(("a", 0, 1))},
        "config.objective[b]=1.0: must be of the reward or a channel: reward, a",
    ),
    ({"objective": {"reward": 0}}, "config.objective[reward]=0.0: must be finite and above 0"),
    ({"objective": {"reward": -1}}, "config.objective[reward]=-1.0: must be finite and above 0"),
    ({"objective": {"reward": math.nan}}, "config.objective[reward]=nan: must be finite"),
    ({"objective": {"reward": math.inf}}, "config.objective[reward]=inf: must be finite"),
    (
        {"objective": {"reward": 1}, **channels(("reward", 0, 1))},
        "config.channels.name='reward': must be another name: in the objective it is the attempt's",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "said"), REFUSED)
def test_a_bad_configuration_is_refused_by_field_and_makes_no_run(stubs, refused, config, said):
    run_id = a_new_name()
    request = op.CreateRunRequest(run_id=run_id, config=run_pb2.RunConfig(**config))
    answer = refused(stubs.operator.CreateRun, request)
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert said in answer.details
    assert refused(stubs.operator.GetRun, op.GetRunRequest(run_id=run_id)).status == "NOT_FOUND"


@pytest.mark.parametrize(
    ("config", "said"), [case for case in REFUSED if not case[0].keys() & {
        "reward_min", "reward_max", "pass_threshold", "channels", "objective"}]
)  # fmt: skip
def test_a_bad_change_is_refused_by_field_and_changes_nothing(open_run, refused, config, said):
    run = open_run(0)
    before = run.get()
    request = op.UpdateRunRequest(run_id=run.run_id, config=run_pb2.RunConfig(**config))
    answer = refused(run.stubs.operator.UpdateRun, request)
    assert answer.status == "INVALID_ARGUMENT"
    assert said in answer.details
    assert run.get() == before


@pytest.mark.parametrize(
    "config",
    [
        {"reward_min": 0.0},
        {"reward_max": 1.0},
        {"pass_threshold": 1.0},
        {"seed": 0},
        channels(("a", 0, 1)),
        {"objective": {"reward": 1.0}},
        {"seed": 3, "window_steps": 7},
    ],
)
def test_what_the_counts_depend_on_is_fixed_at_creation(open_run, refused, config):
    run = open_run(0)
    before = run.get()
    request = op.UpdateRunRequest(run_id=run.run_id, config=run_pb2.RunConfig(**config))
    answer = refused(run.stubs.operator.UpdateRun, request)
    assert (answer.status, answer.error) == ("FAILED_PRECONDITION", "StateError")
    assert answer.details.startswith(f"config.{next(iter(config))}=")
    assert answer.details.endswith("is fixed when a run is created")
    assert run.get() == before


def test_absent_fields_take_defaults_that_are_shown(stubs):
    run = stubs.create_run(a_new_name())
    config = run.config
    for name, field in run_pb2.SelectionConfig.DESCRIPTOR.fields_by_name.items():
        is_shown = not field.GetOptions().deprecated
        assert name == "domain_shares" or config.selection.HasField(name) == is_shown, name
    assert (config.selection.reach_chance, config.selection.token_weight) == (0.5, 0.0)
    assert (config.selection.max_share, config.selection.max_share_steps) == (1.0, 100)
    assert (config.selection.learned_shares, config.selection.wear_visits) == (0.9, 8.0)
    assert not config.objective
    assert not config.HasField("max_policy_lag")
    assert not config.HasField("sampling")
    assert (config.reward_min, config.reward_max, config.pass_threshold) == (0, 1, 1)
    assert (config.window_steps, config.seed, config.lease_ttl.seconds) == (5, 0, 3600)
    assert (config.selection.strategy, config.selection.group_size) == ("edge", 8)
    assert (run.prompt_count, run.timeline, run.policy_step) == (0, 0, 0)
    assert not run.HasField("policy")


def test_what_is_given_is_shown_and_the_threshold_follows_the_largest_reward(stubs):
    given = run_pb2.RunConfig(
        selection=run_pb2.SelectionConfig(
            strategy="thompson", optimism=0.0, rest_steps=0, domain_shares={"math": 0.5}
        ),
        reward_min=-1.0,
        reward_max=2.0,
        seed=2**64 - 1,
        lease_ttl=Duration(seconds=90),
        **channels(("entropy", -3.5, 4.5)),
    )
    config = stubs.create_run(a_new_name(), given).config
    assert config.pass_threshold == 2.0
    assert config.seed == 2**64 - 1
    assert list(config.channels) == list(given.channels)
    assert config.lease_ttl == given.lease_ttl
    assert dict(config.selection.domain_shares) == {"math": 0.5}
    assert (config.selection.optimism, config.selection.rest_steps) == (0.0, 0)
    assert config.selection.HasField("optimism")


def test_an_objective_is_shown_as_it_was_given(stubs):
    weights = {"reward": 7.0, "clarity": 3.0, "brevity": 1e308}
    declared = channels(("clarity", 0, 4), ("brevity", -1, 1))
    config = stubs.create_run(a_new_name(), run_pb2.RunConfig(objective=weights, **declared)).config
    assert dict(config.objective) == weights


def test_a_policy_lag_and_the_trainers_sampling_are_shown_as_given(open_run):
    given = sampling(
        temperature=0.0, top_p=1e-300, max_tokens=1_000_000, stop=["é" * 128] * 16, chat=False
    )
    config = open_run(0, max_policy_lag=0, **given).get().config
    assert config.HasField("max_policy_lag")
    assert (config.max_policy_lag, config.sampling) == (0, given["sampling"])


def test_an_update_changes_the_given_keys_of_the_sampling_alone(open_run):
    run = open_run(0, **sampling(temperature=0.7, stop=["a", "b"]))
    after = run.update(max_policy_lag=3, **sampling(stop=["c"], chat=True)).config
    assert after.sampling == run_pb2.SamplingConfig(temperature=0.7, stop=["c"], chat=True)
    assert after.max_policy_lag == 3
    after = run.update(window_steps=2).config
    assert (after.sampling.temperature, after.max_policy_lag) == (0.7, 3)


def test_an_empty_sampling_is_no_configuration(stubs):
    run_id = a_new_name()
    config = run_pb2.RunConfig(**sampling())
    assert not stubs.create_run(run_id, config).config.HasField("sampling")
    assert stubs.create_run(run_id).run_id == run_id


def test_a_run_of_a_server_that_knew_neither_goes_on_without():
    known = RunConfig(sampling=SamplingConfig(temperature=0.5, stop=("a",)), max_policy_lag=2)
    stored = json.loads(json.dumps(known.to_mapping()))
    assert RunConfig.from_mapping(stored) == known
    del stored["sampling"], stored["max_policy_lag"]
    assert RunConfig.from_mapping(stored) == RunConfig()


def test_the_create_time_is_the_stores(stubs, raw):
    before = raw.time()[0]
    created = stubs.create_run(a_new_name()).create_time
    assert before <= created.seconds <= raw.time()[0]


def test_creating_a_run_again_gives_the_same_run(stubs):
    run_id = a_new_name()
    config = run_pb2.RunConfig(window_steps=3, selection=run_pb2.SelectionConfig(group_size=4))
    first = stubs.create_run(run_id, config)
    stubs.add_prompts(run_id, 3)
    again = stubs.create_run(run_id, config)
    assert (again.create_time, again.config) == (first.create_time, first.config)
    assert again.prompt_count == 3


def test_creating_a_run_again_with_another_configuration_is_refused(stubs, refused):
    run_id = a_new_name()
    first = stubs.create_run(run_id)
    request = op.CreateRunRequest(run_id=run_id, config=run_pb2.RunConfig(window_steps=3))
    answer = refused(stubs.operator.CreateRun, request)
    assert (answer.status, answer.error) == ("ALREADY_EXISTS", "AlreadyExistsError")
    assert answer.details == f"run_id={run_id!r}: exists with another configuration"
    assert stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run == first


@pytest.mark.parametrize("run_id", ["", "a b", "a/b", "{x}", "é", "r" * 65, "a\n", "*"])
def test_a_bad_run_id_is_refused(stubs, refused, run_id):
    for call, request in (
        (stubs.operator.CreateRun, op.CreateRunRequest(run_id=run_id)),
        (stubs.operator.GetRun, op.GetRunRequest(run_id=run_id)),
        (stubs.operator.DeleteRun, op.DeleteRunRequest(run_id=run_id)),
        (stubs.operator.UpdateRun, op.UpdateRunRequest(run_id=run_id)),
    ):
        answer = refused(call, request)
        assert answer.status == "INVALID_ARGUMENT"
        assert answer.details.startswith("run_id=")
        assert "1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-'" in answer.details


def test_the_longest_and_oddest_names_are_taken(stubs):
    for run_id in ("r" * 64, ".._--", "0", "A.b_C-9"):
        assert stubs.create_run(run_id).run_id == run_id
        stubs.operator.DeleteRun(op.DeleteRunRequest(run_id=run_id))


def test_an_update_changes_the_given_fields_alone(open_run):
    run = open_run(0, selection={"group_size": 4, "domain_shares": {"a": 0.5, "b": 0.25}})
    before = run.get().config
    after = run.update(window_steps=9, **selection(optimism=2.0)).config
    assert (after.window_steps, after.selection.optimism) == (9, 2.0)
    after.window_steps = before.window_steps
    after.selection.optimism = before.selection.optimism
    assert after == before


def test_an_update_replaces_all_domain_shares_or_none(open_run):
    run = open_run(0, selection={"domain_shares": {"a": 0.5, "b": 0.25}})
    shares = run.update(**selection(domain_shares={"c": 1.0})).config.selection.domain_shares
    assert dict(shares) == {"c": 1.0}
    assert dict(run.update(window_steps=2).config.selection.domain_shares) == {"c": 1.0}


def test_an_update_without_fields_changes_nothing(open_run):
    run = open_run(0)
    before = run.get()
    assert run.update() == before


def test_a_changed_group_size_holds_for_the_next_batch(open_run):
    run = open_run(10)
    assert {p.attempt_count for p in run.next(count=2).prompts} == {8}
    run.update(**selection(group_size=3))
    assert {p.attempt_count for p in run.next(count=2).prompts} == {3}


def test_runs_are_listed_by_name_in_pages(stubs):
    names = [f"listed-{i:02}" for i in range(7)]
    for name in reversed(names):
        stubs.create_run(name)
    found, token = [], ""
    for _ in range(1000):
        answer = stubs.operator.ListRuns(op.ListRunsRequest(page_size=3, page_token=token))
        assert len(answer.runs) <= 3
        found += [run.run_id for run in answer.runs]
        token = answer.next_page_token
        if not token:
            break
    assert [name for name in found if name.startswith("listed-")] == names
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"page_size": 1001}, "page_size=1001: must be in [0, 1000]"),
        ({"page_token": "%%%"}, "page_token: must come from the page before"),
        ({"page_token": "AAAA"}, "page_token: must come from the page before"),
        ({"page_token": "é"}, "page_token: must come from the page before"),
    ],
)
def test_a_bad_page_of_runs_is_refused(stubs, refused, fields, said):
    answer = refused(stubs.operator.ListRuns, op.ListRunsRequest(**fields))
    assert (answer.status, answer.details) == ("INVALID_ARGUMENT", said)


def test_deleting_a_run_may_be_repeated(open_run, refused):
    run = open_run(5)
    run.play(0)
    run.delete()
    run.delete()
    never = op.DeleteRunRequest(run_id=f"{run.run_id}-never")
    assert refused(run.stubs.operator.DeleteRun, never).status == "NOT_FOUND"
    assert refused(run.stubs.trainer.NextBatch, run.next_request()).status == "NOT_FOUND"


def test_deletions_beside_creations_destroy_no_new_run(open_run):
    """Each either finds the run and removes it whole, or leaves the new one alone."""
    run = open_run(5)
    for _ in range(20):
        with ThreadPoolExecutor(3) as callers:
            deletions = [callers.submit(run.delete) for _ in range(2)]
            creation = callers.submit(make_anew, run)
            for deletion in deletions:
                deletion.result()
            creation.result()
        make_anew(run)  # unless it is there
        assert run.get().prompt_count == 5
        assert len(run.next(count=5).prompts) == 5


def make_anew(run):
    """Unless it is being deleted, or others are in between."""
    with suppress(grpc.RpcError):
        run.stubs.create_run(run.run_id)
        run.stubs.add_prompts(run.run_id, 5)


def test_a_deleted_run_can_be_made_again_and_starts_empty(open_run):
    run = open_run(20)
    batch = run.play(3)
    run.delete()
    run.stubs.create_run(run.run_id, run_pb2.RunConfig(window_steps=2))
    assert (run.get().prompt_count, run.get().policy_step) == (0, 0)
    run.stubs.add_prompts(run.run_id, 6, domains=3)
    assert run.stats().attempt_count == 0
    again = run.next(batch.batch_id, count=6)
    assert sorted(p.prompt.prompt_id for p in again.prompts) == [f"p{i}" for i in range(6)]
    assert run.report(again, {0: [1.0]}).attempt_count == 1
