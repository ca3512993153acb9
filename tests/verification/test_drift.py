"""Block-wise drift: each block against the program's own value, the faulty one named, in real and spoilt bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from rounding import needs_rounding, runs_here
from spoilt import BLOCKS, spoilt, with_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from exporter.graph.probe import block_ends, inner_tensors, with_outputs
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.registry import precision_names
from exporter.models.registry import PAD
from exporter.models.sources.cifar import CifarResNet
from exporter.verification.blocks.both_sides import both_sides_of
from exporter.verification.blocks.drift import drift_of_bundle
from exporter.verification.blocks.findings import Drift
from exporter.verification.blocks.program import match_blocks, outline_of_program, program_values
from exporter.verification.report.lines import drift_lines
from runtimes import Bundle
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.errors import BundleError, PlanError
from runtimes.parity.budget import Budget
from runtimes.parity.compare import compare_outputs
from runtimes.parity.golden import golden_arrays
from runtimes.parity.measures import LARGEST_ERROR, LARGEST_SQNR_DB, sqnr_db
from runtimes.specs import BatchRange

BATCH = BatchRange(1, 2, 4)
STAGES = {
    "fp32": ["onnx fp32", "model.onnx", "alone"],
    "fp16": ["onnx fp32", "model.onnx", "simulation", "alone"],
    "bf16": ["onnx fp32", "simulation", "alone"],
    "int8": ["onnx fp32", *(["model.onnx"] if runs_here("int8") else []), "simulation", "alone"],
}


def drifted(bundle: Bundle) -> Drift:
    return drift_of_bundle(bundle, golden_arrays(bundle)[0])


def ratios(drift: Drift, stage: str) -> dict[str, float]:
    (found,) = (one for one in drift.stages if one.name == stage)
    return {name: one.sqnr_db for name, one in zip(drift.blocks, found.blocks, strict=True)}


def test_every_precision_has_its_stages(shipped_bundle: Any) -> None:
    assert set(STAGES) == set(precision_names())


@pytest.mark.parametrize("precision", STAGES)
def test_the_shipped_model_is_followed_and_nothing_is_out_of_line(shipped_bundle: Any, precision: str) -> None:
    bundle = shipped_bundle(precision)
    drift = drifted(bundle)
    assert (drift.images, drift.blocks, drift.out_of_line) == (32, BLOCKS, None)
    assert [stage.name for stage in drift.stages] == STAGES[precision]
    assert all(len(stage.blocks) == len(BLOCKS) for stage in drift.stages)
    assert max(one.relative_error for one in drift.stages[0].blocks) < 1e-5
    assert min(ratios(drift, "onnx fp32").values()) > 100
    if precision == "fp32":
        assert set(ratios(drift, "alone").values()) == {LARGEST_SQNR_DB}  # the file is the graph
    else:
        together, alone = ratios(drift, "simulation"), ratios(drift, "alone")
        assert all(alone[name] > together[name] for name in BLOCKS[2:])  # which carries the errors of the blocks before
        assert drift.noisiest_db == alone[drift.noisiest] == min(alone.values())
    assert msgspec.to_builtins(drift)["stages"][0]["name"] == "onnx fp32"
    lines = drift_lines(drift)
    assert [line.split()[0] for line in lines[2 : 2 + len(BLOCKS)]] == list(BLOCKS)
    assert lines[-1].startswith("out of line  no block is, alone, beyond an ")
    assert lines[-1].endswith(
        "; none differs at all" if precision == "fp32" else " dB by itself, which need not be a fault"
    )


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=needs_rounding)])
def test_the_heads_figures_are_those_of_the_parity_check(shipped_bundle: Any, precision: str) -> None:
    bundle = shipped_bundle(precision)
    inputs, golden = golden_arrays(bundle)
    with OnnxRuntime.open(bundle.file("model.onnx")) as runtime:
        compared = compare_outputs(golden, runtime.run({"input": inputs}), bundle.manifest.parity.budget)
    (stage,) = (one for one in drifted(bundle).stages if one.name == "model.onnx")
    assert stage.blocks[-1].sqnr_db == pytest.approx(compared.sqnr_db, abs=0.05)
    assert stage.blocks[-1].relative_error == pytest.approx(compared.max_relative_error, rel=0.02)


@pytest.mark.parametrize("precision", precision_names())
def test_outputs_are_the_same_to_the_last_bit_with_inner_ones_beside_them(shipped_bundle: Any, precision: str) -> None:
    bundle = shipped_bundle(precision)
    inputs, _ = golden_arrays(bundle)
    original = both_sides_of(bundle, inputs)
    tensors = list(block_ends(original.graph.graph))
    graphs = [(original.graph, tensors)]
    if precision != "bf16":  # which onnxruntime does not run on a CPU
        graphs.append((original.lowered, tensors))
    if original.simulation is not None:
        graphs.append((original.simulation, [f"{name}.wide" for name in tensors if name != "logits"]))
    for model, names in graphs:
        watched = with_outputs(model, names)
        assert list(watched.graph.node) == list(model.graph.node)
        with (
            OnnxRuntime.from_bytes(model.SerializeToString()) as bare,
            OnnxRuntime.from_bytes(watched.SerializeToString()) as runtime,
        ):
            found = runtime.run({"input": inputs})
            assert len(found) == len(tensors)
            assert np.array_equal(bare.run({"input": inputs})["logits"], found["logits"])


def test_what_the_file_was_lowered_from_is_made_again_to_the_last_bit(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("fp32")
    original = both_sides_of(bundle, golden_arrays(bundle)[0])
    assert list(original.graph.graph.node) == list(original.lowered.graph.node)
    assert list(original.graph.graph.initializer) == list(original.lowered.graph.initializer)


@pytest.mark.parametrize(
    ("precision", "block"),
    [
        ("fp32", "layer1.0"),
        ("fp16", "stem"),
        ("fp16", "layer2.0"),
        ("bf16", "layer3.2"),
        ("int8", "stem"),
        ("int8", "layer1.1"),
    ],
)
def test_a_block_whose_weights_are_wrong_is_named(
    shipped_bundle: Any, tmp_path: Path, precision: str, block: str
) -> None:
    weight = "conv1.weight" if block == "stem" else f"{block}.conv1.weight"
    bundle = spoilt(
        shipped_bundle(precision), tmp_path / "bundle", {f"{weight}.scale" if precision == "int8" else weight: 1.5}
    )
    drift = drifted(bundle)
    assert drift.out_of_line == block
    alone = next(stage for stage in drift.stages if stage.name == "alone")
    healthy = [one for name, one in zip(drift.blocks, alone.blocks, strict=True) if name != block]
    assert all(one.sqnr_db > 30 for one in healthy)
    assert f"{block} is the first block that alone is beyond an " in drift_lines(drift)[-1]


def test_of_two_wrong_blocks_the_first_is_named_and_both_are_seen(shipped_bundle: Any, tmp_path: Path) -> None:
    names = {"layer1.2.conv2.weight.scale": 2.0, "layer3.0.conv1.weight.scale": 2.0}
    drift = drifted(spoilt(shipped_bundle("int8"), tmp_path / "bundle", names))
    assert drift.out_of_line == "layer1.2"
    assert {name for name, ratio in ratios(drift, "alone").items() if ratio < 20} == {"layer1.2", "layer3.0"}


def test_a_network_whose_blocks_all_add_a_little_has_no_culprit(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("int8")
    between = Budget(own_error=0.05, min_sqnr_db=31.0)  # every block alone is better, and all together are worse
    drift = drifted(
        replace(bundle, manifest=replace(bundle.manifest, parity=replace(bundle.manifest.parity, budget=between)))
    )
    assert min(ratios(drift, "simulation").values()) < 31 < min(ratios(drift, "alone").values())
    assert drift.out_of_line is None
    lines = drift_lines(drift)
    assert any(line.startswith("simulation   beyond an SQNR of 31.0 dB from layer1.2 on") for line in lines)
    alone = ratios(drift, "alone")
    noisiest = min(alone, key=lambda name: alone[name])
    assert f"no block is, alone, beyond an SQNR of 31.0 dB; {noisiest} adds the most noise" in lines[-1]


def test_what_int8_takes_off_the_classifiers_bias_is_no_error_of_the_head(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("int8")
    original = both_sides_of(bundle, golden_arrays(bundle)[0])
    own, corrected = (
        next(
            numpy_helper.to_array(one)
            for node in model.graph.node
            for one in model.graph.initializer
            if node.name == "fc" and one.name == node.input[2]
        )
        for model in (original.graph, original.corrected)
    )
    assert not np.array_equal(own, corrected)
    assert (
        ratios(drifted(bundle), "alone")["head"] > 60
    )  # it is in FP16; with the correction counted as an error, 49 dB


def test_a_budget_that_says_nothing_of_a_block_names_the_noisiest_as_what_it_is(shipped_bundle: Any) -> None:
    bundle = shipped_bundle("int8")
    agreement = Budget(own_error=0.05, min_agreement=0.98)
    drift = drifted(
        replace(bundle, manifest=replace(bundle.manifest, parity=replace(bundle.manifest.parity, budget=agreement)))
    )
    alone = ratios(drift, "alone")
    assert (drift.out_of_line, drift.noisiest) == (None, min(alone, key=lambda name: alone[name]))
    assert f"the budget says neither error nor SQNR; {drift.noisiest} adds the most noise" in drift_lines(drift)[-1]


def test_values_beyond_the_precisions_range_are_a_figure_and_name_the_block(
    shipped_bundle: Any, tmp_path: Path
) -> None:
    factors = {f"layer2.1.conv{place}.weight": 2e4 for place in (1, 2)}
    drift = drifted(spoilt(shipped_bundle("fp16"), tmp_path / "bundle", factors))
    assert drift.out_of_line == "layer2.1"
    alone = drift.stages[-1].blocks[BLOCKS.index("layer2.1")]
    assert (alone.relative_error, alone.sqnr_db) == (LARGEST_ERROR, -LARGEST_SQNR_DB)
    assert msgspec.json.decode(msgspec.json.encode(drift))["out_of_line"] == "layer2.1"


@pytest.mark.parametrize(("features", "last"), [("stages", []), ("pool", ["head"])])
def test_features_are_followed_too(shipped_bundle: Any, tmp_path: Path, features: str, last: list[str]) -> None:
    bundle = shipped_bundle("int8", features)
    drift = drifted(bundle)
    assert list(drift.blocks) == [*BLOCKS[:-1], *last]
    assert (drift.out_of_line, min(ratios(drift, "alone").values()) > 30) == (None, True)
    assert drifted(spoilt(bundle, tmp_path / "bundle", {"layer2.0.conv2.weight.scale": 2.0})).out_of_line == "layer2.0"


def test_a_graph_that_takes_pixels_is_followed_from_what_the_program_takes(shipped_bundle: Any, tmp_path: Path) -> None:
    bundle = shipped_bundle("int8", uint8="crop")
    drift = drifted(bundle)
    assert (drift.blocks, drift.out_of_line) == (BLOCKS, None)
    assert min(ratios(drift, "onnx fp32").values()) > 100
    assert drifted(spoilt(bundle, tmp_path / "bundle", {"conv1.weight.scale": 2.0})).out_of_line == "stem"


class SideBySide(nn.Module):
    """Two residual additions of which neither follows from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        result: Tensor = (left.relu() + left).mean((2, 3)) * (right.relu() + right).mean((2, 3))
        return result


