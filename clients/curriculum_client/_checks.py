"""What can be refused without asking the service."""

from __future__ import annotations

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import (
    MAX_BATCH_PROMPTS,
    MAX_POLICY_STEP,
    MAX_REQUEST_ID_BYTES,
    MAX_SLOT_ATTEMPTS,
)


def check_prompt_count(prompt_count: int) -> None:
    """Raise unless a batch may be this large."""
    if not 1 <= prompt_count <= MAX_BATCH_PROMPTS:
        raise InvalidRequestError(
            f"prompt_count={prompt_count}: must be in [1, {MAX_BATCH_PROMPTS}]"
        )


def check_rollout_budget(rollout_budget: int, prompt_count: int) -> None:
    """Raise unless a batch of that many prompts may take these attempts."""
    most = prompt_count * MAX_SLOT_ATTEMPTS
    if not 2 <= rollout_budget <= most:
        raise InvalidRequestError(f"rollout_budget={rollout_budget}: must be in [2, {most}]")


def check_policy_step(policy_step: int) -> None:
    """Raise unless the ledger can hold this step."""
    if not 0 <= policy_step <= MAX_POLICY_STEP:
        raise InvalidRequestError(f"policy_step={policy_step}: must be in [0, {MAX_POLICY_STEP}]")


def check_request_id(request_id: str) -> None:
    """Raise unless a request may be named so."""
    if not 1 <= len(request_id.encode()) <= MAX_REQUEST_ID_BYTES:
        raise InvalidRequestError(
            f"request_id={request_id!r}: must be 1 to {MAX_REQUEST_ID_BYTES} bytes"
        )
