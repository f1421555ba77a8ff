"""Two short GRPO runs of one tiny model, on a CPU: prompts at the edge of its competence against
prompts drawn uniformly. Run it with `make demo`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import quiet  # before the libraries that it keeps quiet

# isort: split
import torch
from arms import train_arms
from figure import draw
from model import build_model, build_tokenizer, warm_start
from rich.console import Console
from rich.table import Table
from service import create_run, running_server
from show import Show
from tasks import TaskSets, make_tasks
from train import History, Plan

ARMS = ("edge", "uniform")
"""Each is a run with the strategy of that name."""

SEED = 0
GROUP_SIZE = 8


@dataclass(frozen=True)
class Size:
    """How much the demo does. Tasks are counted for each level."""

    warm_tasks: int
    warm_steps: int
    pool_tasks: int
    held_out_tasks: int
    prompts_per_step: int


FULL = Size(
    warm_tasks=4000, warm_steps=3000, pool_tasks=100, held_out_tasks=16, prompts_per_step=32
)
QUICK = Size(warm_tasks=200, warm_steps=100, pool_tasks=20, held_out_tasks=2, prompts_per_step=8)


def main() -> None:
    started_s = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped as well
    options = _parse()
    quiet.hush()
    torch.set_num_threads(1)
    console = Console()
    size = QUICK if options.quick else FULL
    tasks = make_tasks(
        warm_count_per_level=size.warm_tasks,
        pool_count_per_level=size.pool_tasks,
        held_out_count_per_level=size.held_out_tasks,
    )
    with tempfile.TemporaryDirectory() as model_dir, running_server() as address:
        console.print(
            f"{len(tasks.pool):,} Reasoning Gym tasks to train on, {len(tasks.held_out)} held out; "
            f"curriculum-server at {address}",
            soft_wrap=True,
        )
        for arm in ARMS:
            create_run(address, arm, tasks.pool, strategy=arm, group_size=GROUP_SIZE, seed=SEED)
        plan = Plan(
            address=address,
            model_dir=Path(model_dir),
            held_out=tasks.held_out,
            held_out_attempts=8,
            steps=options.steps,
            prompts_per_step=size.prompts_per_step,
            group_size=GROUP_SIZE,
            seed=SEED,
        )
        with Show(console) as show:
            _save_warm_model(plan.model_dir, tasks, size.warm_steps, show)
        with Show(console) as show:
            histories = train_arms(
                plan, ARMS, lambda arm, h: show.update(arm, len(h.mixed), plan.steps, _note(h))
            )
    figure = options.out / "demo.png"
    draw(figure, plan, histories)
    console.print(_table(plan, histories))
    console.print(f"figure: {figure}", soft_wrap=True)
    summary = _summary(plan, histories) | {"seconds": round(time.monotonic() - started_s, 1)}
    print(json.dumps(summary), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=220, help="steps of each arm, at least 5")
    parser.add_argument("--quick", action="store_true", help="few tasks and hardly a warm start")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the figure goes")
    options = parser.parse_args()
    if options.steps < 5:
        parser.error(f"--steps={options.steps}: must be at least 5")
    return options


def _save_warm_model(model_dir: Path, tasks: TaskSets, steps: int, show: Show) -> None:
    tokenizer = build_tokenizer([*tasks.warm, *tasks.pool, *tasks.held_out])
    model = build_model(tokenizer, SEED)
    warm_start(
        model,
        tokenizer,
        tasks.warm,
        steps=steps,
        seed=SEED,
        on_step=lambda step, loss: show.update("warm start", step, steps, f"loss {loss:.2f}"),
    )
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)


def _note(history: History) -> str:
    """Where an arm stands: its last 25 steps, its last measurement."""
    mixed = fmean(history.mixed[-25:]) if history.mixed else 0.0
    return f"mixed groups {mixed:.0%}, held out {history.held_out[-1][1]:.1%}"


def _mixed_fraction(plan: Plan, history: History) -> float:
    return fmean(history.mixed[plan.settling_steps :])


def _table(plan: Plan, histories: Mapping[str, History]) -> Table:
    table = Table(title="Edge of competence against uniform")
    for heading in ("", *histories):
        table.add_column(heading, justify="right" if heading else "left")

    def row(heading: str, value: Callable[[History], str]) -> None:
        table.add_row(heading, *map(value, histories.values()))

    row("mixed groups, after the first fifth", lambda h: f"{_mixed_fraction(plan, h):.3f}")
    row("held-out pass rate before", lambda h: f"{h.held_out[0][1]:.3f}")
    row("held-out pass rate after", lambda h: f"{h.held_out[-1][1]:.3f}")
    row("distinct prompts served", lambda h: f"{h.distinct_prompts:,}")
    row("rollouts", lambda h: f"{h.rollouts:,}")
    row("in the service, per step (p50)", lambda h: f"{median(h.service_time_s) * 1e3:.1f} ms")
    return table


def _summary(plan: Plan, histories: Mapping[str, History]) -> dict[str, float]:
    [before] = {history.held_out[0][1] for history in histories.values()}  # one warm start
    [rollouts] = {history.rollouts for history in histories.values()}  # one budget
    summary: dict[str, float] = {"heldout_before": round(before, 4), "rollouts": rollouts}
    for arm, history in histories.items():
        summary[f"mixed_fraction_{arm}"] = round(_mixed_fraction(plan, history), 4)
        summary[f"heldout_{arm}"] = round(history.held_out[-1][1], 4)
        summary[f"distinct_prompts_{arm}"] = history.distinct_prompts
        summary[f"service_ms_p50_{arm}"] = round(median(history.service_time_s) * 1e3, 2)
    return summary


if __name__ == "__main__":
    main()
