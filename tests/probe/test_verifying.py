"""What the verifiers' verdicts become. What they are is tested in tests/probe/verifiers."""

from __future__ import annotations

import asyncio
import sys
import textwrap

import pytest
import reasoning_gym
from prometheus_client import REGISTRY

from curriculum_probe import progress, worker


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


SCORER = """
    import os, time

    def score(completion, payload):
        if completion == "crash": os._exit(3)
        if completion == "hang": time.sleep(1000)
        if completion == "hog": return len(bytearray(2**40))
        if completion == "raise": raise ValueError(completion)
        if completion == "nothing": return None
        return completion == "right"
"""
ERRORS = {
    "crash": "its process exited with code 3",
    "hang": "took longer than 1 s",
    "hog": "its process ran out of memory",
    "raise": "ValueError at scorer.py:8",
    "nothing": "answered NoneType: must be a number",
}


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    """A payload of a verifier that fails over some completions."""
    (tmp_path / "scorer.py").write_text(textwrap.dedent(SCORER))
    monkeypatch.syspath_prepend(tmp_path)
    return {"verifier": "python:scorer:score"}


def counted(name):
    return REGISTRY.get_sample_value(f"curriculum_probe_{name}_total")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory")
@pytest.mark.parametrize("error", ERRORS)
def test_however_a_verifier_fails_it_is_counted_and_shown_but_no_fail_of_the_model(
    probe, pool, endpoint, scorer, error, caplog
) -> None:
    pool.add("p", scorer)
    texts = iter(["right", error, "wrong", error, "right"])
    endpoint.answer = lambda _prompt: next(texts)
    before = {name: counted(name) for name in ("attempts", "passes", "verifier_errors")}
    assert probe(attempts=5, verifier_timeout=1) == 0

    assert (pool.attempts(), pool.passes()) == ({"p": 3}, {"p": 2})
    [window] = pool.prompt("p").history
    assert window.mean_reward == pytest.approx(2 / 3)
    assert pool.leased() == set()
    gained = {name: counted(name) - count for name, count in before.items()}
    assert gained == {"attempts": 3, "passes": 2, "verifier_errors": 2}
    [said] = [r.getMessage() for r in caplog.records if r.getMessage().startswith("round probed")]
    assert "attempts=3 passes=2 skipped=0 verifier_errors=2" in said
    assert f"verifier failed first=p because={ERRORS[error]}" in caplog.text


async def test_the_progress_shows_verifier_errors(monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0)
    shown = progress.Progress()
    showing = asyncio.create_task(shown.show())
    await asyncio.sleep(0)
    shown.add(progress.Tally(), verifier_error_count=2)
    await asyncio.sleep(0)
    showing.cancel()
    assert "probing tokens_per_s=" in caplog.text
    assert "verifier_errors=2" in caplog.text


def test_what_payloads_do_not_say_the_workers_defaults_do(probe, pool, endpoint) -> None:
    pool.add("with", {"answer": "x"})
    pool.add("without", {})
    pool.add("own", {"verifier": "exact", "answer": "right"})
    endpoint.answer = lambda _prompt: "so 5.5"
    defaults = ["verifier=numeric", "answer=5", "tolerance=1"]
    assert probe(verifier_default=defaults) == 0
    assert pool.attempts() == {"with": 0, "without": 8, "own": 8}
    assert pool.passes() == {"with": 0, "without": 8, "own": 0}


def test_a_default_verifier_that_is_none_is_refused_at_the_start(
    probe, pool, endpoint, error_line
) -> None:
    pool.add_rates(0.5)
    assert probe(verifier_default="verifier=maths") == 1
    assert "defaults: verifier='maths': must be one of exact, numeric" in error_line()
    assert (endpoint.requests, pool.leased()) == ([], set())


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


def test_a_verifier_that_cannot_be_loaded_costs_no_tokens(
    probe, pool, endpoint, scorer, caplog
) -> None:
    [probed] = pool.add_rates(1.0)
    for number in range(20):
        pool.add(f"1.0 missing {number}", scorer | {"verifier": "python:scorer:missing"})
    assert probe() == 0
    assert [request["prompt"] for request in endpoint.requests] == [probed]
    assert pool.leased() == set()
    assert caplog.text.count("prompts skipped first=") == 1
    assert "AttributeError: module 'scorer' has no attribute 'missing'" in caplog.text
    assert "skipped=20 verifier_errors=0" in caplog.text
