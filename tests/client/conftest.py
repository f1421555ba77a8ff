"""A TrainerService that counts in dicts and fails on demand, and both clients to ask it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, defaultdict, deque
from concurrent import futures
from functools import partial

import grpc
import pytest

from curriculum_api.v1 import batch_pb2, run_pb2
from curriculum_api.v1 import trainer_service_pb2 as pb
from curriculum_api.v1.trainer_service_pb2_grpc import (
    TrainerServiceServicer,
    add_TrainerServiceServicer_to_server,
)
from curriculum_client import AsyncTrainerClient, Feed, TrainerClient
from curriculum_client.testing import FakeCurriculum
from tests import waiting

POOL_SIZE = 100
GROUP_SIZE = 4
LOST_ANSWER = "the call is applied and its answer lost"


class FakeTrainerService(TrainerServiceServicer):
    """Failures are queued by method: statuses with details, or LOST_ANSWER."""

    def __init__(self):
        self.timeline = 0
        self.calls = []
        self.metadata = []
        self.batches = {}
        self.receipts = {}
        self.attempts = Counter()
        self.checkpoints = {}
        self.failures = defaultdict(deque)
        self.hanging = threading.Event()
        self.let_go = threading.Event()
        self.lock = threading.Lock()

    def requests(self, method):
        return [request for name, request in self.calls if name == method]

    def request_ids(self, method):
        return [request.request_id for request in self.requests(method)]

    def _serve(self, method, handle, request, context):
        with self.lock:
            self.calls.append((method, request))
            self.metadata.append(dict(context.invocation_metadata()))
            failure = self.failures[method].popleft() if self.failures[method] else None
        if self.hanging.is_set():
            self.let_go.wait(20)
            context.abort(grpc.StatusCode.CANCELLED, "let go")
        if failure and failure is not LOST_ANSWER:
            context.abort(*failure)
        with self.lock:
            self._check_timeline(request, context)
            response = handle(request, context)
        if failure:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return response

    def _check_timeline(self, request, context):
        field = type(request).DESCRIPTOR.fields_by_name.get("timeline")
        named = field and (not field.has_presence or request.HasField("timeline"))
        if named and request.timeline != self.timeline:
            context.abort(grpc.StatusCode.ABORTED, f"timeline={request.timeline}: is over")

    def _next_batch(self, request, context):
        key = (self.timeline, request.request_id)
        known = self.batches.get(key)
        if known and known.policy_step != request.policy_step:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "was used with other content")
        if not known:
            first = len(self.batches) * request.prompt_count
            self.batches[key] = self._batch(request, range(first, first + request.prompt_count))
        return pb.NextBatchResponse(batch=self.batches[key])

    def _batch(self, request, indices):
        batch = batch_pb2.Batch(
            batch_id=request.request_id, timeline=self.timeline, policy_step=request.policy_step
        )
        batch.lease_expire_time.FromSeconds(1_700_000_000)
        budget = request.rollout_budget or GROUP_SIZE * len(indices)
        for slot, index in enumerate(index for index in indices if index < POOL_SIZE):
            attempts = (budget + slot) // len(indices)
            served = batch.prompts.add(slot=slot, attempt_count=attempts, pass_rate=0.5)
            served.pass_rate_low, served.pass_rate_high = 0.25, 0.75
            served.reason = batch_pb2.REASON_EDGE
            served.prompt.prompt_id, served.prompt.domain = f"p{index}", "math"
            served.prompt.text = f"{index} + 1 = ?"
            served.prompt.payload_json = f'{{"answer": {index + 1}}}'
            served.prompt.tags.append("sum")
            served.prompt.features["digits"] = float(len(str(index)))
        if len(batch.prompts) < request.prompt_count:
            batch.shortfall = "the pool ran dry"
        return batch

    def _report(self, request, context):
        key = (self.timeline, request.request_id)
        duplicate = key in self.receipts
        if not duplicate:
            rewards = request.outcomes.rewards
            self.attempts.update((request.batch_id, slot) for slot in request.outcomes.slots)
            self.receipts[key] = batch_pb2.ReportReceipt(
                attempt_count=len(rewards), pass_count=sum(reward >= 1 for reward in rewards)
            )
        receipt = batch_pb2.ReportReceipt(duplicate=duplicate)
        receipt.MergeFrom(self.receipts[key])
        return pb.ReportOutcomesResponse(receipt=receipt)

    def _checkpoint(self, request, context):
        self.checkpoints[request.checkpoint.name] = request.checkpoint.policy_step
        return pb.CheckpointResponse(
            checkpoints=[
                run_pb2.Checkpoint(name=name, policy_step=step)
                for name, step in self.checkpoints.items()
            ]
        )

    def _rollback(self, request, context):
        if request.checkpoint_name not in self.checkpoints:
            name = request.checkpoint_name
            context.abort(grpc.StatusCode.NOT_FOUND, f"checkpoint_name={name!r}: is not kept")
        self.timeline += 1
        step = self.checkpoints[request.checkpoint_name]
        return pb.RollbackResponse(timeline=self.timeline, policy_step=step)

    def NextBatch(self, request, context):
        return self._serve("NextBatch", self._next_batch, request, context)

    def ReportOutcomes(self, request, context):
        return self._serve("ReportOutcomes", self._report, request, context)

    def ReleaseBatch(self, request, context):
        def handle(request, context):
            return pb.ReleaseBatchResponse(released_count=3)

        return self._serve("ReleaseBatch", handle, request, context)

    def PublishPolicy(self, request, context):
        def handle(request, context):
            return pb.PublishPolicyResponse()

        return self._serve("PublishPolicy", handle, request, context)

    def Checkpoint(self, request, context):
        return self._serve("Checkpoint", self._checkpoint, request, context)

    def Rollback(self, request, context):
        return self._serve("Rollback", self._rollback, request, context)


class FakeServer:
    """The service behind a socket, which can go and come back."""

    def __init__(self, target):
        self.target = target
        self.service = FakeTrainerService()
        self._server = None
        self.start()

    def start(self, credentials=None):
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        add_TrainerServiceServicer_to_server(self.service, self._server)
        if credentials:
            self.port = self._server.add_secure_port(self.target, credentials)
        else:
            self.port = self._server.add_insecure_port(self.target)
        self._server.start()

    def stop(self):
        self.service.let_go.set()
        self._server.stop(None).wait()


class Awaited:
    """A TrainerClient whose calls are awaited, so that one test serves both clients."""

    CALLS = (
        "next_batch",
        "report",
        "report_attempts",
        "release",
        "publish_policy",
        "checkpoint",
        "rollback",
    )
    ENDS = ("flush", "close")

    def __init__(self, client):
        self.client = client

    def __getattr__(self, name):
        attribute = getattr(self.client, name)
        if name in self.CALLS + self.ENDS:
            return partial(asyncio.to_thread, attribute)
        return attribute

    async def __aenter__(self):
        self.client.__enter__()
        return self

    async def __aexit__(self, *exception):
        await asyncio.to_thread(self.client.__exit__, *exception)


@pytest.fixture(scope="session")
def wait_until():
    """The root's, for where these tests run without the server's packages."""
    return waiting.wait_until


@pytest.fixture
def server(tmp_path):
    server = FakeServer(f"unix:{tmp_path}/trainer.sock")
    yield server
    server.stop()


@pytest.fixture
def service(server):
    return server.service


@pytest.fixture(params=["sync", "async"])
def connect(request, server):
    """Makes clients of the parametrised kind."""

    def make(target=server.target, **options):
        options = {"retry_s": 5.0, "timeout_s": 5.0, **options}
        if request.param == "async":
            return AsyncTrainerClient(target, "math", **options)
        return Awaited(TrainerClient(target, "math", **options))

    return make


@pytest.fixture
def lost_answer():
    return LOST_ANSWER


@pytest.fixture
def away():
    return (grpc.StatusCode.UNAVAILABLE, "store: connection refused")


@pytest.fixture
def client_log(caplog):
    caplog.set_level(logging.WARNING, logger="curriculum_client")
    return caplog


@pytest.fixture
def all_rewards():
    """Two passes and two fails for every prompt."""
    return lambda batch: {prompt.prompt_id: [1.0, 0.0, 1.0, 0.0] for prompt in batch}


@pytest.fixture
def fake():
    with FakeCurriculum([f"{n} + 1" for n in range(48)], group_size=4) as fake:
        yield fake


@pytest.fixture
def make_client(fake):
    """Makes clients that give up at once."""
    clients = []

    def make(**options):
        clients.append(fake.client(**{"retry_s": 0, **options}))
        return clients[-1]

    yield make
    fake.come_back()
    for client in clients:
        client.close()


@pytest.fixture
def make_feed(make_client):
    def make(prompt_count=4, client=None, **options):
        return Feed(client or make_client(), prompt_count, **options)

    return make


@pytest.fixture
def feed(make_feed):
    return make_feed()
