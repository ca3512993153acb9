"""`--features`: the pooled vector and the stages, from the network to the runtime, each output under its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from rounding import runs_here
from rtx_builds import build_in_precision
from torch import Tensor, nn

from calibration.data import built_in
from exporter import ExportPlan, export
from exporter.graph.facts import tensor_specs
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.precisions import fp32
from exporter.lowering.registry import precision_names
from exporter.models.backbone import Features, output_names, with_features
from exporter.models.loading import load_model
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.images import Candidate, Graphs, Images
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from runtimes import Bundle, open_runtime
from runtimes.bundle_writing import staging_folder, write_manifest
from runtimes.classify import classify
from runtimes.errors import BadInput, BundleError, PlanError, SimplifyError, UnknownName
from runtimes.parity.golden import golden_arrays, golden_report
from runtimes.specs import BatchRange

BATCH = BatchRange(1, 2, 4)
STAGES = {"layer1": (16, 28, 28), "layer2": (32, 14, 14), "layer3": (64, 7, 7)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {"pool": {"features": (64,)}, "stages": {**STAGES}}
INPUTS = np.random.default_rng(0).standard_normal((4, 1, 28, 28), dtype=np.float32)


@pytest.fixture
def bundles(shipped_bundle: Any) -> Callable[[str, str], Bundle]:
    """The shipped ResNet-20's features."""
    return lambda kind, precision: shipped_bundle(precision, kind)


@pytest.fixture(scope="module")
def network() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(1, 1, 10).eval()


@pytest.fixture(scope="module")
def graph(network: CifarResNet) -> onnx.ModelProto:
    return graph_of(Features(network, "stages"))


def graph_of(module: nn.Module) -> onnx.ModelProto:
    return onnx_from_program(
        program_from_module(module, (1, 28, 28)), opset=20, batch=BATCH, outputs=output_names(module)
    )


@pytest.mark.parametrize("precision", precision_names())
@pytest.mark.parametrize("kind", SHAPES)
def test_a_bundle_of_features_is_proven_output_by_output_and_runs(bundles: Any, kind: str, precision: str) -> None:
    bundle, names = bundles(kind, precision), list(SHAPES[kind])
    manifest = bundle.manifest
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.outputs] == [
        (name, "float32", ("batch", *shape)) for name, shape in SHAPES[kind].items()
    ]
    assert (manifest.model.classes, bundle.labels, manifest.accuracy, manifest.name) == (
        0,
        None,
        None,
        f"resnet20-{kind}-{precision}",
    )
    assert manifest.parity.ok
    for measured in manifest.parity.backends.values():
        assert list(measured.outputs) == names
        assert (measured.top1_agreement, measured.top5_overlap, measured.flips) == (None, None, None)
        assert measured.max_relative_error == max(one.max_relative_error for one in measured.outputs.values())
        assert measured.sqnr_db == min(one.sqnr_db for one in measured.outputs.values()) > 20
        assert measured.worst_cosine == min(one.worst_cosine for one in measured.outputs.values()) > 0.99
    inputs, golden = golden_arrays(bundle)
    assert list(golden) == names
    assert all(values.dtype == np.float32 and values.shape[1:] == SHAPES[kind][name] for name, values in golden.items())
    if not runs_here(precision):
        return
    with open_runtime(bundle) as runtime:
        found = runtime.run({"input": inputs[:3]})
        report = golden_report(bundle, "onnxruntime", runtime)
    assert {name: values.shape for name, values in found.items()} == {
        name: (3, *shape) for name, shape in SHAPES[kind].items()
    }
    assert report.ok
    assert list(report.backends["onnxruntime"].outputs) == names


@pytest.mark.parametrize("precision", precision_names())
@pytest.mark.parametrize("kind", SHAPES)
def test_tensorrt_builds_every_output_in_the_precision_asked_for(bundles: Any, kind: str, precision: str) -> None:
    assert build_in_precision(bundles(kind, precision), BATCH).facts.convolutions == {precision: 21}


@pytest.mark.parametrize("kind", SHAPES)
def test_pytorch_calls_the_outputs_what_the_manifest_does_and_keeps_to_the_golden_ones(bundles: Any, kind: str) -> None:
    bundle = bundles(kind, "fp32")
    with open_runtime(bundle, "pytorch") as runtime:
        assert (
            [spec.name for spec in runtime.outputs]
            == [spec.name for spec in bundle.manifest.outputs]
            == list(SHAPES[kind])
        )
        assert golden_report(bundle, "pytorch", runtime)


