"""The verifiers' processes begin and end with their pool."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCORER = """
    import subprocess, time

    def score(completion, payload):
        if completion == "start": subprocess.Popen(["sleep", "1000"])
        if completion == "mark":
            with open(payload["marks"], "a") as marks: marks.write("x")
        if completion in ("start", "hang", "mark"): time.sleep(1000)
        if completion == "slow": time.sleep(0.5)
        return completion != "no"
"""
PAYLOAD = json.dumps({"verifier": "python:sleepers:score"})


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(autouse=True)
def _sleepers(user_code) -> None:
    user_code("sleepers", SCORER)


async def test_processes_start_when_they_are_needed(open_pool, children_now) -> None:
    before, pool = children_now(), await open_pool(process_count=3)
    assert children_now() == before
    for _ in range(3):
        await pool.verify(PAYLOAD, ["yes"])
    assert len(children_now() - before) == 1
    await asyncio.gather(*[pool.verify(PAYLOAD, ["slow"]) for _ in range(3)])
    assert len(children_now() - before) == 3


async def test_a_group_is_shared_by_the_processes(open_pool, children_now) -> None:
    before, pool = children_now(), await open_pool(process_count=2)
    verdicts = await pool.verify(PAYLOAD, ["slow", *["no"] * 8])
    assert [verdict.score for verdict in verdicts] == [1.0] + [0.0] * 8
    assert len(children_now() - before) == 2


async def test_who_prepares_waits_for_a_verdict_and_not_for_all_that_are_wanted(open_pool) -> None:
    pool = await open_pool()
    await pool.prepare(PAYLOAD)
    backlog = [asyncio.create_task(pool.verify(PAYLOAD, ["slow"])) for _ in range(6)]
    for _ in range(5):  # all of them come first
        await asyncio.sleep(0)
    await pool.prepare(PAYLOAD)
    assert sum(call.done() for call in backlog) <= 2  # the one in work, and one at the door
    for call in backlog:
        call.cancel()
    await asyncio.gather(*backlog, return_exceptions=True)


async def test_closing_ends_what_hangs_and_what_it_started(open_pool, children_now) -> None:
    before, pool = children_now(), await open_pool(timeout_s=100.0)
    async with pool:
        hanging = asyncio.create_task(pool.verify(PAYLOAD, ["yes", "start", "yes"]))
        [process] = await _until(lambda: children_now() - before)
        [sleeper] = await _until(lambda: _children_of(process))
    verdicts = await asyncio.wait_for(hanging, 10)
    assert [verdict.score for verdict in verdicts] == [1.0, None, None]
    assert verdicts[2].because == "the verifiers were stopped"
    await _until(lambda: not _is_alive(sleeper))


async def test_a_cancelled_call_frees_its_process(open_pool, children_now) -> None:
    before, pool = children_now(), await open_pool(timeout_s=100.0)
    hanging = asyncio.create_task(pool.verify(PAYLOAD, ["hang"]))
    [process] = await _until(lambda: children_now() - before)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert process not in children_now()
    assert [verdict.score for verdict in await pool.verify(PAYLOAD, ["no"])] == [0.0]


async def test_a_closed_pool_scores_nothing(open_pool) -> None:
    pool = await open_pool()
    async with pool:
        await pool.verify(PAYLOAD, ["yes"])
    [verdict] = await pool.verify(PAYLOAD, ["yes"])
    assert (verdict.score, verdict.because) == (None, "the verifiers were stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_every_process_leaves_the_work_in_hand(
    open_pool, children_now, number
) -> None:
    before, pool = children_now(), await open_pool()
    await pool.prepare(PAYLOAD)
    call = asyncio.create_task(pool.verify(PAYLOAD, ["slow"] * 3))
    await asyncio.sleep(0.2)
    for process in children_now() - before:
        os.kill(process, number)
    assert [verdict.score for verdict in await call] == [1.0] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_process_outlives_a_killed_worker(tmp_path, number) -> None:
    program, marks = tmp_path / "worker.py", tmp_path / "marks"
    payload = json.dumps(json.loads(PAYLOAD) | {"marks": str(marks)})
    program.write_text(
        textwrap.dedent(f"""
        import asyncio, sys
        from curriculum_probe.verifiers.pool import VerifierPool

        async def main():
            async with VerifierPool(process_count=2, timeout_s=900, memory_bytes=2**30) as pool:
                await asyncio.gather(*[pool.verify({payload!r}, ["mark"]) for _ in range(2)])

        sys.path.insert(0, {str(tmp_path)!r})
        asyncio.run(main())
        """)
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, program)
    try:
        await _until(lambda: marks.exists() and marks.read_text() == "xx")
        verifiers = _children_of(worker.pid)
        assert len(verifiers) == 2
    finally:
        worker.send_signal(number)
        await worker.wait()
    await _until(lambda: not any(_is_alive(process) for process in verifiers))


async def test_the_working_directory_hides_no_standard_module(
    open_pool, tmp_path, monkeypatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [verdict.score for verdict in await (await open_pool()).verify(PAYLOAD, ["no"])] == [0.0]


async def test_the_main_module_is_not_run_again(tmp_path) -> None:
    program = tmp_path / "unguarded.py"
    program.write_text(
        textwrap.dedent("""
        import asyncio
        from curriculum_probe.verifiers.pool import VerifierPool

        async def main():
            async with VerifierPool(process_count=1, timeout_s=20, memory_bytes=2**30) as pool:
                print([v.score for v in await pool.verify('{"answer": 1}', ["1", "2"])])

        print("started")
        asyncio.run(main())
        """)
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, program, stdout=PIPE, stderr=PIPE)
    assert await worker.communicate() == (b"started\n[1.0, 0.0]\n", b"")


async def _until(found: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
    return value


def _children_of(parent: int) -> list[int]:
    return [process for process, (_, of) in _processes().items() if of == parent]


def _is_alive(process: int) -> bool:
    return _processes().get(process, ("Z", 0))[0] != "Z"


def _processes() -> dict[int, tuple[str, int]]:
    """Each process' state and parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone by now
            continue
        found[int(path.parent.name)] = (state, int(parent))
    return found
