"""What a worker has done, for its log."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from prometheus_client import Counter

from curriculum_probe import metrics

INTERVAL_S = 10.0

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """Counts, of a round or of a worker."""

    prompt_count: int = 0
    """Prompts whose attempts were sampled."""
    sampled_count: int = 0
    """Their attempts."""
    token_count: int = 0
    attempt_count: int = 0
    """Attempts that the server counted."""
    pass_count: int = 0
    settled_count: int = 0
    """Prompts of rounds of which the server was sure then in which band they are."""
    skipped_count: int = 0
    """Prompts that cannot be verified or sampled."""
    verifier_error_count: int = 0

    def add(self, **counts: int) -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


_METRICS: dict[str, Counter] = {
    "prompt_count": metrics.PROMPTS,
    "sampled_count": metrics.SAMPLED,
    "token_count": metrics.TOKENS,
    "attempt_count": metrics.ATTEMPTS,
    "pass_count": metrics.PASSES,
    "settled_count": metrics.SETTLED,
    "skipped_count": metrics.SKIPPED,
    "verifier_error_count": metrics.VERIFIER_ERRORS,
}


class Progress:
    """Adds up what all rounds do, and says every few seconds how fast it goes."""

    def __init__(self) -> None:
        self.total = Tally()
        self.unverified_count = 0
        """Attempts that wait for their verdicts."""

    def add(self, tally: Tally, **counts: int) -> None:
        """Count for a round and for all."""
        tally.add(**counts)
        self.total.add(**counts)
        for name, count in counts.items():
            _METRICS[name].inc(count)

    def add_unverified(self, count: int) -> None:
        self.unverified_count += count
        metrics.UNVERIFIED_ATTEMPTS.set(self.unverified_count)

    async def show(self) -> None:
        """Log without end."""
        while True:
            before, started_s = replace(self.total), time.monotonic()
            await asyncio.sleep(INTERVAL_S)
            self._log(before, time.monotonic() - started_s)

    def _log(self, before: Tally, elapsed_s: float) -> None:
        now = self.total
        counted = now.attempt_count - before.attempt_count
        if now == before:
            return
        logger.info(
            "probing tokens_per_s=%.0f prompts_per_s=%.2f attempts=%d pass_share=%s "
            "bands_settled=%d unverified=%d verifier_errors=%d",
            (now.token_count - before.token_count) / elapsed_s,
            (now.prompt_count - before.prompt_count) / elapsed_s,
            now.attempt_count,
            f"{(now.pass_count - before.pass_count) / counted:.3f}" if counted else "unknown",
            now.settled_count,
            self.unverified_count,
            now.verifier_error_count,
        )