def v1() -> ResNet:
    network = ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5)
    for part in network.modules():
        if isinstance(part, Bottleneck):
            part.conv1.stride, part.conv2.stride = part.conv2.stride, part.conv1.stride
    return network


def eca() -> nn.Module:
    import timm

    module: nn.Module = timm.create_model("ecaresnet26t", pretrained=False, num_classes=5)
    return module


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "basic": (lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5), (3, 64, 64), 7),
    "bottleneck": (lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=5), (3, 64, 64), 7),
    "v1": (v1, (3, 64, 64), 7),
    "pad": (lambda: CifarResNet(2, 1, 10, shortcut=PAD), (1, 28, 28), 8),
    "eca": (eca, (3, 64, 64), 10),  # whose gates make shapes that later blocks share
}


def traced(
    module: nn.Module, shape: tuple[int, int, int]
) -> tuple[torch.fx.GraphModule, onnx.ModelProto, NDArray[np.float32]]:
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)  # type: ignore[arg-type]  # it has statistics
            nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]  # likewise
            nn.init.uniform_(part.weight, 0.5, 1.0)  # of a branch's last norm it may be zero
    inputs = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    program = program_from_module(module.eval(), shape)
    return program.module(), simplify(onnx_from_program(program, opset=20, batch=BATCH), inputs), inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_of_every_kind_are_matched_with_the_programs(name: str) -> None:
    make, shape, count = NETWORKS[name]
    module, graph, inputs = traced(make(), shape)
    nodes = match_blocks(outline_of_program(module.graph), graph.graph)
    assert len(nodes) == count
    expected = program_values(module, list(nodes.values()), inputs)
    found = inner_tensors(graph, list(nodes), inputs)
    for tensor, node in nodes.items():
        assert found[tensor].shape == expected[node].shape
        assert sqnr_db(expected[node], found[tensor]) > 100, tensor
    # One place further, each would be of another shape or another value.
    ends = list(nodes.values())
    assert all(
        expected[one].shape != expected[other].shape or sqnr_db(expected[one], expected[other]) < 60
        for one, other in pairwise(ends)
    )


