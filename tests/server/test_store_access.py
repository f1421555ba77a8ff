"""What the server needs of its store: the URL, the commands that it may run, the facts it asks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from curriculum_api.errors import InvalidRequestError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import run_pb2
from curriculum_server import store
from curriculum_server.store.connection import connect
from tests.server.driving import RunDriver
from tests.server.test_ledger_keys import use_everything

ACL = Path(store.__file__).parents[2] / "deploy/store-users.acl"
USED_BY_THE_LIBRARY = {
    *(
        "eval",
        "evalsha",
        "script|load",
        "multi",
        "exec",
        "scan",
    ),  # for scripts, pipelines, scan_iter
    *("select", "client|setinfo", "client|setname", "cluster|slots"),
}
OUR_OWN_STORE_ONLY = {"bgrewriteaof"}
OTHER_METHODS = {
    *("aclose", "eval", "evalsha", "execute", "execute_command", "from_pool", "pipeline"),
    *("register_script", "scan_iter", "at_slot", "call"),
}


def allowed():
    line = next(line for line in ACL.read_text().splitlines() if line.startswith("user curriculum"))
    return {word[1:] for word in line.split() if word[0] == "+"}


def commands_in_the_code():
    text = "".join(path.read_text() for path in Path(store.__file__).parent.glob("*.py"))
    in_scripts = {name.lower() for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", text)}
    by_client = set(re.findall(r"\b(?:redis|pipe|self\._redis)\.([a-z_]+)\(", text))
    return in_scripts | (by_client - OTHER_METHODS)


def test_the_list_of_commands_is_that_of_the_code():
    assert allowed() - USED_BY_THE_LIBRARY == commands_in_the_code() - OUR_OWN_STORE_ONLY


def test_a_user_of_the_listed_commands_and_keys_alone_can_do_everything(
    start_server, plain_valkey, refused
):
    admin = plain_valkey.start()
    rules = next(
        line for line in ACL.read_text().splitlines() if line.startswith("user curriculum")
    )
    admin.execute_command("ACL", "SETUSER", *rules.split()[1:])
    url = f"unix://curriculum:REPLACE-THIS-PASSWORD@{plain_valkey.socket}?db=0&client_name=test"
    server = start_server(redis=url)
    channel = run_pb2.Channel(name="entropy", min_value=0, max_value=1)
    server.stubs.create_run("r", run_pb2.RunConfig(channels=[channel]))
    server.stubs.add_prompts("r", 30)
    run = RunDriver(server.stubs, "r")
    use_everything(run)
    run.seen()
    server.stubs.operator.ListRuns(op.ListRunsRequest())
    run.delete()
    assert admin.acl_log() == []
    admin.execute_command("ACL", "SETUSER", "curriculum", "-zadd")
    answer = refused(server.stubs.operator.CreateRun, op.CreateRunRequest(run_id="r2"))
    assert (answer.status, answer.error) == ("FAILED_PRECONDITION", "StateError")
    assert answer.details.startswith("the store does not permit a command that is needed")
    admin.close()


def test_a_store_that_refuses_to_tell_of_itself_is_used_with_a_warning(
    start_server, plain_valkey, caplog
):
    admin = plain_valkey.start()
    admin.execute_command("ACL", "SETUSER", "default", "-info", "-config")
    server = start_server(redis=plain_valkey.url)
    server.stubs.create_run("r")
    assert server.serving.store.startswith("a store that does not say its version, unix://")
    assert "store not looked at" in caplog.text
    admin.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:secret@h?sokcet_timeout=1", "?sokcet_timeout=: unknown; must be one of"),
        ("redis://h?decode_responses=true", "?decode_responses=: unknown"),
        ("unix:///s?host=h", "?host=: unknown"),
        ("redis://h?socket_timeout=soon", "Invalid value for 'socket_timeout'"),
        ("redis://:secret@h:port", "must be a valid URL"),
        ("redis://:1?secret=x@h", "must be a valid URL"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_allowed(url, said):
    with pytest.raises(InvalidRequestError) as caught:
        connect(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_a_url_may_say_reaches_the_connection():
    found = connect("rediss://u:p@h:1/3?socket_timeout=7&ssl_cert_reqs=none").connection_pool
    kwargs = found.connection_kwargs
    assert (kwargs["username"], kwargs["host"], kwargs["port"], kwargs["db"]) == ("u", "h", 1, 3)
    assert (kwargs["socket_timeout"], kwargs["ssl_cert_reqs"]) == (7.0, "none")
    assert isinstance(found.make_connection(), redis.asyncio.SSLConnection)
