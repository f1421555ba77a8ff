"""An import takes what the calls could have made, to the last bound, and nothing beyond: what is
taken is shown for ever after, in every list of runs."""

from __future__ import annotations

import json
import math
import sys

import pytest

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from tests.server.driving import RunDriver
from tests.server.test_transfer import damaged, export, request

LARGEST = sys.float_info.max


def config(**values):
    return lambda document: document["config"].update(values)


def selection(**values):
    return lambda document: document["config"]["selection"].update(values)


def field(**values):
    return lambda document: document.update(values)


def channel(**values):
    return lambda document: document["config"]["channels"][0].update(values)


def mark(**values):
    return lambda document: document["checkpoints"][0].update(values)


def checkpoints(count):
    def repeat(document):
        (known,) = document["checkpoints"]
        document["checkpoints"] = [known | {"name": f"c{number}"} for number in range(count)]

    return repeat


def window(at, **values):
    return lambda document: document["windows"][at].update(values)


TAKEN = {
    "the largest seed": config(seed=2**64 - 1),
    "the largest weight": config(objective={"reward": LARGEST}),
    "the largest weight that is whole": config(objective={"reward": int(LARGEST)}),
    "the smallest weight": config(objective={"reward": 5e-324}),
    "a sampling of whole numbers": config(sampling={"temperature": 0, "top_p": 1}),
    "a range of whole numbers": channel(min_value=-1, max_value=1),
    "the largest timeline": field(timeline=2**31),
    "the largest number of a window": field(next_window=10**9),
    "the newest window sealed": lambda d: d.update(sealed_window=d["next_window"] - 1),
    "no window sealed": field(sealed_window=-1),
    "the longest URI": field(policy_step=1, policy_uri="u" * 4096),
    "no policy": field(policy_step=None, policy_uri=""),
    "the longest name": mark(name="é" * 64),
    "256 checkpoints": checkpoints(256),
    "the largest step of a checkpoint": mark(policy_step=2**32 - 2),
}
REFUSED = {
    "seed above u64": (config(seed=2**64), "config.seed=18446744073709551616: must be in [0, "),
    "seed below 0": (config(seed=-1), "config.seed=-1: must be in [0, "),
    "weight of 1,330 bits": (config(objective={"reward": 10**400}), "must be finite and above 0"),
    "weight above the largest": (config(objective={"reward": 2**1024}), "must be finite and above"),
    "weight that is NaN": (config(objective={"reward": math.nan}), "must be finite and above 0"),
    "weight that is infinite": (config(objective={"reward": math.inf}), "must be finite and above"),
    "weight of 0": (config(objective={"reward": 0}), "must be finite and above 0"),
    "weight of True": (config(objective={"reward": True}), "must be finite and above 0"),
    "policy lag of 1.5": (config(max_policy_lag=1.5), "config.max_policy_lag=1.5: must be in [0, "),
    "policy lag of True": (config(max_policy_lag=True), "config.max_policy_lag=True: must be in"),
    "temperature in words": (config(sampling={"temperature": "1"}), "must be finite and at least"),
    "temperature of 1,330 bits": (config(sampling={"temperature": 10**400}), "must be finite"),
    "top_p of True": (config(sampling={"top_p": True}), "config.sampling.top_p=True: must be in"),
    "tokens of 1.5": (config(sampling={"max_tokens": 1.5}), "config.sampling.max_tokens=1.5: must"),
    "stops in one word": (config(sampling={"stop": "end"}), "stop='end': must be a list"),
    "stops that are no texts": (config(sampling={"stop": [1]}), "has a field of a wrong type"),
    "a stop that is no text": (config(sampling={"stop": ["\ud800"]}), "what no message can carry"),
    "chat of 1": (config(sampling={"chat": 1}), "config.sampling.chat=1: must be true or false"),
    "sampling of another kind": (config(sampling={"heat": 1}), "has a field of a wrong type"),
    "sampling that is none": (config(sampling=None), "has a field of a wrong type"),
    "reward of 1,330 bits": (config(reward_max=10**400), "too large"),
    "range of 1,330 bits": (channel(max_value=10**400), "too large"),
    "range in words": (channel(min_value="0"), "channels.min_value='0': must be of type float"),
    "optimism of 1,330 bits": (selection(optimism=10**400), "too large"),
    "strategy that is no text": (selection(strategy="\ud800"), r"strategy='\ud800'"),
    "domain that is no text": (selection(domain_shares={"\ud800": 0.5}), "no message can carry"),
    "timeline above its bound": (field(timeline=2**31 + 1), "timeline=2147483649: must be"),
    "timeline of 41 bits": (field(timeline=2**40), "timeline=1099511627776: must be"),
    "timeline below 0": (field(timeline=-1), "timeline=-1: must be"),
    "pool above u32": (field(prompt_count=2**32), "prompt_count=4294967296: must be"),
    "chunks above the prompts": (field(chunk_count=10**6), "chunk_count=1000000: must be at most"),
    "next window above its bound": (field(next_window=10**9 + 1), "next_window=1000000001: must"),
    "future window sealed": (field(sealed_window=10**6), "sealed_window=1000000: must be in"),
    "sealed window below -1": (field(sealed_window=-2), "sealed_window=-2: must be in"),
    "URI that is too long": (field(policy_uri="u" * 4097), "must be text of at most 4096 bytes"),
    "URI that is no text": (field(policy_step=1, policy_uri="\ud800"), "no message can carry"),
    "name that is too long": (mark(name="é" * 64 + "x"), "must be text of 1 to 128 bytes"),
    "name that is empty": (mark(name=""), "must be text of 1 to 128 bytes"),
    "name that is no text": (mark(name="\ud800"), "no message can carry"),
    "step above its bound": (mark(policy_step=2**32 - 1), "a policy_step outside [0, 4294967294]"),
    "checkpoint of a window in words": (mark(window="1"), "must have whole numbers"),
    "257 checkpoints": (checkpoints(257), "has 257 checkpoints: must be at most 256"),
    "first window of later steps": (window(0, first_step=1, last_step=1), "as every run's first"),
    "first window of more steps": (window(0, last_step=1), "as every run's first"),
    "first window of 2 windows": (window(0, span=2), "as every run's first"),
    "first window gone": (lambda d: d["windows"].pop(0), "as every run's first"),
    "window of none": (window(1, span=0), "must be of 1 to 1 windows"),
    "window of more than there were": (window(1, span=10**30), "must be of 1 to 1 windows"),
}  # fmt: skip


