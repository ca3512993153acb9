"""The pytest plugin, in a pytest of its own: what it collects and says, and whom it leaves alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from manifest_edits import rewrite_manifest
from PIL import Image
from rounding import needs_rounding
from spoilt import answer_nan

from exporter.verification.pytest_plugin import pytest_addoption

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "exporter.verification.pytest_plugin"
# An environment older than the entry point does not have it, and loading a plugin twice is an error.
IS_LOADED = any(entry.value == PLUGIN for entry in importlib.metadata.entry_points(group="pytest11"))
LOAD = () if IS_LOADED else ("-p", PLUGIN)
LIMITS = ["finite", "max_relative_error", "min_agreement", "max_batch_difference"]

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """pytest in an empty folder, in a process of its own, with warnings as errors."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return lambda *arguments: pytester.runpytest_subprocess(
        *LOAD, "-W", "error", "-p", "no:cacheprovider", *map(str, arguments)
    )


def outcomes(path: Path) -> dict[str, str]:
    """The name and fate of every test case of a JUnit file."""
    cases = ElementTree.parse(path).iter("testcase")
    return {
        f"{case.get('classname')}.{case.get('name')}": next(
            (child.tag for child in case if child.tag != "properties"), "passed"
        )
        for case in cases
    }


# --- what is collected ---


def test_each_backend_and_limit_is_a_test_of_a_readable_name(run: Run, exported: Path) -> None:
    shown = run(
        "--collect-only",
        "-q",
        f"--resnet-bundle={exported}",
        "--resnet-backend=onnxruntime",
        "--resnet-backend=pytorch",
    )
    assert shown.ret == 0
    assert shown.outlines[:8] == [
        f"resnet20-fp16::{backend}::{limit}" for backend in ("onnxruntime", "pytorch") for limit in LIMITS
    ]


def test_nothing_runs_while_collecting(run: Run, exported: Path) -> None:
    shown = run("--collect-only", "-q", f"--resnet-bundle={exported}", "--resnet-data=nowhere")
    assert shown.ret == 0


def test_bundles_of_one_name_are_numbered(run: Run, exported: Path) -> None:
    shown = run(
        "--collect-only",
        "-q",
        f"--resnet-bundle={exported}",
        f"--resnet-bundle={exported}",
        "--resnet-backend=onnxruntime",
        "-k",
        "finite",
    )
    assert shown.outlines[:2] == ["resnet20-fp16-1::onnxruntime::finite", "resnet20-fp16-2::onnxruntime::finite"]


def test_a_limit_given_on_the_command_line_is_a_test_too(run: Run, exported: Path) -> None:
    shown = run(
        "--collect-only",
        "-q",
        f"--resnet-bundle={exported}",
        "--resnet-backend=onnxruntime",
        "--resnet-budget=min_sqnr_db=9",
    )
    assert "resnet20-fp16::onnxruntime::min_sqnr_db" in shown.outlines


def test_without_options_nothing_is_collected_or_imported(run: Run, pytester: pytest.Pytester) -> None:
    assert run().ret == pytest.ExitCode.NO_TESTS_COLLECTED
    pytester.makepyfile(
        "import sys\ndef test_light(): assert not {'numpy', 'exporter.verification.check', 'runtimes.bundle'} & set(sys.modules)"
    )
    run("-q").assert_outcomes(passed=1)


# --- verdicts ---


def test_a_bundle_within_budget_passes_where_there_are_no_other_tests(run: Run, exported: Path, tmp_path: Path) -> None:
    shown = run(f"--resnet-bundle={exported}", "--resnet-backend=onnxruntime", f"--junitxml={tmp_path / 'junit.xml'}")
    assert shown.ret == 0
    shown.assert_outcomes(passed=4)
    assert outcomes(tmp_path / "junit.xml") == {f"resnet20-fp16.onnxruntime.{limit}": "passed" for limit in LIMITS}
    measured = [one.get("value") or "" for one in ElementTree.parse(tmp_path / "junit.xml").iter("property")]
    assert measured[2] == "top-1 agreement 100.00%, budget >= 99.5%"


