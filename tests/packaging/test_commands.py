"""The commands' entry modules, with the application behind each replaced."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest


@dataclass(frozen=True)
class Command:
    package: str
    application: str
    installed_by_extra: str
    extra: str

    def run(self, application: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> object:
        replacement = SimpleNamespace(main=application)
        monkeypatch.setitem(sys.modules, f"{self.package}.{self.application}", replacement)
        return importlib.import_module(f"{self.package}.main").main()


each_command = pytest.mark.parametrize(
    "command",
    [
        Command("curriculum_operator", "cli", "click", "operator"),
        Command("curriculum_server", "app", "numpy", "server"),
        Command("curriculum_probe", "cli", "reasoning_gym", "probe"),
    ],
    ids=lambda command: command.extra,
)


@each_command
def test_a_missing_extra_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = _lacking(f"{command.installed_by_extra}.part")
    with pytest.raises(SystemExit, match=rf"pip install 'edge-curriculum\[{command.extra}\]'"):
        command.run(lacking, monkeypatch)


@each_command
def test_another_missing_module_is_not_blamed_on_the_extra(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModuleNotFoundError, match="typo"):
        command.run(_lacking(f"{command.package}.typo"), monkeypatch)


@each_command
def test_the_exit_code_of_the_application_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.run(lambda: 3, monkeypatch) == 3


def _lacking(module: str) -> Callable[[], object]:
    def application() -> object:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    return application
