"""What a prober calls."""

from __future__ import annotations

import asyncio
import logging

from google.protobuf.timestamp_pb2 import Timestamp

from curriculum_api.errors import CurriculumError
from curriculum_api.limits import MAX_BATCH_PROMPTS, MAX_REQUEST_ID_BYTES
from curriculum_api.v1 import probe_service_pb2 as pb
from curriculum_server import convert, validate
from curriculum_server.engine.composing import BatchRequest
from curriculum_server.engine.embedding import NewEmbedding, add_embeddings, unembedded_page
from curriculum_server.engine.engine import Engine
from curriculum_server.engine.probing import settled_slots
from curriculum_server.engine.reporting import renew_batch
from curriculum_server.services import batches
from curriculum_server.services.paging import INDEX, decode_token, encode_token

logger = logging.getLogger(__name__)


class ProbeService:
    """Hands out prompts to sample and takes their outcomes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def LeaseProbes(self, request: pb.LeaseProbesRequest) -> bytes:
        run_id = validate.run_id(request.run_id)
        attempts, rollouts = validate.probe_budget(request)
        wanted = BatchRequest(
            request_id=validate.request_id(request.request_id),
            prompt_count=validate.count("prompt_count", request.prompt_count, 1, MAX_BATCH_PROMPTS),
            policy_step=request.policy_step,
            timeline=None,
            attempt_count=attempts,
            rollout_budget=rollouts,
            probe=True,
            is_reference=validate.is_reference(request),
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
        report, receipt = await batches.count(self._engine, request)
        served = self._engine.served(request.run_id)
        answer = pb.ReportProbesResponse(receipt=receipt)
        try:
            answer.settled_slots.extend(await settled_slots(served.run, served.batches, report))
        except CurriculumError as error:  # what was counted is acknowledged all the same
            logger.warning("settled prompts unknown run=%s because=%s", request.run_id, error)
        return answer

    async def ListUnembeddedPrompts(
        self, request: pb.ListUnembeddedPromptsRequest
    ) -> pb.ListUnembeddedPromptsResponse:
        run = self._engine.served(validate.run_id(request.run_id)).run
        size = validate.page_size(request.page_size)
        start = int(decode_token(request.page_token, INDEX) or 0)
        page = await unembedded_page(run, start, size)
        response = convert.unembedded_message(page)
        response.next_page_token = encode_token("" if page.next is None else str(page.next))
        return response

    async def AddEmbeddings(self, request: pb.AddEmbeddingsRequest) -> pb.AddEmbeddingsResponse:
        run = self._engine.served(validate.run_id(request.run_id)).run
        validate.request_id(request.request_id)
        embeddings: list[NewEmbedding] = []
        for piece in validate.embeddings(request.embeddings):
            embeddings += convert.new_embeddings(piece)
            await asyncio.sleep(0)
        added = await add_embeddings(run, embeddings)
        known = len(embeddings) - added
        logger.info(
            "embeddings added run=%s request=%r added=%d known=%d",
            request.run_id, request.request_id, added, known,
        )  # fmt: skip
        return pb.AddEmbeddingsResponse(added_count=added, known_count=known)
