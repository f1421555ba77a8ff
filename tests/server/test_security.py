"""Who may call what. The certificate beside is for localhost, self-signed, and of no other use."""

from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from curriculum_api.errors import InvalidRequestError, StateError
from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import probe_service_pb2 as probe
from curriculum_api.v1 import trainer_service_pb2 as tr
from curriculum_client import PermissionDeniedError, TlsConfig, TrainerClient, UnauthenticatedError
from curriculum_server.app import App
from curriculum_server.config import ServerConfig
from tests.conftest import CONFIG, RunningServer, Stubs

TLS = Path(__file__).parent / "tls"
CERT, KEY = str(TLS / "cert.pem"), str(TLS / "key.pem")


@pytest.fixture
def guarded(loop_thread, store_url, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"t0" = "trainer"\n"p0" = "prober"\n"o0" = "operator"\n')
    config = replace(CONFIG, redis=store_url, tokens=str(tokens))
    running = RunningServer(loop_thread, config)
    yield running
    running.stop()


def code_of(call, request, token):
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        call(request, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_each_role_calls_its_own_service_and_an_operator_calls_all(guarded, new_run):
    run_id, stubs = new_run(20), guarded.stubs
    calls = {
        "trainer": (stubs.trainer.PublishPolicy, publish_request(run_id)),
        "prober": (
            stubs.probe.LeaseProbes,
            probe.LeaseProbesRequest(run_id=run_id, request_id="r", prompt_count=1),
        ),
        "prober that embeds": (stubs.probe.AddEmbeddings, embeddings_request(run_id)),
        "prober that asks what to embed": (
            stubs.probe.ListUnembeddedPrompts,
            probe.ListUnembeddedPromptsRequest(run_id=run_id, page_size=1),
        ),
        "operator": (stubs.operator.GetStats, op.GetStatsRequest(run_id=run_id)),
    }
    codes = {
        role: [code_of(*call, token) for token in ("t0", "p0", "o0", "wrong", "")]
        for role, call in calls.items()
    }
    no, who = "PERMISSION_DENIED", "UNAUTHENTICATED"
    assert codes == {
        "trainer": ["OK", no, "OK", who, who],
        "prober": [no, "OK", "OK", who, who],
        "prober that embeds": [no, "OK", "OK", who, who],
        "prober that asks what to embed": [no, "OK", "OK", who, who],
        "operator": [no, no, "OK", who, who],
    }


def publish_request(run_id):
    return tr.PublishPolicyRequest(run_id=run_id, policy={"policy_step": 0, "uri": "file:///w"})


def embeddings_request(run_id):
    return probe.AddEmbeddingsRequest(
        run_id=run_id, request_id="e", embeddings=[{"prompt_id": "p1", "embedding": [1.0]}]
    )


def test_the_client_sends_its_token_and_names_what_is_wrong_with_it(guarded, new_run):
    run_id = new_run(20)
    with TrainerClient(guarded.address, run_id, token="t0") as client:
        assert len(client.next_batch(prompt_count=4, policy_step=0)) == 4
    with (
        TrainerClient(guarded.address, run_id, token="t1") as client,
        pytest.raises(UnauthenticatedError, match="known token"),
    ):
        client.next_batch(prompt_count=4, policy_step=0)
    with (
        TrainerClient(guarded.address, run_id, token="p0") as client,
        pytest.raises(PermissionDeniedError, match="role 'prober' may not call"),
    ):
        client.next_batch(prompt_count=4, policy_step=0)


def test_calls_are_encrypted_with_the_servers_certificate(loop_thread, store_url, new_run):
    run_id = new_run(20)
    config = replace(CONFIG, redis=store_url, tls_server_cert=CERT, tls_server_key=KEY)
    running = RunningServer(loop_thread, config)
    tls = TlsConfig(root_certificates=Path(CERT).read_bytes())
    try:
        with TrainerClient(running.address, run_id, tls=tls) as client:
            assert len(client.next_batch(prompt_count=4, policy_step=0)) == 4
        plain = Stubs(running.address)
        request = op.GetRunRequest(run_id=run_id)
        assert code_of(plain.operator.GetRun, request, "") == "UNAVAILABLE"
        plain.channel.close()
    finally:
        running.stop()


def test_with_a_client_ca_a_caller_must_show_a_certificate(loop_thread, store_url, new_run):
    run_id = new_run(20)
    config = replace(
        CONFIG, redis=store_url, tls_server_cert=CERT, tls_server_key=KEY, tls_client_ca=CERT
    )
    running = RunningServer(loop_thread, config)
    own, roots = Path(CERT).read_bytes(), Path(CERT).read_bytes()
    mutual = TlsConfig(roots, own, Path(KEY).read_bytes())
    try:
        with TrainerClient(running.address, run_id, tls=mutual) as client:
            assert len(client.next_batch(prompt_count=4, policy_step=0)) == 4
        bare = TrainerClient(running.address, run_id, tls=TlsConfig(roots), retry_s=0, timeout_s=3)
        with bare as client, pytest.raises(ConnectionError):
            client.next_batch(prompt_count=4, policy_step=0)
    finally:
        running.stop()


async def start(config):
    app = App(config)
    serving = await app.start()
    await app.stop()
    return serving


def test_beyond_loopback_the_server_wants_tls_and_tokens_or_an_explicit_word(
    loop_thread, store_url, tmp_path
):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"t0" = "trainer"\n')
    open_config = replace(CONFIG, redis=store_url, listen="0.0.0.0:0")
    for config in (
        open_config,
        replace(open_config, tokens=str(tokens)),
        replace(open_config, tls_server_cert=CERT, tls_server_key=KEY),
    ):
        with pytest.raises(StateError, match=r"listen=0.0.0.0:0: is open to others"):
            loop_thread.call(start(config))
    both = replace(open_config, tokens=str(tokens), tls_server_cert=CERT, tls_server_key=KEY)
    for config in (both, replace(open_config, allow_insecure=True)):
        assert loop_thread.call(start(config)).address.startswith("0.0.0.0:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ('"a" = "root"\n', "'root': must be one of trainer, prober, operator"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_bad_token_file_is_refused(loop_thread, store_url, tmp_path, text, message):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(text)
    with pytest.raises(InvalidRequestError, match=message):
        loop_thread.call(start(replace(CONFIG, redis=store_url, tokens=str(tokens))))


def test_half_a_certificate_is_refused(loop_thread, store_url):
    config: ServerConfig = replace(CONFIG, redis=store_url, tls_server_cert=CERT)
    with pytest.raises(InvalidRequestError, match="give both or neither"):
        loop_thread.call(start(config))
