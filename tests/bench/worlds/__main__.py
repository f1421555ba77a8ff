"""Methods compared on simulated learners. The last line is one JSON object.

    python -m tests.bench.worlds [--quick]

In each world a uniform run sets a target: the mean pass rate it ends with on prompts that are never
trained on. Every other arm then races to it, and every rollout it makes is charged, screening and
references included; only those of a prober on spare GPUs (`edge_spare`) are not. Ratios are
geometric means over worlds and seeds; an arm that does not reach a target counts with what it had
spent when it gave up, four times uniform's budget.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from curriculum.arrays import Floats
from tests.bench.arms import MOPPS, PEERS, PROBED, PRODUCT, Build
from tests.bench.figure import bars, new_figure, save
from tests.bench.intervals import Estimate, geometric
from tests.bench.parallel import in_order
from tests.bench.worlds.catalogue import WORLDS
from tests.bench.worlds.learner import World
from tests.bench.worlds.race import Result, race, uniform_target

ARMS: dict[str, Build | None] = {**PRODUCT, **PROBED, **PEERS, "oracle": None}
SHOWN = ("edge", "edge_spare", "mopps_1", "mopps_0.5", "dapo", "speed", "dots", "pcl", "oracle")
QUICK_WORLDS = ("bimodal", "no features", "features 60", "small pool", "noisy verifier")
ALWAYS = ("edge", "uniform", "mopps_1")  # what the figures are ratios of
QUICK_ARMS = ("edge", *PROBED, "uniform", "dapo", "mopps_0.5", "mopps_1", "oracle")

Table = dict[str, dict[str, list[Result]]]
"""World -> arm -> a result for each seed."""


@dataclass(frozen=True)
class Cell:
    """One world with one seed, for all arms."""

    name: str
    world: World
    seed: int
    arms: tuple[str, ...]


def run_cell(cell: Cell) -> dict[str, Result]:
    """Set the target, then race to it with every arm."""
    target = uniform_target(PEERS["uniform"], cell.world, cell.seed)
    return {name: race(ARMS[name], cell.world, cell.seed, target) for name in cell.arms}


def compare(
    worlds: Mapping[str, World], arms: tuple[str, ...], seed_count: int, processes: int
) -> Table:
    """Every world with every seed."""
    cells = [
        Cell(name, world, seed, arms)
        for seed in range(seed_count)
        for name, world in worlds.items()
    ]
    table: Table = {name: {arm: [] for arm in arms} for name in worlds}
    for cell, results in zip(cells, in_order(run_cell, cells, processes), strict=True):
        for arm, result in results.items():
            table[cell.name][arm].append(result)
    return table


def log_cost(table: Table, arm: str, measure: str = "rollouts") -> Floats:
    """(seeds, worlds) the logarithm of what an arm spent."""
    cost = [[getattr(result, measure) for result in rows[arm]] for rows in table.values()]
    return np.log(np.array(cost, dtype=np.float64)).T


def best_mopps(table: Table, measure: str = "rollouts") -> Floats:
    """(seeds, worlds) of the lambda that is best in each world, in hindsight."""
    names = [name for name in MOPPS if name in next(iter(table.values()))]
    costs = np.stack([log_cost(table, name, measure) for name in names])
    best = costs.mean(axis=1).argmin(axis=0)
    return costs[best, :, np.arange(costs.shape[2])].T


def ratios(table: Table, measure: str = "rollouts") -> dict[str, Estimate]:
    """What `edge` spends, by whom it is compared with."""
    ours = log_cost(table, "edge", measure)
    others = [name for name in next(iter(table.values())) if name not in ("edge", *PROBED)]
    compared = {name: geometric(ours - log_cost(table, name, measure)) for name in others}
    return {"mopps": geometric(ours - best_mopps(table, measure)), **compared}


def probed(table: Table) -> dict[str, Estimate]:
    """What `edge` with a prober spends, for each rollout of it without."""
    names = [name for name in PROBED if name in next(iter(table.values()))]
    return {name: geometric(log_cost(table, name) - log_cost(table, "edge")) for name in names}


def to_uniform(table: Table, arm: str) -> dict[str, Estimate]:
    """World -> what an arm spends for each rollout of uniform."""
    difference = log_cost(table, arm) - log_cost(table, "uniform")
    columns = zip(table, difference.T, strict=True)
    return {name: geometric(column_S[:, None]) for name, column_S in columns}


def show(table: Table) -> None:
    """All worlds by arm, then the arms that matter most by world."""
    arms = list(next(iter(table.values())))
    overall = {arm: geometric(log_cost(table, arm) - log_cost(table, "uniform")) for arm in arms}
    print("\nAll worlds: rollouts and steps to the target, uniform = 1; means of the others")
    print(f"  {'':14}{'rollouts':>9}  95%{'steps':>15}{'reached':>9}{'at budget':>11}", end="")
    print(f"{'mixed':>8}{'distinct':>10}{'effective':>10}")
    for arm in sorted(arms, key=lambda arm: overall[arm].mean):
        e, steps = overall[arm], log_cost(table, arm, "steps") - log_cost(table, "uniform", "steps")
        print(f"  {arm:14}{e.mean:9.3f}  {e.low:.3f}-{e.high:.3f}", end="")
        print(f"{geometric(steps).mean:7.2f}{mean_of(table, arm, 'reached'):9.2f}", end="")
        print(f"{mean_of(table, arm, 'at_budget'):11.3f}", end="")
        print(f"{mean_of(table, arm, 'trained_mixed'):8.2f}", end="")
        print(f"{mean_of(table, arm, 'distinct'):10.2f}{mean_of(table, arm, 'effective'):10.2f}")
    shown = [arm for arm in SHOWN if arm in arms]
    by_arm = {arm: to_uniform(table, arm) for arm in shown}
    print("\nBy world: rollouts to the target, uniform = 1 (> if a seed did not reach it)")
    print(f"  {'':22}" + "".join(f"{arm:>12}" for arm in shown))
    for world, rows in table.items():
        marks = ["" if all(r.reached for r in rows[arm]) else ">" for arm in shown]
        cells = zip(shown, marks, strict=True)
        line = "".join(
            f"{mark + format(by_arm[arm][world].mean, '.2f'):>12}" for arm, mark in cells
        )
        print(f"  {world:22}{line}")
    print("\nWith a prober: rollouts to the target, edge alone = 1")
    for name, e in probed(table).items():
        print(f"  {name:14}{e.mean:9.3f}  {e.low:.3f}-{e.high:.3f}")


def mean_of(table: Table, arm: str, measure: str) -> float:
    """Mean of a measure over worlds and seeds."""
    return float(np.mean([getattr(r, measure) for rows in table.values() for r in rows[arm]]))


def summary(table: Table, worlds: Mapping[str, World]) -> dict[str, object]:
    """The JSON object."""
    by_rollouts, by_steps = ratios(table), ratios(table, "steps")
    uniform = to_uniform(table, "edge")
    worst = max(uniform, key=lambda name: uniform[name].mean)
    return {
        **{f"ratio_to_{name}": round(e.mean, 4) for name, e in by_rollouts.items()},
        "probed": {name: e.rounded() for name, e in probed(table).items()},
        "worst_ratio_to_uniform": round(uniform[worst].mean, 4),
        "worst_world": worst,
        "intervals": {f"ratio_to_{name}": e.rounded() for name, e in by_rollouts.items()},
        "steps": {f"ratio_to_{name}": round(e.mean, 4) for name, e in by_steps.items()},
        "worlds": {
            name: {"note": worlds[name].note, "arms": world_rows(table, name)} for name in table
        },
    }


def world_rows(table: Table, world: str) -> dict[str, dict[str, object]]:
    """Arm -> means over seeds, and what it spends for each rollout of uniform."""
    rows: dict[str, dict[str, object]] = {}
    for arm, results in table[world].items():
        values = {
            field.name: float(np.mean([asdict(result)[field.name] for result in results]))
            for field in fields(Result)
        }
        rows[arm] = {
            key: None if np.isnan(value) else round(value, 4) for key, value in values.items()
        }
        rows[arm]["ratio_to_uniform"] = to_uniform({world: table[world]}, arm)[world].rounded()
    return rows


def draw(path: Path, table: Table) -> None:
    """All worlds on the left, `edge` world by world on the right."""
    figure, (left, right) = new_figure(12.0, 5.5, 2)
    uniform = log_cost(table, "uniform")
    arms = [arm for arm in next(iter(table.values())) if arm != "adarft"]  # off the scale
    overall = {arm: geometric(log_cost(table, arm) - uniform) for arm in arms}
    bars(left, overall, "all worlds")
    bars(right, {f"edge: {k}": e for k, e in to_uniform(table, "edge").items()}, "by world")
    for axes in (left, right):
        axes.set_xlabel("rollouts to the target, uniform = 1", fontsize=9)
        axes.axvline(1.0, color="black", linewidth=0.8)
    save(figure, path)


def quicker(world: World) -> World:
    """A shorter run on a smaller pool."""
    return replace(world, prompt_count=world.prompt_count // 4, batch_size=32, uniform_steps=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="five small worlds, six arms")
    parser.add_argument("--worlds", nargs="*", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the PNG")
    options = parser.parse_args()
    worlds = {name: WORLDS[name] for name in options.worlds}
    arms = tuple(dict.fromkeys((*ALWAYS, *options.arms)))
    if options.quick:
        worlds = {name: quicker(WORLDS[name]) for name in QUICK_WORLDS}
        arms = QUICK_ARMS
    table = compare(worlds, arms, options.seeds, options.processes)
    show(table)
    draw(options.out / "worlds.png", table)
    print(json.dumps(summary(table, worlds)))


if __name__ == "__main__":
    main()
