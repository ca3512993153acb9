"""Gather what the report says of a bundle, on the machine that checked it; nothing here draws or writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.verification.blocks.findings import Drift, bisection_remark, drift_remark
from exporter.verification.plan import CheckPlan
from exporter.verification.report.records import DriftChart, DriftSeries, EngineFile, FlippedImage, GraphLayer, Section
from exporter.verification.report.reproduce import check_line, export_lines
from exporter.verification.verdicts import BundleCheck
from runtimes.bundle import Bundle
from runtimes.errors import BundleError
from runtimes.nvidia.engine_file import read_sidecar
from runtimes.nvidia.plan_files import CHECK_JSON, finished
from runtimes.parity.evidence import Evidence
from runtimes.parity.flips import Flip
from runtimes.preprocess import MODES, PIXELS, Preprocess

ONNX = "model.onnx"
SHOWN_FLIPS = 48


def section_from_check(
    check: BundleCheck,
    plan: CheckPlan,
    evidence: Evidence,
    read: Callable[[list[int]], Sequence[NDArray[Any]]] | None = None,
) -> Section:
    """The section of a checked bundle: the verdict, its flips, and what the bundle holds beside.

    Args:
        read: gives inputs by their numbers, where `evidence` does not hold them.
    """
    bundle = plan.bundle
    flips = _flips_by_backends(check)
    shown = [flip.image for flip, _ in flips[:SHOWN_FLIPS]]
    inputs = (
        [evidence.inputs[image : image + 1][0] for image in shown] if read is None else read(shown) if shown else []
    )
    return Section(
        check=check,
        manifest=bundle.manifest,
        labels=bundle.labels,
        flips=tuple(
            FlippedImage(
                flip,
                backends,
                _pixels(fed, bundle.manifest.preprocess),
                int(evidence.labels[flip.image]) if evidence.labels is not None else None,
            )
            for (flip, backends), fed in zip(flips, inputs, strict=False)
        ),
        flip_count=len(flips),
        layers=layers_of(bundle.folder / ONNX) if ONNX in bundle.manifest.files else (),
        engines=engines_of(bundle),
        reproduce=(*export_lines(bundle.manifest), check_line(plan)),
        drift=chart_from_drift(check.drift) if check.drift is not None else None,
        remedy=(f"What would mend it: {bisection_remark(check.bisection)}.",) if check.bisection is not None else (),
    )


def chart_from_drift(found: Drift) -> DriftChart:
    """The plots of a drift: a series for each of its stages."""
    series = (
        DriftSeries(
            stage.name,
            found.blocks,
            tuple(one.relative_error for one in stage.blocks),
            tuple(one.sqnr_db for one in stage.blocks),
        )
        for stage in found.stages
    )
    return DriftChart(tuple(series), drift_remark(found))


def layers_of(path: Path) -> tuple[GraphLayer, ...] | None:
    """The layers of an ONNX file; None where the onnx package is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    from exporter.verification.report.layers import layers_from_model

    return layers_from_model(onnx.load(path))


def engines_of(bundle: Bundle) -> tuple[EngineFile, ...]:
    """The engines in a bundle, from their sidecars; no engine is loaded."""
    found = []
    for path in finished(bundle.folder, "*.json"):
        if path.name.endswith(CHECK_JSON):
            continue
        try:
            facts = read_sidecar(path)
        except BundleError as error:
            found.append(EngineFile(path.stem, None, str(error)))
            continue
        same = ONNX in bundle.manifest.files and facts.onnx_sha256 == bundle.manifest.files[ONNX].sha256
        found.append(EngineFile(path.stem, facts, "" if same else f"it was built from another {ONNX}"))
    return tuple(found)


def _flips_by_backends(check: BundleCheck) -> list[tuple[Flip, tuple[str, ...]]]:
    """Each flip once, with the backends on which the image changed to that class; the largest margin first.

    Where several backends show it, the flip is that with the largest margin among them.
    """
    found: dict[tuple[int, int, int], list[tuple[Flip, str]]] = {}
    for one in check.backends:
        for flip in one.answer.flips if one.answer is not None else ():
            found.setdefault((flip.image, flip.reference, flip.got), []).append((flip, one.backend))
    seen = [
        (max((flip for flip, _ in same), key=lambda flip: flip.margin), tuple(backend for _, backend in same))
        for same in found.values()
    ]
    return sorted(seen, key=lambda pair: (-pair[0].margin, pair[0].image, pair[0].got))


def _pixels(fed: NDArray[Any], preprocess: Preprocess) -> NDArray[np.uint8]:
    """A model's input as an image, uint8 (height, width, 1 or 3); the first channel of other numbers of channels."""
    pixels: NDArray[np.uint8] = fed if fed.dtype == PIXELS else preprocess.pixels_from_inputs(fed)
    return pixels if pixels.shape[-1] in MODES else pixels[..., :1]
