"""What `resnet-deploy inspect` says of an ONNX file: the linter's findings, and the builder's verdict beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtimes.errors import LintError, PlanError

if TYPE_CHECKING:
    import onnx

    from exporter.engines.verdict import BuilderVerdict
    from exporter.lowering.lint.file import FileReport
    from exporter.lowering.lint.findings import Finding

UNTOLD = "unknown"
"""The type of convolutions that the log does not name: those of local functions and of graphs inside nodes."""
RULES_PAGE = "; each rule: the page Rules of this project's documentation"
CRASHED = "the parser or the builder crashed"


@dataclass(frozen=True)
class LintOptions:
    """Options of `inspect` for an ONNX file: `target` is `tensorrt` or `cpu`, or None for what the file says."""

    target: str | None = None
    target_trt: str | None = None
    dla: bool = False
    build: bool = False
    strict: bool = False
    github: bool = False

    @property
    def given(self) -> list[str]:
        """The options that are for ONNX files alone, as they are written."""
        values = {
            "--target": self.target,
            "--target-trt": self.target_trt,
            "--dla": self.dla,
            "--build": self.build,
            "--strict": self.strict,
            "--github": self.github,
        }
        return [name for name, value in values.items() if value]


@dataclass(frozen=True)
class Linted:
    """What is known of a file.

    Attributes:
        target: `tensorrt` or `cpu`.
        verdict: the builder's; None where it was not asked.
        disagreements: where builder and linter disagree, a sentence each.
        another: of which version the builder is not, though it was asked for; empty otherwise.
    """

    target: str
    on_processor: bool
    report: FileReport
    verdict: BuilderVerdict | None = None
    disagreements: tuple[str, ...] = ()
    another: str = ""

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        verdict = None
        if self.verdict is not None:
            verdict = {**asdict(self.verdict), "disagreements": self.disagreements}
        return {
            "target": self.target,
            "judged_for": self.report.judged_for,
            "findings": [one.record() for one in self.report.findings],
            "counts": {name: self.report.counts[name] for name in ("error", "warning", "note")},
            "builder": verdict,
            "qdq": asdict(self.report.qdq) if self.report.qdq else None,
        }


def linted(path: Path, model: onnx.ModelProto, options: LintOptions) -> Linted:
    """Lint a file, and ask the builder where that is wanted.

    Raises:
        PlanError: the options contradict each other.
        UnknownName: there is no such target or version.
        BackendUnavailable: the builder is not installed.
    """
    from exporter.lowering.lint.file import lint_file, lint_file_for_processors
    from exporter.lowering.lint.versions import VERSIONS, choose_versions
    from exporter.lowering.qdq.targets import DEFAULT_TARGET
    from exporter.lowering.registry import load_target, target_names

    told = next((one.value for one in model.metadata_props if one.key == "target"), DEFAULT_TARGET)
    target = options.target or (told if told in target_names() else DEFAULT_TARGET)  # a stranger's may mean anything
    of_tensorrt = [name for name in options.given if name in ("--target-trt", "--dla", "--build")]
    if of_tensorrt and options.target is None:
        target = DEFAULT_TARGET
    if load_target(target).ON_INTEGERS:
        if of_tensorrt:
            raise PlanError(f"{of_tensorrt[0]} is for TensorRT, and --target is {target}; leave one of them out")
        return Linted(target, True, lint_file_for_processors(model))
    versions = choose_versions(options.target_trt)
    if options.dla:
        versions = tuple(one for one in versions if one.dla)
        if not versions:
            has = " or ".join(name for name, one in VERSIONS.items() if one.dla)
            raise PlanError(f"--dla: TensorRT {options.target_trt} has no DLA on any board; give --target-trt {has}")
    report = lint_file(model, versions, dla=options.dla)
    if not options.build:
        return Linted(target, False, report)
    verdict = _verdict(path)
    another = "" if any(one.seen for one in versions) else report.judged_for
    beside = report if options.target_trt in (None, "rtx") else lint_file(model, choose_versions("rtx"))
    return Linted(target, False, report, verdict, _disagreements(beside, verdict), another)


def check_strict(done: Linted) -> None:
    """Refuse errors and warnings, the builder's refusal among them.

    Raises:
        LintError: there are some.
    """
    counts = done.report.counts.copy()
    if done.verdict is not None and done.verdict.refusal and not done.report.refused:
        counts["error"] += 1
    found = _counts_text(counts, "error", "warning")
    if found:
        raise LintError(f"expected no errors and no warnings, got {found}; mend them, or drop --strict")


def closing_lines(done: Linted) -> list[str]:
    """The builder's verdict, where it disagrees, and how many findings there are."""
    lines = []
    if done.verdict is not None:
        lines.append(f"{'builder':<12} {_verdict_text(done.verdict)}")
        if done.another:
            lines.append(f"{'':<12} (it is not {done.another}, which cannot be tried here)")
        lines += [f"{'disagreement':<12} {one}" for one in done.disagreements]
    found = _counts_text(done.report.counts, "error", "warning", "note")
    told = f"{'refused; ' * done.report.refused}{found or 'no findings'}, for {done.report.judged_for}"
    return [*lines, f"{'linted':<12} {told}{RULES_PAGE if found else ''}"]


