"""One function for each kind of fault: it injects it, ends it, and says what to wait for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.cluster import Cluster
from tests.chaos.load import Worker
from tests.chaos.proxy import Cut
from tests.chaos.servers import Server, WallClock
from tests.chaos.stores import limit_files, replica_of, wait_until_synced

SETTLE_S = 0.03
"""After a death, until no answer from before is on its way any more."""
SHORTEST_FREEZE_S = 0.3
LONGEST_FREEZE_S = 3.0
LONG_FREEZE_S = 11.0
"""Beyond the time that a server waits for its store."""
LONG_FREEZE_SHARE = 0.03
CLOCK_JUMP_S = 3600


@dataclass(frozen=True)
class Injected:
    """A fault that has ended. Recovery counts from `began_s` to the first answer after `after_s`
    that one of `workers` gets: a death counts from its moment, a freeze from its end. `ready_s` is
    when what had died was there again."""

    what: str
    began_s: float
    after_s: float
    workers: list[Worker]
    ready_s: float | None = None


Fault = Callable[[Cluster], Injected]


def server_killed(cluster: Cluster) -> Injected:
    """kill -9 of a server, which is started again at once."""
    server = cluster.rng.choice(cluster.servers)
    return _taken_down(cluster, server, server.kill, "kill -9 of a server")


def server_restarted(cluster: Cluster) -> Injected:
    """SIGTERM to a server, which drains and is started again."""
    server = cluster.rng.choice(cluster.servers)
    return _taken_down(cluster, server, server.stop, "graceful restart of a server")


def _taken_down(
    cluster: Cluster, server: Server, take_down: Callable[[], None], what: str
) -> Injected:
    began_s = time.monotonic()
    take_down()
    time.sleep(SETTLE_S)
    dead_s = time.monotonic()
    server.start()
    users, ready_s = cluster.users_of(server), time.monotonic()
    return Injected(what, began_s, dead_s, users, ready_s)


def server_frozen(cluster: Cluster) -> Injected:
    """SIGSTOP and SIGCONT of a server."""
    server, duration_s = (
        cluster.rng.choice(cluster.servers),
        cluster.rng.uniform(SHORTEST_FREEZE_S, LONGEST_FREEZE_S),
    )
    server.freeze()
    time.sleep(duration_s)
    ended_s = time.monotonic()
    server.thaw()
    return Injected(
        f"server frozen for {duration_s:.1f} s", ended_s, ended_s, cluster.users_of(server)
    )


def store_killed(cluster: Cluster) -> Injected:
    """kill -9 of the store, which is started again at once."""
    began_s = time.monotonic()
    cluster.store.kill()
    time.sleep(SETTLE_S)
    dead_s = time.monotonic()
    cluster.store.start()
    return Injected("kill -9 of the store", began_s, dead_s, cluster.workers, time.monotonic())


def store_frozen(cluster: Cluster) -> Injected:
    """SIGSTOP and SIGCONT of the store, now and then beyond every time limit on it."""
    duration_s = cluster.rng.uniform(SHORTEST_FREEZE_S, LONGEST_FREEZE_S)
    if cluster.rng.random() < LONG_FREEZE_SHARE:
        duration_s = LONG_FREEZE_S
    cluster.store.freeze()
    time.sleep(duration_s)
    ended_s = time.monotonic()
    cluster.store.thaw()
    return Injected(f"store frozen for {duration_s:.1f} s", ended_s, ended_s, cluster.workers)


def store_stalled(cluster: Cluster) -> Injected:
    """The network between servers and store carries nothing for a while."""
    duration_s = cluster.rng.uniform(SHORTEST_FREEZE_S, LONGEST_FREEZE_S)
    cluster.store_proxy.stall()
    time.sleep(duration_s)
    ended_s = time.monotonic()
    cluster.store_proxy.flow()
    return Injected(
        f"network to the store dead for {duration_s:.1f} s", ended_s, ended_s, cluster.workers
    )


def client_cut(cluster: Cluster) -> Injected:
    """A connection between client and server is cut within a request or a reply."""
    in_reply = cluster.rng.random() < 0.7
    # What is smaller is HTTP/2's own: settings, window updates, pings.
    cut = Cut(in_reply, share=cluster.rng.random(), smallest=40)
    assert cluster.client_proxy.cut(cut), "nothing came by to cut"
    began_s = time.monotonic()
    what = f"client's connection cut at {cut.share:.0%} of a {_side(in_reply)}"
    return Injected(what, began_s, began_s, [cluster.workers[0]])


def store_cut(cluster: Cluster) -> Injected:
    """A connection between server and store is cut within a script's call or its reply."""
    in_reply = cluster.rng.random() < 0.7
    cut = Cut(in_reply, share=cluster.rng.random(), marker=b"EVALSHA")
    assert cluster.store_proxy.cut(cut), "nothing came by to cut"
    began_s = time.monotonic()
    what = f"store's connection cut at {cut.share:.0%} of a script's {_side(in_reply)}"
    return Injected(what, began_s, began_s, cluster.workers)