def test_the_golden_outputs_are_those_of_the_network_itself(bundles: Any) -> None:
    module = load_model(ExportPlan("resnet20", Path("unused")).model_request).module
    inputs, pooled = golden_arrays(bundles("pool", "fp32"))
    head = module.get_submodule("fc")
    with torch.inference_mode():
        logits = module(torch.from_numpy(inputs))
        ours = head(torch.from_numpy(pooled["features"]))
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    _, stages = golden_arrays(bundles("stages", "fp32"))
    np.testing.assert_allclose(
        stages["layer3"].mean((2, 3)), pooled["features"][: len(stages["layer3"])], rtol=1e-4, atol=1e-5
    )


def test_a_resnet50_gives_strides_of_4_to_32_with_readable_names_and_a_free_batch() -> None:
    plan = ExportPlan(
        "resnet50",
        Path("unused"),
        weights="random",
        features="stages",
        image_size=(352, 352),
        batch=BatchRange(1, 1, 2),
    )
    loaded = with_features(load_model(plan.model_request), "stages")
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    graph = onnx_from_program(program, opset=20, batch=plan.batch, outputs=output_names(loaded.module))
    onnx.checker.check_model(graph, full_check=True)
    assert {spec.name: spec.shape for spec in tensor_specs(graph.graph.output)} == {
        "layer1": ("batch", 256, 88, 88),
        "layer2": ("batch", 512, 44, 44),
        "layer3": ("batch", 1024, 22, 22),
        "layer4": ("batch", 2048, 11, 11),
    }
    names = {node.name for node in graph.graph.node}
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.2.conv3"} <= names
    assert not {"fc", "avgpool", "flatten"} & names
    assert "fc.weight" not in {tensor.name for tensor in graph.graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 352])
def test_int8_stages_of_a_resnet50_are_in_budget(size: int, tmp_path: Path) -> None:
    plan = ExportPlan(
        "resnet50",
        tmp_path / "x",
        precision="int8",
        weights="random",
        features="stages",
        image_size=(size, size),
        batch=BATCH,
    )
    measured = export(replace(plan, calibration_images=64, reference=False)).manifest.parity.backends["simulation"]
    assert all(one.sqnr_db > 25 for one in measured.outputs.values())


def test_in_int8_what_leaves_a_stage_is_what_its_relu_gives_not_what_the_next_convolution_reads(bundles: Any) -> None:
    graph = onnx.load(bundles("stages", "int8").file("model.onnx")).graph
    producers = {name: node for node in graph.node for name in node.output}
    for name in STAGES:
        cast = producers[name]
        assert (cast.op_type, producers[cast.input[0]].op_type) == ("Cast", "Relu")
    taken = [node.op_type for node in graph.node if "layer1.float16" in node.input]
    assert sorted(taken) == ["Cast", "QuantizeLinear"]


def test_a_network_whose_head_cannot_be_run_is_enough(network: CifarResNet) -> None:
    headless = CifarResNet(1, 1, 10).eval()
    headless.load_state_dict(network.state_dict())
    headless.fc = nn.Linear(64, 10, device="meta")  # which cannot be run
    loaded = load_model(ExportPlan("resnet20", Path("unused")).model_request)
    for kind in SHAPES:
        made = with_features(replace(loaded, module=headless), kind).module
        expected = with_features(replace(loaded, module=network), kind).module
        for one, other in zip(made(torch.from_numpy(INPUTS)), expected(torch.from_numpy(INPUTS)), strict=True):
            assert torch.equal(one, other)


