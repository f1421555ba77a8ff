"""Leases each prompt once and counts what is reported, in memory. For a CUDA machine that has
PyTorch, grpcio and protobuf but neither Redis' client nor a Valkey binary, and no network to get
them from: the server cannot run there. `python -m tests.bench.stand_in` prints where it listens."""

from __future__ import annotations

import signal
import threading
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from curriculum_api.limits import MAX_MESSAGE_BYTES
from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as probe_pb
from curriculum_api.v1 import trainer_service_pb2 as trainer_pb
from curriculum_api.v1.operator_service_pb2_grpc import (
    OperatorServiceServicer,
    add_OperatorServiceServicer_to_server,
)
from curriculum_api.v1.probe_service_pb2_grpc import (
    ProbeServiceServicer,
    add_ProbeServiceServicer_to_server,
)
from curriculum_api.v1.trainer_service_pb2_grpc import (
    TrainerServiceServicer,
    add_TrainerServiceServicer_to_server,
)


class Operator(OperatorServiceServicer):
    """Runs, and the prompts of each that were not leased yet."""

    def __init__(self) -> None:
        self.runs: dict[str, run_pb2.Run] = {}
        self.waiting: defaultdict[str, deque[prompt_pb2.Prompt]] = defaultdict(deque)

    def CreateRun(self, request: Any, _context: object) -> op.CreateRunResponse:
        run = run_pb2.Run(run_id=request.run_id, config=request.config)
        run.config.reward_max = run.config.pass_threshold = 1.0
        self.runs[request.run_id] = run
        return op.CreateRunResponse(run=run)

    def GetRun(self, request: Any, _context: object) -> op.GetRunResponse:
        return op.GetRunResponse(run=self.runs[request.run_id])

    def AddPrompts(self, request: Any, _context: object) -> op.AddPromptsResponse:
        self.waiting[request.run_id].extend(request.prompts)
        return op.AddPromptsResponse()


class Probe(ProbeServiceServicer):
    """Leases in the order in which the prompts were added."""

    def __init__(self, operator: Operator) -> None:
        self._operator, self._lock = operator, threading.Lock()

    def LeaseProbes(self, request: Any, _context: object) -> probe_pb.LeaseProbesResponse:
        waiting = self._operator.waiting[request.run_id]
        group_size = self._operator.runs[request.run_id].config.selection.group_size
        batch = batch_pb2.Batch(batch_id=request.request_id)
        with self._lock:
            for slot in range(min(request.prompt_count, len(waiting))):
                batch.prompts.add(
                    slot=slot,
                    prompt=waiting.popleft(),
                    attempt_count=request.attempt_count or group_size,
                )
        if len(batch.prompts) < request.prompt_count:
            batch.shortfall = "every prompt was leased"
        return probe_pb.LeaseProbesResponse(batch=batch)

    def RenewProbes(self, _request: object, _context: object) -> probe_pb.RenewProbesResponse:
        return probe_pb.RenewProbesResponse()

    def ReportProbes(self, request: Any, _context: object) -> probe_pb.ReportProbesResponse:
        rewards = request.outcomes.rewards
        receipt = batch_pb2.ReportReceipt(
            attempt_count=len(rewards), pass_count=sum(reward >= 1 for reward in rewards)
        )
        return probe_pb.ReportProbesResponse(receipt=receipt)


class Trainer(TrainerServiceServicer):
    """Takes back whatever is given back."""

    def ReleaseBatch(self, _request: object, _context: object) -> trainer_pb.ReleaseBatchResponse:
        return trainer_pb.ReleaseBatchResponse()


def main() -> None:
    """Serve until SIGTERM."""
    size = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("receive", "send")]
    server = grpc.server(ThreadPoolExecutor(8), options=size)
    operator = Operator()
    add_OperatorServiceServicer_to_server(operator, server)
    add_ProbeServiceServicer_to_server(Probe(operator), server)
    add_TrainerServiceServicer_to_server(Trainer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
