"""How completions are sampled is the run's to say; flags are for what it does not say."""

from __future__ import annotations

import asyncio

import pytest

from curriculum_api.errors import InvalidRequestError, StoreUnavailableError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_probe import sampling
from curriculum_probe.sampling import Sampling, Watch, chosen


def a_run(**said):
    config = run_pb2.RunConfig(sampling=run_pb2.SamplingConfig(**said))
    return run_pb2.Run(run_id="math", config=config)


ALL = {"temperature": 0.0, "top_p": 0.9, "max_tokens": 7, "stop": ["a", "\n"], "chat": False}


def test_the_run_then_the_flags_then_the_defaults_say_how_to_sample() -> None:
    assert chosen(a_run(), {}) == Sampling()
    assert chosen(a_run(), dict.fromkeys(ALL)) == Sampling()
    assert chosen(a_run(**ALL), {}) == Sampling(**ALL | {"stop": ("a", "\n")})
    mixed = chosen(a_run(temperature=0.5), {"max_tokens": 3, "stop": ["x"], "chat": True})
    assert mixed == Sampling(temperature=0.5, max_tokens=3, stop=("x",), chat=True)


def test_every_field_of_the_contract_is_followed() -> None:
    names = [field.name for field in run_pb2.SamplingConfig.DESCRIPTOR.fields]
    assert set(names) == set(vars(Sampling())) == set(ALL)


def test_a_flag_may_say_what_the_run_says() -> None:
    used = chosen(a_run(**ALL), ALL | {"stop": ["\n", "a", "a"]})
    assert used == Sampling(**ALL | {"stop": ("a", "\n")})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            {"temperature": 0.7},
            "temperature=0.7: run_id='math' is sampled with temperature=0.0; leave the flag out, "
            "or change the run: curriculum runs update math --set sampling.temperature=0.7",
        ),
        ({"top_p": 1.0}, "top_p=1.0: run_id='math' is sampled with top_p=0.9;"),
        ({"max_tokens": 256}, "max_tokens=256: run_id='math' is sampled with max_tokens=7;"),
        (
            {"stop": ["a"]},
            """stop=["a"]: run_id='math' is sampled with stop=["a", "\\n"]; leave the flag out, """
            """or change the run: curriculum runs update math --set 'sampling.stop=["a"]'""",
        ),
        ({"chat": True}, "chat=true: run_id='math' is sampled with chat=false;"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_flag_that_contradicts_the_run_is_refused_with_both_values(flag, message) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        chosen(a_run(**ALL), flag)
    assert str(raised.value).startswith(message)


def test_the_endpoint_is_asked_as_the_run_says(probe, pool_of, endpoint, caplog) -> None:
    pool = pool_of(
        sampling=run_pb2.SamplingConfig(temperature=0.25, max_tokens=9, stop=["\n", "#"])
    )
    [text] = pool.add_rates(0.5)
    assert probe(run=pool.run_id, top_p=0.5) == 0
    wanted = {"model": "stub", "prompt": text, "n": 8, "max_tokens": 9, "temperature": 0.25}
    assert endpoint.requests == [wanted | {"top_p": 0.5, "stop": ["\n", "#"]}]
    said = f'sampling run={pool.run_id} temperature=0.25 top_p=0.5 max_tokens=9 stop=["\\n", "#"] '
    assert said + "chat=false" in caplog.text


def test_a_contradiction_is_refused_before_anything_is_asked(
    probe, pool_of, endpoint, error_line
) -> None:
    pool = pool_of(sampling=run_pb2.SamplingConfig(temperature=0.25))
    pool.add_rates(0.5)
    assert probe(run=pool.run_id, temperature=1) == 1
    line = error_line()
    assert "temperature=1.0: run_id=" in line
    assert "is sampled with temperature=0.25" in line
    assert (endpoint.requests, pool.leased()) == ([], set())


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_each_change_of_the_run_is_warned_of_once(caplog) -> None:
    watch = Watch(Sampling(temperature=0.5, stop=("a", "b")))
    same = a_run(temperature=0.5, stop=["b", "a"])
    for run in (same, a_run(), a_run(temperature=0.7, chat=True)):
        watch.look(run)
        watch.look(run)
    assert warnings(caplog) == [
        "sampling changed run=math temperature=0.7 chat=true; until this worker is restarted it "
        "samples with temperature=0.5 chat=false"
    ]
    for run in (same, a_run(temperature=0.7)):
        watch.look(run)
    assert len(warnings(caplog)) == 2


async def test_a_server_that_is_away_keeps_nobody_from_looking_again(monkeypatch, caplog) -> None:
    monkeypatch.setattr(sampling, "LOOK_AGAIN_S", 0.001)
    answers = iter([StoreUnavailableError("away"), a_run(), a_run(top_p=0.5)])
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read_run():
        answer = next(answers, None)
        if answer is None:
            loop.call_soon_threadsafe(seen.set)
            raise StoreUnavailableError("away")
        if isinstance(answer, Exception):
            raise answer
        return answer

    looking = asyncio.create_task(Watch(Sampling()).keep_looking(read_run))
    async with asyncio.timeout(30):
        await seen.wait()
    looking.cancel()
    assert len(warnings(caplog)) == 1


def test_a_worker_notices_that_its_run_is_changed(
    probe, pool, stubs, endpoint, monkeypatch, wait_until, caplog
) -> None:
    monkeypatch.setattr(sampling, "LOOK_AGAIN_S", 0.01)
    pool.add_rates(0.5)

    def change(_number):
        config = run_pb2.RunConfig(sampling=run_pb2.SamplingConfig(temperature=0.25))
        stubs.operator.UpdateRun(op.UpdateRunRequest(run_id=pool.run_id, config=config))
        wait_until(lambda: "sampling changed" in caplog.text)

    endpoint.on_request = change
    assert probe() == 0
    assert caplog.text.count("sampling changed") == 1
    assert endpoint.requests[0]["temperature"] == 1.0
