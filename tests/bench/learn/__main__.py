"""A small transformer learns by GRPO, its prompts chosen by each method. The last line is JSON.

    python -m tests.bench.learn [--quick] [--size large] [--sweep]

A model of half a million parameters answers short questions of nine families (see `domains`). Its
warm start has seen right answers to the easy levels of each, and careless ones to the others, so
that most prompts of the pool are mastered or hopeless and few are mixed. Then every method gets the
same number of rollouts, each one charged, from the same weights, pool and held-out prompts; a seed
is one of all these.

Every arm has the same optimiser; its learning rate was chosen by uniform's held-out pass@1 in short
runs of one seed. `--sweep` measures it for several rates over whole budgets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tests.bench.learn.report import draw, show, show_families, show_start, summary
from tests.bench.learn.size import SIZES, Size
from tests.bench.learn.trial import ARMS, Outcome, Start, learn, prepare
from tests.bench.parallel import in_order

DEFAULT_ARMS = ("uniform", "dapo", "mopps_1", "mopps_0.5", "edge")
SWEPT_RATES = (1e-4, 2e-4, 4e-4)


def compare(
    starts: Sequence[Start], arms: Sequence[str], size: Size, device: str, *, processes: int
) -> dict[str, list[Outcome]]:
    """Every arm from every start."""
    runs = [(arm, start) for start in starts for arm in arms]
    outcomes = in_order(partial(learn, size=size, device=device), runs, processes)
    results: dict[str, list[Outcome]] = {arm: [] for arm in arms}
    for (arm, _), outcome in zip(runs, outcomes, strict=True):
        results[arm].append(outcome)
    return results


def sweep(starts: Sequence[Start], size: Size, device: str, *, processes: int) -> None:
    """Uniform's held-out pass@1 by learning rate."""
    rows = {}
    for rate in SWEPT_RATES:
        tried = replace(size, training=replace(size.training, rate=rate))
        outcomes = compare(starts, ("uniform",), tried, device, processes=processes)["uniform"]
        ends = [outcome.curve[-1].pass_at_1 for outcome in outcomes]
        rows[f"{rate:g}"] = round(sum(ends) / len(ends), 4)
        print(f"rate {rate:g}: held-out pass@1 {rows[f'{rate:g}']:.4f}")
    print(json.dumps({"uniform_pass_at_1_by_rate": rows}))


def main() -> None:
    began = time.perf_counter()
    options = parsed()
    size = SIZES["quick" if options.quick else options.size]
    if options.rollouts:
        size = replace(size, rollout_budget=options.rollouts)
    begin = partial(prepare, size=size, device=options.device)
    starts = in_order(begin, range(options.seeds), options.processes)
    show_start(starts)
    if options.sweep:
        sweep(starts, size, options.device, processes=options.processes)
        return
    results = compare(starts, options.arms, size, options.device, processes=options.processes)
    show(results)
    show_families(starts, results)
    draw(options.out / "learn.png", results)
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({**summary(starts, results), "device": options.device, "seconds": seconds}))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=list(SIZES), default="small", help="large: for a GPU")
    parser.add_argument("--quick", action="store_true", help="about two minutes, no conclusions")
    parser.add_argument("--sweep", action="store_true", help="learning rates, on uniform")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(DEFAULT_ARMS))
    parser.add_argument("--rollouts", type=int, help="another budget for each arm")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--processes", type=int, default=1 if on_gpu else 2)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the PNG")
    options = parser.parse_args()
    if options.quick:
        options.seeds = 1
    return options


if __name__ == "__main__":
    main()
