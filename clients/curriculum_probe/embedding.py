"""Embeddings of a run's prompts, for the guesses about those that nobody has sampled yet.

A prompt is embedded once, whoever does it: the server keeps the first and lists only prompts that
have none. Several workers each draw at random from the first thousand that it lists, so that they
seldom draw the same; what two of them embed is known to the server and costs no more than the time.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Sequence
from functools import partial

from curriculum_api.errors import InvalidRequestError
from curriculum_api.limits import MAX_EMBEDDING_VALUE
from curriculum_api.v1 import prompt_pb2
from curriculum_probe.engines import EMBEDDERS, Embedder, Engine, RefusedError
from curriculum_probe.service import Service
from curriculum_probe.threads import in_thread

PAGE_PROMPTS = 1000
REPORT_PROMPTS = 250
"""Reported together: of two workers that begin at once a quarter is embedded twice, and then less.
What is embedded and not reported is lost if the worker is killed."""
PROMPTS_AT_ONCE = 50
"""Between these a worker can be stopped."""
LOG_INTERVAL_S = 10.0

logger = logging.getLogger(__name__)


def check_embeds(engine_name: str) -> None:
    """Refuse an engine that only samples, before it takes minutes to load."""
    if engine_name not in EMBEDDERS:
        raise InvalidRequestError(
            f"embed: engine={engine_name!r} gives no embeddings: must be {' or '.join(EMBEDDERS)}"
        )


async def embed_prompts(service: Service, engine: Engine, stop: threading.Event) -> None:
    """Embed all prompts of the run that have no embedding, or as many as until stopped.

    Raises:
        CurriculumError: the server refuses the embeddings, or stays away.
        EngineError: the engine cannot embed.
    """
    if not isinstance(engine, Embedder):
        raise TypeError(f"{type(engine).__name__} is no Embedder")
    await _Embedding(service, engine, stop).run()


class _Embedding:
    def __init__(self, service: Service, embedder: Embedder, stop: threading.Event) -> None:
        self._service, self._embedder, self._stop = service, embedder, stop
        self._name, self._report_count = f"embed-{uuid.uuid4().hex}", 0
        self._draw = random.Random()
        self._skipped: set[str] = set()
        self._left_count = self._embedded_count = self._added_count = 0
        self._started_s = self._logged_s = time.monotonic()

    async def run(self) -> None:
        token = ""
        while not self._stop.is_set():
            page = await in_thread(partial(self._service.unembedded, PAGE_PROMPTS, token))
            self._left_count = page.unembedded_count - len(self._skipped)
            fresh = [each for each in page.prompts if each.prompt_id not in self._skipped]
            if fresh:
                some = self._draw.sample(fresh, min(len(fresh), REPORT_PROMPTS))
                await self._report(await self._embed(some))
            elif page.next_page_token:
                token = page.next_page_token
            else:
                break
        self._log("embedding ended")
        if self._skipped:
            logger.warning("prompts not embedded count=%d", len(self._skipped))

    async def _embed(
        self, prompts: Sequence[prompt_pb2.Prompt]
    ) -> list[prompt_pb2.PromptEmbedding]:
        """As many as until stopped."""
        found = []
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            if self._stop.is_set():
                break
            some = prompts[first : first + PROMPTS_AT_ONCE]
            vectors = await self._embedder.embed([prompt.text for prompt in some])
            for prompt, vector in zip(some, vectors, strict=True):
                name = prompt.prompt_id
                if isinstance(vector, RefusedError):
                    self._skip(name, str(vector))
                elif not _can_be_kept(vector):
                    self._skip(name, f"its numbers must be within {MAX_EMBEDDING_VALUE:g}")
                else:
                    found.append(prompt_pb2.PromptEmbedding(prompt_id=name, embedding=vector))
            self._embedded_count += len(some)
            self._left_count -= len(some)
            if time.monotonic() >= self._logged_s + LOG_INTERVAL_S:
                self._log("embedding")
        return found

    async def _report(self, embeddings: Sequence[prompt_pb2.PromptEmbedding]) -> None:
        if not embeddings:
            return
        name = f"{self._name}-{self._report_count}"
        added = await in_thread(partial(self._service.add_embeddings, name, embeddings))
        self._report_count += 1
        self._added_count += added.added_count

    def _skip(self, prompt_id: str, because: str) -> None:
        if not self._skipped:
            logger.warning("prompt not embedded first=%s because=%s", prompt_id, because)
        self._skipped.add(prompt_id)

    def _log(self, event: str) -> None:
        self._logged_s = time.monotonic()
        per_s = self._embedded_count / max(self._logged_s - self._started_s, 1e-9)
        left = max(self._left_count, 0)
        logger.info(
            "%s embedded=%d of=%d added=%d prompts_per_s=%.1f eta_s=%s",
            event, self._embedded_count, self._embedded_count + left, self._added_count, per_s,
            f"{left / per_s:.0f}" if per_s else "unknown",
        )  # fmt: skip


def _can_be_kept(vector: Sequence[float]) -> bool:
    return math.isfinite(sum(vector)) and max(map(abs, vector)) <= MAX_EMBEDDING_VALUE
