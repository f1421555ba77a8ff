"""What an operator should not overlook in the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curriculum_api.v1.run_pb2 import RunConfig
from curriculum_api.v1.stats_pb2 import RunStats, WindowStats

RECENT_WINDOWS = 5
"""By these "how it is now" is judged: one alone has few groups."""
ENOUGH_ATTEMPTS = 200
"""Where even one in a hundred passes, so many without a pass come once in seven pools."""


@dataclass(frozen=True)
class Note:
    """A word for scripts and a sentence for people."""

    word: str
    explanation: str

    def as_json(self) -> dict[str, str]:
        return {"note": self.word, "explanation": self.explanation}


def stats_notes(stats: RunStats, config: RunConfig) -> list[Note]:
    """Passes and mixed groups tell nothing about a run that is judged by an objective."""
    if config.objective:
        return []
    if stats.attempt_count >= ENOUGH_ATTEMPTS and not stats.pass_count:
        value = f" ({config.pass_threshold:g})" if config.HasField("pass_threshold") else ""
        explanation = (
            f"None of {stats.attempt_count:,} attempts passed: look at the verifier, and at the "
            f"run's pass_threshold{value}."
        )
        return [Note("nothing_passed", explanation)]
    if _is_used_up(stats):
        explanation = (
            "The pool is used up: fewer prompts are likely mixed than a window takes, and of the "
            "latest groups fewer than half were mixed. Add others."
        )
        return [Note("used_up", explanation)]
    return []


def mixed_share(windows: Sequence[WindowStats]) -> float | None:
    """Of the groups completed in these windows; None without any."""
    done = sum(window.group_count for window in windows)
    return sum(window.mixed_group_count for window in windows) / done if done else None


def _is_used_up(stats: RunStats) -> bool:
    """Whether what is left to train on would not fill another window, which alone is so in any
    pool that is smaller than a window, however much there is to learn in it."""
    if len(stats.windows) < 2:
        return False
    last_full = stats.windows[-2]
    recent = mixed_share(stats.windows[-RECENT_WINDOWS:])
    too_few = stats.likely_mixed_prompt_count < last_full.visited_prompt_count
    return too_few and recent is not None and recent < 0.5
