"""What typings/ says of TensorRT is so, and is no more than the code uses.

Names are held against every version recorded in tests/tensorrt_names; arguments, types and what can be set, against the
docstrings of the TensorRT-RTX that is installed, which have its signatures. mypy holds the code against the stubs.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from tensorrt_uses import ROOT, faced_by, sources, uses

from runtimes.nvidia.log import log_of

API: Any = tensorrt_rtx
"""As it is, and not as the stub says."""
TENSORRT, RTX = ROOT / "typings" / "tensorrt.pyi", ROOT / "typings" / "tensorrt_rtx.pyi"
USERS = [*sources(), ROOT / "tests" / "lowering" / "test_lint.py"]
IN_C_ALONE = {"Dims.__iter__", "IHostMemory.__buffer__"}
"""What an object can do by other means than a method of that name; tried below."""
CALLED_BACK = {"ILogger", "IProgressMonitor"}
"""The code derives from these, and the library calls their methods."""
SPELT = {
    "SupportsInt": "int",
    "IParserError": "ParserError",
    "_Shape": "Dims",
    "Sequence[SupportsInt]": "Sequence[int]",
}
"""Types for which the docstrings, or the stubs, have another word."""


@dataclass(frozen=True)
class Entry:
    """A class, member or function of a stub: `Class.member`, and its definition."""

    name: str
    node: ast.stmt

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))


def entries(body: list[ast.stmt], prefix: str = "") -> Iterator[Entry]:
    for node in body:
        match node:
            case ast.ClassDef(name=name, body=inner):
                yield Entry(prefix + name, node)
                yield from entries(inner, f"{prefix}{name}.")
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield Entry(prefix + name, node)


def stub(path: Path) -> list[Entry]:
    """All that a stub defines, but for its own aliases."""
    return [entry for entry in entries(ast.parse(path.read_text()).body) if entry.name != "_Shape"]


BOTH = [pytest.param(entry, id=f"{path.stem}:{entry.name}") for path in (TENSORRT, RTX) for entry in stub(path)]


def live(name: str) -> Any:
    """What TensorRT-RTX has under a name."""
    return reduce(getattr, name.split("."), API)


def is_property(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)


@pytest.mark.parametrize("path", [TENSORRT, RTX], ids=lambda path: path.stem)
def test_every_name_is_in_every_version_promised(path: Path) -> None:
    """The classes of tensorrt.pyi stand for both libraries', so that its names must be in both."""
    names = [entry.name for entry in stub(path) if entry.is_public]
    assert names
    records = faced_by(path.with_suffix(".py") if path == RTX else path)
    missing = [f"{name} is not in {record.version}" for record in records for name in names if name not in record.names]
    assert not missing, "\n".join(
        [*missing, "leave it out of the stub, and ask for it with hasattr; or let the file of one library alone use it"]
    )


