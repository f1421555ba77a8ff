"""The completion is the answer, but for white space around it."""

from __future__ import annotations

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError


def prepare(payload: Payload) -> Scorer:
    answer = payload.get("answer")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise UnverifiableError("verifier='exact': the payload's answer must be text or a number")
    wanted = str(answer).strip()
    return lambda completion: float(completion.strip() == wanted)
