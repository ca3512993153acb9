"""What a benchmark measures, checked before anything is started."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.verification.own_process import check_timeout
from runtimes.benchmark.results import LINES, Line
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.server_url import BACKEND, check_url
from runtimes.tuning import DEFAULT_TUNING, Tuning

ROUNDS, SECONDS = 10, 0.25
MOST_REQUESTS = 1024
LATENCY_CALLS = 10
"""Calls of the smallest batch in each round, so that ten rounds have the hundred that a 99th percentile needs."""


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Attributes:
        bundles: each once; they are measured in the same rounds.
        backends: by name; None measures all that are here, and names the others with the reason.
        provider: None measures each backend on all of its providers that are here.
        batches: sizes for throughput; None takes each bundle's smallest, the one that it is tuned for, and its largest.
        rounds, seconds: how many rounds, and how long each measurement takes in each, at least.
        warm_up: calls before the first round; None waits until their time has settled.
        data: where the picture files come from; None makes some.
        lines: which of the lines to measure.
        variants: measure backends' variants, too: PyTorch's BF16 and torch.compile.
        timeout_s: seconds that a backend may take to open, to warm up or for one measurement; None sets no limit.
        url: of the one bundle's model on a server, for the backend `triton`.
        concurrency: how many requests that server gets at a time, each level measured on its own.

    Raises:
        PlanError: nothing to measure, the same bundle twice, or a number out of range.
    """

    bundles: tuple[Bundle, ...]
    backends: Sequence[str] | None = None
    provider: str | None = None
    tuning: Tuning = DEFAULT_TUNING
    batches: tuple[int, ...] | None = None
    rounds: int = ROUNDS
    seconds: float = SECONDS
    warm_up: int | None = None
    data: str | None = None
    lines: tuple[Line, ...] = tuple(LINES)
    variants: bool = True
    trust_engines: tuple[str, ...] = ()
    timeout_s: float | None = None
    url: str | None = None
    concurrency: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not self.bundles:
            raise PlanError("expected a bundle to measure, got none; name one or more")
        folders = [bundle.folder.resolve() for bundle in self.bundles]
        if len(set(folders)) < len(folders):
            raise PlanError("expected each bundle once, got one twice; leave the second out")
        if self.rounds < 1:
            raise PlanError(f"expected at least 1 round, got {self.rounds}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise PlanError(f"expected more than 0 seconds for a measurement, got {self.seconds:g}")
        if self.warm_up is not None and self.warm_up < 1:
            raise PlanError(f"expected at least 1 call to warm up, got {self.warm_up}")
        check_timeout(self.timeout_s)
        self._check_server()
        for size in self.batches or ():
            for bundle in self.bundles:
                batch = bundle.manifest.batch
                if not batch.min <= size <= batch.max:
                    raise PlanError(
                        f"expected --batch from {batch.min} to {batch.max}, the range of {bundle.folder}, got {size}"
                    )

    def _check_server(self) -> None:
        check_url(self.backends or (), self.url)
        if self.url is not None and len(self.bundles) > 1:
            raise PlanError(
                f"expected one bundle with --url, whose model it is, got {len(self.bundles)}; leave one out"
            )
        if self.url is None and self.concurrency != (1,):
            raise PlanError(f"--concurrency is of requests to a server; give --backend {BACKEND} and --url with it")
        if not self.concurrency or not all(1 <= one <= MOST_REQUESTS for one in self.concurrency):
            raise PlanError(f"expected --concurrency from 1 to {MOST_REQUESTS}, got {self.concurrency}; as 1,4,16")

    def provider_of(self, backend: str) -> str | None:
        """Where a backend runs, as `open_runtime` takes it; None measures each place that it has."""
        return self.url if backend == BACKEND else self.provider

    def sizes_of(self, bundle: Bundle) -> tuple[int, ...]:
        """The batch sizes to measure a bundle at, ascending."""
        batch = bundle.manifest.batch
        return tuple(sorted(set(self.batches or (batch.min, batch.opt, batch.max))))
