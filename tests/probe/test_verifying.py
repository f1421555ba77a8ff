"""What the verifiers' verdicts become. What they are is tested in tests/probe/verifiers."""

from __future__ import annotations

import sys

import reasoning_gym

from curriculum_probe import worker


def test_unverifiable_prompts_are_skipped_and_given_back(probe, pool, endpoint, caplog) -> None:
    [probed] = pool.add_rates(1.0)
    pool.add("1.0 a", {}, "without")
    pool.add("1.0 b", {"verifier": "psychic"}, "unknown")
    pool.add("1.0 c", {"verifier": "psychic"}, "unknown too")
    assert probe() == 0

    assert pool.attempts() == {probed: 8, "without": 0, "unknown": 0, "unknown too": 0}
    assert pool.leased() == set()
    assert [request["prompt"] for request in endpoint.requests] == [probed]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert all(warning.startswith("prompts skipped first=") for warning in warnings)
    assert "skipped=3" in caplog.text


def test_a_verifier_error_is_neither_a_pass_nor_a_fail(probe, pool, endpoint, caplog) -> None:
    entry = reasoning_gym.create_dataset("prime_factorization", size=1, seed=0)[0]
    pool.add("p", {"verifier": "reasoning_gym", "task": "prime_factorization", "entry": entry})
    texts = iter([entry["answer"], "what?"] * 5)  # its verifier raises on what is no number
    endpoint.answer = lambda _prompt: next(texts)
    assert probe(attempts=10) == 0

    assert (pool.attempts(), pool.passes()) == ({"p": 5}, {"p": 5})
    assert pool.leased() == set()
    assert "attempts=5 passes=5 skipped=0 verifier_errors=5" in caplog.text
    assert caplog.text.count("verifier failed first=p because=ValueError") == 1


def test_partial_scores_pass_by_the_runs_threshold(probe, pool_of, endpoint) -> None:
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=0)[0]
    payload = {"verifier": "reasoning_gym", "task": "chain_sum", "entry": entry}
    strict, lenient = pool_of(), pool_of(pass_threshold=0.01)
    endpoint.answer = lambda _prompt: f"{entry['answer']} or so"  # scores between 0 and 1
    for pool in (strict, lenient):
        pool.add("p", payload)
        assert probe(run=pool.run_id) == 0
    assert (strict.passes(), lenient.passes()) == ({"p": 0}, {"p": 8})
    [window] = strict.prompt("p").history
    assert 0 < window.mean_reward < 1


def test_a_missing_library_is_named(probe, pool, endpoint, monkeypatch, caplog) -> None:
    pool.add("p", {"verifier": "reasoning_gym", "task": "chain_sum", "entry": {}})
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert probe() == 0
    assert "needs reasoning_gym: pip install 'edge-curriculum[probe]'" in caplog.text
    assert (endpoint.requests, pool.leased()) == ([], set())


def test_a_prompt_whose_verifier_always_fails_is_not_sampled_again(
    probe, pool, endpoint, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.01)
    entry = reasoning_gym.create_dataset("prime_factorization", size=1, seed=0)[0]
    pool.add("p", {"verifier": "reasoning_gym", "task": "prime_factorization", "entry": entry})
    endpoint.answer = lambda _prompt: "what?"
    assert probe(rounds=4) == 0
    assert len(endpoint.requests) == 1
    assert pool.attempts() == {"p": 0}
    assert pool.leased() == set()
    assert "attempts=0 passes=0 skipped=0 verifier_errors=8" in caplog.text
    assert caplog.text.count("verifier failed first=p because=ValueError") == 1
    assert caplog.text.count("pausing") == 2  # of the three rounds that follow


def test_prompts_that_cannot_be_verified_do_not_keep_the_others_away(
    probe, pool, endpoint, monkeypatch, caplog
) -> None:
    """They stay the least certain, so that they are leased first for ever."""
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.01)
    texts = pool.add_rates(1.0, 1.0, 1.0)
    assert probe(attempts=64, rounds=2) == 0
    for number in range(6):
        pool.add(f"1.0 unverifiable {number}", {})
    endpoint.requests.clear()
    assert probe(prompts=2, rounds=12) == 0
    assert {request["prompt"] for request in endpoint.requests} == set(texts)
    assert pool.leased() == set()
    assert 1 <= caplog.text.count("pausing") <= 4


def test_a_lease_of_nothing_that_can_be_verified_is_followed_by_growing_pauses(
    probe, pool, endpoint, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.01)
    pool.add("1.0", {})
    assert probe(rounds=4) == 0
    assert endpoint.requests == []
    assert pool.leased() == set()
    pauses = [r.getMessage() for r in caplog.records if "pausing" in r.message]
    assert pauses == [f"pausing pause_s={pause_s}" for pause_s in (0.01, 0.02, 0.04)]