@pytest.fixture
def source(open_run):
    """A run with an objective, a channel, two windows, a checkpoint and a policy."""
    run = open_run(
        4,
        window_steps=2,
        objective={"reward": 1.0},
        channels=[run_pb2.Channel(name="entropy", min_value=0, max_value=1)],
    )
    run.play(0, count=2)
    run.play(1, count=2)
    run.checkpoint("a", 1)
    run.publish(1, "/weights")
    return run


def imported(run, change=lambda document: None, **beside):
    """The request to import a run under another name, with its document changed."""

    def reworded(content):
        values = json.loads(content)
        change(values["document"])
        return json.dumps(values | beside).encode()

    parts = damaged(export(run), "run.json", reworded)
    return request(f"{run.run_id}-copy", parts, commit=True)


def listed(run):
    runs = run.stubs.operator.ListRuns(op.ListRunsRequest(page_size=1000)).runs
    return {shown.run_id for shown in runs}


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_calls_could_have_made_is_taken_and_shown(source, case):
    made = source.stubs.operator.ImportRun(imported(source, TAKEN[case])).run
    copy = RunDriver(source.stubs, made.run_id)
    assert copy.get() == made
    assert listed(source) >= {source.run_id, made.run_id}
    assert len(copy.next(count=2, step=2).prompts) == 2
    assert copy.stats().prompt_count == 4
    copy.delete()


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_call_could_have_made_is_refused(source, refused, case):
    change, said = REFUSED[case]
    asked = imported(source, change)
    answer = refused(source.stubs.operator.ImportRun, asked)
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert said in answer.details
    assert asked.run_id not in listed(source)
    source.stubs.operator.DeleteRun(op.DeleteRunRequest(run_id=asked.run_id))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([10**15 + 1, 0], "at most 1000000000000000"),
        ([10**30, 0], "at most 1000000000000000"),
        ([-1, -1], "must be of a window that is there"),
        ([2, 3], "and the mixed at most all"),
    ],
)
def test_counters_that_no_message_can_carry_are_refused(source, refused, groups, said):
    answer = refused(source.stubs.operator.ImportRun, imported(source, groups={"0": groups}))
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True)


