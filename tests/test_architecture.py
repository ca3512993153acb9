"""The house rules that a machine can check: layers, light imports, public names, extras, and what is in the wheel."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("runtimes", "calibration", "exporter")  # each may import itself and those before it
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
    "ray",
    "safetensors",
    "matplotlib",
    "jinja2",
}


def imports(path: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_arrows_of_import_point_one_way(package: str) -> None:
    above = set(LAYERS[LAYERS.index(package) + 1 :])
    for path in (ROOT / package).rglob("*.py"):
        assert not imports(path) & above, path


@pytest.mark.parametrize(
    "module",
    [
        "runtimes",
        "runtimes.bundle",
        "runtimes.parity.compare",
        "runtimes.classify",
        "calibration.data",
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
    assert set(module.__all__) == set(module._HOMES)
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
    real = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.ResnetExportError)}
    assert drawn == real


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(LAYERS)
    needed = {
        "exporter/models/assets/resnet20.safetensors",
        "exporter/models/assets/resnet20.json",
        "exporter/models/assets/README.md",
        "calibration/assets/fashion_mnist.npz",
        "calibration/assets/README.md",
        *(f"exporter/verification/report/assets/{name}" for name in ("report.html.j2", "section.html.j2", "report.css")),
        *(f"{package}/py.typed" for package in LAYERS),
    }
    assert needed <= set(names)
    assert not [name for name in names if name.endswith(".pyc")]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_every_backend_has_a_remedy_that_names_an_extra() -> None:
    from runtimes import backend_names
    from runtimes._open import REMEDIES

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for name in backend_names():
        remedy = REMEDIES.get(name, f"resnet-export[{name}]")
        assert any(f"resnet-export[{extra}]" in remedy for extra in extras), name
