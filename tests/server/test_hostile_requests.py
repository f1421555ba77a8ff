"""Requests that no client of ours would send: none is answered with an internal error."""

from __future__ import annotations

import math
import random
from collections import Counter

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2, stats_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr

FORESEEN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
}
METHODS = [
    method
    for module in (tr, pr, op)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name not in ("DeleteRun",)
]
TEXTS = ["", "a", "held", "start", "p1", "d0", "\u0000", "é∑🧮", "x" * 3000, "..", "*", "\n"]
NUMBERS = {
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 2, 7, 8, 4096, 4097, 2**31, 2**32 - 1],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 5, 10_000, 2**32 - 2, 2**32, 2**63, 2**64 - 1],
    FieldDescriptor.CPPTYPE_INT64: [-(2**63), -1, 0, 1, 60, 315_576_000_001, 2**63 - 1],
    FieldDescriptor.CPPTYPE_INT32: [-(2**31), -1, 0, 1, 999_999_999, 2**31 - 1],
    FieldDescriptor.CPPTYPE_FLOAT: [0.0, 1.0, 0.5, -0.0, -1.0, 1e-45, 3e38, math.nan, math.inf],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, 1.0, 0.5, -1.0, 5e-324, 1e308, math.nan, -math.inf],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 4, 5, -1, 99],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
}


def twist(message, rng):
    """Give one field of the message, or of one within it, an odd value."""
    field = rng.choice(list(message.DESCRIPTOR.fields))
    if field.message_type and field.message_type.GetOptions().map_entry:
        twist_map(getattr(message, field.name), field.message_type.fields_by_name["value"], rng)
    elif field.message_type and field.is_repeated:
        items = getattr(message, field.name)
        twist(rng.choice(items) if items and rng.random() < 0.9 else items.add(), rng)
    elif field.message_type:
        twist(getattr(message, field.name), rng)
    elif field.is_repeated:
        items = getattr(message, field.name)
        count = rng.choice([len(items), len(items), 0, 1, 20])
        items[:] = [rng.choice([*items, odd(field, rng)]) for _ in range(count)]
    else:
        setattr(message, field.name, odd(field, rng))


def twist_map(items, entry, rng):
    key = rng.choice([*items, *TEXTS])
    if entry.message_type:
        twist(items[key], rng)
    else:
        items[key] = odd(entry, rng)


def odd(field, rng):
    return rng.choice(NUMBERS.get(field.cpp_type, TEXTS))


def valid_requests(run, held):
    """One request that is taken for each method, by name."""
    name = {"run_id": run.run_id}
    group = {0: [1.0, 0.5], 1: [0.0]}
    columns = {
        "token_counts": [1, 2, 3],
        "channels": {"entropy": batch_pb2.ChannelValues(values=[0.5, 1, 0])},
    }
    mark = run_pb2.Checkpoint(name="mark", policy_step=3)
    policy = run_pb2.Policy(policy_step=3, uri="/weights")
    steps = stats_pb2.StepRange(first_policy_step=0, last_policy_step=4)
    prompt = prompt_pb2.Prompt(
        prompt_id="new",
        domain="d",
        text="?",
        payload_json='{"a": [1]}',
        tags=["t"],
        features={"f": 0.5},
    )
    config = run_pb2.RunConfig(
        selection=run_pb2.SelectionConfig(optimism=2.0, rest_steps=1, domain_shares={"d0": 0.5}),
        window_steps=3,
        lease_ttl=Duration(seconds=60),
    )
    lease = {"request_id": "next", "prompt_count": 2, "policy_step": 3}
    requests = [
        tr.NextBatchRequest(**name, **lease, timeline=0),
        run.report_request(held, group, **columns),
        tr.ReleaseBatchRequest(**name, batch_id="held"),
        tr.PublishPolicyRequest(**name, policy=policy),
        tr.CheckpointRequest(**name, checkpoint=mark, timeline=0),
        tr.RollbackRequest(**name, request_id="back", checkpoint_name="start"),
        pr.LeaseProbesRequest(**name, **lease, attempt_count=3),
        pr.RenewProbesRequest(**name, batch_id="held"),
        run.report_request(held, group, kind=pr.ReportProbesRequest, **columns),
        op.CreateRunRequest(run_id=f"{run.run_id}-b", config=config),
        op.GetRunRequest(**name),
        op.ListRunsRequest(page_size=5, page_token="cnVuLTE="),
        op.UpdateRunRequest(**name, config=config),
        op.AddPromptsRequest(**name, prompts=[prompt]),
        op.ListPromptsRequest(**name, page_size=5, page_token="Mg==", domain="d0", band=1),
        op.GetPromptRequest(**name, prompt_id="p1"),
        op.GetStatsRequest(**name),
        op.CompareBoundaryRequest(**name, before=steps, after=steps, ks=[1, 8]),
    ]
    return {request.DESCRIPTOR.name.removesuffix("Request"): request for request in requests}