def test_values_are_kept_as_they_were_before_an_operator_in_place_changed_them() -> None:
    module = program_from_module(CifarResNet(1, 1, 10).eval(), (1, 28, 28)).module()
    inputs = np.random.default_rng(0).standard_normal((2, 1, 28, 28), dtype=np.float32)
    sums = [node.name for node in module.graph.nodes if "add_" in str(node.target)]
    assert len(sums) == 3
    assert all(
        values.min() < 0 for values in program_values(module, sums, inputs).values()
    )  # a ReLU in place comes behind


def test_additions_that_cannot_be_matched_are_refused() -> None:
    module, graph, _ = traced(SideBySide(), (1, 8, 8))
    with pytest.raises(
        PlanError, match="additions that follow from one another, got some side by side; its blocks cannot be followed"
    ):
        match_blocks(outline_of_program(module.graph), graph.graph)
    longer = program_from_module(CifarResNet(2, 1, 10).eval(), (1, 28, 28)).module()
    short, shorter, _ = traced(CifarResNet(1, 1, 10), (1, 28, 28))
    with pytest.raises(PlanError, match="additions in its ONNX graph too, got 6 and 3; its blocks cannot be followed"):
        match_blocks(outline_of_program(longer.graph), shorter.graph)
    bare = onnx.ModelProto()
    bare.CopyFrom(shorter)
    for node in bare.graph.node:
        node.op_type = "Elu" if node.op_type == "Relu" else node.op_type
    with pytest.raises(PlanError, match="expected blocks that end alike in the program and its ONNX graph"):
        match_blocks(outline_of_program(short.graph), bare.graph)


