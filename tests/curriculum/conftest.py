from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from curriculum import Block, Pool


def make_pool(prompt_count: int, **given: Any) -> Pool:
    """A pool without evidence, one domain, nothing leased or served, at step 100.

    `passes_N` and `fails_N` become one block of that step; `blocks` are taken as they are.
    """
    values: dict[str, Any] = {
        "blocks": (),
        "domain_N": np.zeros(prompt_count, dtype=np.int32),
        "domains": ("math",),
        "last_served_step_N": np.full(prompt_count, -1),
        "free_N": np.ones(prompt_count, dtype=bool),
        "policy_step": 100,
        **given,
    }
    passes = values.pop("passes_N", None)
    fails = values.pop("fails_N", None)
    if passes is not None or fails is not None:
        passes, fails = (
            np.zeros(prompt_count) if n is None else np.asarray(n, float) for n in (passes, fails)
        )
        values["blocks"] = (Block(float(values["policy_step"]), passes + fails, passes),)
    total = np.zeros(prompt_count) + sum(block.attempts_N for block in values["blocks"])
    values.setdefault("attempts_N", np.ceil(total).astype(np.int64))
    return Pool(**values)


@pytest.fixture(name="make_pool", scope="session")
def _make_pool() -> Callable[..., Pool]:
    return make_pool


def sigmoid(logit: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-np.asarray(logit, dtype=np.float64)))


@pytest.fixture(name="sigmoid", scope="session")
def _sigmoid() -> Callable[..., Any]:
    return sigmoid