class Doubled(CifarResNet):
    """Does something between its parts."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(2 * x)))
        return self.fc(self.avgpool(self.layer3(self.layer2(self.layer1(x)))).flatten(1))  # type: ignore[no-any-return]  # nn.Module's call is untyped


@pytest.mark.parametrize("kind", SHAPES)
def test_a_network_that_does_more_than_run_its_parts_is_refused(kind: str) -> None:
    loaded = load_model(ExportPlan("resnet20", Path("unused")).model_request)
    with pytest.raises(
        PlanError, match="expects a network that runs its parts conv1, bn1, relu, layer1, layer2, layer3"
    ):
        with_features(replace(loaded, module=Doubled(1, 1, 10).eval()), kind)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(PlanError, match="needs a network with the stages layer1, layer2 ..., got one of 0, 1"):
        Features(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), "stages")


def test_one_stage_that_is_wrong_is_named(network: CifarResNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    save_program(
        program_from_module(Features(network, "stages"), (1, 28, 28)), tmp_path / "reference.pt2", tuple(STAGES)
    )
    bent = onnx.ModelProto()
    bent.CopyFrom(graph)
    for tensor in bent.graph.initializer:
        if tensor.name == "layer2.0.conv2.weight":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name)
            )
    onnx.save(bent, tmp_path / "model.onnx")
    candidate = Candidate(tmp_path, Graphs(graph, None), BATCH, ("onnxruntime",))
    report = prove(candidate, ProofImages(Images(INPUTS, None), len(INPUTS)), budget=fp32.BUDGET).report
    assert not report.ok
    measured = report.backends["onnxruntime"]
    assert measured.violations[0].startswith("layer2: largest relative error")
    assert [one.ok for one in measured.outputs.values()] == [True, False, False]
    assert not any(said.startswith("layer1") for said in measured.violations)


def test_a_simplifier_that_changes_one_output_is_stopped(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddling(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for tensor in changed.graph.initializer:
            if tensor.name.startswith("layer3") and tensor.name.endswith("conv1.weight"):
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name)
                )
        return changed, True

    monkeypatch.setattr("onnxsim.simplify", meddling)
    with pytest.raises(SimplifyError, match="changed the layer3 by"):
        simplify(graph, INPUTS)


def test_a_golden_file_that_lacks_an_output_is_refused(bundles: Any, tmp_path: Path) -> None:
    bundle = bundles("stages", "fp32")
    inputs, outputs = golden_arrays(bundle)
    with staging_folder(tmp_path / "copy", force=False) as folder:
        np.savez(folder / "golden.npz", inputs=inputs, layer1=outputs["layer1"], layer3=outputs["layer3"])
        write_manifest(folder, bundle.manifest)
    with pytest.raises(BundleError, match="does not hold golden inputs and layer1 and layer2 and layer3"):
        golden_arrays(Bundle.open(tmp_path / "copy"))


def test_what_a_bundle_of_features_is_stands_in_inspect_and_in_the_refusal_to_classify(
    deploy: Any, bundles: Any, tmp_path: Path
) -> None:
    bundle, picture = bundles("stages", "int8"), tmp_path / "grey.png"
    Image.new("L", (28, 28)).save(picture)
    shown = deploy("inspect", bundle.folder)
    assert shown.code == 0
    for said in (
        "features layer1, layer2, layer3",
        "layer2 float32 batchx32x14x14",
        "relative to the largest reference value of each output",
    ):
        assert said in shown.out, said
    assert "classes" not in shown.out
    ran = deploy("run", bundle.folder, picture)
    assert ran.code == 2
    assert (
        "got a model that gives features (layer1 batchx16x28x28, layer2 batchx32x14x14, layer3 batchx64x7x7)"
        in ran.error
    )


def test_classify_takes_no_features(bundles: Any) -> None:
    bundle = bundles("pool", "fp16")
    with (
        open_runtime(bundle) as runtime,
        pytest.raises(BadInput, match=r"got a model that gives features \(features batchx64\)"),
    ):
        classify(runtime, bundle.manifest.preprocess, [built_in("test").image(0)])


def test_the_command_writes_a_folder_named_after_what_is_in_it(run: Any) -> None:
    made = run("resnet20", "--features", "pool", "--fp16", "--batch", "1:2:4")
    assert made.code == 0
    assert "resnet20, shipped weights, features features, fp16" in made.out
    assert Bundle.open(Path("resnet20-pool-fp16")).manifest.outputs[0].name == "features"


def test_options_that_features_contradict_are_refused(run: Any) -> None:
    assert "--labels is about the head" in run("resnet20", "--features", "pool", "--labels", "x.txt").error
    assert (
        "--num-classes is about the head"
        in run("resnet20", "--features", "stages", "--weights", "random", "--num-classes", "3").error
    )
    assert "did you mean stages" in run("resnet20", "--features", "stage").error
    with pytest.raises(UnknownName, match="kind of --features 'all'"):
        ExportPlan("resnet20", Path("unused"), features="all")
