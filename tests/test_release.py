"""A release: what is in the wheel, what its bill names, what the lock files hold, and what the workflows may do."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from script_modules import script_module

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = {path.name: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
RELEASE: dict[str, Any] = yaml.safe_load(WORKFLOWS["release.yml"])
JOBS: dict[str, Any] = RELEASE["jobs"]
PACKAGES = {"calibration", "exporter", "runtimes"}
PLACES = [
    {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0", "platform_machine": machine, "extra": ""}
    | {"sys_platform": "linux", "platform_system": "Linux", "implementation_name": "cpython", "os_name": "posix"}
    for minor in (10, 11, 12, 13)
    for machine in ("x86_64", "aarch64")
]


# --- the wheel and its bill of materials ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    needed = {
        "exporter/models/assets/resnet20.safetensors",
        "exporter/models/assets/resnet20.json",
        "exporter/models/assets/README.md",
        "calibration/assets/fashion_mnist.npz",
        "calibration/assets/README.md",
        *(
            f"exporter/verification/report/assets/{name}"
            for name in ("report.html.j2", "section.html.j2", "report.css")
        ),
        *(f"{package}/py.typed" for package in PACKAGES),
    }
    assert needed <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".so", ".pyd", ".dll", ".exe"))]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def reported(name: str, *needs: str, **licence: object) -> dict[str, Any]:
    """A package as pip's report has it."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    metadata = {"name": name, "version": "1.0", "requires_dist": list(needs), **licence}
    return {"metadata": metadata, "download_info": {"url": "", "archive_info": {"hashes": {"sha256": digest}}}}


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    return script_module("sbom")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A report of all that the wheel names, of which rich and torch need more, beside a tool that it does not name."""
    extra = PROJECT["project"]["optional-dependencies"]["export"]
    direct = {Requirement(line).name for line in (*PROJECT["project"]["dependencies"], *extra)} - {
        "rich",
        "torch",
        "tomli",
    }
    more = (
        reported("rich", "Markdown_It.py>=2", "ipywidgets; extra == 'jupyter'", license_expression="MIT"),
        reported("markdown-it-py", classifier=["Topic :: Text", "License :: OSI Approved :: MIT License"]),
        reported("torch", "toolkit[blas]; sys_platform == 'linux'", "colorama; sys_platform == 'win32'"),
        reported("toolkit", "blas-cu13; extra == 'blas'", license="UNKNOWN"),
        reported("blas-cu13", license="A free text\nof many lines"),
        reported("hatchling"),
    )
    return {"install": [*map(reported, sorted(direct)), *more], "environment": PLACES[-1]}


def test_a_bill_names_all_that_the_wheel_needs_and_nothing_else(
    sbom: ModuleType, wheel: Path, report: dict[str, Any]
) -> None:
    bill = sbom.bill_of_wheel(wheel, report)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    own = bill["metadata"]["component"]
    version = PROJECT["project"]["version"]
    assert (own["name"], own["purl"]) == ("resnet-export", f"pkg:pypi/resnet-export@{version}")
    assert own["licenses"] == [{"expression": "Apache-2.0"}]
    assert own["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    assert [one["name"] for one in own["components"]] == ["Fashion-MNIST"]
    found = {one["name"]: one for one in bill["components"]}
    assert set(found) == {one["metadata"]["name"] for one in report["install"]} - {"hatchling"}
    base = {Requirement(line).name for line in PROJECT["project"]["dependencies"]} - {"tomli"}
    assert {name for name, one in found.items() if one["scope"] == "required"} == base | {"markdown-it-py"}
    for name, one in found.items():
        assert one["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(name.encode()).hexdigest()}]
    licences = {name: found[name]["licenses"] for name in ("rich", "markdown-it-py", "toolkit", "blas-cu13")}
    assert licences == {
        "rich": [{"expression": "MIT"}],
        "markdown-it-py": [{"license": {"name": "MIT License"}}],
        "toolkit": [],
        "blas-cu13": [{"license": {"name": "A free text"}}],
    }
    edges = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert edges["pkg:pypi/torch@1.0"] == ["pkg:pypi/toolkit@1.0"]
    assert edges["pkg:pypi/toolkit@1.0"] == ["pkg:pypi/blas-cu13@1.0"]
    assert set(edges) == {one["bom-ref"] for one in bill["components"]} | {own["bom-ref"]}


def test_a_bill_is_the_same_twice_and_refused_where_something_is_missing(
    sbom: ModuleType, wheel: Path, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, given: Mapping[str, Any]) -> Path:
        (tmp_path / "report.json").write_text(json.dumps(given))
        arguments = ["sbom.py", str(wheel), "--report", str(tmp_path / "report.json"), "--output", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", arguments)
        sbom.main()
        return tmp_path / name

    assert write("first", report).read_bytes() == write("second", report).read_bytes()
    lacking = {**report, "install": [one for one in report["install"] if one["metadata"]["name"] != "markdown-it-py"]}
    with pytest.raises(SystemExit, match="error: expected markdown-it-py in pip's report, got nothing of it"):
        write("third", lacking)
    assert not (tmp_path / "third").exists()


# --- the lock files ---


def locked(name: str) -> list[tuple[Requirement, str]]:
    """Each pin of a lock file, and the text of its digests."""
    text = (ROOT / ".github/requirements" / name).read_text()
    found = re.findall(r"^([\w.-]+==[^\\]+?) \\\n((?: {4}--hash=\S+(?: \\)?\n)+)", text, re.MULTILINE)
    assert text.count("==") - text.count("'==") >= len(found) == len(re.findall(r"^[\w]", text, re.MULTILINE))
    return [(Requirement(pin), digests) for pin, digests in found]


def applies(requirement: Requirement, place: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(place)


@pytest.mark.parametrize("name", ["action.txt", "release.txt"])
def test_the_lock_files_are_in_step_with_the_project(name: str) -> None:
    wanted = [Requirement(line) for line in script_module("lock").wanted(PROJECT)[name]]
    pins = locked(name)
    assert all(re.fullmatch(r"( {4}--hash=sha256:[0-9a-f]{64}( \\)?\n)+", digests) for _, digests in pins)
    for place in PLACES:
        versions: dict[str, str] = {}
        for pin, _ in pins:
            if applies(pin, place):
                (version,) = pin.specifier
                assert versions.setdefault(canonicalize_name(pin.name), version.version) == version.version, pin
        for one in wanted:
            if applies(one, place):
                assert versions[canonicalize_name(one.name)] in one.specifier, f"{one}: run scripts/lock.py"


# --- the workflows ---


def steps() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each step of a release with the name of its job."""
    for name, job in JOBS.items():
        for step in job.get("steps", ()):
            yield name, step


