"""What a user gets: the distribution is built, and installed in environments of their own."""

import email
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "curriculum": ROOT / "curriculum",
    "curriculum_api": ROOT / "protos/curriculum_api",
    "curriculum_client": ROOT / "clients/curriculum_client",
    "curriculum_operator": ROOT / "clients/curriculum_operator",
    "curriculum_probe": ROOT / "clients/curriculum_probe",
    "curriculum_server": ROOT / "server/curriculum_server",
}
HEAVY = ("curriculum", "numpy", "redis", "torch", "transformers")
IMPORT_THE_CLIENT = f"""
import sys
import curriculum_api.v1.operator_service_pb2_grpc
import curriculum_api.v1.probe_service_pb2_grpc
import curriculum_api.v1.trainer_service_pb2_grpc
import curriculum_client
print(*(name for name in {HEAVY} if name in sys.modules))
"""

# The first test builds three times; a slow network makes the installations slow.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Built:
    wheel: Path
    wheel_of_sdist: Path

    @property
    def names(self) -> set[str]:
        return _names(self.wheel)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--no-isolation", ROOT)
    _run(*build, "--wheel", "--outdir", out / "direct")
    _run(*build, "--outdir", out / "by_sdist")  # by default the wheel is built from the sdist
    [wheel] = (out / "direct").glob("*.whl")
    [wheel_of_sdist] = (out / "by_sdist").glob("*.whl")
    return Built(wheel, wheel_of_sdist)


@pytest.fixture(scope="module")
def newest(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of an environment with the base install and nothing else."""
    return _install(tmp_path_factory.mktemp("newest") / "venv", built.wheel)


def test_the_wheel_installs_our_packages_and_no_other_name(built: Built) -> None:
    top_level = {name.split("/")[0] for name in built.names}
    [dist_info] = (name for name in top_level if name.endswith(".dist-info"))
    assert top_level == {*PACKAGES, dist_info}


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    assert _names(built.wheel_of_sdist) == built.names


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(built: Built, package: str) -> None:
    assert f"{package}/py.typed" in built.names


def test_every_source_file_of_ours_is_in_the_wheel(built: Built) -> None:
    for package, folder in PACKAGES.items():
        sources = {f"{package}/{path.relative_to(folder)}" for path in folder.rglob("*.py")}
        assert sources - built.names == set()


def test_the_protos_and_their_generated_code_are_in_the_wheel(built: Built) -> None:
    protos = list((PACKAGES["curriculum_api"] / "v1").glob("*.proto"))
    assert protos
    for proto in protos:
        suffixes = [".proto", "_pb2.py", "_pb2.pyi"]
        if proto.stem.endswith("_service"):
            suffixes += ["_pb2_grpc.py", "_pb2_grpc.pyi"]
        wanted = {f"curriculum_api/v1/{proto.stem}{suffix}" for suffix in suffixes}
        assert wanted - built.names == set()


def test_the_base_install_is_grpcio_and_protobuf(built: Built) -> None:
    names = {requirement.partition(">=")[0] for requirement in _base_requirements(built.wheel)}
    assert names == {"grpcio", "protobuf"}


def test_the_client_imports_with_the_base_install_alone(newest: Path, tmp_path: Path) -> None:
    assert _run(newest / "python", "-I", "-c", IMPORT_THE_CLIENT, cwd=tmp_path).split() == []


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the oldest grpcio has no wheel for it")
def test_the_client_imports_with_the_oldest_versions_it_declares(
    built: Built, tmp_path: Path
) -> None:
    oldest = [name.replace(">=", "==") for name in _base_requirements(built.wheel)]
    scripts = _install(tmp_path / "venv", built.wheel, *oldest)
    assert _run(scripts / "python", "-I", "-c", IMPORT_THE_CLIENT, cwd=tmp_path).split() == []


def test_the_client_leaves_heavy_packages_alone_where_they_are_installed(tmp_path: Path) -> None:
    assert _run(sys.executable, "-I", "-c", IMPORT_THE_CLIENT, cwd=tmp_path).split() == []


def test_the_commands_are_installed(newest: Path) -> None:
    scripts = {path.name for path in newest.glob("curriculum*")}
    assert scripts == {"curriculum", "curriculum-probe", "curriculum-server"}


@pytest.mark.parametrize(
    ("command", "extra"), [("curriculum", "operator"), ("curriculum-server", "server")]
)
def test_a_command_without_its_extra_names_the_extra(
    newest: Path, command: str, extra: str, tmp_path: Path
) -> None:
    answer = subprocess.run(
        [newest / command, "--help"], cwd=tmp_path, env=_environment(), capture_output=True
    )
    message = answer.stderr.decode()
    assert answer.returncode == 1
    assert f"pip install 'edge-curriculum[{extra}]'" in message
    assert len(message.splitlines()) == 1


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _base_requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        [path] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(path))
    requirements = metadata.get_all("Requires-Dist", [])
    return [requirement for requirement in requirements if "extra ==" not in requirement]


def _install(environment: Path, *what: Path | str) -> Path:
    _run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", *what)
    return python.parent


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(*command: Path | str, cwd: Path | None = None) -> str:
    answer = subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, f"{command} failed:\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout
