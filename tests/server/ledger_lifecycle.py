"""What becomes of a run beside its batches, as rules: checkpoints, rollbacks, configuration."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_api.v1 import trainer_service_pb2 as tr
from tests.server.ledger_calls import LedgerCalls, lags, picks, recent, rows
from tests.server.ledger_world import answer

configs = st.fixed_dictionaries(
    {},
    optional={
        "group_size": st.integers(2, 3),
        "window_steps": st.integers(1, 2),
        "lease_ttl_s": st.sampled_from([100, 140]),
    },
)


class LedgerLifecycle(LedgerCalls):
    """Checkpoints, rollbacks and changes of the run."""

    def __init__(self):
        super().__init__()
        self.rollbacks: list[tuple[tr.RollbackRequest, tr.RollbackResponse]] = []

    # Checkpoints

    def checkpoint_request(self, lag: int) -> tr.CheckpointRequest:
        newest = self.model.marks[-1].step if self.model.marks else 0
        mark = run_pb2.Checkpoint(
            name=f"mark-{next(self.numbers)}", policy_step=max(newest, self.model.policy_step - lag)
        )
        timeline = self.model.timeline
        return tr.CheckpointRequest(run_id=self.run_id, checkpoint=mark, timeline=timeline)

    def mark(self, request: tr.CheckpointRequest, pick: int) -> Any:
        """The names and steps that are kept, or the status with which it is refused."""
        response = answer(self.server(pick).stubs.trainer.Checkpoint, request)
        if isinstance(response, str):
            return response
        return [(mark.name, mark.policy_step) for mark in response.checkpoints]

    def kept(self) -> list[tuple[str, int]]:
        return [(mark.name, mark.step) for mark in self.model.marks]

    @rule(lag=lags, pick=picks)
    def checkpoint(self, lag, pick):
        request, low = self.checkpoint_request(lag), self.open_from()
        answered = self.mark(request, pick)
        if request.checkpoint.policy_step < low:
            assert answered == "INVALID_ARGUMENT"
        else:
            mark = request.checkpoint
            self.model.checkpoint(mark.name, mark.policy_step, self.now_s())
            assert answered == self.kept()

    @rule(which=recent, pick=picks)
    def checkpoint_again(self, which, pick):
        if not self.model.marks:
            return
        known = self.model.marks[which % len(self.model.marks)]
        request = self.checkpoint_request(0)
        request.checkpoint.name, request.checkpoint.policy_step = known.name, known.step
        assert self.mark(request, pick) == self.kept()
        request.checkpoint.policy_step += 1
        assert self.mark(request, pick) == "ALREADY_EXISTS"
        before = self.checkpoint_request(0)
        before.checkpoint.policy_step = max(0, self.model.marks[-1].step - 1)
        if before.checkpoint.policy_step < self.model.marks[-1].step:
            assert self.mark(before, pick) == "FAILED_PRECONDITION"

    @rule(which=recent, pick=picks)
    def delete_checkpoint(self, which, pick):
        if not self.model.marks:
            return
        gone = self.model.marks.pop(which % len(self.model.marks))
        request = tr.DeleteCheckpointRequest(run_id=self.run_id, checkpoint_name=gone.name)
        response = answer(self.server(pick).stubs.trainer.DeleteCheckpoint, request)
        assert [(mark.name, mark.policy_step) for mark in response.checkpoints] == self.kept()

    # Rollbacks

    def rollback_request(self, which: int) -> tr.RollbackRequest:
        mark = self.model.marks[-1 - which % len(self.model.marks)]
        name = f"rollback-{next(self.numbers)}"
        return tr.RollbackRequest(run_id=self.run_id, request_id=name, checkpoint_name=mark.name)

    def rolled_back(self, request: tr.RollbackRequest, response: Any) -> None:
        (mark,) = (m for m in self.model.marks if m.name == request.checkpoint_name)
        self.model.rollback(mark)
        assert (response.timeline, response.policy_step) == (self.model.timeline, mark.step)
        self.rollbacks.append((request, response))

    @rule(which=recent, pick=picks, rows=rows, is_report=st.booleans())
    def rollback(self, which, pick, rows, is_report):
        """And a call through a server that has not heard of it."""
        if not self.model.marks:
            return
        self.lease("trainer-a", 3, 0, 1 - pick)
        request = self.rollback_request(which)
        response = answer(self.server(pick).stubs.trainer.Rollback, request)
        self.rolled_back(request, response)
        if is_report:
            self.report(0, rows, set(), 0, 1 - pick)
        else:
            self.lease("trainer-a", 2, 0, 1 - pick)

    @rule(which=recent, pick=picks)
    def rollback_again(self, which, pick):
        if not self.rollbacks:
            return
        request, response = self.rollbacks[-1 - which % len(self.rollbacks)]
        call = self.server(pick).stubs.trainer.Rollback
        assert answer(call, request) == response
        other = tr.RollbackRequest()
        other.CopyFrom(request)
        other.checkpoint_name = "another"
        assert answer(call, other) == "ALREADY_EXISTS"

    # The run

    @rule(count=st.integers(1, 3), pick=picks)
    def add(self, count, pick):
        self.add_prompts(count, pick)

    @rule(step=st.integers(-1, 2), pick=picks)
    def publish(self, step, pick):
        step = max(self.open_from(), self.model.policy_step + step)
        uri = f"/weights/{next(self.numbers)}"
        self.server(pick).publish(step, uri)
        if self.model.policy is None or step >= self.model.policy[0]:
            self.model.policy = (step, uri)

    @rule(config=configs, pick=picks)
    def update(self, config, pick):
        request = self.update_request(config)
        assert not isinstance(answer(self.server(pick).stubs.operator.UpdateRun, request), str)

    def update_request(self, config: dict[str, int]) -> op.UpdateRunRequest:
        """A change of configuration, which the model has made from here on."""
        changes: dict[str, Any] = {}
        for name, value in config.items():
            setattr(self.model, name, value)
            if name == "group_size":
                changes["selection"] = run_pb2.SelectionConfig(group_size=value)
            elif name == "lease_ttl_s":
                changes["lease_ttl"] = {"seconds": value}
            else:
                changes[name] = value
        return op.UpdateRunRequest(run_id=self.run_id, config=run_pb2.RunConfig(**changes))
