"""Write a bundle that takes uint8 pixels once more, to take them as float32, which is what DeepStream's nvinfer feeds.

The two compute the same bits, which is shown on the golden inputs; so what was proven of the one holds for the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtimes._plugins import needed_for
from runtimes.arrays import arrays_from_npz
from runtimes.bundle import LABELS, Bundle
from runtimes.bundle_writing import write_manifest
from runtimes.errors import ExportError
from runtimes.manifest import Manifest
from runtimes.parity.golden import golden_arrays
from runtimes.preprocess import LEVELS, Preprocess
from runtimes.specs import TensorSpec

if TYPE_CHECKING:
    import onnx

MODEL, GOLDEN = "model.onnx", "golden.npz"
SUFFIX = "float-pixels"


def float_manifest(manifest: Manifest) -> Manifest:
    """The manifest of the bundle with float pixels; that of its graph and its files are still the other's.

    Its preprocessing scales to 0..1 and back to levels.
    """
    (spec,), steps = manifest.inputs, manifest.preprocess
    batch, height, width, channels = spec.shape
    neutral: Preprocess = replace(
        steps, mean=(0.0,) * steps.channels, std=(1 / LEVELS,) * steps.channels, channels_order="rgb"
    )
    fed = TensorSpec(spec.name, "float32", (batch, channels, height, width))
    return replace(manifest, name=f"{manifest.name}-{SUFFIX}", inputs=(fed,), preprocess=neutral)


def write_float_bundle(bundle: Bundle, folder: Path) -> Manifest:
    """Write into a new folder the bundle that takes the same pixels as float32, without the reference and the report.

    Raises:
        BackendUnavailable: onnx or onnxruntime is missing.
        BundleError: the bundle cannot be read.
        ExportError: the two graphs do not compute the same.
        PlanError: its graph does not begin as one that takes pixels.
    """
    with needed_for("writing a graph for nvinfer", "pip install 'resnet-export[export]'"):
        import onnx

        from exporter.graph.counts import graph_facts
        from exporter.graph.pixel_input import with_float_pixels
    given = onnx.load(bundle.file(MODEL))
    changed = with_float_pixels(given)
    pixels, _ = golden_arrays(bundle)
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 1).astype(np.float32))
    _check_same_bits(bundle, changed, pixels[: bundle.manifest.batch.max], planes[: bundle.manifest.batch.max])
    folder.mkdir()
    onnx.save(changed, folder / MODEL)
    names = ["inputs", *(spec.name for spec in bundle.manifest.outputs)]
    arrays = {**arrays_from_npz(bundle.file(GOLDEN), names), "inputs": planes}
    # numpy's stub takes the names for its own options.
    np.savez_compressed(folder / GOLDEN, **arrays)  # type: ignore[arg-type]
    if (labels := bundle.labels) is not None:
        (folder / LABELS).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    bundle.check_same()
    return write_manifest(folder, replace(float_manifest(bundle.manifest), graph=graph_facts(changed)))


def _check_same_bits(bundle: Bundle, changed: onnx.ModelProto, pixels: np.ndarray, planes: np.ndarray) -> None:
    """Run both graphs on one batch of golden inputs.

    Raises:
        ExportError: one answers otherwise.
    """
    with needed_for("proving a graph for nvinfer", "pip install 'resnet-export[export]'"):
        from runtimes.backends.onnxruntime import OnnxRuntime
    with OnnxRuntime.open(bundle.file(MODEL)) as one, OnnxRuntime.from_bytes(changed.SerializeToString()) as other:
        before = one.run({one.inputs[0].name: pixels})
        after = other.run({other.inputs[0].name: planes})
    if any(not np.array_equal(values, after[name]) for name, values in before.items()):
        raise ExportError(
            "the graph for nvinfer does not compute what the bundle's does; report the model, or take --plugin "
            "nvinferserver"
        )
