"""The ranges of an INT8 export: images and tables that they may be of, and the block whose are wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_exports import bundle_fixture, pictures_fixture  # noqa: F401  # pytest finds them by their names
from numpy.typing import NDArray
from PIL import Image
from spoilt import BLOCKS

from calibration.data import built_in
from calibration.observers import observers
from calibration.table import table_from_file
from exporter import ExportPlan
from exporter.graph.probe import noisiest_blocks
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module
from exporter.lowering.precisions import int8
from exporter.lowering.ranges import given_table, measure_ranges
from exporter.lowering.request import CALIBRATOR
from exporter.models.loaded import LoadedModel
from exporter.models.loading import load_model
from exporter.pipeline.choose_images import calibration_set, opened_data
from runtimes import Bundle
from runtimes.errors import BadInput, CalibrationError
from runtimes.progress import Steps


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> tuple[LoadedModel, onnx.ModelProto, ExportPlan]:
    """The shipped model, its simplified graph, and a plan that reuses the bundle's table."""
    plan = ExportPlan(
        "resnet20", tmp_path_factory.mktemp("unused") / "x", precision="int8", calibration=bundle / "calibration.json"
    )
    loaded = load_model(plan.model_request)
    traced = onnx_from_program(
        program_from_module(loaded.module, loaded.preprocess.shape),
        opset=plan.opset,
        batch=Bundle.open(bundle).manifest.batch,
    )
    return loaded, simplify(traced, np.zeros((1, 1, 28, 28), np.float32)), plan


def reuse(loaded: LoadedModel, graph: onnx.ModelProto, plan: ExportPlan) -> object:
    images, request = calibration_set(loaded, plan, opened_data(plan)), plan.lowering_request
    if request.calibration is None:
        return measure_ranges(graph, graph, images, request, Steps())
    return given_table(graph, int8.observed_tensors(graph), images, request)


def changed_table(bundle: Path, folder: Path, **changes: Any) -> Path:
    facts = json.loads((bundle / "calibration.json").read_text())
    for key, value in changes.items():
        facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
    path = folder / "edited.json"
    path.write_text(json.dumps(facts))
    return path


def test_a_table_of_this_model_is_taken_with_and_without_its_images(
    shipped: tuple[LoadedModel, onnx.ModelProto, ExportPlan], pictures: Path
) -> None:
    loaded, graph, plan = shipped
    table = table_from_file(plan.calibration) if plan.calibration else None
    assert reuse(loaded, graph, plan) == reuse(loaded, graph, replace(plan, data=str(pictures))) == table


def test_a_table_of_another_model_data_set_version_or_preprocessing_is_refused_with_what_differs(
    shipped: tuple[LoadedModel, onnx.ModelProto, ExportPlan], bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    loaded, graph, plan = shipped
    other = onnx.ModelProto.FromString(graph.SerializeToString())
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    digest = hashlib.sha256(other.SerializeToString(deterministic=True)).hexdigest()
    with pytest.raises(
        CalibrationError, match=rf"model_sha256 is [0-9a-f]{{64}}, expected {digest}; leave --calibration out"
    ):
        reuse(loaded, other, plan)
    with pytest.raises(CalibrationError, match="measured on other images than built-in: fingerprint"):
        reuse(loaded, graph, replace(plan, data="built-in"))
    with pytest.raises(CalibrationError, match="measured on other images than .*: fingerprint"):
        reuse(loaded, graph, replace(plan, data=str(pictures), calibration_images=100))
    brighter = replace(loaded, preprocess=replace(loaded.preprocess, mean=(0.25,)))
    with pytest.raises(CalibrationError, match=r"preprocess is .*, expected .*mean=\(0\.25,\)"):
        reuse(brighter, graph, plan)
    older = changed_table(bundle, tmp_path, versions={"onnxruntime": "1.0.0"})
    with pytest.raises(
        CalibrationError, match=r"edited\.json was not measured on this: version of onnxruntime is 1\.0\.0, expected"
    ):
        reuse(loaded, graph, replace(plan, calibration=older))
    tensors = json.loads((bundle / "calibration.json").read_text())["tensors"]
    tensors["renamed"] = tensors.pop("relu.out")
    path = tmp_path / "renamed.json"
    path.write_text(json.dumps({**json.loads((bundle / "calibration.json").read_text()), "tensors": tensors}))
    with pytest.raises(BadInput, match=r"renamed\.json has no range for relu\.out; leave --calibration out"):
        reuse(loaded, graph, replace(plan, calibration=path))


def unfit(kind: str) -> NDArray[np.uint8]:
    chance = np.random.default_rng(0)
    kinds: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "few": lambda: np.stack([np.asarray(built_in("train").image(place)) for place in range(20)]),
        "noise": lambda: chance.integers(0, 256, (64, 28, 28), np.uint8),
        "one": lambda: np.repeat(np.asarray(built_in("train").image(0))[None], 64, axis=0),
    }
    return kinds[kind]()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("few", "at least 64 calibration images, got 20"),
        ("noise", "look like random noise"),
        ("one", "one picture repeated"),
    ],
)
def test_images_that_no_range_can_be_measured_from_are_refused(
    shipped: tuple[LoadedModel, onnx.ModelProto, ExportPlan], tmp_path: Path, kind: str, says: str
) -> None:
    loaded, graph, plan = shipped
    np.savez(tmp_path / "set.npz", images=unfit(kind))
    own = replace(plan, calibration=None, data=str(tmp_path / "set.npz"))
    with pytest.raises(CalibrationError, match=says):
        reuse(loaded, graph, own)
    if kind == "few":
        assert reuse(loaded, graph, replace(own, allow_few_images=True)) is not None


