"""Every kind of fault once, under load; `make chaos` injects hundreds."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.chaos import asides, faults
from tests.chaos.main import kinds_here
from tests.chaos.report import Report
from tests.chaos.rounds import Plan, play
from tests.chaos.servers import WallClock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="freezes and starves processes"),
    pytest.mark.timeout(240),  # on a machine that is busy with other things, too
]

KINDS, MISSING = kinds_here()
SERVER_KINDS = [kind for kind in KINDS if kind.startswith(("server", "client"))]
STORE_KINDS = [kind for kind in KINDS if kind.startswith(("store", "disk"))]


def played(*kinds: str, **plan: object) -> Report:
    report = Report(len(kinds))
    known = {**KINDS, **faults.ON_EMBEDDED, **faults.ON_EVERYSEC}
    play(Plan("round", list(kinds), seed=7, **plan), known, report)
    return report


def test_what_befalls_a_server_loses_and_doubles_nothing():
    report = played(*SERVER_KINDS)
    assert report.problems == []
    assert report.is_clean


def test_what_befalls_the_store_loses_and_doubles_nothing_that_was_on_disk():
    report = played(*STORE_KINDS)
    assert report.problems == []
    assert report.is_clean


def test_one_server_alone_comes_back_with_everything():
    report = played("server_killed", server_count=1)
    assert report.problems == []
    assert report.is_clean


def test_an_embedded_store_comes_back_with_everything():
    report = played(*faults.ON_EMBEDDED, server_count=1, embedded=True)
    assert report.problems == []
    assert report.is_clean


def test_a_kill_or_a_full_disk_loses_nothing_under_everysec_while_the_machine_lives():
    report = played(*faults.ON_EVERYSEC, appendfsync="everysec")
    assert report.problems == []
    summary = report.summary(seed=7, elapsed_s=0)
    assert summary["everysec"]["lost"] == summary["everysec"]["double"] == 0


def test_a_server_notices_that_its_store_went_back_and_tells_what_the_store_holds():
    aside = asides.unsynced_failover(7)
    assert aside.problems == []
    assert aside.lost > 0


def test_a_store_that_comes_back_empty_is_data_loss_to_every_call():
    assert asides.emptied_store(7).problems == []


@pytest.mark.skipif("clock_jumped" not in KINDS, reason=MISSING)
def test_a_process_sees_its_clock_moved_forwards_and_back(tmp_path):
    clock = WallClock(tmp_path)
    tell = "import sys, time\nfor _ in sys.stdin: print(time.time(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", tell],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for offset_s in (0, 3600, -3600, 0):
            clock.move(offset_s)
            process.stdin.write("\n")
            process.stdin.flush()
            assert float(process.stdout.readline()) - time.time() == pytest.approx(offset_s, abs=60)


@pytest.mark.skipif("clock_jumped" not in KINDS, reason=MISSING)
def test_a_server_whose_clock_jumps_loses_and_doubles_nothing():
    report = played("clock_jumped")
    assert report.problems == []
    assert report.is_clean
