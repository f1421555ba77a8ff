"""The dataloader and the environments of NeMo-RL's GRPO, played here, for it is not on PyPI."""

from __future__ import annotations

import gc
import pickle
import sys
from typing import NamedTuple

import pytest

from curriculum_client import InvalidRequestError, TrainerClient
from curriculum_client.adapters.nemo_rl import MARK, CurriculumDataloader, reporting
from tests.adapters.contract import parameters_of, recorded

PROMPT_COUNT = 4
GROUP_SIZE = 4


class Column(list):
    """A tensor, as far as it is one here."""

    def tolist(self):
        return list(self)


class EnvironmentReturn(NamedTuple):
    observations: list
    metadata: list
    next_stop_strings: list
    rewards: Column
    terminateds: Column
    answers: list | None


class SumEnvironment:
    """One turn: the answer is right or wrong."""

    def __init__(self, config=None):
        self.config = config

    def step(self, message_log_batch, metadata):
        answers = [messages[-1]["content"] for messages in message_log_batch]
        rewards = [
            float(answer == str(row["answer"]))
            for answer, row in zip(answers, metadata, strict=True)
        ]
        rows = len(rewards)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""}] * rows,
            metadata=metadata,
            next_stop_strings=[None] * rows,
            rewards=Column(rewards),
            terminateds=Column([True] * rows),
            answers=answers,
        )

    def global_post_process_and_metrics(self, batch):
        return batch, {}


class GuessEnvironment(SumEnvironment):
    """Half a point a turn, until the answer is "stop". Its metadata is new each turn, and none at
    the end."""

    def step(self, message_log_batch, metadata):
        result = super().step(message_log_batch, metadata)
        ends = [answer == "stop" for answer in result.answers]
        after = [None if end else {"answer": 0} for end in ends]
        half = Column([0.5] * len(ends))
        return result._replace(metadata=after, rewards=half, terminateds=Column(ends))


def to_datum(served, idx):
    return {
        "message_log": [{"role": "user", "content": served.text}],
        "length": len(served.text),
        "extra_env_info": {"answer": served.payload["answer"]},
        "loss_multiplier": 1.0,
        "idx": idx,
        "task_name": "sums",
    }


def collate(data):
    return {name: [datum[name] for datum in data] for name in data[0]}


def rollout(batch, environment, answer=lambda info, attempt: str(info["answer"])):
    """NeMo-RL's: repeats every row, and lets the environment score all."""
    infos = [info for info in batch["extra_env_info"] for _ in range(GROUP_SIZE)]
    logs = [
        [{"role": "assistant", "content": answer(info, row % GROUP_SIZE)}]
        for row, info in enumerate(infos)
    ]
    return environment.step(logs, infos)


def half_right(info, attempt):
    return str(info["answer"]) if attempt % 2 else "?"


def texts(batch):
    return [messages[0]["content"] for messages in batch["message_log"]]


@pytest.fixture
def run_id(new_run, use):
    run_id = new_run(64, selection={"group_size": GROUP_SIZE, "reach_attempt_factor": 1})
    use(run_id)
    return run_id


@pytest.fixture
def new_dataloader(run_id):
    clients = []

    def make(**changes):
        clients.append(TrainerClient.from_environment())
        options = {"to_datum": to_datum, "collate": collate, **changes}
        return CurriculumDataloader(clients[-1], PROMPT_COUNT, GROUP_SIZE, **options)

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def stats(stats, run_id):
    return lambda: stats(run_id)


def test_the_environment_has_the_methods_that_nemo_rl_calls():
    contract, wrapped = recorded("nemo_rl"), reporting(SumEnvironment)
    interface = "nemo_rl.environments.interfaces.EnvironmentInterface"
    *known, _args, _kwargs = parameters_of(wrapped.step)
    contract.check(f"{interface}.step", known)
    name = "global_post_process_and_metrics"
    contract.check(f"{interface}.{name}", getattr(wrapped, name))


