"""Marks of the curriculum, each beside the weights that a trainer saves."""

from __future__ import annotations

from collections.abc import Callable

from curriculum_client import TrainerClient


def name(step: int) -> str:
    """The mark beside the weights of a step."""
    return f"step-{step}"


def add(
    client: TrainerClient, step: int, *, is_kept: Callable[[int], bool] = lambda _: True
) -> str:
    """Mark the curriculum as it is beside the weights of a step; the mark.

    Args:
        client: Of the run.
        step: Whose weights are saved.
        is_kept: Whether the trainer still has a step's weights. Marks beside others are deleted.
    """
    new = name(step)
    for mark, at in client.checkpoint(new, policy_step=step).items():
        if mark == name(at) != new and not is_kept(at):
            client.delete_checkpoint(mark)
    return new
