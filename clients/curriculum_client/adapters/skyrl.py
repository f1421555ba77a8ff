"""Trains with SkyRL on what the curriculum serves. Mix `Curriculum` into your experiment:

    class Experiment(Curriculum, BasePPOExp):
        pass

and run it with trainer.max_training_steps=… and CURRICULUM_RUN and CURRICULUM_SERVER set where
Ray's workers inherit them. The run's group_size is generator.n_samples_per_prompt, with
reach_attempt_factor 1. A prompt's payload becomes the environment's extras, so for gsm8k it is
{"reward_spec": {"ground_truth": "42"}}; an "env_class" in it is the prompt's environment, and
"messages" stand for its text.

Prompts take the place of the data loader: each batch is chosen once the one before was scored,
whatever data.dataloader.num_workers is, and data.train_data is not read. (As a dataset they would
be indexed, shuffled, and drawn ahead by 8 worker processes.) Every training group is reported as it
is generated, before dynamic_sampling filters or replaces any; evaluation is not reported.
`dynamic_sampling.type=filter` draws as many batches as it needs, and hardly needs any more.

A checkpoint marks the curriculum as step-N, and resuming from it rolls the run back to there.
Not for FullyAsyncRayPPOTrainer, which rewinds a loader of its own at every epoch and takes no
callbacks.

Tried with SkyRL 0.4.0 on Python 3.11: its experiment, trainer, generator and gsm8k environment,
with stand-ins for the models and the engine, which need GPUs. There `replace` fails by itself, with
or without the curriculum: what it makes is refused by the trainer's own check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from curriculum_client import Feed, InvalidRequestError, ServedPrompt, StateError
from curriculum_client.adapters import _marks, _process

Row = dict[str, Any]
"""A prompt as SkyRL's data loader gives it: prompt, env_class, env_extras, uid."""


class Curriculum:
    """Mixed in before BasePPOExp or a subclass, gives the training its prompts and reports it.

    Override `row` to prepare prompts otherwise.

    Raises:
        InvalidRequestError: trainer.max_training_steps is not set, or CURRICULUM_RUN is not.
    """

    def row(self, served: ServedPrompt) -> Row:
        """What the generator is given; its uid is the lease."""
        extras = {**served.payload, "prompt_id": served.prompt_id, "domain": served.domain}
        text = [{"role": "user", "content": served.text}]
        return {
            "prompt": extras.pop("messages", text),
            "env_class": extras.pop("env_class", None),
            "env_extras": extras,
            "uid": served.lease,
        }

    def get_train_dataset(self) -> None:
        """None, so that SkyRL builds no data loader of its own."""
        trainer, generator = self.cfg.trainer, self.cfg.generator  # type: ignore[attr-defined]
        if trainer.max_training_steps is None:
            raise InvalidRequestError(
                "trainer.max_training_steps=None: must be set, for the curriculum has no end"
            )
        feed = Feed(
            _process.client(),
            trainer.train_batch_size,
            attempts_per_prompt=generator.n_samples_per_prompt,
        )
        self.prompts = Prompts(feed, self.row, trainer.train_batch_size, trainer.max_training_steps)

    def get_generator(self, *args: Any, **kwargs: Any) -> ReportingGenerator:
        """The experiment's, reporting."""
        generator = super().get_generator(*args, **kwargs)  # type: ignore[misc]
        return ReportingGenerator(generator, self.prompts.feed)

    def get_trainer(self, *args: Any, **kwargs: Any) -> Any:
        """The experiment's, with our prompts and marks."""
        trainer = super().get_trainer(*args, **kwargs)  # type: ignore[misc]
        trainer.train_dataloader = self.prompts
        trainer.total_training_steps = len(self.prompts)
        trainer.add_callback(_callback(self.prompts))
        return trainer


class Prompts:
    """In place of SkyRL's data loader: batches of rows, for ever, asked for when they are wanted.

    Args:
        feed: Gives the prompts.
        row: Prepares a prompt.
        batch_size: Rows of a batch, trainer.train_batch_size.
        step_count: The length, in training steps; they are one epoch.
    """

    def __init__(self, feed: Feed, row: Any, batch_size: int, step_count: int) -> None:
        self.feed = feed
        self._row = row
        self._batch_size = batch_size
        self._step_count = step_count
        self._saved: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return self._step_count

    def __iter__(self) -> Iterator[list[Row]]:
        served = iter(self.feed)
        while True:
            yield [self._row(prompt) for prompt in islice(served, self._batch_size)]

    def state_dict(self) -> dict[str, Any]:
        """Saved by SkyRL in each checkpoint's data.pt."""
        return self.feed.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Kept until `resume`, for SkyRL only logs what fails here."""
        self._saved = state

    def mark(self, step: int) -> None:
        """Note that the weights of a step were saved."""
        _marks.add(self.feed.client, step)

    def resume(self, step: int) -> None:
        """Go on where the weights of a step were saved.

        Raises:
            StateError: The checkpoint has no state of the curriculum.
        """
        if self._saved is None:
            raise StateError(
                f"global_step_{step}/data.pt: must be there and have the curriculum's state; "
                "it was saved without one or could not be read, see SkyRL's log"
            )
        self.feed.load_state_dict(self._saved)
        self.feed.client.rollback(_marks.name(step))


class ReportingGenerator:
    """A GeneratorInterface that reports what another generates for training."""

    def __init__(self, generator: Any, feed: Feed) -> None:
        self._generator = generator
        self._feed = feed

    async def generate(self, input_batch: Any) -> Any:
        """What the other generates. Raises what `Feed.report` does."""
        output = await self._generator.generate(input_batch)
        about = input_batch["batch_metadata"]
        if about.training_phase == "train":
            leases, rewards, token_counts = _attempts(input_batch, output)
            # Steps count from 1: step n is generated by the weights of n - 1 updates.
            step = about.global_step - 1
            self._feed.report(leases, rewards, policy_step=step, token_counts=token_counts)
        return output


def _attempts(given: Any, output: Any) -> tuple[list[str], list[float], list[int]]:
    """Lease, reward and tokens of each trajectory. With step_wise_trajectories a trajectory has a
    row for each turn, and the last one's reward is its own."""
    ids = output.get("trajectory_ids") or given["trajectory_ids"]
    rewards: dict[tuple[str, int], float] = {}
    token_counts: dict[tuple[str, int], int] = {}
    for at, reward, response in zip(ids, output["rewards"], output["response_ids"], strict=True):
        attempt = at.instance_id, at.repetition_id
        rewards[attempt] = sum(reward) if isinstance(reward, list) else reward
        token_counts[attempt] = token_counts.get(attempt, 0) + len(response)
    return [lease for lease, _ in rewards], [*rewards.values()], [*token_counts.values()]


def _callback(prompts: Prompts) -> Any:
    from skyrl.train.utils.callbacks import TrainingCallback

    class Marks(TrainingCallback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, callback_input: Any, control: Any) -> None:
            if trainer.global_step:
                prompts.resume(trainer.global_step)

        def on_save(self, trainer: Any, callback_input: Any, control: Any) -> None:
            prompts.mark(trainer.global_step)

        def on_train_end(self, trainer: Any, callback_input: Any, control: Any) -> None:
            prompts.feed.close()

    return Marks()
