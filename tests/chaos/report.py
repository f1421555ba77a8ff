"""What came of the faults: a line for each, sums at the end."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from tests.chaos.accounting import Verdict
from tests.chaos.asides import Aside
from tests.chaos.torn_tail import Survey

EVERYSEC_SAYS = (
    "everysec: no kill -9 of the store alone lost anything acknowledged, for the store hands each "
    "write to the kernel before it answers, unless a sync of the disk is under way: then up to two "
    "seconds later (INFO's aof_delayed_fsync). The death of the machine takes the last second"
)


@dataclass(frozen=True)
class Recovery:
    """How long a fault was felt, and how much of it after what had died was there again."""

    total_s: float
    after_ready_s: float | None = None

    def __str__(self) -> str:
        late = "" if self.after_ready_s is None else f" ({self.after_ready_s:.2f} after its return)"
        return f"{self.total_s:.2f}{late}"


class Report:
    """Filled by all rounds at once."""

    def __init__(self, planned: int, skipped: str = "") -> None:
        self.planned = planned
        self.problems: list[str] = []
        self.stopping = threading.Event()
        """Set to end early: no further fault, but the accounts."""
        self._skipped = skipped
        self._lock = threading.Lock()
        self._started_s = time.monotonic()
        self._running: dict[str, Verdict] = {}
        """Each round's last account."""
        self._appendfsync: dict[str, str] = {}
        self._recoveries: dict[str, list[Recovery]] = defaultdict(list)
        self._always_count = 0
        self._asides: dict[str, Aside] = {}
        self._torn: Survey | None = None

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self._started_s:7.1f} s  {line}", flush=True)

    def add_fault(
        self, round_name: str, kind: str, what: str, recovery: Recovery, verdict: Verdict
    ) -> None:
        with self._lock:
            self._recoveries[kind].append(recovery)
            self._running[round_name] = verdict
            self._always_count += not kind.startswith("everysec")
            number = sum(map(len, self._recoveries.values()))
            acknowledged = sum(each.acknowledged for each in self._running.values())
            self.say(
                f"[{number}/{self.planned}] {round_name}: {what}; acknowledged={acknowledged:,} "
                f"lost={verdict.lost} double={verdict.double} recovered_s={recovery}"
            )

    def add_round(
        self, name: str, appendfsync: str, verdict: Verdict | None, errors: list[str]
    ) -> None:
        with self._lock:
            self._appendfsync[name] = appendfsync
            if verdict is not None:
                self._running[name] = verdict
            self.problems += [f"{name}: {error}" for error in errors]
            self.say(f"{name} ended: {verdict}{''.join(f' {e}' for e in errors[:3])}")

    def add_aside(self, name: str, aside: Aside) -> None:
        with self._lock:
            self._asides[name] = aside
            self.problems += [f"{name}: {problem}" for problem in aside.problems]
            problems = f" PROBLEMS {aside.problems}" if aside.problems else ""
            self.say(f"{name}: {aside.what}; lost={aside.lost} {aside.figures}{problems}")

    def add_torn_tail(self, survey: Survey) -> None:
        with self._lock:
            self._torn = survey
            self.problems += survey.problems

    @property
    def is_clean(self) -> bool:
        return not self.problems and all(verdict.is_clean for verdict in self._of("always"))

    def say_results(self) -> None:
        """The kinds with their recovery, what everysec did, and whatever is wrong."""
        for kind, recoveries in sorted(self._recoveries.items()):
            totals_s = [recovery.total_s for recovery in recoveries]
            self.say(
                f"{kind:24} {len(totals_s):4} faults, recovery p50 {_median(totals_s):.2f} s, "
                f"longest {max(totals_s):.2f} s"
            )
        if any(self._of("everysec")) and not self._sum("everysec")["lost"]:
            self.say(EVERYSEC_SAYS)
        if self._skipped:
            self.say(f"left out: {self._skipped}")
        for problem in self.problems[:20]:
            self.say(f"PROBLEM {problem}")

    def summary(self, *, seed: int, elapsed_s: float) -> dict[str, object]:
        """What the last line holds. Sums are of the rounds under `always`, those of `everysec`
        and the asides stand beside them."""
        always = [r for kind, r in self._recoveries.items() if not kind.startswith("everysec")]
        recoveries_s = [recovery.total_s for each in always for recovery in each]
        unsynced = self._asides.get("failover_unsynced")
        emptied = self._asides.get("store_emptied")
        return {
            **self._sum("always"),
            "faults": self._always_count,
            "recovery_p50_s": _median(recoveries_s),
            "recovery_max_s": round(max(recoveries_s, default=0.0), 2),
            "kinds": {
                kind: _figures(recoveries) for kind, recoveries in sorted(self._recoveries.items())
            },
            "everysec": self._sum("everysec"),
            "failover_unsynced_lost": unsynced.lost if unsynced else None,
            "failover_unsynced": unsynced.figures if unsynced else None,
            "store_emptied": emptied.figures if emptied else None,
            "torn_tail": self._torn.figures if self._torn else None,
            "left_out": self._skipped,
            "problems": len(self.problems),
            "seed": seed,
            "elapsed_s": round(elapsed_s),
        }

    def _of(self, appendfsync: str) -> list[Verdict]:
        return [
            verdict
            for name, verdict in self._running.items()
            if self._appendfsync.get(name, "always") == appendfsync
        ]

    def _sum(self, appendfsync: str) -> dict[str, int]:
        verdicts = self._of(appendfsync)
        return {
            "acknowledged": sum(verdict.acknowledged for verdict in verdicts),
            "lost": sum(verdict.lost for verdict in verdicts),
            "double": sum(verdict.double for verdict in verdicts),
            "leased_twice": sum(verdict.leased_twice for verdict in verdicts),
        }


def _figures(recoveries: list[Recovery]) -> dict[str, object]:
    late_s = [r.after_ready_s for r in recoveries if r.after_ready_s is not None]
    return {
        "faults": len(recoveries),
        "recovery_p50_s": _median([recovery.total_s for recovery in recoveries]),
        **({"after_ready_p50_s": _median(late_s)} if late_s else {}),
    }


def _median(seconds: list[float]) -> float | None:
    return round(statistics.median(seconds), 3) if seconds else None
