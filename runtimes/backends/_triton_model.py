"""What a Triton server says of a model, and whether it is the model of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtimes.errors import BadInput, PlanError, ResnetExportError
from runtimes.manifest import Manifest
from runtimes.specs import LARGEST_BATCH, BatchRange, TensorSpec, declared_batch

NUMPY_FROM_TRITON = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
FREE = -1
ENSEMBLE = "ensemble"
"""What Triton names as the platform of a model that is made of others."""
BEHIND = "of an ensemble name the model behind it"
REMEDY = "serve the bundle's own with: resnet-deploy triton BUNDLE --output DIR"


@dataclass(frozen=True)
class ServedModel:
    """A model as its server describes it.

    Attributes:
        server: its name and version, as `triton 2.51.0`.
        backend: what the server runs the model with.
        versions: those that it has.
        max_batch: rows of a request at most; 0 where the model's own shapes say it.
        inputs, outputs: numpy's names of the types, or the server's where numpy has none; the first dimension of shapes
            is the batch.
    """

    server: str
    backend: str
    versions: tuple[str, ...]
    max_batch: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def text(self) -> str:
        """The server, the model's version and how it is run, in words."""
        versions = f"version {self.versions[0]}" if len(self.versions) == 1 else f"versions {', '.join(self.versions)}"
        batches = f", batches of at most {self.max_batch}" if self.max_batch else ""
        return f"{self.server}, {versions} on {self.backend}{batches}"

    def check_numbers(self, where: str) -> None:
        """Refuse a model that takes or gives something else than numbers, or of sizes that nothing has; `where` is its
        URL.

        Raises:
            BadInput: names the input or output.
        """
        for spec in (*self.inputs, *self.outputs):
            if spec.dtype not in NUMPY_FROM_TRITON.values():
                raise BadInput(f"{where}: expected numbers that numpy has, got '{spec.name}' of {spec.dtype}; {BEHIND}")
            if any(isinstance(size, int) and size < 1 for size in spec.shape):
                raise BadInput(
                    f"{where}: expected sizes above 0, or {FREE} for a free one, got '{spec.name}' as {_text(spec)}; "
                    "put the model's configuration right"
                )
        if self.max_batch < 0:
            raise BadInput(
                f"{where}: expected a max_batch_size from 0 on, got {self.max_batch}; put its configuration right"
            )
        try:
            declared_batch(self.inputs)
        except PlanError as error:
            raise BadInput(f"{where}: {error}") from error

    @property
    def batch(self) -> BatchRange | None:
        """The rows that a request may have; None where the shapes say it."""
        most = min(self.max_batch, LARGEST_BATCH)
        return BatchRange(1, most, most) if most else None


def spec_from_server(name: str, datatype: str, shape: Sequence[int]) -> TensorSpec:
    """A tensor of the server's metadata; free dimensions are named by their places, the first one `batch`."""
    sizes = ((f"dim{place}" if place else "batch") if size == FREE else int(size) for place, size in enumerate(shape))
    return TensorSpec(name, NUMPY_FROM_TRITON.get(datatype, datatype), tuple(sizes))


def agreed_batch(served: ServedModel, manifest: Manifest, where: str) -> BatchRange:
    """Hold what the server says of a model against a bundle; returns the batch sizes that both take.

    Raises:
        ResnetExportError: other names, types, shapes or batch sizes; says which, with the remedy.
    """
    for kind, found, expected in (
        ("input", served.inputs, manifest.inputs),
        ("output", served.outputs, manifest.outputs),
    ):
        names, wanted = sorted(one.name for one in found), sorted(one.name for one in expected)
        if names != wanted:
            raise _another(served, where, f"expected the {kind}s {', '.join(wanted)}, got {', '.join(names) or 'none'}")
        each = {one.name: one for one in found}
        for spec in expected:
            if _form(each[spec.name]) != _form(spec):
                got = _text(each[spec.name])
                raise _another(served, where, f"{kind} '{spec.name}': expected {_text(spec)}, got {got}")
    return _common_batch(served, manifest.batch, where)


def _common_batch(served: ServedModel, batch: BatchRange, where: str) -> BatchRange:
    fixed = served.inputs[0].shape[0]
    if served.max_batch > batch.max:
        raise ResnetExportError(
            f"{where}: expected a max_batch_size of at most {batch.max}, which the bundle is made and proven for, got "
            f"{served.max_batch}; set it to {batch.max}"
        )
    if not served.max_batch and isinstance(fixed, int):  # the whole shape is the model's own
        if not batch.min <= fixed <= batch.max:
            raise _another(served, where, f"expected batches of {batch}, got {fixed}")
        return BatchRange(fixed, fixed, fixed)
    most = served.max_batch or batch.max
    if most < batch.min:
        raise _another(served, where, f"expected batches from {batch.min} on, got at most {most}")
    return BatchRange(batch.min, min(batch.opt, most), most)


def _form(spec: TensorSpec) -> tuple[str, list[int | None]]:
    """Type and shape but for the batch; a free dimension is None, whatever its name."""
    return spec.dtype, [size if isinstance(size, int) else None for size in spec.shape[1:]]


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype} {'x'.join(map(str, spec.shape))}"


def _another(served: ServedModel, where: str, what: str) -> ResnetExportError:
    remedy = BEHIND if served.backend == ENSEMBLE else REMEDY
    return ResnetExportError(f"{where} is another model than the bundle's: {what}; {remedy}")
