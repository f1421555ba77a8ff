"""Every bound of `curriculum_api.limits` that a request can meet: its maximum is taken, one more is
refused with the field, the value and what is allowed."""

from __future__ import annotations

import grpc
import pytest

from curriculum_api import limits
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import prompt_pb2, run_pb2, stats_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr

ADD = "operator.AddPrompts"
LATER = stats_pb2.StepRange(first_policy_step=1, last_policy_step=4)


def prompts(run, count=1, **fields):
    return op.AddPromptsRequest(
        run_id=run.run_id,
        prompts=[
            prompt_pb2.Prompt(**{"prompt_id": f"new-{i}", "domain": "d"} | fields)
            for i in range(count)
        ],
    )


def config(count):
    channels = [run_pb2.Channel(name=f"c{i}", max_value=1) for i in range(count)]
    return run_pb2.RunConfig(channels=channels)


# By limit: the RPC, what makes a request of a size, and what its refusal must say of one too many.
CASES = {
    "MAX_BATCH_PROMPTS": (
        "trainer.NextBatch",
        lambda run, n: run.next_request(count=n),
        "prompt_count=4097: must be in [1, 4096]",
    ),
    "MAX_SLOT_ATTEMPTS": (
        "trainer.NextBatch",
        lambda run, n: run.next_request(count=1, rollout_budget=n),
        "rollout_budget=32768: must be in [2, 32767]",
    ),
    "MAX_REQUEST_ID_BYTES": (
        "trainer.NextBatch",
        lambda run, n: run.next_request("r" * n),
        "must be 1 to 128 bytes, is 129",
    ),
    "MAX_ADD_PROMPTS": (ADD, prompts, "len(prompts)=4097: must be in [1, 4096]"),
    "MAX_PROMPT_BYTES": (
        ADD,
        lambda run, n: prompts(run, text="x" * (n - 2), payload_json="{}"),
        "prompts[0]: bytes of text and payload_json=262145: must be in [0, 262144]",
    ),
    "MAX_PROMPT_ID_BYTES": (
        ADD,
        lambda run, n: prompts(run, prompt_id="p" * n),
        "must be 1 to 256 bytes, is 257",
    ),
    "MAX_DOMAIN_BYTES": (
        ADD,
        lambda run, n: prompts(run, domain="é" * (n // 2) + "x" * (n % 2)),
        "must be 1 to 128 bytes, is 129",
    ),
    "MAX_TAGS": (
        ADD,
        lambda run, n: prompts(run, tags=[f"t{i}" for i in range(n)]),
        "len(prompts[0].tags)=17: must be in [0, 16]",
    ),
    "MAX_TAG_BYTES": (ADD, lambda run, n: prompts(run, tags=["t" * n]), "prompts[0].tags="),
    "MAX_FEATURES": (
        ADD,
        lambda run, n: prompts(run, features={f"f{i}": 1.0 for i in range(n)}),
        "len(prompts[0].features)=33: must be in [0, 32]",
    ),
    "MAX_EMBEDDING_LENGTH": (
        ADD,
        lambda run, n: prompts(run, embedding=[0.5] * n),
        "len(prompts[0].embedding)=4097: must be in [0, 4096]",
    ),
    "MAX_EMBEDDING_VALUE": (
        ADD,
        lambda run, n: prompts(run, embedding=[0.0, -n]),
        "prompts[0].embedding[1]=-65505.0: must be in [-65504.0, 65504.0]",
    ),
    "MAX_DOMAINS": (
        ADD,
        lambda run, n: op.AddPromptsRequest(
            run_id=run.run_id,
            prompts=[prompt_pb2.Prompt(prompt_id=f"n{i}", domain=f"d{i}") for i in range(n)],
        ),
        "prompts.domain: 1025 domains in a run: at most 1024",
    ),
    "MAX_CHANNELS": (
        "operator.CreateRun",
        lambda run, n: op.CreateRunRequest(run_id=f"{run.run_id}-{n}", config=config(n)),
        "channels",
    ),
    "MAX_KS": (
        "operator.CompareBoundary",
        lambda run, n: op.CompareBoundaryRequest(run_id=run.run_id, after=LATER, ks=[1] * n),
        "len(ks)=17: must be in [0, 16]",
    ),
    "MAX_PROBE_ROLLOUTS": (
        "probe.LeaseProbes",
        lambda run, n: pr.LeaseProbesRequest(
            run_id=run.run_id, request_id=f"r{n}", prompt_count=1, rollout_budget=n
        ),
        "rollout_budget=1048577: must be in [1, 1048576]",
    ),
    "MAX_GROUP_SIZE": (
        "operator.CompareBoundary",
        lambda run, n: op.CompareBoundaryRequest(run_id=run.run_id, after=LATER, ks=[n]),
        "ks=1025: must be in [1, 1024]",
    ),
    "MAX_PAGE_SIZE": (
        "operator.ListPrompts",
        lambda run, n: op.ListPromptsRequest(run_id=run.run_id, page_size=n),
        "page_size=1001: must be in [0, 1000]",
    ),
    "MAX_URI_BYTES": (
        "trainer.PublishPolicy",
        lambda run, n: tr.PublishPolicyRequest(
            run_id=run.run_id, policy=run_pb2.Policy(policy_step=1, uri="u" * n)
        ),
        "must be 1 to 4096 bytes, is 4097",
    ),
    "MAX_CHECKPOINT_NAME_BYTES": (
        "trainer.Checkpoint",
        lambda run, n: tr.CheckpointRequest(
            run_id=run.run_id, checkpoint=run_pb2.Checkpoint(name="c" * n, policy_step=1)
        ),
        "must be 1 to 128 bytes, is 129",
    ),
}
ELSEWHERE = {
    "MAX_REPORT_ATTEMPTS": "test_a_report_holds_as_many_attempts_as_it_may",
    "MAX_MESSAGE_BYTES": "test_a_message_is_as_large_as_it_may_be",
    "MAX_ADD_EMBEDDINGS": "test_probed_embeddings.py",
    "MAX_CHECKPOINTS": "an older one is let go",
    "MAX_POLICY_STEP": "test_a_step_is_as_large_as_it_may_be",
}


def method(run, name):
    service, _, rpc = name.partition(".")
    return getattr(getattr(run.stubs, service), rpc)


def test_every_limit_is_tried():
    declared = {name for name in vars(limits) if name.startswith("MAX_")}
    assert declared == CASES.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("limit", CASES)
def test_the_most_is_taken_and_one_more_is_refused(open_run, refused, limit):
    run, (name, request, said) = open_run(0), CASES[limit]
    most = getattr(limits, limit)
    answer = refused(method(run, name), request(run, most + 1))
    assert (answer.status, answer.error) == ("INVALID_ARGUMENT", "InvalidRequestError")
    assert said in answer.details
    assert run.get().prompt_count == 0
    method(run, name)(request(run, most))


def test_a_report_holds_as_many_attempts_as_it_may(open_run, refused):
    most = limits.MAX_REPORT_ATTEMPTS
    run = open_run(most // 1024 + 1, selection={"group_size": 1024})
    batch = run.next(count=most // 1024 + 1)
    groups = {p.slot: [1.0] * 1024 for p in batch.prompts}
    extra = {batch.prompts[-1].slot: [1.0]}
    full = dict(list(groups.items())[: most // 1024])
    answer = refused(run.stubs.trainer.ReportOutcomes, run.report_request(batch, full | extra))
    assert answer.status == "INVALID_ARGUMENT"
    assert "len(outcomes.slots)=65537: must be in [1, 65536]" in answer.details
    assert run.report(batch, full).attempt_count == most


def test_a_step_is_as_large_as_it_may_be(open_run, refused):
    run, most = open_run(3), limits.MAX_POLICY_STEP

    def request(step):
        mark = run_pb2.Checkpoint(name="end", policy_step=step)
        return tr.CheckpointRequest(run_id=run.run_id, checkpoint=mark)

    answer = refused(run.stubs.trainer.Checkpoint, request(most + 1))
    assert answer.status == "INVALID_ARGUMENT"
    assert f"checkpoint.policy_step={most + 1}: must be in [0, {most}]" in answer.details
    # In range as a number, but no step that this run can mean.
    assert refused(run.stubs.trainer.Checkpoint, request(most)).status == "INVALID_ARGUMENT"


@pytest.mark.parametrize("rpc", ["AddPrompts", "ImportRun", "GetRun"])
def test_a_message_is_as_large_as_it_may_be(server, rpc):
    most = limits.MAX_MESSAGE_BYTES
    with grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(f"/curriculum_api.v1.OperatorService/{rpc}")
        for size, status in ((most, "INVALID_ARGUMENT"), (most + 1, "RESOURCE_EXHAUSTED")):
            with pytest.raises(grpc.RpcError) as refused:
                call(bytes(size), timeout=60)
            assert refused.value.code().name == status
    assert str(most) in refused.value.details()
