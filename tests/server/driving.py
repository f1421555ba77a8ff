"""A run as a test drives it, and refusals as values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2, stats_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as pr
from curriculum_api.v1 import trainer_service_pb2 as tr
from tests.conftest import Stubs


@dataclass(frozen=True)
class Refusal:
    """How a call failed."""

    status: str
    details: str
    error: str
    """The class that the trailing metadata names."""


def refusal(call: Callable[[Any], object], request: object) -> Refusal:
    """Make a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    error: Any = caught.value
    metadata = dict(error.trailing_metadata() or ())
    return Refusal(error.code().name, error.details(), str(metadata.get("curriculum-error", "")))


class RunDriver:
    """One run, through one server's stubs; requests can be made without sending them."""

    def __init__(self, stubs: Stubs, run_id: str) -> None:
        self.stubs = stubs
        self.run_id = run_id
        self._numbers = itertools.count()

    def through(self, stubs: Stubs) -> RunDriver:
        """The same run on another server."""
        other = RunDriver(stubs, self.run_id)
        other._numbers = self._numbers
        return other

    # Batches

    def next_request(
        self, request_id: str | None = None, count: int = 4, step: int = 0, **fields: Any
    ) -> tr.NextBatchRequest:
        return tr.NextBatchRequest(
            run_id=self.run_id,
            request_id=f"batch-{next(self._numbers)}" if request_id is None else request_id,
            prompt_count=count,
            policy_step=step,
            **fields,
        )

    def next(self, *arguments: Any, **fields: Any) -> batch_pb2.Batch:
        return self.stubs.trainer.NextBatch(self.next_request(*arguments, **fields)).batch

    def release(self, batch: batch_pb2.Batch) -> int:
        return self.stubs.trainer.ReleaseBatch(
            tr.ReleaseBatchRequest(
                run_id=self.run_id, batch_id=batch.batch_id, timeline=batch.timeline
            )
        ).released_count

    def probes(
        self, request_id: str | None = None, count: int = 4, step: int = 0, **fields: Any
    ) -> pr.LeaseProbesResponse:
        return self.stubs.probe.LeaseProbes(
            pr.LeaseProbesRequest(
                run_id=self.run_id,
                request_id=f"probes-{next(self._numbers)}" if request_id is None else request_id,
                prompt_count=count,
                policy_step=step,
                **fields,
            )
        )

    # Embeddings

    def embed_request(
        self, embeddings: Mapping[str, Sequence[float]], request_id: str = "embed"
    ) -> pr.AddEmbeddingsRequest:
        """By prompt_id."""
        return pr.AddEmbeddingsRequest(
            run_id=self.run_id,
            request_id=request_id,
            embeddings=[
                prompt_pb2.PromptEmbedding(prompt_id=prompt_id, embedding=vector)
                for prompt_id, vector in embeddings.items()
            ],
        )

    def embed(self, embeddings: Mapping[str, Sequence[float]]) -> tuple[int, int]:
        """How many were added, and how many were known."""
        answer = self.stubs.probe.AddEmbeddings(self.embed_request(embeddings))
        return answer.added_count, answer.known_count

    def unembedded(
        self, page_size: int = 1000, page_token: str = ""
    ) -> pr.ListUnembeddedPromptsResponse:
        return self.stubs.probe.ListUnembeddedPrompts(
            pr.ListUnembeddedPromptsRequest(
                run_id=self.run_id, page_size=page_size, page_token=page_token
            )
        )

    # Reports

    def report_request(
        self,
        batch: batch_pb2.Batch,
        groups: Mapping[int, Sequence[float]],
        *,
        request_id: str | None = None,
        kind: type[Message] = tr.ReportOutcomesRequest,
        **fields: Any,
    ) -> Any:
        """Rewards by slot; further fields, of the request or of its outcomes, replace what follows
        from the batch."""
        rows = [(slot, reward) for slot, given in groups.items() for reward in given]
        outcomes = {"slots": [s for s, _ in rows], "rewards": [r for _, r in rows]}
        for name in batch_pb2.Outcomes.DESCRIPTOR.fields_by_name:
            if name in fields:
                outcomes[name] = fields.pop(name)
        values: dict[str, Any] = {
            "run_id": self.run_id,
            "request_id": f"report-{next(self._numbers)}" if request_id is None else request_id,
            "batch_id": batch.batch_id,
            "timeline": batch.timeline,
            "policy_step": batch.policy_step,
            "outcomes": batch_pb2.Outcomes(**outcomes),
        }
        return kind(**values | fields)

    def report(self, *arguments: Any, **fields: Any) -> batch_pb2.ReportReceipt:
        return self.stubs.trainer.ReportOutcomes(self.report_request(*arguments, **fields)).receipt

    def report_probes(self, *arguments: Any, **fields: Any) -> batch_pb2.ReportReceipt:
        request = self.report_request(*arguments, kind=pr.ReportProbesRequest, **fields)
        return self.stubs.probe.ReportProbes(request).receipt

    def play(self, step: int, count: int = 4, passes: int = 1) -> batch_pb2.Batch:
        """A whole step: a batch and every attempt of it, `passes` of them passing per group."""
        batch = self.next(count=count, step=step)
        if batch.prompts:
            groups = {
                p.slot: [1.0] * passes + [0.0] * (p.attempt_count - passes) for p in batch.prompts
            }
            self.report(batch, groups)
        return batch

    # The run

    def checkpoint(self, name: str, step: int, **fields: Any) -> list[tuple[str, int]]:
        answer = self.stubs.trainer.Checkpoint(
            tr.CheckpointRequest(
                run_id=self.run_id,
                checkpoint=run_pb2.Checkpoint(name=name, policy_step=step),
                **fields,
            )
        )
        return [(mark.name, mark.policy_step) for mark in answer.checkpoints]

    def delete_checkpoint(self, name: str) -> list[tuple[str, int]]:
        request = tr.DeleteCheckpointRequest(run_id=self.run_id, checkpoint_name=name)
        answer = self.stubs.trainer.DeleteCheckpoint(request)
        return [(mark.name, mark.policy_step) for mark in answer.checkpoints]

    def rollback(self, name: str, request_id: str | None = None) -> tr.RollbackResponse:
        request_id = request_id or f"rollback-{next(self._numbers)}"
        return self.stubs.trainer.Rollback(
            tr.RollbackRequest(run_id=self.run_id, request_id=request_id, checkpoint_name=name)
        )

    def publish(self, step: int, uri: str) -> None:
        self.stubs.trainer.PublishPolicy(
            tr.PublishPolicyRequest(
                run_id=self.run_id, policy=run_pb2.Policy(policy_step=step, uri=uri)
            )
        )

    def add(self, prompts: Iterable[prompt_pb2.Prompt]) -> op.AddPromptsResponse:
        return self.stubs.operator.AddPrompts(
            op.AddPromptsRequest(run_id=self.run_id, prompts=prompts)
        )

    def update(self, **config: Any) -> run_pb2.Run:
        request = op.UpdateRunRequest(run_id=self.run_id, config=run_pb2.RunConfig(**config))
        return self.stubs.operator.UpdateRun(request).run

    def delete(self) -> None:
        self.stubs.operator.DeleteRun(op.DeleteRunRequest(run_id=self.run_id))

    # What is seen of it

    def get(self) -> run_pb2.Run:
        return self.stubs.operator.GetRun(op.GetRunRequest(run_id=self.run_id)).run

    def stats(self) -> stats_pb2.RunStats:
        return self.stubs.operator.GetStats(op.GetStatsRequest(run_id=self.run_id)).stats

    def prompt(self, prompt_id: str) -> op.GetPromptResponse:
        return self.stubs.operator.GetPrompt(
            op.GetPromptRequest(run_id=self.run_id, prompt_id=prompt_id)
        )

    def list(self, **fields: Any) -> op.ListPromptsResponse:
        return self.stubs.operator.ListPrompts(
            op.ListPromptsRequest(run_id=self.run_id, **{"page_size": 1000} | fields)
        )

    def counts(self) -> dict[str, tuple[int, int]]:
        """Attempts and passes by prompt_id, of prompts that were attempted."""
        states = self.list().prompts
        return {s.prompt_id: (s.attempt_count, s.pass_count) for s in states if s.attempt_count}

    def seen(self) -> tuple[bytes, ...]:
        """Everything an operator sees of the run, to compare."""
        views = (self.get(), self.stats(), self.list())
        return tuple(view.SerializeToString(deterministic=True) for view in views)