def test_batches_are_of_data_and_their_rewards_come_back(new_dataloader, stats):
    dataloader = new_dataloader()
    environment = reporting(SumEnvironment)({"workers": 1})
    assert environment.config == {"workers": 1}
    for step, batch in zip(range(3), dataloader, strict=False):
        assert batch["idx"] == list(range(step * PROMPT_COUNT, (step + 1) * PROMPT_COUNT))
        assert batch["task_name"] == ["sums"] * PROMPT_COUNT
        result = rollout(batch, environment, half_right)
        assert result.rewards == [0.0, 1.0] * (PROMPT_COUNT * GROUP_SIZE // 2)
        assert stats().policy_step == step
    seen = stats()
    assert seen.attempt_count == 3 * PROMPT_COUNT * GROUP_SIZE
    assert seen.pass_count == seen.attempt_count / 2
    assert seen.mixed_group_count == 3 * PROMPT_COUNT
    assert seen.leased_prompt_count == 0


def test_rows_of_a_validation_are_scored_and_not_counted(stats):
    environment = reporting(SumEnvironment)()
    logs = [[{"role": "assistant", "content": "2"}]] * 2
    assert environment.step(logs, [{"answer": 2}, {"answer": 3}]).rewards == [1.0, 0.0]
    assert stats().attempt_count == 0


def test_a_batch_may_mix_rows_with_and_without_a_lease(new_dataloader, stats):
    environment = reporting(SumEnvironment)()
    info = next(new_dataloader())["extra_env_info"][0]
    logs = [[{"role": "assistant", "content": str(info["answer"])}]] * 2
    result = environment.step(logs, [{"answer": -1}, info])
    assert result.metadata == [{"answer": -1}, info]
    assert (stats().attempt_count, stats().pass_count) == (1, 1)


def test_a_rollout_of_several_turns_counts_once_with_its_sum(new_dataloader, stats):
    environment = reporting(GuessEnvironment)()
    info = next(new_dataloader())["extra_env_info"][0]

    def turn(infos, answers):
        logs = [[{"role": "assistant", "content": answer}] for answer in answers]
        return environment.step(logs, infos).metadata

    going, ended = turn([info, info], ["?", "stop"])
    assert ended is None
    assert going["answer"] == 0
    assert (stats().attempt_count, stats().pass_count) == (1, 0)
    assert turn([going], ["stop"]) == [None]
    assert (stats().attempt_count, stats().pass_count) == (2, 1)


def test_a_rollout_that_runs_out_of_turns_counts_as_well(new_dataloader, stats):
    environment = reporting(GuessEnvironment, max_turns=2)()
    info = next(new_dataloader())["extra_env_info"][0]
    logs = [[{"role": "assistant", "content": "?"}]]
    [info] = environment.step(logs, [info]).metadata
    assert stats().attempt_count == 0
    environment.step(logs, [info])
    assert stats().attempt_count == 1


def test_a_resumed_training_gets_the_same_batches(new_dataloader, stats):
    environment = reporting(SumEnvironment)()

    def train(dataloader, count):
        served = []
        for batch, _ in zip(dataloader, range(count), strict=False):
            rollout(batch, environment, half_right)
            served.append((texts(batch), batch["idx"]))
        return served

    first = new_dataloader()
    train(first, 2)
    state = first.state_dict()
    expected = train(first, 3)
    second = new_dataloader()
    second.load_state_dict(state)
    assert stats().attempt_count == 2 * PROMPT_COUNT * GROUP_SIZE
    assert train(second, 3) == expected
    assert stats().attempt_count == 5 * PROMPT_COUNT * GROUP_SIZE


def test_a_state_of_another_dataloader_is_refused(new_dataloader):
    with pytest.raises(InvalidRequestError, match=r"state=\['_index'\]: must be"):
        new_dataloader().load_state_dict({"_index": 3})


def test_the_function_for_the_config_gives_a_batch_and_its_iterators(new_dataloader):
    iterators = {"sums": iter(())}
    batch, given = new_dataloader().custom_dataloader(iterators, {"sums": None}, seed=1)
    assert len(texts(batch)) == PROMPT_COUNT
    assert given is iterators


def test_a_batch_is_never_short(new_dataloader, stats):
    dataloader = new_dataloader()
    for _ in range(64 // PROMPT_COUNT - 1):
        next(dataloader)
    assert len(texts(next(dataloader))) == PROMPT_COUNT
    assert stats().leased_prompt_count == 64


def test_data_may_be_rows_that_are_used_again(new_dataloader):
    rows = {"shared": {"extra_env_info": None, "message_log": []}}
    batch = next(new_dataloader(to_datum=lambda served, idx: rows["shared"]))
    assert len({info[MARK]["lease"] for info in batch["extra_env_info"]}) == PROMPT_COUNT
    assert rows == {"shared": {"extra_env_info": None, "message_log": []}}


def test_a_dataloader_pickles_and_has_a_length(new_dataloader):
    dataloader = new_dataloader()
    next(dataloader)
    assert len(dataloader) == sys.maxsize
    copy = pickle.loads(pickle.dumps(dataloader))
    assert next(copy)["idx"] == next(dataloader)["idx"]


@pytest.mark.adapter
@pytest.mark.filterwarnings("ignore")
def test_an_actor_reports_from_its_own_process(new_dataloader, stats):
    import ray

    ray.init(num_cpus=1, include_dashboard=False)
    try:
        actor_class = ray.remote(SumEnvironment)  # as NeMo-RL decorates its environments
        actor = ray.remote(reporting(actor_class)).remote({"workers": 1})
        batch = next(new_dataloader())
        infos = [info for info in batch["extra_env_info"] for _ in range(GROUP_SIZE)]
        logs = [[{"role": "assistant", "content": str(info["answer"])}] for info in infos]
        result = ray.get(actor.step.remote(logs, infos))
        assert sum(result.rewards) == PROMPT_COUNT * GROUP_SIZE == stats().pass_count
    finally:
        ray.shutdown()
        gc.collect()  # what Ray leaves behind warns when it is collected
