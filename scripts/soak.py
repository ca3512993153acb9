"""Run each backend for long, and see whether memory, file handles or threads grow, and whether answers stay the same.

    python scripts/soak.py MODEL... [--backend NAME [--provider NAME]] [--runs 10000] [--opens 500] [--threads 8] [--minutes M]

MODEL is a bundle, or the URL of a model on a Triton server. Each backend has a process of its own, in which four kinds of work follow
each other:

- runs: one runtime, batches of every size in turn, also ones that are split or padded;
- streams: one runtime, a short stream of pictures at a time;
- opens: open, run, close;
- threads: each with a sibling of one runtime, or a runtime of its own where there are none; all that they open they close.

What the process holds is sampled as the work goes on, and what is taken of the GPU's memory where the provider is one of CUDA. The first
fifth is warm-up. The rest is cut into blocks, and a straight line is fitted to the blocks' medians, which are independent enough of each
other for its 95 % interval to mean something (samples are not). Exit 1 where an answer differs from the first, or where all of a slope's
interval is above its bound: so much more with each piece of work is a leak.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from runtimes import Runtime, available_backends, open_runtime
from runtimes.errors import BackendUnavailable, ResnetExportError
from runtimes.preprocess import takes_any_size
from runtimes.server_url import BACKEND as TRITON
from runtimes.server_url import is_url
from runtimes.tuning import Tuning

Outputs = dict[str, NDArray[Any]]
SAMPLES, WARM_UP, BLOCKS = 240, 0.2, 12
STUDENT = 2.228
"""The 97.5 % point of Student's t for BLOCKS - 2 degrees of freedom."""
KIB_BOUNDS = {"runs": 0.25, "streams": 2.0, "opens": 16.0, "threads": 0.25}
"""What one piece of work may add. 0.25 KiB are 2.5 MiB in 10,000 runs; an open model that is lost is some hundred KiB."""
COUNT_BOUND = 0.001
"""How many handles, and threads, it may add."""
PICTURES = 3
TOLERANCE = {"cpu": 0.0}
"""How far an answer may be from the first one, of the largest; processors compute the same each time."""
OTHER_TOLERANCE = 1e-3


class Sample(NamedTuple):
    """What the process holds after so many pieces of work."""

    done: int
    kib: float
    handles: float
    threads: float
    gpu_kib: float = 0.0


class Slope(NamedTuple):
    """How much each piece of work adds, with 95 % limits."""

    each: float
    low: float
    high: float


