"""What a trainer calls."""

from __future__ import annotations

from curriculum_api.limits import (
    MAX_BATCH_PROMPTS,
    MAX_CHECKPOINT_NAME_BYTES,
    MAX_POLICY_STEP,
    MAX_REQUEST_ID_BYTES,
    MAX_URI_BYTES,
)
from curriculum_api.v1 import trainer_service_pb2 as pb
from curriculum_server import convert, validate
from curriculum_server.engine import lifecycle
from curriculum_server.engine.composing import BatchRequest
from curriculum_server.engine.engine import Engine
from curriculum_server.engine.reporting import release_batch
from curriculum_server.services import batches


class TrainerService:
    """Hands out batches and takes their outcomes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def NextBatch(self, request: pb.NextBatchRequest) -> bytes:
        request_id = validate.request_id(request.request_id)
        count = validate.count("prompt_count", request.prompt_count, 1, MAX_BATCH_PROMPTS)
        budget = None
        if request.HasField("rollout_budget"):
            budget = validate.rollout_budget(request.rollout_budget, count)
        wanted = BatchRequest(
            request_id=request_id,
            prompt_count=count,
            policy_step=request.policy_step,
            timeline=request.timeline if request.HasField("timeline") else None,
            rollout_budget=budget,
        )
        return await batches.lease(self._engine, validate.run_id(request.run_id), wanted)

    async def ReportOutcomes(self, request: pb.ReportOutcomesRequest) -> pb.ReportOutcomesResponse:
        _, receipt = await batches.count(self._engine, request)
        return pb.ReportOutcomesResponse(receipt=receipt)

    async def ReleaseBatch(self, request: pb.ReleaseBatchRequest) -> pb.ReleaseBatchResponse:
        served = self._engine.served(validate.run_id(request.run_id))
        batch_id = validate.text("batch_id", request.batch_id, MAX_REQUEST_ID_BYTES)
        released = await release_batch(served.run, served.batches, request.timeline, batch_id)
        return pb.ReleaseBatchResponse(released_count=released)

    async def PublishPolicy(self, request: pb.PublishPolicyRequest) -> pb.PublishPolicyResponse:
        run = self._engine.served(validate.run_id(request.run_id)).run
        uri = validate.text("policy.uri", request.policy.uri, MAX_URI_BYTES)
        await lifecycle.publish_policy(run, request.policy.policy_step, uri)
        return pb.PublishPolicyResponse()

    async def Checkpoint(self, request: pb.CheckpointRequest) -> pb.CheckpointResponse:
        run = self._engine.served(validate.run_id(request.run_id)).run
        mark = request.checkpoint
        name = validate.text("checkpoint.name", mark.name, MAX_CHECKPOINT_NAME_BYTES)
        step = validate.count("checkpoint.policy_step", mark.policy_step, 0, MAX_POLICY_STEP)
        timeline = request.timeline if request.HasField("timeline") else None
        document = await lifecycle.checkpoint(run, name, step, timeline)
        return pb.CheckpointResponse(checkpoints=convert.checkpoint_messages(document))

    async def DeleteCheckpoint(
        self, request: pb.DeleteCheckpointRequest
    ) -> pb.DeleteCheckpointResponse:
        run = self._engine.served(validate.run_id(request.run_id)).run
        name = validate.text("checkpoint_name", request.checkpoint_name, MAX_CHECKPOINT_NAME_BYTES)
        document = await lifecycle.delete_checkpoint(run, name)
        return pb.DeleteCheckpointResponse(checkpoints=convert.checkpoint_messages(document))

    async def Rollback(self, request: pb.RollbackRequest) -> pb.RollbackResponse:
        run = self._engine.served(validate.run_id(request.run_id)).run
        name = validate.text("checkpoint_name", request.checkpoint_name, MAX_CHECKPOINT_NAME_BYTES)
        request_id = validate.request_id(request.request_id)
        timeline, step = await lifecycle.rollback(run, request_id, name)
        return pb.RollbackResponse(timeline=timeline, policy_step=step)