def test_the_largest_counters_are_taken_and_shown(source):
    source.stubs.operator.ImportRun(imported(source, groups={"0": [10**15, 10**15]}))
    copy = RunDriver(source.stubs, f"{source.run_id}-copy")
    assert copy.stats().mixed_group_count == 10**15


# What prompts say of themselves


def redescribed(change):
    """Changes every prompt of a payload."""

    def reencoded(content):
        chunk = op.AddPromptsRequest.FromString(content)
        for number, prompt in enumerate(chunk.prompts):
            change(number, prompt)
        return chunk.SerializeToString(deterministic=True)

    return reencoded


def prompt_field(**values):
    return lambda number, prompt: prompt.MergeFrom(prompt_pb2.Prompt(**values))


PROMPTS = {
    "a feature that is NaN": (prompt_field(features={"f": math.nan}), "features['f']=nan: must be"),
    "an infinite feature": (prompt_field(features={"f": math.inf}), "features['f']=inf: must be"),
    "an embedding": (prompt_field(embedding=[1.0]), "must be in the catalog"),
    "too many tags": (prompt_field(tags=["t"] * 17), "tags)=17: must be in [0, 16]"),
    "an empty tag": (prompt_field(tags=[""]), "must be 1 to 64 bytes, is 0"),
    "a payload that is no JSON": (prompt_field(payload_json="{"), "must be JSON"),
    "a text that is too long": (prompt_field(text="x" * 262_144), "must be in [0, 262144]"),
}


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("only", [None, 3])
def test_a_prompt_that_no_call_could_have_brought_is_refused(open_run, refused, case, only):
    run, (change, said) = open_run(4), PROMPTS[case]

    def change_some(number, prompt):
        if only in (None, number):
            change(number, prompt)

    name = "prompts/0/payload/0"
    parts = list(damaged(export(run), name, redescribed(change_some)))
    asked = request(f"{run.run_id}-copy", in_larger_pieces(parts), commit=True)
    answer = refused(run.stubs.operator.ImportRun, asked)
    assert (answer.status, said in answer.details) == ("INVALID_ARGUMENT", True), answer
    assert f"prompt 'p{only or 0}'" in answer.details


def in_larger_pieces(parts):
    for part in parts:
        if part.name == "run.json":
            part.content = json.dumps(json.loads(part.content) | {"piece_bytes": 1 << 22}).encode()
    return parts


@pytest.mark.parametrize(("count", "is_taken"), [(1024, True), (1025, False)])
def test_a_pool_of_too_many_domains_is_refused(open_run, refused, count, is_taken):
    run = open_run(count)
    name = "prompts/0/payload/0"

    def rename(number, prompt):
        prompt.domain = f"new-{number}"

    def recatalogued(content):
        entries = json.loads(content) | {"domains": [f"new-{number}" for number in range(count)]}
        return json.dumps(entries, separators=(",", ":")).encode()

    parts = damaged(export(run), name, redescribed(rename))
    parts = list(damaged(parts, "prompts/0/catalog/0", recatalogued))
    asked = request(f"{run.run_id}-copy", in_larger_pieces(parts), commit=True)
    if is_taken:
        assert run.stubs.operator.ImportRun(asked).run.prompt_count == count
        return
    answer = refused(run.stubs.operator.ImportRun, asked)
    assert answer.status == "INVALID_ARGUMENT"
    assert "names 1025 domains: must be at most 1024" in answer.details
