"""What is a pass, a fail, or neither."""

from __future__ import annotations

import json
import sys

import pytest
import reasoning_gym

from curriculum_probe import main as launcher
from curriculum_probe.verifiers import UnverifiableError, scorer_for


@pytest.mark.parametrize(
    ("payload", "right", "wrong"),
    [
        ({"answer": "yes"}, ["yes", " yes\n"], ["Yes", "yes.", "", "no"]),
        ({"answer": 42}, ["42"], ["42.0", "the answer is 42"]),
        ({"verifier": "exact", "answer": " a b "}, ["a b"], ["ab"]),
        (
            {"verifier": "numeric", "answer": 1234},
            ["1234", "so it is 1,234.", "12 + 1222 = 1234", "1.234e3", "x = +1234.0000"],
            ["1234 or 5", "-1234", "1235", "1.234", "no number", "", "9e999999999999999999"],
        ),
        (
            {"verifier": "numeric", "answer": "-0.5"},
            ["-0.5", "-.5", "\N{MINUS SIGN}0.50"],
            ["0.5", "1-0.5", "-0.5001"],
        ),
        ({"verifier": "numeric", "answer": "6 * 7 = 42 #### 42"}, ["#### 42"], ["41"]),
        ({"verifier": "numeric", "answer": 10**40}, [str(10**40)], [str(10**40 + 1)]),
        ({"verifier": "numeric", "answer": 1e-9}, ["0.000000001"], ["0", "2e-9"]),
        ({"verifier": "numeric", "answer": 3, "tolerance": 0.5}, ["3.5", "2.5"], ["3.6"]),
    ],
)
def test_completions_are_scored(payload, right, wrong) -> None:
    score = scorer_for(json.dumps(payload))
    assert [score(completion) for completion in right] == [1.0] * len(right)
    assert [score(completion) for completion in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "the payload has neither a verifier nor an answer"),
        ({"verifier": "psychic", "answer": 1}, "'psychic': must be one of exact, numeric, reas"),
        ({"verifier": ["exact"], "answer": 1}, "must be one of"),
        ({"answer": None}, "answer must be text or a number"),
        ({"answer": True}, "answer must be text or a number"),
        ({"verifier": "numeric", "answer": "many"}, "answer must hold a number"),
        ({"verifier": "numeric", "answer": [1]}, "answer must hold a number"),
        ({"verifier": "numeric", "answer": 1, "tolerance": -1}, "tolerance must be"),
        ({"verifier": "reasoning_gym", "task": "chain_sum"}, "must have a task, an entry"),
        ({"verifier": "reasoning_gym", "task": "alchemy", "entry": {}}, "'alchemy' not registered"),
        (
            {"verifier": "reasoning_gym", "task": "chain_sum", "entry": {}, "config": {"x": 1}},
            "unexpected keyword",
        ),
    ],
)
def test_a_payload_that_cannot_be_used_says_so(payload, message) -> None:
    with pytest.raises(UnverifiableError, match=message):
        scorer_for(json.dumps(payload) if payload else "")


# The library that brings the boards of arc_agi leaves files open.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("task", ["chain_sum", "arc_agi", "rearc", "kakurasu", "spell_backward"])
def test_a_reasoning_gym_entry_from_json_scores_as_the_original(task) -> None:
    dataset = reasoning_gym.create_dataset(task, size=2, seed=1)
    entry, other = dataset[0], dataset[1]
    score = scorer_for(json.dumps({"verifier": "reasoning_gym", "task": task, "entry": entry}))
    assert score(entry["answer"]) == 1.0
    assert score(f"I think <answer>{entry['answer']}</answer>.") == 1.0
    assert score(other["answer"]) == dataset.score_answer(other["answer"], entry) < 1.0


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


def test_a_missing_extra_is_named(command, pool, monkeypatch) -> None:
    pool.add("p", {"verifier": "reasoning_gym", "task": "chain_sum", "entry": {}})
    monkeypatch.delitem(sys.modules, "curriculum_probe.verifiers.reasoning_gym", raising=False)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setattr(sys, "argv", ["curriculum-probe", *command()])
    with pytest.raises(SystemExit, match="needs reasoning_gym: pip install"):
        launcher.main()
    assert pool.leased() == set()
