"""What a benchmark found."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Literal

from runtimes.benchmark.machine import Machine
from runtimes.benchmark.statistics import Decision, Interval, median_interval
from runtimes.board.power import Power
from runtimes.manifest import ModelFacts
from runtimes.server_url import is_url
from runtimes.specs import BatchRange, TensorSpec
from runtimes.tuning import Hint

SCHEMA_VERSION = 1
PERCENTILES = 101
Line = Literal["device", "copies", "files"]
ALONE_OR_COPIED: tuple[Line, ...] = ("device", "copies")
THROUGHPUT = "throughput"
"""The variant of a backend that takes several batches at a time: `open_runtime` with Tuning(hint="throughput")."""
LINES: dict[Line, str] = {
    "device": "device alone: inputs and outputs stay where the model runs",
    "copies": "with copies: arrays in, arrays out (Runtime.run)",
    "files": "end to end: picture files decoded, preprocessed and run, overlapped (Runtime.stream)",
}


@dataclass(frozen=True)
class Timing:
    """One line at one batch size: images a second, in each round; `calls` are those of all rounds."""

    line: Line
    batch: int
    images_per_s: tuple[float, ...]
    calls: int

    def __post_init__(self) -> None:
        if not self.images_per_s or not all(math.isfinite(one) and one > 0 for one in self.images_per_s):
            raise ValueError(f"expected rates above 0, got {self.images_per_s}")

    @property
    def interval(self) -> Interval:
        """The median over the rounds, with its 95 % interval."""
        return median_interval(self.images_per_s)


@dataclass(frozen=True)
class Latency:
    """How long single calls took, with copies, at the smallest batch.

    Attributes:
        calls: how many were timed.
        percentiles_ms: from the shortest (0) to the longest (100), 101 values.
    """

    batch: int
    calls: int
    percentiles_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.percentiles_ms) != PERCENTILES:
            raise ValueError(f"expected {PERCENTILES} percentiles, got {len(self.percentiles_ms)}")

    @property
    def p99_ms(self) -> float | None:
        """None where fewer than a hundred calls were timed, of which it would be the longest."""
        return self.percentiles_ms[99] if self.calls >= 100 else None


@dataclass(frozen=True)
class Answers:
    """How far the answers to the bundle's golden inputs are from the FP32 reference's.

    Attributes:
        within_budget: are the errors within the bundle's budget? A contender that is not wins nothing.
    """

    sqnr_db: float
    max_relative_error: float
    images: int
    within_budget: bool


@dataclass(frozen=True)
class Contender:
    """A backend, on a provider, in a variant of its own where it has some, that runs one bundle.

    Attributes:
        bundle: the one of `Result.bundles` that it runs, by its folder.
        provider: of `triton`, the URL of the model.
        variant: as the backend names it; empty for what `open_runtime` opens.
        concurrency: how many requests a server has at any time.
    """

    bundle: str
    backend: str
    provider: str | None = None
    variant: str = ""
    concurrency: int = 1

    @property
    def name(self) -> str:
        """`onnxruntime cpu`, `pytorch compile cpu`, `triton`, `triton 4 at a time`: a result has one server."""
        several = f" {self.concurrency} at a time" if self.concurrency > 1 else ""
        return " ".join(filter(None, (self.backend, self.variant, None if self.is_served else self.provider))) + several

    @property
    def is_served(self) -> bool:
        """Does it run on a server, of whose processor and memory nothing is known here?"""
        return is_url(self.provider)

    @property
    def runs_reference(self) -> bool:
        """PyTorch runs the FP32 reference of a bundle, which says nothing of the bundle's own graph."""
        return self.backend == "pytorch"


@dataclass(frozen=True)
class Entry:
    """What was measured of a contender.

    Attributes:
        verdict: `ok`; or `not here`, `failed` or `crashed`, and why.
        details: what the backend says of how it runs, by name.
        import_s: importing its package; `load_s` opening the model. What compiles at its first call (torch.compile)
            does so after that, before the warm-up.
        warm_up_s, warm_up_calls: what was run before the first round; `steady` whether its speed had settled by then.
        memory_bytes: the peak of its process, device memory apart; None where the system does not tell.
        device_memory_bytes: of the GPU, the model's and its library's; None where there is no GPU, or it is not known.
        remarks: what else a reader has to know, each in one line.
    """

    contender: Contender
    verdict: str
    reason: str = ""
    details: dict[str, str] = field(default_factory=dict)
    import_s: float = 0.0
    load_s: float = 0.0
    warm_up_s: float = 0.0
    warm_up_calls: int = 0
    steady: bool = True
    memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    answers: Answers | None = None
    timings: tuple[Timing, ...] = ()
    latency: Latency | None = None
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.verdict == "ok"

    @property
    def can_win(self) -> bool:
        """Was it measured to the end, with answers within the budget?"""
        return self.ok and bool(self.timings) and (self.answers is None or self.answers.within_budget)

    def of_line(self, line: Line) -> tuple[Timing, ...]:
        """The timings of one line, by ascending batch size."""
        return tuple(sorted((one for one in self.timings if one.line == line), key=lambda one: one.batch))

    def fastest(self, line: Line = "copies") -> Timing:
        """The batch size with the most images a second."""
        return max(self.of_line(line), key=lambda one: one.interval.median)


