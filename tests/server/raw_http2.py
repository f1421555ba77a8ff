"""A caller that speaks just enough HTTP/2 to misbehave in ways that no gRPC library would."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = ACK = 1
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW_SIZE = 4


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    content: bytes


class RawCaller:
    """One connection. `window` is what the server may send on a stream; it is never told more."""

    def __init__(self, address: str, *, window: int = 65_535, answers_pings: bool = True) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), 10)
        self._answers_pings = answers_pings
        self._streams = 1
        self._socket.sendall(PREFACE)
        self._frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))

    def begin(
        self, path: str, *more: tuple[str, str], content_type: str = "application/grpc"
    ) -> int:
        """The head of a call; its stream."""
        stream, self._streams = self._streams, self._streams + 2
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", content_type),
            ("te", "trailers"),
            *more,
        ]
        self._frame(HEADERS, END_HEADERS, stream, b"".join(map(_literal, fields)))
        return stream

    def send(self, stream: int, content: bytes, *, end: bool = False) -> None:
        """A piece of a request's body."""
        self._frame(DATA, END_STREAM if end else 0, stream, content)

    def call(self, path: str, message: bytes) -> int:
        """A whole call, its answer unread."""
        stream = self.begin(path)
        self.send(stream, b"\0" + struct.pack(">I", len(message)) + message, end=True)
        return stream

    def frames(self) -> Iterator[Frame]:
        """What the server sends, until it says no more or closes the connection."""
        while (head := self._exactly(9)) is not None:
            size = int.from_bytes(head[:3])
            content = self._exactly(size) if size else b""
            if content is None:
                return
            frame = Frame(head[3], head[4], int.from_bytes(head[5:9]) & 0x7FFF_FFFF, content)
            if frame.kind == SETTINGS and not frame.flags & ACK:
                self._frame(SETTINGS, ACK, 0, b"")
            elif frame.kind == PING and not frame.flags & ACK and self._answers_pings:
                self._frame(PING, ACK, 0, content)
            yield frame

    def status(self, stream: int) -> int | None:
        """The gRPC status with which the server ends the stream; None where it gives none."""
        for frame in self.frames():
            if frame.stream != stream and frame.kind != GOAWAY:
                continue
            if frame.kind == HEADERS and (at := frame.content.find(b"grpc-status")) >= 0:
                size = frame.content[at + 11]
                return int(frame.content[at + 12 : at + 12 + size])
            if frame.kind in (RST_STREAM, GOAWAY) or (frame.flags & END_STREAM and frame.kind < 2):
                return None
        return None

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int) -> bytes | None:
        pieces = b""
        while len(pieces) < size:
            try:
                piece = self._socket.recv(size - len(pieces))
            except OSError:
                return None
            if not piece:
                return None
            pieces += piece
        return pieces

    def _frame(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        head = len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4)
        self._socket.sendall(head + content)


def _literal(field: tuple[str, str]) -> bytes:
    """A header field that is not indexed, its strings not compressed."""
    return b"\0" + b"".join(_string(text.encode()) for text in field)


def _string(content: bytes) -> bytes:
    size = len(content)
    if size < 127:
        return bytes([size]) + content
    pieces, rest = bytearray([127]), size - 127
    while rest > 127:
        pieces.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*pieces, rest]) + content
