"""What a prober calls."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from curriculum_api.limits import MAX_BATCH_PROMPTS, MAX_GROUP_SIZE, MAX_REQUEST_ID_BYTES
from curriculum_api.v1 import probe_service_pb2 as pb
from curriculum_server import convert, validate
from curriculum_server.engine.composing import BatchRequest
from curriculum_server.engine.engine import Engine
from curriculum_server.engine.reporting import renew_batch
from curriculum_server.services import batches


class ProbeService:
    """Hands out prompts to sample and takes their outcomes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def LeaseProbes(self, request: pb.LeaseProbesRequest) -> bytes:
        run_id, attempts = validate.run_id(request.run_id), None
        if request.HasField("attempt_count"):
            attempts = validate.count("attempt_count", request.attempt_count, 1, MAX_GROUP_SIZE)
        wanted = BatchRequest(
            request_id=validate.request_id(request.request_id),
            prompt_count=validate.count("prompt_count", request.prompt_count, 1, MAX_BATCH_PROMPTS),
            policy_step=request.policy_step,
            timeline=None,
            attempt_count=attempts,
            probe=True,
        )
        batch = await batches.lease(self._engine, run_id, wanted)
        policy = convert.policy_message(self._engine.served(run_id).run.mirror.document)
        return batch + pb.LeaseProbesResponse(policy=policy).SerializeToString()

    async def RenewProbes(self, request: pb.RenewProbesRequest) -> pb.RenewProbesResponse:
        served = self._engine.served(validate.run_id(request.run_id))
        batch_id = validate.text("batch_id", request.batch_id, MAX_REQUEST_ID_BYTES)
        held, expire_s = await renew_batch(served.run, served.batches, request.timeline, batch_id)
        return pb.RenewProbesResponse(
            lease_expire_time=Timestamp(seconds=expire_s), held_count=held
        )

    async def ReportProbes(self, request: pb.ReportProbesRequest) -> pb.ReportProbesResponse:
        return pb.ReportProbesResponse(receipt=await batches.count(self._engine, request))
