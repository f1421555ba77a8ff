"""Between messages and domain objects: the only place that knows both."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from curriculum_api.errors import InvalidRequestError
from curriculum_api.v1 import (
    batch_pb2,
    operator_service_pb2,
    probe_service_pb2,
    prompt_pb2,
    run_pb2,
    stats_pb2,
)
from curriculum_server.engine import inspection
from curriculum_server.engine.config import RETIRED_SELECTION, RunConfig
from curriculum_server.engine.counting import Attempts
from curriculum_server.engine.embedding import NewEmbedding, UnembeddedPage
from curriculum_server.engine.embedding_chunk import EMBEDDING_DTYPE
from curriculum_server.engine.growing import NewPrompt
from curriculum_server.engine.mirror import Mirror
from curriculum_server.engine.reporting import ReportRequest, report_digest
from curriculum_server.store.columns import ATTEMPTS, PASSES
from curriculum_server.store.document import Document
from curriculum_server.store.load import Header
from curriculum_server.store.reports import Receipt
from curriculum_server.wire import prompt_field, prompt_message


def config_changes(message: run_pb2.RunConfig) -> dict[str, Any]:
    """The fields that are set, as plain data."""
    changes = _set_fields(message)
    if message.HasField("lease_ttl"):
        ttl = changes.pop("lease_ttl")
        if ttl.nanos or ttl.seconds < 1:
            shown = f"{ttl.seconds + ttl.nanos / 1e9:g}s"
            raise InvalidRequestError(
                f"config.lease_ttl={shown}: must be whole seconds, at least 1"
            )
        changes["lease_ttl_s"] = ttl.seconds
    if message.HasField("selection"):
        changes["selection"] = _set_fields(message.selection)
        for name, why in RETIRED_SELECTION.items():
            if name in changes["selection"]:
                shown = f"config.selection.{name}={changes['selection'][name]}"
                raise InvalidRequestError(f"{shown}: must be absent; {why}")
    if message.HasField("sampling"):
        changes["sampling"] = _set_fields(message.sampling)
    if message.channels:
        changes["channels"] = [_channel(c) for c in message.channels]
    if message.objective:
        changes["objective"] = dict(message.objective)
    return changes


def run_message(run_id: str, state: Mirror | Header) -> run_pb2.Run:
    """A run as operators see it."""
    return document_message(run_id, state.document, state.policy_step)


def document_message(run_id: str, document: Document, policy_step: int) -> run_pb2.Run:
    """The same of a run's document; what no message can carry is a ValueError or TypeError."""
    message = run_pb2.Run(
        run_id=run_id,
        config=_config_message(RunConfig.from_mapping(document.config)),
        prompt_count=document.prompt_count,
        timeline=document.timeline,
        policy_step=policy_step,
        create_time=Timestamp(
            seconds=document.create_ms // 1000, nanos=document.create_ms % 1000 * 1_000_000
        ),
        checkpoints=checkpoint_messages(document),
    )
    if (policy := policy_message(document)) is not None:
        message.policy.CopyFrom(policy)
    return message


def checkpoint_messages(document: Document) -> list[run_pb2.Checkpoint]:
    return [
        run_pb2.Checkpoint(name=mark.name, policy_step=mark.policy_step)
        for mark in document.checkpoints
    ]


def policy_message(document: Document) -> run_pb2.Policy | None:
    if document.policy_step is None:
        return None
    return run_pb2.Policy(policy_step=document.policy_step, uri=document.policy_uri)


def new_prompts(messages: list[prompt_pb2.Prompt]) -> list[NewPrompt]:
    return [_new_prompt(message) for message in messages]


def _new_prompt(message: prompt_pb2.Prompt) -> NewPrompt:
    embedding = b""
    if message.embedding:
        embedding = np.array(message.embedding, np.float32).astype(EMBEDDING_DTYPE).tobytes()
        served = prompt_pb2.Prompt()
        served.CopyFrom(message)
        served.ClearField("embedding")
        message = served
    field = prompt_field(message.SerializeToString(deterministic=True))
    return NewPrompt(message.prompt_id, message.domain, field, embedding)


