"""A run's prompts as an endless stream, and what became of them back."""

from __future__ import annotations

import logging
import operator
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from curriculum_api.errors import (
    ConflictError,
    CurriculumError,
    InvalidRequestError,
    NotFoundError,
    StateError,
)
from curriculum_api.status import AWAY
from curriculum_client._attempts import PerAttempt, is_one
from curriculum_client._batch import Batch, Receipt, ServedPrompt
from curriculum_client._client import TrainerClient
from curriculum_client._lookahead import Lookahead
from curriculum_client._open_batches import OpenBatches, check_attempts
from curriculum_client._state import reopened

MAX_OPEN_BATCHES = 64
"""Where others score parts of each batch, a feed may not see when all is scored: it forgets the
oldest batch instead. No trainer is that far ahead."""

EMPTY_POOL_WAIT_S = 30.0
"""How long prompts that others hold may take to come back before training fails."""

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("curriculum_client")


class Feed:
    """What adapters are made of: batches that follow each other, and reports by lease.

    `next_batch` gives the next prompts together, iterating gives them one by one and for ever; all
    iterators share one position.

    Look-ahead. As soon as this process has reported its part of a batch, the next one is asked for
    in the background, while the trainer learns: the choice knows all that was reported until then,
    and `next_batch` seldom waits. What others fetch ahead, a DataLoader say, is chosen with what
    was known then. Without `prefetch` each batch is asked for when it is wanted.

    Resuming. To a feed that loads a `state_dict`, batches come again of which nothing was scored
    by then. Save it when you mark a checkpoint, and load it before `rollback`.

    Ranks. Feeds of equal arguments, whose clients have one `consumer` and which report the same
    steps, are given the same batches. All ranks may go through all of them and report what they
    scored (`reporter_count`), or each gets its share of every batch (`rank`, `world_size`).

    Feeds pickle and survive forks, which wait for what was asked for in the background; a copy is
    given the batches that its original is given. Use one from one thread.

    Args:
        client: Connected to the run, and used for batches by this feed alone.
        prompt_count: Prompts of a batch, in [1, 4096].
        rollout_budget: Attempts to spend on a batch, see `TrainerClient.next_batch`.
        attempts_per_prompt: Attempts that the trainer makes at every prompt whatever it is
            allotted; None where it makes each prompt's `attempt_count`.
        prefetch: Whether to ask for the next batch in the background.
        reporter_count: Processes that each report an equal part of what this feed gives.
        rank: Of `world_size`, in [0, world_size).
        world_size: Ranks that share a batch equally; its last prompts are left out where a dry
            pool gives fewer than a multiple. `prompt_count` must be one.
    """

    def __init__(
        self,
        client: TrainerClient,
        prompt_count: int,
        *,
        rollout_budget: int | None = None,
        attempts_per_prompt: int | None = None,
        prefetch: bool = True,
        reporter_count: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_counts(
            prompt_count=prompt_count,
            attempts_per_prompt=attempts_per_prompt,
            reporter_count=reporter_count,
            world_size=world_size,
        )
        _check_share(prompt_count, rank=rank, world_size=world_size)
        if reporter_count > 1 and client.is_reporter_shared:
            raise InvalidRequestError(
                f"reporter_count={reporter_count}: each process needs a reporter of its own; set "
                "RANK or give TrainerClient(reporter=...)"
            )
        self.client = client
        self.prompt_count = prompt_count
        self.prefetch = prefetch
        self.policy_step = 0
        """What the next batch is asked for: the newest step reported, or whatever is set here."""
        self.waited_s = 0.0
        """Seconds that the caller has waited for the service; set it to 0 at any time."""
        self._rollout_budget = rollout_budget
        self._attempts_per_prompt = attempts_per_prompt
        self._reporter_count = reporter_count
        self._rank = rank
        self._world_size = world_size
        self._resumed_steps: deque[int] = deque()
        """The policy steps of batches that were fetched ahead of the checkpoint resumed from."""
        self._warned = False
        self._open = OpenBatches()
        self._pending: deque[ServedPrompt] = deque()
        self._lookahead = Lookahead(client, prompt_count, rollout_budget)

    def __iter__(self) -> Iterator[ServedPrompt]:
        while True:
            if not self._pending:
                self._pending.extend(self.next_batch())
            yield self._pending.popleft()

    def next_batch(self) -> Sequence[ServedPrompt]:
        """The next prompts: `prompt_count` or, where the pool runs dry, fewer, but not none.

        Raises:
            StateError: There was nothing to serve for half a minute.
            InvalidRequestError: A prompt is to get fewer attempts than `attempts_per_prompt`.
        """
        deadline_s = time.monotonic() + EMPTY_POOL_WAIT_S
        while True:
            batch = self._timed(self._take)
            if share := self._share(batch):
                return share
            if batch:  # too small to be shared
                self._timed(self.client.release, batch)
            if time.monotonic() > deadline_s:
                raise StateError(
                    f"nothing to serve for {EMPTY_POOL_WAIT_S:.0f} s, with {len(self._open)} "
                    f"batches of this trainer in flight: {batch.shortfall}"
                )
            time.sleep(1.0)

    def report(
        self,
        leases: Sequence[str | None],
        rewards: PerAttempt,
        *,
        policy_step: int | Sequence[int] | None = None,
        token_counts: PerAttempt | None = None,
        channels: Mapping[str, PerAttempt] | None = None,
        part: str | int | None = None,
    ) -> Receipt | None:
        """Count attempts, see `TrainerClient.report_attempts`; by default of `policy_step`."""
        step: Any = self.policy_step if policy_step is None else policy_step
        rewards = _listed(rewards)
        token_counts = None if token_counts is None else _listed(token_counts)
        channels = {name: _listed(values) for name, values in (channels or {}).items()}
        columns = [rewards, *([] if token_counts is None else [token_counts]), *channels.values()]
        is_spent = [None not in values for values in zip(*columns, strict=False)]
        try:
            receipt = self._timed(
                self.client.report_attempts,
                leases,
                rewards,
                policy_step=step,
                token_counts=token_counts,
                channels=channels,
                part=part,
            )
        except (ConflictError, NotFoundError, StateError):  # of one batch; the others were sent
            self.settle(leases, is_spent)
            raise
        self.policy_step = max([self.policy_step, *map(int, [step] if is_one(step) else step)])
        self.settle(leases, is_spent)
        return receipt

    def settle(self, leases: Sequence[str | None], is_spent: Sequence[bool] | None = None) -> None:
        """Take note of attempts that were scored, and that were reported where `is_spent`.

        `report` does this. Where another process reports, call it with the leases of what was
        scored there, or batches count as fetched ahead until they are forgotten.
        """
        scored = Counter(lease for lease in leases if lease)
        spent = scored if is_spent is None else Counter(compress(leases, is_spent))
        for entry in self._open.settle(scored, spent):
            # Attempts that nobody will spend must not keep their leases.
            if entry.unspent_count > 0 and self._is_alone:
                self._timed(self._give_back, entry.batch)
            if self.prefetch:
                self._lookahead.start(self._next_step)

    def state_dict(self, *, rewind: bool = True) -> dict[str, Any]:
        """Where a resumed training goes on, for its checkpoint; survives JSON.

        Without `rewind`, for trainers that keep the prompts of batches under way themselves, that
        is after the newest batch that `next_batch` gave.
        """
        fetched = self._timed(self._lookahead.peek)
        resumed_steps = list(self._resumed_steps)[0 if fetched is None else 1 :]
        again = [entry.batch for entry in self._open if rewind and not entry.is_begun]
        again += [] if fetched is None else [fetched]
        asked = (self.prompt_count, self._rollout_budget)
        return {
            "client": reopened(self.client.state_dict(), again, *asked),
            "policy_step": self.policy_step,
            "policy_steps": [*(batch.policy_step for batch in again), *resumed_steps],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, and forget what was fetched since.

        Raises:
            InvalidRequestError: The state is of another run or consumer, or none of a feed.
        """
        try:
            client_state, step = {**state["client"]}, operator.index(state["policy_step"])
            resumed_steps = deque(map(operator.index, state["policy_steps"]))
        except (KeyError, TypeError) as error:
            raise InvalidRequestError(f"state: not a feed's state: {error!r}") from error
        self._lookahead.drop()
        self.client.load_state_dict(client_state)
        self._open.clear()
        self._pending.clear()
        self.policy_step, self._resumed_steps = step, resumed_steps

    def close(self, *, ranks_ended: bool = False) -> None:
        """Give back what was not scored. The client stays open, and the feed can go on.

        Where others work on the same batches, nothing is given back unless `ranks_ended`: they all
        have, or will not report any more.
        """
        if (fetched := self._lookahead.peek()) is not None:
            self._admit(fetched)
        self._lookahead.drop()
        if self._is_alone or ranks_ended:
            for entry in self._open:
                if not self._give_back(entry.batch):
                    break
        self._open.clear()
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        self._lookahead.peek()  # or what is on its way might come between the parts of the copy
        return dict(vars(self))

    @property
    def _is_alone(self) -> bool:
        """Whether all of each batch is scored here."""
        return self._reporter_count == self._world_size == 1

    @property
    def _next_step(self) -> int:
        """On resuming, batches are asked for as they were the first time."""
        return self._resumed_steps[0] if self._resumed_steps else self.policy_step

    def _take(self) -> Batch:
        batch = self._lookahead.take(self._next_step)
        try:
            check_attempts(batch, self._attempts_per_prompt or 0)
        except InvalidRequestError:
            self.client.release(batch)
            raise
        if batch and not batch.is_fallback:
            self._admit(batch)
            self._warn_of_leftovers(batch)
        return batch

    def _warn_of_leftovers(self, batch: Batch) -> None:
        fixed = self._attempts_per_prompt
        most = max(batch, key=operator.attrgetter("attempt_count"))
        if fixed and most.attempt_count > fixed and not self._warned:
            self._warned = True
            _log.warning(
                "attempts left over prompt=%s allotted=%d made=%d because=the run's group_size is "
                "larger, or its reach_attempt_factor is not 1; such groups stay incomplete",
                most.prompt_id,
                most.attempt_count,
                fixed,
            )

    def _admit(self, batch: Batch) -> None:
        if self._resumed_steps:
            self._resumed_steps.popleft()
        share = self._share(batch)
        attempts = sum(self._attempts_per_prompt or served.attempt_count for served in share)
        if share:
            self._open.add(batch, unscored_count=-(-attempts // self._reporter_count))
        if len(self._open) > MAX_OPEN_BATCHES:
            self._open.forget_oldest()

    def _share(self, batch: Batch) -> Sequence[ServedPrompt]:
        whole = len(batch) - len(batch) % self._world_size
        return batch[self._rank : whole : self._world_size]

    def _give_back(self, batch: Batch) -> bool:
        """Whether the service was there."""
        try:
            self.client.release(batch)
        except CurriculumError as error:  # the leases expire by themselves
            _log.warning("batch not released batch=%s because=%s", batch.batch_id, error)
            return not isinstance(error, AWAY)
        return True

    def _timed(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        started_s = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.waited_s += time.perf_counter() - started_s


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InvalidRequestError(f"{name}={value}: must be at least 1")


def _check_share(prompt_count: int, *, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise InvalidRequestError(f"rank={rank}: must be in [0, {world_size - 1}]")
    if prompt_count % world_size:
        raise InvalidRequestError(
            f"prompt_count={prompt_count}: must be a multiple of world_size={world_size}"
        )


def _listed(values: PerAttempt) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