@pytest.mark.parametrize("name", observers())
def test_every_calibrator_is_within_budget_on_the_shipped_model(
    shipped: tuple[LoadedModel, onnx.ModelProto, ExportPlan], bundle: Path, name: str
) -> None:
    from runtimes.backends.onnxruntime import OnnxRuntime
    from runtimes.parity.compare import compare

    _, graph, plan = shipped
    assert plan.calibration is not None
    model = int8.simulation(int8.lower(graph, table_from_file(plan.calibration).thresholds(name)))
    golden = np.load(bundle / "golden.npz")
    with OnnxRuntime.from_bytes(model.SerializeToString()) as runtime:
        logits = runtime.run({"input": golden["inputs"][:16]})["logits"]
    assert compare(golden["logits"][:16], logits, int8.BUDGET).violations == ()


@pytest.mark.parametrize(
    ("tensors", "factor", "block"),
    [
        ("input", 1 / 100, "stem"),
        ("input", 30, "stem"),
        ("layer1.0.", 1 / 100, "layer1.0"),
        ("layer1.1.", 1 / 100, "layer1.1"),
        ("layer1.1.relu_1.out", 30, "layer1.1"),  # which the next block reads
        ("layer2.0.", 1 / 100, "layer2.0"),
        ("layer3.2.", 1 / 100, "layer3.2"),
    ],
)
def test_the_block_whose_ranges_are_wrong_is_the_one_that_is_named(
    shipped: tuple[LoadedModel, onnx.ModelProto, ExportPlan], bundle: Path, tensors: str, factor: float, block: str
) -> None:
    _, graph, plan = shipped
    assert plan.calibration is not None
    ranges = table_from_file(plan.calibration).thresholds(CALIBRATOR)
    spoilt = {name: value * factor if name.startswith(tensors) else value for name, value in ranges.items()}
    simulation = int8.simulation(int8.lower(graph, spoilt))
    noises = noisiest_blocks(graph, simulation, np.load(bundle / "golden.npz")["inputs"][:8])
    assert noises[0].block == block
    assert [one.sqnr_db for one in noises] == sorted(one.sqnr_db for one in noises)
    assert sorted(one.block for one in noises) == sorted(BLOCKS)


def test_colour_pictures_and_others_than_the_models_size_are_calibrated_on(
    shipped: tuple[LoadedModel, onnx.ModelProto, ExportPlan], tmp_path: Path
) -> None:
    loaded, graph, plan = shipped
    sizes = [(20, 20), (28, 28), (60, 31), (5, 90)]
    for place in range(64):
        image = (
            built_in("train").image(place).resize(sizes[place % 4]).convert(["L", "RGB", "RGBA", "P"][place // 4 % 4])
        )
        assert isinstance(image, Image.Image)
        image.save(tmp_path / f"{place}.png")
    table = reuse(loaded, graph, replace(plan, calibration=None, data=str(tmp_path)))
    assert getattr(table, "images", 0) == 64
