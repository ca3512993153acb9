"""The steps of a build on another machine: look at it, copy the bundle, build, check, bring the engine back."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from exporter.deployment.remote.address import Address
from exporter.deployment.remote.look import check_machine, find_install
from exporter.deployment.remote.ssh import Ssh
from exporter.engines.folder import check_folder, keep_engine, staged_engine
from runtimes.bundle import MANIFEST, Bundle
from runtimes.errors import BadInput, BoardError, BundleError
from runtimes.manifest import json_from_manifest, without_reference
from runtimes.nvidia.engine_file import EngineFacts, facts_of
from runtimes.nvidia.plan_files import CHECK_JSON, FOLDER, sidecar_of
from runtimes.parity.compare import ParityReport

Say = Callable[[str], None]
"""Shows one line of what is done, here or on the board."""
ANOTHER = "install the same version on both"
KILLED, NOT_HERE = 137, 3
THERE, JUNIT = "bundle", "check.xml"
"""In the board's temporary folder."""
ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\.engine")
"""As `engine_name` makes them: no folder, and nothing that a shell reads."""


@dataclass(frozen=True)
class RemotePlan:
    """A bundle, and the machine to build its engine on.

    Attributes:
        board: where ssh connects to.
        arguments: options of `resnet-deploy build` for the board's.
        backend: the one among them.
        needs_dla: an engine for DLA is asked for, which Jetson boards alone have.
        command: words that run the board's `resnet-deploy`; empty looks for it.
        ssh_config: file that ssh reads in place of its own configuration.
        quiet: show errors alone.
    """

    bundle: Bundle
    board: Address
    arguments: tuple[str, ...]
    backend: str
    needs_dla: bool = False
    command: tuple[str, ...] = ()
    ssh_config: Path | None = None
    quiet: bool = False


@dataclass(frozen=True)
class RemoteBuild:
    """An engine that was built on a board and brought back.

    Attributes:
        engine: in the bundle's `engines/`; this machine does not trust it, the board does.
        check: what `resnet-deploy check --json` found there, which lies in `check_json` and, as JUnit XML, in
            `check_junit`.
        report: its parity report; None where the engine did not run there.
        not_checked: why it did not; empty where it did.
    """

    engine: Path
    facts: EngineFacts
    check: dict[str, Any]
    check_json: Path
    check_junit: Path
    report: ParityReport | None
    not_checked: str


def build_on_board(plan: RemotePlan, say: Say) -> RemoteBuild:
    """Build and check an engine on a board with its own install, and bring it back.

    Nothing is brought back of a build or check that fails; the board's temporary folder is removed in any case.

    Raises:
        BackendUnavailable: ssh does not reach the board, or it lacks disk, our package, or the right architecture.
        BoardError: the build or the check failed there, with its exit code; or what it gave cannot be used.
        BundleError: `engines/` cannot be written.
        PlanError: DLA was asked for, and the board has none.
    """
    board, quiet = plan.board.text, ("--quiet",) if plan.quiet else ()
    step = _drop if plan.quiet else say
    check_folder(plan.bundle.folder / FOLDER)
    step(f"connect to {board}")
    with Ssh(plan.board, plan.ssh_config, quiet=plan.quiet) as ssh:
        size = sum(facts.bytes for facts in without_reference(plan.bundle.manifest).files.values())
        check_machine(ssh, size, needs_dla=plan.needs_dla)
        command = find_install(ssh, plan.command)
        step(f"copy {size / 1e6:.1f} MB to {board}")
        _copy_bundle(plan.bundle, ssh)
        built = _ask(plan, ssh, say, (*command, "build", THERE, "--json", *quiet, *plan.arguments))
        engine = _built(built, board)
        # The build has run the golden inputs where it could. This is another process, which finds and trusts the engine
        # as any later one will, and writes the reports.
        words = ("check", THERE, "--backend", plan.backend, "--json", "--junit", JUNIT)
        checked = _ask(plan, ssh, say, (*command, *words, *quiet))
        if not (checked.code == NOT_HERE and engine.ahead_of_time):
            checked.expect_success("check", board)
        step(f"bring {engine.name} back")
        return _bring_back(plan, ssh, engine, checked)


