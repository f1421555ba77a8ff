"""Verifiers score completions by what a prompt's payload says.

A payload names its verifier: `exact`, `numeric`, `regex`, `choice`, `math`, `reasoning_gym`,
`http`, `python:module:function`, or one that an installed package adds by an entry point of the
group `curriculum_probe.verifiers`. They run in a `pool.VerifierPool`; this module stays light,
because each of its processes imports it.
"""

from __future__ import annotations

from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError, Verifier

__all__ = ["Payload", "Scorer", "UnverifiableError", "Verifier"]