def test_values_of_another_shape_are_refused(shipped_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(program: onnx.GraphProto, graph: onnx.GraphProto, *, ends_alike: bool) -> dict[str, str]:
        found = match_blocks(program, graph, ends_alike=ends_alike)
        return dict(zip(found, [*list(found.values())[1:], next(iter(found.values()))], strict=True))

    monkeypatch.setattr("exporter.verification.blocks.drift.match_blocks", shifted)
    with pytest.raises(
        PlanError,
        match=r"output of shape \(32, 32, 14, 14\), as in the program, got \(32, 16, 28, 28\); its blocks cannot",
    ):
        drifted(shipped_bundle("fp32"))


def test_a_bundle_without_its_program_is_told_how_to_get_it(shipped_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match="has no reference.pt2 to follow the blocks of; export it again without --no-reference"
    ):
        drifted(with_file(shipped_bundle("fp16"), tmp_path / "bundle", "reference.pt2", None))


def test_a_program_that_is_none_or_of_another_network_is_refused(shipped_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="pytorch cannot load .*reference.pt2: .*; export the bundle again"):
        drifted(with_file(shipped_bundle("fp16"), tmp_path / "rubbish", "reference.pt2", b"rubbish"))
    save_program(program_from_module(CifarResNet(4, 1, 10), (1, 28, 28)), tmp_path / "longer.pt2")
    other = with_file(
        shipped_bundle("fp16"), tmp_path / "other", "reference.pt2", (tmp_path / "longer.pt2").read_bytes()
    )
    with pytest.raises(
        BundleError, match="expected the nodes of reference.pt2 in model.onnx, got no Conv 'layer1.3.conv1'"
    ):
        drifted(other)
