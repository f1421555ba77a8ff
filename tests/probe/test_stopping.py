"""Signals, sudden deaths, and a server that goes and comes back."""

from __future__ import annotations

import signal
import socket
import threading

import pytest
from google.protobuf.duration_pb2 import Duration


class Turnstile:
    """Answers so many requests of an endpoint, and holds the rest until it is opened."""

    def __init__(self, endpoint, free_count: int) -> None:
        self.held = threading.Event()
        self._free_count, self._open = free_count, threading.Event()
        endpoint.on_request = self._pass

    def open(self) -> None:
        self._open.set()

    def _pass(self, number: int) -> None:
        if number > self._free_count:
            self.held.set()
            assert self._open.wait(60)


@pytest.fixture
def turnstile(endpoint):
    made = []

    def make(free_count):
        made.append(Turnstile(endpoint, free_count))
        return made[0]

    yield make
    for each in made:
        each.open()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_sampled_finish_and_gives_back_the_rest(
    start, pool, endpoint, turnstile, wait_until, number
) -> None:
    texts = pool.add_rates(*[0.5] * 6)
    gate = turnstile(2)
    process = start(concurrency=16)  # two prompts of eight
    wait_until(lambda: len(endpoint.requests) == 4, 30)
    process.signal(number)
    wait_until(lambda: "stopping" in process.log)
    gate.open()

    assert process.end() == 0, process.log
    assert "prompts=4 attempts=32" in process.log
    assert sorted(pool.attempts().values()) == [0, 0, 8, 8, 8, 8]
    assert sum(pool.passes().values()) == sum(endpoint.right[text] for text in texts)
    assert pool.leased() == set()


def test_what_takes_longer_than_the_drain_is_given_up(start, pool, endpoint, turnstile) -> None:
    pool.add_rates(*[0.5] * 3)
    gate = turnstile(1)
    process = start(concurrency=16, drain=2)
    assert gate.held.wait(30)
    process.signal(signal.SIGTERM)
    assert process.end() == 0, process.log
    assert sorted(pool.attempts().values()) == [0, 0, 8]
    assert pool.leased() == set()


def test_a_second_signal_ends_at_once(start, pool, turnstile, wait_until) -> None:
    texts = pool.add_rates(*[0.5] * 3)
    gate = turnstile(0)
    process = start(drain=60)
    assert gate.held.wait(30)
    process.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in process.log)
    process.signal(signal.SIGTERM)
    assert process.end() == -signal.SIGTERM
    assert pool.leased() == set(texts)  # until they run out


def test_a_killed_worker_loses_only_what_it_had_not_reported(
    start, probe, pool_of, endpoint, turnstile, wait_until
) -> None:
    pool = pool_of(lease_ttl=Duration(seconds=3))
    texts = pool.add_rates(*[0.5] * 8)
    gate = turnstile(5)
    process = start(run=pool.run_id, concurrency=16)
    wait_until(lambda: sum(pool.attempts().values()) == 40, 30)
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    gate.open()

    before = pool.attempts()
    assert sorted(before.values()) == [0] * 3 + [8] * 5
    reported = [text for text in texts if before[text]]
    right = {text: endpoint.right[text] for text in reported}
    assert {text: pool.passes()[text] for text in reported} == right
    wait_until(lambda: pool.leased() == set())
    endpoint.right.clear()
    assert probe(run=pool.run_id) == 0
    assert pool.attempts() == {text: before[text] + 8 for text in texts}
    passes = {text: right.get(text, 0) + endpoint.right[text] for text in texts}
    assert pool.passes() == passes


def test_a_server_that_restarts_is_waited_for_and_nothing_counts_twice(
    probe, pool, endpoint, start_server, caplog
) -> None:
    texts = pool.add_rates(*[0.5] * 12)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    first = start_server(listen=address)

    def restart(number):
        if number == 6:
            first.stop()
            start_server(listen=address)

    endpoint.on_request = restart
    assert probe(server=address, prompts=4, rounds=3, concurrency=16) == 0
    assert sum(pool.attempts().values()) == 3 * 4 * 8  # a prompt may be worth another round
    assert pool.passes() == {text: endpoint.right[text] for text in texts}
    assert pool.leased() == set()
