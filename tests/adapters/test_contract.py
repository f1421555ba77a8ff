"""Signatures are written alike whether they are inspected or read in source."""

from __future__ import annotations

import pytest

from tests.adapters.contract import (
    FOLDER,
    Contract,
    parameters_in_source,
    parameters_of,
    recorded,
)

SOURCE = """
def alone(a, b=None): ...

if True:
    class Sampler:
        def __init__(self, size): ...
        def plain(self): ...
        async def observe(self, group, *rest, step=0, name, **options): ...
        def only(self, a, b=1, /, c=2, *, d): ...
        def positional(self, /): ...
"""

EXPECTED = {
    "alone": ["a", "b=…"],
    "Sampler.__init__": ["self", "size"],
    "Sampler.plain": ["self"],
    "Sampler.observe": ["self", "group", "*rest", "step=…", "name", "**options"],
    "Sampler.only": ["self", "a", "b=…", "/", "c=…", "*", "d"],
    "Sampler.positional": ["self", "/"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_are_written_alike(name: str) -> None:
    space: dict[str, object] = {}
    exec(SOURCE, space)
    owner, _, method = name.rpartition(".")
    function = getattr(space[owner], method) if owner else space[method]
    assert parameters_of(function) == parameters_in_source(SOURCE, name) == EXPECTED[name]


def test_source_may_be_a_file_and_a_class_has_the_parameters_of_its_init(tmp_path) -> None:
    file = tmp_path / "sampler.py"
    file.write_text(SOURCE, "utf-8")
    assert parameters_in_source(file, "Sampler") == ["self", "size"]
    with pytest.raises(LookupError, match=r"Sampler\.draw: 'draw' is not defined there"):
        parameters_in_source(file, "Sampler.draw")


def test_a_drift_is_named() -> None:
    contract = Contract("lib", "1.0", "read", "2026-11-21", {"observe": ["group", "step=…"]})
    contract.check("observe", lambda group, step=0: None)
    contract.check("observe", ["group", "step=…"])
    for drifted in (lambda group: 0, lambda group, step: 0, lambda group, *, step=0: 0):
        with pytest.raises(AssertionError, match=r"observe: has \(group.* in lib 1.0"):
            contract.check("observe", drifted)


@pytest.mark.parametrize("name", [file.stem for file in FOLDER.glob("*.json")])
def test_every_contract_says_where_it_is_from(name: str) -> None:
    contract = recorded(name)
    assert contract.source in ("read", "installed", "wheel")
    assert contract.library
    assert contract.version
    assert contract.callables
