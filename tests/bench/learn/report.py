"""What came of the runs: a table, a figure, and the JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from curriculum import mixed_probability_at
from curriculum.arrays import Floats
from tests.bench.figure import colour, new_figure, save
from tests.bench.intervals import Estimate, bootstrap
from tests.bench.learn.domains import FAMILIES
from tests.bench.learn.trial import K, Measurement, Outcome, Start

Results = Mapping[str, Sequence[Outcome]]
"""Arm -> an outcome for each seed, in the order of the seeds."""

Read = Callable[[Outcome], float]
Trace = Callable[[Outcome], tuple[Floats, Floats]]
"""Rollouts charged, and a value at each of them."""

COMPARED = ("uniform", "dapo", "mopps_1", "mopps_0.5")
_EARLY = 1 / 6
"""Of the budget: what is bought with mixed groups shows before the curves are flat."""
_EDGES = (0.0, 0.02, 0.1, 0.2, 0.35, 0.65, 0.8, 0.9, 0.98, 1.0)
_GRID = 41
_PEER_COLOURS = ("#6b7a8f", "#2e86ab", "#66a182", "#edae49", "#8d6a9f", "#3d405b")


def _early(outcome: Outcome) -> float:
    """pass@1 after a sixth of the rollouts."""
    at = [point.spent.rollouts for point in outcome.curve]
    return float(np.interp(_EARLY * at[-1], at, [point.pass_at_1 for point in outcome.curve]))


MEASURES: Mapping[str, Read] = {
    "pass_at_1_early": _early,
    "pass_at_1": lambda outcome: outcome.curve[-1].pass_at_1,
    "pass_at_16": lambda outcome: outcome.curve[-1].pass_at_k,
    "gain_pass_at_1": lambda o: o.curve[-1].pass_at_1 - o.curve[0].pass_at_1,
    "gain_pass_at_16": lambda o: o.curve[-1].pass_at_k - o.curve[0].pass_at_k,
    "trained_mixed": lambda outcome: outcome.course.mixed_share(),
    "mixed_per_rollout": lambda outcome: outcome.course.useful_share(),
    "distinct": lambda outcome: outcome.course.distinct_share,
    "effective": lambda outcome: outcome.course.effective_share,
    "pool_mixed_at_end": lambda outcome: outcome.curve[-1].pool_mixed,
    "pool_mastered_at_end": lambda outcome: outcome.curve[-1].pool_mastered,
    "rollouts": lambda outcome: outcome.curve[-1].spent.rollouts,
    "tokens": lambda outcome: outcome.curve[-1].spent.tokens,
    "steps": lambda outcome: outcome.curve[-1].spent.steps,
    "seconds": lambda outcome: outcome.seconds,
}


def per_seed(results: Results, arm: str, measure: str) -> Floats:
    """(S,) a measure of an arm."""
    return np.array([MEASURES[measure](outcome) for outcome in results[arm]], dtype=np.float64)


def difference(results: Results, arms: tuple[str, str], measure: str) -> Estimate:
    """Seed by seed, for arms of one seed begin with the same weights and pool."""
    return bootstrap(per_seed(results, arms[0], measure) - per_seed(results, arms[1], measure))


def at_equal_tokens(results: Results, arm: str, against: str) -> Estimate:
    """Difference in pass@1 where the one that wrote fewer characters ends."""
    gaps = []
    for ours, theirs in zip(results[arm], results[against], strict=True):
        tokens = min(outcome.curve[-1].spent.tokens for outcome in (ours, theirs))
        reached = [
            np.interp(
                tokens,
                [point.spent.tokens for point in outcome.curve],
                [point.pass_at_1 for point in outcome.curve],
            )
            for outcome in (ours, theirs)
        ]
        gaps.append(float(reached[0] - reached[1]))
    return bootstrap(gaps)


def show_start(starts: Sequence[Start]) -> None:
    """Whether the warm start is bimodal, and what is mixed in it."""
    print("\nWarm start: share of the pool by pass rate")
    print("  seed " + "".join(f"{f'<={high:g}':>8}" for high in _EDGES[1:]) + "   mixed  seconds")
    for start in starts:
        shares = histogram(start.pass_rate_N)
        cells = "".join(f"{share:8.3f}" for share in shares)
        # A little too low, as the rates are estimates.
        mixed = mixed_probability_at(start.pass_rate_N, 8).mean()
        print(f"  {start.seed:4} {cells}{mixed:8.2f}{start.seconds:9.0f}")


def histogram(rate_N: Floats) -> Floats:
    """Shares between the edges; 0 and 1 lie in the outermost."""
    counts: Floats = np.histogram(rate_N, _EDGES)[0] / len(rate_N)
    return counts


def show(results: Results) -> None:
    """A row for each arm, then how the compared arms differ."""
    columns = {
        "pass_at_1": ("pass@1", 3),
        "gain_pass_at_1": ("gain", 3),
        "pass_at_16": (f"pass@{K}", 3),
        "gain_pass_at_16": ("gain", 3),
        "trained_mixed": ("mixed", 2),
        "mixed_per_rollout": ("/rollout", 2),
        "distinct": ("distinct", 2),
        "effective": ("effective", 2),
        "pool_mixed_at_end": ("pool mixed", 2),
        "tokens": ("tokens", 0),
        "steps": ("steps", 0),
        "seconds": ("seconds", 0),
    }
    print("\nHeld out, and what was trained on: means over seeds")
    print(f"  {'':12}" + "".join(f"{title:>11}" for title, _ in columns.values()))
    for arm in sorted(results, key=lambda arm: -per_seed(results, arm, "pass_at_1").mean()):
        cells = "".join(
            f"{per_seed(results, arm, measure).mean():11.{digits}f}"
            for measure, (_, digits) in columns.items()
        )
        print(f"  {arm:12}{cells}")
    alone = len(next(iter(results.values()))) == 1
    for measure, gaps in differences(results).items():
        for against, e in gaps.items():
            known = "one seed, no interval" if alone else f"95% {e.low:+.4f} to {e.high:+.4f}"
            print(f"  edge - {against}, {measure}: {e.mean:+.4f}  {known}")
    show_progress(results)
    show_frontier(results)


def show_progress(results: Results) -> None:
    """Held-out pass@1 at every measurement."""
    print("\nHeld-out pass@1 from the start to the end of the budget, in equal parts")
    for arm, outcomes in results.items():
        columns = zip(*([point.pass_at_1 for point in o.curve] for o in outcomes), strict=False)
        print(f"  {arm:12}" + " ".join(f"{np.mean(values):.3f}" for values in columns))


def show_frontier(results: Results) -> None:
    """How much of the pool is mixed over time, and when half of that is left: it is used up."""
    print("\nMixed share of the pool from the start to the end, and when it had halved, by seed")
    for arm, outcomes in results.items():
        columns = zip(*([point.pool_mixed for point in o.curve] for o in outcomes), strict=False)
        curve = " ".join(f"{np.mean(values):.2f}" for values in columns)
        halved = [halved_at(outcome) for outcome in outcomes]
        said = ", ".join("never" if at is None else f"{at} rollouts" for at in halved)
        print(f"  {arm:12}{curve}   {said}")


def halved_at(outcome: Outcome) -> int | None:
    """Rollouts after which half as much of the pool was mixed as at the start; None if never."""
    start = outcome.curve[0].pool_mixed
    below = [p.spent.rollouts for p in outcome.curve if p.pool_mixed < start / 2]
    return below[0] if below else None


def show_families(starts: Sequence[Start], results: Results) -> None:
    """What the arms spent their training on: a family may be mixed for long and teach little."""
    print("\nShare of the groups trained on, by family")
    print(f"  {'':12}" + "".join(f"{family.split('_')[0][:14]:>15}" for family in FAMILIES))
    for arm, outcomes in results.items():
        print(f"  {arm:12}" + "".join(f"{x:15.2f}" for x in family_shares(starts, outcomes)))


def family_shares(starts: Sequence[Start], outcomes: Sequence[Outcome]) -> Floats:
    """(families,) of the groups that an arm trained on, over all seeds."""
    counts = np.zeros(len(FAMILIES))
    for start, outcome in zip(starts, outcomes, strict=True):
        family_N = [FAMILIES.index(question.family) for question in start.pool]
        np.add.at(counts, family_N, outcome.course.trained_N)
    shares: Floats = counts / max(counts.sum(), 1.0)
    return shares


def differences(results: Results) -> dict[str, dict[str, Estimate]]:
    """Measure -> arm -> how far edge is above it."""
    if "edge" not in results:
        return {}
    against = [arm for arm in COMPARED if arm in results]
    measures = ("pass_at_1_early", "pass_at_1", "pass_at_16")
    gaps = {
        measure: {arm: difference(results, ("edge", arm), measure) for arm in against}
        for measure in measures
    }
    gaps["pass_at_1_at_equal_tokens"] = {
        arm: at_equal_tokens(results, "edge", arm) for arm in against
    }
    return gaps


def summary(starts: Sequence[Start], results: Results) -> dict[str, Any]:
    """The JSON object."""
    arms = {
        arm: {
            **{
                measure: bootstrap(per_seed(results, arm, measure)).rounded()
                for measure in MEASURES
            },
            "trained_by_family": dict(
                zip(FAMILIES, family_shares(starts, outcomes).round(4).tolist(), strict=True)
            ),
            "frontier_halved_at": [halved_at(outcome) for outcome in outcomes],
            "curves": [[_point(point) for point in outcome.curve] for outcome in outcomes],
        }
        for arm, outcomes in results.items()
    }
    rates = np.concatenate([start.pass_rate_N for start in starts])
    gaps = differences(results)
    pairs = {
        f"edge_minus_{arm}": {measure: gaps[measure][arm].rounded() for measure in gaps}
        for arm in next(iter(gaps.values()), {})
    }
    return {
        **arms,
        **pairs,
        "warm_start": {
            "edges": list(_EDGES),
            "shares": histogram(rates).round(4).tolist(),
            "seconds": [round(start.seconds, 1) for start in starts],
        },
        "pool": len(starts[0].pool),
        "held_out": len(starts[0].held_out),
        "seeds": [start.seed for start in starts],
    }


def _point(point: Measurement) -> dict[str, float]:
    shares = {
        name: round(getattr(point, name), 4)
        for name in ("pass_at_1", "pass_at_k", "pool_mixed", "pool_mastered")
    }
    return {**vars(point.spent), **shares}


def draw(path: Path, results: Results) -> None:
    """Learning curves with bands over seeds, the pool's mixed share, prompts trained on."""
    figure, axes = new_figure(18.0, 4.5, 4)
    panels: tuple[tuple[str, Trace], ...] = (
        ("held-out pass@1", _measured("pass_at_1")),
        (f"held-out pass@{K}", _measured("pass_at_k")),
        ("mixed share of the pool", _measured("pool_mixed")),
        ("share of the pool trained on", _trained_on),
    )
    peers = [arm for arm in results if arm != "edge"]
    colours = {**dict(zip(peers, cycle(_PEER_COLOURS), strict=False)), "edge": colour("edge")}
    for axis, (title, trace) in zip(axes, panels, strict=True):
        for arm, outcomes in results.items():
            end = min(outcome.curve[-1].spent.rollouts for outcome in outcomes)
            x = np.linspace(0.0, end, _GRID)
            rows_SX = np.stack([np.interp(x, *trace(outcome)) for outcome in outcomes])
            bands = [bootstrap(column_S) for column_S in rows_SX.T]
            low, high = [band.low for band in bands], [band.high for band in bands]
            axis.plot(x, [band.mean for band in bands], color=colours[arm], label=arm)
            axis.fill_between(x, low, high, color=colours[arm], alpha=0.18, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rollouts, thousands", fontsize=9)
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def _measured(name: str) -> Trace:
    def trace(outcome: Outcome) -> tuple[Floats, Floats]:
        at = [point.spent.rollouts for point in outcome.curve]
        return np.array(at, dtype=np.float64), np.array([getattr(p, name) for p in outcome.curve])

    return trace


def _trained_on(outcome: Outcome) -> tuple[Floats, Floats]:
    charged = np.cumsum([0, *(step.charged for step in outcome.course.steps)])
    return charged.astype(np.float64), np.array([0.0, *outcome.distinct_S])
