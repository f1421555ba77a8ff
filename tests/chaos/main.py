"""Injects faults into services under load, and counts what was acknowledged and is not there.

Every round has a store, servers, trainers and probers of its own; two rounds run side by side, for
most of a fault is waiting. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos import asides, faults, torn_tail
from tests.chaos.asides import Aside
from tests.chaos.report import Report
from tests.chaos.rounds import Plan, play
from tests.chaos.servers import faketime_library

ROUND_FAULTS = 40
EMBEDDED_SHARE = 0.08
"""Of the faults under `always`, those that an embedded store meets."""
EVERYSEC_SHARE = 0.05
"""Of that number, those injected under `everysec` in addition."""
SLOW_KINDS = frozenset({"clock_jumped"})
SLOW_CYCLES = 4
"""Slow kinds are drawn in one cycle of so many."""
LANES = 2


def kinds_here() -> tuple[dict[str, faults.Fault], str]:
    """The kinds of fault for a store of its own that can be injected here, and what is missing."""
    kinds = dict(faults.ON_ALWAYS)
    if faketime_library() is None:
        del kinds["clock_jumped"]
        return kinds, "clock_jumped: libfaketime is not installed"
    return kinds, ""


def plans(fault_count: int, acknowledged: int, seed: int, kinds: Sequence[str]) -> list[Plan]:
    """The rounds that make up so many faults under `always`, and some under `everysec`."""
    rng = random.Random(seed)
    own = [kind for kind in kinds if kind in faults.ON_ALWAYS]
    embedded = [kind for kind in kinds if kind in faults.ON_EMBEDDED]
    everysec = [kind for kind in kinds if kind in faults.ON_EVERYSEC]
    embedded_count = max(len(embedded), round(EMBEDDED_SHARE * fault_count)) if embedded else 0
    embedded_count = embedded_count if own else fault_count
    own_count = max(fault_count - embedded_count, len(own)) if own else 0
    everysec_count = max(len(everysec), round(EVERYSEC_SHARE * fault_count)) if everysec else 0
    made = []
    for number, drawn in enumerate(_cut(_drawn(own, own_count, rng), ROUND_FAULTS)):
        # Every third round has one server, whose death nobody else makes up for.
        made.append(Plan(f"always {number}", drawn, server_count=1 if number % 3 == 2 else 2))
    for number, drawn in enumerate(_cut(_drawn(embedded, embedded_count, rng), ROUND_FAULTS)):
        made.append(Plan(f"embedded {number}", drawn, server_count=1, embedded=True))
    for plan in made:
        plan.acknowledged = acknowledged * len(plan.kinds) // (own_count + embedded_count)
    for number, drawn in enumerate(_cut(_drawn(everysec, everysec_count, rng), ROUND_FAULTS)):
        made.append(Plan(f"everysec {number}", drawn, appendfsync="everysec"))
    for number, plan in enumerate(made):
        plan.seed = 1000 * seed + number
    return made


def play_asides(seed: int, report: Report) -> None:
    """What loses something by its nature, each on a run of its own."""
    scenarios = {
        "failover_unsynced": asides.unsynced_failover,
        "store_emptied": asides.emptied_store,
    }
    for name, scenario in scenarios.items():
        if report.stopping.is_set():
            return
        try:
            report.add_aside(name, scenario(seed))
        except Exception as error:  # the boundary: the other results are worth having
            report.add_aside(name, Aside(name, problems=[f"{type(error).__name__}: {error}"]))


def play_torn_tail(stride: int, report: Report) -> None:
    """Every byte of the last record, on the embedded store and on one with the fault."""
    try:
        report.add_torn_tail(torn_tail.survey(stride, report.say))
    except Exception as error:  # the boundary: the other results are worth having
        report.problems.append(f"torn tail: {type(error).__name__}: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Play everything; the exit code."""
    options = _options(arguments)
    logging.disable(logging.WARNING)  # clients and probers say each time that they wait
    known = {**faults.ON_ALWAYS, **faults.ON_EMBEDDED, **faults.ON_EVERYSEC}
    here, missing = kinds_here()
    wanted = options.kinds.split(",") if options.kinds else list(known)
    if unknown := set(wanted) - set(known):
        sys.exit(f"--kinds: {', '.join(sorted(unknown))}: must be among {', '.join(known)}")
    kinds = [kind for kind in wanted if kind in here or kind not in faults.ON_ALWAYS]
    rounds = plans(options.faults, options.acknowledged, options.seed, kinds)
    report = Report(sum(len(plan.kinds) for plan in rounds), missing)
    report.say(f"seed {options.seed}, {len(rounds)} rounds, {report.planned} faults")
    started_s = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: report.stopping.set())
    with ThreadPoolExecutor(LANES) as lanes:
        playing = []
        if not options.kinds:
            playing.append(lanes.submit(play_torn_tail, options.torn_stride, report))
            playing.append(lanes.submit(play_asides, options.seed, report))
        playing += [lanes.submit(play, plan, known, report) for plan in rounds]
        for played in playing:
            played.result()
    result = report.summary(seed=options.seed, elapsed_s=time.monotonic() - started_s)
    report.say_results()
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)
    return 0 if report.is_clean else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=500, help="injected under `always`")
    parser.add_argument("--acknowledged", type=int, default=1_000_000, help="attempts at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help="only these, separated by commas")
    parser.add_argument("--torn-stride", type=int, default=1, help="cut at every n-th byte")
    parser.add_argument("--json", type=Path, help="also write the last line here, indented")
    return parser.parse_args(arguments)


def _drawn(kinds: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """So many kinds: all of them in a new order, again and again, but for those that take long."""
    drawn: list[str] = []
    for cycle in itertools.count():
        if not kinds or len(drawn) >= count:
            return drawn[:count]
        due = [kind for kind in kinds if kind not in SLOW_KINDS or cycle % SLOW_CYCLES == 0]
        drawn += rng.sample(due, len(due))
    raise AssertionError("cycles never end")


def _cut(kinds: Sequence[str], length: int) -> list[list[str]]:
    return [list(kinds[first : first + length]) for first in range(0, len(kinds), length)]


if __name__ == "__main__":
    sys.exit(main())
