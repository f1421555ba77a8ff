"""Targets, credentials, processes, and what an import brings in."""

from __future__ import annotations

import asyncio
import os
import pickle
import shlex
import shutil
import subprocess
import sys

import grpc
import pytest

from curriculum_client import (
    AsyncTrainerClient,
    InvalidRequestError,
    StoreUnavailableError,
    TlsConfig,
    TrainerClient,
)
from curriculum_client._forks import ProcessLock

FORKING = """
import os, sys, threading
{prelude}
from curriculum_client import TrainerClient, CurriculumError
client = TrainerClient({target!r}, "math", timeout_s=5, retry_s=5)
if {connected}:
    batch = client.next_batch(2, policy_step=0)
    client.report(batch, {{"p0": [1.0]}}, policy_step=0)
child = os.fork()
if child == 0:
    try:
        batch = client.next_batch(2, policy_step=1, request_id="shared")
        client.report(batch, {{0: [1.0]}}, policy_step=1)
        client.close()
    except CurriculumError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(0)
_, status = os.waitpid(child, 0)
if {connected}:
    batch = client.next_batch(2, policy_step=1, request_id="shared")
    client.report(batch, {{0: [1.0]}}, policy_step=1)
    client.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_python(code, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_import_is_light():
    code = "import curriculum_client, sys; print(*sys.modules, sep='\\n')"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    modules = {name.split(".")[0] for name in done.stdout.split()}
    assert {"curriculum_client", "curriculum_api", "grpc"} <= modules
    heavy = {"numpy", "redis", "torch", "curriculum", "curriculum_server", "transformers"}
    assert not modules & heavy


@pytest.mark.parametrize("connected", [True, False])
def test_a_forked_child_connects_anew_and_reports_apart(server, service, connected):
    done = run_python(FORKING.format(prelude="", target=server.target, connected=connected))
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert service.attempts[("shared", 0)] == 1 + connected


def test_a_child_that_would_hang_in_grpc_is_told_so_instead(server):
    code = FORKING.format(prelude="import grpc", target=server.target, connected=True)
    done = run_python(code)
    assert done.returncode == 7, done.stderr
    assert "GRPC_ENABLE_FORK_SUPPORT=0: must be 1 before grpc is imported" in done.stdout


def test_a_child_of_a_connected_asyncio_client_is_told_so_too(server):
    done = run_python(
        "import asyncio, os, sys\n"
        "from curriculum_client import AsyncTrainerClient, StateError\n"
        f"client = AsyncTrainerClient({server.target!r}, 'math')\n"
        "asyncio.run(client.next_batch(2, policy_step=0))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        asyncio.run(client.next_batch(2, policy_step=0))\n"
        "    except StateError as error:\n"
        "        print(error, flush=True)\n"
        "        os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("AsyncTrainerClient: had connected before")


def test_a_lock_held_by_another_thread_is_free_in_a_child_and_in_a_copy():
    lock = ProcessLock()
    lock.__enter__()
    with pickle.loads(pickle.dumps(lock)):
        lock.after_fork()
    with lock:
        pass


async def test_a_port_and_a_unix_socket_both_work(connect, server):
    server.stop()
    server.target = "localhost:0"
    server.start()
    async with connect(target=f"localhost:{server.port}") as client:
        assert len(await client.next_batch(2, policy_step=0)) == 2


async def test_the_token_travels_as_a_bearer_and_is_not_shown(connect, service):
    async with connect(token="s3cret") as client:
        await client.next_batch(2, policy_step=0)
        assert "s3cret" not in repr(client) + repr(client._core.settings)
    async with connect() as client:
        await client.next_batch(2, policy_step=0)
    assert [sent.get("authorization") for sent in service.metadata] == ["Bearer s3cret", None]


@pytest.fixture
def tls(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    pem = certificate.read_bytes()
    return TlsConfig(root_certificates=pem, certificate_chain=pem, private_key=key.read_bytes())


async def test_mutual_tls_works_and_plain_text_does_not(connect, server, service, tls):
    server.stop()
    server.target = "localhost:0"
    server.start(
        grpc.ssl_server_credentials(
            [(tls.private_key, tls.certificate_chain)],
            root_certificates=tls.root_certificates,
            require_client_auth=True,
        )
    )
    target = f"localhost:{server.port}"
    async with connect(target=target, tls=tls) as client:
        assert len(await client.next_batch(2, policy_step=0)) == 2
    for refused in (None, TlsConfig(root_certificates=tls.root_certificates)):
        async with connect(target=target, tls=refused, retry_s=0) as client:
            with pytest.raises(StoreUnavailableError):
                await client.next_batch(2, policy_step=0)
    assert b"PRIVATE" in tls.private_key
    assert "PRIVATE" not in repr(tls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ""}, "target='': must not be empty"),
        ({"run_id": ""}, "run_id='': must not be empty"),
        ({"consumer": ""}, "consumer='': must be 1 to 104 bytes"),
        ({"timeout_s": 0}, "timeout_s=0: must be finite and above 0"),
        ({"retry_s": float("inf")}, "retry_s=inf: must be finite and at least 0"),
        ({"on_unavailable": "skip"}, "on_unavailable='skip': must be 'raise' or 'uniform'"),
        ({"max_buffered_reports": -1}, "max_buffered_reports=-1: must be at least 0"),
    ],
)
def test_impossible_options_are_refused_when_the_client_is_made(options, message):
    with pytest.raises(InvalidRequestError) as caught:
        TrainerClient(**{"target": "localhost:1", "run_id": "math", **options})
    assert str(caught.value) == message
    with pytest.raises(InvalidRequestError, match="go together"):
        TlsConfig(private_key=b"key")


def test_making_and_pickling_a_client_connects_to_nothing():
    client = TrainerClient("localhost:1", "math")
    copy = pickle.loads(pickle.dumps(client))
    assert client._link._channel is copy._link._channel is None
    assert repr(copy) == repr(client) != ""


def test_an_asyncio_client_may_be_used_in_one_loop_after_another(server):
    client = AsyncTrainerClient(server.target, "math")

    async def take_one():
        return (await client.next_batch(2, policy_step=0)).batch_id

    assert [asyncio.run(take_one()) for _ in range(2)] == ["default-0", "default-1"]
    asyncio.run(client.close())
