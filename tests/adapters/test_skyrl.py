"""The adapter of SkyRL: on its own, and in SkyRL's own experiment and training loop."""

from __future__ import annotations

import asyncio
import json
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curriculum_client import Feed, InvalidRequestError, StateError
from curriculum_client.adapters.skyrl import Curriculum, Prompts, ReportingGenerator
from curriculum_client.testing import FakeCurriculum
from tests.adapters.contract import parameters_of, recorded

CONTRACT = recorded("skyrl")
BATCH, GROUP = 4, 4


@dataclass(frozen=True)
class TrajectoryID:
    """SkyRL's, of the same name."""

    instance_id: str
    repetition_id: int


class Canned:
    """A generator that gives a canned output."""

    def __init__(self, **output: Any) -> None:
        self.output = output

    async def generate(self, input_batch: Any) -> Any:
        return self.output


@pytest.fixture
def fake() -> Iterator[FakeCurriculum]:
    prompts = [
        {"text": f"{i}+{i}=?", "payload": {"reward_spec": {"ground_truth": str(2 * i)}}}
        for i in range(40)
    ]
    with FakeCurriculum(prompts, group_size=GROUP) as fake:
        yield fake


@pytest.fixture
def feed(fake: FakeCurriculum) -> Iterator[Feed]:
    with fake.client() as client, Feed(client, BATCH, attempts_per_prompt=GROUP) as feed:
        yield feed


def generate(feed: Feed, leases: list[str], phase: str = "train", **output: Any) -> Any:
    """What comes back through a reporting generator."""
    ids = [TrajectoryID(lease, i) for i, lease in enumerate(leases)]
    metadata = SimpleNamespace(global_step=3, training_phase=phase)
    given = {"trajectory_ids": ids, "batch_metadata": metadata}
    return asyncio.run(ReportingGenerator(Canned(**output), feed).generate(given))


def test_our_methods_are_called_as_skyrl_calls_its_own() -> None:
    name = "skyrl.train.generators.base.GeneratorInterface.generate"
    CONTRACT.check(name, ReportingGenerator.generate)
    hooks = "skyrl.train.entrypoints.main_base.BasePPOExp"
    CONTRACT.check(f"{hooks}.get_train_dataset", Curriculum.get_train_dataset)
    for hook in (Curriculum.get_generator, Curriculum.get_trainer):
        assert parameters_of(hook) == ["self", "*args", "**kwargs"]


def test_rows_are_what_skyrls_dataset_gives(feed: Feed) -> None:
    prompts = Prompts(feed, Curriculum().row, BATCH, step_count=7)
    assert len(prompts) == 7
    rows = next(iter(prompts))
    assert len(rows) == BATCH
    for row in rows:
        assert list(row) == CONTRACT.callables["skyrl.train.dataset.PromptDataset.__getitem__"]
        number = int(row["env_extras"]["prompt_id"][1:])
        assert row["prompt"] == [{"role": "user", "content": f"{number}+{number}=?"}]
        assert row["env_class"] is None
        assert row["env_extras"]["reward_spec"] == {"ground_truth": str(2 * number)}
    assert len({row["uid"] for row in rows}) == BATCH


def test_messages_of_the_payload_stand_for_the_text() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2=?"}]
    prompt = {"text": "2+2=?", "payload": {"messages": messages, "env_class": "gsm8k"}}
    with FakeCurriculum([prompt]) as fake, fake.client() as client:
        row = Curriculum().row(client.next_batch(1, policy_step=0)[0])
    assert (row["prompt"], row["env_class"]) == (messages, "gsm8k")
    assert "messages" not in row["env_extras"]


def test_rewards_of_tokens_add_up_to_their_attempts(fake: FakeCurriculum, feed: Feed) -> None:
    served = feed.next_batch()[0]
    output = generate(
        feed,
        [served.lease] * 2,
        rewards=[[0.0, 0.25, 0.5], [0.0, 0.0]],
        response_ids=[[1, 2, 3], [1, 2]],
    )
    assert output["rewards"] == [[0.0, 0.25, 0.5], [0.0, 0.0]]
    assert fake.rewards == {served.prompt_id: [0.75, 0.0]}
    assert feed.policy_step == 2


