"""`resnet-deploy check`: the golden inputs through every backend that is here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import click

from exporter.cli._common import echo_json, parity_lines, status
from runtimes.errors import BackendUnavailable, BadInput, ExportError, ParityError, PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporter.check import Checked
    from runtimes.bundle import Bundle

EVERY = "all"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", "backends", multiple=True, metavar="NAME|all", help="What is to answer; may be given again.  [default: all that are here]")
@click.option("--max-error", type=click.FloatRange(min=0), metavar="X", help="Largest relative error, in place of the bundle's budget.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), metavar="X", help="Least top-1 agreement, 0..1, likewise.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a JUnit report, a test case for each backend.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
@click.option("--quiet", is_flag=True, help="Say nothing on the way.")
def check(
    bundle: Path, backends: tuple[str, ...], max_error: float | None, min_agreement: float | None, junit: Path | None, as_json: bool, quiet: bool
) -> None:
    """Run BUNDLE's golden inputs on the backends that are here and hold the answers against its parity budget."""
    from dataclasses import replace

    from exporter.check import check_bundle
    from runtimes._open import backend_names
    from runtimes.bundle import Bundle

    if junit is not None and not junit.absolute().parent.is_dir():
        raise BadInput(f"cannot write {junit}: there is no folder {junit.parent}; make it first")
    asked = bool(backends) and EVERY not in backends
    names = backends if asked else backend_names()
    opened = Bundle.open(bundle)
    given = {"max_relative_error": max_error, "min_agreement": min_agreement}
    changed = {name: value for name, value in given.items() if value is not None}
    own = opened.manifest.parity.budget
    found: list[Checked] = []
    with status(quiet=quiet) as say:
        for name in names:
            say(f"check {name}")
            found += check_bundle(opened, [name], budget=replace(own, **changed) if changed else None)
    if junit is not None:
        _write_junit(junit, opened, found)
    problem = _problem(found, asked=asked)
    if as_json:
        import msgspec

        echo_json({"bundle": str(bundle), "ok": problem is None, "backends": msgspec.to_builtins(found)})
    else:
        click.echo("\n".join(_lines(found)))
    if problem is not None:
        raise problem


def _lines(found: Sequence[Checked]) -> list[str]:
    lines: list[str] = []
    for one in found:
        if one.report is not None:
            table = parity_lines(one.report)
            lines += table[:-1] if not lines else table[1:-1]
            last = table[-1]
    if lines:
        lines.append(last)
    return [*lines, *(f"{one.backend:<12} {one.verdict}: {one.reason}" for one in found if one.report is None)]


def _problem(found: Sequence[Checked], *, asked: bool) -> Exception | None:
    """What the command ends with: the first budget broken, or a backend that crashed or failed, or that was asked for by name and is not here."""
    for one in found:
        if one.verdict == "out of budget" and one.report is not None:
            return ParityError(f"{one.backend} is out of budget: {one.reason}", one.report)
    for one in found:
        if one.verdict in ("failed", "crashed"):
            return ExportError(f"{one.backend} {one.verdict}: {one.reason}")
    missing = [one for one in found if one.verdict == "not here"]
    if missing and (asked or len(missing) == len(found)):
        return BackendUnavailable(f"{missing[0].backend} cannot answer: {missing[0].reason}")
    return None if found else PlanError("expected a backend, got none")


def _write_junit(path: Path, bundle: Bundle, found: Sequence[Checked]) -> None:
    """One test case for each backend; what is not here is skipped."""
    suite = ElementTree.Element("testsuite", name=bundle.manifest.name, tests=str(len(found)))
    suite.set("failures", str(sum(one.verdict == "out of budget" for one in found)))
    suite.set("errors", str(sum(one.verdict in ("failed", "crashed") for one in found)))
    suite.set("skipped", str(sum(one.verdict == "not here" for one in found)))
    for one in found:
        case = ElementTree.SubElement(suite, "testcase", classname=bundle.manifest.name, name=one.backend, time=f"{one.seconds:.3f}")
        kind = {"out of budget": "failure", "failed": "error", "crashed": "error", "not here": "skipped"}.get(one.verdict)
        if kind is not None:
            ElementTree.SubElement(case, kind, message=one.reason)
        if one.report is not None:
            ElementTree.SubElement(case, "system-out").text = "\n".join(parity_lines(one.report))
    try:
        path.write_bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; give another --junit") from error
