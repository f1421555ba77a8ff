"""Trains with OpenRLHF on what the curriculum serves. Start it through this module,

    python3 -m curriculum_client.adapters.openrlhf …     # for openrlhf.cli.train_ppo_ray …

with OpenRLHF's own arguments, and with CURRICULUM_RUN and CURRICULUM_SERVER set where Ray's workers
inherit them. --data.max_samples says how many prompts an episode has; --data.prompt_dataset is not
read. The run's group_size is --rollout.n_samples_per_prompt, with reach_attempt_factor 1.

A prompt's payload is its row of the data set: --data.label_key names the field that reward
functions are given as the label (without it, the payload's JSON), --data.input_key may hold
messages instead of the prompt's text. Reward functions, reward servers and agents stay as they are;
an agent gives back the label it was given. Scores count, before --algo.dynamic_filtering_enable
drops any, in the trainer's process: what a reward function raises, OpenRLHF logs and goes on.

OpenRLHF has no setting for where prompts come from. This replaces two names of its trainers,
`prepare_datasets` and `SamplesGenerator`, before Ray sends them to their actor. With
--train.async_enable a batch's policy step is its place in the order of batches, and so ahead of its
weights by what is queued.

A checkpoint (--ckpt.save_steps, and every evaluation) marks the curriculum as step-N; resuming
rolls the run back to there.

Tried with OpenRLHF 0.11.2 on Python 3.11: its arguments, trainers' actors, generator and executor
on Ray, with stand-ins for vLLM and the models, which need GPUs.
"""

from __future__ import annotations

import json
import runpy
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from curriculum_client import Feed, InvalidRequestError, ServedPrompt
from curriculum_client.adapters import _marks, _process

NO_LIMIT = 10**8
"""What --data.max_samples is where nothing was said."""


class Label(str):
    """A label as reward functions expect it, that knows the lease of its prompt."""

    lease: str

    def __new__(cls, text: str, lease: str = "") -> Label:
        label = super().__new__(cls, text)
        label.lease = lease
        return label


class Prompts:
    """In place of OpenRLHF's data loader: prompts one by one, and what became of them back.

    Args:
        feed: Gives the prompts.
        args: OpenRLHF's.
        tokenizer: Whose chat template is applied with --data.apply_chat_template.
    """

    def __init__(self, feed: Feed, args: Any, tokenizer: Any) -> None:
        if args.data.max_samples >= NO_LIMIT:
            raise InvalidRequestError(
                f"data.max_samples={args.data.max_samples}: must be the prompts of an episode, "
                "for the curriculum has no end"
            )
        self.feed = feed
        self.policy_step = 0
        self._args = args
        self._tokenizer = tokenizer
        self._drawn_count = 0
        self._served: deque[ServedPrompt] = deque()
        self._scored: list[tuple[str, float | None, int]] = []
        self._marked: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self._args.data.max_samples)

    def __iter__(self) -> Iterator[tuple[list[Any], ...]]:
        while self._drawn_count < len(self):
            if not self._served:
                self.report()
                self._served.extend(self.feed.next_batch())
            self._drawn_count += 1
            yield self._row(self._served.popleft())
        self._drawn_count = 0

    def note(self, lease: str, score: float | None, token_count: int) -> None:
        """Take an attempt for the next report."""
        self._scored.append((lease, score, token_count))

    def report(self) -> None:
        """Count the attempts noted."""
        if scored := self._scored:
            self._scored = []
            leases, scores, token_counts = zip(*scored, strict=True)
            self.feed.report(
                leases, scores, policy_step=self.policy_step, token_counts=token_counts
            )

    def state_dict(self) -> dict[str, Any]:
        """Of the newest mark. OpenRLHF asks at every step and saves at some, which are marked."""
        ckpt, evaluation = self._args.ckpt.save_steps, self._args.eval.steps
        if any(every > 0 and self.policy_step % every == 0 for every in (ckpt, evaluation)):
            self._marked = {
                "mark": _marks.add(self.feed.client, self.policy_step),
                "drawn_count": self._drawn_count,
                "feed": self.feed.state_dict(),
            }
        return {**self._marked, "policy_step": self.policy_step} if self._marked else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at the mark, and roll the run back to it."""
        self.feed.load_state_dict(state["feed"])
        self.feed.client.rollback(state["mark"])
        self.policy_step = state["policy_step"]
        self._drawn_count = state["drawn_count"]

    def _row(self, served: ServedPrompt) -> tuple[list[Any], ...]:
        from openrlhf.datasets.prompts_dataset import preprocess_data

        data = self._args.data
        row = {data.input_key: served.text, **served.payload}
        template = self._tokenizer.apply_chat_template if data.apply_chat_template else None
        prompt, _ = preprocess_data(row, data.input_template, data.input_key, None, template)
        label = Label(self._label(served), served.lease)
        return [served.domain], [prompt], [label], [row.get(data.image_key)]

    def _label(self, served: ServedPrompt) -> str:
        key = self._args.data.label_key
        if key is None:
            return served.payload_json
        if key not in served.payload:
            raise InvalidRequestError(
                f"data.label_key={key!r}: must be in the payload of prompt "
                f"{served.prompt_id!r}, which has {sorted(served.payload)}"
            )
        value = served.payload[key]
        return value if isinstance(value, str) else json.dumps(value)


class Reporting:
    """Mixed into SamplesGenerator, reports every attempt of a training prompt."""

    prompts_dataloader: Prompts
    _is_training = False

    def generate_samples(self, **generate_kwargs: Any) -> Any:
        """SamplesGenerator's. Raises what `Feed.report` does."""
        self._is_training = True
        try:
            made = super().generate_samples(**generate_kwargs)  # type: ignore[misc]
        finally:
            self._is_training = False
        self.prompts_dataloader.report()
        if made[0]:  # the trainer will make a step of them
            self.prompts_dataloader.policy_step += 1
        return made

    def _process_response_into_experience(self, response: Any, **generate_kwargs: Any) -> Any:
        made = super()._process_response_into_experience(response, **generate_kwargs)  # type: ignore[misc]
        if self._is_training:
            if not isinstance(label := response["label"], Label):
                raise InvalidRequestError(
                    f"label={label!r}: must be what the agent or executor was given, as it was"
                )
            score = None if made.scores is None else made.scores.item()
            self.prompts_dataloader.note(label.lease, score, int(made.response_length))
        return made


