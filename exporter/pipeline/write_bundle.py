"""The files that finish a bundle: the golden inputs and answers, labels, calibration table, report and manifest."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.graph.counts import graph_facts
from exporter.graph.facts import tensor_specs
from exporter.models.loaded import Loaded
from exporter.pipeline.images import Images, Outputs, Proof
from exporter.pipeline.load_file import LoadedFile
from exporter.pipeline.plan import ExportPlan
from exporter.pipeline.proof_images import ProofImages
from exporter.verification.blocks.findings import Drift
from runtimes.block_precision import MixedPrecision, Sensitivity
from runtimes.bundle import Bundle
from runtimes.bundle_writing import files_of, write_manifest
from runtimes.kernels import KernelCount
from runtimes.manifest import SCHEMA_VERSION, Asked, CalibrationFacts, Manifest

if TYPE_CHECKING:
    import onnx

    from calibration.table import CalibrationTable

PACKAGES = ("resnet-export", "torch", "torchvision", "onnx", "onnxscript", "onnxsim", "numpy", "pillow")
GOLDEN_IMAGES, GOLDEN_BYTES = (8, 32), 4 << 20
"""The fewest and the most golden images; between the two, as many as fit into so many bytes before compression."""
FEWEST_GOLDEN_FEATURES = 2
"""The fewest of a model that gives features: the stages of a ResNet-50 at 224 pixels are 6 MB an image."""


@dataclass(frozen=True)
class Golden:
    """The inputs that travel with a bundle, and the reference's outputs for them."""

    images: Images
    outputs: Outputs


@dataclass(frozen=True)
class Findings:
    """What the manifest and the report say of a model that was lowered and proven.

    Attributes:
        table: the calibrated ranges; None where the precision needs none.
        drift: None for a network whose blocks cannot be told, and where there is no report.
        sensitivity: what INT8 costs in each block; None for another precision.
        mixed: which blocks are in float; None where that was not asked for.
        kernels: what a processor must run on integers; None for a target that promises nothing of that.
    """

    table: CalibrationTable | None
    images: ProofImages
    proof: Proof
    golden: Golden
    drift: Drift | None
    sensitivity: Sensitivity | None = None
    mixed: MixedPrecision | None = None
    kernels: KernelCount | None = None


def write_bundle(folder: Path, plan: ExportPlan, loaded: Loaded, model: onnx.ModelProto, found: Findings) -> Manifest:
    """Write all that is missing beside `model.onnx` and the reference, the manifest last; returns it.

    Without `plan.reference`, the reference is removed; without `plan.report`, there is no report.
    """
    if not plan.reference:
        (folder / plan.reference_file).unlink()
    _write_golden(folder, found.golden, gives_features=plan.features is not None)
    if loaded.labels is not None:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in loaded.labels), encoding="utf-8")
    if found.table:
        (folder / "calibration.json").write_bytes(found.table.json())
    manifest = _manifest(plan, loaded, model, found)
    if plan.report:
        from exporter.pipeline.report_page import REPORT, page_from_proof  # here: it loads matplotlib

        bundle = Bundle(folder, replace(manifest, files=files_of(folder)))
        (folder / REPORT).write_bytes(page_from_proof(bundle, found.images, found.proof, found.drift))
    return write_manifest(folder, manifest)


def _write_golden(folder: Path, golden: Golden, *, gives_features: bool) -> None:
    arrays = {"inputs": golden.images.fed, **golden.outputs}
    fewest, most = GOLDEN_IMAGES
    fewest = FEWEST_GOLDEN_FEATURES if gives_features else fewest
    count = min(most, max(fewest, GOLDEN_BYTES // sum(values[0].nbytes for values in arrays.values())))
    arrays = {name: values[:count] for name, values in arrays.items()}
    if golden.images.labels is not None:
        arrays["labels"] = golden.images.labels[:count]
    # numpy's stub takes the names for its own options.
    np.savez_compressed(folder / "golden.npz", **arrays)  # type: ignore[arg-type]


def _manifest(plan: ExportPlan, loaded: Loaded, model: onnx.ModelProto, found: Findings) -> Manifest:
    import onnxruntime

    packages = (*PACKAGES, *(("timm",) if loaded.facts.source == "timm" else ()))
    table = found.table
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=plan.name,
        precision=plan.precision,
        target=plan.target,
        opset=plan.opset,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "onnxruntime": onnxruntime.__version__,
        },
        model=loaded.facts,
        inputs=tensor_specs(model.graph.input),
        outputs=tensor_specs(model.graph.output),
        batch=plan.batch,
        preprocess=loaded.preprocess,
        graph=graph_facts(model),
        parity=found.proof.report,
        accuracy=found.proof.accuracy,
        calibration=_calibration_facts(table) if table else None,
        sensitivity=found.sensitivity,
        mixed=found.mixed,
        kernels=found.kernels,
        source_file=loaded.taken.facts if isinstance(loaded, LoadedFile) else None,
        asked=Asked(
            plan.seed,
            plan.calibrator,
            plan.calibration_images,
            plan.proof_images,
            dict(plan.budget),
            plan.dla_friendly,
        ),
    )


def _calibration_facts(table: CalibrationTable) -> CalibrationFacts:
    return CalibrationFacts(table.calibrator, table.images, table.fingerprint, tuple(table.repairs))