def test_a_reference_program_runs_once_for_all_backends(run: Run, exported: Path, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import exporter.verification.check
        import exporter.verification.inputs

        isolated, asked = exporter.verification.check.run_in_own_process, open("asked.txt", "w")

        def run_in_own_process(work, *arguments, **options):
            print(work.__name__, file=asked, flush=True)
            return isolated(work, *arguments, **options)

        exporter.verification.check.run_in_own_process = run_in_own_process
        exporter.verification.inputs.run_in_own_process = run_in_own_process
        """
    )
    backends = ("--resnet-backend=onnxruntime", "--resnet-backend=pytorch")
    run(f"--resnet-bundle={exported}", *backends, "--resnet-data=built-in").assert_outcomes(passed=8)
    assert (pytester.path / "asked.txt").read_text().split() == ["_run_reference", "_run_backend", "_run_backend"]


def test_an_undecided_limit_is_skipped_on_golden_inputs_and_fails_on_pictures(run: Run, exported: Path) -> None:
    """99.5 % takes 539 images without a flip, and `check` takes 512 of the pictures."""
    options = (f"--resnet-bundle={exported}", "--resnet-backend=onnxruntime", "--resnet-budget=confidence=0.95", "-rs")
    shown = run(*options)
    shown.assert_outcomes(passed=3, skipped=1)
    shown.stdout.fnmatch_lines(["SKIPPED * top-1 agreement 100.00% of 32 images,*: undecided, some 539 images would *"])
    shown = run(*options, "--resnet-data=built-in")
    shown.assert_outcomes(passed=3, failed=1)
    shown.stdout.fnmatch_lines(["top-1 agreement * of 512 images,*: undecided, some * images would decide it"])
    shown.stdout.fnmatch_lines(["onnxruntime * UNDECIDED"])


def test_a_broken_limit_fails_with_the_table_and_no_traceback(run: Run, exported: Path) -> None:
    shown = run(
        f"--resnet-bundle={exported}", "--resnet-backend=onnxruntime", "--resnet-budget=max_relative_error=1e-9"
    )
    assert shown.ret == 1
    shown.assert_outcomes(passed=3, failed=1)
    shown.stdout.fnmatch_lines(
        [
            "*_ resnet20-fp16 on onnxruntime: max_relative_error _*",
            "largest relative error *, budget <= 1e-09",
            "parity * max error *",
            "onnxruntime * OUT OF BUDGET",
            "FAILED *resnet20-fp16::onnxruntime::max_relative_error - *largest*",
        ]
    )
    shown.stdout.no_fnmatch_line("*Traceback*")
    shown.stdout.no_fnmatch_line("*pytest_plugin.py*")


@needs_rounding
def test_the_accuracy_needs_labels_and_gets_them_from_data(run: Run, exported: Path, shipped_bundle: Any) -> None:
    own = run(
        f"--resnet-bundle={shipped_bundle('int8').folder}", "--resnet-backend=onnxruntime", "-k", "accuracy", "-rs"
    )
    own.assert_outcomes(skipped=1, deselected=4)
    own.stdout.fnmatch_lines(["*max_accuracy_drop needs pictures with labels*"])
    asked = (
        f"--resnet-bundle={exported}",
        "--resnet-backend=onnxruntime",
        "--resnet-budget=max_accuracy_drop=0.01",
        "-k",
        "accuracy",
        "-rs",
    )
    refused = run(*asked)  # what was asked for is never skipped
    refused.assert_outcomes(failed=1, deselected=4)
    refused.stdout.fnmatch_lines(["max_accuracy_drop needs pictures whose classes are the model's*"])
    run(*asked, "--resnet-data=built-in").assert_outcomes(passed=1, deselected=4)


def test_a_backend_that_is_not_here_is_skipped_unless_it_was_named(run: Run, exported: Path, tmp_path: Path) -> None:
    run(
        f"--resnet-bundle={exported}",
        "-k",
        "finite and (tensorrt or onnxruntime)",
        f"--junitxml={tmp_path / 'all.xml'}",
    )
    fates = outcomes(tmp_path / "all.xml")
    assert (fates["resnet20-fp16.onnxruntime.finite"], fates["resnet20-fp16.tensorrt.finite"]) == ("passed", "skipped")
    named = run(f"--resnet-bundle={exported}", "--resnet-backend=tensorrt")
    named.assert_outcomes(failed=4)
    named.stdout.fnmatch_lines(["tensorrt: not here: backend 'tensorrt' needs the package*"])


def test_where_no_backend_is_here_nothing_is_skipped(run: Run, exported: Path, pytester: pytest.Pytester) -> None:
    """As with the base install alone: every backend's package is hidden from the processes that are to answer."""
    for name in ("onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx"):
        pytester.makepyfile(**{name: f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')"})
    shown = run(f"--resnet-bundle={exported}", "-k", "finite", "--resnet-backend=all")
    assert shown.ret == 1
    assert "skipped" not in shown.parseoutcomes()
    shown.stdout.fnmatch_lines(["onnxruntime: not here: *"])


def test_answers_that_are_not_finite_fail_and_leave_nothing_else_to_measure(
    run: Run, exported: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(exported, tmp_path / "bundle")
    answer_nan(bundle)
    shown = run(f"--resnet-bundle={bundle}", "--resnet-backend=onnxruntime", "-rs")
    shown.assert_outcomes(failed=1, skipped=3)
    shown.stdout.fnmatch_lines(["*min_agreement has no meaning: *not finite*"])


def test_what_is_said_of_classes_does_not_apply_to_features(run: Run, shipped_bundle: Any) -> None:
    bundle = shipped_bundle("fp16", "pool").folder
    shown = run(f"--resnet-bundle={bundle}", "--resnet-backend=onnxruntime", "-rs")
    shown.assert_outcomes(passed=3, skipped=1)
    shown.stdout.fnmatch_lines(["*min_agreement is about classes, and this model gives features"])


def test_a_backend_without_its_file_fails(run: Run, exported: Path, tmp_path: Path) -> None:
    """As a bundle that was exported with --no-reference."""
    bundle = shutil.copytree(exported, tmp_path / "bundle")
    rewrite_manifest(bundle, lambda document: document["files"].pop("reference.pt2"))
    shown = run(f"--resnet-bundle={bundle}", "--resnet-backend=pytorch", "-k", "finite")
    shown.assert_outcomes(failed=1, deselected=3)
    shown.stdout.fnmatch_lines(["pytorch: not here: * has no reference.pt2, *"])


# --- asked for wrongly: one line, before anything runs ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resnet-bundle=nowhere"], "ERROR: nowhere is no bundle: there is no such folder*"),
        (["--resnet-bundle=BUNDLE", "--resnet-backend=onnxrt"], "ERROR: unknown backend 'onnxrt'; *"),
        (
            ["--resnet-bundle=BUNDLE", "--resnet-budget=min_agreement"],
            "ERROR: expected --budget as NAME=VALUE, got 'min_agreement'*",
        ),
        (
            ["--resnet-bundle=BUNDLE", "--resnet-budget=min_agrement=1"],
            "ERROR: unknown budget 'min_agrement'; did you mean min_agreement*",
        ),
        (["--resnet-bundle=BUNDLE", "--resnet-config=nowhere.toml"], "ERROR: expected bundles or --config, got both*"),
        (["--resnet-config=nowhere.toml"], "ERROR: cannot read nowhere.toml*"),
        (
            ["--resnet-trust-engine=" + "0" * 64],
            "ERROR: --resnet-trust-engine is about a bundle's engine, and no bundle is named*",
        ),
        (
            ["--resnet-bundle=BUNDLE", "--resnet-trust-engine=yes"],
            "ERROR: expected the sha256 of an engine, 64 hexadecimal digits, got 'yes'*",
        ),
        (["--resnet-data=images"], "ERROR: --resnet-backend, --resnet-budget and --resnet-data are about a bundle*"),
    ],
)
def test_what_was_asked_for_wrongly_is_one_line(run: Run, exported: Path, arguments: list[str], message: str) -> None:
    shown = run(*(argument.replace("BUNDLE", str(exported)) for argument in arguments))
    assert shown.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in shown.errlines if line]
    pytest.LineMatcher([line]).fnmatch_lines([message])


def test_the_engines_that_are_named_reach_what_is_checked(run: Run, exported: Path, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from exporter.verification.pytest_plugin import PLANS

        def pytest_report_header(config):
            return str(config.stash[PLANS][0].trust_engines)
        """
    )
    shown = run(
        "--collect-only",
        f"--resnet-bundle={exported}",
        "--resnet-trust-engine=" + "AB" * 32,
        "--resnet-trust-engine=" + "12" * 32,
    )
    shown.stdout.fnmatch_lines([str(("12" * 32, "ab" * 32))])


def test_pictures_that_cannot_be_read_fail_every_limit_in_one_line(run: Run, exported: Path) -> None:
    shown = run(f"--resnet-bundle={exported}", "--resnet-backend=onnxruntime", "--resnet-data=nowhere")
    shown.assert_outcomes(failed=4)
    shown.stdout.fnmatch_lines(["*nowhere*"])
    shown.stdout.no_fnmatch_line("*Traceback*")


def test_pictures_that_are_left_out_are_warned_of(run: Run, exported: Path, tmp_path: Path) -> None:
    for place in range(100):
        Image.new("L", (28, 28), 90 + place).save(tmp_path / f"{place:03}.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    asked = (f"--resnet-bundle={exported}", "--resnet-backend=onnxruntime", f"--resnet-data={tmp_path}", "-k", "finite")
    shown = run("-W", "default", *asked)
    shown.assert_outcomes(passed=1, deselected=3, warnings=1)
    shown.stdout.fnmatch_lines(["*PytestWarning: left out: *b.png*"])


def test_a_toml_names_bundles_and_settings(run: Run, exported: Path, pytester: pytest.Pytester) -> None:
    text = f'backends = ["onnxruntime"]\n[[bundles]]\npath = {json.dumps(str(exported))}\nbudget = {{ min_cosine = 0.9 }}\n'
    (pytester.path / "fleet.toml").write_text(text)
    run("--resnet-config=fleet.toml").assert_outcomes(passed=5)


# --- beside the user's own tests, and under xdist ---

USER = """
import pytest

def test_logits(runtime, bundle):
    import numpy as np
    golden = np.load(bundle.file("golden.npz"))
    assert runtime.run({"input": golden["inputs"]})["logits"].shape == golden["logits"].shape

def test_of_no_bundle():
    pass
"""
OWN = """
import pytest

@pytest.fixture
def bundle():
    return "mine"

def test_mine(bundle):
    assert bundle == "mine"

@pytest.mark.parametrize("runtime", [1, 2])
def test_parametrised(runtime):
    assert runtime in (1, 2)
"""


def test_the_fixtures_open_every_bundle_on_every_backend_that_is_here(
    run: Run, exported: Path, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(USER)
    shown = run("-v", f"--resnet-bundle={exported}", "-k", "test_")
    shown.stdout.fnmatch_lines_random(
        [
            "*test_logits*onnxruntime-resnet20-fp16* PASSED*",
            "*test_logits*pytorch-resnet20-fp16* PASSED*",
            "*test_logits*tensorrt-resnet20-fp16* SKIPPED*",
            "*test_of_no_bundle PASSED*",
        ]
    )
    assert shown.ret == 0


def test_the_fixtures_fail_for_a_backend_that_was_named_and_is_not_here(
    run: Run, exported: Path, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(USER)
    shown = run(f"--resnet-bundle={exported}", "--resnet-backend=tensorrt", "-k", "test_logits")
    shown.assert_outcomes(errors=1, deselected=5)  # four limits, and the test of no bundle


def test_the_fixtures_skip_where_no_bundle_is_named(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USER)
    shown = run("-rs")
    shown.assert_outcomes(passed=1, skipped=1)
    shown.stdout.fnmatch_lines(["SKIPPED*no bundle is named; give --resnet-bundle DIR"])


@pytest.mark.parametrize("named", [True, False])
def test_a_fixture_or_parameter_of_the_users_goes_before_ours(
    run: Run, exported: Path, pytester: pytest.Pytester, named: bool
) -> None:
    pytester.makepyfile(OWN)
    shown = run(*([f"--resnet-bundle={exported}"] if named else []), "-k", "test_")
    assert shown.parseoutcomes()["passed"] == 3
    assert shown.ret == 0


def test_workers_of_xdist_collect_the_same_and_share_the_backends(
    run: Run, exported: Path, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    pytester.makepyfile(USER)
    asked = (f"--resnet-bundle={exported}", "--resnet-backend=onnxruntime", "--resnet-backend=pytorch")
    shown = run("-n2", "--dist=loadscope", "-v", *asked)
    shown.assert_outcomes(passed=11)
    for backend in ("onnxruntime", "pytorch"):
        workers = {line.split()[0] for line in shown.outlines if f"::{backend}::" in line and "PASSED" in line}
        assert len(workers) == 1


def test_importing_the_plugin_costs_next_to_nothing() -> None:
    code = f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["exporter", "exporter.verification", PLUGIN]
    assert pytest_addoption.__module__ == PLUGIN
