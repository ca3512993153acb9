"""A benchmark as lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtimes.benchmark.compare import Compared
    from runtimes.benchmark.machine import Machine
    from runtimes.benchmark.results import BundleFacts, Entry, Line, Result, Speedup, Winner
    from runtimes.benchmark.statistics import Interval

LINE_NAMES = {"device": "device", "copies": "copies", "files": "files"}
FELL = 0.95
"""A locked clock below this share of what it was has been lowered."""
MEASURES = {"latency": "latency at the smallest batch", "throughput": "images a second at the best batch"}


def bench_lines(result: Result) -> Iterator[str]:
    """The machine, a table for each bundle, who is the fastest, and what could not be measured."""
    yield from machine_lines(result.machine, result.settings.threads)
    if result.roofs:
        each = ", ".join(f"{one.dtype} {one.macs_per_s / 1e9:.0f} ({one.library})" for one in result.roofs)
        yield f"{'roof':<12} product of large matrices, in 1e9 multiply-accumulates a second: {each}"
    for bundle in result.bundles:
        yield from _bundle_lines(result, bundle)
    yield ""
    if result.speedup is not None:
        yield f"{'speed-up':<12} {speedup_text(result.speedup)}"
    yield f"{'noise':<12} {noise_text(result)}"
    if (cooled := throttle_text(result)) is not None:
        yield f"{'heat':<12} {cooled}"
    if result.settings.pictures:
        yield f"{'files':<12} {result.settings.pictures}"
    yield (
        f"{'':<12} device: inputs and outputs stay there; copies: arrays in and out (Runtime.run); files: decoded, "
        "preprocessed and run, overlapped"
    )


def machine_lines(machine: Machine, threads: int) -> Iterator[str]:
    """The machine, over two lines."""
    flags = " ".join(machine.flags) or "no flags known"
    governors = f", governor {' and '.join(machine.governors)}" if machine.governors else ""
    load = f", load {machine.load:.1f} before" if machine.load is not None else ""
    yield (
        f"{'machine':<12} {machine.processor} ({flags}), {machine.usable_cores} of {machine.cores} cores, "
        f"{threads} thread{'s' * (threads > 1)}{governors}{load}"
    )
    if (gpu := machine.gpu) is not None:
        yield (
            f"{'':<12} {gpu.name} ({gpu.target}), {gpu.memory_bytes / 2**30:.0f} GiB, CUDA {gpu.cuda}"
            f"{f', driver {gpu.driver}' if gpu.driver else ''}"
        )
    if machine.power is not None:
        yield f"{'power':<12} {machine.power}{f'; {machine.power.problem}' if machine.power.problem else ''}"
    versions = ", ".join(f"{name} {one}" for name, one in machine.versions.items())
    yield f"{'':<12} {machine.system}, Python {machine.python}, {versions}"


def noise_text(result: Result) -> str:
    """How much rates varied, how the machine's speed changed, and whether it was busy."""
    change = 100 * (result.drift - 1)
    drifted = f"{abs(change):.0f} % {'faster' if change > 0 else 'slower'}" if abs(change) >= 1 else "as fast"
    busy = (
        f"; the machine was busy before (load {result.machine.load:.1f}): leave it idle to measure less noise"
        if result.machine.is_busy
        else ""
    )
    return (
        f"a rate varies by {result.variation:.1%} over the {result.settings.rounds} rounds (coefficient of variation); "
        f"the second half was {drifted}{busy}"
    )


def throttle_text(result: Result) -> str | None:
    """How hot a Jetson was before and after the rounds, and which of its clocks fell; None elsewhere."""
    before, after = result.machine.power, result.power_after
    if before is None or after is None or not before.temperatures_c or not after.temperatures_c:
        return None
    was = {one.name: one for one in before.clocks}
    fell = [
        f"{one.name} fell from {was[one.name].mhz} to {one.mhz} MHz"
        for one in after.clocks
        if one.name in was and was[one.name].is_locked and one.mhz < FELL * was[one.name].mhz
    ]
    hottest = [max(one.temperatures_c.values()) for one in (before, after)]
    slower = f"; {', '.join(fell)}: it was throttled, so cool it and measure again" if fell else ""
    return f"{hottest[0]:.0f} C before the rounds, {hottest[1]:.0f} C after them{slower}"


def winner_text(result: Result, winner: Winner) -> str:
    """Who is the fastest and by how much; or that it cannot be told, and what would help."""
    decision, what = winner.decision, MEASURES[winner.measure]
    if decision.decided:
        name, ratio = min(decision.ratios.items(), key=lambda pair: pair[1].median)
        return f"{what}: {decision.best} is the fastest, {ratio_text(ratio)} times as fast as {name}"
    others = ", ".join(f"{name} ({ratio_text(decision.ratios[name])} times)" for name in decision.tied)
    more = f"--rounds {decision.rounds_needed}" if decision.rounds_needed else "more rounds"
    idle = " on an idle machine" if result.machine.is_busy or result.variation > 0.05 else ""
    return f"{what}: too noisy to tell {decision.best} from {others}; measure {more}{idle}"


