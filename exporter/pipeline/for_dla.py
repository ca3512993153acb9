"""Check that an export for a Jetson's DLA is possible at all. Imports nothing heavy."""

from __future__ import annotations

from exporter.lowering.qdq.targets import DEFAULT_TARGET
from runtimes.errors import PlanError
from runtimes.specs import BatchRange

OPTION = "--dla-friendly"
PRECISIONS = ("fp16", "int8")


def check_for_dla(precision: str, target: str, batch: BatchRange, features: str | None, *, any_size: bool) -> None:
    """Check the options of an export with `--dla-friendly`.

    Raises:
        PlanError: one of them does not go with it.
    """
    if precision not in PRECISIONS:
        raise PlanError(f"{OPTION} needs --fp16 or --int8: DLA computes in these two, and the export is {precision}")
    if target != DEFAULT_TARGET:
        raise PlanError(f"{OPTION} is about TensorRT, and --target {target} about processors; leave one of them out")
    if not batch.is_static:
        raise PlanError(f"{OPTION} needs one batch size, got {batch}: DLA takes no other; add --batch 1, or another N")
    if any_size:
        raise PlanError(
            f"{OPTION} needs pictures of one size, and --uint8-input full takes any: DLA has no free sizes; take "
            "--uint8-input alone"
        )
    if features is not None:
        raise PlanError(f"{OPTION} writes the classifier for DLA, and --features leaves it out; leave one of them out")
