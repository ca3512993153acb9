"""The GitHub action without GitHub: bash runs its steps' scripts as a runner would; and the workflows that use it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_edits import rewrite_manifest

from exporter.cli._check import check
from exporter.verification.parity_toml import entries_from_toml

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
DOCS = (ROOT / "docs/ci.md").read_text()
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
SHELL = [
    "bash",
    "--noprofile",
    "--norc",
    "-e",
    "-o",
    "pipefail",
]  # docs.github.com, "Workflow syntax": what `shell: bash` stands for


@dataclass(frozen=True)
class Step:
    """What a run of the action left."""

    code: int
    out: str
    err: str
    summary: str
    outputs: dict[str, str]


def value_of(expression: str, contexts: Mapping[str, str]) -> str:
    """The few expressions that occur; any other fails."""
    (name,) = re.fullmatch(r"\$\{\{ ([\w.-]+) \}\}", expression).groups()  # type: ignore[union-attr]  # anything else is to fail here
    return contexts[name]


def is_true(condition: str | None, contexts: Mapping[str, str]) -> bool:
    """`${{ a != '' && b != '' }}`, or no condition."""
    if condition is None:
        return True
    (terms,) = re.fullmatch(r"\$\{\{ (.*) \}\}", condition).groups()  # type: ignore[union-attr]  # as above
    return all(contexts[term.removesuffix(" != ''")] != "" for term in terms.split(" && "))


Act = Callable[..., Step]


@pytest.fixture
def act(tmp_path: Path) -> Act:
    """The action in an empty folder, with what is installed here."""

    def run(**inputs: str) -> Step:
        assert set(inputs) <= set(ACTION["inputs"])
        given = {name: inputs.get(name, facts["default"]) for name, facts in ACTION["inputs"].items()} | {"install": ""}
        return _run({f"inputs.{name}": value for name, value in given.items()}, tmp_path)

    return run


def _run(contexts: dict[str, str], folder: Path) -> Step:
    work, summary, outputs = folder / "work", folder / "summary.md", folder / "outputs"
    work.mkdir(exist_ok=True)
    for file in (summary, outputs):
        file.write_text("")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(outputs),
        "GITHUB_ACTION_PATH": str(ROOT),
    }
    steps = [step for step in ACTION["runs"]["steps"] if is_true(step.get("if"), contexts)]
    assert [step.get("id") for step in steps] == ["check"]  # installing is for a runner
    (step,) = steps
    script = folder / "script.sh"
    script.write_text(step["run"])
    given = {name: value_of(text, contexts) for name, text in step["env"].items()}
    done = subprocess.run(
        [*SHELL, str(script)], cwd=work, env=environment | given, capture_output=True, text=True, check=False
    )
    found = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    return Step(done.returncode, done.stdout, done.stderr, summary.read_text(), found)


def steps_of(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job.get("steps", ())


# --- the action ---


def test_a_good_bundle_passes_with_a_table_in_the_summary(act: Act, exported: Path, tmp_path: Path) -> None:
    shown = act(bundle=str(exported), backends=" onnxruntime,pytorch", junit="junit.xml")
    assert shown.code == 0, shown.err
    assert shown.outputs == {"ok": "true"}
    assert "| onnxruntime | ok |" in shown.summary
    assert "| pytorch | ok |" in shown.summary
    assert "::error" not in shown.out
    assert (tmp_path / "work/junit.xml").exists()


def test_a_broken_budget_ends_with_4_and_annotations(act: Act, exported: Path) -> None:
    shown = act(bundle=str(exported), backends="onnxruntime", budget="max_relative_error=1e-9\nmin_sqnr_db=190")
    assert shown.code == 4
    assert shown.outputs == {"ok": "false"}
    assert "| onnxruntime | out of budget |" in shown.summary
    annotations = [
        line for line in shown.out.splitlines() if line.startswith("::error title=resnet20-fp16 on onnxruntime::")
    ]
    assert [line.split("::")[2].split(",")[0][:6] for line in annotations] == ["larges", "SQNR 7"]


def test_paths_with_spaces_several_bundles_and_files_of_bundles(act: Act, exported: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("one", "two", "with a space"):
        (work / name).symlink_to(exported)
    for given, count in (("one two", 2), ("with a space\n  one\n\ntwo\n", 3)):
        shown = act(bundle=given, backends="onnxruntime")
        assert (shown.code, shown.summary.count("### ")) == (0, count), shown.err
    (work / "fleet.toml").write_text('backends = ["onnxruntime"]\n[[bundles]]\npath = "with a space"\n')
    assert act(config="fleet.toml").code == 0
    (work / "fleet.toml").rename(work / "resnet-parity.toml")
    assert act().code == 0


def test_what_the_command_refuses_is_its_exit_code(act: Act, exported: Path) -> None:
    assert act(bundle="nowhere").code == 1
    assert act().code == 2
    shown = act(bundle=str(exported), backends="tensorrt")
    assert (shown.code, shown.outputs) == (3, {"ok": "false"})
    assert "::error title=resnet20-fp16 on tensorrt::not here" in shown.out


@pytest.mark.parametrize(
    "hostile",
    [
        "$(touch pwned)",
        "`touch pwned`",
        "\"; touch pwned; '",
        "x' && touch pwned #",
        "--version",
        "*",
        "a[$(touch pwned)]",
    ],
)
def test_no_input_is_ever_run(act: Act, tmp_path: Path, hostile: str) -> None:
    shown = act(**dict.fromkeys(["bundle", "backends", "budget", "data", "config", "html", "junit"], hostile))
    assert shown.code == 2
    assert shown.outputs == {"ok": "false"}
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("bundle", ["--help", "$(touch pwned)", "*"])
def test_a_hostile_bundle_is_the_name_of_a_folder(act: Act, tmp_path: Path, bundle: str) -> None:
    shown = act(bundle=bundle)
    assert shown.err.startswith(f"error: {bundle.split()[0]} is no bundle")
    assert list((tmp_path / "work").iterdir()) == []


def test_inputs_reach_no_script(tmp_path: Path) -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert "run" not in step or step["shell"] == "bash"


def test_each_option_of_the_script_is_one_of_the_command() -> None:
    script = ACTION["runs"]["steps"][-1]["run"]
    names = re.search(r"for name in ([A-Z ]+);", script)
    assert names is not None
    passed = {f"--{name.lower()}" for name in names[1].split()} | set(re.findall(r"--[a-z]+(?==)", script))
    assert passed - {"--html"} <= {option for parameter in check.params for option in parameter.opts}


def test_annotations_leave_json_alone(
    deploy: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    shown = deploy(
        "check", exported, "--backend", "onnxruntime", "--budget", "min_sqnr_db=190", "--github", "--json", "--quiet"
    )
    assert (shown.code, shown.json["ok"]) == (4, False)
    assert "::error title=resnet20-fp16 on onnxruntime::SQNR 7" in shown.err


def test_a_name_ends_neither_an_annotation_nor_a_table(
    deploy: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    bundle = shutil.copytree(exported, tmp_path / "bundle")
    rewrite_manifest(bundle, lambda document: document.update(name="a, b: c|d<b>%"))
    shown = deploy(
        "check", bundle, "--backend", "onnxruntime", "--budget", "min_sqnr_db=190", "--github", "--json", "--quiet"
    )
    assert "::error title=a%2C b%3A c|d<b>%25 on onnxruntime::SQNR 7" in shown.err
    assert "### ❌ a, b: c\\|d&lt;b>%\n" in (tmp_path / "summary.md").read_text()


def installed(given: str, folder: Path) -> list[str]:
    """The calls of pip that the step Install makes: `python` stands in and says them, since nothing is to be installed."""
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("name") == "Install"]
    (folder / "python").write_text('#!/bin/bash\nprintf "%s|" "$@"; echo\n')
    (folder / "python").chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "GITHUB_ACTION_PATH": "/a folder&/x", "INSTALL": given}
    done = subprocess.run(
        [*SHELL, "-c", step["run"]], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return [
        line.removeprefix("-m|pip|install|--quiet|--disable-pip-version-check|") for line in done.stdout.splitlines()
    ]


def test_by_default_only_what_is_locked_is_installed(tmp_path: Path) -> None:
    assert installed(ACTION["inputs"]["install"]["default"], tmp_path) == [
        "--require-hashes|--requirement|/a folder&/x/.github/requirements/action.txt|",
        "--no-index|--no-deps|--no-build-isolation|/a folder&/x|",
    ]
    assert (ROOT / ".github/requirements/action.txt").exists()


def test_installing_puts_the_actions_own_checkout_in_place(tmp_path: Path) -> None:
    assert installed("@action[export] pytest\n$(touch pwned)", tmp_path) == [
        "/a folder&/x[export]|pytest|$(touch|pwned)|"
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "python"]


# --- the workflows and the documentation ---


def test_every_workflow_uses_the_action_with_inputs_that_it_has() -> None:
    used = [step for workflow in WORKFLOWS.values() for step in steps_of(workflow) if step.get("uses") == "./"]
    assert len(used) == 2
    for step in used:
        assert set(step["with"]) <= set(ACTION["inputs"])


def test_the_plugin_is_used_on_our_own_bundles() -> None:
    commands = [step["run"] for step in steps_of(WORKFLOWS["ci.yml"]) if "run" in step]
    assert "make test" in commands
    assert "pytest --resnet-config=resnet-parity.toml build" in commands
    assert [entry.path.name for entry in entries_from_toml(ROOT / "resnet-parity.toml")] == [
        "resnet20-fp16",
        "resnet20-int8",
    ]


def blocks(language: str) -> list[str]:
    """Fenced blocks of docs/ci.md."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)


