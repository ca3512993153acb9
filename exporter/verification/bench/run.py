"""The order of a benchmark: the machine, its roof, every contender opened and warmed up, the rounds, the decisions."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from exporter.verification.bench.pictures import picture_files
from exporter.verification.bench.plan import LATENCY_CALLS, BenchPlan
from exporter.verification.bench.remarks import remarks_on
from exporter.verification.bench.speedup import speedup_of
from exporter.verification.bench.station import Station, contenders_of
from exporter.verification.own_process import OwnProcess, Verdict, run_in_own_process
from runtimes._open import local_backend_names
from runtimes.benchmark.machine import this_machine
from runtimes.benchmark.measure import Job, Task
from runtimes.benchmark.results import (
    SCHEMA_VERSION,
    THROUGHPUT,
    BundleFacts,
    Contender,
    Entry,
    Result,
    Roof,
    Settings,
    Winner,
    today,
)
from runtimes.benchmark.roof import library_names, measure_roofs
from runtimes.benchmark.statistics import decide, drift, variation
from runtimes.board.power import power
from runtimes.bundle import MANIFEST, Bundle, sha256_of_file
from runtimes.progress import Progress, silent
from runtimes.server_url import BACKEND as TRITON


def bench(plan: BenchPlan, say: Progress = silent) -> Result:
    """Measure all contenders of a plan in interleaved rounds: one computes at a time, each in a process of its own.

    A contender that cannot be run, fails or crashes is an entry with its reason, and the others go on.

    Args:
        say: called as each step begins.

    Raises:
        BadInput: `plan.data` cannot be read.
    """
    machine = this_machine()  # before anything makes it busy
    with ExitStack() as owned:
        folder = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="resnet-bench-")))
        files = {
            one.folder: picture_files(one, plan.data, _made(folder / str(n))) for n, one in enumerate(plan.bundles)
        }
        found, missing = _contenders(plan, say)
        stations = []
        for bundle, contender in found:
            task = Task(bundle, contender, plan.tuning, files[bundle.folder].paths, plan.trust_engines)
            process = OwnProcess(plan.timeout_s)
            owned.callback(process.close)
            stations.append(Station(task, process))
        for station in stations:
            say(f"open {station.task.contender.name} for {station.task.bundle.manifest.name}")
            station.open(tuple(_jobs(plan, station.task)))
            station.warm_up(plan.warm_up)
        before = _roofs(stations, plan.tuning.cores, say)
        _rounds(plan, stations, say)
        power_after = power()
        after = _roofs(stations, plan.tuning.cores, say)
        entries = [remarks_on(station.finish(), station.task.bundle.manifest) for station in stations]
    bundles = tuple(map(bundle_facts, plan.bundles))
    series = [timing.images_per_s for one in entries for timing in one.timings]
    return Result(
        schema_version=SCHEMA_VERSION,
        date=today(),
        machine=machine,
        settings=Settings(
            plan.rounds,
            plan.seconds,
            plan.tuning.cores,
            plan.batches,
            "; ".join(dict.fromkeys(one.what for one in files.values())) if "files" in plan.lines else "",
        ),
        bundles=bundles,
        entries=(*entries, *missing),
        winners=tuple(winner for bundle in bundles for winner in winners_of(bundle, entries)),
        roofs=highest((*before, *after)),
        variation=statistics.median(map(variation, series)) if series else 0.0,
        drift=drift(series),
        speedup=speedup_of(bundles, entries),
        power_after=power_after,
    )


def bundle_facts(bundle: Bundle) -> BundleFacts:
    """What results say of a bundle."""
    manifest = bundle.manifest
    bundle.check_same()
    return BundleFacts(
        folder=str(bundle.folder),
        name=manifest.name,
        sha256=sha256_of_file(bundle.folder / MANIFEST),
        precision=manifest.precision,
        target=manifest.target,
        model=manifest.model,
        inputs=manifest.inputs,
        batch=manifest.batch,
        macs=manifest.graph.macs,
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _contenders(plan: BenchPlan, say: Progress) -> tuple[list[tuple[Bundle, Contender]], list[Entry]]:
    """Who is measured with which bundle, and an entry for each backend that is not here."""
    found, missing = [], []
    for backend in plan.backends if plan.backends is not None else local_backend_names():
        say(f"look for {backend}")
        where = plan.provider_of(backend)
        verdict, reason, here = run_in_own_process(_look, backend, where, plan.variants, timeout_s=plan.timeout_s)
        for bundle in plan.bundles:
            folder = str(bundle.folder)
            if verdict != "ok":
                missing.append(Entry(Contender(folder, backend, where), verdict, reason))
                continue
            levels = plan.concurrency if backend == TRITON else (1,)
            found += [(bundle, replace(one, bundle=folder, concurrency=level)) for one in here for level in levels]
    return found, missing


def _look(backend: str, provider: str | None, variants: bool) -> tuple[Verdict, Sequence[Contender]]:
    return "ok", contenders_of("", backend, provider, variants=variants)


def _jobs(plan: BenchPlan, task: Task) -> Iterator[Job]:
    """Every line at every batch size. The device alone runs one batch at a time, so it is not measured where a backend
    takes several; nor on a server, where no arrays can be left. Pictures are streamed one batch after another, so they
    are not where a server gets several requests at a time."""
    sizes, contender = plan.sizes_of(task.bundle), task.contender
    for line in plan.lines:
        if line == "device" and (contender.variant == THROUGHPUT or contender.is_served):
            continue
        if line == "files" and contender.concurrency > 1:
            continue
        for size in sizes:
            times = LATENCY_CALLS if line == "copies" and size == sizes[0] else 1
            yield Job(line, size, plan.seconds, times)


def _rounds(plan: BenchPlan, stations: Sequence[Station], say: Progress) -> None:
    """Each job of each round is done by all, one after the other."""
    jobs = tuple(dict.fromkeys(job for station in stations for job in station.jobs))
    for number in range(plan.rounds):
        say("measure", number, plan.rounds)
        for job in jobs:
            for place in order_of_round(number, len(stations)):
                stations[place].measure(job)


def order_of_round(number: int, count: int) -> list[int]:
    """Who comes after whom in a round: every second round goes backwards, and each pair of rounds begins with the next
    one, so that each is first, and behind each other one, equally often."""
    start = number // 2 % max(1, count)
    order = [*range(start, count), *range(start)]
    return order if number % 2 == 0 else order[::-1]


def _roofs(stations: Sequence[Station], threads: int, say: Progress) -> tuple[Roof, ...]:
    """Those of each kind of device that something runs on."""
    say("multiply matrices for the machine's own peak")
    places = {one.entry.contender.provider for one in stations if one.ok and not one.entry.contender.is_served}
    here = {"cpu" if place == "cpu" else "cuda" for place in places}
    return roofs_of(sorted(here), threads)


def roofs_of(providers: Sequence[str], threads: int) -> tuple[Roof, ...]:
    """What every library that is here reaches, each in a process of its own."""
    return tuple(
        roof
        for provider in providers
        for library in library_names()
        for roof in run_in_own_process(_multiply, library, provider, threads).value or ()
    )


def highest(roofs: Sequence[Roof]) -> tuple[Roof, ...]:
    """The best of each type and device. It is measured before and after the rounds, since a machine drifts."""
    best: dict[tuple[str, str], Roof] = {}
    for roof in sorted(roofs, key=lambda one: one.macs_per_s):
        best[roof.provider, roof.dtype] = roof
    return tuple(best[key] for key in sorted(best))


def _multiply(library: str, provider: str, threads: int) -> tuple[Verdict, tuple[Roof, ...]]:
    return "ok", measure_roofs(library, provider, threads)


def winners_of(bundle: BundleFacts, entries: Sequence[Entry]) -> Iterator[Winner]:
    """The fastest at the smallest batch that all have, and with the most images a second; with copies."""
    able = [one for one in entries if one.contender.bundle == bundle.folder and one.can_win and one.of_line("copies")]
    if len(able) < 2:
        return
    common = set.intersection(*({one.batch for one in entry.of_line("copies")} for entry in able))
    alone = [one for one in able if one.latency is not None and one.contender.concurrency == 1]
    if common and len(alone) > 1:
        at = min(common)
        rates = {
            one.contender.name: next(timing.images_per_s for timing in one.of_line("copies") if timing.batch == at)
            for one in alone
        }
        yield Winner(bundle.folder, "latency", decide(rates))
    yield Winner(bundle.folder, "throughput", decide({one.contender.name: one.fastest().images_per_s for one in able}))
