"""`resnet-deploy check`: re-check bundles on every installed backend, against their parity budgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from exporter.cli._common import echo_json, echo_lines, status
from exporter.cli._files import check_output_files, write_output
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import (
    backend_group,
    json_option,
    output_group,
    quiet_option,
    threads_option,
    timeout_option,
    trust_option,
    url_option,
)
from exporter.verification.report.lines import check_lines
from runtimes.errors import ParityError, PlanError, ResnetExportError
from runtimes.printable import printable

if TYPE_CHECKING:
    from exporter.verification.parity_toml import Settings
    from exporter.verification.plan import CheckPlan
    from exporter.verification.verdicts import BundleCheck
    from runtimes.parity.evidence import Evidence
    from runtimes.progress import Progress

EPILOG = """\b
Examples:
  resnet-deploy check resnet50-int8        # golden inputs, on every backend
  resnet-deploy check resnet50-int8 --data images/ --html report.html
  resnet-deploy check resnet50-int8 --budget min_agreement=0.99 --junit out.xml
  resnet-deploy check new/resnet50-int8 --against released/resnet50-int8
  resnet-deploy check resnet50 --backend triton --url grpc://host/resnet50
  resnet-deploy check                      # every bundle of resnet-parity.toml

\b
Exit codes: 0 within budget, 1 failed, 2 wrong usage,
            3 something needed is missing, 4 out of budget or undecided."""

_images, _diagnosis = map(option_group, ("Images and limits", "Diagnosis"))


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=click.Path(path_type=Path))
@backend_group(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME|all",
    help="Backend to run; repeatable.  [default: every installed backend]",
)
@url_option
@timeout_option
@threads_option
@trust_option
@_images(
    "--data",
    metavar="SOURCE",
    help="Run images (a folder, a file or a URL) instead of the bundle's golden inputs; the bundle's reference program"
    " gives the expected outputs.",
)
@_images("--images", type=click.IntRange(min=1), metavar="N", help="Run at most N of the images.  [default: 512]")
@_images(
    "--budget",
    multiple=True,
    metavar="NAME=VALUE",
    help="Limit that replaces the bundle's own, such as min_agreement=0.99; repeatable.",
)
@_images("--against", metavar="OLD", help="Compare with the outputs of another bundle, and list what changed since.")
@_images(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File that names bundles and their settings.  [default: resnet-parity.toml]",
)
@_diagnosis(
    "--blocks",
    is_flag=True,
    help="Show the error of each block: in FP32 ONNX, in model.onnx, and rounded as a device rounds.",
)
@_diagnosis("--bisect", is_flag=True, help="If out of budget, find the fewest blocks to keep in FP32 to be within it.")
@output_group(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with plots, flips and layers, in one file.",
)
@output_group(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write JUnit XML, with a test case for each backend and limit.",
)
@output_group(
    "--github", is_flag=True, help="In a GitHub workflow: write a job summary, and annotate each broken limit."
)
@json_option
@quiet_option
def check(bundles: tuple[Path, ...], **options: Any) -> None:
    """Re-check each BUNDLE against its parity budget.

    Every installed backend runs the bundle's golden inputs, or the images of --data, and its outputs are compared with
    those of the FP32 reference.
    """
    from exporter.verification.check import check_can_follow_blocks
    from exporter.verification.parity_toml import entries_to_check, plan_from_entry
    from exporter.verification.report import load_page
    from exporter.verification.report.github import annotation_lines, markdown_from_checks, summary_file, write_summary
    from exporter.verification.report.junit import xml_from_checks
    from exporter.verification.report.sections import section_from_check
    from runtimes.nvidia.trust import trusted_engines

    junit, html, as_json = options["junit"], options["html"], options["as_json"]
    trusted = tuple(sorted(trusted_engines(options["trust_engines"])))
    summary = summary_file() if options["github"] else None
    page = load_page() if html is not None else None
    plans = [
        replace(plan_from_entry(entry), trust_engines=trusted, tuning=options["tuning"])
        for entry in entries_to_check(bundles, options["config"], _settings(options))
    ]
    if options["url"] is not None and len(plans) > 1:
        raise PlanError(f"expected one bundle with --url, whose model it is, got {len(plans)}; check one at a time")
    if options["blocks"] or options["bisect"]:
        check_can_follow_blocks()
        plans = [replace(plan, blocks=options["blocks"], bisect=options["bisect"]) for plan in plans]
    opened = [one.folder for plan in plans for one in (plan.bundle, plan.against) if one is not None]
    check_output_files({"--junit": junit, "--html": html}, opened)
    with status(quiet=options["quiet"]) as progress:
        done = [_check_one(plan, progress) for plan in plans]
    checks = [one.check for one in done]
    if junit is not None:
        write_output(junit, xml_from_checks(checks), "--junit")
    if html is not None and page is not None:
        sections = [section_from_check(one.check, plan, one.evidence) for one, plan in zip(done, plans, strict=True)]
        write_output(html, page.html_from_sections(sections), "--html")
    if summary is not None:
        write_summary(summary, markdown_from_checks(checks))
    if as_json:
        import msgspec

        bundles_json = [{"ok": one.ok, **msgspec.to_builtins(one)} for one in checks]
        echo_json({"ok": all(one.ok for one in checks), "bundles": bundles_json})
    else:
        echo_lines(line for one in checks for line in check_lines(one))
    if options["github"]:  # a runner reads its commands from both streams, and JSON is to stay JSON
        click.echo("".join(f"{printable(line)}\n" for line in annotation_lines(checks)), nl=False, err=as_json)
    problem = next((one.problem for one in done if one.problem is not None), None)
    if problem is not None:
        if isinstance(problem, ParityError):
            problem.shown = not as_json
        raise problem


class _Done(NamedTuple):
    """The check of one bundle, what its backends were fed, and the error that the command ends with, if any."""

    check: BundleCheck
    evidence: Evidence
    problem: ResnetExportError | None


def _check_one(plan: CheckPlan, progress: Progress) -> _Done:
    from exporter.verification.check import check_bundle, failed_check

    try:
        found, evidence = check_bundle(plan, progress)
    except ResnetExportError as error:  # the other bundles are checked all the same
        found, evidence = failed_check(plan, error)
        return _Done(found, evidence, error)
    return _Done(found, evidence, found.problem)


def _settings(options: dict[str, Any]) -> Settings:
    """The settings that the command line gives; None where it leaves one out."""
    from exporter.verification.parity_toml import Settings
    from runtimes.parity.budget_options import budget_from_text

    return Settings(
        backends=options["backends"] or None,
        data=options["data"],
        images=options["images"],
        budget=budget_from_text(options["budget"]),
        against=options["against"],
        timeout_s=options["timeout"],
        url=options["url"],
    )
