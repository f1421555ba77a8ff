"""Stores of several processes: a cluster, and a primary with a replica and a sentinel."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from curriculum_server.store.embedded import binary_path

SLOTS = 16384


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if found := condition():
                return found
        except (redis.RedisError, OSError):
            pass
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


class ValkeyNode:
    """One Valkey on a port of its own."""

    def __init__(self, **settings: object) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="valkey-node-")
        self.folder = self._folder.name
        self.port = free_port()
        self.settings = {
            **{"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": ""},
            **{"logfile": f"{self.folder}/log", "repl-diskless-sync-delay": 0},
            **{"appendfsync": "everysec", **settings},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return Path(f"{self.folder}/log").read_text()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(binary_path()), *self.arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_for(self.client.ping)

    def arguments(self) -> list[str]:
        return [part for k, v in self.settings.items() for part in (f"--{k}", str(v))]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        self.kill()
        self.client.close()
        self._folder.cleanup()


class ClusterNode(ValkeyNode):
    """A node of a cluster."""

    def __init__(self) -> None:
        self.bus_port = free_port()
        super().__init__(
            **{
                "cluster-enabled": "yes",
                "cluster-port": self.bus_port,
                "cluster-node-timeout": 3000,
                "cluster-config-file": "nodes.conf",
            }
        )
        self.node_id = self.command("MYID").decode()

    def command(self, *parts: Any) -> Any:
        return self.client.execute_command("CLUSTER", *parts)

    def info(self) -> dict[str, str]:
        text = self.command("INFO")
        lines = (text.decode() if isinstance(text, bytes) else text).split()
        return dict(line.split(":") for line in lines)

    def holds(self, slot: int) -> bool:
        for first, last, primary, *_ in self.command("SLOTS"):
            if first <= slot <= last:
                return bool(primary[1] == self.port)
        return False


class Cluster:
    """Three primaries with a third of the slots each, and a replica of the first."""

    def __init__(self) -> None:
        with ExitStack() as started:
            self.nodes = [started.enter_context(_closing(ClusterNode())) for _ in range(4)]
            self._form()
            self._closing = started.pop_all()

    def close(self) -> None:
        self._closing.close()

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def node_of(self, run_id: str) -> ClusterNode:
        """The primary that holds the run, as the nodes agree on it."""
        slot = slot_of(run_id)

        def agreed() -> ClusterNode | None:
            holders = [node for node in self.nodes if node.holds(slot)]
            told = [
                next(r[2][1] for r in n.command("SLOTS") if r[0] <= slot <= r[1])
                for n in self.nodes
            ]
            return holders[0] if len(holders) == 1 or len(set(told)) == 1 else None

        node: ClusterNode = wait_for(agreed)
        return node

    def _form(self) -> None:
        first, *others = self.nodes
        for number, node in enumerate(self.nodes[:3]):
            start, stop = SLOTS * number // 3, SLOTS * (number + 1) // 3
            node.command("ADDSLOTSRANGE", start, stop - 1)
        for number, node in enumerate(self.nodes):
            node.command("SET-CONFIG-EPOCH", number + 1)
        for node in others:
            node.command("MEET", "127.0.0.1", first.port, first.bus_port)
        wait_for(lambda: all(len(node.command("SLOTS")) == 3 for node in self.nodes))
        replica = self.nodes[3]
        wait_for(lambda: replica.command("REPLICATE", first.node_id))
        wait_for(lambda: all(n.info()["cluster_state"] == "ok" for n in self.nodes))
        wait_for(lambda: replica.client.info("replication")["master_link_status"] == "up")


class _closing:
    def __init__(self, node: ValkeyNode) -> None:
        self._node = node

    def __enter__(self) -> Any:
        return self._node

    def __exit__(self, *_: object) -> None:
        self._node.close()


def slot_of(run_id: str) -> int:
    return int(key_slot(run_id.encode()))


class Watched:
    """A primary, its replica, and a sentinel that watches them as the service "ledger"."""

    SERVICE = "ledger"

    def __init__(self, **settings: object) -> None:
        with ExitStack() as started:
            self.primary = started.enter_context(_closing(ValkeyNode(**settings)))
            replicaof = f"127.0.0.1 {self.primary.port}"
            self.replica = started.enter_context(
                _closing(ValkeyNode(**{"replicaof": replicaof, **settings}))
            )
            wait_for(lambda: is_in_sync(self.replica))
            self.sentinel = started.enter_context(_closing(SentinelNode(self.primary)))
            self.wait_until_settled()
            self._closing = started.pop_all()

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/{self.SERVICE}"

    def fail_over(self) -> None:
        """To the other one, the primary holding its breath until the replica has caught up."""
        self.sentinel.client.execute_command("SENTINEL FAILOVER", self.SERVICE, "COORDINATED")
        self.primary, self.replica = self.replica, self.primary
        self.wait_until_settled()

    def wait_until_settled(self) -> None:
        """Until all three agree on who is the primary and that the other one may follow it."""

        def agreed() -> bool:
            known = [
                self.sentinel.client.sentinel_master(self.SERVICE),
                *self.sentinel.client.sentinel_slaves(self.SERVICE),
            ]
            return [(node["port"], node["flags"]) for node in known] == [
                (self.primary.port, "master"),
                (self.replica.port, "slave"),
            ] and is_in_sync(self.replica)

        wait_for(agreed)

    def close(self) -> None:
        self._closing.close()


class SentinelNode(ValkeyNode):
    """A sentinel; it rewrites its configuration file."""

    def __init__(self, primary: ValkeyNode) -> None:
        self._primary = primary
        super().__init__()

    def arguments(self) -> list[str]:
        path, name = Path(self.folder) / "sentinel.conf", Watched.SERVICE
        path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\nlogfile {self.folder}/log\n"
            f"sentinel monitor {name} 127.0.0.1 {self._primary.port} 1\n"
            # Above a sentinel's own rhythm of one second, or it fails over what only reconnects.
            f"sentinel down-after-milliseconds {name} 4000\n"
            f"sentinel failover-timeout {name} 5000\n"
        )
        return [str(path), "--sentinel"]


def is_in_sync(replica: ValkeyNode) -> bool:
    found = replica.client.info("replication")
    return bool(found["role"] == "slave" and found["master_link_status"] == "up")
