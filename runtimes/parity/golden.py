"""Run a bundle's golden inputs on a backend and compare with the FP32 reference's outputs recorded in `golden.npz`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from runtimes.arrays import arrays_from_npz
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BundleError
from runtimes.parity.compare import ParityReport
from runtimes.parity.evidence import Evidence, compare_backend
from runtimes.preprocess import PIXELS, takes_any_size
from runtimes.specs import TensorSpec


def golden_arrays(bundle: Bundle) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """A bundle's golden inputs (images, ...), and the reference's outputs for them by name, float32 (images, ...).

    Raises:
        BundleError: `golden.npz` is missing, does not hold them, or is of another model.
    """
    found = golden_evidence(bundle)
    return found.inputs[:], dict(found.outputs)


def golden_evidence(bundle: Bundle) -> Evidence:
    """A bundle's golden inputs and outputs. They have no labels, and need not decide: so few images say nothing of
    accuracy, and little of agreement.

    Raises:
        BundleError: as above.
    """
    path = bundle.file("golden.npz")
    manifest = bundle.manifest
    names = [spec.name for spec in manifest.outputs]
    try:
        arrays = arrays_from_npz(path, ("inputs", *names))
    except ValueError as error:
        raise BundleError(
            f"{path} does not hold golden inputs and {' and '.join(names)} ({error}); export the bundle again"
        ) from error
    bundle.check_same()
    inputs, outputs = arrays["inputs"], {name: arrays[name] for name in names}
    scalars = [name for name, values in arrays.items() if not values.ndim]
    if scalars:
        raise BundleError(f"{path} holds a single number for {scalars[0]}; export the bundle again")
    for name, values in outputs.items():
        if len(inputs) != len(values) or len(inputs) == 0:
            raise BundleError(f"{path} holds {len(inputs)} inputs and {len(values)} {name}; export the bundle again")
    for spec, values in ((manifest.inputs[0], inputs), *((spec, outputs[spec.name]) for spec in manifest.outputs)):
        if not _fits(spec, values):
            got, expected = f"{values.dtype} {'x'.join(map(str, values.shape[1:]))}", f"{spec.dtype} {_text(spec)}"
            raise BundleError(
                f"{path} is of another model: its {spec.name} are {got}, expected {expected}; export the bundle again"
            )
    return Evidence(inputs, outputs)


def golden_report(bundle: Bundle, name: str, runtime: Runtime) -> ParityReport:
    """The parity report of the golden inputs on a backend, which the report calls `name`."""
    manifest = bundle.manifest
    return compare_backend(
        evidence_for(runtime, golden_evidence(bundle), bundle), name, runtime, manifest.budget, manifest.batch
    ).report


def inputs_for(runtime: Runtime, inputs: NDArray[Any], bundle: Bundle) -> NDArray[Any]:
    """A bundle's inputs as this backend takes them.

    Where a model has its preprocessing inside, it takes pixels, but its FP32 program takes preprocessed images.
    """
    if inputs.dtype == PIXELS and runtime.inputs[0].dtype != PIXELS:
        any_size = takes_any_size(bundle.manifest.inputs[0])
        return bundle.manifest.preprocess.inputs_from_pixels(inputs, any_size=any_size)
    return inputs


def evidence_for(runtime: Runtime, evidence: Evidence, bundle: Bundle) -> Evidence:
    """The evidence with inputs that this backend takes."""
    return replace(evidence, inputs=inputs_for(runtime, evidence.inputs[:], bundle))


def _fits(spec: TensorSpec, values: NDArray[Any]) -> bool:
    sizes = zip(spec.shape[1:], values.shape[1:], strict=False)
    fits = all(isinstance(expected, str) or expected == size for expected, size in sizes)
    return fits and values.dtype == spec.dtype and values.ndim == len(spec.shape)


def _text(spec: TensorSpec) -> str:
    return "x".join(map(str, spec.shape[1:]))