def _copy_bundle(bundle: Bundle, ssh: Ssh) -> None:
    """Copy the bundle. Its files' names may come from a stranger, so no command line has them: a folder of links is
    copied."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "bundle"
        folder.mkdir()
        manifest = without_reference(bundle.manifest)
        for name in {PurePosixPath(name) for name in manifest.files}:  # two names may be of one file
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((bundle.folder / name).resolve())
        (folder / MANIFEST).write_bytes(json_from_manifest(manifest))
        ssh.put(folder, "bundle")


class _Said(NamedTuple):
    """What a command of the board's install ended with: its exit code, standard output, and error."""

    code: int
    out: str
    error: str

    def expect_success(self, verb: str, board: str) -> None:
        """
        Raises:
            BoardError: it failed; with its own words, and its exit code.
        """
        if self.code:
            why = f"it ended with exit code {self.code} and gave no reason; see what it printed"
            if self.code == KILLED:
                why = "it was killed, as systems do when memory runs out; end other programs there, or give --workspace"
            raise BoardError(f"{verb} on {board}: {self.error or why}", self.code)

    def document(self, verb: str, board: str) -> dict[str, Any]:
        """Its JSON.

        Raises:
            BoardError: it is none.
        """
        try:
            return msgspec.json.decode(self.out, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise BoardError(
                f"expected JSON from {verb} on {board}, got {self.out[:80]!r} ({error}); {ANOTHER}"
            ) from error


def _ask(plan: RemotePlan, ssh: Ssh, say: Say, words: tuple[str, ...]) -> _Said:
    """Run a command of the board's install, and show what it says."""
    errors = [""]

    def on_line(line: str) -> None:
        if line.startswith("error: "):
            errors.append(line.removeprefix("error: "))
        else:
            say(f"{plan.board.text}: {line}")

    answer = ssh.run(words, on_line)
    return _Said(answer.code, answer.out, errors[-1])


class _There(NamedTuple):
    """An engine on the board: its file's name, and whether it was built without a GPU that runs it."""

    name: str
    ahead_of_time: bool


def _built(said: _Said, board: str) -> _There:
    """The engine of a build.

    Raises:
        BoardError: the build failed, or names no engine.
    """
    said.expect_success("build", board)
    document = said.document("build", board)
    name = str(document.get("engine")).rpartition("/")[2]
    if ENGINE_NAME.fullmatch(name) is None:
        raise BoardError(f"expected an engine's name from build on {board}, got {name!r}; {ANOTHER}")
    return _There(name, ahead_of_time=document.get("device") is None)


def _bring_back(plan: RemotePlan, ssh: Ssh, engine: _There, checked: _Said) -> RemoteBuild:
    """Copy the engine, its sidecar and the reports under hidden names, verify them, and rename all into place."""
    board, folder = plan.board.text, plan.bundle.folder / FOLDER
    path = folder / engine.name
    document = checked.document("check", board)
    with staged_engine(path) as staged:
        ssh.get(f"{THERE}/{FOLDER}/{engine.name}", staged)
        ssh.get(f"{THERE}/{FOLDER}/{sidecar_of(path).name}", sidecar_of(staged))
        ssh.get(JUNIT, _junit_of(staged))
        _json_of(staged).write_text(checked.out, encoding="utf-8")
        try:
            facts = facts_of(staged)
            if facts.onnx_sha256 != plan.bundle.manifest.files["model.onnx"].sha256:
                raise BundleError("it is of another model.onnx")
            report = _report(document) if not checked.code else None
        except (BadInput, BundleError, ValueError, LookupError, TypeError) as error:
            raise BoardError(f"{engine.name} from {board} cannot be used: {error}") from error
        plan.bundle.check_same()
        keep_engine([(kind(staged), kind(path)) for kind in (_as_is, sidecar_of, _json_of, _junit_of)])
    return RemoteBuild(path, facts, document, _json_of(path), _junit_of(path), report, checked.error)


def _report(check: dict[str, Any]) -> ParityReport:
    """The parity report in the JSON of a check of one bundle on one backend."""
    (one,) = check["bundles"][0]["backends"]
    return msgspec.convert(one["answer"]["report"], ParityReport)


def _as_is(engine: Path) -> Path:
    return engine


def _json_of(engine: Path) -> Path:
    """The check's JSON beside an engine."""
    return engine.with_suffix(CHECK_JSON)


def _junit_of(engine: Path) -> Path:
    """The check's JUnit XML beside an engine."""
    return engine.with_suffix(".check.xml")


def _drop(line: str) -> None:
    """Take a line, and do nothing with it."""
