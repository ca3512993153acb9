"""The house rules that a machine can check: layers, light imports, public names and extras."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("runtimes", "calibration", "exporter")
ROOMS = (
    *(
        f"exporter.{name}"
        for name in ("cli", "pipeline", "verification", "deployment", "lowering", "graph", "models", "engines")
    ),
    "calibration",
    "runtimes",
)
"""From the top: a room may import itself and those below it."""
ABOVE_ALL = -1
"""The place of `exporter/__init__.py`, which says what is public."""
HEAVY = {
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "onnxsim",
    "tensorrt",
    "tensorrt_rtx",
    "openvino",
    "timm",
    "tritonclient",
    "grpc",
    "ray",
    "safetensors",
    "matplotlib",
    "jinja2",
    "fsspec",
}


def modules() -> dict[str, ast.Module]:
    """Every module of the packages by its dotted name, parsed."""
    found = {}
    for package in LAYERS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def arrows() -> dict[str, set[str]]:
    """For every module the modules of ours that it imports, wherever in it and for type checkers alone, too."""
    parsed = modules()
    found: dict[str, set[str]] = {name: set() for name in parsed}
    for module, tree in parsed.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}, line {node.lineno}: a relative import"
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[module] |= {name if name in parsed else str(node.module) for name in names}
        found[module] &= parsed.keys() - {module}
    return found


def room(module: str) -> str:
    """The room of `ROOMS` that a module stands in, else the module itself."""
    package, _, rest = module.partition(".")
    part = f"{package}.{rest.split('.')[0]}"
    return part if part in ROOMS else package if package in ROOMS else module


def test_every_room_imports_only_what_stands_below_it() -> None:
    order = {name: place for place, name in enumerate(ROOMS)}
    climbing = [
        f"{module} imports {other}"
        for module, others in arrows().items()
        for other in sorted(others)
        if order.get(room(module), ABOVE_ALL) > order.get(room(other), ABOVE_ALL)
    ]
    assert climbing == []


def test_no_module_imports_itself_through_others() -> None:
    try:
        list(graphlib.TopologicalSorter(arrows()).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_nothing_but_the_rooms_lies_under_exporter() -> None:
    files = (path for path in (ROOT / "exporter").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    there = {path.relative_to(ROOT / "exporter").parts[0] for path in files} - {"__init__.py", "py.typed"}
    assert there <= {name.removeprefix("exporter.") for name in ROOMS if name.startswith("exporter.")}


@pytest.mark.parametrize(
    "module",
    [
        "runtimes",
        "runtimes.bundle",
        "runtimes.bundle_writing",
        "runtimes.nvidia.engine_choice",
        "runtimes.parity.compare",
        "runtimes.parity.evidence",
        "runtimes.parity.budget_options",
        "runtimes.classify",
        "calibration.data",
        "calibration.classes",
        "exporter",
        "exporter.pipeline.plan",
        "exporter.verification.accuracy.evaluate",
        "exporter.cli.deploy",
        "exporter.verification.report.sections",
    ],
)
def test_importing_what_a_device_needs_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; heavy = {HEAVY!r} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["runtimes", "exporter"])
def test_public_names_are_all_there_and_typed(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == module.__all__
    assert set(module.__all__) == set(module._MODULES)
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError):
        module.nonsense  # noqa: B018  # the access is the test


def test_the_exception_tree_in_the_docstring_is_the_real_one() -> None:
    from runtimes import errors

    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            drawn[words[0]] = int(words[1])
    real = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ResnetExportError)
    }
    assert drawn == real


def test_every_backend_has_a_remedy_that_names_an_extra() -> None:
    from runtimes import backend_names
    from runtimes._open import REMEDIES

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for name in backend_names():
        remedy = REMEDIES.get(name, f"resnet-export[{name}]")
        assert any(f"resnet-export[{extra}]" in remedy for extra in extras), name
