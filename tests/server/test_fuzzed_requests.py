"""Every field of every RPC twisted, and whatever else bytes can be: each call is answered in time
and by the contract, and one that is refused changes nothing.

The cases follow from the descriptors, so that a new RPC is covered once it has a valid request.
FUZZ_EXAMPLES makes the random part longer: `make fuzz`.
"""

from __future__ import annotations

import os

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curriculum_api.v1 import run_pb2
from curriculum_server.wire import tag, varint
from tests.server.twisting import (
    METHODS,
    NUMBERS,
    TEXTS,
    every_twist,
    field_paths,
    odd_values,
    valid_requests,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
CALL_LIMIT_S = 5.0
FORESEEN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
RANDOMLY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DIGEST = """
local names = redis.call('KEYS', ARGV[1])
table.sort(names)
local parts = {}
for i, name in ipairs(names) do parts[i] = name .. redis.sha1hex(redis.call('DUMP', name)) end
return redis.sha1hex(table.concat(parts))
"""


class Caller:
    """Sends what it is given to one method and judges the answers."""

    def __init__(self, stubs, raw, run, method):
        path = f"/{method.containing_service.full_name}/{method.name}"
        self._call = stubs.channel.unary_unary(path)
        self._raw, self._run = raw, run
        self._before = None

    def send(self, content):
        """The answer must be foreseen, and a refusal must leave the store alone."""
        before = self._before or self._digest()
        status, details = self._answer(content)
        assert status in FORESEEN, (status, details, content[:500])
        assert details or status is grpc.StatusCode.OK, content[:500]
        self._before = self._digest()
        if status is not grpc.StatusCode.OK and self._before != before:
            # Was it the refusal, or the server's tidying behind an earlier call?
            assert self._answer(content)[0] is status
            before, self._before = self._before, self._digest()
            assert self._before == before, (status, details, content[:500])

    def _answer(self, content):
        try:
            self._call(content, timeout=CALL_LIMIT_S)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    def _digest(self):
        return self._raw.eval(DIGEST, 0, f"*{self._run.run_id}*"), self._raw.dbsize()


@pytest.fixture
def lived_in(open_run):
    """A run with counts, a checkpoint and the batch "held"."""
    channel = run_pb2.Channel(name="entropy", min_value=0, max_value=1)
    run = open_run(10, window_steps=2, channels=[channel])
    run.play(0)
    run.checkpoint("start", 0)
    return run, run.next("held", count=3)


@EVERY_METHOD
def test_every_field_of_every_call_may_be_odd(lived_in, stubs, raw, method):
    run, held = lived_in
    valid = valid_requests(run, held)[method.name]
    caller, twisted = Caller(stubs, raw, run, method), set()
    for path, request in every_twist(valid):
        twisted.add(path)
        caller.send(request.SerializeToString())
    assert twisted == set(field_paths(method.input_type))


@EVERY_METHOD
def test_any_message_gets_a_foreseen_answer(lived_in, stubs, raw, method):
    run, held = lived_in
    valid = valid_requests(run, held)[method.name]
    caller = Caller(stubs, raw, run, method)

    @RANDOMLY
    @given(fields=messages(method.input_type), how=st.sampled_from(["alone", "named", "merged"]))
    def check(fields, how):
        request = GetMessageClass(method.input_type)(**fields)
        if how == "named" and hasattr(request, "run_id"):
            request.run_id = run.run_id
        if how == "merged":
            both = type(valid)()
            both.CopyFrom(valid)
            both.MergeFrom(request)
            request = both
        caller.send(request.SerializeToString())

    check()


@EVERY_METHOD
def test_any_bytes_get_a_foreseen_answer(lived_in, stubs, raw, method):
    run, held = lived_in
    valid = valid_requests(run, held)[method.name].SerializeToString()
    caller = Caller(stubs, raw, run, method)

    @RANDOMLY
    @given(content=damaged(valid, method.input_type))
    def check(content):
        caller.send(content)

    check()


def messages(descriptor):
    """Any message, as what its constructor takes."""
    return st.fixed_dictionaries(
        {}, optional={field.name: field_values(field) for field in descriptor.fields}
    )


def field_values(field):
    if not field.message_type:
        one = scalars(field)
    elif field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(scalars(entry["key"]), field_values(entry["value"]), max_size=3)
    else:
        one = messages(field.message_type)
    if not field.is_repeated:
        return one
    # Lists are in lists, and texts are long: a few dozen of each are megabytes.
    times = 2500 if field.cpp_type in NUMBERS else 30
    many = st.lists(one, min_size=1, max_size=2).map(lambda values: values * times)
    return st.lists(one, max_size=4) | many


def scalars(field):
    whole = {
        FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
        FieldDescriptor.CPPTYPE_ENUM: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    }
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=200)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
        return st.sampled_from(TEXTS) | texts
    return st.sampled_from(odd_values(field)) | whole[field.cpp_type]


@st.composite
def damaged(draw, valid, descriptor):
    """An encoded message that was cut, doubled, overwritten or given fields that it cannot have."""
    content = draw(st.sampled_from([valid, valid, valid + valid, b""]))
    numbers = st.sampled_from([field.number for field in descriptor.fields] or [1])
    foreign = st.one_of(
        st.binary(max_size=40),
        # A field of another type, or text that is none.
        st.builds(
            lambda n, kind, rest: tag(n, kind) + rest, numbers, st.integers(0, 7), st.binary()
        ),
        st.builds(lambda n: tag(n, 2) + b"\x03\xff\xfe\xfd", numbers),
        # A length beyond the end, or beyond any memory.
        st.builds(lambda n, size: tag(n, 2) + varint(size), numbers, st.integers(1, 2**63)),
        # Fields that nobody knows.
        st.builds(lambda n, rest: tag(n, 2) + varint(len(rest)) + rest, UNKNOWN, st.binary()),
        st.builds(lambda n: tag(n, 2) + varint(100_000) + bytes(100_000), UNKNOWN),
        # Groups in groups in groups, open or closed.
        st.builds(lambda n, depth: tag(n, 3) * depth, UNKNOWN, DEPTHS),
        st.builds(lambda n, depth: tag(n, 3) * depth + tag(n, 4) * depth, UNKNOWN, DEPTHS),
        # A number that does not end.
        st.builds(lambda n, size: tag(n, 0) + b"\xff" * size, numbers, st.integers(1, 40)),
    )
    for piece in draw(st.lists(foreign, max_size=3)):
        at = draw(st.integers(0, len(content)))
        skipped = draw(st.sampled_from([0, 0, 1, len(piece)]))
        content = content[:at] + piece + content[at + skipped :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


KINDS = st.integers(0, 7)
UNKNOWN = st.integers(100, 2**29 - 1)
DEPTHS = st.sampled_from([1, 50, 99, 100, 101, 10_000])