def disk_full(cluster: Cluster) -> Injected:
    """The store's append-only file cannot grow: under `always` the store exits, in the middle of a
    record, and is started again once there is room; under `everysec` it refuses writes until then.
    """
    room_bytes = cluster.rng.randrange(4_096)
    cluster.store.fill_disk(room_bytes)
    if cluster.appendfsync == "always":
        cluster.store.wait_until_dead()
        began_s = time.monotonic()
        time.sleep(SETTLE_S)
        cluster.store.start()
        what, ready_s = "disk full, store exited and was started again", time.monotonic()
        return Injected(what, began_s, began_s + SETTLE_S, cluster.workers, ready_s)
    client = cluster.store.client
    _until(lambda: client.info("persistence")["aof_last_write_status"] == "err")
    time.sleep(cluster.rng.uniform(SHORTEST_FREEZE_S, LONGEST_FREEZE_S))
    began_s = time.monotonic()
    cluster.store.free_disk()
    return Injected("disk full, store refused writes", began_s, began_s, cluster.workers)


def store_failed_over(cluster: Cluster) -> Injected:
    """A replica that has everything takes the store's place, as valkey's FAILOVER does it: writes
    wait, the replica catches up, then it is promoted and connections go there."""
    primary = cluster.store
    replica = replica_of(primary, cluster.new_folder("store"), cluster.appendfsync)
    primary.client.client_pause(20_000, all=False)
    wait_until_synced(primary, replica)
    began_s = time.monotonic()
    replica.client.replicaof("NO", "ONE")
    cluster.store_proxy.switch(replica.address)
    cluster.adopt_store(replica)
    return Injected(
        "store failed over to its replica", began_s, began_s + SETTLE_S, cluster.workers
    )


def clock_jumped(cluster: Cluster) -> Injected:
    """A server's wall clock goes an hour ahead, then to an hour behind, with work at each."""
    server, clock = cluster.rng.choice(cluster.servers), WallClock(cluster.folder)
    users = cluster.users_of(server)
    server.stop()
    server.start(clock.environment)
    for offset_s in (CLOCK_JUMP_S, -CLOCK_JUMP_S):
        cluster.first_answer_s(users, time.monotonic())
        clock.move(offset_s)
        began_s = time.monotonic()
        for user in users:
            cluster.first_answer_s([user], began_s)
    server.stop()
    server.start()
    return Injected("server's clock +1 h, then -1 h", began_s, began_s, users)


def embedded_store_killed(cluster: Cluster) -> Injected:
    """kill -9 of an embedded store, which its server starts again."""
    began_s = time.monotonic()
    (pid,) = cluster.servers[0].children
    os.kill(pid, signal.SIGKILL)
    time.sleep(SETTLE_S)
    return Injected("kill -9 of the embedded store", began_s, time.monotonic(), cluster.workers)


def embedded_disk_full(cluster: Cluster) -> Injected:
    """An embedded store's file cannot grow: it exits within a record. Its server starts it again,
    with room."""
    (pid,) = cluster.servers[0].children
    limit_files(pid, cluster.data_dir, cluster.rng.randrange(4_096))
    _until(lambda: pid not in cluster.servers[0].children)
    began_s = time.monotonic()
    time.sleep(SETTLE_S)
    what = "disk full, embedded store exited and was started again"
    return Injected(what, began_s, began_s + SETTLE_S, cluster.workers)


def _until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def _side(in_reply: bool) -> str:
    return "reply" if in_reply else "request"


ON_ALWAYS: dict[str, Fault] = {
    "server_killed": server_killed,
    "server_restarted": server_restarted,
    "server_frozen": server_frozen,
    "store_killed": store_killed,
    "store_frozen": store_frozen,
    "store_stalled": store_stalled,
    "client_cut": client_cut,
    "store_cut": store_cut,
    "disk_full": disk_full,
    "store_failed_over": store_failed_over,
    "clock_jumped": clock_jumped,
}
"""For a store of its own under `appendfsync always`."""
ON_EMBEDDED: dict[str, Fault] = {
    "embedded_store_killed": embedded_store_killed,
    "embedded_server_killed": server_killed,
    "embedded_disk_full": embedded_disk_full,
}
ON_EVERYSEC: dict[str, Fault] = {
    "everysec_store_killed": store_killed,
    "everysec_disk_full": disk_full,
}
