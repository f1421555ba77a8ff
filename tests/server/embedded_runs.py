"""Runs whose prompts are embedded after they were added, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import redis

from tests.server.driving import RunDriver


def key(run: RunDriver, name: str) -> str:
    return f"cur:{{{run.run_id}}}:{name}"


def document(raw: redis.Redis, run: RunDriver) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(raw.hget(key(run, "meta"), "doc") or "")
    return found


def chunk_counts(raw: redis.Redis, run: RunDriver) -> tuple[int, int]:
    """Chunks of embeddings: (all, those that describe prompts)."""
    found = document(raw, run)
    return found["embedding_chunk_count"], found["used_embedding_chunk_count"]


def unembedded_names(run: RunDriver) -> list[str]:
    return [prompt.prompt_id for prompt in run.unembedded().prompts]


def vector(n: int, length: int = 8) -> list[float]:
    return list(map(float, np.sin((n + 1) * np.arange(1, length + 1))))


def vectors(*numbers: int, length: int = 8) -> dict[str, list[float]]:
    return {f"p{n}": vector(n, length) for n in numbers}


def trained(run: RunDriver, steps: Iterable[int] = range(1, 9)) -> RunDriver:
    """Groups of which prompts with an even number pass nearly all, and odd ones hardly any."""
    for step in steps:
        batch = run.next(f"t-{step}", count=12, step=step)
        groups = {
            p.slot: [1.0] * (1 if int(p.prompt.prompt_id[1:]) % 2 else 7) + [0.0]
            for p in batch.prompts
        }
        run.report(batch, groups)
        run.release(batch)
    return run


def telling(*numbers: int) -> dict[str, list[float]]:
    """Embeddings whose first number tells even prompts from odd ones."""
    return {f"p{n}": [4.0 - 8.0 * (n % 2), *vector(n, 3)] for n in numbers}


def believed(run: RunDriver) -> list[tuple[float, float, float]]:
    """(pass rate, low, high) of every prompt."""
    return [(p.pass_rate, p.pass_rate_low, p.pass_rate_high) for p in run.list().prompts]
