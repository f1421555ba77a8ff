"""Runs whose objective names channels, which verifiers do not give."""

from __future__ import annotations

from curriculum_api.v1 import run_pb2

CHANNELS = [
    run_pb2.Channel(name="style", min_value=0, max_value=1),
    run_pb2.Channel(name="explanation", min_value=0, max_value=10),
    run_pb2.Channel(name="entropy", min_value=0, max_value=1),
]


def test_a_run_whose_objective_names_channels_is_refused_before_anything_is_generated(
    probe, pool_of, endpoint, error_line
) -> None:
    pool = pool_of(channels=CHANNELS, objective={"reward": 0.7, "style": 0.2, "explanation": 0.1})
    texts = pool.add_rates(0.5, 0.5)
    assert probe(run=pool.run_id, rounds=2) == 1
    line = error_line()
    assert line.startswith(f"error: run_id={pool.run_id!r}: verifiers score attempts by a reward")
    assert "with the channels explanation, style: it cannot be probed" in line
    assert endpoint.requests == []
    assert pool.leased() == set()
    assert pool.attempts() == dict.fromkeys(texts, 0)


def test_a_run_whose_objective_is_the_reward_is_probed(probe, pool_of) -> None:
    pool = pool_of(channels=CHANNELS, objective={"reward": 3.0})
    texts = pool.add_rates(0.5, 0.5)
    assert probe(run=pool.run_id) == 0
    assert pool.attempts() == dict.fromkeys(texts, 8)
