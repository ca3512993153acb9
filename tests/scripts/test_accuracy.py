"""`scripts/accuracy.py`: its list of networks, what it measures, what it keeps, and the page that it writes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from exporter import ExportPlan, export
from runtimes.errors import BadInput

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ("_accuracy_figures", "_accuracy_networks", "_accuracy_page", "_accuracy_tools", "accuracy")
IMAGES, CALIBRATION = 24, 16


@pytest.fixture(name="script", scope="module")
def script_fixture() -> Iterator[Callable[[str], ModuleType]]:
    """A module of scripts/, found as when the script itself is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module
        for name in NAMES:
            sys.modules.pop(name, None)


def row(tool: str, sqnr: float, refused: str = "", pair: Any = None) -> dict[str, Any]:
    counts = {
        "sqnr_db": sqnr,
        "agree": 995,
        "probability_error": 0.001,
        "right": 900,
        "fp32_and_it": {"first": 3, "second": 1},
    }
    return {
        "tool": tool,
        "variant": "any",
        "bytes": 1_000_000,
        "refused": refused,
        "exact": counts,
        "plain": counts,
        **(pair or {}),
    }


def measured(*rows: dict[str, Any], mine: float = 30.0) -> dict[str, Any]:
    network = {
        "date": "2026-01-01",
        "model": "resnet20",
        "classes": 10,
        "calibration_images": 512,
        "images": 1000,
        "fp32": {"bytes": 2_000_000, "right": 902},
        "rows": [row("ours", mine), *rows],
    }
    facts = {"date": "2026-01-01", "machine": "a box", "cpu_flags": ["avx2"], "seed": 0, "versions": {"onnx": "1"}}
    return {**facts, "networks": {"a network": network}}


def test_the_best_graph_that_tensorrt_takes_is_bold_and_one_that_it_refuses_is_marked(
    script: Callable[[str], ModuleType],
) -> None:
    page = script("_accuracy_page").page_from_measurements(
        measured(row("ModelOpt", 29.0), row("NNCF", 35.0, "zero point"), row("ours, not the default,", 40.0))
    )
    assert "| a network | **30.0** | 29.0 | 35.0† |" in page
    assert "| a network | 1000 | 90.20% | 0.20 [-0.29, 0.79] | 0.20 [-0.29, 0.79] | 0.20 [-0.29, 0.79]† |" in page
    assert "no tool is ahead" in " ".join(page.split())


def test_a_tool_with_more_sqnr_or_ahead_by_the_paired_test_is_named(script: Callable[[str], ModuleType]) -> None:
    page = script("_accuracy_page")
    ahead = {"ours_and_it": {"first": 2, "second": 14}}
    even = {"ours_and_it": {"first": 10, "second": 14}}
    assert page.shortcomings(measured(row("ModelOpt", 30.1))) == ["a network: ModelOpt any has 30.1 dB, ours 30.0 dB"]
    assert page.shortcomings(measured(row("ModelOpt", 30.1, "refused"))) == []
    assert page.shortcomings(measured(row("NNCF", 20.0, pair=even))) == []
    (found,) = page.shortcomings(measured(row("NNCF", 20.0, "refused", ahead)))
    assert found.startswith("a network: NNCF any is ahead in top-1, 2 : 14")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got none in"),
        ("network = ", "cannot read"),
        ('[[network]]\nname = "x"', "expected [[network]] with name, export or bundle"),
        ('[[network]]\nname = "x"\nexport = "a"\nbundle = "b"', "got ['bundle', 'export', 'name']"),
        ('[[network]]\nname = "x"\nexport = "a"\nlabels = "b"', "got the field labels"),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="its list is TOML, which Python 3.10 cannot read")
