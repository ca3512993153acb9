"""`manifest.json`: what a bundle holds, and what was proven of it. Versioned; every field is validated on reading."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from runtimes.block_precision import MixedPrecision, Sensitivity
from runtimes.errors import BundleError, PlanError
from runtimes.kernels import KernelCount
from runtimes.parity.budget import CLASS_LIMITS, Budget
from runtimes.parity.compare import ParityReport
from runtimes.parity.measures import Accuracy
from runtimes.preprocess import Preprocess
from runtimes.source_file import SourceFile
from runtimes.specs import BatchRange, TensorSpec

SCHEMA_VERSION = 1
MOST_CLASSES, LARGEST_SIZE = 1 << 20, (1 << 31) - 1
DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64")
"""numpy's names of the types that inputs and outputs may have."""
REFERENCES = ("reference.pt2", "reference.onnx")
"""The files with what a model was held against."""


@dataclass(frozen=True)
class WeightsFacts:
    """Where the weights came from. `sha256` is of the file; for random weights, of the tensors themselves."""

    kind: Literal["default", "random", "shipped", "file"]
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """What was exported: a model's name, the source that defines it, and its weights."""

    name: str
    source: str
    variant: str
    classes: int
    weights: WeightsFacts


@dataclass(frozen=True)
class GraphFacts:
    """What `model.onnx` is made of. `types` counts nodes by operator and input type.

    `macs` are multiply-accumulates for one image; None where they are not known, for example with free sizes.
    """

    nodes: int
    parameters: int
    macs: int | None
    operators: dict[str, int]
    types: dict[str, dict[str, int]]


@dataclass(frozen=True)
class CalibrationFacts:
    """How the ranges of an INT8 graph were measured; `calibration.json` has them.

    Attributes:
        fingerprint: of the images' content.
        repairs: what was done against the error of quantization, and what each brought, in words.
    """

    calibrator: str
    images: int
    fingerprint: str
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What an export was asked for that nothing else in the manifest shows.

    Attributes:
        seed: of random weights, and of which images are chosen.
        calibrator: by name; None tries all, and takes the best.
        calibration_images: how many; None takes the usual number, or all.
        proof_images: how many images it may be proven with at most; None is what the proof needs.
        budget: limits by name in place of the precision's own.
        dla_friendly: the graph is written for DLA: a plain average pool and a 1x1 convolution end it.
    """

    seed: int = 0
    calibrator: str | None = None
    calibration_images: int | None = None
    proof_images: int | None = None
    budget: dict[str, float] = field(default_factory=dict)
    dla_friendly: bool = False


@dataclass(frozen=True)
class FileFacts:
    """One file of the bundle: its content's sha256 (hex) and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """All that a reader needs to run the model and to trust it. Field names are fixed: other tools read them too.

    Attributes:
        kernels: what a processor must run on integers; None for a target that promises nothing of that.
        source_file: the ONNX file that the model was made from, and which is its reference; None for one of PyTorch.
    """

    schema_version: int
    name: str
    precision: str
    target: str
    opset: int
    versions: dict[str, str]
    model: ModelFacts
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    preprocess: Preprocess
    graph: GraphFacts
    parity: ParityReport
    accuracy: Accuracy | None = None
    calibration: CalibrationFacts | None = None
    sensitivity: Sensitivity | None = None
    mixed: MixedPrecision | None = None
    kernels: KernelCount | None = None
    source_file: SourceFile | None = None
    asked: Asked = field(default_factory=Asked)
    files: dict[str, FileFacts] = field(default_factory=dict)

    @property
    def origin_text(self) -> str:
        """Where the model's network is from, in words."""
        return "an ONNX file" if self.source_file else f"{self.model.source}, {self.model.variant}"

    @property
    def reference_text(self) -> str:
        """What the model was held against, in words."""
        return "FP32 PyTorch" if self.source_file is None else f"the file {self.model.name}"

    @property
    def budget(self) -> Budget:
        """The limits that the model is held to: those in `parity`, without those that random weights say nothing of and
        that nobody asked for."""
        budget = self.parity.budget
        if self.model.weights.kind != "random":
            return budget
        kept = budget.errors_alone()
        return replace(kept, **{name: getattr(budget, name) for name in CLASS_LIMITS if name in self.asked.budget})


def without_reference(manifest: Manifest) -> Manifest:
    """The manifest of the same bundle for a device, which has no use for what it was held against."""
    return replace(manifest, files={name: one for name, one in manifest.files.items() if name not in REFERENCES})


def json_from_manifest(manifest: Manifest) -> bytes:
    """Indented UTF-8 JSON with a final newline; equal manifests give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def manifest_from_json(data: bytes, *, where: str) -> Manifest:
    """Parse and validate; `where` is named in errors.

    Raises:
        BundleError: not JSON, another schema version, a missing field or one of the wrong type (named by its path).
    """
    try:
        version = msgspec.json.decode(data, type=dict[str, object]).get("schema_version")
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: expected a JSON object, got: {error}; export the bundle again") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: expected schema_version {SCHEMA_VERSION}, got {version!r}; export again with this version, or "
            "install the one that wrote it"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (ValueError, RecursionError, PlanError) as error:
        raise BundleError(f"{where}: {error}; export the bundle again") from error
    # it is shown on terminals, and in logs whose lines a CI runner may take for commands
    if not manifest.name.isprintable():
        raise BundleError(
            f"{where}: expected a name of printable characters, got {manifest.name!r}; do not use this bundle"
        )
    if not manifest.inputs or not manifest.outputs:
        raise BundleError(
            f"{where}: expected an input and an output, got {len(manifest.inputs)} and {len(manifest.outputs)}; export "
            "the bundle again"
        )
    if not 0 <= manifest.model.classes <= MOST_CLASSES:
        raise BundleError(
            f"{where}: expected from 0 to {MOST_CLASSES:,} classes, got {manifest.model.classes}; do not use this "
            "bundle"
        )
    confidence = manifest.parity.budget.confidence
    if confidence is not None and not 0.5 <= confidence < 1:
        raise BundleError(
            f"{where}: expected a confidence from 0.5 to below 1, got {confidence:g}; export the bundle again"
        )
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.dtype not in DTYPES or not spec.shape or not all(map(_is_size, spec.shape)):
            raise BundleError(
                f"{where}: expected numbers of a size or a free one, got '{spec.name}' as {spec.dtype} "
                f"{'x'.join(map(str, spec.shape)) or 'without a batch'}; do not use this bundle"
            )
    return manifest


def _is_size(size: int | str) -> bool:
    return bool(size) if isinstance(size, str) else 0 < size <= LARGEST_SIZE
