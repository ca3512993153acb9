"""A benchmark as an HTML page: who is the fastest, batch against images a second, latencies, tables, the machine."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from exporter.verification.report.bench_lines import (
    machine_lines,
    noise_text,
    rate_text,
    remarks_of,
    speedup_text,
    throttle_text,
    winner_text,
)
from exporter.verification.report.bench_plots import latency_svg, throughput_svg
from exporter.verification.report.drawing import Caption
from exporter.verification.report.environment import page_environment
from exporter.verification.report.sentences import join_words
from runtimes.benchmark.results import LINES, BundleFacts, Entry, Line, Result, Roof
from runtimes.printable import as_text

PAGE = "bench.html.j2"


@dataclass(frozen=True)
class BundleView:
    """What the page shows of one bundle; plots are None where nothing was measured for them."""

    facts: BundleFacts
    measured: tuple[Entry, ...]
    missing: tuple[Entry, ...]
    fastest: tuple[tuple[str, bool], ...]
    remarks: dict[str, list[str]]
    sizes: tuple[int, ...]
    throughput: Markup | None
    latency: Markup | None


def html_from_result(result: Result) -> bytes:
    """The page as UTF-8, with all that it needs inside; equal results give equal bytes."""
    environment = page_environment()
    environment.globals |= {
        "rate": _rate,
        "lines": LINES,
        "machine_text": list(machine_lines(result.machine, result.settings.threads)),
        "noise": "; ".join(filter(None, (noise_text(result), throttle_text(result)))),
        "speedup": speedup_text(result.speedup) if result.speedup is not None else None,
    }
    views = [_view(result, bundle, f"b{place}") for place, bundle in enumerate(result.bundles, 1)]
    page = environment.get_template(PAGE).render(result=result, views=views)
    return as_text(page).encode(errors="backslashreplace")  # a path may hold bytes that are no text


def _view(result: Result, bundle: BundleFacts, name: str) -> BundleView:
    entries = result.entries_of(bundle)
    measured = tuple(one for one in entries if one.timings)
    drawn = [one for one in measured if one.of_line("copies")]
    timed = [one for one in measured if one.latency is not None]
    names = join_words([one.contender.name for one in drawn])
    roofs = _roofs(result, drawn)
    text = f"A line each for {names}, over the batch sizes; the figures are in the table below."
    calls = f"A curve each for {join_words([one.contender.name for one in timed])}; the table below has percentiles."
    rates = Caption(f"{name}-rates", f"Images a second of {bundle.name} by batch size", text)
    times = Caption(f"{name}-calls", f"How long calls of {bundle.name} took", calls)
    return BundleView(
        facts=bundle,
        measured=measured,
        missing=tuple(one for one in entries if not one.ok),
        fastest=tuple(
            (winner_text(result, one), one.decision.decided) for one in result.winners if one.bundle == bundle.folder
        ),
        remarks=remarks_of(measured),
        sizes=tuple(sorted({timing.batch for one in measured for timing in one.timings})),
        # ElementTree has escaped what is in it.
        throughput=Markup(throughput_svg(drawn, roofs, bundle.macs, rates)) if drawn else None,
        latency=Markup(latency_svg(timed, times)) if timed else None,
    )


def _roofs(result: Result, entries: list[Entry]) -> list[Roof]:
    """The roofs that the contenders stand under, each once."""
    return list(dict.fromkeys(roof for roof in map(result.roof_of, entries) if roof is not None))


def _rate(entry: Entry, line: Line, size: int) -> str:
    found = next((one.interval for one in entry.of_line(line) if one.batch == size), None)
    if found is None:
        return "-"
    middle = rate_text(found.median)
    if found.low is None or found.high is None:
        return middle
    return f"{middle} ({rate_text(found.low)} to {rate_text(found.high)})"
