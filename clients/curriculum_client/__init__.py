"""What a trainer installs: ask for the next batch, report how the last one went.

    with TrainerClient("localhost:50051", run_id="math") as curriculum:
        for step in range(steps):
            batch = curriculum.next_batch(prompt_count=128, policy_step=step)
            rewards = {p.prompt_id: rollout(p.text, n=p.attempt_count) for p in batch}
            curriculum.report(batch, rewards, policy_step=step)

`AsyncTrainerClient` is the same for asyncio. Every error is a `CurriculumError`; the tree is drawn
in `curriculum_api.errors`.
"""

from curriculum_client import _forks  # first: it must come before anything imports grpc

# isort: split
from curriculum_api.channel import TlsConfig
from curriculum_api.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptStateError,
    CurriculumError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    StateError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from curriculum_client._async_client import AsyncTrainerClient
from curriculum_client._batch import Batch, Receipt, ServedPrompt
from curriculum_client._client import TrainerClient
from curriculum_client._feed import Feed

__all__ = [
    "AlreadyExistsError",
    "AsyncTrainerClient",
    "Batch",
    "ConflictError",
    "CorruptStateError",
    "CurriculumError",
    "DeadlineError",
    "Feed",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Receipt",
    "ServedPrompt",
    "StateError",
    "StoreUnavailableError",
    "TlsConfig",
    "TrainerClient",
    "UnauthenticatedError",
]

_forks.install()
