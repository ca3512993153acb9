"""Every registered model in every precision: exported, proven, built by TensorRT-RTX. To be listed is to be tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import version_converter

from calibration.collect import collect
from calibration.data import built_in, inputs_from_source
from calibration.observers.mse import mse
from exporter import ExportPlan, export
from exporter.engines.builders import BuildOptions, Job, tensorrt_rtx
from exporter.engines.layers import check_precision, layer_facts
from exporter.graph.counts import graph_facts
from exporter.graph.facts import tensor_specs
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.bias_correction import classifier_correction, subtract_from_biases
from exporter.lowering.precisions import int8
from exporter.lowering.registry import load_precision, precision_names
from exporter.lowering.repairs import Bench
from exporter.models.loading import load_model
from exporter.models.registry import MODELS, PAD, V1
from exporter.models.spec import ModelSpec
from exporter.pipeline.images import Candidate, Graphs, Images
from exporter.pipeline.plan import DEFAULT_BATCH
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from runtimes import BatchRange

QUICK = ("resnet20", "resnet20 pad", "resnet18_cifar", "resnet18", "resnet50", "resnet50 v1", "resnext50_32x4d")
"""One form of each kind of stem, block and shortcut, built on every run; all others are deeper or wider, and slow."""
FORMS = [
    f"{name} {variant}" if place else name
    for name, spec in MODELS.items()
    for place, variant in enumerate(spec.variants)
]
PARAMETERS = [pytest.param(form, marks=() if form in QUICK else pytest.mark.slow) for form in FORMS]
BATCH = BatchRange(1, 2, 4)
TARGETS = ("sm86", "sm120")
CONVOLUTIONS = ("correlation", "runtime_fusion")


@dataclass(frozen=True)
class Traced:
    """A model's simplified FP32 graph, and what it is proven with."""

    spec: ModelSpec
    graph: onnx.ModelProto
    images: Images
    calibration: list[Any]
    thresholds: dict[str, float]
    folder: Path

    def in_opset(self, opset: int) -> onnx.ModelProto:
        """The graph as traced for a precision that needs another opset: node by node the same, so not traced again."""
        return (
            self.graph
            if self.graph.opset_import[0].version == opset
            else version_converter.convert_version(self.graph, opset)
        )


def planned(form: str, folder: Path, precision: str = "fp32", batch: BatchRange = BATCH) -> ExportPlan:
    """The plan for a model and perhaps its variant, with random weights."""
    name, _, variant = form.partition(" ")
    return ExportPlan(
        name, folder / "bundle", precision=precision, weights="random", batch=batch, variant=variant or None
    )


@pytest.fixture(scope="module", params=PARAMETERS)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("model")
    plan = planned(request.param, folder)
    loaded = load_model(plan.model_request)
    images = Images(inputs_from_source(built_in("test"), loaded.preprocess, BATCH.max), None)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    graph = simplify(onnx_from_program(program, opset=plan.opset, batch=plan.batch), images.inputs[:2])
    save_program(program, folder / "reference.pt2")
    batches = np.split(inputs_from_source(built_in("train"), loaded.preprocess, 8), 2)
    thresholds = {
        name: mse(histogram) for name, histogram in collect(graph, int8.observed_tensors(graph), batches).items()
    }
    yield Traced(plan.spec, graph, images, batches, thresholds, folder)
    for path in folder.iterdir():
        path.unlink()  # all of them together are gigabytes


@pytest.mark.parametrize("name", precision_names())
def test_a_lowered_model_is_in_budget_and_tensorrt_builds_it_in_the_precision_asked_for(
    traced: Traced, name: str
) -> None:
    precision: Any = load_precision(name)
    opset = planned(traced.spec.name, traced.folder, name).opset
    graph = traced.in_opset(opset)
    lowered = precision.lower(graph, traced.thresholds)
    if name == "int8":
        bench = Bench.of(graph, "tensorrt", np.concatenate(traced.calibration))
        correction = classifier_correction(graph, bench.error(graph, traced.thresholds))
        assert correction
        lowered = int8.lower(subtract_from_biases(graph, correction), traced.thresholds)
    onnx.checker.check_model(lowered, full_check=True)
    onnx.save(lowered, traced.folder / "model.onnx")
    candidate = Candidate(
        traced.folder, Graphs(graph, precision.simulation(lowered)), BATCH, precision.runs_on(lowered)
    )
    images = ProofImages(traced.images, len(traced.images.fed))
    proof = prove(candidate, images, budget=precision.BUDGET.errors_alone())
    assert proof.report.ok
    assert lowered.opset_import[0].version == opset
    job = Job(
        (traced.folder / "model.onnx").read_bytes(),
        name,
        tensor_specs(lowered.graph.input),
        BatchRange(1, 8, 32),
        BuildOptions(targets=TARGETS),
    )
    built, layers = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
    facts = layer_facts(layers, built.convolutions, name)
    check_precision(facts, name)
    assert facts.convolutions == {name: graph_facts(lowered).operators["Conv"]}
    if name == "int8":  # every convolution is a kernel of its own
        assert facts.kernels["correlation"] == facts.convolutions
    else:  # shortcuts that are added in the same kernel, too
        assert {read for layer in layers if layer.kind in CONVOLUTIONS for read in layer.reads} == {name}


def test_the_listed_facts_are_the_graphs(traced: Traced) -> None:
    facts, spec = graph_facts(traced.graph), traced.spec
    assert facts.macs is not None
    assert spec.parameters is not None
    assert spec.macs is not None
    if spec.variant == PAD:  # its shortcuts compute nothing
        assert (facts.parameters, facts.macs) < (spec.parameters, spec.macs)
    elif spec.variant == V1:  # its 3x3 convolutions see a quarter of the pixels
        assert facts.parameters == spec.parameters
        assert facts.macs < spec.macs
    else:
        assert (facts.parameters, facts.macs) == (spec.parameters, spec.macs)


def test_names_are_those_of_the_modules(traced: Traced) -> None:
    names = [node.name for node in traced.graph.graph.node]
    padded = traced.spec.variant == PAD
    assert len(set(names)) == len(names)
    assert {"conv1", "relu", "layer1.0.conv1", "layer3.1.add", "avgpool", "flatten", "fc"} <= set(names)
    assert ("layer2.0.downsample.0" in names) != padded
    weights = {tensor.name for tensor in traced.graph.graph.initializer}
    assert {"conv1.weight", "conv1.bias", "layer1.0.conv2.weight", "fc.weight", "fc.bias"} <= weights
    known = {"Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert {node.op_type for node in traced.graph.graph.node} <= known | ({"Slice", "Pad"} if padded else set())


@pytest.mark.slow
@pytest.mark.parametrize("precision", precision_names())
@pytest.mark.parametrize("form", FORMS)
def test_the_whole_export_is_in_budget(form: str, precision: str, tmp_path: Path) -> None:
    result = export(planned(form, tmp_path, precision, DEFAULT_BATCH))
    assert result.manifest.parity.ok
