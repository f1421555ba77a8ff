"""What all rounds of a worker share."""

from __future__ import annotations

from dataclasses import dataclass, field

from curriculum_probe.engines import Engine
from curriculum_probe.gate import Gate
from curriculum_probe.progress import Progress
from curriculum_probe.service import Service
from curriculum_probe.unusable import Unusable
from curriculum_probe.verifiers.pool import VerifierPool


@dataclass
class Tools:
    """Of one run, one engine and one server."""

    run_id: str
    service: Service
    engine: Engine
    verifiers: VerifierPool
    gate: Gate
    stops_early: bool = True
    """Whether prompts are sampled only as often as it takes to know their band."""
    progress: Progress = field(default_factory=Progress)
    unusable: Unusable = field(default_factory=Unusable)
    refused_in_a_row: int = 0
    """Reports of rounds that each began after the one before was refused."""
