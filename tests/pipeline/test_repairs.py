"""A network whose channels were rescaled, its function unchanged, loses nothing to INT8; its table repeats all repairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration.data import built_in, inputs_from_source
from calibration.table import table_from_file
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering.equalize import streams, with_factors
from exporter.lowering.lower import LoweredGraph, lower
from exporter.lowering.output_error import output_error, outputs_of
from exporter.lowering.precisions import int8
from exporter.lowering.ranges import CalibrationSet
from exporter.lowering.request import CALIBRATOR, LoweringRequest
from exporter.models.loading import load_model
from exporter.pipeline.plan import ExportPlan
from runtimes.errors import BadInput, CalibrationError
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps


class Rescaled(NamedTuple):
    """The shipped ResNet-20's FP32 graph with its channels rescaled by up to 16 either way, and what it is fed."""

    graph: onnx.ModelProto
    preprocess: Preprocess
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]


@pytest.fixture(name="rescaled", scope="module")
def rescaled_fixture() -> Rescaled:
    plan = ExportPlan("resnet20", Path("unused"), precision="int8")
    loaded = load_model(plan.model_request)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    plain = simplify(
        onnx_from_program(program, opset=plan.opset, batch=plan.batch), np.zeros((1, 1, 28, 28), np.float32)
    )
    random = np.random.default_rng(0)
    factors = {one.tensors[0]: (16 ** random.uniform(-1, 1, one.channels)).astype(np.float32) for one in streams(plain)}
    test = built_in("test").subset(np.arange(1000))
    assert test.labels is not None
    inputs = inputs_from_source(test, loaded.preprocess, test.count)
    return Rescaled(with_factors(plain, factors), loaded.preprocess, inputs, test.labels)


def lowered(rescaled: Rescaled, request: LoweringRequest, *, data: bool = True) -> LoweredGraph:
    source = built_in("train") if data else None
    return lower(rescaled.graph, CalibrationSet(source, rescaled.preprocess, as_pixels=False), request, Steps())


@pytest.fixture(name="repaired", scope="module")
def repaired_fixture(rescaled: Rescaled) -> LoweredGraph:
    return lowered(rescaled, LoweringRequest("int8", calibration_images=256))


def top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((logits.argmax(1) == labels).mean())


def test_rescaled_channels_are_equalized_and_cost_no_accuracy(rescaled: Rescaled, repaired: LoweredGraph) -> None:
    """As it comes, its outputs have 1 dB and a third of the accuracy."""
    expected = outputs_of(rescaled.graph, rescaled.inputs)
    simulation = int8.simulation(repaired.model)
    assert output_error(simulation, rescaled.inputs, expected).sqnr_db > 33
    found = outputs_of(simulation, rescaled.inputs)["logits"]
    assert top1(expected["logits"], rescaled.labels) - top1(found, rescaled.labels) <= 0.005
    assert repaired.table is not None
    assert repaired.table.repairs[0].startswith("equalized the channels of 12 streams: ")
    assert output_error(repaired.exact, rescaled.inputs, expected).sqnr_db > 100
    plain = int8.lower(rescaled.graph, lowered_thresholds(rescaled))
    assert output_error(int8.simulation(plain), rescaled.inputs, expected).sqnr_db < 10


def lowered_thresholds(rescaled: Rescaled) -> dict[str, float]:
    """The largest values, as a calibration without equalization would find them."""
    from exporter.graph.probe import inner_tensors

    names = int8.observed_tensors(rescaled.graph)
    inner = inner_tensors(rescaled.graph, [name for name in names if name != "input"], rescaled.inputs[:256])
    return {name: float(np.abs(inner.get(name, rescaled.inputs)).max()) for name in names}


def test_a_table_repeats_every_repair_without_pictures(
    rescaled: Rescaled, repaired: LoweredGraph, tmp_path: Path
) -> None:
    assert repaired.table is not None
    path = tmp_path / "calibration.json"
    path.write_bytes(repaired.table.json())
    again = lowered(rescaled, LoweringRequest("int8", calibration=path), data=False)
    assert again.table == repaired.table
    assert again.model.SerializeToString(deterministic=True) == repaired.model.SerializeToString(deterministic=True)
    assert again.sensitivity is None