def new_embeddings(messages: list[prompt_pb2.PromptEmbedding]) -> list[NewEmbedding]:
    return [
        NewEmbedding(
            message.prompt_id,
            np.array(message.embedding, np.float32).astype(EMBEDDING_DTYPE).tobytes(),
        )
        for message in messages
    ]


def unembedded_message(page: UnembeddedPage) -> probe_service_pb2.ListUnembeddedPromptsResponse:
    """But for the token of the next page."""
    prompts = [prompt_pb2.Prompt.FromString(prompt_message(field)) for field in page.fields]
    return probe_service_pb2.ListUnembeddedPromptsResponse(
        prompts=[prompt_pb2.Prompt(prompt_id=p.prompt_id, text=p.text) for p in prompts],
        unembedded_count=page.unembedded_count,
    )


def report_request(message: Any) -> ReportRequest:
    """From a ReportOutcomesRequest or a ReportProbesRequest, which have the same fields."""
    outcomes = message.outcomes
    attempts = Attempts(
        slots_K=np.array(outcomes.slots, np.int64),
        rewards_K=np.array(outcomes.rewards, np.float32),
        tokens_K=np.array(outcomes.token_counts, np.int64) if outcomes.token_counts else None,
        channels={
            name: np.array(channel.values, np.float32)
            for name, channel in outcomes.channels.items()
        },
    )
    content = f"{message.batch_id}/{message.policy_step}/".encode()
    return ReportRequest(
        request_id=message.request_id,
        batch_id=message.batch_id,
        timeline=message.timeline,
        policy_step=message.policy_step,
        attempts=attempts,
        digest=report_digest(content + outcomes.SerializeToString(deterministic=True)),
    )


def receipt_message(receipt: Receipt) -> batch_pb2.ReportReceipt:
    return batch_pb2.ReportReceipt(
        attempt_count=receipt.attempt_count,
        pass_count=receipt.pass_count,
        completed_group_count=receipt.completed_group_count,
        mixed_group_count=receipt.mixed_group_count,
        duplicate=receipt.duplicate,
    )


def state_message(state: inspection.PromptState) -> prompt_pb2.PromptState:
    message = prompt_pb2.PromptState(
        prompt_id=state.prompt_id,
        domain=state.domain,
        band=prompt_pb2.Band.Value(f"BAND_{state.band.name}"),
        pass_rate=state.pass_rate,
        pass_rate_low=state.pass_rate_low,
        pass_rate_high=state.pass_rate_high,
        attempt_count=state.attempt_count,
        pass_count=state.pass_count,
        last_served_step=state.last_served_step,
    )
    if state.lease_expire_s is not None:
        message.lease_expire_time.seconds = state.lease_expire_s
    return message


def history_message(point: inspection.HistoryPoint) -> prompt_pb2.PromptHistoryPoint:
    return prompt_pb2.PromptHistoryPoint(
        first_policy_step=point.window.first_step,
        last_policy_step=point.window.last_step,
        attempt_count=point.attempt_count,
        pass_count=point.pass_count,
        mean_reward=point.mean_reward,
        token_count=point.token_count,
    )


def stats_message(beliefs: inspection.Beliefs) -> stats_pb2.RunStats:
    """The statistics of a whole run."""
    mirror, pool = beliefs.mirror, beliefs.pool
    mean_N, seen_N = beliefs.belief.mean, pool.attempts_N > 0
    groups = list(mirror.groups.values())
    return stats_pb2.RunStats(
        prompt_count=len(pool),
        bands=_bands_message(beliefs.bands_N),
        domains=_domain_messages(beliefs),
        windows=_window_messages(mirror),
        pass_rate_histogram=inspection.histogram(mean_N).tolist(),
        visited_pass_rate_histogram=inspection.histogram(mean_N[seen_N]).tolist(),
        leased_prompt_count=int(beliefs.leased_N.sum()),
        policy_step=mirror.policy_step,
        timeline=mirror.document.timeline,
        attempt_count=int(pool.attempts_N.sum()),
        pass_count=int(mirror.total(PASSES).sum()),
        group_count=sum(done for done, _ in groups),
        mixed_group_count=sum(mixed for _, mixed in groups),
        likely_mixed_prompt_count=inspection.likely_mixed_count(beliefs),
        mean_objective=inspection.mean_objective(mirror, mirror.windows),
    )