def finding_line(found: Finding) -> str:
    """A finding in one line, its rule first."""
    return f"{found.rule} {found.severity}, {found.kind}: {found.node}: {found.message}"


def _counts_text(counts: Mapping[str, int], *severities: str) -> str:
    """How many there are of each: `1 error, 2 warnings`; empty for none."""
    return ", ".join(f"{counts[name]} {name}{'s' * (counts[name] > 1)}" for name in severities if counts[name])


def _verdict(path: Path) -> BuilderVerdict:
    """The builder's verdict, from a process of its own.

    Raises:
        BackendUnavailable: it is not installed.
    """
    from exporter.engines.verdict import BuilderVerdict, builder_verdict
    from exporter.verification.own_process import run_in_own_process
    from runtimes.errors import BackendUnavailable

    done = run_in_own_process(builder_verdict, str(path))
    if done.verdict == "not here":
        raise BackendUnavailable(done.reason)
    if isinstance(done.value, BuilderVerdict):
        return done.value
    return BuilderVerdict("TensorRT-RTX", f"{CRASHED}: {done.reason.partition(';')[0]}", {}, {})


def _verdict_text(verdict: BuilderVerdict) -> str:
    if verdict.refusal:
        return f"{verdict.builder} refuses it: {verdict.refusal}"
    text = f"{verdict.builder} takes it"
    if verdict.convolutions and UNTOLD not in verdict.convolutions:
        read = ", ".join(f"{count} {name}" for name, count in verdict.convolutions.items())
        text += f"; its convolutions read {read}"
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in verdict.sizes.items())
    return f"{text}; built with {shapes}" if shapes else text


def _disagreements(report: FileReport, verdict: BuilderVerdict) -> tuple[str, ...]:
    """Where the linter, judging for this builder, says something else than it."""
    refusing: Sequence[str] = sorted({one.finding.rule for one in report.findings if one.finding.kind == "refused"})
    if verdict.refusal:
        return () if refusing else ("the builder refuses the file, and the linter found no reason; trust the builder",)
    if refusing:
        told = f"the linter says that it is refused ({', '.join(refusing)}), and the builder takes it"
        return (f"{told}; trust the builder",)
    told_int8 = report.qdq.convolutions.int8 if report.qdq else 0
    read_int8 = verdict.convolutions.get("int8", 0)
    if told_int8 != read_int8 and UNTOLD not in verdict.convolutions:
        return (f"the linter counts {told_int8} convolutions in INT8, and the builder {read_int8}; trust the builder",)
    return ()
