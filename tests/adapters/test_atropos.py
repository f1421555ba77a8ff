"""Atropos environments that roll out what a real service serves, under Atropos's own API server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_client import AsyncTrainerClient
from curriculum_client.adapters import _atropos_supply, atropos
from curriculum_client.testing import FakeCurriculum
from tests.adapters.atropos_world import (
    GROUP_SIZE,
    GROUPS_PER_BATCH,
    SumEnv,
    api_server,
    begin,
    finish,
    inference_server,
    make_env,
    run_to_the_end,
    save_tokenizer,
    training,
)

pytestmark = [pytest.mark.adapter, pytest.mark.filterwarnings("ignore")]  # of Atropos

SELECTION = {"group_size": GROUP_SIZE, "reach_attempt_factor": 1}
EXAMPLE = Path(__file__).parents[2] / "clients/examples/atropos.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("atropos")
    save_tokenizer(folder)
    with api_server(folder) as api, inference_server() as inference:
        yield {"api": api, "inference": inference, "tokenizer": folder}


@pytest.fixture
async def env(server: Any, world: dict[str, Any]) -> AsyncIterator[Callable[..., SumEnv]]:
    """Makes environments of a run."""
    made: list[SumEnv] = []

    def make(run_id: str, kind: type[SumEnv] = SumEnv, **config: Any) -> SumEnv:
        client = AsyncTrainerClient(server.address, run_id, consumer=f"env-{len(made)}")
        made.append(make_env(kind, client, **(world | config)))
        return made[-1]

    yield make
    for env in made:
        await env.client.close()


async def test_every_group_is_reported_once_also_those_that_atropos_drops(
    new_run, env, stats, tmp_path
) -> None:
    run_id = new_run(200, selection=SELECTION)
    served = env(run_id)
    trainer = await run_to_the_end(served, tmp_path)
    seen = stats(run_id)
    groups = served.given.values()
    assert seen.attempt_count == GROUP_SIZE * len(groups)
    assert seen.pass_count == sum(map(sum, groups))
    assert seen.group_count == len(groups)
    mixed_count = sum(len(set(scores)) > 1 for scores in groups)
    assert seen.mixed_group_count == mixed_count
    assert 0 < GROUPS_PER_BATCH * len(trainer.batches) <= mixed_count < len(groups)
    for batch in trainer.batches:  # what it gets is mixed, and of this environment
        assert [len(set(group["scores"])) for group in batch] == [2] * GROUPS_PER_BATCH
    assert served.examined  # and not reported
    assert seen.leased_prompt_count == 0
    assert seen.policy_step > 0


async def test_what_atropos_takes_from_its_workers_is_rolled_out_again(new_run, env, stats) -> None:
    run_id = new_run(50, selection=SELECTION)
    served = env(run_id)
    await begin(served, 4)
    await asyncio.sleep(0)  # they begin
    await begin(served, 1)  # has too many workers, and puts three items into the backlog
    assert len(served.asked) == 4
    assert len(served.backlog) == 3
    await begin(served, 4)  # again, before those that were cancelled know it
    await finish(served)
    assert len(served.asked) == 7
    assert stats(run_id).group_count == len(served.given) == 4
    assert stats(run_id).leased_prompt_count == 0


async def test_a_report_names_the_step_at_which_the_rollout_began_and_its_tokens(
    new_run, env, stubs
) -> None:
    run_id = new_run(50, selection=SELECTION)
    served = env(run_id)
    await served.setup()
    served.curr_step = 2
    served.backlog.append(await served.get_next_item())
    served.curr_step = 3
    await begin(served, 1)
    await asyncio.sleep(0)  # it begins
    served.curr_step = 9
    await finish(served)
    [prompt_id] = served.asked
    asked = op.GetPromptRequest(run_id=run_id, prompt_id=prompt_id)
    [window] = stubs.operator.GetPrompt(asked).history
    assert window.last_policy_step == 3
    answer_length = len(f" It is {2 * int(prompt_id[1:])}")  # or that of one more
    assert GROUP_SIZE * answer_length <= window.token_count <= GROUP_SIZE * (answer_length + 1)


class FailingEnv(SumEnv):
    """Fails at the first prompt, gives nothing for the second, and never ends at the third."""

    async def setup(self) -> None:
        await super().setup()
        self.is_late = asyncio.Event()

    async def collect_trajectories(self, item: Any) -> tuple[Any, list[Any]]:
        group, backlog = await super().collect_trajectories(item)
        at = self.asked.index(item.prompt_id)
        if at == 0:
            raise ValueError("no rollout")
        if at == 2:
            self.late = item
            self.is_late.set()
            await asyncio.Event().wait()
        return (None if at == 1 else group), backlog


async def test_prompts_whose_rollout_fails_go_back_to_the_pool(
    new_run, env, stats, wait_until
) -> None:
    run_id = new_run(50, selection=SELECTION)
    served = env(run_id, FailingEnv)
    await begin(served, 4)
    await served.is_late.wait()
    [late] = [x for x in served.running_items if served.running_items[x]["item"] is served.late]
    worker = served.running_items.pop(late)["worker"]  # as env_manager does with what takes long
    worker.cancel()
    await finish(served)
    assert stats(run_id).group_count == 1
    assert stats(run_id).leased_prompt_count == 0


async def test_an_item_that_the_environment_puts_into_the_backlog_keeps_its_lease(
    new_run, env, stats
) -> None:
    class Hesitating(SumEnv):
        async def collect_trajectories(self, item: Any) -> tuple[Any, list[Any]]:
            is_first = item.prompt_id not in self.asked
            group, backlog = await super().collect_trajectories(item)
            return (None, [item]) if is_first else (group, backlog)

    run_id = new_run(50, selection=SELECTION)
    served = env(run_id, Hesitating)
    await begin(served, 2)
    await finish(served)
    assert (stats(run_id).group_count, stats(run_id).leased_prompt_count) == (0, 2)
    await begin(served, 2)
    await finish(served)
    assert (stats(run_id).group_count, stats(run_id).leased_prompt_count) == (2, 0)


async def test_an_environment_that_drops_groups_itself_says_what_it_saw(
    new_run, env, stats
) -> None:
    class Dropping(SumEnv):
        async def collect_trajectories(self, item: Any) -> tuple[Any, list[Any]]:
            group, backlog = await super().collect_trajectories(item)
            self.report_scores(item, group["scores"])
            return ([group, group] if len(set(group["scores"])) > 1 else None), backlog

    run_id = new_run(50, selection=SELECTION)
    served = env(run_id, Dropping)
    await begin(served, 8)
    await finish(served)
    seen = stats(run_id)
    assert seen.group_count == 8
    assert seen.mixed_group_count == sum(len(set(group)) > 1 for group in served.given.values()) < 8
    assert seen.leased_prompt_count == 0
    assert await served.get_next_item() is not None


async def test_two_environments_of_a_run_are_given_different_prompts(new_run, env) -> None:
    run_id = new_run(50, selection=SELECTION)
    both = [env(run_id), env(run_id)]
    for served in both:
        await begin(served, 8)
        await finish(served)
    assert len({prompt_id for served in both for prompt_id in served.asked}) == 16


def test_clients_made_from_the_environment_are_consumers_of_their_own(monkeypatch) -> None:
    monkeypatch.setenv("CURRICULUM_RUN", "math")
    monkeypatch.setenv("CURRICULUM_CONSUMER", "tuesday")
    names = [atropos._client()._core.settings.consumer for _ in range(2)]
    assert all(name.startswith("tuesday-") for name in names)
    assert names[0] != names[1]


async def test_items_are_what_the_environment_makes_of_prompts(new_run, env, stats) -> None:
    run_id = new_run(50, selection=SELECTION)
    served = env(run_id)
    await served.setup()
    items: dict[str, dict[str, Any]] = {}

    def to_item(prompt: Any) -> dict[str, Any]:
        return items.setdefault(prompt.prompt_id, {"question": prompt.text})

    del served.collect_trajectories  # set up anew
    served.use_curriculum(served.client, to_item=to_item, prompt_count=1)
    item = await served.get_next_item()
    assert item["question"].startswith("What is ")
    served.report_scores({"question": item["question"]}, [1.0] * GROUP_SIZE)  # equal, not the same
    served.report_scores(item, [1.0, None, 0.0, 0.0], token_counts=[3, 3, 3, 3])
    served.report_scores(item, [1.0] * GROUP_SIZE)  # once is enough
    await finish(served)
    assert (stats(run_id).attempt_count, stats(run_id).pass_count) == (3, 1)
    assert stats(run_id).leased_prompt_count == 0  # the attempt left out keeps none


async def test_one_object_may_be_the_item_of_a_prompt_whose_lease_ran_out(world) -> None:
    with FakeCurriculum(["What is 1 + 1?"], GROUP_SIZE) as fake:
        served = make_env(SumEnv, fake.async_client(), **world)
        served.use_curriculum(served.client, to_item=lambda _: EXAMPLE)
        first = await served.get_next_item()
        fake.expire_leases()
        assert await served.get_next_item() is first
        served.report_scores(first, [1.0, 0.0] * 2)
        served.report_scores(first, [1.0, 0.0] * 2)
        await finish(served)
        assert fake.attempts == {"p0": GROUP_SIZE}
        assert not served._supply._open
        await served.client.close()


async def test_what_is_not_rolled_out_at_the_end_is_given_back(new_run, env, stats) -> None:
    run_id = new_run(50, selection=SELECTION)
    served = env(run_id)
    await served.setup()
    await served.get_next_item()
    assert stats(run_id).leased_prompt_count == 4
    await served._end()
    assert stats(run_id).leased_prompt_count == 0


async def test_an_environment_that_is_behind_the_others_marks_nothing(
    new_run, env, stubs, tmp_path
) -> None:
    run_id = new_run(50, selection=SELECTION)
    served, other = env(run_id), env(run_id)
    await served.setup()
    await other.client.checkpoint("step-8", 8)
    served.checkpoint_dir, served.wandb_prepend = str(tmp_path), "sums_1"
    served.save_checkpoint(4, {"seen": 7})
    await finish(served)
    assert await served.get_next_item() is not None
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert [mark.name for mark in run.checkpoints] == ["step-8"]
    served.curr_step = 4
    served.load_checkpoint()
    assert (served.seen, served.curriculum_checkpoint) == (7, "step-4")


async def test_the_service_is_not_asked_all_the_time_while_the_pool_is_dry(world) -> None:
    with FakeCurriculum(["What is 1 + 1?"], GROUP_SIZE) as fake:
        served = make_env(SumEnv, fake.async_client(), **world)
        await served.setup()
        assert await served.get_next_item() is not None
        for _ in range(5):
            assert await served.get_next_item() is None
        assert fake.calls == [("NextBatch", "OK")] * 2
        await served.client.close()


async def test_a_dry_pool_is_waited_for_by_atropos(new_run, env, monkeypatch) -> None:
    monkeypatch.setattr(_atropos_supply, "ASK_AGAIN_S", 0.0)
    served = env(new_run(2, selection=SELECTION))
    await served.setup()
    first, second = await served.get_next_item(), await served.get_next_item()
    monkeypatch.setattr(_atropos_supply, "EMPTY_POOL_WAIT_S", 0.0)
    assert await served.get_next_item() is None  # its own rollouts hold the pool
    for item in (first, second):
        served.report_scores(item, [1.0, 0.0] * 2)
    await finish(served)
    assert await served.get_next_item() is not None


async def test_a_pool_that_others_hold_ends_the_environment_with_the_reason(
    new_run, env, monkeypatch
) -> None:
    monkeypatch.setattr(_atropos_supply, "EMPTY_POOL_WAIT_S", 0.0)
    served = env(new_run(0))
    await served.setup()
    with pytest.raises(StateError, match="nothing to serve for 0 s: "):
        await served.get_next_item()


async def test_fewer_attempts_than_group_size_are_refused(new_run, env, stats) -> None:
    run_id = new_run(50, selection={"group_size": 2, "reach_attempt_factor": 1})
    served = env(run_id)
    await served.setup()
    with pytest.raises(InvalidRequestError, match=r"attempts_per_prompt=4: .* is to get 2"):
        await served.get_next_item()
    assert stats(run_id).leased_prompt_count == 0


async def test_what_went_wrong_in_the_background_is_raised_for_the_next_item(
    new_run, env, world
) -> None:
    class Several(SumEnv):
        async def collect_trajectories(self, item: Any) -> tuple[Any, list[Any]]:
            group, backlog = await super().collect_trajectories(item)
            return [group, group], backlog

    served = env(new_run(50, selection=SELECTION), Several)
    await begin(served, 1)
    await finish(served)
    with pytest.raises(InvalidRequestError, match="collect_trajectories: gave 2 of dict"):
        await served.get_next_item()
    with FakeCurriculum([f"What is {i} + {i}?" for i in range(9)], GROUP_SIZE) as fake:
        served = make_env(SumEnv, fake.async_client(), **world)
        fake.fail_next(error=InvalidRequestError("rewards: 7"), method="ReportOutcomes")
        await served.setup()
        served.report_scores(await served.get_next_item(), [1.0] * GROUP_SIZE)
        await finish(served)
        with pytest.raises(InvalidRequestError, match="rewards: 7"):
            await served.get_next_item()
        await served.client.close()


async def test_a_report_of_a_run_that_was_rolled_back_is_left_out(new_run, env, stats) -> None:
    run_id = new_run(50, selection=SELECTION)
    served, other = env(run_id), env(run_id)
    await served.setup()
    await other.client.checkpoint("step-0", 0)
    item = await served.get_next_item()
    await other.client.rollback("step-0")
    served.report_scores(item, [1.0] * GROUP_SIZE)
    await finish(served)
    served._supply._queue.clear()
    assert stats(run_id).attempt_count == 0
    served.report_scores(await served.get_next_item(), [1.0] * GROUP_SIZE)
    await finish(served)
    assert stats(run_id).attempt_count == GROUP_SIZE


async def test_a_get_next_item_of_its_own_is_refused(new_run, env) -> None:
    class Stubborn(SumEnv):
        async def get_next_item(self) -> str:
            return "mine"

    served = env(new_run(1), Stubborn)
    with pytest.raises(StateError, match=r"Stubborn.get_next_item: must not be defined"):
        await served.setup()


async def test_an_environment_that_was_not_set_up_says_so(new_run, env) -> None:
    with pytest.raises(StateError, match=r"SumEnv.setup: must call self.use_curriculum\(\)"):
        await env(new_run(1)).get_next_item()


async def test_a_training_that_starts_from_a_checkpoint_rolls_the_curriculum_back(
    new_run, env, stats, stubs, tmp_path
) -> None:
    run_id = new_run(200, selection=SELECTION)
    await run_to_the_end(env(run_id, total_steps=7), tmp_path)
    run = stubs.operator.GetRun(op.GetRunRequest(run_id=run_id)).run
    assert ("step-4", 4) in [(mark.name, mark.policy_step) for mark in run.checkpoints]
    before = stats(run_id)
    second = env(run_id, total_steps=6)
    await run_to_the_end(second, tmp_path, first_step=4)
    after = stats(run_id)
    assert after.timeline == before.timeline + 1
    assert 0 < after.group_count - len(second.given) < before.group_count


async def test_the_example_runs(new_run, stats, server, world, tmp_path) -> None:
    run_id = new_run(200, selection=SELECTION)
    options = {
        "env.tokenizer_name": world["tokenizer"],
        "env.group_size": GROUP_SIZE,
        "env.total_steps": 13,  # three chances to evaluate: Atropos misses one that it steps over
        "env.steps_per_eval": 4,
        "openai.base_url": world["inference"],
        "openai.model_name": "tiny",
        "openai.health_check": "false",
        "slurm": "false",
    }
    variables = {"CURRICULUM_RUN": run_id, "CURRICULUM_SERVER": server.address}
    with api_server(tmp_path) as url:
        options["env.rollout_server_url"] = url
        async with training(url, tmp_path) as trainer:
            ended = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, EXAMPLE, "serve", *(f"--{k}={v}" for k, v in options.items())],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=240,
            )
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"step \d+: \d of 3 right", ended.stdout)
    assert len(trainer.batches) >= 3
    assert stats(run_id).group_count > stats(run_id).mixed_group_count > 0
    assert stats(run_id).leased_prompt_count == 0
