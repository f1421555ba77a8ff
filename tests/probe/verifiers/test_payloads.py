"""What a payload may ask for."""

from __future__ import annotations

import json
import sys

import pytest

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_probe.verifiers import UnverifiableError
from curriculum_probe.verifiers.pool import VerifierPool

ALLOWED = "exact, numeric, regex, choice, math, reasoning_gym, http, python:module:function"
GYM = {"verifier": "reasoning_gym", "task": "chain_sum", "entry": {}}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "the payload has neither a verifier nor an answer"),
        ([1], "the payload is not a JSON object"),
        ({"verifier": "psychic", "answer": 1}, f"'psychic': must be one of {ALLOWED}"),
        ({"verifier": ["exact"], "answer": 1}, "must be one of"),
        ({"answer": None}, "answer must be text or a number"),
        ({"answer": True}, "answer must be text or a number"),
        ({"verifier": "numeric", "answer": "many"}, "answer must hold a number"),
        ({"verifier": "numeric", "answer": [1]}, "answer must hold a number"),
        ({"verifier": "numeric", "answer": 1, "tolerance": -1}, "tolerance must be"),
        ({"verifier": "regex", "answer": 1}, "pattern must be text"),
        ({"verifier": "regex", "pattern": "x" * 10_001}, "pattern must be text"),
        ({"verifier": "regex", "pattern": "(", "answer": 1}, "pattern: missing )"),
        ({"verifier": "regex", "pattern": "(a)", "group": 2}, "group=2: must be one of 0, 1"),
        ({"verifier": "regex", "pattern": "(?P<n>a)", "group": "m"}, "must be one of 0, 1, n"),
        ({"verifier": "regex", "pattern": "a", "group": [0]}, "must be one of 0"),
        ({"verifier": "regex", "pattern": "a", "group": True}, "must be one of 0"),
        ({"verifier": "regex", "pattern": "a", "answer": True}, "answer must be text or a number"),
        ({"verifier": "choice", "answer": 1}, "answer must be a letter, or one of its choices"),
        ({"verifier": "choice", "answer": "Rome"}, "answer must be a letter"),
        ({"verifier": "choice", "answer": "C", "choices": ["x", "y"]}, "answer must be a letter"),
        ({"verifier": "choice", "answer": "A", "choices": "xy"}, "must be a list of texts"),
        ({"verifier": "choice", "answer": "A", "choices": ["x", "X"]}, "2 to 26 different texts"),
        ({"verifier": "math", "answer": " "}, "answer must be text or a number"),
        ({"verifier": "math", "answer": float("inf")}, "answer must be text or a number"),
        ({"verifier": "reasoning_gym", "task": "chain_sum"}, "must have a task, an entry"),
        ({"verifier": "http"}, "url must be such as http://"),
        ({"verifier": "http", "url": "ftp://a"}, "url must be such as http://"),
        ({"verifier": "http", "url": "http://a:b/"}, "url must be such as http://"),
        ({"verifier": "python:f"}, "must be python:module:function"),
        ({"verifier": "python:a b:f"}, "must be python:module:function"),
        ({"verifier": "python:builtins:exec"}, "must not be in the standard library"),
        ({"verifier": "python:no_such_module.x:f"}, "there is no module 'no_such_module'"),
    ],
)
async def test_a_payload_that_cannot_be_used_is_refused_at_once(
    open_pool, children_now, payload, message
) -> None:
    pool, before = await open_pool(), children_now()
    for payload_json in [json.dumps(payload)] + ([""] if payload == {} else []):
        with pytest.raises(UnverifiableError) as raised:
            pool.check(payload_json)
        assert message in str(raised.value)
        [verdict] = await pool.verify(payload_json, ["x"])
        assert (verdict.score, verdict.because) == (None, str(raised.value))
    assert children_now() == before


