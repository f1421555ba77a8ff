"""A reward server of the user's: it is sent the completion and the payload, and answers the score.

    POST {"completion": "...", "payload": {...}}    ->    200 {"score": 0.5}

The payload's `url`, or else the worker's, says where, and may hold a user and password. It is
called directly, without proxies, and no redirect is followed. While it is away or busy (429, 502,
503, 504) it is asked again, until the time for one completion is over. Whatever else it does fails
the verifier, not the attempt. This is the place for code that a model wrote: the server may run it
in a sandbox, nothing here does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import http.client
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from curriculum_api.status import delays
from curriculum_probe.verifiers.base import Payload, Scorer, UnverifiableError
from curriculum_probe.verifiers.verdict import ScoreError, Verdict, score_of

MAX_CONCURRENCY = 64
"""Requests at a time to all servers; more would time out waiting in a server's queue."""
MAX_ANSWER_BYTES = 65_536
_BUSY = frozenset({429, 502, 503, 504})
_TOO_LONG = f"answered more than {MAX_ANSWER_BYTES} bytes"
_AS_WRITTEN = "%/:?#[]@!$&'()*+,;=~"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class _BusyError(ScoreError):
    """The server did not judge the completion; the same request may be repeated."""


def check(payload: Payload) -> None:
    _split(payload)


def prepare(payload: Payload) -> Scorer:
    raise UnverifiableError("verifier='http': runs in no process")


class RewardServers:
    """Asks them, a bounded number of requests at a time."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(MAX_CONCURRENCY)

    async def verdicts(self, payload: Payload, completions: Sequence[str]) -> list[Verdict]:
        """One for each completion, in order."""
        return await asyncio.gather(*[self._verdict(payload, text) for text in completions])

    async def _verdict(self, payload: Payload, completion: str) -> Verdict:
        url = _split(payload)
        body = json.dumps({"completion": completion, "payload": payload}).encode()
        try:
            return Verdict(await self._asked(url, body))
        except TimeoutError:
            because = f"took longer than {self._timeout_s:g} s"
        except ScoreError as error:
            because = str(error)
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            because = getattr(error, "strerror", None) or type(error).__name__
        # Without the query, which may hold a secret.
        return Verdict(None, f"{url.scheme}://{url.hostname}{url.path}: {because}")

    async def _asked(self, url: SplitResult, body: bytes) -> float:
        """The score; raises the last failure when the time, waiting for turns apart, is over."""
        left_s, pauses = self._timeout_s, delays()
        while True:
            async with self._turns:
                started_s = time.monotonic()
                try:
                    async with asyncio.timeout(left_s):
                        return _score(await _posted(url, body))
                except TimeoutError:
                    raise
                except (_BusyError, OSError, EOFError):
                    pause_s = next(pauses)
                    left_s -= time.monotonic() - started_s + pause_s
                    if left_s <= 0:
                        raise
            await asyncio.sleep(pause_s)


def _split(payload: Payload) -> SplitResult:
    given = payload.get("url")
    try:
        url = urlsplit(given if isinstance(given, str) else "")
        if url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port):
            return url
    except ValueError:  # a port, or a bracket, that is none
        pass
    raise UnverifiableError(
        "verifier='http': the payload's or the worker's url must be such as http://localhost:8000/"
    )


async def _posted(url: SplitResult, body: bytes) -> bytes:
    """The whole answer, as it came."""
    tls = _tls() if url.scheme == "https" else None
    port = url.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(
        url.hostname, port, ssl=tls, limit=MAX_ANSWER_BYTES
    )
    try:
        writer.write(_head(url, len(body)) + body)
        await writer.drain()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise ScoreError(_TOO_LONG) from None
        length = _LENGTH.search(head)
        if length is None:
            return head + await _until_the_end(reader)
        if int(length[1]) > MAX_ANSWER_BYTES:
            raise ScoreError(_TOO_LONG)
        return head + await reader.readexactly(int(length[1]))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _until_the_end(reader: asyncio.StreamReader) -> bytes:
    content = b""
    while more := await reader.read(MAX_ANSWER_BYTES):
        content += more
        if len(content) > MAX_ANSWER_BYTES:
            raise ScoreError(_TOO_LONG)
    return content


def _head(url: SplitResult, length: int) -> bytes:
    target = quote((url.path or "/") + (f"?{url.query}" if url.query else ""), safe=_AS_WRITTEN)
    user, _, host = url.netloc.rpartition("@")
    fields = {
        "Host": host,
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": length,
    }
    if user:
        fields["Authorization"] = f"Basic {base64.b64encode(unquote_to_bytes(user)).decode()}"
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "\r\n"]).encode("ascii")


def _score(answer: bytes) -> float:
    """What the answer says, read by the standard library's parser."""
    response = http.client.HTTPResponse(cast(socket.socket, _Received(answer)), method="POST")
    response.begin()
    if response.status != 200:
        kind = _BusyError if response.status in _BUSY else ScoreError
        raise kind(f"answered {response.status}")
    document = json.loads(response.read())
    if not isinstance(document, dict) or "score" not in document:
        raise ScoreError('answered without {"score": …}')
    return score_of(document["score"])


class _Received:
    """What the parser takes for a connection."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._content)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