NOT_SAMPLED = Slope(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Row:
    """What one kind of work did on one backend. `wrong` counts answers that differ from the first."""

    backend: str
    work: str
    done: int
    wrong: int
    mib: float
    kib: Slope
    handles: Slope
    threads: Slope
    gpu_kib: Slope = NOT_SAMPLED

    @property
    def leaks(self) -> list[str]:
        """The measures whose interval is above its bound."""
        found = {
            "KiB": (self.kib, KIB_BOUNDS[self.work]),
            "the GPU's KiB": (self.gpu_kib, KIB_BOUNDS[self.work]),
            "handles": (self.handles, COUNT_BOUND),
            "threads": (self.threads, COUNT_BOUND),
        }
        return [name for name, (slope, bound) in found.items() if slope.low > bound]


@dataclass(frozen=True)
class Amount:
    """How much work: pieces of each kind, or `seconds` for each kind where that is given."""

    runs: int = 10_000
    opens: int = 500
    threads: int = 8
    seconds: float | None = None


def sample(done: int, *, on_gpu: bool = False) -> Sample:
    """What this process holds now (Linux); of the GPU, what all processes hold."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        done,
        pages * os.sysconf("SC_PAGE_SIZE") / 1024,
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
        gpu_kib() if on_gpu else 0.0,
    )


def gpu_kib() -> float:
    from runtimes.nvidia.cuda_call import call

    free, total = call("cudaMemGetInfo")
    return float(total - free) / 1024


def slope_of(points: Sequence[tuple[float, float]]) -> Slope:
    """The slope of a line through the medians of blocks of (work done, amount), after the warm-up, with its 95 % interval."""
    kept = points[int(len(points) * WARM_UP) :]
    edges = [len(kept) * place // BLOCKS for place in range(BLOCKS + 1)]
    blocks = [kept[start:stop] for start, stop in itertools.pairwise(edges)]
    x = np.array([statistics.fmean(one for one, _ in block) for block in blocks])
    y = np.array([statistics.median(one for _, one in block) for block in blocks])
    spread = float(((x - x.mean()) ** 2).sum())
    each = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    residual = y - y.mean() - each * (x - x.mean())
    half = STUDENT * math.sqrt(float((residual**2).sum()) / (BLOCKS - 2) / spread)
    return Slope(each, each - half, each + half)


class Feeds:
    """Inputs of every batch size that matters to a runtime, and what was answered to each at first."""

    def __init__(self, runtime: Runtime) -> None:
        (self.spec,) = runtime.inputs
        most = min(runtime.batch.max, 8) if runtime.batch is not None else 8
        self.sizes = [
            *range(1, most + 1),
            *([2 * most + 1] if runtime.batch is not None and runtime.batch.max <= 8 else []),
        ]
        self.first: dict[int, Outputs] = {}
        self.of = {size: self._feed(size) for size in self.sizes}
        for size in self.sizes:
            self.first[size] = runtime.run(self.of[size])
        self.tolerance = TOLERANCE.get(runtime.provider, OTHER_TOLERANCE)

    def _feed(self, size: int) -> Outputs:
        generator = np.random.default_rng(size)
        side = 64 if takes_any_size(self.spec) else 1
        shape = (size, *(one if isinstance(one, int) else side for one in self.spec.shape[1:]))
        values = generator.integers(0, 256, shape) if self.spec.dtype == "uint8" else generator.standard_normal(shape)
        return {self.spec.name: values.astype(self.spec.dtype)}

    def wrong(self, runtime: Runtime, turn: int) -> int:
        """Run one batch; 1 where the answer is another than the first."""
        size = self.sizes[turn % len(self.sizes)]
        found, first = runtime.run(self.of[size]), self.first[size]
        return int(
            not all(
                np.allclose(found[name], first[name], rtol=0, atol=self.tolerance * np.abs(first[name]).max())
                for name in first
            )
        )


def paced(count: int, seconds: float | None, samples: list[Sample], runtime: Runtime) -> Iterator[int]:
    """Numbers of pieces of work, `count` of them or as many as there is time for; samples what the process holds meanwhile."""
    on_gpu = runtime.provider.startswith("cuda")
    begun, done = time.monotonic(), 0
    due = 0.0
    while True:
        share = done / count if seconds is None else (time.monotonic() - begun) / seconds
        if share >= due:
            samples.append(sample(done, on_gpu=on_gpu))
            due += 1 / SAMPLES
        if share >= 1 and len(samples) > 2 * BLOCKS:
            return
        yield done
        done += 1


def row(backend: str, work: str, samples: Sequence[Sample], wrong: int) -> Row:
    slopes = [slope_of([(one.done, one[place]) for one in samples]) for place in (1, 2, 3, 4)]
    return Row(backend, work, samples[-1].done, wrong, samples[-1].kib / 1024, *slopes)


def runs(backend: str, open_: Callable[[], Runtime], amount: Amount) -> Row:
    samples: list[Sample] = []
    with open_() as runtime:
        feeds = Feeds(runtime)
        wrong = sum(feeds.wrong(runtime, turn) for turn in paced(amount.runs, amount.seconds, samples, runtime))
    return row(backend, "runs", samples, wrong)


def streams(backend: str, open_: Callable[[], Runtime], amount: Amount) -> Row | None:
    """None where the runtime does not know how pictures are prepared for it."""
    samples: list[Sample] = []
    with open_() as runtime:
        if runtime.preprocess is None:
            return None
        shape = (64, 80) if len(runtime.preprocess.mean) == 1 else (64, 80, len(runtime.preprocess.mean))
        pictures = [np.random.default_rng(place).integers(0, 256, shape, np.uint8) for place in range(PICTURES)]

        def answers() -> bytes:
            return b"".join(
                value.tobytes() for outputs in runtime.stream(pictures, batch=2) for value in outputs.values()
            )

        first = answers()
        wrong = sum(
            answers() != first and runtime.provider in TOLERANCE
            for _ in paced(amount.runs // 10, amount.seconds, samples, runtime)
        )
    return row(backend, "streams", samples, wrong)


def opens(backend: str, open_: Callable[[], Runtime], amount: Amount) -> Row:
    samples: list[Sample] = []
    with open_() as runtime:
        feeds = Feeds(runtime)

    def once(turn: int) -> int:
        with open_() as mine:
            return feeds.wrong(mine, turn)

    wrong = sum(once(turn) for turn in paced(amount.opens, amount.seconds, samples, runtime))
    return row(backend, "opens", samples, wrong)


def threads(backend: str, open_: Callable[[], Runtime], amount: Amount) -> Row:
    """Each piece of work is a run; threads open a sibling for some runs at a time."""
    at_once = 16
    samples: list[Sample] = []
    with open_() as runtime, ThreadPoolExecutor(amount.threads) as pool:
        feeds = Feeds(runtime)

        def own() -> Runtime:
            try:
                return runtime.sibling()
            except BackendUnavailable:
                return open_()

        def some(turn: int) -> int:
            with own() as mine:
                return sum(feeds.wrong(mine, turn + place) for place in range(at_once))

        wrong, pieces = 0, amount.threads * at_once
        for turn in paced(max(1, amount.runs // pieces), amount.seconds, samples, runtime):
            wrong += sum(pool.map(some, range(turn * amount.threads, (turn + 1) * amount.threads)))
    samples = [one._replace(done=one.done * pieces) for one in samples]
    return row(backend, "threads", samples, wrong)


def soak(backend: str, open_: Callable[[], Runtime], amount: Amount) -> list[Row]:
    """All kinds of work on one backend, in this process."""
    found = [work(backend, open_, amount) for work in (runs, streams, opens, threads)]
    return [one for one in found if one is not None]


def _soak_model(model: str, backend: str, provider: str | None, amount: Amount) -> list[Row]:
    name = backend if provider is None else f"{backend} ({provider})"
    return soak(name, partial(open_runtime, model, backend, provider=provider, tuning=Tuning(1)), amount)


def table(rows: Sequence[Row]) -> str:
    """The rows as one table; what each piece of work adds stands with its 95 % limits."""
    measures = {
        "bytes each": ("kib", 1024),
        "handles in 1,000": ("handles", 1000),
        "threads in 1,000": ("threads", 1000),
        **({"the GPU's bytes each": ("gpu_kib", 1024)} if any(one.gpu_kib != NOT_SAMPLED for one in rows) else {}),
    }
    lines: list[tuple[str, ...]] = [("backend", "work", "done", "MiB", *measures, "wrong", "")]
    for one in rows:
        slopes = [_slope(getattr(one, name), factor) for name, factor in measures.values()]
        said = f"leaks {', '.join(one.leaks)}" if one.leaks else "wrong answers" if one.wrong else "flat"
        lines.append((one.backend, one.work, f"{one.done:,}", f"{one.mib:.0f}", *slopes, str(one.wrong), said))
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _slope(slope: Slope, factor: float) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(one * factor + 0.0 for one in slope))


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--backend", "backends", multiple=True, help="Several may be named; all that are here without it.")
@click.option("--provider", help="The provider of one backend, such as cuda.")
@click.option("--runs", "run_count", default=10_000, show_default=True, help="Runs of one runtime, and of all threads.")
@click.option("--opens", "open_count", default=500, show_default=True, help="How often to open, run and close.")
@click.option("--threads", "thread_count", default=8, show_default=True)
@click.option("--minutes", type=float, help="How long each backend works, in place of the counts.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def main(  # one parameter for each option
    models: Sequence[str],
    backends: Sequence[str],
    provider: str | None,
    run_count: int,
    open_count: int,
    thread_count: int,
    minutes: float | None,
    as_json: bool,
) -> None:
    """See whether MODELs can be run for long."""
    if provider is not None and len(backends) != 1:
        raise click.UsageError("--provider is of one backend; name it with --backend")
    amount = Amount(run_count, open_count, thread_count, None if minutes is None else minutes * 60 / 4)
    rows: list[Row] = []
    for model in models:
        for backend in (TRITON,) if is_url(model) else backends or available_backends():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                try:
                    rows += process.submit(_soak_model, model, backend, provider, amount).result()
                except ResnetExportError as error:
                    print(f"{backend}: {error}", file=sys.stderr)
                    if backends:
                        sys.exit(error.exit_code)
    print(json.dumps([{**asdict(one), "leaks": one.leaks} for one in rows]) if as_json else table(rows))
    sys.exit(any(one.leaks or one.wrong for one in rows) or not rows)


if __name__ == "__main__":
    main()