@dataclass(frozen=True)
class Roof:
    """The most multiply-accumulates a second that a matrix product reaches here, in one type, and by which library.

    Attributes:
        size: of the square matrices.
    """

    dtype: str
    provider: str
    macs_per_s: float
    library: str
    size: int


@dataclass(frozen=True)
class BundleFacts:
    """Which bundle was measured, as far as results of different runs are compared.

    Attributes:
        sha256: of its manifest, which names every file by its own.
        macs: multiply-accumulates for one image; None where they are not known.
    """

    folder: str
    name: str
    sha256: str
    precision: str
    target: str
    model: ModelFacts
    inputs: tuple[TensorSpec, ...]
    batch: BatchRange
    macs: int | None


@dataclass(frozen=True)
class Winner:
    """Which contender of a bundle is the fastest by one measure.

    Attributes:
        measure: `latency` at the smallest batch, or `throughput` at the best one; both with copies.
    """

    bundle: str
    measure: Hint
    decision: Decision


@dataclass(frozen=True)
class Speedup:
    """The fastest way to run each of two bundles, and how many times as many images a second the first runs."""

    first: str
    second: str
    ratio: Interval


@dataclass(frozen=True)
class Settings:
    """How it was measured: `seconds` of each measurement in a round; `pictures` that were read from files, in words."""

    rounds: int
    seconds: float
    threads: int
    batches: tuple[int, ...] | None
    pictures: str


@dataclass(frozen=True)
class Result:
    """A benchmark: the machine, how it was measured, and what came of it.

    Attributes:
        date: the day, as 2026-11-27.
        roofs: the machine's own peaks, for comparison.
        variation: the median coefficient of variation of a rate over the rounds.
        drift: the speed in the second half of the rounds over that in the first half.
        power_after: the state of a Jetson after the rounds; `machine` has the one before.
        speedup: of two bundles; None where there is one, or more, or nothing ran one of them rightly.
    """

    schema_version: int
    date: str
    machine: Machine
    settings: Settings
    bundles: tuple[BundleFacts, ...]
    entries: tuple[Entry, ...]
    winners: tuple[Winner, ...]
    roofs: tuple[Roof, ...]
    variation: float
    drift: float
    speedup: Speedup | None = None
    power_after: Power | None = None

    def bundle_of(self, entry: Entry) -> BundleFacts:
        return next(one for one in self.bundles if one.folder == entry.contender.bundle)

    def entries_of(self, bundle: BundleFacts) -> tuple[Entry, ...]:
        return tuple(one for one in self.entries if one.contender.bundle == bundle.folder)

    def roof_of(self, entry: Entry) -> Roof | None:
        """The roof of the type that the convolutions are computed in: FP32 for PyTorch, which runs the reference, but
        in a variant of BF16, and for INT8 that is simulated. A processor has no arithmetic in FP16 worth the name:
        there it is FP32's. None for a server's model."""
        if entry.contender.is_served:
            return None
        bundle, provider = self.bundle_of(entry), "cpu" if entry.contender.provider == "cpu" else "cuda"
        dtype = "fp32" if entry.contender.runs_reference or _in_float(entry) else bundle.precision
        if "bf16" in entry.contender.variant:
            dtype = "bf16"
        if dtype == "fp16" and provider == "cpu":
            dtype = "fp32"
        found = [one for one in self.roofs if (one.dtype, one.provider) == (dtype, provider)]
        return max(found, key=lambda one: one.macs_per_s, default=None)

    def share_of_roof(self, entry: Entry) -> float | None:
        """The share of the roof that the bundle's multiply-accumulates reach at the best batch: of the device alone, or
        with copies where that was not measured."""
        roof, macs = self.roof_of(entry), self.bundle_of(entry).macs
        line = next((one for one in ALONE_OR_COPIED if entry.of_line(one)), None)
        if roof is None or macs is None or line is None:
            return None
        return macs * entry.fastest(line).interval.median / roof.macs_per_s


def _in_float(entry: Entry) -> bool:
    """Whether a backend says that it computes INT8 in floating point."""
    return any(said.startswith(("simulated", "f32")) for said in entry.details.values())


def today() -> str:
    """The day for `Result.date`; SOURCE_DATE_EPOCH fixes it."""
    import datetime

    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.datetime.now(datetime.timezone.utc)
    return (datetime.datetime.fromtimestamp(int(fixed), datetime.timezone.utc) if fixed.isdigit() else now).strftime(
        "%Y-%m-%d"
    )
