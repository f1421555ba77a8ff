from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from curriculum import Pool


def make_pool(prompt_count: int, **given: Any) -> Pool:
    """A pool without evidence, one domain, nothing leased or served, at step 100."""
    values: dict[str, Any] = {
        "successes_N": np.zeros(prompt_count),
        "failures_N": np.zeros(prompt_count),
        "domain_N": np.zeros(prompt_count, dtype=np.int32),
        "domains": ("math",),
        "last_served_step_N": np.full(prompt_count, -1),
        "free_N": np.ones(prompt_count, dtype=bool),
        "policy_step": 100,
        **given,
    }
    total = values["successes_N"] + values["failures_N"]
    values.setdefault("attempts_N", np.ceil(total).astype(np.int64))
    return Pool(**values)


@pytest.fixture(name="make_pool", scope="session")
def _make_pool() -> Callable[..., Pool]:
    return make_pool
