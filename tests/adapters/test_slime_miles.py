"""The adapter of slime in the rollout of miles, slime's fork: its GenerateState, its over-sampling,
its dynamic filter, its abort. Only what generates is ours, for it takes a GPU."""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from curriculum_client.adapters.slime import LEASE
from tests.adapters.contract import recorded

pytestmark = [pytest.mark.adapter, pytest.mark.filterwarnings("ignore")]

ROLLOUT_BATCH_SIZE = 8
GROUP_SIZE = 4


async def generate(args, sample, sampling_params, evaluation=False):
    """Answers one token; every 4th group is slow, so that some are aborted."""
    from miles.rollout.sglang_rollout import GenerateState

    state = GenerateState(args)
    for _ in range(0 if evaluation or sample.group_index % 4 < 3 else 200):
        await asyncio.sleep(0)
    unfinished = state.aborted and not evaluation
    sample.status = sample.Status.ABORTED if unfinished else sample.Status.COMPLETED
    sample.response, sample.response_length = "7", 1
    return sample


async def reward(args, sample):
    """All right, all wrong, or half of each, by the prompt."""
    number = sample.label // 2
    return float([1, 0, sample.index % 2][number % 3])


class Router(BaseHTTPRequestHandler):
    """Of no workers."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"workers": []}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def args(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "What": 1, "is": 2}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "eval.jsonl").write_text('{"text": "1 + 1", "label": 0}\n')
    router = ThreadingHTTPServer(("127.0.0.1", 0), Router)
    threading.Thread(target=router.serve_forever, daemon=True).start()
    folder = "curriculum_client.adapters.slime"
    yield Namespace(
        hf_checkpoint=str(tmp_path / "model"),
        chat_template_path=None,
        sglang_server_concurrency=64,
        rollout_num_gpus=1,
        rollout_num_gpus_per_engine=1,
        rollout_temperature=1.0,
        rollout_top_p=1.0,
        rollout_top_k=-1,
        rollout_max_response_len=8,
        rollout_stop=None,
        rollout_stop_token_ids=None,
        rollout_skip_special_tokens=True,
        sglang_dp_size=1,
        sglang_router_ip="127.0.0.1",
        sglang_router_port=router.server_port,
        sglang_router_policy=None,
        use_miles_router=False,
        use_distributed_post=False,
        dumper_enable=False,
        dumper_inference=None,
        rollout_global_dataset=True,
        partial_rollout=False,
        mask_offpolicy_in_partial_rollout=False,
        group_rm=False,
        custom_generate_function_path=f"{__name__}.generate",
        custom_rm_path=f"{__name__}.reward",
        dynamic_sampling_filter_path=(
            "miles.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
        ),
        rollout_sample_filter_path=None,
        rollout_all_samples_process_path=f"{folder}.report",
        data_source_path=f"{folder}.CurriculumDataSource",
        rollout_batch_size=ROLLOUT_BATCH_SIZE,
        over_sampling_batch_size=2 * ROLLOUT_BATCH_SIZE,
        n_samples_per_prompt=GROUP_SIZE,
        apply_chat_template=True,
        apply_chat_template_kwargs={},
        label_key="answer",
        reward_key=None,
        eval_reward_key=None,
        eval_max_prompt_len=None,
        multimodal_keys=None,
        tool_key=None,
        save=str(tmp_path / "checkpoints"),
        load=str(tmp_path / "checkpoints"),
    )
    router.shutdown()
    router.server_close()


@pytest.fixture
def trained(args, server, new_run, new_process, monkeypatch):
    """Makes a RolloutManager's data source and rollout function, of processes of their own."""
    import httpx
    from miles.utils import http_utils
    from miles.utils.misc import SingletonMeta, function_registry, load_function

    selection = {"group_size": GROUP_SIZE, "reach_attempt_factor": 1}
    new_process(RUN=new_run(512, selection=selection), SERVER=server.address)
    monkeypatch.setattr(http_utils, "_http_client", httpx.AsyncClient())

    def make(**changes):
        new_process()
        SingletonMeta._instances.clear()
        ours = Namespace(**(vars(args) | changes))
        source = load_function(ours.data_source_path)(ours)
        rollout = load_function("miles.rollout.sglang_rollout.generate_rollout")
        return source, lambda number, **options: rollout(ours, number, source, **options)

    names = {f"{__name__}.generate": generate, f"{__name__}.reward": reward}
    for name, function in names.items():
        function_registry._register(name, function)
    yield make
    for name in names:
        function_registry._unregister(name)


@pytest.fixture
def stats(stats, trained):
    return lambda: stats(os.environ["CURRICULUM_RUN"])


def test_the_fork_is_as_it_was_recorded():
    contract = recorded("miles")
    for name in contract.callables:
        if not name.startswith("--"):
            contract.check(name, pkgutil.resolve_name(name))


def test_all_finished_groups_are_counted_before_the_filter_and_the_others_given_back(
    trained, stats
):
    source, rollout = trained()
    source._feed.prefetch = False
    for number in range(4):
        output = rollout(number)
        assert len(output.samples) == ROLLOUT_BATCH_SIZE
        assert all({s.reward for s in group} == {0.0, 1.0} for group in output.samples)
    seen = stats()
    # The filter keeps a third of all groups; those in one `done` with the last kept count as well.
    assert seen.mixed_group_count >= 4 * ROLLOUT_BATCH_SIZE
    assert seen.group_count > 1.5 * seen.mixed_group_count
    assert seen.attempt_count == GROUP_SIZE * seen.group_count
    assert seen.leased_prompt_count == 0
    assert seen.policy_step == 3


def test_prompts_are_in_the_chat_template(trained):
    source, _ = trained()
    [[sample, *_]] = source.get_samples(1)
    assert sample.prompt == f"<user>What is {sample.label // 2} + {sample.label // 2}?"


def test_a_partial_rollout_keeps_its_leases_and_is_finished_in_the_next(trained, stats):
    source, rollout = trained(partial_rollout=True)
    source._feed.prefetch = False
    rollout(0)
    begun = {group[0].metadata[LEASE] for group in source._partial}
    assert len(begun) > 0
    assert stats().leased_prompt_count == len(begun)
    rollout(1)
    assert stats().attempt_count == GROUP_SIZE * stats().group_count


def test_an_evaluation_is_not_counted(args, trained, stats, tmp_path):
    from miles.utils.eval_config import EvalDatasetConfig

    dataset = EvalDatasetConfig(
        name="sums",
        path=str(tmp_path / "eval.jsonl"),
        n_samples_per_eval_prompt=4,
        input_key="text",
        label_key="label",
        temperature=1.0,
        top_p=1.0,
        top_k=-1,
        max_response_len=8,
    )
    _, rollout = trained(eval_datasets=[dataset])
    assert rollout(0, evaluation=True).data["sums"]["rewards"] == [1.0] * 4
    assert stats().attempt_count == 0


def test_a_resumed_training_gets_the_same_batches(trained):
    first, rollout = trained()
    first.load(-1)
    for number in range(2):
        rollout(number)
    first.save(1)
    expected = [group[0].prompt for group in first.get_samples(3 * ROLLOUT_BATCH_SIZE)]
    second, _ = trained()
    second.load(1)
    assert [group[0].prompt for group in second.get_samples(3 * ROLLOUT_BATCH_SIZE)] == expected