@pytest.mark.parametrize("payload_json", ["{", "[" * 100_000, '{"answer": 1' + "0" * 5000 + "}"])
async def test_a_payload_that_is_no_json_is_refused(open_pool, payload_json) -> None:
    with pytest.raises(UnverifiableError, match="not a JSON object"):
        (await open_pool()).check(payload_json)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (GYM | {"task": "alchemy"}, "'alchemy' not registered"),
        (GYM | {"config": {"x": 1}}, "unexpected keyword"),
        ({"verifier": "math", "answer": "$$"}, "holds no mathematics"),
        ({"verifier": "python:mine:missing"}, "AttributeError: module 'mine' has no attribute"),
        ({"verifier": "python:mine.deeper:f"}, "ModuleNotFoundError: No module named"),
        ({"verifier": "python:mine:number"}, "is not a function"),
        ({"verifier": "python:broken:f"}, "RuntimeError: at import"),
        ({"verifier": "python:missing_file:f"}, "FileNotFoundError"),
        ({"verifier": "python:leaving:f"}, "SystemExit"),
        ({"verifier": "python:crashing:f"}, "its process exited with code 3"),
    ],
)
async def test_what_only_loading_a_verifier_shows_is_told_by_preparing(
    open_pool, user_code, payload, message
) -> None:
    user_code("mine", "number = 1")
    user_code("broken", "raise RuntimeError('at import')")
    user_code("missing_file", "open('/no/such/file')")
    user_code("leaving", "raise SystemExit(0)")
    user_code("crashing", "import os; os._exit(3)")
    pool, payload_json = await open_pool(), json.dumps(payload)
    await pool.prepare('{"answer": 1}')
    pool.check(payload_json)
    with pytest.raises(UnverifiableError, match=message):
        await pool.prepare(payload_json)
    verdicts = await pool.verify(payload_json, ["a", "b"])
    assert [verdict.score for verdict in verdicts] == [None, None]
    assert all(message in verdict.because for verdict in verdicts)
    assert not {"mine", "broken", "missing_file"} & sys.modules.keys()


async def test_what_a_payload_does_not_say_the_defaults_do(open_pool) -> None:
    pool = await open_pool(defaults={"verifier": "numeric", "tolerance": 1})
    payloads = [
        '{"answer": 5}',
        '{"answer": 5, "tolerance": 0}',
        '{"verifier": "exact", "answer": 5}',
    ]
    verdicts = [(await pool.verify(payload, ["= 6", "= 5", "5"])) for payload in payloads]
    found = [[verdict.score for verdict in answered] for answered in verdicts]
    assert found == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("name", ["maths", 7, None, "python:os:system"])
async def test_a_default_verifier_that_is_none_is_refused(open_pool, name) -> None:
    with pytest.raises(InvalidRequestError, match="defaults: verifier="):
        await open_pool(defaults={"verifier": name})


async def test_a_missing_library_is_named_before_anything_is_generated(
    open_pool, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    pool = await open_pool()
    with pytest.raises(UnverifiableError, match=r"needs math_verify: pip install 'edge-curr"):
        pool.check('{"verifier": "math", "answer": 1}')


async def test_an_installed_package_adds_verifiers_by_name(
    open_pool, user_code, user_package
) -> None:
    user_code("by_module", "def prepare(payload): return lambda text: len(text) / payload['most']")
    user_code(
        "by_object",
        """
        class Contains:
            def prepare(self, payload):
                return lambda text: payload["word"] in text

        contains = Contains()
        """,
    )
    user_package("mine", "length = by_module\ncontains = by_object:contains")
    pool = await open_pool()
    verdicts = await pool.verify('{"verifier": "length", "most": 4}', ["a", "aaaa", "aaaaa"])
    assert [verdict.score for verdict in verdicts] == [0.25, 1.0, 1.0]
    verdicts = await pool.verify('{"verifier": "contains", "word": "b"}', ["abc", "ac"])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0]
    with pytest.raises(UnverifiableError, match=r"http, (length|contains), (length|contains), py"):
        pool.check('{"verifier": "psychic"}')
    assert not {"by_module", "by_object"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["exact = a"], "verifier 'exact' of one: the name is a built-in verifier's"),
        (["python:a:b = a"], "verifier 'python:a:b' of one: the name is a built-in verifier's"),
        (
            ["mine = a", "mine = b"],
            "verifier 'mine' of (one|two): verifier 'mine' of (one|two) has",
        ),
    ],
)
def test_two_verifiers_of_one_name_are_refused(user_package, names, message) -> None:
    for distribution, entry_points in zip(["one", "two"], names, strict=False):
        user_package(distribution, entry_points)
    with pytest.raises(StateError, match=message):
        VerifierPool(process_count=1, timeout_s=1, memory_bytes=2**30)


@pytest.mark.parametrize(
    "setting",
    [
        *[{"process_count": 0}, {"timeout_s": 0}, {"timeout_s": float("inf")}],
        *[{"memory_bytes": 1}, {"defaults": {"url": b"x"}}],
    ],
)
def test_a_setting_that_cannot_be_kept_is_refused(setting) -> None:
    [name] = setting
    with pytest.raises(InvalidRequestError, match=name):
        VerifierPool(**{"process_count": 1, "timeout_s": 1, "memory_bytes": 2**30} | setting)
