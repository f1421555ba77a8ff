"""Prompts that are not worth another try, and what was said of them."""

from __future__ import annotations

import logging
import math
import time

RETRY_S = 300.0
"""After a verifier failed on all of a prompt's attempts; what it asks may be away for a while."""

logger = logging.getLogger(__name__)


class Unusable:
    """Remembers prompts by name. Given back they are leased again, being worth no less."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._said: set[str] = set()

    def __contains__(self, prompt_id: str) -> bool:
        return self._until_s.get(prompt_id, -math.inf) > time.monotonic()

    def __len__(self) -> int:
        now_s = time.monotonic()
        return sum(until_s > now_s for until_s in self._until_s.values())

    def add(self, prompt_id: str, for_s: float = RETRY_S) -> None:
        self._until_s[prompt_id] = time.monotonic() + for_s

    def warn_once(self, event: str, prompt_id: str, because: str) -> None:
        """One line for each cause, not for each prompt."""
        if because not in self._said:
            self._said.add(because)
            logger.warning("%s first=%s because=%s", event, prompt_id, because)
