"""The curriculum server, as a prober sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from curriculum_api import errors
from curriculum_api.channel import TlsConfig, bearer, open_channel
from curriculum_api.status import AWAY, error_from_rpc
from curriculum_api.v1 import batch_pb2, prompt_pb2, run_pb2
from curriculum_api.v1 import operator_service_pb2 as operator_pb
from curriculum_api.v1 import probe_service_pb2 as probe_pb
from curriculum_api.v1 import trainer_service_pb2 as trainer_pb
from curriculum_api.v1.operator_service_pb2_grpc import OperatorServiceStub
from curriculum_api.v1.probe_service_pb2_grpc import ProbeServiceStub
from curriculum_api.v1.trainer_service_pb2_grpc import TrainerServiceStub
from curriculum_probe.patience import Patience

_Response = TypeVar("_Response")

CALL_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


class Service:
    """The calls about one run. All but `renew` and `release` wait for a server that is away."""

    def __init__(
        self,
        address: str,
        run_id: str,
        *,
        patience: Patience,
        token: str | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        self._address, self._run_id, self._patience = address, run_id, patience
        self._metadata = bearer(token)
        self._channel = open_channel(address, tls)
        self._probe = ProbeServiceStub(self._channel)
        self._trainer = TrainerServiceStub(self._channel)
        self._operator = OperatorServiceStub(self._channel)

    def run(self) -> run_pb2.Run:
        request = operator_pb.GetRunRequest(run_id=self._run_id)
        response: operator_pb.GetRunResponse = self._patiently(self._operator.GetRun, request)
        return response.run

    def lease(
        self,
        request_id: str,
        prompt_count: int,
        *,
        policy_step: int,
        attempt_count: int | None = None,
        rollout_budget: int | None = None,
        is_reference: bool = False,
    ) -> probe_pb.LeaseProbesResponse:
        request = probe_pb.LeaseProbesRequest(
            run_id=self._run_id,
            request_id=request_id,
            prompt_count=prompt_count,
            policy_step=policy_step,
            attempt_count=attempt_count,
            rollout_budget=rollout_budget,
            is_reference=is_reference,
        )
        response: probe_pb.LeaseProbesResponse = self._patiently(self._probe.LeaseProbes, request)
        return response

    def report(
        self,
        request_id: str,
        batch: batch_pb2.Batch,
        *,
        policy_step: int,
        outcomes: batch_pb2.Outcomes,
    ) -> probe_pb.ReportProbesResponse:
        request = probe_pb.ReportProbesRequest(
            run_id=self._run_id,
            request_id=request_id,
            batch_id=batch.batch_id,
            timeline=batch.timeline,
            policy_step=policy_step,
            outcomes=outcomes,
        )
        response: probe_pb.ReportProbesResponse = self._patiently(self._probe.ReportProbes, request)
        return response

    def unembedded(self, page_size: int, page_token: str) -> probe_pb.ListUnembeddedPromptsResponse:
        request = probe_pb.ListUnembeddedPromptsRequest(
            run_id=self._run_id, page_size=page_size, page_token=page_token
        )
        response: probe_pb.ListUnembeddedPromptsResponse = self._patiently(
            self._probe.ListUnembeddedPrompts, request
        )
        return response

    def add_embeddings(
        self, request_id: str, embeddings: Sequence[prompt_pb2.PromptEmbedding]
    ) -> probe_pb.AddEmbeddingsResponse:
        request = probe_pb.AddEmbeddingsRequest(
            run_id=self._run_id, request_id=request_id, embeddings=embeddings
        )
        response: probe_pb.AddEmbeddingsResponse = self._patiently(
            self._probe.AddEmbeddings, request
        )
        return response

    def renew(self, batch: batch_pb2.Batch) -> None:
        """Keep the batch's leases."""
        request = probe_pb.RenewProbesRequest(
            run_id=self._run_id, batch_id=batch.batch_id, timeline=batch.timeline
        )
        self._leniently(self._probe.RenewProbes, request, "leases not renewed")

    def release(self, batch: batch_pb2.Batch) -> None:
        """Give back what was not reported."""
        request = trainer_pb.ReleaseBatchRequest(
            run_id=self._run_id, batch_id=batch.batch_id, timeline=batch.timeline
        )
        self._leniently(self._trainer.ReleaseBatch, request, "leases not given back")

    def close(self) -> None:
        self._channel.close()

    def _patiently(self, rpc: Callable[..., _Response], request: Message) -> _Response:
        return self._patience.repeat(lambda: self._call(rpc, request), AWAY, "server")

    def _leniently(self, rpc: Callable[..., object], request: Message, event: str) -> None:
        """Once: what is not renewed now is renewed next time, and leases run out by themselves."""
        try:
            self._call(rpc, request)
        except errors.CurriculumError as error:
            logger.warning("%s because=%s", event, error)

    def _call(self, rpc: Callable[..., _Response], request: Message) -> _Response:
        try:
            return rpc(request, timeout=CALL_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as rpc_error:
            error = error_from_rpc(rpc_error)
        if isinstance(error, errors.StoreUnavailableError):
            raise errors.StoreUnavailableError(f"{self._address} is unavailable: {error}")
        raise error
