"""`resnet-deploy check`: bundles through every backend that is here, against their budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._build import trust_option
from exporter.cli._common import echo_json, echo_lines, status
from exporter.verification.report.lines import accuracy_line, parity_lines
from runtimes.errors import BadInput, ParityError, PlanError, ResnetExportError
from runtimes.printable import printable

if TYPE_CHECKING:
    from exporter.verification.check import CheckPlan
    from exporter.verification.parity_toml import Settings
    from exporter.verification.verdicts import BundleCheck, Checked
from exporter.verification.parity_toml import FLEET, entries, plan_from_entry

SHOWN_FLIPS = 10
EPILOG = """\b
Examples:
  resnet-deploy check resnet50-int8                              golden inputs, every backend that is here
  resnet-deploy check resnet50-int8 --data images/ --html report.html
  resnet-deploy check resnet50-int8 --budget min_agreement=0.99 --junit parity.xml
  resnet-deploy check new/resnet50-int8 --against released/resnet50-int8
  resnet-deploy check                                            all that resnet-parity.toml names

\b
Exit codes: 0 within budget, 1 failed, 2 asked for wrongly,
            3 something is not here, 4 out of budget."""


@click.command(epilog=EPILOG)
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME|all",
    help="What is to answer; may be given again.  [default: all that are here]",
)
@click.option(
    "--data",
    metavar="SOURCE",
    help="Pictures to ask, against the bundle's reference program, in place of its golden inputs.",
)
@click.option(
    "--images", type=click.IntRange(min=1), metavar="N", help="At most that many of the pictures.  [default: 256]"
)
@click.option(
    "--budget",
    multiple=True,
    metavar="NAME=VALUE",
    help="A limit in place of the bundle's own, min_agreement=0.99; may be given again.",
)
@click.option(
    "--against", metavar="OLD", help="Hold the answers against those of another bundle, and list what changed."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long a backend may take.  [default: no limit]",
)
@click.option(
    "--blocks",
    is_flag=True,
    help="Follow error and SQNR block by block: PyTorch, FP32 ONNX, model.onnx, and as a device rounds.",
)
@click.option("--bisect", is_flag=True, help="Find the fewest blocks whose return to FP32 mends a broken budget.")
@trust_option
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"The bundles to check, and their settings.  [default: {FLEET}]",
)
@click.option(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JUnit XML, a test case for each backend and limit.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A page with plots, flips and layers, in one file.",
)
@click.option(
    "--github", is_flag=True, help="In a GitHub workflow: a job summary, and an annotation for each broken limit."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def check(
    bundles: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    junit: Path | None,
    html: Path | None,
    github: bool,
    **options: Any,
) -> None:
    """Run each BUNDLE's golden inputs, or pictures, on the backends that are here and hold the answers against its parity budget."""
    from exporter.verification.check import check_bundle, failed_check, load_blockwise
    from exporter.verification.report import load_page
    from exporter.verification.report.github import annotation_lines, summary_file, write_summary
    from exporter.verification.report.junit import xml_from_checks
    from exporter.verification.report.sections import section_from_check
    from runtimes.nvidia.trust import trusted_engines

    trusted = tuple(sorted(trusted_engines(options["trust_engines"])))
    summary = summary_file() if github else None
    page = load_page() if html is not None else None
    plans = [
        replace(plan_from_entry(entry), trust_engines=trusted)
        for entry in entries(bundles, options["config"], _given(options))
    ]
    if options["blocks"] or options["bisect"]:
        load_blockwise()
        plans = [replace(plan, blocks=options["blocks"], bisect=options["bisect"]) for plan in plans]
    checks, sections = [], []
    _check_writable({"--junit": junit, "--html": html}, plans)
    problems: list[ResnetExportError | None] = []
    with status(quiet=quiet) as say:
        for plan in plans:
            try:
                found, evidence = check_bundle(plan, say)
                problem = found.problem
            except ResnetExportError as error:  # the others are checked all the same
                found, evidence = failed_check(plan, error)
                problem = error
            checks.append(found)
            problems.append(problem)
            if page is not None:
                sections.append(section_from_check(found, plan, evidence))
    if junit is not None:
        _write(junit, xml_from_checks(checks), "--junit")
    if html is not None and page is not None:
        _write(html, page.html_from_sections(sections), "--html")
    if summary is not None:
        write_summary(summary, checks)
    if as_json:
        import msgspec

        echo_json(
            {
                "ok": all(one.ok for one in checks),
                "bundles": [{"ok": one.ok, **msgspec.to_builtins(one)} for one in checks],
            }
        )
    else:
        echo_lines(line for one in checks for line in check_lines(one))
    if github:  # a runner reads its commands from both streams, and JSON is to stay JSON
        click.echo("".join(f"{printable(line)}\n" for line in annotation_lines(checks)), nl=False, err=as_json)
    for problem in problems:
        if problem is not None:
            if isinstance(problem, ParityError):
                problem.shown = not as_json
            raise problem


