"""A user's reward server gives the scores, or fails."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

Answer = Callable[[Any, asyncio.StreamWriter], Awaitable[None]]


class RewardServer:
    """Scores a completion that is a number by that number; sends others as the answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.open_count = self.most_open_count = 0
        self.delay_s = 0.0
        self.tells_length = True
        self.url = ""
        self.failures: list[str] = []
        """Answers to what comes first, whatever it is."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_count += 1
        self.most_open_count = max(self.most_open_count, self.open_count)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].split("\r")[0])
            request = json.loads(await reader.readexactly(length))
            self.requests.append((head, request))
            first = self.failures.pop(0) if self.failures else request["completion"]
            await self._answer(first, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_count -= 1
            writer.close()

    async def _answer(self, completion: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.delay_s)
        status = "200 OK"
        try:
            body = json.dumps({"score": float(completion), "more": 1})
        except ValueError:
            status, _, body = completion.partition("|")
        if status == "hang":
            await asyncio.sleep(1000)
        if status == "break":
            return
        length = f"Content-Length: {len(body)}\r\n" if self.tells_length else ""
        if status == "chunked":
            status, length = "200 OK", "Transfer-Encoding: chunked\r\n"
            body = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{length}\r\n{body}".encode())
        await writer.drain()


@pytest.fixture
async def server():
    made = RewardServer()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as listening:
        made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/score?key=secret"
        yield made


@pytest.mark.parametrize("tells_length", [True, False])
async def test_a_reward_server_gives_the_scores(open_pool, server, children_now, tells_length):
    before, pool, server.tells_length = children_now(), await open_pool(), tells_length
    payload = {"verifier": "http", "url": server.url, "answer": "ü"}
    completions = ["0.25", "1", "-3", "7", 'chunked|{"score": true}']
    verdicts = await pool.verify(json.dumps(payload), completions)
    assert [verdict.score for verdict in verdicts] == [0.25, 1.0, 0.0, 1.0, 1.0]
    assert sorted(request["completion"] for _, request in server.requests) == sorted(completions)
    head, request = server.requests[0]
    assert request["payload"] == payload
    assert head.startswith("POST /score?key=secret HTTP/1.1\r\nHost: 127.0.0.1:")
    assert children_now() == before


async def test_a_url_may_hold_a_password(open_pool, server) -> None:
    url = server.url.replace("http://", "http://me:pass%20word@").replace("/score", "/my score")
    [verdict] = await (await open_pool(defaults={"url": url})).verify(
        '{"verifier": "http"}', ["500 Broken|"]
    )
    [(head, _)] = server.requests
    assert head.startswith("POST /my%20score?key=secret HTTP/1.1\r\n")
    assert "\r\nAuthorization: Basic bWU6cGFzcyB3b3Jk\r\n" in head  # me:pass word
    assert verdict.because == "http://127.0.0.1/my score: answered 500"


async def test_the_worker_may_say_where_the_server_is(open_pool, server) -> None:
    pool = await open_pool(defaults={"verifier": "http", "url": server.url})
    assert [verdict.score for verdict in await pool.verify("{}", ["0.5"])] == [0.5]


@pytest.mark.parametrize(
    ("completion", "because"),
    [
        ("503 Busy|{}", "answered 503"),
        ("500 Broken|{}", "answered 500"),
        ("302 Found|{}", "answered 302"),
        ("200 OK|so so", "JSONDecodeError"),
        ("200 OK|[]", 'answered without {"score": …}'),
        ("200 OK|{}", 'answered without {"score": …}'),
        ('200 OK|{"score": "1"}', "answered str: must be a number"),
        ('200 OK|{"score": null}', "answered NoneType: must be a number"),
        ('200 OK|{"score": NaN}', "answered nan: must be finite"),
        ("200 OK|" + " " * 100_000 + '{"score": 1}', "answered more than 65536 bytes"),
        ("200 OK\r\nX: " + "a" * 100_000 + "|", "answered more than 65536 bytes"),
        ("hang", "took longer than 1 s"),
        ("break", "IncompleteReadError"),
        ("what|", "BadStatusLine"),
    ],
)
async def test_what_a_server_does_wrong_is_a_verifier_error(
    open_pool, server, completion, because
) -> None:
    pool = await open_pool(timeout_s=1.0)
    payload = json.dumps({"verifier": "http", "url": server.url})
    verdicts = await pool.verify(payload, ["1", completion, "0"])
    assert [verdict.score for verdict in verdicts] == [1.0, None, 0.0]
    assert verdicts[1].because == f"http://127.0.0.1/score: {because}"


async def test_a_server_that_is_away_is_a_verifier_error(open_pool, unused_tcp_port) -> None:
    payload = json.dumps({"verifier": "http", "url": f"http://127.0.0.1:{unused_tcp_port}"})
    [verdict] = await (await open_pool(timeout_s=0.5)).verify(payload, ["1"])
    assert verdict.score is None
    assert verdict.because.startswith("http://127.0.0.1: ")


@pytest.mark.parametrize("failure", ["429 Slower|", "502 Bad|", "503 Busy|", "504 Late|", "break"])
async def test_a_server_that_is_busy_or_goes_is_asked_again(open_pool, server, failure) -> None:
    pool, server.failures = await open_pool(), [failure] * 3
    payload = json.dumps({"verifier": "http", "url": server.url})
    assert [verdict.score for verdict in await pool.verify(payload, ["0.5"])] == [0.5]
    assert [request["completion"] for _, request in server.requests] == ["0.5"] * 4


@pytest.mark.parametrize("failure", ["500 Broken|", "302 Found|", "200 OK|so so", "what|"])
async def test_a_server_that_has_judged_is_asked_once(open_pool, server, failure) -> None:
    payload = json.dumps({"verifier": "http", "url": server.url})
    [verdict] = await (await open_pool()).verify(payload, [failure])
    assert (verdict.score, len(server.requests)) == (None, 1)


async def test_asking_again_ends_with_the_time_for_a_completion(open_pool, server) -> None:
    payload = json.dumps({"verifier": "http", "url": server.url})
    pool, started_s = await open_pool(timeout_s=1.0), time.monotonic()
    [verdict] = await pool.verify(payload, ["503 Busy|"])
    assert verdict.because == "http://127.0.0.1/score: answered 503"
    assert 2 <= len(server.requests) <= 10  # the pauses double, from 50 ms at least
    assert time.monotonic() - started_s < 10


async def test_a_server_that_is_away_keeps_no_turn_of_another(open_pool, server, unused_tcp_port):
    away = json.dumps({"verifier": "http", "url": f"http://127.0.0.1:{unused_tcp_port}"})
    pool = await open_pool(timeout_s=20.0)
    waiting = asyncio.create_task(pool.verify(away, ["1"] * 200))
    await asyncio.sleep(0.1)
    payload = json.dumps({"verifier": "http", "url": server.url})
    assert [verdict.score for verdict in await pool.verify(payload, ["1"] * 20)] == [1.0] * 20
    assert not waiting.done()
    waiting.cancel()


async def test_a_server_gets_a_bounded_number_of_requests_at_a_time(open_pool, server) -> None:
    pool, server.delay_s = await open_pool(), 0.05
    payload = json.dumps({"verifier": "http", "url": server.url})
    answers = await asyncio.gather(*[pool.verify(payload, ["1"] * 20) for _ in range(20)])
    assert all(verdict.score == 1.0 for verdicts in answers for verdict in verdicts)
    assert 32 < server.most_open_count <= 64
