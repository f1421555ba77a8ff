"""A store, the servers over it and those who work with them: what faults are injected into."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from tests.chaos.accounting import Books, Counts, Verdict, prompt_index
from tests.chaos.load import RUN_ID, Forgives, Prober, Steps, Trainer, Worker
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Server
from tests.chaos.stores import Store
from tests.conftest import Stubs

PROMPT_COUNT = 1_500
PAGE_SIZE = 1_000
WINDOW_STEPS = 50
HEALTHY_LIMIT_S = 60.0
LOG_TAIL = 1_500


class Cluster:
    """One run under load. Without a store of its own (`embedded`) its one server has one.

    Between servers and store there is a proxy, and one between the first trainer and the first
    server; the others connect directly, one of them to whichever server answers.
    """

    def __init__(
        self,
        seed: int,
        *,
        appendfsync: str = "always",
        server_count: int = 2,
        embedded: bool = False,
    ) -> None:
        self._closing = ExitStack()
        temporary = tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)
        self.folder = Path(self._closing.enter_context(temporary))
        self.rng = random.Random(seed)
        self.appendfsync = appendfsync
        self.books = Books(PROMPT_COUNT)
        self.steps = Steps()
        self.seed = seed
        self._store: Store | None = None
        self._store_proxy: Proxy | None = None
        try:
            self._build(server_count, embedded)
        except BaseException:
            self.close()
            raise

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    @property
    def store_proxy(self) -> Proxy:
        assert self._store_proxy is not None
        return self._store_proxy

    @property
    def data_dir(self) -> Path:
        """Where an embedded store has its data."""
        return self.folder / "data"

    def new_folder(self, name: str) -> Path:
        """A folder for one more store."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def adopt_store(self, store: Store) -> None:
        """Serve from another store from now on; the former one is gone."""
        self.store.close()
        self._store = store

    def start(self, forgives: Forgives | None = None) -> Cluster:
        """Begin the load and wait until all of it works."""
        for worker in self.workers:
            if forgives is not None:
                worker.forgives = forgives
            worker.start()
        self.wait_until_healthy(time.monotonic())
        return self

    def users_of(self, server: Server) -> list[Worker]:
        """Those who can reach the service through this server alone."""
        return [worker for worker in self.workers if self._server_of.get(worker) is server]

    def stubs(self, server: Server) -> Stubs:
        """All services of a server."""
        return self._stubs[server]

    def first_answer_s(self, workers: Sequence[Worker], after_s: float) -> float:
        """When the first of these workers had a call succeed after that time; both monotonic."""
        return min(self._answers_s(workers, after_s, 1))

    def wait_until_healthy(self, after_s: float) -> float:
        """When the last of all workers had its first call succeed after that time."""
        return max(self._answers_s(self.workers, after_s, len(self.workers)))

    def verdict(self) -> Verdict:
        """Compare what was acknowledged with what a server says is in the ledger."""
        return self.books.compare(lambda: self.ledger(self.rng.choice(self.servers)))

    def verdict_or_none(self) -> Verdict | None:
        """The account after something went wrong, if a server still answers."""
        try:
            return self.verdict()
        except Exception:  # the boundary: what went wrong is told already
            return None

    def ledger(self, server: Server) -> Counts:
        """Passes and fails by prompt, as a server tells them."""
        counts, token = np.zeros((2, PROMPT_COUNT), np.int64), ""
        while True:
            request = op.ListPromptsRequest(run_id=RUN_ID, page_size=PAGE_SIZE, page_token=token)
            page = self._stubs[server].operator.ListPrompts(
                request, wait_for_ready=True, timeout=60
            )
            for state in page.prompts:
                passes, attempts = state.pass_count, state.attempt_count
                counts[:, prompt_index(state.prompt_id)] = passes, attempts - passes
            if not (token := page.next_page_token):
                return counts

    def stored_ledger(self) -> Counts:
        """Passes and fails by prompt, as they are in the store."""
        totals = {}
        for name in ("attempts", "passes"):
            totals[name] = np.zeros(PROMPT_COUNT, np.int64)
            for key in self.store.client.scan_iter(f"cur:{{{RUN_ID}}}:w:*:{name}", count=1000):
                cells = np.frombuffer(self.store.client.get(key), ">u4").astype(np.int64)
                totals[name][: len(cells)] += cells[:PROMPT_COUNT]
        return np.stack([totals["passes"], totals["attempts"] - totals["passes"]])

    def finish(self) -> Verdict:
        """End the load, let every report be acknowledged, and compare for good: every server as it
        is, one started anew, and the store itself must say the same."""
        for worker in self.workers:
            worker.finish()
        for worker in self.workers:
            worker.join()
        told = [self.ledger(server) for server in self.servers]
        self.servers[0].stop()
        self.servers[0].start()
        told.append(self.ledger(self.servers[0]))
        if self._store is not None:
            told.append(self.stored_ledger())
        if not all(np.array_equal(told[-1], other) for other in told):
            self.workers[0].errors.append("servers and store tell different ledgers")
        return self.books.compare(lambda: told[-1])

    @property
    def errors(self) -> list[str]:
        """What befell the workers, each kind once, and then what the servers wrote last."""
        told = list(dict.fromkeys(error for worker in self.workers for error in worker.errors))
        return [*told, *(server.log[-LOG_TAIL:] for server in self.servers)] if told else []

    def close(self) -> None:
        self._closing.close()

    def _build(self, server_count: int, embedded: bool) -> None:
        """Start everything; each part says at once how it ends."""
        ending = self._closing.callback
        flags = ["--data-dir", str(self.data_dir), "--appendfsync", self.appendfsync]
        if not embedded:
            self._store = Store(self.new_folder("store"), self.appendfsync)
            ending(lambda: self.store.close())  # whichever it is by then
            self._store_proxy = Proxy(self._store.start().address)
            ending(self._store_proxy.close)
            flags = ["--redis", f"redis://{self._store_proxy.target}/0"]
        self.servers = [Server(*flags) for _ in range(server_count)]
        for server in self.servers:
            server.launch()
            ending(server.close)
        for server in self.servers:
            server.wait_until_serving()
        host, port = self.servers[0].address.split(":")
        self.client_proxy = Proxy((host, int(port)))
        ending(self.client_proxy.close)
        self._stubs = {server: Stubs(server.address) for server in self.servers}
        for stubs in self._stubs.values():
            ending(stubs.channel.close)
        self._make_run()
        self.workers = self._make_workers()
        for worker in self.workers:
            ending(worker.finish)

    def _answers_s(self, workers: Sequence[Worker], after_s: float, count: int) -> list[float]:
        """Wait until so many of the workers had a call succeed, and when each had."""
        deadline = time.monotonic() + HEALTHY_LIMIT_S
        while True:
            answers_s = [worker.answered_s(after_s) for worker in workers]
            answered_s = [answer_s for answer_s in answers_s if answer_s is not None]
            if len(answered_s) >= count:
                return answered_s
            if time.monotonic() > deadline:
                logs = "\n".join(server.log[-LOG_TAIL:] for server in self.servers)
                raise AssertionError(f"not well again after {HEALTHY_LIMIT_S:g} s\n{logs}")
            time.sleep(0.005)

    def _make_run(self) -> None:
        stubs = self._stubs[self.servers[0]]
        stubs.create_run(RUN_ID, run_pb2.RunConfig(window_steps=WINDOW_STEPS, seed=self.seed))
        prompts = [
            prompt_pb2.Prompt(prompt_id=f"p{i}", domain=f"d{i % 3}", text=f"What is {i} + {i}?")
            for i in range(PROMPT_COUNT)
        ]
        stubs.operator.AddPrompts(op.AddPromptsRequest(run_id=RUN_ID, prompts=prompts))

    def _make_workers(self) -> list[Worker]:
        first, last = self.servers[0], self.servers[-1]
        either = "ipv4:" + ",".join(server.address for server in self.servers)
        shared = (self.books, self.steps, self.seed)
        proxied = Trainer("proxied", self.client_proxy.target, *shared, patient=True)
        impatient = Trainer("impatient", last.address, *shared, patient=False)
        roaming = Trainer("roaming", either, *shared, patient=True)
        prober = Prober("prober", last.address, *shared)
        self._server_of = {proxied: first, impatient: last, prober: last}
        if first is last:
            self._server_of[roaming] = first
        return [proxied, impatient, roaming, prober]
