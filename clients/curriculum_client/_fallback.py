"""The degraded mode that a trainer may ask for: prompts seen before, drawn uniformly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from curriculum_api.limits import MAX_SLOT_ATTEMPTS
from curriculum_client._batch import Batch, ServedPrompt

MAX_SEEN_CHARS = 64 * 1024 * 1024
"""Bounds the memory of a client that may have to fall back; others remember nothing."""

_LEAST_ATTEMPTS = 2  # those of one cannot differ
_MOST_GROUPS = 4  # that a budget gives a prompt, as the contract says
_CHARS_PER_PROMPT = 1024  # what a prompt takes beside its text, generously


class SeenPrompts:
    """The prompts served last, each once."""

    def __init__(self, max_chars: int = MAX_SEEN_CHARS) -> None:
        self._max_chars = max_chars
        self._chars = 0
        self._by_id: dict[str, ServedPrompt] = {}
        self._group_size: int | None = None
        self._most_budgeted = _LEAST_ATTEMPTS

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, prompts: Sequence[ServedPrompt], *, has_budget: bool = False) -> None:
        """Remember a batch, and forget what was served longest ago when it becomes too much."""
        # Without a budget only a reach prompt gets more than a group.
        counts = [p.attempt_count for p in prompts if has_budget or p.reason != "reach"]
        if has_budget:
            self._most_budgeted = max(self._most_budgeted, *counts, 0)
        elif counts:
            self._group_size = counts[-1]
        for prompt in prompts:
            self._forget(prompt.prompt_id)
            self._by_id[prompt.prompt_id] = prompt
            self._chars += _chars(prompt)
        while self._chars > self._max_chars:
            self._forget(next(iter(self._by_id)))

    def draw(
        self,
        prompt_count: int,
        *,
        policy_step: int,
        timeline: int,
        seed: str,
        rollout_budget: int | None = None,
    ) -> Batch:
        """Prompts without replacement, as a batch that leases nothing. A budget is spread evenly,
        for what knows where attempts are worth most is away."""
        prompts = list(self._by_id.values())
        drawn = random.Random(seed).sample(prompts, min(prompt_count, len(prompts)))
        if rollout_budget is not None:
            drawn = _spread(drawn, rollout_budget, self._most_attempts)
        return Batch(
            batch_id="",
            timeline=timeline,
            policy_step=policy_step,
            lease_expire_time=None,
            prompts=tuple(
                replace(prompt, slot=slot, reason="uniform-fallback", batch_id="")
                for slot, prompt in enumerate(drawn)
            ),
            shortfall=_shortfall(len(drawn), prompt_count, len(prompts)),
        )

    @property
    def _most_attempts(self) -> int:
        """What a budget may give a prompt: of a run whose group size never showed, the most that
        the service itself gave one."""
        if self._group_size is None:
            return self._most_budgeted
        return min(_MOST_GROUPS * self._group_size, MAX_SLOT_ATTEMPTS)

    def _forget(self, prompt_id: str) -> None:
        prompt = self._by_id.pop(prompt_id, None)
        if prompt is not None:
            self._chars -= _chars(prompt)


def _spread(prompts: Sequence[ServedPrompt], rollout_budget: int, most: int) -> list[ServedPrompt]:
    """As many of the prompts as can have enough attempts, with the budget spread over them; the
    first get what is left over, and none more than `most`."""
    kept = prompts[: rollout_budget // _LEAST_ATTEMPTS]
    each, left = divmod(rollout_budget, max(1, len(kept)))
    return [
        replace(prompt, attempt_count=min(each + (place < left), most))
        for place, prompt in enumerate(kept)
    ]


def _shortfall(drawn: int, wanted: int, seen: int) -> str:
    if drawn == wanted:
        return ""
    if drawn < seen:
        return f"the budget is for {drawn} prompts of {_LEAST_ATTEMPTS} attempts"
    return f"only {drawn} prompts were seen"


def _chars(prompt: ServedPrompt) -> int:
    return len(prompt.text) + len(prompt.payload_json) + _CHARS_PER_PROMPT
