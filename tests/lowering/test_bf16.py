"""BF16 has no backend here that runs its file: what its simulation rests on, and that the file is what is simulated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.opsets import BF16_OPSET
from exporter.lowering.precisions import bf16
from exporter.models.sources.cifar import CifarResNet
from exporter.pipeline.images import Candidate, Graphs, Images, Proof
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from exporter.pipeline.resize_proof import images_of_one_colour
from runtimes import BatchRange, Budget, Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BackendUnavailable, LowerError
from runtimes.preprocess import Preprocess

BATCH = BatchRange(1, 2, 4)
INPUTS = np.random.default_rng(0).standard_normal((8, 1, 28, 28), dtype=np.float32)


@dataclass(frozen=True)
class Tiny:
    """A small residual network in FP32 and in BF16, and the folder that holds its files."""

    original: onnx.ModelProto
    lowered: onnx.ModelProto
    folder: Path

    def proof(self, simulation: onnx.ModelProto | None, *, budget: Budget = bf16.BUDGET) -> Proof:
        candidate = Candidate(self.folder, Graphs(self.original, simulation), BATCH, ())
        return prove(candidate, ProofImages(Images(INPUTS, None), len(INPUTS)), budget=budget)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny-bf16")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        program = program_from_module(CifarResNet(1, 1, 10), (1, 28, 28))
    original = simplify(onnx_from_program(program, opset=BF16_OPSET, batch=BATCH), INPUTS)
    lowered = bf16.lower(original, {})
    onnx.save(lowered, folder / "model.onnx")
    save_program(program, folder / "reference.pt2")
    return Tiny(original, lowered, folder)


def logits(model: onnx.ModelProto) -> NDArray[Any]:
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        return runtime.run({"input": INPUTS})["logits"]


def casts(model: onnx.ModelProto) -> Counter[int]:
    """How many casts there are to each type."""
    return Counter(helper.get_node_attr_value(node, "to") for node in model.graph.node if node.op_type == "Cast")


def scaled(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """A copy in which one weight is multiplied."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weight = next(tensor for tensor in result.graph.initializer if tensor.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), name))
    return result


def refused_by_the_checker(model: onnx.ModelProto, opset: int) -> bool:
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.opset_import[0].version = opset
    try:
        onnx.checker.check_model(older, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return True
    return False


# --- the file ---


def test_every_tensor_is_bf16_between_one_cast_at_each_end(tiny: Tiny) -> None:
    graph = tiny.lowered.graph
    assert {tensor.data_type for tensor in graph.initializer} == {TensorProto.BFLOAT16}
    assert {value.type.tensor_type.elem_type for value in graph.value_info} == {TensorProto.BFLOAT16}
    assert [node.name for node in graph.node if node.op_type == "Cast"] == ["input.cast", "logits.cast"]


def test_the_opset_and_the_container_are_the_oldest_that_will_do(tiny: Tiny) -> None:
    assert [(entry.domain, entry.version) for entry in tiny.lowered.opset_import] == [("", 22)]
    assert tiny.lowered.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", 22)]) == 10
    assert refused_by_the_checker(tiny.lowered, 21)
    assert not refused_by_the_checker(tiny.lowered, 22)


def test_a_graph_of_an_older_opset_is_refused(tiny: Tiny) -> None:
    older = onnx.ModelProto()
    older.CopyFrom(tiny.original)
    older.opset_import[0].version = 20
    with pytest.raises(
        LowerError, match="expected a graph of opset 22 or newer, got 20, whose convolutions take no BF16"
    ):
        bf16.lower(older, {})


def test_weights_are_rounded_as_pytorch_rounds(tiny: Tiny) -> None:
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny.original.graph.initializer}
    for tensor in tiny.lowered.graph.initializer:
        want = torch.from_numpy(exact[tensor.name].copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.float32), want, err_msg=tensor.name)


def test_onnxs_reference_runs_the_written_file_to_what_the_simulation_says(tiny: Tiny) -> None:
    """It rounds inside convolutions too: a BF16 step of the largest logit apart (2^-7) is no wrong weight."""
    ran: Any = ReferenceEvaluator(str(tiny.folder / "model.onnx")).run(None, {"input": INPUTS})
    simulated = logits(bf16.simulation(tiny.lowered))
    largest = np.abs(simulated).max()
    assert np.abs(ran[0] - simulated).max() / largest < 2**-6
    for name in ("conv1.weight", "layer3.0.conv2.weight", "fc.bias"):
        wrong = bf16.simulation(bf16.lower(scaled(tiny.original, name, 1.5), {}))
        assert np.abs(logits(wrong) - simulated).max() / largest > 2**-6, name