def test_a_table_keeps_the_corrections_of_blocks_that_returned_to_float(repaired: LoweredGraph) -> None:
    """Else they would be gone for an export of all of it in INT8."""
    assert repaired.with_calibrator is not None
    whole = repaired.with_calibrator("minmax")  # whose corrections help
    assert whole.with_float_nodes is not None
    mixed = whole.with_float_nodes({"layer2.1.conv1", "layer2.1.conv2"})
    assert whole.table is not None
    assert mixed.table is not None
    assert "layer2.1.conv1" in whole.table.corrections["minmax"]
    assert set(mixed.table.corrections["minmax"]) == set(whole.table.corrections["minmax"])
    assert mixed.table.float_nodes == ["layer2.1.conv1", "layer2.1.conv2"]


def test_another_calibrator_gets_corrections_of_its_own(rescaled: Rescaled, repaired: LoweredGraph) -> None:
    assert repaired.with_calibrator is not None
    other = repaired.with_calibrator("minmax")
    same = lowered(rescaled, LoweringRequest("int8", calibrator="minmax", calibration_images=256))
    assert other.model.SerializeToString(deterministic=True) == same.model.SerializeToString(deterministic=True)
    assert other.table is not None
    assert len(other.table.corrections["minmax"]) > 20


def test_a_merged_table_is_tried_with_every_calibrator_where_there_are_pictures(
    rescaled: Rescaled, repaired: LoweredGraph, tmp_path: Path
) -> None:
    table, path = repaired.table, tmp_path / "calibration.json"
    assert table is not None
    assert table.calibrator != CALIBRATOR
    path.write_bytes(replace(table, calibrator="", corrections={}, repairs=[]).json())
    again = lowered(rescaled, LoweringRequest("int8", calibration=path, calibration_images=256))
    assert again.model.SerializeToString(deterministic=True) == repaired.model.SerializeToString(deterministic=True)
    with pytest.raises(CalibrationError, match="give --calibration-images 256, or leave --calibration out"):
        lowered(rescaled, LoweringRequest("int8", calibration=path))


def test_a_table_with_factors_or_corrections_of_another_size_is_refused(
    rescaled: Rescaled, repaired: LoweredGraph, tmp_path: Path
) -> None:
    table, path = repaired.table, tmp_path / "calibration.json"
    assert table is not None
    name = next(iter(table.factors))
    for damaged, what in (
        (replace(table, factors={**table.factors, name: table.factors[name][:-1]}), name),
        (replace(table, factors={"nobody.out": [1.0]}), "nobody.out"),
        (replace(table, corrections={"mse": {"fc": [0.0] * 9}}), "fc"),
        (replace(table, corrections={"mse": {"nobody": [0.0]}}), "nobody"),
    ):
        path.write_bytes(damaged.json())
        with pytest.raises(BadInput, match=f"values for '{what}', which the model has not; leave --calibration out"):
            lowered(rescaled, LoweringRequest("int8", calibration=path), data=False)
    path.write_bytes(replace(table, factors={**table.factors, name: [-1.0] * len(table.factors[name])}).json())
    with pytest.raises(BadInput, match="is no calibration table: a factor of equalization is damaged"):
        table_from_file(path)


def test_one_damaged_picture_is_left_out_wherever_it_is(rescaled: Rescaled) -> None:
    source = built_in("train")
    for broken in (0, 77, 127):

        def image(place: int, broken: int = broken) -> Image.Image:
            if place == broken:
                raise BadInput(f"cannot read {place}")
            return source.image(place)

        damaged = replace(source.subset(np.arange(128)), picture=image)
        steps = Steps()
        found = lower(
            rescaled.graph,
            CalibrationSet(damaged, rescaled.preprocess, as_pixels=False),
            LoweringRequest("int8", calibrator="mse"),
            steps,
        )
        assert found.table is not None
        assert found.table.images == 127


def test_pictures_of_which_too_many_cannot_be_read_are_refused_by_name(rescaled: Rescaled) -> None:
    def image(place: int) -> Image.Image:
        raise BadInput(f"cannot read {place}")

    damaged = replace(built_in("train").subset(np.arange(512)), picture=image)
    with pytest.raises(CalibrationError, match="pictures cannot be read, more than 1 %: cannot read 0"):
        lower(
            rescaled.graph,
            CalibrationSet(damaged, rescaled.preprocess, as_pixels=False),
            LoweringRequest("int8"),
            Steps(),
        )