@pytest.fixture
def lived_in(open_run):
    """A run with counts, a checkpoint and the batch "held"."""
    channel = run_pb2.Channel(name="entropy", min_value=0, max_value=1)
    run = open_run(10, window_steps=2, channels=[channel])
    run.play(0)
    run.checkpoint("start", 0)
    return run, run.next("held", count=3)


def answers_to(stubs, method, contents):
    """How often each status came."""
    call = stubs.channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")
    answers = Counter()
    for content in contents:
        try:
            call(content)
            answers[grpc.StatusCode.OK] += 1
        except grpc.RpcError as error:
            answers[error.code()] += 1
    return answers


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_odd_values_get_a_foreseen_answer(lived_in, stubs, method, caplog):
    rng = random.Random(method.name)
    run, held = lived_in
    valid = valid_requests(run, held)[method.name]
    contents = [valid.SerializeToString()]
    for _ in range(150):
        request = type(valid)()
        request.CopyFrom(valid)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            twist(request, rng)
        contents.append(request.SerializeToString())
    answers = answers_to(stubs, method, contents)
    assert answers[grpc.StatusCode.OK] >= 1
    assert set(answers) <= FORESEEN, caplog.text
    # Whatever was taken, the run still serves and adds up.
    stats = run.stats()
    assert sum(stats.pass_rate_histogram) == stats.prompt_count == run.get().prompt_count
    assert run.next("after", count=1, step=run.get().policy_step).batch_id == "after"


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_damaged_bytes_get_a_foreseen_answer(lived_in, stubs, method, caplog):
    rng = random.Random(method.name)
    run, held = lived_in
    valid = valid_requests(run, held)[method.name].SerializeToString()
    contents = [valid]
    for _ in range(100):
        damaged = bytearray(valid)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        contents.append(bytes(damaged) + rng.randbytes(rng.choice([0, 0, 0, 5])))
    answers = answers_to(stubs, method, contents)
    assert answers[grpc.StatusCode.OK] >= 1
    assert set(answers) <= FORESEEN, caplog.text


EXTREMES = {
    "strategy": ["edge", "thompson", "uniform"],
    "group_size": [2, 8, 511],
    "discount": [1e-300, 0.5, 1.0],
    "optimism": [0.0, 10.0],
    "sharpness": [1e-9, 1.0, 64.0],
    "rest_steps": [0, 1_000_000],
    "review_share": [0.0, 0.5],
    "reach_share": [0.0, 0.5],
    "reach_attempt_factor": [1, 64],
    "edge_low": [1e-12, 0.499999],
    "edge_high": [0.500001, 1 - 1e-12],
    "candidate_ratio": [1, 1024],
}
RANGES = [(0.0, 1.0), (-1e30, 1e30), (0.0, 1e-30), (-3.0, -2.0)]


@pytest.mark.parametrize("seed", range(12))
def test_a_run_of_extreme_but_allowed_configuration_serves(open_run, seed, caplog):
    rng = random.Random(seed)
    selection = {name: rng.choice(values) for name, values in EXTREMES.items()}
    low, high = rng.choice(RANGES)
    ends = {"reward_min": low, "reward_max": high}
    run = open_run(30, window_steps=rng.choice([1, 100_000]), selection=selection, **ends)
    for step in (0, 1, 2, 5000, 15_000):
        batch = run.next(count=6, step=step)
        kinds = [[high], [low], [low, high], [low, low + (high - low) / 3]]
        groups = {p.slot: rng.choice(kinds) * (p.attempt_count // 2) for p in batch.prompts}
        run.report(batch, groups)
        run.release(batch)
        probes = run.probes(count=3, step=step, attempt_count=1).batch
        run.report_probes(probes, {0: [high]})
        run.release(probes)
    stats = run.stats()
    assert sum(stats.pass_rate_histogram) == 30
    assert stats.attempt_count == sum(state.attempt_count for state in run.list().prompts)
    for state in run.list().prompts:
        assert 0 <= state.pass_rate_low <= state.pass_rate <= state.pass_rate_high <= 1
        for point in run.prompt(state.prompt_id).history:
            assert low <= point.mean_reward <= high or math.isclose(
                point.mean_reward, low, abs_tol=(high - low) * 1e-4
            )
    assert caplog.text.count("rpc failed") == 0
