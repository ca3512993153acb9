"""Load both sides of a bundle's lowering: its FP32 reference and graph, and its lowered graph.

A bundle does not hold the FP32 graph; it is made again from the program or the file, as the export made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram

from calibration.table import arrays_from_lists, table_from_file
from exporter.graph.build import GraphForm, clean_graph, in_its_form
from exporter.graph.dla_head import with_dla_head
from exporter.graph.intake.read import read_model_file
from exporter.graph.intake.take import TakenFile, open_file, take_file
from exporter.graph.simplify import SIMPLIFY_IMAGES
from exporter.lowering.bias_correction import with_classifier_correction
from exporter.lowering.equalize import factors_of_tensors, with_factors
from exporter.lowering.registry import load_precision
from exporter.lowering.requantize.mend import dequantized, with_pairs
from exporter.verification.blocks.reference import BlockReference, block_reference
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.backends.pytorch import PyTorchRuntime, program_from_file
from runtimes.bundle import Bundle
from runtimes.errors import BadInput, BundleError, SimplifyError
from runtimes.parity.compare import PROBABILITIES
from runtimes.preprocess import PIXELS, takes_any_size
from runtimes.progress import Steps
from runtimes.source_runtime import SourceFileRuntime


@dataclass(frozen=True)
class BothSides:
    """Both sides of a lowering.

    Attributes:
        reference: the FP32 program, `reference.pt2`, or the file, `reference.onnx`.
        graph: the simplified FP32 graph that was lowered, its channels equalized (see `exporter.lowering.equalize`),
            with the lowered graph's names of nodes and tensors.
        corrected: `graph` with the correction of the classifier's bias, which is for the mean error of all that is
            before it (see `exporter.lowering.bias_correction`); `graph` itself where there is none.
        lowered: `model.onnx`.
        simulation: the lowered graph rewritten to round on a CPU as a device does; None where a CPU does so anyway.
        runs: ONNX Runtime can run `model.onnx` itself on the CPU.
        factors: what the channels of tensors of `graph` are divided by, compared with the program's: tensor -> float32
            (channels,).
    """

    reference: BlockReference
    graph: onnx.ModelProto
    corrected: onnx.ModelProto
    lowered: onnx.ModelProto
    simulation: onnx.ModelProto | None
    runs: bool
    factors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def both_sides_of(bundle: Bundle, inputs: NDArray[Any]) -> BothSides:
    """Load both sides of a bundle.

    Args:
        inputs: (images, ...), as the bundle's graph takes them; some are run to check that simplifying changes nothing.

    Raises:
        BundleError: it has no reference, or one that is not what `model.onnx` was made from.
        BackendUnavailable: this onnxruntime would run `model.onnx` wrongly.
    """
    manifest = bundle.manifest
    precision = load_precision(manifest.precision)
    lowered = onnx.load(bundle.file(OnnxRuntime.FILE))
    if precision.runs_on(lowered):
        OnnxRuntime.check_bundle(manifest, None)
    origin = _load_origin(bundle)
    graph, reference = _fp32_graph(bundle, origin, inputs), block_reference(origin)
    for_dla = with_dla_head if manifest.asked.dla_friendly else _as_it_is
    _check_same_nodes(bundle, for_dla(graph), lowered)
    simulation, runs = precision.simulation(lowered), bool(precision.runs_on(lowered))
    if manifest.calibration is None:
        return BothSides(reference, for_dla(graph), for_dla(graph), lowered, simulation, runs)
    table = table_from_file(bundle.file("calibration.json"))
    factors = arrays_from_lists(table.factors)
    equalized = with_factors(graph, factors)
    corrected = with_classifier_correction(equalized, table)
    divided = factors_of_tensors(equalized, factors)
    return BothSides(reference, for_dla(equalized), for_dla(corrected), lowered, simulation, runs, divided)


def _as_it_is(graph: onnx.ModelProto) -> onnx.ModelProto:
    return graph


def reference_inputs(bundle: Bundle, inputs: NDArray[Any]) -> NDArray[Any]:
    """The program's inputs, float32, for inputs of the bundle's graph: a graph's own preprocessing is done to them."""
    if inputs.dtype != PIXELS:
        return inputs
    return bundle.manifest.preprocess.inputs_from_pixels(inputs, any_size=takes_any_size(bundle.manifest.inputs[0]))


def _fp32_graph(bundle: Bundle, origin: ExportedProgram | TakenFile, inputs: NDArray[Any]) -> onnx.ModelProto:
    """The FP32 graph of a bundle, made again as its export made it, but not written for DLA: corrections are about the
    classifier as it was."""
    manifest = bundle.manifest
    source = manifest.inputs[0]
    names = [spec.name for spec in manifest.outputs]
    form = GraphForm(
        manifest.opset, manifest.batch, names, takes_pixels=source.dtype == PIXELS, any_size=takes_any_size(source)
    )
    clean = clean_graph(origin, form, manifest.preprocess, reference_inputs(bundle, inputs[:SIMPLIFY_IMAGES]), Steps())
    if isinstance(origin, TakenFile) and origin.facts.keeps_scales:
        clean = dequantized(clean)
    return in_its_form(clean, form, manifest.preprocess)


def _load_origin(bundle: Bundle) -> ExportedProgram | TakenFile:
    """What the bundle's graph was made from."""
    manifest = bundle.manifest
    file = _reference_file(bundle)
    if file not in manifest.files:
        raise BundleError(
            f"{bundle.folder} has no {file} to follow the blocks of; export it again without --no-reference"
        )
    try:
        if manifest.source_file is not None:
            path = bundle.file(file)
            keep_softmax = any(spec.name == PROBABILITIES for spec in manifest.outputs)
            source = read_model_file(path)
            if manifest.source_file.keeps_scales:
                source = replace(source, model=with_pairs(source.model), is_quantized=True)
            opened = open_file(source)
            taken = take_file(opened, path, manifest.preprocess, opset=manifest.opset, keep_softmax=keep_softmax)
            return replace(taken, facts=replace(taken.facts, quantized=manifest.source_file.quantized))
        return program_from_file(bundle.file(PyTorchRuntime.FILE))[0]
    except (BadInput, SimplifyError) as error:
        raise BundleError(f"{error}; export the bundle again") from error


def _reference_file(bundle: Bundle) -> str:
    return PyTorchRuntime.FILE if bundle.manifest.source_file is None else SourceFileRuntime.FILE


def _check_same_nodes(bundle: Bundle, graph: onnx.ModelProto, lowered: onnx.ModelProto) -> None:
    found = {node.name: node.op_type for node in lowered.graph.node}
    for node in graph.graph.node:
        if found.get(node.name) != node.op_type:
            raise BundleError(
                f"{bundle.folder}: expected the nodes of {_reference_file(bundle)} in model.onnx, "
                f"got no {node.op_type} '{node.name}'; "
                "export the bundle again with the packages that are installed here"
            )