def check_lines(check: BundleCheck) -> list[str]:
    """What became of a bundle, as lines of text."""
    from exporter.cli._drift import bisection_lines, drift_lines
    from exporter.verification.verdicts import joined_report

    asked = f", {check.evidence} against {check.reference}" if check.images else ""
    lines = [f"{'bundle':<12} {check.bundle}: {check.name}{asked}"]
    report = joined_report(check)
    if report is not None:
        lines += parity_lines(report)
    for one in check.backends:
        if one.answer is None:
            lines.append(f"{one.backend:<12} {one.verdict}: {one.reason}")
            continue
        lines += [f"{'':<12} {one.backend}: {limit.text}" for limit in one.answer.limits if not limit.ok]
        if one.answer.accuracy is not None:
            lines.append(accuracy_line(one.answer.accuracy, one.backend))
        lines += _flip_lines(check, one)
    lines += drift_lines(check.drift) if check.drift is not None else []
    lines += bisection_lines(check.bisection) if check.bisection is not None else []
    lines += [f"{'left out':<12} {problem}" for problem in check.left_out]
    lines += [f"{'accuracy':<12} not measured: {check.no_accuracy}"] if check.no_accuracy else []
    return [
        *lines,
        *(
            f"{'changed':<12} {change.what}: {change.old or 'nothing'} -> {change.new or 'nothing'}"
            for change in check.changes
        ),
    ]


def _flip_lines(check: BundleCheck, one: Checked) -> list[str]:
    flips = one.answer.flips if one.answer is not None else ()
    lines = []
    for flip in flips[:SHOWN_FLIPS]:
        counts = "counts" if flip.counted else "within the precision's own error"
        image = check.image_text(flip.image)
        lines.append(
            f"{'flip':<12} {one.backend}: {image}, class {flip.reference} -> {flip.got}, margin {flip.margin:.2e}, {counts}"
        )
    rest = len(flips) - SHOWN_FLIPS
    return lines if rest <= 0 else [*lines, f"{'':<12} and {rest} more, in --json and --html"]


def _given(options: dict[str, Any]) -> Settings:
    """What the command line says."""
    from exporter.verification.parity_toml import Settings
    from runtimes.parity.budget import budget_from_text

    return Settings(
        backends=options["backends"] or None,
        data=options["data"],
        images=options["images"],
        budget=budget_from_text(options["budget"]),
        against=options["against"],
        timeout_s=options["timeout"],
    )


def _check_writable(outputs: Mapping[str, Path | None], plans: Sequence[CheckPlan]) -> None:
    """
    Raises:
        BadInput: a file cannot be written where it is to be.
        PlanError: it would make a bundle another than its manifest says, or two outputs are one file.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        if not path.name:
            raise BadInput(f"expected a file for {option}, got '{path}'; name one")
        if not path.absolute().parent.is_dir():
            raise BadInput(
                f"cannot write {path}: there is no folder {path.parent}; make it first, or give another {option}"
            )
        for plan in plans:
            for opened in filter(None, (plan.bundle, plan.against)):
                if path.resolve().is_relative_to(opened.folder.resolve()):
                    raise PlanError(
                        f"{path} lies in the bundle {opened.folder}, whose files are those of its manifest; give another {option}"
                    )
    if len({path.resolve() for path in given.values()}) < len(given):
        raise PlanError(f"expected a file each for {' and '.join(given)}, got one for both")


def _write(path: Path, data: bytes, option: str) -> None:
    from runtimes.bundle import write_in_one_step

    try:
        write_in_one_step(path, data)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another {option}") from error
