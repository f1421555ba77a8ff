"""The signatures of other libraries that an adapter is written against, as they were recorded.

`contracts/<name>.json` says which library and version, how it was read, when, and for each callable
its parameters. A test holds our side against the record, and the library's where it is there, so
that a drift of either is noticed. Parameters are written as in a signature: "name", "name=…" where
there is a default (whose value is not compared), "*args", "**kwargs", a "*" before those that are
keyword-only and a "/" after those that are positional-only.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).with_name("contracts")


@dataclass(frozen=True)
class Contract:
    """What was recorded of one library."""

    library: str
    version: str
    source: Literal["read", "installed", "wheel"]
    """Read in the source, inspected as installed, or read in the wheel."""
    read_on: str
    callables: dict[str, list[str]]
    """Parameters by the dotted name of the callable: module, class, method."""

    def check(self, name: str, found: Callable[..., Any] | Sequence[str]) -> None:
        """Hold a callable, or its parameters, against what is recorded under a name.

        Raises:
            AssertionError: They differ in names, order, kinds or in which have defaults.
        """
        recorded = self.callables[name]
        actual = parameters_of(found) if callable(found) else list(found)
        assert actual == recorded, (
            f"{name}: has ({', '.join(actual)}), but ({', '.join(recorded)}) "
            f"in {self.library} {self.version}"
        )


def recorded(name: str) -> Contract:
    """The contract in contracts/<name>.json; a TypeError where a field is missing or unknown."""
    return Contract(**json.loads((FOLDER / f"{name}.json").read_text("utf-8")))


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """A callable's parameters. Give methods by their class (`Sampler.observe`), to have `self`."""
    parameters = inspect.signature(function).parameters.values()
    return list(
        _written((p.name, p.kind, p.default is not inspect.Parameter.empty) for p in parameters)
    )


def parameters_in_source(path_or_text: Path | str, name: str) -> list[str]:
    """The parameters of "function" or "Class.method" in source that cannot be imported.

    Args:
        path_or_text: The file, as a Path, or its text.
        name: Of the callable, without its module.

    Raises:
        LookupError: The source has no such callable.
    """
    text = path_or_text if isinstance(path_or_text, str) else path_or_text.read_text("utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [child for child in _definitions(node) if child.name == part]
        if not found:
            raise LookupError(f"{name}: {part!r} is not defined there")
        node = found[-1]
    if isinstance(node, ast.ClassDef):
        return parameters_in_source(text, f"{name}.__init__")
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return list(_written(_arguments(node.args)))


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Parameter = tuple[str, Any, bool]
"""Name, kind, and whether there is a default."""


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """Those directly in a module or class, also under an `if` or `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _definitions(child)


def _arguments(arguments: ast.arguments) -> Iterator[_Parameter]:
    kinds = inspect.Parameter
    positional = [*arguments.posonlyargs, *arguments.args]
    required_count = len(positional) - len(arguments.defaults)
    for i, argument in enumerate(positional):
        is_only = i < len(arguments.posonlyargs)
        kind = kinds.POSITIONAL_ONLY if is_only else kinds.POSITIONAL_OR_KEYWORD
        yield argument.arg, kind, i >= required_count
    if arguments.vararg:
        yield arguments.vararg.arg, kinds.VAR_POSITIONAL, False
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield argument.arg, kinds.KEYWORD_ONLY, default is not None
    if arguments.kwarg:
        yield arguments.kwarg.arg, kinds.VAR_KEYWORD, False


def _written(parameters: Iterator[_Parameter]) -> Iterator[str]:
    last = None
    for name, kind, has_default in parameters:
        if last == kind.POSITIONAL_ONLY != kind:
            yield "/"
        if kind == kind.KEYWORD_ONLY and last not in (kind.KEYWORD_ONLY, kind.VAR_POSITIONAL):
            yield "*"
        stars = {kind.VAR_POSITIONAL: "*", kind.VAR_KEYWORD: "**"}.get(kind, "")
        yield f"{stars}{name}{'=…' if has_default else ''}"
        last = kind
    if last is not None and last == last.POSITIONAL_ONLY:
        yield "/"
