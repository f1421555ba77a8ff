"""Mixed groups and prediction on a recorded run. The last line is one JSON object.

    python -m tests.bench.replay TRACE

TRACE is a JSON object, prompt -> share of 8 attempts that were correct at each of its visits, one
visit an epoch. See `environment` for how it is played. No arm but the ceiling knows the future.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.bench.arms import MOPPS, PEERS, PRODUCT, Arm, Build, Edge
from tests.bench.figure import bars, new_figure, save
from tests.bench.harness import oracle_of, run
from tests.bench.intervals import Estimate, bootstrap
from tests.bench.parallel import in_order
from tests.bench.replay.environment import STEPS_PER_VISIT, Replay, Trace, read_trace
from tests.bench.replay.prediction import Foretold, calibration_error, foretell

MEASURES = (
    "overall",
    "after_quarter",
    "overall_trained",
    "after_quarter_trained",
    "rollouts_thousands",
    "distinct_share",
    "effective_share",
)
ROW = (*MEASURES, "belief_error")
NAMES = ("edge", "edge_slow_clock", "edge_default", *PEERS, "ceiling")
ALWAYS = ("edge", "uniform", "mopps_1", "ceiling")
LABELS = {"adarft": "adarft, 128 each before"}


@dataclass(frozen=True)
class Setting:
    """One way to play a trace.

    Attributes:
        trace: the recording.
        batch_size: B.
        step_count: T.
        steps_per_visit: policy steps that pass between two visits of the recording.
    """

    trace: Trace
    batch_size: int
    step_count: int
    steps_per_visit: float


def settings(trace: Trace, steps_per_visit: float) -> dict[str, Setting]:
    """A tenth of the pool in each of as many steps as a prompt was visited; and a fiftieth in each
    of the recorded run's own steps, where rest and softening have room."""
    size, visits = len(trace.correct), trace.epochs
    own_steps = round(visits * STEPS_PER_VISIT)
    return {
        "tenth": Setting(trace, max(size // 10, 1), visits, steps_per_visit),
        "fiftieth": Setting(trace, max(size // 50, 1), own_steps, steps_per_visit),
    }


def builds(environment: Replay) -> dict[str, Build]:
    """All arms by name: `edge` wants nothing but mixed groups, `edge_default` is as a run has it,
    `edge_slow_clock` is `edge` told that a visit is a single policy step."""
    return {
        "edge": PRODUCT["edge_greedy"],
        "edge_slow_clock": PRODUCT["edge_greedy"],
        "edge_default": PRODUCT["edge"],
        **PEERS,
        "ceiling": oracle_of(environment),
    }


def play(setting: Setting, arm_and_seed: tuple[str, int]) -> list[float]:
    """One arm once: the numbers of `ROW`."""
    name, seed = arm_and_seed
    environment = Replay(
        setting.trace,
        np.random.default_rng([seed, 1]),
        step_count=setting.step_count,
        batch_size=setting.batch_size,
        steps_per_visit=1.0 if name == "edge_slow_clock" else setting.steps_per_visit,
    )
    believed: list[np.ndarray] = []
    came: list[np.ndarray] = []

    def watch(arm: Arm) -> None:
        if isinstance(arm, Edge):
            believed.append(arm.believed_B)
            came.append(arm.served.rate_M)

    rng = np.random.default_rng([seed, 2])
    build = builds(environment)[name]
    course = run(build, environment, rng, setting.step_count, watch=watch)
    quarter = -(-setting.step_count // 4)
    error = calibration_error(np.concatenate(believed), np.concatenate(came)) if came else np.nan
    return [
        course.useful_share(),
        course.useful_share(quarter),
        course.mixed_share(),
        course.mixed_share(quarter),
        course.charged / 1e3,
        course.distinct_share,
        course.effective_share,
        error,
    ]


def compare(
    setting: Setting, names: tuple[str, ...], seed_count: int, processes: int
) -> dict[str, dict[str, Estimate]]:
    """Arm -> measure -> estimate."""
    plays = [(name, seed) for name in names for seed in range(seed_count)]
    rows = np.array(in_order(partial(play, setting), plays, processes))
    by_arm = rows.reshape(len(names), seed_count, len(ROW)).transpose(0, 2, 1)
    return {
        name: {key: bootstrap(values_S) for key, values_S in zip(ROW, columns, strict=True)}
        for name, columns in zip(names, by_arm, strict=True)
    }


def best_mopps(rows: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The lambda with the most mixed groups after the first quarter."""
    names = [name for name in MOPPS if name in rows]
    return max(names, key=lambda name: rows[name]["after_quarter"].mean)


def show(title: str, rows: Mapping[str, Mapping[str, Estimate]]) -> None:
    """A table, the best first."""
    print(f"\n{title}")
    print("  mixed attempts per rollout charged; groups trained on that are mixed; pool used")
    print(f"  {'':16}{'overall':>9}{'after 1/4':>11}{'  95%':13}{'trained':>8}", end="")
    print(f"{'after 1/4':>11}{'rollouts':>10}{'distinct':>10}{'effective':>10}")
    for name in sorted(rows, key=lambda name: -rows[name]["after_quarter"].mean):
        row = rows[name]
        after = row["after_quarter"]
        print(f"  {name:16}{row['overall'].mean:9.3f}{after.mean:11.3f}", end="")
        print(f"  {after.low:.3f}-{after.high:.3f}{row['overall_trained'].mean:8.3f}", end="")
        print(f"{row['after_quarter_trained'].mean:11.3f}", end="")
        print(f"{row['rollouts_thousands'].mean:9.1f}k{row['distinct_share'].mean:10.2f}", end="")
        print(f"{row['effective_share'].mean:10.2f}")


def foretell_all(trace: Trace, steps_per_visit: float) -> dict[str, Foretold]:
    """The product's beliefs, on both clocks."""
    return {
        "product": foretell(trace, steps_per_visit),
        "product, slow clock": foretell(trace, 1.0),
    }


def show_prediction(foretold: Mapping[str, Foretold]) -> None:
    """A table."""
    print("\nNext visit foretold when every prompt is visited in every epoch")
    print(f"  {'':24}{'squared error':>14}{'log score':>11}{'calibration':>13}")
    for name, f in foretold.items():
        print(f"  {name:24}{f.squared_error:14.5f}{f.log_score:11.4f}{f.calibration_error:13.4f}")


def summary(
    tables: Mapping[str, Mapping[str, Mapping[str, Estimate]]], foretold: Mapping[str, Foretold]
) -> dict[str, object]:
    """The JSON object: a key for each arm, the prediction's, and the second table."""
    tenth, product = summary_of(tables["tenth"]), foretold["product"]
    best = best_mopps(tables["tenth"])
    return {
        **tenth,
        "mopps_best": {"name": best, **tenth[best]},
        "squared_error": round(product.squared_error, 5),
        "log_score": round(product.log_score, 4),
        "calibration_error": round(product.calibration_error, 4),
        "served_calibration_error": round(tables["tenth"]["edge"]["belief_error"].mean, 4),
        "squared_error_by": {name: round(f.squared_error, 5) for name, f in foretold.items()},
        "fiftieth": summary_of(tables["fiftieth"]),
    }


def summary_of(rows: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, object]]:
    """The means by arm, intervals beside them."""
    return {
        name: {
            **{key: round(row[key].mean, 4) for key in MEASURES},
            "interval": {key: row[key].rounded() for key in ("overall", "after_quarter")},
        }
        for name, row in rows.items()
    }


def draw(path: Path, tables: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> None:
    """One panel per setting."""
    figure, axes = new_figure(6.0 * len(tables), 5.0, len(tables))
    for panel, (title, rows) in zip(axes, tables.items(), strict=True):
        named = {LABELS.get(name, name): row["after_quarter"] for name, row in rows.items()}
        bars(panel, named, f"a {title} of the pool per step")
        panel.set_xlabel("mixed attempts per rollout, after the first quarter", fontsize=9)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--arms", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--steps-per-visit", type=float, default=STEPS_PER_VISIT, help="policy steps in an epoch"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the PNG")
    options = parser.parse_args()
    trace = read_trace(options.trace)
    print(f"{len(trace.correct)} prompts, {trace.epochs} visits of the median prompt")
    names = tuple(dict.fromkeys((*ALWAYS, *options.arms)))
    played = settings(trace, options.steps_per_visit)
    tables = {}
    for name, setting in played.items():
        title = f"a {name} of the pool per step: {setting.step_count} steps of {setting.batch_size}"
        tables[name] = compare(setting, names, options.seeds, options.processes)
        show(title, tables[name])
    foretold = foretell_all(trace, options.steps_per_visit)
    show_prediction(foretold)
    draw(options.out / "replay.png", tables)
    print(json.dumps(summary(tables, foretold)))


if __name__ == "__main__":
    main()