def test_a_list_that_is_none_is_refused_in_one_line(
    script: Callable[[str], ModuleType], tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "networks.toml"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        script("_accuracy_networks").networks_from_file(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its list is TOML, which Python 3.10 cannot read")
def test_the_page_is_what_was_measured_and_nobody_is_ahead(script: Callable[[str], ModuleType]) -> None:
    main, page = script("accuracy"), script("_accuracy_page")
    found = json.loads(main.MEASURED.read_text())
    assert main.PAGE.read_text() == page.page_from_measurements(found)
    assert page.shortcomings(found) == []
    shipped = {network.name for network in script("_accuracy_networks").networks_from_file(main.NETWORKS)}
    assert shipped <= set(found["networks"])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its list is TOML, which Python 3.10 cannot read")
def test_the_list_that_is_shipped_is_one(script: Callable[[str], ModuleType]) -> None:
    names = [one.name for one in script("_accuracy_networks").networks_from_file(SCRIPTS / "accuracy.toml")]
    assert len(names) == len(set(names)) >= 5


def test_figures_ignore_what_softmax_ignores(script: Callable[[str], ModuleType]) -> None:
    reference = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    found = script("_accuracy_figures").figures(reference + 5, reference, np.zeros(8, np.int64))
    assert found["sqnr_db"] > 100
    assert found["agree"] == 8
    assert found["fp32_and_it"] == {"first": 0, "second": 0}


def test_logits_that_are_not_finite_are_the_worst_there_are(script: Callable[[str], ModuleType]) -> None:
    reference = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    outputs = np.where(np.arange(8)[:, None] == 3, np.float32("nan"), reference)
    found = script("_accuracy_figures").figures(outputs, reference, None)
    assert (found["sqnr_db"], found["probability_error"]) == (-200, 1)
    json.dumps(found, allow_nan=False)


@pytest.fixture(name="run", scope="module")
def run_fixture(
    script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Result, Path]]:
    """The script on the shipped ResNet-20 and a few built-in images, in one folder."""
    folder = tmp_path_factory.mktemp("accuracy")
    bundle = export(ExportPlan("resnet20", folder / "bundle", reference=False)).folder
    networks = folder / "networks.toml"
    networks.write_text(f"[[network]]\nname = \"a network\"\nbundle = '{bundle}'\nimages = {IMAGES}\n")
    paths = {
        "--networks": networks,
        "--work": folder / "work",
        "--measured": folder / "a.json",
        "--page": folder / "a.md",
    }
    common = [str(part) for pair in paths.items() for part in pair] + ["--calibration-images", str(CALIBRATION)]

    def run(*arguments: str) -> tuple[Result, Path]:
        return CliRunner().invoke(script("accuracy").main, [*common, *arguments]), folder

    return run


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its list is TOML, which Python 3.10 cannot read")
def test_a_run_measures_ours_and_others_and_a_second_one_ours_alone(run: Callable[..., tuple[Result, Path]]) -> None:
    done, folder = run("--tool", "onnxruntime")
    assert done.exit_code in (0, 4), done.output
    first = json.loads((folder / "a.json").read_text())["networks"]["a network"]
    assert [one["tool"] for one in first["rows"]] == ["ours, FP16", "ours", *["onnxruntime"] * 3]
    assert (first["images"], first["calibration_images"]) == (IMAGES, CALIBRATION)
    refused = {one["tool"]: bool(one["refused"]) for one in first["rows"]}
    assert refused == {"ours, FP16": False, "ours": False, "onnxruntime": True}
    assert all(one["exact"]["sqnr_db"] > 10 for one in first["rows"])
    assert all(set(one["ours_and_it"]) == {"first", "second"} for one in first["rows"][2:])
    kept = {path: path.stat().st_mtime_ns for path in (folder / "work" / "kept").iterdir()}
    again, _ = run("--tool", "onnxruntime")
    assert again.exit_code == done.exit_code
    after = {path: path.stat().st_mtime_ns for path in (folder / "work" / "kept").iterdir()}
    assert len({path.stem for path in kept if after[path] == kept[path]}) == 3
    assert json.loads((folder / "a.json").read_text())["networks"]["a network"]["rows"] == first["rows"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its list is TOML, which Python 3.10 cannot read")
def test_what_is_not_there_is_said(run: Callable[..., tuple[Result, Path]], tmp_path: Path) -> None:
    unknown, _ = run("--only", "another")
    assert (unknown.exit_code, "expected one of a network, got another" in unknown.output) == (2, True)
    missing, _ = run("--nncf-python", sys.executable, "--tool", "NNCF")
    assert (missing.exit_code, "nncf: " in missing.output) == (3, True)
    table, _ = run("--table", "--measured", str(tmp_path / "none.json"))
    assert (table.exit_code, "there is no" in table.output) == (2, True)
