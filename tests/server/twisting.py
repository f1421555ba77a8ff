"""Requests with odd values, and valid ones to start from, for whatever RPCs there are."""

from __future__ import annotations

import base64
import math

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2, stats_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr

METHODS = [
    method
    for module in (tr, pr, op)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
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
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice([0, 1, 4, 100]))
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
    early = stats_pb2.StepRange(first_policy_step=0, last_policy_step=0)
    later = stats_pb2.StepRange(first_policy_step=1, last_policy_step=4)
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
    graded = run_pb2.RunConfig(objective={"reward": 1.0})
    graded.MergeFrom(config)
    exported = run.stubs.operator.ExportRun(op.ExportRunRequest(**name)).parts
    lease = {"request_id": "next", "prompt_count": 2, "policy_step": 3}
    requests = [
        tr.NextBatchRequest(**name, **lease, timeline=0, rollout_budget=9),
        run.report_request(held, group, **columns),
        tr.ReleaseBatchRequest(**name, batch_id="held"),
        tr.PublishPolicyRequest(**name, policy=policy),
        tr.CheckpointRequest(**name, checkpoint=mark, timeline=0),
        tr.RollbackRequest(**name, request_id="back", checkpoint_name="start"),
        tr.DeleteCheckpointRequest(**name, checkpoint_name="start"),
        pr.LeaseProbesRequest(**name, **lease, attempt_count=3),
        pr.RenewProbesRequest(**name, batch_id="held"),
        run.report_request(held, group, kind=pr.ReportProbesRequest, **columns),
        pr.ListUnembeddedPromptsRequest(**name, page_size=5, page_token="Mg=="),
        pr.AddEmbeddingsRequest(
            **name, request_id="embed", embeddings=[{"prompt_id": "p1", "embedding": [0.5, -1.0]}]
        ),
        op.CreateRunRequest(run_id=f"{run.run_id}-b", config=graded),
        op.GetRunRequest(**name),
        op.ListRunsRequest(page_size=5, page_token="cnVuLTE="),
        op.UpdateRunRequest(**name, config=config),
        op.DeleteRunRequest(**name),
        op.AddPromptsRequest(**name, prompts=[prompt]),
        op.ListPromptsRequest(**name, page_size=5, page_token="Mg==", domain="d0", band=1),
        op.GetPromptRequest(**name, prompt_id="p1"),
        op.GetStatsRequest(**name),
        op.CompareBoundaryRequest(**name, before=early, after=later, ks=[1, 8]),
        op.ExportRunRequest(**name),
        op.ImportRunRequest(
            run_id=f"{run.run_id}-c", request_id="import", parts=exported, commit=True
        ),
        op.CheckStoreRequest(**name, page_token=base64.b64encode(f"{run.run_id}:0".encode())),
    ]
    return {request.DESCRIPTOR.name.removesuffix("Request"): request for request in requests}


def field_paths(descriptor):
    """Every field of a message and of those within it, by path."""
    for field in descriptor.fields:
        yield field.name
        if field.message_type:
            yield from (f"{field.name}.{path}" for path in field_paths(field.message_type))


def every_twist(root, message_of=lambda root: root, prefix=""):
    """Copies of a request with one field odd: each field in turn, with each odd value. Pairs of the
    field's path and the copy."""
    for field in message_of(root).DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        for edit in _edits(field):
            copy = type(root)()
            copy.CopyFrom(root)
            edit(message_of(copy))
            yield path, copy
        if field.message_type and not field.message_type.GetOptions().map_entry:
            yield from every_twist(root, _within(message_of, field), f"{path}.")
        elif field.message_type:
            value = field.message_type.fields_by_name["value"]
            yield from ((f"{path}.key", copy) for copy in _odd_keys(root, message_of, field))
            if value.message_type:
                inside = _within_map(message_of, field)
                yield from every_twist(root, inside, f"{path}.value.")
            yield f"{path}.value", root


def _odd_keys(root, message_of, field):
    for key in TEXTS:
        copy = type(root)()
        copy.CopyFrom(root)
        items = getattr(message_of(copy), field.name)
        if field.message_type.fields_by_name["value"].message_type:
            items[key].SetInParent()
        else:
            items[key] = 1
        yield copy


def _within(message_of, field):
    def inner(root):
        value = getattr(message_of(root), field.name)
        if field.is_repeated:
            return value[0] if value else value.add()
        return value

    return inner


def _within_map(message_of, field):
    def inner(root):
        items = getattr(message_of(root), field.name)
        return items[next(iter(items), "odd")]

    return inner


def _edits(field):
    """Changes of a message that make one of its fields odd."""
    name = field.name
    yield lambda message: message.ClearField(name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        if not value.message_type:
            for odd_value in odd_values(value):
                yield lambda message, v=odd_value: getattr(message, name).update({"odd": v})
    elif field.message_type and field.is_repeated:
        yield lambda message: getattr(message, name).add()
        yield lambda message: getattr(message, name).extend(list(getattr(message, name)) * 2)
        yield lambda message: [getattr(message, name).add() for _ in range(5000)]
    elif field.message_type:
        yield lambda message: getattr(message, name).SetInParent()
    elif field.is_repeated:
        for odd_value in odd_values(field):
            is_long = isinstance(odd_value, str | bytes) and len(odd_value) > 100
            for count in (1, 3) if is_long else (1, 3, 70_000):
                yield lambda message, v=odd_value, n=count: getattr(message, name).extend([v] * n)
    else:
        for odd_value in odd_values(field):
            yield lambda message, v=odd_value: setattr(message, name, v)


def odd_values(field):
    if field.type == FieldDescriptor.TYPE_BYTES:
        return [b"", b"\0", b"\xff" * 9, b"{}", b"x" * 1_000_000]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return [*TEXTS, "é" * 100, "x" * 300_000]
    return NUMBERS[field.cpp_type]
