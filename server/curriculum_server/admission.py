"""Which calls are taken, and in which order: bounds of the work and memory that callers can cause.

A call first stands in line, where it costs next to nothing: its request is still with the caller or
in gRPC's window for it. Then it runs, and then its answer is on its way. Of those in line, the one
whose connection was served the longest ago comes next, so that a caller who asks for much waits
behind one who asks for little. When the line is full, the connection with the most calls in it
loses its newest.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from curriculum_api.errors import OverloadedError
from curriculum_server import metrics

FIRST_PACE_S = 0.005
"""Time per call until it was seen."""
LEAST_PAUSE_S, MOST_PAUSE_S = 0.1, 5.0
"""Pauses that a refused caller is told: a shorter one is more work to refuse than to serve."""
CONNECTION_PART = 4
"""One connection may hold a quarter of all bytes, lest one that takes no answers stops all."""
KNOWN_CONNECTIONS = 4096
"""Connections of which it is known when they were served; others count from their arrival."""


@dataclass(frozen=True)
class Bounds:
    """What may be held at once.

    Attributes:
        line: calls that do not run yet.
        running: calls that run.
        running_per_run: of those, calls about one run, lest a run that hangs take every place.
        held_bytes: of requests that were read, and of answers that were not taken yet.
        wait_s: how long a call waits for its turn.
        reads_late: a request is read when its call runs, so that few large ones are here at once;
            else before, so that a caller who sends slowly takes no place among the running.
    """

    line: int
    running: int
    running_per_run: int
    held_bytes: int
    wait_s: float = 5.0
    reads_late: bool = False


STEP_BOUNDS = Bounds(line=1024, running=16, running_per_run=8, held_bytes=256 * 1024 * 1024)
"""For trainers and probers. Calls of one run mostly take turns, so that more of them at once serve
nobody faster."""
OPERATOR_BOUNDS = Bounds(
    line=128,
    running=4,
    running_per_run=4,
    held_bytes=512 * 1024 * 1024,
    wait_s=20.0,
    reads_late=True,
)
"""For operators: their calls may carry and compute much, so that few are held and go on at once.
The bytes are what these few can be, requests and answers."""


@dataclass(eq=False)
class Call:
    """One call on its way through."""

    connection: str
    arrived_s: float
    limit: asyncio.Timeout
    """Ends the call at its next await; what ends it is up to who asks for it."""
    run_id: str = ""
    held_bytes: int = 0
    refused: str = ""
    """Why the call has lost its place in line."""
    turn: asyncio.Future[None] | None = field(default=None, repr=False)
    is_running: bool = False


class Admission:
    """The line before a group of methods, and the calls of them that run."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._line: dict[str, list[Call]] = {}
        self._line_length = 0
        self._waiting: list[Call] = []
        """Of those in line, the ones that could run."""
        self._running: Counter[str] = Counter()
        self._running_count = 0
        self._held_bytes: Counter[str] = Counter()
        self._total_bytes = 0
        self._served_s: OrderedDict[str, float] = OrderedDict()
        self._pace_s, self._ended_s = FIRST_PACE_S, 0.0

    @property
    def retry_after_s(self) -> float:
        """When there should be room again."""
        pause_s = self._pace_s * (len(self._waiting) + 1)
        return min(max(pause_s, LEAST_PAUSE_S), MOST_PAUSE_S)

    def arrive(self, connection: str, limit: asyncio.Timeout) -> Call:
        """Join the line.

        Raises:
            OverloadedError: it is full, and no connection has more in it than this one.
        """
        if self._line_length >= self.bounds.line:
            self._make_room(connection)
        call = Call(connection, _now_s(), limit)
        self._line.setdefault(connection, []).append(call)
        self._line_length += 1
        return call

    def hold_request(self, call: Call, size: int) -> None:
        """Count the bytes of a request.

        Raises:
            OverloadedError: too many are held already.
        """
        most = self.bounds.held_bytes
        held = self._total_bytes
        if held and held + size > most:
            raise OverloadedError(_held_too_much("all", held, size, most))
        held, most = self._held_bytes[call.connection], most // CONNECTION_PART
        if held and held + size > most:
            raise OverloadedError(_held_too_much("this connection's", held, size, most))
        self._hold(call, size)

    def hold_answer(self, call: Call, size: int) -> None:
        """Count the bytes of an answer in place of its request's, until `release`."""
        self._hold(call, size)

    def release(self, call: Call) -> None:
        """The call holds nothing any more: it failed, or its answer was taken."""
        self._hold(call, 0)

    async def start(self, call: Call, run_id: str = "") -> None:
        """Wait for the call's turn.

        Raises:
            OverloadedError: the call lost its place while its request arrived.
        """
        if call.refused:
            raise OverloadedError(call.refused)
        call.run_id = run_id
        if not self._may_run(call):
            await self._wait(call)
        else:
            self._run(call)

    def end(self, call: Call) -> None:
        """Leave the line, or the place among the running to whoever comes next."""
        if call.is_running:
            call.is_running = False
            self._running_count -= 1
            self._running[call.run_id] -= 1
            if not self._running[call.run_id]:
                del self._running[call.run_id]
            self._note_pace()
            self._run_next()
        else:
            self._leave_line(call)

    def _hold(self, call: Call, size: int) -> None:
        held = self._held_bytes[call.connection] + size - call.held_bytes
        self._total_bytes += size - call.held_bytes
        call.held_bytes = size
        if held:
            self._held_bytes[call.connection] = held
        else:
            self._held_bytes.pop(call.connection, None)

    async def _wait(self, call: Call) -> None:
        call.turn = asyncio.get_running_loop().create_future()
        extend(call.limit, self.bounds.wait_s)
        self._waiting.append(call)
        metrics.WAITING_CALLS.inc()
        try:
            await call.turn
        finally:
            metrics.WAITING_CALLS.dec()
            if not call.is_running:
                call.refused = call.refused or (
                    f"{len(self._waiting)} calls wait, and this one did for {self.bounds.wait_s} s"
                )
                self._waiting.remove(call)

    def _may_run(self, call: Call) -> bool:
        return (
            self._running_count < self.bounds.running
            and self._running[call.run_id] < self.bounds.running_per_run
        )

    def _run(self, call: Call) -> None:
        self._leave_line(call)
        call.is_running = True
        self._running_count += 1
        self._running[call.run_id] += 1
        self._served_s[call.connection] = _now_s()
        self._served_s.move_to_end(call.connection)
        if len(self._served_s) > KNOWN_CONNECTIONS:
            self._served_s.popitem(last=False)

    def _run_next(self) -> None:
        ready = [call for call in self._waiting if self._may_run(call)]
        if ready:
            call = min(ready, key=self._place)
            self._waiting.remove(call)
            self._run(call)
            assert call.turn is not None
            if not call.turn.done():  # its caller has gone, and it will end by itself
                call.turn.set_result(None)

    def _place(self, call: Call) -> tuple[float, float]:
        return self._served_s.get(call.connection, call.arrived_s), call.arrived_s

    def _leave_line(self, call: Call) -> None:
        calls = self._line[call.connection]
        calls.remove(call)
        if not calls:
            del self._line[call.connection]
        self._line_length -= 1

    def _make_room(self, connection: str) -> None:
        most = max(self._line.values(), key=len, default=[])
        why = f"{self._line_length} calls wait; there is room for no more"
        if len(most) <= len(self._line.get(connection, ())) + 1:
            raise OverloadedError(why)
        staying = [call for call in most if not call.refused and not call.limit.expired()]
        if not staying:
            raise OverloadedError(why)
        victim = staying[-1]
        victim.refused = why
        victim.limit.reschedule(_now_s())

    def _note_pace(self) -> None:
        """While calls wait, the time between two ends is what each of them costs those behind."""
        now_s = _now_s()
        if self._waiting:
            since_s = min(now_s - self._ended_s, MOST_PAUSE_S)
            self._pace_s += 0.05 * (since_s - self._pace_s)
        self._ended_s = now_s


def extend(limit: asyncio.Timeout, seconds: float) -> None:
    """Begin a call's time anew.

    Raises:
        TimeoutError: it was up, and what was awaited then has swallowed the cancellation.
    """
    if limit.expired():
        raise TimeoutError
    limit.reschedule(_now_s() + seconds)


def _held_too_much(whose: str, held: int, size: int, most: int) -> str:
    return f"{held} bytes of {whose} requests and answers are held; {size} more than fit {most}"


def _now_s() -> float:
    return asyncio.get_running_loop().time()
