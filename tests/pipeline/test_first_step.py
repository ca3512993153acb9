"""What a refused export says to try first was tried: a calibrator, blocks in FP16, another precision, or none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from int8_exports import bundle_fixture, pictures_fixture  # noqa: F401  # pytest finds them by their names

from calibration.table import CalibrationTable, TensorRange, table_from_file
from exporter import ExportPlan
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering.lower import lower
from exporter.lowering.opsets import BF16_OPSET
from exporter.lowering.precisions import Precision
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.registry import load_precision
from exporter.lowering.request import CALIBRATOR, LoweringRequest
from exporter.models.loading import load_model
from exporter.models.request import ModelRequest
from exporter.pipeline.first_step import Lowering, first_step_text
from exporter.pipeline.images import Candidate, Graphs, Images, Proof
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from runtimes import Bundle
from runtimes.parity.budget import Budget
from runtimes.progress import Steps
from runtimes.specs import BatchRange

BATCH = BatchRange(1, 4, 16)


@pytest.fixture(name="network", scope="module")
def network_fixture(bundle: Path) -> tuple[Bundle, onnx.ModelProto, CalibrationTable]:
    """The INT8 bundle of the shipped ResNet-20, its FP32 graph and its ranges."""
    loaded = load_model(ModelRequest("resnet20"))
    golden = np.load(bundle / "golden.npz")["inputs"]
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    graph = simplify(onnx_from_program(program, opset=20, batch=BATCH), golden[:2])
    return Bundle.open(bundle), graph, table_from_file(bundle / "calibration.json")


Change = Callable[[str, TensorRange], TensorRange]


def refused(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable],
    folder: Path,
    change: Change,
    precision: str = "int8",
    spoil: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model,
    held_to: Callable[[Budget], Budget] = lambda budget: budget,
) -> tuple[str, Proof]:
    """What is said of a lowering with ranges that were changed, and its proof on the golden images, by the simulation.

    Args:
        spoil: changes the graph after it was lowered.
    """
    bundle, graph, table = network
    table = replace(table, tensors={name: change(name, one) for name, one in table.tensors.items()})
    rules: Precision = load_precision(precision)
    folder.mkdir(exist_ok=True)
    path = folder / "calibration.json"
    path.write_bytes(table.json())
    request = LoweringRequest(precision)
    if precision == "int8":
        request = LoweringRequest(precision, calibrator=CALIBRATOR, calibration=path)
    if precision == "bf16":
        older, graph = graph, onnx.ModelProto()
        graph.CopyFrom(older)
        graph.opset_import[0].version = BF16_OPSET  # whose operators compute the same
    calibration = CalibrationSet(None, bundle.manifest.preprocess, as_pixels=False)
    lowered = lower(graph, calibration, request, Steps())
    model = spoil(lowered.model)
    onnx.save(model, folder / "model.onnx")
    (folder / "reference.pt2").symlink_to(bundle.file("reference.pt2"))
    golden = np.load(bundle.file("golden.npz"))
    images = ProofImages(Images(golden["inputs"], None), len(golden["inputs"]))
    graphs = Graphs(lowered.exact, rules.simulation(model))
    proof = prove(Candidate(folder, graphs, BATCH, ()), images, budget=replace(rules.BUDGET, confidence=None))
    plan = ExportPlan("resnet20", folder, precision=precision)
    lowering = Lowering(graphs, graph, lowered, calibration, plan, lambda found: found, held_to)
    return first_step_text(lowering, proof, images), proof


def divided(beginning: str, by: float, calibrators: tuple[str, ...] | None = None) -> Change:
    """Divides the thresholds of the tensors whose names begin so; those of all calibrators where none are named."""

    def change(name: str, one: TensorRange) -> TensorRange:
        if not name.startswith(beginning):
            return one
        kept = one.thresholds.items()
        return replace(
            one, thresholds={key: value / by if key in (calibrators or (key,)) else value for key, value in kept}
        )

    return change


def test_another_calibrator_is_named_where_it_is_enough(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable], tmp_path: Path
) -> None:
    said, proof = refused(network, tmp_path / "b", divided("layer2.1.", 100, (CALIBRATOR, "entropy")))
    assert not proof.report.ok
    found = re.fullmatch(
        r"; layer2\.1 adds the most noise, an SQNR of -?\d\.\d dB by itself; what helps, by 32 images: --calibrator "
        r"minmax \(SQNR (\d+\.\d) dB, agreement 100\.0%; now SQNR (-?\d\.\d) dB, agreement \d+\.\d%\)",
        said,
    )
    assert found, said
    assert float(found[1]) > 25
    assert float(found[2]) == pytest.approx(proof.report.backends["simulation"].sqnr_db, abs=0.06)


def test_blocks_to_return_are_named_where_no_calibrator_is_enough(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable], tmp_path: Path
) -> None:
    said, _ = refused(network, tmp_path / "b", divided("layer3.2.", 100))
    assert re.search(
        r"; layer3\.2 adds the most noise, .*; what helps, by 32 images: layer3\.2 in float \(SQNR 3.*\); "
        r"--min-agreement 98, with --data, chooses such blocks and proves them$",
        said,
    ), said


def test_where_neither_is_enough_the_loss_is_everywhere(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable], tmp_path: Path
) -> None:
    said, _ = refused(network, tmp_path / "b", divided("", 12))
    assert re.search(
        r"; by 32 images no other calibrator brings it within, nor do \S+, \S+, \S+ and \S+ in float: every block adds a "
        r"little, which quantization-aware training mends; --fp16 is within \(SQNR 6\d\.\d dB, agreement 100\.0%; now ",
        said,
    ), said


@pytest.mark.parametrize(("precision", "end"), [("bf16", r"; --fp16 is within \(.*\)"), ("fp16", "; take --fp32")])
def test_a_precision_that_needs_no_ranges_is_replaced_by_one_with_more_digits(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable], tmp_path: Path, precision: str, end: str
) -> None:
    def larger_bias(model: onnx.ModelProto) -> onnx.ModelProto:
        tensor = next(one for one in model.graph.initializer if one.name == "fc.bias")
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array((values.astype(np.float32) + np.arange(10)).astype(values.dtype), "fc.bias")
        )
        return model

    said, proof = refused(network, tmp_path / "b", lambda name, one: one, precision, larger_bias)
    assert not proof.report.ok
    assert re.fullmatch(rf"; head adds the most noise, an SQNR of \d+\.\d dB by itself{end}", said), said


def test_another_precision_is_held_to_what_the_plan_holds_it_to(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable], tmp_path: Path
) -> None:
    """FP16 has an error of some 2e-3 here; its own budget allows 1e-2."""
    said, _ = refused(
        network, tmp_path / "b", divided("", 12), held_to=lambda budget: replace(budget, max_relative_error=1e-4)
    )
    assert said.endswith("which quantization-aware training mends; take --fp32")


def test_nothing_is_tried_where_the_precision_is_not_what_is_wrong(
    network: tuple[Bundle, onnx.ModelProto, CalibrationTable], tmp_path: Path
) -> None:
    said, proof = refused(network, tmp_path / "b", lambda name, one: one)
    assert proof.report.ok
    assert said.endswith(
        "rounded as a device rounds it is within by 32 images, so that the precision may not be what is wrong"
    )
