"""A verifier that fails costs the attempt that it fails over, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from curriculum_probe.verifiers import process

SCORER = """
    import ctypes, os, signal, subprocess, sys, threading, time

    def score(completion, payload):
        if completion == "exit": os._exit(3)
        if completion == "leave": sys.exit(0)
        if completion == "segfault": ctypes.string_at(0)
        if completion == "kill": os.kill(os.getpid(), signal.SIGKILL)
        if completion == "hang": time.sleep(1000)
        if completion == "spin":
            while True: pass
        if completion == "deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(1000)
        if completion == "slow": time.sleep(0.2); return 1
        if completion == "hog": return len(bytearray(2**40))
        if completion == "grow":
            held = []
            while True: held.append(bytearray(2**24))
        if completion == "raise": raise ValueError("secret completion")
        if completion == "recurse": return score(completion, payload)
        if completion == "interrupt": raise KeyboardInterrupt
        if completion == "fork":
            if os.fork() == 0: return 0
            os.wait(); return 1
        if completion == "close": os.closerange(3, 100)
        if completion == "text": return "1"
        if completion == "nothing": return None
        if completion == "nan": return float("nan")
        if completion == "infinite": return float("-inf")
        if completion == "complex": return 1j
        if completion == "noise": print("noise"); os.write(1, b"noise"); return 1
        if completion == "input": return len(sys.stdin.read()) + len(os.read(0, 9))
        if completion == "worker": return os.getpid() % 100000 / 100000
        if completion == "high": return 7
        if completion == "low": return -7
        return completion == payload["answer"]
"""
PAYLOAD = json.dumps({"verifier": "python:scorers:score", "answer": "yes"})


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory")


@pytest.fixture(autouse=True)
def _scorers(user_code) -> None:
    user_code("scorers", SCORER)


@pytest.mark.parametrize(
    ("completion", "because"),
    [
        ("exit", "its process exited with code 3"),
        ("segfault", "its process was ended by SIGSEGV"),
        ("kill", "its process was ended by SIGKILL"),
        ("leave", "SystemExit at scorers.py:6"),
        ("raise", "ValueError at scorers.py:20"),
        ("recurse", "RecursionError at scorers.py:"),
        ("interrupt", "KeyboardInterrupt at scorers.py:"),
        ("close", "its process"),
        ("hog", "its process ran out of memory"),
        ("grow", "its process ran out of memory"),
        ("text", "answered str: must be a number"),
        ("nothing", "answered NoneType: must be a number"),
        ("nan", "answered nan: must be finite"),
        ("infinite", "answered -inf: must be finite"),
        ("complex", "answered complex: must be a number"),
    ],
)
async def test_a_failure_is_of_one_attempt(open_pool, completion, because) -> None:
    pool = await open_pool()
    verdicts = await pool.verify(PAYLOAD, ["yes", completion, "no", completion, "yes"])
    assert [verdict.score for verdict in verdicts] == [1.0, None, 0.0, None, 1.0]
    assert all(verdicts[failed].because.startswith(because) for failed in (1, 3))
    assert [verdict.score for verdict in await pool.verify(PAYLOAD, ["yes"])] == [1.0]


@pytest.mark.parametrize("completion", ["hang", "spin", "deaf"])
async def test_a_hang_is_ended_and_costs_one_attempt(open_pool, completion) -> None:
    pool = await open_pool(timeout_s=1.0)
    await pool.prepare(PAYLOAD)
    started_s = time.monotonic()
    verdicts = await pool.verify(PAYLOAD, ["yes", completion, "no"])
    assert [verdict.score for verdict in verdicts] == [1.0, None, 0.0]
    assert verdicts[1].because == "took longer than 1 s"
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize(
    ("payload", "completion"),
    [
        ({"verifier": "regex", "pattern": r"(a|a)*$"}, "a" * 60 + "!"),
        ({"verifier": "math", "answer": "1"}, "$9^{9^{9^{9}}}$"),
    ],
)
async def test_what_a_model_wrote_may_hang_a_built_in_verifier(
    open_pool, payload, completion
) -> None:
    pool = await open_pool(timeout_s=1.5)
    right = {"regex": "aaa", "math": "$1$"}[payload["verifier"]]
    verdicts = await pool.verify(json.dumps(payload), [right, completion, right])
    assert [verdict.score for verdict in verdicts] == [1.0, None, 1.0]
    assert verdicts[1].because == "took longer than 1.5 s"


async def test_scores_are_clipped(scores) -> None:
    assert await scores(json.loads(PAYLOAD), ["high", "low", "yes"]) == [1.0, 0.0, 1.0]


async def test_a_hang_does_not_hold_up_the_other_processes(open_pool) -> None:
    pool = await open_pool(process_count=2, timeout_s=5.0)
    await pool.prepare(PAYLOAD)
    hanging = asyncio.create_task(pool.verify(PAYLOAD, ["hang"]))
    answers = await asyncio.gather(*[pool.verify(PAYLOAD, ["yes", "no"]) for _ in range(100)])
    assert not hanging.done()
    assert {tuple(verdict.score for verdict in answer) for answer in answers} == {(1.0, 0.0)}
    assert [verdict.score for verdict in await hanging] == [None]


async def test_many_calls_with_failures_among_them_stay_apart(open_pool) -> None:
    pool = await open_pool(process_count=2, timeout_s=5.0)
    kinds = {"yes": 1.0, "no": 0.0, "exit": None, "raise": None, "high": 1.0}
    calls = [[name for name in kinds for _ in range(1 + n % 4)] for n in range(20)]
    answers = await asyncio.gather(*[pool.verify(PAYLOAD, names) for names in calls])
    for names, verdicts in zip(calls, answers, strict=True):
        assert [verdict.score for verdict in verdicts] == [kinds[name] for name in names]


async def test_a_process_that_died_between_two_calls_is_replaced(open_pool, children_now) -> None:
    before, pool = children_now(), await open_pool()
    await pool.prepare(PAYLOAD)
    [child] = children_now() - before
    os.kill(child, signal.SIGKILL)
    assert [verdict.score for verdict in await pool.verify(PAYLOAD, ["yes"])] == [1.0]


async def test_a_worker_that_stands_still_does_not_blame_its_verifiers(open_pool) -> None:
    def stand_still() -> None:
        time.sleep(1.5)  # for longer than a verifier may take

    pool = await open_pool(timeout_s=1.0)
    await pool.prepare(PAYLOAD)
    call = asyncio.create_task(pool.verify(PAYLOAD, ["slow"] * 3))
    await asyncio.sleep(0.1)
    stand_still()
    assert [verdict.score for verdict in await call] == [1.0] * 3


@pytest.fixture
def _typed() -> Iterator[None]:
    """Something that waits on this process' standard input."""
    before = os.dup(0)
    reading, writing = os.pipe()
    os.write(writing, b"typed")
    os.dup2(reading, 0)
    os.close(writing)
    yield
    os.dup2(before, 0)
    os.close(before)
    os.close(reading)


