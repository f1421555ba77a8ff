"""What a comparison of pass@k says about sharpening and expansion, without overstating it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from curriculum_api.v1.operator_service_pb2 import CompareBoundaryResponse
from curriculum_api.v1.stats_pb2 import BoundaryPoint, StepRange
from curriculum_operator.notes import Note
from curriculum_operator.render.words import steps

SHARPENED, EXPANDED, WORSE, UNCLEAR = "sharpened", "expanded", "worse", "unclear"


@dataclass(frozen=True)
class Verdict:
    """A word for scripts and sentences for people."""

    word: str
    explanation: str


def noise(prompt_count: int) -> float:
    """How far a mean of paired differences strays by chance: two standard errors, 1/√n.

    A prompt's difference lies in [-1, 1]; its standard deviation is taken as 1/2, which is on the
    large side for estimates from several attempts.
    """
    return 1 / math.sqrt(prompt_count)


def verdict(points: Sequence[BoundaryPoint]) -> Verdict:
    """Compares the movement at the smallest k with that at the largest."""
    usable = sorted((point for point in points if point.prompt_count), key=lambda point: point.k)
    if not usable:
        return Verdict(UNCLEAR, "No prompt has k attempts in both ranges, for any of these k.")
    first, last = usable[0], usable[-1]
    if first.k == last.k:
        return Verdict(UNCLEAR, f"Only pass@{first.k} can be compared; this needs a larger k too.")
    low, high = _direction(first), _direction(last)
    at = f"pass@{last.k}"
    if high > 0:
        said = Verdict(EXPANDED, f"Looks like expansion: {at} rose, beyond what chance explains.")
    elif low > 0 and high < 0:
        said = Verdict(SHARPENED, f"Looks like sharpening: pass@{first.k} rose while {at} fell.")
    elif low > 0:
        said = Verdict(
            UNCLEAR,
            f"pass@{first.k} rose, {at} did not move beyond chance: no sign of expansion so far.",
        )
    elif low < 0 or high < 0:
        said = Verdict(WORSE, "The later policy solves fewer of these prompts.")
    else:
        said = Verdict(UNCLEAR, "Nothing moved beyond chance.")
    return Verdict(said.word, " ".join([said.explanation, *_caveats(usable)]))


def boundary_notes(
    response: CompareBoundaryResponse, before: StepRange, after: StepRange
) -> list[Note]:
    """How what was compared differs from what was asked for."""
    if not response.HasField("policy_step"):
        return []  # an older server does not tell
    newest, notes, wider = response.policy_step, [], []
    earlier = response.before if response.HasField("before") else None
    later = response.after if response.HasField("after") else None
    for name, asked, found in (("before", before, earlier), ("after", after, later)):
        first, last, shown = asked.first_policy_step, asked.last_policy_step, span(asked)
        if last > newest:
            said = f"--{name} {first}:{last} ends behind the run's newest step, {newest:,}."
            notes.append(Note("not_over", said))
        if found is None:
            notes.append(Note("not_counted", f"Nothing was counted in {shown}."))
            continue
        reached = StepRange(first_policy_step=first, last_policy_step=min(last, newest))
        if found != reached:
            wider.append(f"{span(found)} for {first}:{last}")
    if wider:
        said = "A window counts as a whole, and old ones are merged. Compared were"
        notes.append(Note("other_steps", f"{said} {', '.join(wider)}."))
    return notes


def span(of: StepRange) -> str:
    word = "step" if of.first_policy_step == of.last_policy_step else "steps"
    return f"{word} {steps(of.first_policy_step, of.last_policy_step)}"


def change(point: BoundaryPoint) -> float:
    return point.after_pass_at_k - point.before_pass_at_k


def _direction(point: BoundaryPoint) -> int:
    moved = change(point)
    if abs(moved) <= noise(point.prompt_count):
        return 0
    return 1 if moved > 0 else -1


def _caveats(points: Sequence[BoundaryPoint]) -> list[str]:
    first, last = points[0], points[-1]
    caveats = [
        f"Chance alone moves {last.prompt_count:,} prompts by ±{noise(last.prompt_count):.3f}."
    ]
    if last.prompt_count < first.prompt_count:
        caveats.append(
            f"pass@{first.k} and pass@{last.k} are means over different prompts "
            f"({first.prompt_count:,} and {last.prompt_count:,})."
        )
    return caveats