def test_of_a_trajectory_in_steps_the_last_one_counts(fake: FakeCurriculum, feed: Feed) -> None:
    served = feed.next_batch()[0]
    first, second = TrajectoryID(served.lease, 0), TrajectoryID(served.lease, 1)
    generate(
        feed,
        [served.lease] * 2,
        trajectory_ids=[first, first, second],
        rewards=[0.0, 1.0, 0.5],
        response_ids=[[1], [2], [3]],
    )
    assert fake.rewards == {served.prompt_id: [1.0, 0.5]}


def test_evaluation_is_not_reported(fake: FakeCurriculum, feed: Feed) -> None:
    generate(feed, ["17", "18"], phase="eval", rewards=[1.0, 0.0], response_ids=[[1], [2]])
    assert not fake.calls


# What follows runs SkyRL itself.


@pytest.fixture
def skyrl(
    fake: FakeCurriculum, tmp_path: Path, new_process: Callable[..., None]
) -> Callable[..., Any]:
    """Makes an experiment with the curriculum in it, as a new process would."""
    from tests.adapters import skyrl_world as world

    class Experiment(Curriculum, world.Experiment):
        def answer(self, text: str, attempt: int) -> str:
            return answer_of(text, "10"[attempt % 2])

    def make(*overrides: str, steps: int = 3, answer: Any = None) -> Any:
        new_process(RUN=fake.run_id, SERVER=fake.target)
        limit = f"trainer.max_training_steps={steps}"
        experiment = Experiment(world.configure(tmp_path, [limit, *overrides]))
        if answer:
            experiment.answer = answer
        return experiment

    return make


def answer_of(text: str, is_right: str) -> str:
    """An answer to "i+i=?" in gsm8k's form, right if "1"."""
    number = int(text.split("+")[0])
    return f"#### {2 * number + (is_right == '0')}"


def kinds(fake: FakeCurriculum) -> Counter[float]:
    """How many prompts have which mean reward."""
    return Counter(sum(rewards) / len(rewards) for rewards in fake.rewards.values())


@pytest.mark.adapter
def test_skyrl_is_as_it_was_recorded() -> None:
    import tests.adapters.skyrl_world  # noqa: F401

    for name in CONTRACT.callables:
        if name.endswith("PromptDataset.__getitem__"):
            continue  # its names are given to the batch by collate_fn, which is run below
        found = pkgutil.resolve_name(name)
        is_typed_dict = isinstance(found, type) and not is_dataclass(found)
        CONTRACT.check(name, list(found.__annotations__) if is_typed_dict else found)


@pytest.mark.adapter
def test_a_loader_row_has_the_fields_of_skyrls_own() -> None:
    from tests.adapters.skyrl_world import PromptDataset

    [row] = PromptDataset.collate_fn(None, [("prompt", "env", {}, "uid")])
    assert list(row) == CONTRACT.callables["skyrl.train.dataset.PromptDataset.__getitem__"]


@pytest.mark.adapter
def test_a_training_learns_of_every_batch_before_the_next(skyrl: Any, fake: Any) -> None:
    experiment = skyrl(steps=3)
    steps: list[int] = []
    report = experiment.prompts.feed.report
    experiment.prompts.feed.report = lambda *args, **kwargs: (
        steps.append(kwargs["policy_step"]) or report(*args, **kwargs)
    )
    experiment.run()
    assert steps == [0, 1, 2]  # the updates that made the weights
    assert kinds(fake) == {0.5: 3 * BATCH}
    assert set(fake.attempts.values()) == {GROUP}
    names = [name for name, _ in fake.calls]
    assert names[:6] == ["NextBatch", "ReportOutcomes"] * 3
    trained = [list(dict.fromkeys(uids)) for uids in experiment.trainer.trained]
    assert [len(uids) for uids in trained] == [BATCH] * 3
    assert not fake.unreported  # what was fetched ahead was given back


def half_mixed(engine: Any) -> Any:
    """Of each batch of 4 prompts two groups are mixed, one is all right, one all wrong."""

    def answer(text: str, attempt: int) -> str:
        prompts = list(dict.fromkeys([*engine().asked, text]))
        kinds = ["10"[attempt % 2], "01"[attempt % 2], "1", "0"]
        return answer_of(text, kinds[prompts.index(text) % BATCH])

    return answer


