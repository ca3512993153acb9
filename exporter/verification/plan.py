"""The plan of a check: which bundle, on which backends, held to what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from exporter.verification.own_process import check_timeout
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.kinds import check_kinds
from runtimes.server_url import BACKEND, check_url
from runtimes.tuning import DEFAULT_TUNING, Tuning


@dataclass(frozen=True)
class CheckPlan:
    """One bundle to check.

    Attributes:
        backends: names of the backends to run.
        asked: they were named by the user, so that a missing one is an error; otherwise missing ones are skipped.
        budget: limits in place of the bundle's own, by name.
        data: images to check with, against the bundle's reference program (see `calibration.data.open_source`); None
            takes the golden inputs.
        images: how many of `data` at most.
        against: another bundle, whose answers on the same backend are the reference.
        timeout_s: seconds that a backend may take; None sets no limit.
        blocks: also measure the drift block by block (see `exporter.verification.blocks.drift`).
        bisect: also find the blocks whose return to FP32 mends a broken budget (see
            `exporter.verification.blocks.bisect`).
        trust_engines: sha256 of engines that may be loaded though this machine did not build them.
        tuning: how many threads each backend, and the reference, may use.
        url: of the bundle's model on a server, for the backend `triton`.

    Raises:
        PlanError: the parts contradict each other, or one is out of range.
    """

    bundle: Bundle
    backends: Sequence[str]
    asked: bool = False
    budget: Mapping[str, float] = field(default_factory=dict)
    data: str | None = None
    images: int = 512
    against: Bundle | None = None
    timeout_s: float | None = None
    blocks: bool = False
    bisect: bool = False
    trust_engines: tuple[str, ...] = ()
    tuning: Tuning = DEFAULT_TUNING
    url: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.images < 1:
            raise PlanError(f"expected at least 1 of the images, got {self.images}")
        check_timeout(self.timeout_s)
        check_url(self.backends, self.url)
        if self.url is not None and self.against is not None:
            raise PlanError(
                "--against runs the other bundle on the same backend, and a server's model is one bundle's; leave one "
                "of --url and --against out"
            )
        if self.bisect and self.against is not None:
            raise PlanError(
                "--bisect returns blocks to the bundle's own FP32 program, which --against has nothing to do with; "
                "leave one of them out"
            )
        if self.bisect and self.bundle.manifest.precision == "fp32":
            raise PlanError(f"--bisect returns blocks to FP32, and {self.bundle.folder} is all FP32; leave it out")

    def provider_of(self, backend: str) -> str | None:
        """Where a backend runs the bundle, as `open_runtime` takes it."""
        return self.url if backend == BACKEND else None
