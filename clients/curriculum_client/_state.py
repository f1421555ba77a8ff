"""A client's state as a trainer's checkpoint keeps it: plain values that survive JSON."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from curriculum_api.errors import InvalidRequestError
from curriculum_client._batch import Batch
from curriculum_client._numbers import Content, Numberings, Numbers
from curriculum_client._settings import Settings

VERSION = 1


def dump(
    settings: Settings, timeline: int | None, sequence: Numbers, parts: Numberings
) -> dict[str, Any]:
    """The state as a dictionary."""
    return {
        "version": VERSION,
        "run_id": settings.run_id,
        "consumer": settings.consumer,
        "timeline": timeline,
        "sequence": sequence.state(),
        "parts": parts.state(),
    }


def load(settings: Settings, state: Mapping[str, Any]) -> tuple[int | None, Numbers, Numberings]:
    """Timeline, sequence and parts of a dictionary that `dump` made.

    Raises:
        InvalidRequestError: It is another client's, or not a client's state.
    """
    expected = {"version": VERSION, "run_id": settings.run_id, "consumer": settings.consumer}
    for name, value in expected.items():
        if state.get(name) != value:
            raise InvalidRequestError(f"state[{name!r}]={state.get(name)!r}: must be {value!r}")
    try:
        timeline = None if state["timeline"] is None else operator.index(state["timeline"])
        sequence, parts = Numbers(state["sequence"]), Numberings(state["parts"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(f"state: not a client's state: {error!r}") from error
    return timeline, sequence, parts


def reopened(
    state: Mapping[str, Any], batches: Sequence[Batch], prompt_count: int, budget: int | None
) -> dict[str, Any]:
    """The state of a client that has not asked for these batches of its sequence yet.

    Args:
        state: The client's, which has.
        batches: In the order in which they were asked for.
        prompt_count: What each was asked for with.
        budget: Likewise.
    """
    asked = (prompt_count, budget)
    numbers = [
        [int(batch.batch_id.rpartition("-")[2]), *request_content(batch.policy_step, *asked)]
        for batch in batches
    ]
    # Reports of an older timeline are not repeated, so their numbers need not be kept.
    return {**state, "sequence": [*state["sequence"], *numbers], "parts": {}}


def request_content(policy_step: int, prompt_count: int, budget: int | None) -> Content:
    """What makes two requests for a batch the same, so that one number may name both."""
    content = (prompt_count, policy_step)
    return content if budget is None else (*content, budget)
