"""`curriculum runs` and `version`, through a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from curriculum_api.v1.run_pb2 import RunConfig, SamplingConfig, SelectionConfig

TLS = Path(__file__).parents[1] / "server" / "tls"


def test_a_run_is_created_from_options(curriculum, service):
    curriculum.ok(
        *("runs", "create", "r1", "--strategy", "thompson", "--group-size", "16"),
        *("--pass-threshold", "0.5", "--seed", "7", "--window-steps", "10"),
        *("--lease-ttl", "1h30m", "--channel", "confidence:-1:1"),
        *("--set", "optimism=1.5", "--set", "selection.domain_shares.a.b=0.25"),
    )
    config = service.runs["r1"].run.config
    assert config.selection.strategy == "thompson"
    assert config.selection.group_size == 16
    assert config.selection.optimism == 1.5
    assert dict(config.selection.domain_shares) == {"a.b": 0.25}
    assert (config.pass_threshold, config.seed, config.window_steps) == (0.5, 7, 10)
    assert config.lease_ttl.seconds == 5400
    assert [(c.name, c.min_value, c.max_value) for c in config.channels] == [("confidence", -1, 1)]


@pytest.mark.parametrize(
    "args",
    [
        ("--objective", "reward=0.7,explanation=0.3"),
        ("--objective", " reward=7e-1, explanation=.3"),
        ("--set", "objective.reward=0.7", "--set", "objective.explanation=0.3"),
        ("--set", "objective.entropy=1", "--objective", "reward=0.7,explanation=0.3"),
    ],
)
def test_an_objective_is_given_as_weights_by_name(curriculum, service, args):
    curriculum.ok("runs", "create", "r1", "--channel", "explanation:0:10", *args)
    assert dict(service.runs["r1"].run.config.objective) == {"reward": 0.7, "explanation": 0.3}
    assert curriculum.json("runs", "show", "r1")["config"]["objective"] == {
        "explanation": 0.3,
        "reward": 0.7,
    }
    shown = curriculum.ok("runs", "show", "r1")
    assert "objective.reward" in shown
    assert "objective.explanation" in shown


def test_fields_that_are_not_given_stay_absent(curriculum, service):
    curriculum.ok("runs", "create", "r1", "--seed", "0")
    config = service.runs["r1"].run.config
    assert config.HasField("seed")
    assert not config.HasField("window_steps")
    assert not config.HasField("lease_ttl")


def test_a_toml_file_is_read_and_assignments_win(curriculum, service, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        """
        window_steps = 10
        reward_min = -1
        lease_ttl = "45s"
        [selection]
        strategy = "uniform"
        optimism = 2
        [selection.domain_shares]
        math = 0.5
        [sampling]
        temperature = 0
        stop = ["</answer>", "\\n\\n"]
        chat = true
        [objective]
        reward = 3
        entropy = 0.5
        [[channels]]
        name = "entropy"
        min_value = 0
        max_value = 5.5
        """
    )
    curriculum.ok("runs", "create", "r1", "--config", str(path), "--set", "optimism=1")
    config = service.runs["r1"].run.config
    assert (config.window_steps, config.reward_min, config.lease_ttl.seconds) == (10, -1.0, 45)
    assert (config.selection.strategy, config.selection.optimism) == ("uniform", 1.0)
    assert dict(config.selection.domain_shares) == {"math": 0.5}
    assert config.channels[0].max_value == 5.5
    assert dict(config.objective) == {"reward": 3.0, "entropy": 0.5}
    assert config.sampling == SamplingConfig(temperature=0, stop=["</answer>", "\n\n"], chat=True)


@pytest.mark.parametrize(
    ("typed", "stop"),
    [("[END]", ["[END]"]), ('["\\n\\n", "é"]', ["\n\n", "é"]), ("7", ["7"]), ('"a"', ['"a"'])],
)
def test_how_the_trainer_samples_is_set_and_shown_as_it_would_be_set(
    curriculum, service, typed, stop
):
    curriculum.ok(
        *("runs", "create", "r1", "--set", "sampling.temperature=0.7", "--set", f"stop={typed}"),
        *("--set", "chat=false", "--set", "max_policy_lag=0"),
    )
    config = service.runs["r1"].run.config
    assert config.sampling == SamplingConfig(temperature=0.7, stop=stop, chat=False)
    assert config.HasField("max_policy_lag")
    shown = " ".join(curriculum.ok("runs", "show", "r1").split())
    assert "max_policy_lag 0" in shown
    assert "sampling.chat false" in shown
    assert f"sampling.stop {json.dumps(stop, ensure_ascii=False)}" in shown
    curriculum.ok("runs", "update", "r1", "--set", "sampling.stop=x")
    assert list(service.runs["r1"].run.config.sampling.stop)[-1] == "x"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("group_size = 8", "group_size: unknown key; allowed are selection.strategy"),
        ("[selection]\ngroupsize = 8", "selection.groupsize: unknown key; allowed are strategy"),
        ("window_steps = 1.5", "window_steps=1.5: must be a whole number in [0, 4294967295]"),
        ("window_steps = true", "window_steps=True: must be a whole number"),
        ("pass_threshold = 'x'", "pass_threshold='x': must be a number"),
        ("selection = 3", "selection=3: must be a table"),
        ("lease_ttl = 'soon'", "lease_ttl='soon': write a duration"),
        ("[[channels]]\nname = 'a'", "channels[0]: min_value, max_value missing"),
        ("[sampling]\nchat = 1", "sampling.chat=1: must be true or false"),
        ("[sampling]\nstop = 'a'", "sampling.stop='a': must be a list of texts"),
        ("[sampling]\nstop = [1]", "sampling.stop=1: must be text"),
        ("[sampling]\nheat = 1", "sampling.heat: unknown key; allowed are temperature, top_p"),
        ("channels = 1", "channels=1: must be a list of tables"),
        ("objective = 1", "objective=1: must be a table"),
        ("[objective]\nreward = 'much'", "objective.reward='much': must be a number"),
        ("a = ", "not TOML"),
    ],
)
def test_a_bad_toml_file_is_refused_by_name(curriculum, service, tmp_path, toml, said):
    path = tmp_path / "run.toml"
    path.write_text(toml)
    message = curriculum.error("runs", "create", "r1", "--config", str(path))
    assert said in message
    assert str(path) in message
    assert not service.runs


def test_every_field_of_the_contract_can_be_set(curriculum, service):
    # These have their own forms.
    skipped = {"selection", "sampling", "channels", "domain_shares", "objective", "stop", "chat"}
    parts = [RunConfig.DESCRIPTOR, SelectionConfig.DESCRIPTOR, SamplingConfig.DESCRIPTOR]
    fields = [field for part in parts for field in part.fields if field.name not in skipped]
    curriculum.ok("runs", "create", "r1", *(f"--set={field.name}=1" for field in fields))
    config = service.runs["r1"].run.config
    owners = dict(zip(parts, (config, config.selection, config.sampling), strict=True))
    for field in fields:
        assert owners[field.containing_type].HasField(field.name), field.name


def test_no_two_fields_of_the_contract_are_set_by_one_short_name():
    parts = (RunConfig, SelectionConfig, SamplingConfig)
    names = [field.name for part in parts for field in part.DESCRIPTOR.fields]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--set", "nonsense=1"], "nonsense: unknown key; allowed are"),
        (["--set", "optimism"], "write KEY=VALUE"),
        (["--set", "optimism=much"], "optimism='much': must be a number"),
        (["--set", "chat=1"], "chat='1': must be true or false"),
        (["--set", "stop=[1]"], "stop=1: must be text"),
        (["--set", "stop.x=1"], "stop.x=1: cannot be set so"),
        (["--set", "sampling=1"], "sampling=1: cannot be set so"),
        (["--set", "sampling.heat=1"], "sampling.heat: unknown key"),
        (["--set", "selection.chat=true"], "selection.chat: unknown key"),
        (["--set", "channels=a"], "channels=a: cannot be set so"),
        (["--set", "seed.x=1"], "seed.x=1: cannot be set so"),
        (["--set", "domain_shares=1"], "domain_shares=1: cannot be set so"),
        (["--group-size", "8.5"], "group_size=8.5: must be a whole number"),
        (["--channel", "a:0"], "channel=a:0: write name:min:max"),
        (["--objective", "reward"], "objective=reward: write name=weight,name=weight"),
        (["--objective", "reward=x"], "objective=reward=x: write name=weight"),
        (["--objective", "reward=nan"], "objective=reward=nan: write name=weight"),
        (["--objective", "reward=1,"], "objective=reward=1,: write name=weight"),
        (["--objective", "reward=1,reward=2"], "each name once"),
        (["--set", "objective=1"], "objective=1: cannot be set so"),
        (["--set", "objective.reward=much"], "objective.reward='much': must be a number"),
        (["--lease-ttl", "-3m"], "write a duration"),
    ],
)
def test_a_bad_option_is_a_usage_error(curriculum, service, args, said):
    assert said in " ".join(curriculum.error("runs", "create", "r1", *args, code=2).split())
    assert not service.runs


def test_what_the_contract_has_given_up_is_not_offered(curriculum):
    said = " ".join(curriculum.error("runs", "create", "r1", "--set", "nonsense=1", code=2).split())
    assert "selection.optimism" in said
    assert "objective.NAME" in said
    assert "selection.domain_shares.DOMAIN" in said
    assert "discount" not in said


def test_every_page_of_runs_is_listed(curriculum):
    for name in ("a", "b", "c", "d", "e"):
        curriculum.ok("runs", "create", name)
    assert [run["run_id"] for run in curriculum.json("runs", "list")["runs"]] == list("abcde")
    assert len(curriculum.ok("runs", "list").splitlines()) == 6


def test_a_shown_run_has_every_field_and_parses_back(curriculum, service):
    curriculum.ok("runs", "create", "r1", "--lease-ttl", "30m", "--set", "domain_shares.x=0.5")
    shown = curriculum.json("runs", "show", "r1")
    assert shown["prompt_count"] == 0
    assert shown["policy"] is None
    assert shown["config"]["seed"] is None
    assert shown["config"]["lease_ttl"] == "1800s"
    assert json_format.ParseDict(shown, type(service.runs["r1"].run)()) == service.runs["r1"].run


def test_an_update_changes_only_what_is_set(curriculum, service):
    curriculum.ok("runs", "create", "r1", "--group-size", "8")
    curriculum.ok("runs", "update", "r1", "--set", "optimism=2")
    selection = service.runs["r1"].run.config.selection
    assert (selection.group_size, selection.optimism) == (8, 2.0)


def test_an_update_of_a_fixed_field_is_the_servers_to_refuse(curriculum):
    curriculum.ok("runs", "create", "r1")
    said = curriculum.error("runs", "update", "r1", "--set", "seed=3")
    assert said == "error: seed: fixed at creation\n"


def test_an_update_without_a_change_is_a_usage_error(curriculum):
    assert "--set or --config" in curriculum.error("runs", "update", "r1", code=2)


def test_a_delete_asks_first(curriculum, service):
    curriculum.ok("runs", "create", "r1")
    assert "Delete r1" in curriculum.error("runs", "delete", "r1", stdin="n\n")
    assert "r1" in service.runs
    curriculum.ok("runs", "delete", "r1", stdin="y\n")
    assert not service.runs


def test_a_delete_with_json_and_yes_prints_one_document(curriculum):
    curriculum.ok("runs", "create", "r1")
    assert curriculum.json("runs", "delete", "r1", "--yes")["deleted"] is True


def test_a_missing_run_is_an_error_on_stderr(curriculum):
    assert curriculum.error("runs", "show", "no") == "error: run_id=no: no such run\n"
    assert curriculum.error("runs", "show", "no", "--json") == "error: run_id=no: no such run\n"


def test_an_absent_server_is_named_with_how_to_start_one(curriculum_at):
    said = curriculum_at("localhost:1").error("runs", "list")
    assert said.startswith("error: localhost:1 is unavailable")
    assert "curriculum-server" in said
    assert "CURRICULUM_SERVER" in said


def test_the_server_may_be_named_before_or_after_the_command(curriculum_at, target):
    lost = curriculum_at("localhost:1")
    lost.ok("--server", target, "runs", "list")
    lost.ok("runs", "list", "-s", target)


def test_the_token_travels_as_a_bearer(curriculum, service, math):
    curriculum.ok("runs", "show", math, CURRICULUM_TOKEN="secret")
    assert service.metadata[-1]["authorization"] == "Bearer secret"


def test_a_certificate_without_its_key_is_refused(curriculum, tmp_path):
    path = tmp_path / "cert.pem"
    path.write_text("x")
    assert "give both or neither" in curriculum.error("--tls-cert", str(path), "runs", "list")


def test_a_certificate_and_its_key_encrypt_without_a_ca(curriculum):
    files = ("--tls-cert", str(TLS / "cert.pem"), "--tls-key", str(TLS / "key.pem"))
    assert "is unavailable" in curriculum.error(*files, "runs", "list")  # it speaks plain text


def test_version_is_shown_without_a_server(curriculum_at):
    lost = curriculum_at("localhost:1")
    assert "curriculum_api.v1" in lost.ok("version")
    assert set(json.loads(lost.ok("version", "--json"))) == {"version", "contract", "python"}
