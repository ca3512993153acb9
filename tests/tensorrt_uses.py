"""Every name of TensorRT's API that the code uses exists in every version promised.

The tests cannot count on `tensorrt` being installed. What a version has is in tests/tensorrt_names/<version>.txt, which
scripts/record_tensorrt_names.py writes; what the code uses is in its source:

- a chain that starts at the module (`api.BuilderFlag.TF32`) is checked as it stands, class and member;
- an attribute of anything else (`config.set_flag`) is checked as a word, when it is one of the API's words;
- a name that some version lacks must be in FEATURES, and its file must ask for it with `hasattr(x, "name")` or
  `getattr(x, "name", default)`.

Not seen: misspelt words that no version has (mypy's part), names made at run time, and what a call takes and gives.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "tests" / "tensorrt_names"
SOURCES = ("exporter/engines/builders/*.py", "runtimes/nvidia/*.py", "runtimes/backends/tensorrt*.py")
MODULE_NAMES = {"trt", "api", "API", "_trt", "_api", "tensorrt", "tensorrt_rtx"}

# Names that some version lacks, with their class where another has the same word -> the versions that have them.
FEATURES: dict[str, str] = {
    "BuilderFlag.EDITABLE_TIMING_CACHE": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "BuilderFlag.FP16": "10.3 10.13 10.16 rtx-1.4",
    "BuilderFlag.INT8": "10.3 10.13 10.16 rtx-1.4",
    "ADJUST_FOR_DLA": "10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "IRuntimeConfig": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "REPORT_CAPABILITY_DLA": "10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "SAME_COMPUTE_CAPABILITY": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "create_runtime_cache": "rtx-1.4 rtx-1.7",
    "create_runtime_config": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "cuda_graph_strategy": "rtx-1.4 rtx-1.7",
    "get_engine_validity": "rtx-1.4 rtx-1.7",
    "is_stream_capturable": "rtx-1.4 rtx-1.7",
    "num_compute_capabilities": "rtx-1.4 rtx-1.7",
    "set_compute_capability": "rtx-1.4 rtx-1.7",
    "set_runtime_cache": "rtx-1.4 rtx-1.7",
}
# The API's words that mean something else here; chains from the module are checked all the same.
OTHERS = {"allocate", "mask", "precision", "query", "seek", "strides", "update", "write"}


@dataclass(frozen=True)
class Record:
    """What one version has: `Class`, `Class.member`."""

    version: str
    names: frozenset[str]

    @property
    def short(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @cached_property
    def words(self) -> frozenset[str]:
        """The last part of each name."""
        return frozenset(name.rpartition(".")[2] for name in self.names)


@dataclass(frozen=True, order=True)
class Use:
    """One place in the code that needs a name: a word, or a chain from the module."""

    line: int
    name: str
    chain: tuple[str, ...] = ()


@cache
def records() -> tuple[Record, ...]:
    def version(path: Path) -> tuple[bool, list[int]]:
        return path.stem.startswith("rtx"), [int(part) for part in path.stem.removeprefix("rtx-").split(".")]

    return tuple(
        Record(path.stem, frozenset(line for line in path.read_text().splitlines() if not line.startswith("#")))
        for path in sorted(RECORDS.glob("*.txt"), key=version)
    )


def faced_by(path: Path) -> tuple[Record, ...]:
    """A file named after one of the two modules meets that one alone; any other meets both."""
    if path.name not in {"tensorrt.py", "tensorrt_rtx.py"}:
        return records()
    return tuple(record for record in records() if record.version.startswith("rtx") == (path.name == "tensorrt_rtx.py"))


def chain_of(node: ast.expr, modules: set[str]) -> tuple[str, ...] | None:
    """`api.A.B` and `self._api.A.B` -> (A, B), the module itself -> (), anything else -> None."""
    if isinstance(node, ast.Name):
        return () if node.id in modules else None
    if not isinstance(node, ast.Attribute):
        return None
    before = chain_of(node.value, modules)
    if before is not None:
        return (*before, node.attr)
    return () if node.attr in modules else None


def modules_of(tree: ast.AST) -> set[str]:
    """The names by which a file reaches the module."""
    imported = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return MODULE_NAMES | {alias.asname for alias in imported if alias.asname and alias.name in MODULE_NAMES}


def use_of(owner: ast.expr, name: str, modules: set[str]) -> Use:
    before = chain_of(owner, modules)
    return Use(owner.lineno, name, () if before is None else (*before, name))


def asked_for(tree: ast.AST) -> Iterator[Use]:
    """The feature tests: `hasattr(x, "name")` and `getattr(x, "name", default)`."""
    modules = modules_of(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="hasattr"), args=[owner, ast.Constant(value=str(name))]):
                yield use_of(owner, name, modules)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name)), _]):
                yield use_of(owner, name, modules)


def uses(tree: ast.AST) -> Iterator[Use]:
    """What the code needs without asking: attributes, `getattr` and `setattr` by name, and names imported."""
    modules = modules_of(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name):
                yield use_of(owner, name, modules)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
                yield use_of(owner, name, modules)
            case ast.Call(func=ast.Name(id="setattr"), args=[owner, ast.Constant(value=str(name)), _]):
                yield use_of(owner, name, modules)
            case ast.ImportFrom(module="tensorrt" | "tensorrt_rtx", names=names):
                yield from (Use(node.lineno, alias.name, (alias.name,)) for alias in names)


def lacking(use: Use, faced: Sequence[Record]) -> list[str]:
    """The versions without what `use` needs; none where it is no name of the API, as what is below an enum's member."""
    if use.name.startswith("_"):
        return []
    if use.chain and (len(use.chain) == 1 or is_owner(".".join(use.chain[:-1]))):
        return [record.version for record in faced if ".".join(use.chain) not in record.names]
    if use.name in OTHERS or not is_word(use.name):
        return []
    return [record.version for record in faced if use.name not in record.words]


def is_owner(name: str) -> bool:
    """Whether some version has members of `name`."""
    return any(other.startswith(f"{name}.") for record in records() for other in record.names)


def is_word(name: str) -> bool:
    return any(name in record.words for record in records())


def complaints(source: str, path: Path) -> list[str]:
    """What is wrong with the names in one file, a line each."""
    tree = ast.parse(source)
    asked = {*asked_for(tree)}
    wrong = []
    for use in sorted({*uses(tree)} | asked):
        name = ".".join(use.chain) or use.name
        missing = lacking(use, faced_by(path))
        listed = use.name in FEATURES or name in FEATURES
        if missing and not (listed and use.name in {other.name for other in asked}):
            wrong.append(
                f"{path}:{use.line}: {name} is not in {', '.join(missing)}; ask with hasattr or getattr first, and list it in FEATURES"
            )
        elif (
            use in asked
            and not use.chain
            and not is_word(use.name)
            and use.name not in OTHERS
            and not use.name.startswith("_")
        ):
            wrong.append(
                f"{path}:{use.line}: {name} is asked for, but no version recorded has it; correct it, or list it in OTHERS"
            )
    return wrong


def sources() -> list[Path]:
    return [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