@pytest.mark.usefixtures("_typed")
async def test_a_verifier_neither_reads_nor_writes_for_the_worker(open_pool, capfd) -> None:
    pool = await open_pool()
    verdicts = await pool.verify(PAYLOAD, ["noise", "input", "yes"])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0]
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("noise") == 2


async def test_a_forked_copy_of_a_process_answers_nothing(scores) -> None:
    assert await scores(json.loads(PAYLOAD), ["fork", "no", "yes"]) == [1.0, 0.0, 1.0]


async def test_a_verifier_that_hangs_when_it_is_loaded_is_given_up(
    open_pool, user_code, monkeypatch
) -> None:
    user_code("sleepy", "import time; time.sleep(1000)")
    monkeypatch.setattr(process, "LOAD_TIMEOUT_S", 1.5)
    pool = await open_pool(timeout_s=1.0)
    verdicts = await pool.verify('{"verifier": "python:sleepy:score"}', ["a", "b"])
    assert [verdict.because for verdict in verdicts] == ["took longer than 1.5 s"] * 2
    assert [verdict.score for verdict in await pool.verify(PAYLOAD, ["yes"])] == [1.0]


async def test_memory_that_one_verifier_took_does_not_keep_another_from_loading(
    open_pool, user_code
) -> None:
    user_code(
        "greedy",
        """
        held = []

        def score(completion, payload):
            held.append(bytearray(150 * 2**20))
            return 1
        """,
    )
    user_code("modest", "held = bytearray(150 * 2**20)\ndef score(completion, payload): return 1")
    pool = await open_pool(memory_bytes=250 * 2**20)
    for name in ("greedy", "modest"):
        verdicts = await pool.verify(f'{{"verifier": "python:{name}:score"}}', ["a"])
        assert [verdict.score for verdict in verdicts] == [1.0]


async def test_memory_too_small_for_a_verifier_is_told(open_pool) -> None:
    pool = await open_pool(memory_bytes=64 * 2**20)
    payload = {"verifier": "reasoning_gym", "task": "chain_sum", "entry": {}}
    verdicts = await pool.verify(json.dumps(payload), ["1", "2"])
    assert [verdict.score for verdict in verdicts] == [None, None]
    because = verdicts[0].because.lower()
    assert "memory" in because or "failed to map" in because
