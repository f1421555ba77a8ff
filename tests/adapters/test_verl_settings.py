"""What the adapter of verl 0.9 makes of prompts, and what verl makes of its settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import create_rl_dataset

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2
from curriculum_client import InvalidRequestError
from curriculum_client.adapters import verl as adapter
from curriculum_client.adapters._verl_dataset import Shared
from tests.adapters.verl_config import GROUP, SELECTION, compose, small_training

pytestmark = [pytest.mark.adapter, pytest.mark.filterwarnings("ignore")]  # of verl, ray and torch


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    return small_training(tmp_path_factory.mktemp("verl"))


PAYLOADS = [
    ({"answer": "4"}, {"reward_model": {"style": "rule", "ground_truth": "4"}}),
    (
        {"reward_model": {"ground_truth": "5"}, "answer": "4"},
        {"reward_model": {"ground_truth": "5"}},
    ),
    ({"data_source": "gsm8k", "answer": "4"}, {"data_source": "gsm8k"}),
    (
        {"messages": [{"role": "system", "content": "Add."}], "answer": "4"},
        {"raw_prompt": [{"role": "system", "content": "Add."}]},
    ),
    (
        {"extra_info": {"index": 7, "tools_kwargs": {"a": 1}}, "answer": "4"},
        {"index": 7, "tools_kwargs": {"a": 1}},
    ),
    ({"answer": "4"}, {"raw_prompt": [{"role": "user", "content": "2 + 2?"}], "data_source": "d"}),
]


@pytest.fixture
def dataset(new_run, stubs, use, configure, monkeypatch) -> Callable[..., Any]:
    """verl's dataset of a run that has one prompt, of a payload."""

    def make(payload: dict[str, Any]) -> Any:
        use(run_id := new_run(selection=SELECTION))
        prompt = prompt_pb2.Prompt(
            prompt_id="p", domain="d", text="2 + 2?", payload_json=json.dumps(payload)
        )
        stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=[prompt]))
        monkeypatch.setattr(Shared, "trainer_mode", "sync")
        monkeypatch.setattr(Shared, "feed", None)
        data = configure().data
        return create_rl_dataset(data.train_files, data, None, None, max_samples=60)

    return make


@pytest.mark.parametrize(("payload", "expected"), PAYLOADS)
def test_items_are_made_of_the_payload(dataset, configure, payload, expected) -> None:
    served = dataset(payload)
    item = served[3]
    assert len(served) == 60
    assert item | expected == item
    assert item["extra_info"]["prompt_id"] == "p"
    assert item["__rollout_n__"] == GROUP
    data = configure().data
    held_out = create_rl_dataset(data.val_files, data, None, None)
    assert {*item} == {*held_out[0], "__rollout_n__"}


def test_a_payload_without_an_answer_is_refused(dataset) -> None:
    with pytest.raises(InvalidRequestError, match="'p': must have reward_model or answer"):
        dataset({})[0]


def test_the_example_says_what_verl_knows(tmp_path) -> None:
    """And the same of the lines that it has in comments."""
    script = Path(__file__).parents[2] / "clients" / "examples" / "verl.sh"
    said = tmp_path / "python"
    said.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$SAID"\n')
    said.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/root", "SAID": "said.txt"}
    subprocess.run(["bash", script], cwd=tmp_path, env=variables, check=True)
    module, *overrides = (tmp_path / "said.txt").read_text().split("\n")[1:-1]
    assert module == "curriculum_client.adapters.verl"
    optional = [line.strip("# \"'\n") for line in script.read_text().splitlines() if "#   " in line]
    optional = [line.replace("''", "'") for line in optional if line.startswith("+")]
    assert len(optional) == 3
    overrides += [line.replace("'", "") for line in optional]
    config = compose(*overrides)
    assert config.data.train_max_samples == 102400
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.CURRICULUM_RUN == "$CURRICULUM_RUN"


def test_the_module_starts_verl_with_the_curriculum(tmp_path) -> None:
    """As far as its configuration, which hydra prints in place of a training."""
    files = f"data.train_files={tmp_path}/train.parquet"  # which the curriculum's comes after
    command = [sys.executable, "-m", adapter.MODULE, "--cfg", "job", files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.data.train_files == "curriculum"
    assert config.data.custom_cls.name == "CurriculumDataset"
    assert config.trainer.v1.sampler.custom_sampler.path == f"pkg://{adapter.MODULE}"
