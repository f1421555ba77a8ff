"""The files in server/deploy say what the server understands, and agree with each other."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import tomllib
from pathlib import Path

import prometheus_client
import pytest
import redis
import yaml

from curriculum_api.limits import DEFAULT_PORT
from curriculum_server import metrics
from curriculum_server.config import ENVIRONMENT_PREFIX, FOREIGN_VARIABLES, read_config
from curriculum_server.security import Tokens, check_exposure
from curriculum_server.store.embedded import binary_path
from tests.server.clusters import free_port, wait_for

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "server/deploy"
KUBERNETES = DEPLOY / "kubernetes"
SERVICES = {f"curriculum_api.v1.{name}Service" for name in ("Trainer", "Probe", "Operator")}


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def manifests():
    documents = []
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            documents += yaml.safe_load_all(path.read_text())
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


@pytest.fixture(scope="module")
def cluster():
    return manifests()


@pytest.fixture(scope="module")
def compose():
    return load("compose.yaml")["services"]


def pod(cluster):
    return cluster["Deployment", "curriculum-server"]["spec"]["template"]["spec"]


def compose_environment(compose):
    return compose["server"]["environment"]


def tls_environment(compose):
    return (
        compose_environment(compose) | load("compose.tls.yaml")["services"]["server"]["environment"]
    )


def kubernetes_environment(cluster):
    (container,) = pod(cluster)["containers"]
    values = dict(cluster["ConfigMap", "curriculum-server"]["data"])
    for source in container["envFrom"]:
        assert source["configMapRef"]["name"] == "curriculum-server"
    assert [v["name"] for v in container["env"]] == ["CURRICULUM_REDIS"]
    return values | {"CURRICULUM_REDIS": "redis://of-the-secret"}


def port(address):
    return int(address.rpartition(":")[2])


@pytest.fixture(scope="module", params=["compose", "compose with TLS", "kubernetes"])
def environment(request, compose, cluster):
    return {
        "compose": lambda: compose_environment(compose),
        "compose with TLS": lambda: tls_environment(compose),
        "kubernetes": lambda: kubernetes_environment(cluster),
    }[request.param]()


def test_every_variable_is_one_that_the_server_reads(environment):
    config = read_config([], environment)
    assert config.redis
    assert config.log_json
    assert port(config.listen) == DEFAULT_PORT


def test_what_is_open_to_others_is_encrypted_and_asks_for_tokens(compose, cluster):
    for values in (tls_environment(compose), kubernetes_environment(cluster)):
        config = read_config([], values)
        assert not config.allow_insecure
        encrypted = bool(config.tls_server_cert and config.tls_server_key)
        tokens = Tokens({"t": "trainer"} if config.tokens else {})
        check_exposure(config.listen, "0.0.0.0", encrypted=encrypted, tokens=tokens)
    for service in compose.values():
        assert all(shown.startswith("127.0.0.1:") for shown in service.get("ports", ()))


def test_secrets_are_mounted_where_the_server_looks_for_them(compose, cluster):
    (container,) = pod(cluster)["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    values = kubernetes_environment(cluster)
    assert values["CURRICULUM_TOKENS"] == f"{mounts['tokens']}/tokens.toml"
    assert values["CURRICULUM_TLS_SERVER_CERT"] == f"{mounts['tls']}/tls.crt"
    assert values["CURRICULUM_TLS_SERVER_KEY"] == f"{mounts['tls']}/tls.key"
    overlay = load("compose.tls.yaml")
    for service in overlay["services"].values():
        found = {v for v in service["environment"].values() if str(v).startswith("/run/secrets/")}
        assert found == {f"/run/secrets/{name}" for name in service["secrets"]}
        assert set(service["secrets"]) <= set(overlay["secrets"])


def test_the_prober_is_told_what_it_understands(compose):
    from curriculum_probe.arguments import parser
    from curriculum_probe.engines import ENGINES

    overlay = load("compose.tls.yaml")["services"]["prober"]["environment"]
    for name in compose["prober"]["environment"] | overlay:
        assert name.startswith(ENVIRONMENT_PREFIX)
        assert name in FOREIGN_VARIABLES
    parsed = parser().parse_args(compose["prober"]["command"])
    assert parsed.engine in ENGINES


def test_ports_agree(compose, cluster):
    values = kubernetes_environment(cluster)
    (container,) = pod(cluster)["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {
        "grpc": port(values["CURRICULUM_LISTEN"]),
        "metrics": port(values["CURRICULUM_METRICS"]),
        "health": port(values["CURRICULUM_HEALTH"]),
    }
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert container[probe]["grpc"]["port"] == ports["health"]
    service = cluster["Service", "curriculum"]["spec"]
    assert {p["name"]: p["port"] for p in service["ports"]} == {
        name: ports[name] for name in ("grpc", "metrics")
    }
    for found in [*service["ports"], *cluster["Service", "curriculum-store"]["spec"]["ports"]]:
        assert found["targetPort"] == found["name"]
    annotations = cluster["Deployment", "curriculum-server"]["spec"]["template"]["metadata"]
    assert annotations["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    exposed = re.search(r"^EXPOSE (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {int(p) for p in exposed[1].split()} == set(ports.values())
    (scraped,) = load("prometheus.yml")["scrape_configs"]
    (found,) = scraped["dns_sd_configs"]
    assert found["port"] == port(compose_environment(compose)["CURRICULUM_METRICS"])
    assert set(found["names"]) <= set(compose)


def test_what_selects_pods_finds_them(cluster):
    labels = {
        name: cluster[kind, name]["spec"]["template"]["metadata"]["labels"]
        for kind, name in cluster
        if kind in ("Deployment", "StatefulSet")
    }
    for (kind, name), document in cluster.items():
        spec = document.get("spec", {})
        if kind == "Service":
            selector = spec["selector"]
        elif kind == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        elif kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            selector = spec["selector"]["matchLabels"]
        else:
            continue
        assert sum(selector.items() <= found.items() for found in labels.values()) == 1, name


def test_liveness_asks_for_the_server_and_readiness_for_a_service(cluster):
    (container,) = pod(cluster)["containers"]
    assert "service" not in container["livenessProbe"]["grpc"]
    assert "service" not in container["startupProbe"]["grpc"]
    assert container["readinessProbe"]["grpc"]["service"] in SERVICES


def test_no_pod_gets_variables_that_the_server_would_refuse(cluster):
    """Of a Service named curriculum-store Kubernetes makes CURRICULUM_STORE_PORT."""
    for (kind, _), document in cluster.items():
        if kind in ("Deployment", "StatefulSet"):
            assert document["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_servers_are_given_the_time_that_they_take_to_drain(compose, cluster):
    (container,) = pod(cluster)["containers"]
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(kubernetes_environment(cluster)["CURRICULUM_DRAIN_S"])
    assert pod(cluster)["terminationGracePeriodSeconds"] >= pause_s + drain_s + 10
    drain_s = float(compose_environment(compose)["CURRICULUM_DRAIN_S"])
    assert int(compose["server"]["stop_grace_period"].removesuffix("s")) >= drain_s + 10


def test_the_kustomization_names_every_manifest():
    named = load("kubernetes/kustomization.yaml")["resources"]
    found = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(named) == sorted(set(named)) == sorted(found)


def of_the_store(compose, cluster):
    """The arguments with which both start their store."""
    (container,) = cluster["StatefulSet", "curriculum-store"]["spec"]["template"]["spec"][
        "containers"
    ]
    return [shlex.split(compose["store"]["command"]), container["args"]]


@pytest.mark.parametrize("which", [0, 1], ids=["compose", "kubernetes"])
def test_the_store_starts_as_told_and_lets_the_server_in(
    compose, cluster, which, tmp_path, start_server
):
    command, *flags = of_the_store(compose, cluster)[which]
    assert command == "valkey-server"
    places = {"/data": str(tmp_path), "/etc/valkey/users.acl": str(DEPLOY / "store-users.acl")}
    port = free_port()
    flags = [places.get(flag, flag) for flag in flags]
    login = "curriculum:REPLACE-THIS-PASSWORD@" if "--aclfile" in flags else ""
    with subprocess.Popen(
        [str(binary_path()), *flags, "--port", str(port)], stdout=subprocess.DEVNULL
    ) as process:
        try:
            wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
            server = start_server(redis=f"redis://{login}127.0.0.1:{port}")
            server.stubs.create_run("r")
            with redis.Redis.from_url(f"redis://{login}127.0.0.1:{port}") as client:
                facts = client.info()
            assert (facts["aof_enabled"], facts["maxmemory_policy"]) == (1, "noeviction")
        finally:
            process.terminate()


def known_metrics():
    """Names and labels of every time series that the server shows."""
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, prometheus_client.metrics.MetricWrapperBase):
            for described in metric.describe():
                name, labels = described.name, set(metric._labelnames)
                endings = {"counter": ["_total"], "gauge": [""]}.get(described.type)
                for ending in endings or ["_bucket", "_sum", "_count"]:
                    found[name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return found


def rules():
    (group,) = load("alerts.yml")["groups"]
    return group["rules"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alerts_use_metrics_and_labels_that_exist(rule):
    known = known_metrics()
    used = set(re.findall(r"\bcurriculum_\w+", rule["expr"]))
    assert used <= known.keys(), used - known.keys()
    for name, matchers in re.findall(r"\b(curriculum_\w+)\{([^}]*)\}", rule["expr"]):
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= known[name]
    labels = {"job", "instance"}.union(*(known[name] for name in used))
    for listed in re.findall(r"\b(?:by|ignoring|on) \(([^)]*)\)", rule["expr"]):
        assert {label.strip() for label in listed.split(",")} <= labels
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels
    assert rule["expr"].count("(") == rule["expr"].count(")")
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_prometheus_reads_the_rules_that_are_mounted(compose):
    assert load("prometheus.yml")["rule_files"] == ["alerts.yml"]
    mounted = {volume.split(":")[0] for volume in compose["prometheus"]["volumes"]}
    assert {"./prometheus.yml", "./alerts.yml"} <= mounted


def test_the_image_holds_what_the_project_installs():
    text = (DEPLOY / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for extra in re.findall(r"\*\.whl\)\[(\w+)\]", text):
        assert extra in project["project"]["optional-dependencies"]
    for command in re.findall(r'ENTRYPOINT \["([^"]+)"\]', text):
        assert command in project["project"]["scripts"]
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
        for name in line.split()
    ]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert all(any(Path(p).is_relative_to(c) for c in copied) for p in packages)
    for stage in text.split("FROM ")[3:]:
        assert "USER 10001:10001" in stage
