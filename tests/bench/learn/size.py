"""How large an experiment is."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.bench.learn.policy import Training
from tests.bench.learn.transformer import Shape


@dataclass(frozen=True)
class Size:
    """How large an experiment is.

    Attributes:
        shape: of the model.
        training: of the policy.
        warm_count: examples of a level that is seen in full.
        pool_count: prompts of the pool, before what the small levels lack.
        held_out_count: prompts held out.
        batch_size: B, groups of a step.
        group_size: G, attempts of a group.
        rollout_budget: what each arm may spend.
        measurements: how often it is examined on the way; the last is at the end.
    """

    shape: Shape = field(default_factory=lambda: Shape(width=128, layers=3, heads=4))
    training: Training = field(default_factory=Training)
    warm_count: int = 2000
    pool_count: int = 8000
    held_out_count: int = 800
    batch_size: int = 64
    group_size: int = 8
    rollout_budget: int = 150_000
    measurements: int = 6


SIZES = {
    "small": Size(),
    "quick": Size(
        training=Training(warm_steps=500),
        warm_count=1000,
        pool_count=2000,
        held_out_count=240,
        rollout_budget=10_000,
        measurements=2,
    ),
    "large": Size(
        shape=Shape(width=256, layers=6, heads=8),
        training=Training(warm_steps=4000, warm_batch=256, warm_rate=1e-3, rows=65_536),
        warm_count=8000,
        pool_count=40_000,
        held_out_count=2000,
        batch_size=256,
        rollout_budget=2_000_000,
        measurements=10,
    ),
}
"""`small` for two cores, `quick` to see that it runs, `large` for one GPU."""