# --- the simulation ---


def test_onnxruntimes_cast_rounds_to_the_nearest_even_as_pytorch_does() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["wide"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 22)], ir_version=10
    )
    high = (
        np.arange(2**16, dtype=np.uint32) << 16
    )  # every BF16 number, and its neighbours on both sides of the point between it and the next
    x = (
        np.concatenate([high | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
        .astype(np.uint32)
        .view(np.float32)
    )
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        y = runtime.run({"x": x})["y"]
    number = ~np.isnan(x)
    want = -torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(y[number].view(np.uint32), want[number].view(np.uint32))
    assert np.isnan(y[~number]).all()
    assert (y[number] != -x[number]).mean() > 0.8


def test_onnxruntimes_optimiser_keeps_every_cast_of_the_simulation(tiny: Tiny, tmp_path: Path) -> None:
    """But those of constants, which it folds exactly, and the one that nothing reads: the output has its own cast."""
    simulation = bf16.simulation(tiny.lowered)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it says that such a file is for this machine only
    ort.InferenceSession(simulation.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kept, written = casts(onnx.load(tmp_path / "optimised.onnx")), casts(simulation)
    assert (
        kept[TensorProto.BFLOAT16] == written[TensorProto.BFLOAT16] == len(tiny.lowered.graph.node) - 1
    )  # all but the last node, a cast to FP32
    assert kept[TensorProto.FLOAT] == written[TensorProto.FLOAT] - len(tiny.lowered.graph.initializer) - 1


# --- the proof ---


def test_the_simulation_alone_is_run_over_all_images_at_every_batch(tiny: Tiny) -> None:
    simulation = bf16.simulation(tiny.lowered)
    report = tiny.proof(simulation).report
    assert report.ok
    assert set(report.backends) == {"simulation"}
    for batch in BATCH.proof_sizes:
        assert broken(tiny.proof(wrong_at(simulation, batch=batch))).startswith("largest relative error")


def broken(proof: Proof) -> str:
    """The first limit that is broken, in words; one has to be."""
    assert not proof.report.ok
    (limit, *_) = next(iter(proof.answers.values())).failing
    return limit.text


def wrong_at(model: onnx.ModelProto, *, batch: int) -> onnx.ModelProto:
    """A copy whose logits are off by one where it is fed `batch` images at once."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.node[-1].output[0] = "right"
    result.graph.node.extend(
        [
            helper.make_node("Shape", ["input"], ["size"], end=1),
            helper.make_node("Equal", ["size", "wrong_size"], ["is_wrong"]),
            helper.make_node("Cast", ["is_wrong"], ["offset"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["right", "offset"], ["logits"]),
        ]
    )
    result.graph.initializer.append(numpy_helper.from_array(np.array([batch], np.int64), "wrong_size"))
    return result


def with_a_spread(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that adds zero divided by the input's spread to the logits: no number where all pixels are equal."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    graph.node[-1].output[0] = "right"
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["input", "axes"], ["most"], keepdims=0),
            helper.make_node("ReduceMin", ["input", "axes"], ["least"], keepdims=0),
            helper.make_node("Sub", ["most", "least"], ["spread"]),
            helper.make_node("Div", ["zero", "spread"], ["none"]),
            helper.make_node("Unsqueeze", ["none", "last"], ["column"]),
            helper.make_node("Add", ["right", "column"], ["logits"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "last"))
    return result


@pytest.mark.parametrize("batch", [BATCH, BatchRange(1, 1, 1), BatchRange(8, 8, 8)], ids=str)
def test_pictures_of_one_colour_are_asked_for_too(tiny: Tiny, batch: BatchRange) -> None:
    simulation = bf16.simulation(tiny.lowered)
    preprocess = Preprocess(28, (28, 28), "bilinear", True, (0.286,), (0.353,))
    images = ProofImages(Images(INPUTS, None), len(INPUTS))
    with_plain = replace(images, plain=images_of_one_colour(preprocess, as_pixels=False))

    def proof(model: onnx.ModelProto, images: ProofImages) -> Proof:
        return prove(Candidate(tiny.folder, Graphs(tiny.original, model), batch, ()), images, budget=bf16.BUDGET)

    assert proof(simulation, with_plain).report.ok
    assert proof(with_a_spread(simulation), images).report.ok
    said = broken(proof(with_a_spread(simulation), with_plain))
    assert "gives a picture of one colour an answer that is no number, where the reference gives one" in said
    strict = replace(bf16.BUDGET, max_relative_error=1e-9)
    candidate = Candidate(tiny.folder, Graphs(tiny.original, with_a_spread(simulation)), batch, ())
    (found,) = prove(candidate, with_plain, budget=strict).report.backends.values()
    assert [text.split(",")[0].split(" ")[0] for text in found.violations] == ["it", "largest"]


def test_the_last_images_are_proven_too(tiny: Tiny) -> None:
    """Without labels, a simulation beside a backend runs on eight images; alone, on all of them."""
    inputs = np.concatenate([INPUTS, 30 * INPUTS[:4]])
    budget = Budget(own_error=1.0, max_relative_error=1.0)
    images = ProofImages(Images(inputs, None), len(inputs))
    graphs = Graphs(tiny.original, bf16.simulation(bf16.lower(tiny.original, {})))
    candidate = Candidate(tiny.folder, graphs, BATCH, ())
    report = prove(candidate, images, budget=budget).report
    few = prove(candidate, ProofImages(Images(INPUTS, None), len(INPUTS)), budget=budget).report
    assert report.images == 12
    assert report.backends["simulation"].mean_relative_error != few.backends["simulation"].mean_relative_error


def test_a_file_that_onnx_refuses_is_no_proof(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "reference.pt2").symlink_to(tiny.folder / "reference.pt2")
    older = onnx.ModelProto()
    older.CopyFrom(tiny.lowered)
    older.opset_import[0].version = 20
    onnx.save(older, tmp_path / "model.onnx")
    with pytest.raises(onnx.shape_inference.InferenceError, match="bfloat16"):
        Tiny(tiny.original, older, tmp_path).proof(bf16.simulation(tiny.lowered))


def test_nothing_to_prove_with_is_no_proof(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match="expected a backend or a simulation"):
        tiny.proof(None)


def test_values_beyond_bf16_are_beyond_fp16_too_so_only_fp32_is_left_to_try(tiny: Tiny) -> None:
    largest = scaled(tiny.original, "fc.bias", 0)
    bias = next(tensor for tensor in largest.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.finfo(np.float32).max), "fc.bias"))
    with pytest.raises(LowerError, match=r"'fc.bias' holds 3.4e\+38, beyond the range of bfloat16; export in fp32, or"):
        bf16.lower(largest, {})
    heavy = bf16.lower(scaled(tiny.original, "conv1.weight", 3e38), {})
    with pytest.raises(
        LowerError, match=r"'conv1.out' are beyond the precision's range on real images; export in fp32$"
    ):
        tiny.proof(bf16.simulation(heavy))


# --- the bundle ---


def test_a_bf16_bundle_says_what_it_needs_and_how_it_was_proven(run: Any, tmp_path: Path) -> None:
    facts = run("resnet20", "--bf16", "--json").json
    bundle = Bundle.open(tmp_path / "resnet20-bf16")
    assert (facts["precision"], facts["opset"]) == ("bf16", 22)
    assert set(facts["parity"]["backends"]) == {"simulation"}
    assert (facts["parity"]["images"], facts["parity"]["batches"]) == (2000, [1, 8, 32])
    assert facts["parity"]["backends"]["simulation"]["max_relative_error"] > 1e-3  # rounded indeed
    assert facts["accuracy"]["top1"] > 0.93
    assert facts["graph"]["types"]["Conv"] == {"BFLOAT16": 21}
    model = onnx.load(bundle.file("model.onnx"))
    assert (model.opset_import[0].version, model.ir_version) == (22, 10)
    golden = np.load(bundle.file("golden.npz"))
    with open_runtime(bundle, "pytorch") as runtime:
        assert np.abs(runtime.run({"input": golden["inputs"]})["logits"] - golden["logits"]).max() < 1e-4


def test_onnxruntimes_cpu_provider_is_refused_with_what_runs_it(run: Any) -> None:
    assert run("resnet20", "--bf16", "--output", "bundle", "--quiet").code == 0
    with pytest.raises(BackendUnavailable, match="no BF16 convolution on the CPU; use --backend pytorch"):
        open_runtime("bundle", "onnxruntime")
    with open_runtime("bundle", "pytorch") as runtime:
        assert runtime.provider == "cpu"