def boundary_message(
    compared: inspection.Boundary, policy_step: int
) -> operator_service_pb2.CompareBoundaryResponse:
    return operator_service_pb2.CompareBoundaryResponse(
        points=[
            stats_pb2.BoundaryPoint(
                k=p.k,
                prompt_count=p.prompt_count,
                before_pass_at_k=p.before,
                after_pass_at_k=p.after,
            )
            for p in compared.points
        ],
        before=_range_message(compared.before),
        after=_range_message(compared.after),
        policy_step=policy_step,
    )


def _range_message(steps: tuple[int, int] | None) -> stats_pb2.StepRange | None:
    if steps is None:
        return None
    return stats_pb2.StepRange(first_policy_step=steps[0], last_policy_step=steps[1])


def _domain_messages(beliefs: inspection.Beliefs) -> list[stats_pb2.DomainStats]:
    mirror, pool, messages = beliefs.mirror, beliefs.pool, []
    mean_N, passes_N = beliefs.belief.mean, mirror.total(PASSES)
    for number, domain in enumerate(mirror.catalog.domains):
        of_N = pool.domain_N == number
        messages.append(
            stats_pb2.DomainStats(
                domain=domain,
                prompt_count=int(of_N.sum()),
                bands=_bands_message(beliefs.bands_N[of_N]),
                mean_pass_rate=float(mean_N[of_N].mean()),
                attempt_count=int(pool.attempts_N[of_N].sum()),
                pass_count=int(passes_N[of_N].sum()),
                prior_mean=float(beliefs.prior_mean_D[number]),
                prior_concentration=float(beliefs.prior_concentration_D[number]),
            )
        )
    return messages


def _window_messages(mirror: Mirror) -> list[stats_pb2.WindowStats]:
    messages = []
    for window in mirror.windows:
        attempts_N = mirror.column(window.window, ATTEMPTS)
        done, mixed = mirror.groups.get(window.window, (0, 0))
        messages.append(
            stats_pb2.WindowStats(
                first_policy_step=window.first_step,
                last_policy_step=inspection.so_far(mirror, window).last_step,
                attempt_count=int(attempts_N.sum()),
                pass_count=int(mirror.column(window.window, PASSES).sum()),
                group_count=done,
                mixed_group_count=mixed,
                visited_prompt_count=int(np.count_nonzero(attempts_N)),
                mean_objective=inspection.mean_objective(mirror, [window]),
            )
        )
    return messages


def _bands_message(bands: np.ndarray[Any, np.dtype[np.uint8]]) -> stats_pb2.BandCounts:
    unseen, beyond, edge, mastered = inspection.band_counts(bands).tolist()
    return stats_pb2.BandCounts(
        unseen_count=unseen, beyond_count=beyond, edge_count=edge, mastered_count=mastered
    )


def _config_message(config: RunConfig) -> run_pb2.RunConfig:
    values = config.to_mapping()
    values["lease_ttl"] = Duration(seconds=values.pop("lease_ttl_s"))
    values["selection"] = run_pb2.SelectionConfig(**values["selection"])
    sampling = run_pb2.SamplingConfig(**values.pop("sampling"))
    # Absent where nothing is set, as when the run was created.
    values["sampling"] = sampling if sampling.ListFields() else None
    values["channels"] = [run_pb2.Channel(**channel) for channel in values["channels"]]
    return run_pb2.RunConfig(**values)


def _set_fields(message: Message) -> dict[str, Any]:
    """Set fields by name; maps as dicts."""
    values = {field.name: value for field, value in message.ListFields()}
    if "domain_shares" in values:
        values["domain_shares"] = dict(values["domain_shares"])
    return values


def _channel(channel: run_pb2.Channel) -> dict[str, Any]:
    """A channel's fields, also those that are 0 and so not in `ListFields`."""
    return {"name": channel.name, "min_value": channel.min_value, "max_value": channel.max_value}