def test_the_workflow_to_copy_is_right() -> None:
    workflow, gitlab = map(yaml.safe_load, blocks("yaml"))
    (step,) = [step for step in steps_of(workflow) if "resnet-export" in step.get("uses", "")]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert step["with"]["bundle"].splitlines() == ["models/resnet50-fp16", "models/resnet50-int8"]
    assert gitlab["parity"]["artifacts"]["reports"]["junit"] in gitlab["parity"]["script"][1]


def test_the_table_has_every_input_and_its_default() -> None:
    rows = dict(re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| (.*?) \|", DOCS, re.MULTILINE))
    assert {name for row in rows for name in re.findall(r"[a-z-]+", row)} == set(ACTION["inputs"])
    for name in ("install", "python-version"):
        assert rows[f"`{name}`"] == f"`{ACTION['inputs'][name]['default']}`"


def test_the_toml_of_the_documentation_is_read(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    (tmp_path / "resnet-parity.toml").write_text(block)
    first, second = entries_from_toml(tmp_path / "resnet-parity.toml")
    assert first.settings.budget == {"min_agreement": 0.99}
    assert second.settings.budget == {"min_agreement": 0.99, "min_sqnr_db": 25.0, "max_accuracy_drop": 0.005}
    assert second.settings.against == str(tmp_path / "released/resnet50-int8")