def prepare_datasets(strategy: Any, tokenizer: Any) -> tuple[Prompts, Any, int]:
    """What OpenRLHF's gives: training prompts, its own loader for evaluation, and the steps."""
    args = strategy.args
    rollout = args.rollout
    feed = Feed(
        _process.client(),
        rollout.vllm_generate_batch_size or rollout.batch_size,
        attempts_per_prompt=rollout.n_samples_per_prompt,
    )
    prompts = Prompts(feed, args, tokenizer)
    per_episode = len(prompts) * rollout.n_samples_per_prompt // args.train.batch_size
    step_count = per_episode * args.train.num_episodes * args.train.max_epochs
    evaluation = _evaluation(strategy, tokenizer) if args.eval.dataset else None
    return prompts, evaluation, step_count


def _evaluation(strategy: Any, tokenizer: Any) -> Any:
    from openrlhf.datasets import PromptDataset
    from openrlhf.datasets.utils import blending_datasets

    args = strategy.args
    rows = blending_datasets(args.eval.dataset, None, strategy, dataset_split=args.eval.split)
    rows = rows.select(range(min(args.data.max_samples, len(rows))))
    dataset = PromptDataset(rows, tokenizer, strategy, input_template=args.data.input_template)
    return strategy.setup_dataloader(
        dataset, 1, True, False, dataset.collate_fn, num_workers=args.data.dataloader_num_workers
    )


def install() -> None:
    """Give OpenRLHF's trainers, which are still to be started, the curriculum's prompts."""
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    class ReportingSamplesGenerator(Reporting, SamplesGenerator):  # type: ignore[misc]
        """Ray sends it to the actor with the trainer's class."""

    for module in (ppo_trainer, ppo_trainer_async):
        module.prepare_datasets = prepare_datasets
        module.SamplesGenerator = ReportingSamplesGenerator


def main() -> None:
    """OpenRLHF's own, with the curriculum."""
    install()
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # Classes of __main__ would be other classes in Ray's workers.
    from curriculum_client.adapters import openrlhf

    openrlhf.main()
