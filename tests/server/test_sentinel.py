"""The service over a primary that sentinels watch."""

from __future__ import annotations

import grpc
import pytest

from curriculum_api.errors import InvalidRequestError, StoreUnavailableError
from curriculum_api.v1 import run_pb2
from curriculum_server.store.sentinel import connect_by_sentinel
from tests.server.clusters import Watched, free_port, wait_for
from tests.server.driving import RunDriver
from tests.server.loads import GROUP_SIZE, Load


@pytest.fixture(scope="module")
def watched():
    made = Watched()
    yield made
    made.close()


@pytest.fixture
def run(watched, start_server):
    server = start_server(redis=watched.url)
    config = run_pb2.RunConfig(selection=run_pb2.SelectionConfig(group_size=GROUP_SIZE))
    server.stubs.create_run("r", config)
    server.stubs.add_prompts("r", 60)
    driver = RunDriver(server.stubs, "r")
    yield driver
    driver.delete()


def test_the_primary_is_found_through_the_sentinel_that_answers(watched, run):
    run.play(0)
    assert watched.primary.client.exists("cur:{r}:meta")
    assert run.stats().attempt_count == 4 * GROUP_SIZE


def test_a_failover_that_is_asked_for_loses_and_doubles_nothing(watched, run, start_server):
    other = run.through(start_server(redis=watched.url).stubs)
    with Load([run, other]) as load:
        load.wait_for_progress()
        watched.fail_over()
        load.wait_for_progress()
    assert load.twice == []
    assert run.stats().attempt_count == other.stats().attempt_count == load.attempts["r"]


def test_a_primary_that_dies_is_followed_by_its_replica(watched, run):
    run.play(0)
    written = watched.primary.client.info("replication")["master_repl_offset"]
    wait_for(lambda: watched.replica.client.info("replication")["slave_repl_offset"] >= written)
    before = run.counts()
    watched.primary.kill()
    failures = set()

    def counts():
        try:
            return run.counts()
        except grpc.RpcError as error:
            failures.add(error.code())
            return None

    assert wait_for(counts, 20) == before
    assert failures <= {grpc.StatusCode.UNAVAILABLE}
    assert run.play(1).prompts
    watched.primary.start()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://h:26379", "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"),
        ("redis+sentinel:///service", "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE"),
        ("rediss+sentinel://u:secret@h:port/service", "must be rediss+sentinel://HOST:PORT"),
        ("redis+sentinel://:secret@h/service?sevrice=x", r"redis: \?sevrice=: unknown"),
    ],
)
def test_a_bad_sentinel_url_is_refused_with_what_is_allowed(url, said):
    with pytest.raises(InvalidRequestError, match=said.replace("+", r"\+")) as caught:
        connect_by_sentinel(url)
    assert "secret" not in str(caught.value)


def test_sentinels_that_know_no_primary_are_named_by_what_was_asked(start_server):
    url = f"redis+sentinel://:secret@127.0.0.1:{free_port()}/ledger"
    with pytest.raises(StoreUnavailableError, match=r"knows a primary of 'ledger'$") as caught:
        start_server(redis=url)
    assert "secret" not in str(caught.value)


def test_a_sentinel_url_names_user_database_and_service():
    pool = connect_by_sentinel("rediss+sentinel://u:p%40@[::1]:1,b/svc?db=2").connection_pool
    found = pool.connection_kwargs
    assert (found["username"], found["password"], found["db"]) == ("u", "p@", 2)
    assert pool.service_name == "svc"
    addresses = [
        (s.connection_pool.connection_kwargs["host"], s.connection_pool.connection_kwargs["port"])
        for s in pool.sentinel_manager.sentinels
    ]
    assert addresses == [("::1", 1), ("b", 26379)]
