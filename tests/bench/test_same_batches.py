"""What the benchmarks say is what a trainer gets: the arm and a server, side by side."""

from __future__ import annotations

import numpy as np

from curriculum import SelectionConfig
from curriculum.description import Descriptions
from curriculum.features import design_matrix
from curriculum_api.v1 import batch_pb2, prompt_pb2
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_server.engine.composing import generator
from tests.bench.arms import Edge, Rollouts, Task

PROMPTS, DOMAINS, B, G, SEED = 400, 2, 16, 8, 7
STEPS = 40
RESERVES = {"review_share": 0.05, "reach_share": 0.05}  # so that a short run has some of them


class Twin:
    """Rolls out what the arm asks for, and sees to it that a trainer of the server was asked the
    same: as `draw` of `Rollouts`."""

    def __init__(self, stubs, run_id, rate_N):
        self._stubs, self._run_id, self._rate_N = stubs, run_id, rate_N
        self._rng = np.random.default_rng(3)
        self.step = 0
        self.reasons = set()

    def __call__(self, index_M, attempts_M):
        request = tr.NextBatchRequest(
            run_id=self._run_id,
            request_id=f"train-{self.step}",
            prompt_count=B,
            policy_step=self.step,
        )
        batch = self._stubs.trainer.NextBatch(request).batch
        served = [(int(p.prompt.prompt_id[1:]), p.attempt_count) for p in batch.prompts]
        assert served == list(zip(index_M.tolist(), attempts_M.tolist(), strict=True))
        self.reasons.update(p.reason for p in batch.prompts)
        passes_M = self._rng.binomial(attempts_M, self._rate_N[index_M])
        outcomes = batch_pb2.Outcomes()
        for slot, (attempts, passes) in enumerate(zip(attempts_M, passes_M, strict=True)):
            outcomes.slots.extend([slot] * attempts)
            outcomes.rewards.extend([1.0] * passes + [0.0] * (attempts - passes))
        self._stubs.trainer.ReportOutcomes(
            tr.ReportOutcomesRequest(
                run_id=self._run_id,
                request_id=f"report-{self.step}",
                batch_id=batch.batch_id,
                policy_step=self.step,
                outcomes=outcomes,
            )
        )
        return np.repeat(passes_M[:, None], 4, axis=1).astype(float)


def test_the_arm_and_a_server_serve_the_same_batches(stubs, new_run):
    rng = np.random.default_rng(1)
    digits_N = rng.integers(1, 30, PROMPTS)
    rate_N = 1.0 / (1.0 + np.exp(0.4 * (digits_N - 12) + rng.normal(0.0, 1.5, PROMPTS)))
    prompts = [
        prompt_pb2.Prompt(
            prompt_id=f"p{i}",
            domain=f"d{i % DOMAINS}",
            text=f"Write {digits} digits",
            features={"digits": float(digits)},
            tags=["long"] if digits > 15 else [],
        )
        for i, digits in enumerate(digits_N)
    ]
    run_id = new_run(seed=SEED, selection=RESERVES)
    stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=run_id, prompts=prompts))
    descriptions = Descriptions(
        texts=[p.text.encode() for p in prompts],
        attributes=[dict(p.features) for p in prompts],
        tags=[list(p.tags) for p in prompts],
        embeddings=[None] * PROMPTS,
    )
    features_NK = design_matrix(descriptions).values_NK
    task = Task(np.arange(PROMPTS, dtype=np.int32) % DOMAINS, DOMAINS, features_NK, B, G)
    twin = Twin(stubs, run_id, rate_N)
    arm, rollouts = Edge(task, rng, config=SelectionConfig(**RESERVES)), Rollouts(twin, PROMPTS)
    for step in range(STEPS):
        twin.step = step
        arm.rng = generator(SEED, f"train-{step}")
        arm.step(step, rollouts)
    assert {batch_pb2.REASON_EDGE, batch_pb2.REASON_EXPLORE, batch_pb2.REASON_REACH} <= twin.reasons
