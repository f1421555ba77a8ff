"""What a type checker knows of the client in a user's own code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = """
from curriculum_client import AsyncTrainerClient, Feed, TrainerClient
from curriculum_client.testing import FakeCurriculum

def train(steps: int) -> None:
    with TrainerClient("localhost:50051", run_id="math") as curriculum:
        for step in range(steps):
            batch = curriculum.next_batch(prompt_count=128, policy_step=step)
            reveal_type(batch[0].text)  # str
            reveal_type([p.attempt_count for p in batch])  # list[int]
            rewards = {p.prompt_id: [0.0] * p.attempt_count for p in batch}
            receipt = curriculum.report(batch, rewards, policy_step=step)
            reveal_type(receipt)  # curriculum_client._batch.Receipt | None
            curriculum.report(batch, [[1.0]] * len(batch), policy_step=step)
            leases = [p.lease for p in batch]
            curriculum.report_attempts(leases, [0.5] * len(leases), policy_step=step)

async def follow(curriculum: AsyncTrainerClient) -> None:
    batch = await curriculum.next_batch(8, policy_step=0)
    reveal_type(batch.shortfall)  # str
    reveal_type(await curriculum.checkpoint("a", 1))  # dict[str, int]

def feed(curriculum: TrainerClient) -> None:
    for served in Feed(curriculum, 8):
        reveal_type(served.payload)  # dict[str, Any]
        reveal_type(served.lease)  # str

def fake() -> None:
    with FakeCurriculum(["1 + 1"], group_size=4) as fake, fake.client() as client:
        reveal_type(client)  # curriculum_client._client.TrainerClient
"""

WRONG = """
from curriculum_client import TrainerClient

client = TrainerClient("localhost:50051")  # call-arg
batch = client.next_batch("128", policy_step=0)  # arg-type
client.report(batch, 1.0, policy_step=0)  # arg-type
batch[0].pass_rate = 0.5  # misc
client.report(batch, [], policy_step=0).mixed_group_count  # union-attr
TrainerClient("localhost:50051", run_id="math", on_unavailable="retry")  # arg-type
"""


@pytest.fixture
def checked(tmp_path: Path):
    """mypy's words about a user's file, by line."""

    def check(code: str) -> dict[int, str]:
        file = tmp_path / "training.py"
        file.write_text(code)
        done = subprocess.run(
            # Its own folder, so that the project's configuration does not apply.
            [sys.executable, "-m", "mypy", "--strict", "--no-pretty", file.name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        said = re.findall(r"^training\.py:(\d+): \w+: (.*)$", done.stdout, re.MULTILINE)
        assert said, done.stdout + done.stderr
        return {int(line): words for line, words in said}

    return check


def _expected(code: str) -> dict[int, str]:
    lines = enumerate(code.splitlines(), start=1)
    return {number: line.rpartition("  # ")[2] for number, line in lines if "  # " in line}


@pytest.mark.slow
def test_a_training_loop_is_understood_to_its_last_value(checked) -> None:
    said = checked(RIGHT)
    names = {line: re.sub(r"\bbuiltins\.", "", words) for line, words in said.items()}
    assert names == {line: f'Revealed type is "{kind}"' for line, kind in _expected(RIGHT).items()}


@pytest.mark.slow
def test_mistakes_are_found_before_anything_runs(checked) -> None:
    said = checked(WRONG)
    assert {line: words.rpartition("[")[2].rstrip("]") for line, words in said.items()} == (
        _expected(WRONG)
    )
