"""The client of code that a framework calls in processes of its own."""

from __future__ import annotations

import functools

from curriculum_client import TrainerClient


@functools.cache
def client() -> TrainerClient:
    """This process's client, made once, of the run that CURRICULUM_RUN names.

    Raises:
        InvalidRequestError: As `TrainerClient.from_environment`.
    """
    return TrainerClient.from_environment()
