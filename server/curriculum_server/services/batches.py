"""What trainers' and probers' batches have in common."""

from __future__ import annotations

from collections import Counter
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from curriculum import Reason
from curriculum_api.limits import MAX_REQUEST_ID_BYTES
from curriculum_api.v1 import batch_pb2, trainer_service_pb2
from curriculum_api.v1.trainer_service_pb2 import ReportOutcomesRequest
from curriculum_server import convert, metrics, validate
from curriculum_server.engine.composing import BatchRequest
from curriculum_server.engine.engine import Engine
from curriculum_server.engine.reporting import ReportRequest, report_outcomes
from curriculum_server.engine.serving import next_batch
from curriculum_server.wire import length_delimited

_BATCH_FIELD = trainer_service_pb2.NextBatchResponse.BATCH_FIELD_NUMBER
"""Of NextBatchResponse and of LeaseProbesResponse."""


async def lease(engine: Engine, run_id: str, wanted: BatchRequest) -> bytes:
    """Lease a batch; the bytes of a response that holds it."""
    served = engine.served(run_id)
    run = served.run
    batch = await next_batch(run, served.composer, wanted)
    record = batch.record
    if batch.is_new:
        for reason, count in Counter(record.slots["reason"].tolist()).items():
            metrics.PROMPTS_SERVED.labels(run_id, Reason(reason).name.lower()).inc(count)
    metrics.POLICY_STEP.labels(run_id).set(max(run.mirror.policy_step, record.policy_step))
    metrics.POOL_PROMPTS.labels(run_id).set(len(run.mirror.catalog))
    head = batch_pb2.Batch(
        batch_id=record.batch_id,
        timeline=record.timeline,
        policy_step=record.policy_step,
        lease_expire_time=Timestamp(seconds=record.expire_s),
        shortfall=record.shortfall,
    )
    return length_delimited(_BATCH_FIELD, head.SerializeToString() + batch.prompts)


async def count(engine: Engine, request: Any) -> tuple[ReportRequest, batch_pb2.ReportReceipt]:
    """Count a ReportOutcomesRequest or a ReportProbesRequest: the report, and its receipt."""
    run_id = validate.run_id(request.run_id)
    validate.request_id(request.request_id)
    validate.text("batch_id", request.batch_id, MAX_REQUEST_ID_BYTES)
    validate.outcomes(request.outcomes)
    served = engine.served(run_id)
    report = convert.report_request(request)
    receipt = await report_outcomes(served.run, served.batches, report)
    if receipt.duplicate:
        metrics.DUPLICATE_REPORTS.labels(run_id).inc()
    else:
        metrics.ATTEMPTS.labels(run_id).inc(receipt.attempt_count)
        metrics.PASSES.labels(run_id).inc(receipt.pass_count)
        metrics.GROUPS.labels(run_id).inc(receipt.completed_group_count)
        metrics.MIXED_GROUPS.labels(run_id).inc(receipt.mixed_group_count)
    engine.warm(run_id, by_trainer=isinstance(request, ReportOutcomesRequest))
    return report, convert.receipt_message(receipt)