@pytest.mark.adapter
def test_groups_count_that_dynamic_sampling_filters(skyrl: Any, fake: Any) -> None:
    experiment = skyrl(
        "trainer.algorithm.dynamic_sampling.type=filter",
        steps=2,
        answer=half_mixed(lambda: experiment.engine),
    )
    experiment.run()
    assert kinds(fake) == {0.5: 8, 1.0: 4, 0.0: 4}  # two batches for each step
    mixed = {name for name, rewards in fake.rewards.items() if 0 < sum(rewards) < GROUP}
    served = {prompt.lease: prompt.prompt_id for batch in fake.batches for prompt in batch}
    assert {served[uid] for uids in experiment.trainer.trained for uid in uids} == mixed
    assert not fake.unreported


@pytest.mark.adapter
def test_groups_count_that_dynamic_sampling_replaces(skyrl: Any, fake: Any) -> None:
    experiment = skyrl(
        "trainer.algorithm.dynamic_sampling.type=replace",
        steps=1,
        answer=half_mixed(lambda: experiment.engine),
    )
    # SkyRL 0.4.0 makes such a batch and then refuses it, whoever gave the prompts.
    with pytest.raises(AssertionError) as refusal:
        experiment.run()
    assert "boundaries" in refusal.traceback[-1].name
    assert kinds(fake) == {0.5: 2, 1.0: 1, 0.0: 1}


@pytest.mark.adapter
def test_skyrls_evaluation_leaves_the_curriculum_alone(
    skyrl: Any, fake: Any, tmp_path: Path
) -> None:
    held_out = {"prompt": [{"role": "user", "content": "50+50=?"}]}
    held_out["reward_spec"] = {"method": "rule", "ground_truth": "100"}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(held_out) + "\n")
    experiment = skyrl(
        "trainer.eval_interval=1",
        f"data.val_data=['{tmp_path / 'held_out.jsonl'}']",
        "data.dataloader.num_workers=0",
        "generator.eval_n_samples_per_prompt=2",
        steps=1,
    )
    experiment.run()
    assert experiment.engine.asked.count("50+50=?") == 4  # before training and after
    assert sum(fake.attempts.values()) == BATCH * GROUP


@pytest.mark.adapter
def test_a_resumed_training_is_given_what_the_lost_one_was(skyrl: Any, fake: Any) -> None:
    def answer(text: str, attempt: int) -> str:
        if len(lost.engine.asked) > 3 * BATCH * GROUP:  # its third step is reported
            raise RuntimeError("the machine is gone")
        return answer_of(text, "10"[attempt % 2])

    lost = skyrl("trainer.ckpt_interval=2", steps=5, answer=answer)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        lost.run()
    seen = list(dict.fromkeys(lost.engine.asked))
    resumed = skyrl("trainer.ckpt_interval=2", steps=4)
    resumed.run()
    again = list(dict.fromkeys(resumed.engine.asked))
    assert len(again) == 2 * BATCH
    lost_step = slice(2 * BATCH, 3 * BATCH)
    assert {*seen[lost_step]} == {*again[:BATCH]}  # the generator takes a batch in any order
    assert resumed.trainer.global_step == 4
    assert kinds(fake) == {0.5: 4 * BATCH}
    assert set(fake.attempts.values()) == {GROUP}


@pytest.mark.adapter
def test_a_checkpoint_without_the_curriculum_is_refused(skyrl: Any, tmp_path: Path) -> None:
    skyrl("trainer.ckpt_interval=1", steps=1).run()
    (tmp_path / "checkpoints/global_step_1/data.pt").unlink()
    with pytest.raises(StateError, match=r"global_step_1/data.pt: must be there"):
        skyrl("trainer.ckpt_interval=1", steps=2).run()


@pytest.mark.adapter
def test_a_training_needs_an_end(skyrl: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_training_steps=None: must be set"):
        skyrl(steps="null")


@pytest.mark.adapter
def test_a_run_of_smaller_groups_is_refused(skyrl: Any) -> None:
    experiment = skyrl("generator.n_samples_per_prompt=8")
    with pytest.raises(InvalidRequestError, match="group_size must be 8"):
        experiment.run()
