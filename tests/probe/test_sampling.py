"""From the endpoint's answers to the ledger's counts."""

from __future__ import annotations

import pytest

from tests.probe.bounds import most_off


def test_probed_pass_rates_are_the_endpoints_and_every_attempt_counts_once(
    probe, pool, endpoint, caplog
) -> None:
    rates = [0.0, 0.02, 0.1, 0.25, 0.5, 0.5, 0.75, 0.9, 0.98, 1.0]
    texts = pool.add_rates(*rates)
    n = 200
    assert probe(attempts=n, concurrency=4) == 0

    assert pool.attempts() == dict.fromkeys(texts, n)
    assert pool.passes() == {text: endpoint.right[text] for text in texts}
    for text, p in zip(texts, rates, strict=True):
        assert abs(pool.passes()[text] - n * p) <= most_off(n, p)
    passes = sum(endpoint.right.values())
    assert f"prompts=10 attempts=2000 passes={passes} skipped=0 verifier_errors=0" in caplog.text


def test_the_endpoint_is_asked_for_what_was_planned(probe, pool, endpoint) -> None:
    [text] = pool.add_rates(0.5)
    probe(max_tokens=33, temperature=0.7)
    wanted = {"model": "stub", "prompt": text, "n": 8, "max_tokens": 33, "temperature": 0.7}
    assert endpoint.requests == [wanted]


def test_an_endpoint_that_gives_fewer_choices_is_asked_again(probe, pool, endpoint) -> None:
    texts = pool.add_rates(0.5, 0.5)
    endpoint.max_choices = 3
    assert probe() == 0
    assert sorted(request["n"] for request in endpoint.requests) == [2, 2, 5, 5, 8, 8]
    assert pool.attempts() == dict.fromkeys(texts, 8)


@pytest.mark.parametrize(("tells_usage", "token_count"), [(True, 7 * 8 + 3), (False, 0)])
def test_tokens_are_counted_where_the_endpoint_tells_them(
    probe, pool, endpoint, tells_usage, token_count
) -> None:
    [text] = pool.add_rates(0.5)
    endpoint.tells_usage = tells_usage
    assert probe() == 0
    [window] = pool.prompt(text).history
    assert (window.attempt_count, window.token_count) == (8, token_count)


@pytest.mark.parametrize("failure", [(503, "busy"), (429, "slower"), (500, ""), (0, "")])
def test_a_busy_or_broken_endpoint_is_asked_again(probe, pool, endpoint, failure, caplog) -> None:
    texts = pool.add_rates(0.5, 0.5)
    endpoint.failures = [failure] * 3
    assert probe() == 0
    assert pool.attempts() == dict.fromkeys(texts, 8)
    assert len(endpoint.requests) == 5
    assert caplog.text.count("endpoint went away") == caplog.text.count("endpoint came back") > 0


def test_a_prompt_that_the_endpoint_refuses_is_skipped(probe, pool, endpoint, caplog) -> None:
    texts = pool.add_rates(0.5, 0.5, 0.5)
    endpoint.refused = {texts[0]}
    assert probe() == 0
    assert pool.attempts() == {texts[0]: 0, texts[1]: 8, texts[2]: 8}
    assert pool.leased() == set()
    assert "prompts=2 attempts=16" in caplog.text
    assert "prompts refused count=1 because=" in caplog.text
    assert "400: the prompt is too long" in caplog.text


def test_an_endpoint_that_refuses_everything_is_at_fault(probe, pool, endpoint, error_line) -> None:
    endpoint.refused = set(pool.add_rates(0.5, 0.5))
    assert probe() == 1
    assert error_line().endswith("/v1/completions: 400: the prompt is too long")
    assert pool.leased() == set()