def ratio_text(ratio: Interval) -> str:
    """`1.31 (1.29 to 1.34)`."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def speedup_text(speedup: Speedup) -> str:
    """`A runs 2.00 times as many images a second as B (95 % interval 1.90 to 2.10)`."""
    low, high = speedup.ratio.low, speedup.ratio.high
    limits = "too few rounds for an interval" if low is None else f"95 % interval {low:.2f} to {high:.2f}"
    return (
        f"{speedup.first} runs {speedup.ratio.median:.2f} times as many images a second as {speedup.second} ({limits})"
    )


def _bundle_lines(result: Result, bundle: BundleFacts) -> Iterator[str]:
    entries = result.entries_of(bundle)
    macs = "" if bundle.macs is None else f", {bundle.macs / 1e9:.2f} GMACs an image"
    yield ""
    yield f"{'bundle':<12} {bundle.folder}: {bundle.name} for {bundle.target}, batch {bundle.batch}{macs}"
    measured = [one for one in entries if one.timings]
    if measured:
        sizes = sorted({timing.batch for one in measured for timing in one.timings})
        width = max(len(one.contender.name) for one in measured)
        yield (
            f"{'':<{width}} {'load s':>7} {'memory':>8} {'dB':>6}  {f'ms, batch {sizes[0]}':>14} {'p90':>7}"
            f" {'p99':>7}  {'images/s':<8}" + "".join(f"{size:>9}" for size in sizes) + f" {'of roof':>8}"
        )
        for one in measured:
            yield from _entry_lines(result, one, sizes, width)
    for winner in result.winners:
        if winner.bundle == bundle.folder:
            yield f"{'fastest':<12} {winner_text(result, winner)}"
    for one in entries:
        if not one.ok:
            yield f"{one.verdict:<12} {one.contender.name}: {one.reason}"
    for said, names in remarks_of(measured).items():
        yield f"{'':<12} {', '.join(names)}: {said}"


def remarks_of(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Each remark once, with those that it is about."""
    found: dict[str, list[str]] = {}
    for one in entries:
        for said in (*one.remarks, *(f"{name} {value}" for name, value in one.details.items())):
            found.setdefault(said, []).append(one.contender.name)
    return found


def _entry_lines(result: Result, entry: Entry, sizes: Sequence[int], width: int) -> Iterator[str]:
    memory = "-" if entry.memory_bytes is None else f"{entry.memory_bytes / 1e6:.0f} MB"
    decibels = "-" if entry.answers is None else f"{entry.answers.sqnr_db:.1f}"
    share = result.share_of_roof(entry)
    times = ["-"] * 3
    if (latency := entry.latency) is not None:
        p99 = "-" if latency.p99_ms is None else f"{latency.p99_ms:.2f}"
        times = [f"{latency.percentiles_ms[50]:.2f}", f"{latency.percentiles_ms[90]:.2f}", p99]
    head = f"{entry.contender.name:<{width}} {entry.load_s:>7.2f} {memory:>8} {decibels:>6}  "
    head += f"{times[0]:>14} {times[1]:>7} {times[2]:>7}"
    for place, line in enumerate(dict.fromkeys(timing.line for timing in entry.timings)):
        start = head if place == 0 else f"{'':<{len(head)}}"
        end = "" if share is None or place else f" {share:>8.0%}"
        yield f"{start}  {LINE_NAMES[line]:<8}" + "".join(_rate(entry, line, size) for size in sizes) + end


def _rate(entry: Entry, line: Line, size: int) -> str:
    found = next((one for one in entry.of_line(line) if one.batch == size), None)
    return f"{'-':>9}" if found is None else f"{rate_text(found.interval.median):>9}"


def rate_text(rate: float) -> str:
    """Four digits, or more where it has them before the point: `9.123`, `853.1`, `10043`."""
    return f"{rate:.4g}" if rate < 1000 else f"{rate:.0f}"


def compare_lines(found: Compared) -> Iterator[str]:
    """Ratios of two results, the second over the first."""
    if found.machines:
        yield f"{'machines':<12} they differ ({found.machines}), so the ratios are not of the software alone"
    width = max((len(row.name) for row in found.rows), default=0)
    yield f"{'':<{width}} {'line':<8} {'batch':>6} {'first':>9} {'second':>9}  second / first"
    for row in found.rows:
        yield (
            f"{row.name:<{width}} {row.line:<8} {row.batch:>6} {rate_text(row.first):>9} {rate_text(row.second):>9}  "
            f"{ratio_text(row.ratio)} {row.verdict}"
        )
    for name in found.alone:
        yield f"{'left out':<12} {name}"
    yield f"{'':<{width}} images a second, medians of rounds; ratios with their 95 % interval"
