"""Trains with NeMo-RL's GRPO on what the curriculum serves.

In the script that calls grpo_train, after setup(...):

    dataloader = CurriculumDataloader(
        TrainerClient.from_environment(),
        config["grpo"]["num_prompts_per_step"],
        config["grpo"]["num_generations_per_prompt"],
        to_datum=lambda served, idx: dataset[int(served.prompt_id)],
        collate=rl_collate_fn,
    )

and, in a module of yours, the actor class of each environment that scores its prompts:

    MathActor = ray.remote(reporting(MathEnvironment))

CURRICULUM_RUN and the other variables of `TrainerClient.from_environment` must be set where the
actors run. NeMo-RL gives every prompt num_generations_per_prompt attempts, so create the run with
that group_size and with reach_attempt_factor 1.

Rewards are reported by the environment's step, so before grpo.use_dynamic_sampling drops the groups
that are all right or all wrong. Rows of a validation carry no lease and are not reported. A rollout
of several turns counts once, with the sum of its rewards, when it is terminated or has had
`max_turns`. One that outgrows the context before is never reported, and its lease expires.

Resuming. state_dict, which grpo_train saves as train_dataloader.pt, marks the curriculum as well;
load_state_dict rolls it back. Call that yourself, for setup(...) loads into its own dataloader.

Policy steps are batches: more than steps with dynamic sampling, and ahead of the weights in async
GRPO. An actor that Ray restarts amid a step reports it twice.

Assumed, since NeMo-RL is not on PyPI: that extra_env_info reaches `step` as its metadata and is
replaced by what it returns; that EnvironmentReturn is a NamedTuple with metadata, rewards and
terminateds; that `data.custom_dataloader` names a function that is called as
`CurriculumDataloader.custom_dataloader`, whose position NeMo-RL does not save. Tried with Ray 2 on
Python 3.11 and stand-ins of the rest; NeMo-RL itself was only read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from curriculum_client import Feed, InvalidRequestError, ServedPrompt, TrainerClient
from curriculum_client.adapters import _process

MARK = "curriculum"
"""Where extra_env_info keeps a rollout's lease, policy step, turns and sum of rewards."""

Datum = Mapping[str, Any]
"""A DatumSpec."""


class CurriculumDataloader:
    """An endless training dataloader over a run's prompts.

    Args:
        client: Connected to the run.
        prompt_count: grpo.num_prompts_per_step.
        attempts_per_prompt: grpo.num_generations_per_prompt.
        to_datum: Makes a DatumSpec of a served prompt and a running number, say with the task's
            data processor.
        collate: rl_collate_fn, or what else makes a batch of a list of DatumSpecs.
    """

    def __init__(
        self,
        client: TrainerClient,
        prompt_count: int,
        attempts_per_prompt: int,
        *,
        to_datum: Callable[[ServedPrompt, int], Datum],
        collate: Callable[[list[dict[str, Any]]], Any],
    ) -> None:
        # Others report, so that a batch asked for ahead of time would know less.
        self._feed = Feed(
            client, prompt_count, attempts_per_prompt=attempts_per_prompt, prefetch=False
        )
        self._attempts_per_prompt = attempts_per_prompt
        self._to_datum = to_datum
        self._collate = collate
        self._given_count = 0

    def __len__(self) -> int:
        """More than max_num_steps, which ends the training."""
        return sys.maxsize

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        served = list(islice(self._feed, self._feed.prompt_count))
        # It is trained on before anything is saved: a resumed training goes on behind it.
        self._feed.settle([p.lease for p in served for _ in range(self._attempts_per_prompt)])
        data = [self._datum(each) for each in served]
        self._feed.policy_step += 1
        return self._collate(data)

    def custom_dataloader(self, data_iterators: Any, dataloaders: Any, **_: Any) -> tuple[Any, Any]:
        """For data.custom_dataloader: the next batch, and the iterators as they came."""
        return next(self), data_iterators

    def state_dict(self) -> dict[str, Any]:
        """Mark the curriculum; where a resumed training goes on."""
        state, step = self._feed.state_dict(), self._feed.policy_step
        mark = f"batch-{step}"
        self._feed.client.checkpoint(mark, step)
        return {"feed": state, "given_count": self._given_count, "mark": mark}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, with the curriculum rolled back.

        Raises:
            InvalidRequestError: The state is of another run, consumer or dataloader.
        """
        if state.keys() != {"feed", "given_count", "mark"}:
            raise InvalidRequestError(f"state={sorted(state)}: must be a CurriculumDataloader's")
        self._feed.load_state_dict(state["feed"])
        self._given_count = state["given_count"]
        self._feed.client.rollback(state["mark"])

    def _datum(self, served: ServedPrompt) -> dict[str, Any]:
        datum = self._to_datum(served, self._given_count)
        self._given_count += 1
        step = self._feed.policy_step
        mark = {"lease": served.lease, "policy_step": step, "turn": 0, "reward": 0.0}
        return {**datum, "extra_env_info": {**(datum.get("extra_env_info") or {}), MARK: mark}}


def reporting(environment: Any, *, max_turns: int | None = None) -> Any:
    """An environment class like this one, which also reports. It is plain: wrap it in ray.remote.

    Args:
        environment: An EnvironmentInterface, or the actor class that ray.remote made of one.
        max_turns: grpo.max_rollout_turns, where a rollout may end without being terminated.
    """
    actor = getattr(environment, "__ray_metadata__", None)
    plain: Any = environment if actor is None else actor.modified_class.__ray_actor_class__

    class Reporting(plain):  # type: ignore[misc]
        def step(
            self, message_log_batch: Sequence[Any], metadata: Sequence[Any], *args: Any, **kw: Any
        ) -> Any:
            result = super().step(message_log_batch, metadata, *args, **kw)
            carried = list(result.metadata)
            ended = []
            rows = zip(metadata, result.rewards.tolist(), result.terminateds.tolist(), strict=True)
            for row, (given, reward, is_terminated) in enumerate(rows):
                if not given or MARK not in given:
                    continue
                mark = _after_turn(given[MARK], reward)
                if is_terminated or mark["turn"] == max_turns:
                    ended.append(mark)
                else:
                    carried[row] = {**(carried[row] or {}), MARK: mark}
            _report(ended)
            return result._replace(metadata=carried)

    Reporting.__name__ = Reporting.__qualname__ = f"Reporting{plain.__name__}"
    return Reporting


def _after_turn(mark: Mapping[str, Any], reward: float) -> dict[str, Any]:
    return {**mark, "turn": mark["turn"] + 1, "reward": mark["reward"] + reward}


def _report(marks: Sequence[Mapping[str, Any]]) -> None:
    if marks:
        _process.client().report_attempts(
            [mark["lease"] for mark in marks],
            [mark["reward"] for mark in marks],
            policy_step=[mark["policy_step"] for mark in marks],
        )
