"""Asks for one batch after another, now or in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any

from curriculum_api.status import AWAY
from curriculum_client import _forks
from curriculum_client._batch import Batch
from curriculum_client._client import TrainerClient


class Lookahead:
    """At most one request is under way. What failed is asked for again as it was, also if the step
    is another one by then, or ranks that ask for the same batches would drift apart."""

    def __init__(
        self, client: TrainerClient, prompt_count: int, rollout_budget: int | None
    ) -> None:
        self._client = client
        self._prompt_count = prompt_count
        self._rollout_budget = rollout_budget
        self._failed_step: int | None = None
        self._ahead: Future[Batch] | None = None
        _forks.watch(self)

    def start(self, policy_step: int) -> None:
        """Ask in the background, unless that was done."""
        if self._ahead is None:
            ahead: Future[Batch] = Future()
            arguments = (ahead, self._ask, policy_step)
            threading.Thread(target=_fulfil, args=arguments, daemon=True).start()
            self._ahead = ahead

    def take(self, policy_step: int) -> Batch:
        """What was asked for in the background, or else what is served now."""
        if self._ahead is not None:
            wait_for([self._ahead])  # before it is let go of: Ctrl-C or a fork may come meanwhile
            ahead, self._ahead = self._ahead, None
            # The service may be back by now, and the pool have more; and nobody wants what is from
            # before a rollback.
            if not isinstance(ahead.exception(), AWAY):
                batch = ahead.result()
                if batch and not batch.is_fallback and batch.timeline == self._client.timeline:
                    return batch
        return self._ask(policy_step)

    def peek(self) -> Batch | None:
        """What was asked for in the background, once it is there; None where that is nothing."""
        if self._ahead is None or self._ahead.exception():
            return None
        batch = self._ahead.result()
        return batch if batch and not batch.is_fallback else None

    def drop(self) -> None:
        """Forget what was asked for in the background, once it is there."""
        self.peek()  # until then it takes numbers of the client's
        self._ahead, self._failed_step = None, None

    def __getstate__(self) -> dict[str, Any]:
        fetched = self.peek() if self._ahead and self._ahead.done() else None
        return {**vars(self), "_ahead": fetched}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fetched = state.pop("_ahead")
        vars(self).update(state, _ahead=None)
        if fetched is not None:
            self._ahead = Future()
            self._ahead.set_result(fetched)
        _forks.watch(self)

    def before_fork(self) -> None:
        """Wait: grpc does not survive a fork amid a call, and the child has the batch too then."""
        if self._ahead is not None:
            wait_for([self._ahead])

    def after_fork(self) -> None:
        """Nothing: what was asked for is there."""

    def _ask(self, policy_step: int) -> Batch:
        if self._failed_step is not None:
            policy_step = self._failed_step
        self._failed_step = policy_step
        batch = self._client.next_batch(
            self._prompt_count, policy_step=policy_step, rollout_budget=self._rollout_budget
        )
        self._failed_step = None
        return batch


def _fulfil(future: Future[Batch], ask: Callable[[int], Batch], policy_step: int) -> None:
    try:
        future.set_result(ask(policy_step))
    except BaseException as error:  # the boundary of the thread: whoever waits shall have it
        future.set_exception(error)
