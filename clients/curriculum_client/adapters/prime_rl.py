"""Draws prime-rl's tasks from what the curriculum serves.

    feed = Feed(client, prompt_count=64, attempts_per_prompt=rollouts_per_example)
    sampler = CurriculumTaskSampler(feed, policy_step=lambda: progress.step)

has the interface of prime-rl's TaskSampler. A configuration names only those that are built in, so
put it in the place of the instance that the orchestrator made. It replaces difficulty pools and
online difficulty filtering: switch these off. Create the run with rollouts_per_example as its
group_size and with reach_attempt_factor 1, and let the pool hold more prompts than are in flight:
what draws a task waits while nothing is free.

What is assumed of prime-rl, and what to pass where it is not so: that a task is a row of the
environment's dataset, which is the prompt's payload (`to_task`); that a group is its rollouts, or
has them as `rollouts`, and that each has the `example_id` of its row, which is the prompt_id
(`prompt_id_of`), and a `reward` (`rewards_of`), as attributes or keys; and that `state_dict` is
called for checkpoints alone. A group that is never handed to `observe` keeps its prompt until the
lease runs out.

Tried with prime-rl 0.8.0 on Python 3.11 in one respect only: its methods are those of TaskSampler
as they were read there. It was not run in prime-rl.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curriculum_client import Feed, InvalidRequestError, Receipt, ServedPrompt
from curriculum_client.adapters import _marks


def to_task(served: ServedPrompt) -> dict[str, Any]:
    """A prompt's payload, with an example_id."""
    return {"example_id": served.prompt_id, **served.payload}


def rollouts_of(group: Any) -> Sequence[Any]:
    """A group's rollouts."""
    rollouts: Sequence[Any] = getattr(group, "rollouts", group)
    return rollouts


def prompt_id_of(group: Any) -> str:
    """The example_id of a group's rollouts."""
    return str(_field(rollouts_of(group)[0], "example_id"))


def rewards_of(group: Any) -> list[float | None]:
    """The reward of each of a group's rollouts; None leaves one out."""
    return [_field(rollout, "reward") for rollout in rollouts_of(group)]


class CurriculumTaskSampler:
    """A TaskSampler of a run's prompts.

    Args:
        feed: Of the run.
        policy_step: Tells the orchestrator's step, of whose weights rollouts are that begin now.
        to_task: Makes a task of a prompt.
        prompt_id_of: The prompt that a group is of.
        rewards_of: The rewards of a group's rollouts.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        policy_step: Callable[[], int],
        to_task: Callable[[ServedPrompt], Any] = to_task,
        prompt_id_of: Callable[[Any], str] = prompt_id_of,
        rewards_of: Callable[[Any], Sequence[float | None]] = rewards_of,
    ) -> None:
        self._feed = feed
        self._policy_step = policy_step
        self._to_task = to_task
        self._prompt_id_of = prompt_id_of
        self._rewards_of = rewards_of
        self._prompts = iter(feed)
        self._drawn: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        """Lease and policy step, newest last, of each prompt in flight: where a lease ran out there
        may be several."""
        self._counted = Receipt()

    def __next__(self) -> Any:
        step = self._feed.policy_step = self._policy_step()
        served = next(self._prompts)
        self._drawn[served.prompt_id].append((served.lease, step))
        return self._to_task(served)

    def observe(self, group: Any) -> None:
        """Report a group.

        Raises:
            InvalidRequestError: It is of no prompt that was drawn and not observed since.
        """
        prompt_id, rewards = self._prompt_id_of(group), self._rewards_of(group)
        if not self._drawn[prompt_id]:
            raise InvalidRequestError(f"group: is of {prompt_id!r}: must be of a task in flight")
        lease, step = self._drawn[prompt_id].pop()
        receipt = self._feed.report([lease] * len(rewards), rewards, policy_step=step)
        self._counted += receipt or Receipt()

    def metrics(self) -> dict[str, float]:
        """Of what was observed since they were last asked for."""
        counted, self._counted = self._counted, Receipt()
        waited_s, self._feed.waited_s = self._feed.waited_s, 0.0
        found = {
            "curriculum/group_count": float(counted.completed_group_count),
            "curriculum/in_flight_count": float(sum(map(len, self._drawn.values()))),
            "curriculum/waited_s": waited_s,
        }
        if counted.completed_group_count:
            mixed_share = counted.mixed_group_count / counted.completed_group_count
            found["curriculum/mixed_share"] = mixed_share
        return found

    def state_dict(self) -> dict[str, Any]:
        """Where a resumed training goes on. Marks the curriculum: for a checkpoint alone."""
        mark = _marks.add(self._feed.client, self._policy_step())
        return {"checkpoint": mark, "feed": self._feed.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, and roll the curriculum back to there."""
        self._feed.load_state_dict(state_dict["feed"])
        self._feed.client.rollback(state_dict["checkpoint"])
        self._drawn.clear()


def _field(rollout: Any, name: str) -> Any:
    try:
        return rollout[name] if isinstance(rollout, Mapping) else getattr(rollout, name)
    except (KeyError, AttributeError):
        raise InvalidRequestError(
            f"group: a rollout, {type(rollout).__name__}, has no {name}: prompt_id_of and "
            "rewards_of must read it"
        ) from None