def test_others_actions_are_pinned_by_commit() -> None:
    texts = (*WORKFLOWS.values(), (ROOT / "action.yml").read_text())
    used = [line for text in texts for line in re.findall(r"uses: (.*)$", text, re.MULTILINE)]
    assert len(used) > 15
    for line in used:
        assert line.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    assert len({line.split("@")[0] for line in used}) == len(set(used))  # one version of each


def test_what_is_published_is_what_was_built_and_attested() -> None:
    assert (JOBS["build"]["needs"], JOBS["test"]["uses"]) == ("test", "./.github/workflows/ci.yml")
    assert [JOBS[name]["needs"] for name in ("attest", "pypi", "github")] == ["build", "attest", "pypi"]
    building = [name for name, step in steps() if "python -m build" in step.get("run", "")]
    fetching = [name for name, step in steps() if "download-artifact@" in step.get("uses", "")]
    assert (building, set(fetching)) == (["build"], {"attest", "pypi", "github"})
    assert not [name for name, step in steps() if "checkout@" in step.get("uses", "") and name != "build"]
    attested = [step["with"] for name, step in steps() if "actions/attest@" in step.get("uses", "")]
    assert attested == [
        {"subject-path": "dist/*"},
        {"subject-path": "dist/*.whl", "sbom-path": "resnet-export.cdx.json"},
    ]
    (publishing,) = [step for name, step in steps() if "pypi-publish@" in step.get("uses", "")]
    assert "with" not in publishing  # no password: the workflow is the trusted publisher


def test_no_release_holds_a_secret() -> None:
    assert not [name for name, text in WORKFLOWS.items() if "secrets." in text]
    (checkout,) = [step for _, step in steps() if "checkout@" in step.get("uses", "")]
    assert checkout["with"]["persist-credentials"] is False


def test_each_job_has_the_permissions_that_it_needs() -> None:
    assert [yaml.safe_load(text)["permissions"] for text in WORKFLOWS.values()] == [{"contents": "read"}] * len(
        WORKFLOWS
    )
    more = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert more == {
        "attest": {"contents": "read", "id-token": "write", "attestations": "write"},
        "pypi": {"id-token": "write"},
        "github": {"contents": "write"},
    }
    for text in WORKFLOWS.values():
        for job in yaml.safe_load(text)["jobs"].values():
            assert all("${{" not in step.get("run", "") for step in job.get("steps", ()))


def test_the_commands_that_verify_a_release_ask_for_what_it_attests() -> None:
    page = (ROOT / "docs/trust.md").read_text()
    (block,) = re.findall(r"^```\n(gh .*?)^```", page, re.DOTALL | re.MULTILINE)
    wheel = f"resnet_export-{PROJECT['project']['version']}-py3-none-any.whl"
    built, needs = (
        line.removeprefix(f"gh attestation verify {wheel} --repo OWNER/resnet-export ") for line in block.splitlines()
    )
    assert built == "--signer-workflow OWNER/resnet-export/.github/workflows/release.yml"
    assert needs == "--predicate-type https://cyclonedx.org/bom"  # actions/attest, src/sbom.ts


def test_it_is_said_whether_there_is_a_release() -> None:
    released = re.findall(r"^## \[\d", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert ("No version has been released yet." in (ROOT / "docs/trust.md").read_text()) == (not released)


def test_security_says_which_versions_are_mended_and_where_to_report() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Supported versions", "How to report", "What counts"]
    assert "Report a vulnerability" in page
    assert all((ROOT / target).exists() for target in re.findall(r"\]\(([^)]+)\)", page))