def test_what_the_stub_of_rtx_takes_over_is_in_the_other() -> None:
    imported = [
        node
        for node in ast.parse(RTX.read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module == "tensorrt"
    ]
    names = {alias.name for node in imported for alias in node.names}
    assert names
    assert names <= {entry.name for entry in stub(TENSORRT)}


@pytest.mark.parametrize("entry", BOTH)
def test_the_installed_rtx_has_what_the_stub_says(entry: Entry) -> None:
    if entry.name in IN_C_ALONE:
        return
    found = live(entry.name)
    match entry.node:
        case ast.ClassDef():
            assert isinstance(found, type)
        case ast.FunctionDef() as node if is_property(node):
            assert found.fset is None, "it can be set, so that it is no property in the stub but an attribute"
            check_result(node, signatures(found.fget, ""))
        case ast.FunctionDef() as node:
            check_call(node, found)
        case ast.AnnAssign(annotation=annotation) if isinstance(found, property):
            assert found.fset is not None, "it cannot be set, so that it is a property in the stub"
            assert kinds(annotation) <= {signature.result for signature in signatures(found.fget, "")}
        case ast.AnnAssign(annotation=annotation):
            kind = ast.unparse(annotation)
            assert kind in {f"ClassVar[{type(found).__qualname__}]", type(found).__name__} or kind.startswith(
                "ClassVar[dict["
            )


@dataclass(frozen=True)
class Signature:
    """One overload as a docstring has it: the arguments but self, their types, and those that may be left out."""

    arguments: dict[str, str]
    optional: frozenset[str]
    result: str


def signatures(function: Any, name: str) -> list[Signature]:
    """Those in a docstring of pybind11's: `name(self: A, x: B = 0) -> C`, each of several with a number before it."""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> (.+)$", function.__doc__, re.MULTILINE)
    assert found, f"no signature in {function.__doc__!r}"
    return [signature_from_text(arguments, result) for arguments, result in found]


def signature_from_text(arguments: str, result: str) -> Signature:
    parts = [
        part
        for part in re.split(r", (?=\w+: )", arguments.removesuffix(", /"))
        if not part.startswith(("self: ", "arg0: tensorrt"))
    ]
    named = [part.partition(": ")[::2] for part in parts if part]
    types = {name: word(kind.split(" = ")[0]) for name, kind in named}
    return Signature(types, frozenset(name for name, kind in named if " = " in kind), word(result))


def word(kind: str) -> str:
    """A type without modules, in the stubs' words."""
    bare = re.sub(r"\b(?:\w+(?:\.|::))+", "", kind)
    return SPELT.get(bare, re.sub(r"^(list|tuple)\[int\b.*", r"\1", bare))


def kinds(annotation: ast.expr) -> set[str]:
    """The types of an annotation, None aside: the docstrings never tell of it."""
    return {word(part) for part in ast.unparse(annotation).split(" | ")} - {"None"}


def check_call(node: ast.FunctionDef, function: Any) -> None:
    """There is an overload for each type that the stub allows; what the stub leaves out may be left out."""
    arguments = [argument for argument in (*node.args.posonlyargs, *node.args.args) if argument.arg != "self"]
    names = [argument.arg for argument in arguments]
    if inspect.isfunction(function):  # written in Python, without types
        assert names == [*inspect.signature(function).parameters]
        return
    fitting = [known for known in signatures(function, node.name) if [*known.arguments][: len(names)] == names]
    fitting = [known for known in fitting if {*known.arguments} - {*names} <= known.optional]
    assert fitting, f"expected arguments {names}, got {function.__doc__}"
    for argument in arguments:
        assert argument.annotation is not None
        assert kinds(argument.annotation) <= {known.arguments[argument.arg] for known in fitting}
    optional = {*names[len(names) - len(node.args.defaults) :]}
    assert all(optional <= known.optional for known in fitting)
    check_result(node, fitting)


def check_result(node: ast.FunctionDef, known: list[Signature]) -> None:
    assert node.returns is not None
    assert (kinds(node.returns) or {"None"}) <= {signature.result for signature in known}


def test_what_the_docstrings_do_not_say_is_as_the_stub_says() -> None:
    assert [*API.Dims((1, 2))] == [1, 2]
    assert API.nptype(API.float32) is np.float32
    with pytest.warns(DeprecationWarning, match="no-ops in TensorRT-RTX"):
        memory = API.Builder(log_of(tensorrt_rtx).logger).create_builder_config().create_timing_cache(b"").serialize()
    assert len(bytes(memoryview(memory))) == memory.nbytes


def test_the_stubs_have_no_more_than_the_code_uses() -> None:
    words = {part for path in USERS for use in uses(ast.parse(path.read_text())) for part in (use.name, *use.chain)}
    typed = {name for path in (TENSORRT, RTX) for name in names_in_annotations(path)}
    public = [entry for path in (TENSORRT, RTX) for entry in stub(path) if entry.is_public]
    needed = [
        entry
        for entry in public
        if entry.name.split(".")[-1] in words or entry.name in typed or entry.name.split(".")[0] in CALLED_BACK
    ]
    needless = {entry.name for entry in public} - {entry.name for entry in needed}
    assert not needless, f"leave out of typings/: {', '.join(sorted(needless))}"


def names_in_annotations(path: Path) -> set[str]:
    """The classes that a stub gives, takes, or builds upon."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }
