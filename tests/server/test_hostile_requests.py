"""Requests that no client of ours would send: none is answered with an internal error."""

from __future__ import annotations

import math
import random
from collections import Counter

import grpc
import pytest

from curriculum_api.v1 import run_pb2
from tests.server.twisting import METHODS, twist, valid_requests

FORESEEN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
}
KEEPING = [method for method in METHODS if method.name != "DeleteRun"]
"""After these the run is still there."""


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


@pytest.mark.parametrize("method", KEEPING, ids=[method.name for method in KEEPING])
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


@pytest.mark.parametrize("method", KEEPING, ids=[method.name for method in KEEPING])
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
    "optimism": [0.0, 10.0],
    "sharpness": [1e-9, 1.0, 64.0],
    "rest_steps": [0, 1_000_000],
    "review_share": [0.0, 0.5],
    "reach_share": [0.0, 0.5],
    "reach_attempt_factor": [1, 64],
    "edge_low": [1e-12, 0.499999],
    "edge_high": [0.500001, 1 - 1e-12],
    "candidate_ratio": [1, 1024],
    "reach_chance": [1e-300, 1 - 1e-12],
    "token_weight": [0.0, 1.0],
    "max_share": [1e-300, 1.0],
    "max_share_steps": [1, 1_000_000],
    "learned_shares": [0.0, 1.0],
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
        for p in batch.prompts:  # each by itself: together they may be more than a report holds
            run.report(batch, {p.slot: rng.choice(kinds) * (p.attempt_count // 2)})
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
