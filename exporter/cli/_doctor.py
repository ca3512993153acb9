"""`resnet-deploy doctor`: why does it not work here?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli._common import echo_json, status
from exporter.cli._help import GroupedCommand
from exporter.cli._options import backend_group, json_option, quiet_option
from runtimes.printable import printable

if TYPE_CHECKING:
    from runtimes.bundle import Bundle
    from runtimes.doctor.facts import BundleFacts, Facts
    from runtimes.doctor.page import Line
    from runtimes.doctor.rule import Finding

COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}

EPILOG = """\b
Examples:
  resnet-deploy doctor
  resnet-deploy doctor resnet50-fp16 --backend tensorrt

\b
Exit codes: 0 what was named can work (or nothing was named), 1 no bundle,
            2 wrong usage, 3 what was named cannot work here."""


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("bundle", metavar="[BUNDLE]", required=False, type=click.Path(path_type=Path))
@backend_group(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Ask about this backend alone; exit with 3 if it cannot run here. Repeatable.",
)
@json_option
@quiet_option
def doctor(bundle: Path | None, backends: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Tell what this machine has, what does not work, and why.

    Each problem comes with its remedy. With BUNDLE, also whether an engine of it can be built here, and which backends
    run it. Backends are loaded in processes of their own.
    """
    from runtimes._open import backend_names
    from runtimes.bundle import Bundle
    from runtimes.doctor.probe import examine
    from runtimes.doctor.rules import findings_of, what_cannot_work
    from runtimes.errors import BackendUnavailable, UnknownName

    for name in backends:
        if name not in backend_names():
            raise UnknownName("backend", name, backend_names())
    asked = tuple(dict.fromkeys(backends))
    facts_of_bundle = None if bundle is None else _bundle_facts(Bundle.open(bundle))
    with status(quiet=quiet) as progress:
        facts = examine(bundle=facts_of_bundle, backends=asked, on_step=progress)
    findings, failing = findings_of(facts), what_cannot_work(facts)
    if as_json:
        _echo_record(facts, findings, failing)
    else:
        _echo_page(facts, findings)
    if failing:
        errors = [one.text for one in findings if one.severity == "error"]
        raise BackendUnavailable(f"{' and '.join(failing)} cannot work here{f': {errors[0]}' if errors else ''}")


def _bundle_facts(bundle: Bundle) -> BundleFacts:
    """A bundle with what its builders refuse of it; none of them is loaded."""
    from exporter.engines.build import builder_names
    from exporter.engines.refusal import build_refusal
    from runtimes.doctor.host import Host
    from runtimes.doctor.needs import bundle_facts
    from runtimes.doctor.packages import package_facts
    from runtimes.doctor.probe import PACKAGES

    packages = package_facts(Host())
    reasons = {name: build_refusal(bundle, name, packages.version_of(*PACKAGES[name])) for name in builder_names()}
    return bundle_facts(bundle, {name: reason for name, reason in reasons.items() if reason})


def _echo_page(facts: Facts, findings: tuple[Finding, ...]) -> None:
    from runtimes.doctor.page import page

    color = False if os.environ.get("NO_COLOR") else None
    for line in page(facts, findings, shutil.get_terminal_size((96, 24)).columns):
        click.echo(_styled(line), color=color)


def _styled(line: Line) -> str:
    text = printable(line.text)
    if line.style in COLORS and not text.startswith(" "):  # the lines that continue one are plain
        word, _, rest = text.partition(" ")
        return click.style(word, fg=COLORS[line.style], bold=True) + (f" {rest}" if rest else "")
    return click.style(text, bold=True) if line.style == "head" else text


def _echo_record(facts: Facts, findings: tuple[Finding, ...], failing: tuple[str, ...]) -> None:
    import msgspec

    told = {"works": not failing, "cannot_work": failing, "findings": msgspec.to_builtins(findings)}
    echo_json({**told, **msgspec.to_builtins(facts)})
