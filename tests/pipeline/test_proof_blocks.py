"""The proof takes images in blocks, as many as decide, and holds none of those that went by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from memory_growth import peak_growth_below
from numpy.typing import NDArray
from PIL import Image

from calibration.data import ImageSource, built_in
from exporter import ExportPlan
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.precisions import fp16, fp32, int8
from exporter.lowering.ranges import chosen_places
from exporter.models.loading import load_model
from exporter.pipeline.choose_images import opened_data, proof_images
from exporter.pipeline.images import Candidate, Graphs, Images, Proof
from exporter.pipeline.proof_images import PictureReader, ProofImages
from exporter.pipeline.prove import prove
from exporter.pipeline.refusal import images_needed, why_refused
from exporter.pipeline.report_page import page_from_proof
from runtimes import Bundle
from runtimes.errors import BadInput, LowerError
from runtimes.parity.budget import Budget
from runtimes.parity.flips import top_classes
from runtimes.preprocess import Preprocess
from runtimes.progress import Steps
from runtimes.specs import BatchRange

BATCH = BatchRange(1, 4, 8)
PREPROCESS = Preprocess(None, (28, 28), "bilinear", True, (0.5,), (0.25,))
COUNTED = Budget(own_error=0.05, min_agreement=0.98, max_accuracy_drop=0.01, confidence=0.95)


def source_of(count: int, broken: Collection[int] = (), labels: NDArray[np.int64] | None = None) -> ImageSource:
    """Pictures of noise, each another one, made as they are asked for."""

    def image(place: int) -> Image.Image:
        if place in broken:
            raise BadInput(f"cannot read the picture {place}")
        return Image.fromarray(np.random.default_rng(place).integers(0, 256, (28, 28), np.uint8))

    return ImageSource("noise", count, image, labels)


def images_of(source: ImageSource, most: int = 2000, said: list[str] | None = None) -> ProofImages:
    steps = Steps(lambda step, done=0, total=0: None if said is None else said.append(step))
    reader = PictureReader(source, PREPROCESS, None, steps)
    return ProofImages.reading(reader, np.arange(source.count), most, 64)


def proof_of(folder: Path, images: ProofImages, budget: Budget, said: list[tuple[int, int]] | None = None) -> Proof:
    graph = onnx.load(folder / "model.onnx")
    candidate = Candidate(folder, Graphs(graph, None), BATCH, ("onnxruntime",))
    return prove(
        candidate,
        images,
        budget=budget,
        progress=lambda step, done=0, total=0: None if said is None else said.append((done, total)),
    )


@pytest.fixture(scope="module")
def answers(tiny_model: Path) -> NDArray[np.int64]:
    """The reference's classes of 2,000 pictures: labels of which it has every one right."""
    proof = proof_of(tiny_model, images_of(source_of(2000)), Budget(own_error=0.0, max_relative_error=1e-3))
    assert (proof.report.ok, proof.report.images) == (True, 2000)
    return top_classes(proof.outputs["logits"])


@pytest.fixture(scope="module")
def wrong(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose classes are others."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "reference.pt2").symlink_to(tiny_model / "reference.pt2")
    model = onnx.load(tiny_model / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, axis=0), tensor.name))
    onnx.save(model, folder / "model.onnx")
    return folder


# --- how many images ---


def test_no_more_images_are_run_than_decide(tiny_model: Path, answers: NDArray[np.int64]) -> None:
    """With four looks, 98 % takes 247 images that all agree, and a point of accuracy 498 of which none is lost."""
    unlabelled = proof_of(tiny_model, images_of(source_of(2000)), COUNTED)
    assert (unlabelled.report.ok, unlabelled.report.images) == (True, 256)
    labelled = proof_of(tiny_model, images_of(source_of(2000, labels=answers)), COUNTED)
    assert (labelled.report.ok, labelled.report.images) == (True, 512)
    assert labelled.accuracy is not None
    assert (labelled.accuracy.images, labelled.accuracy.top1, labelled.accuracy.lost) == (512, 1.0, 0)
    assert len(labelled.outputs["logits"]) == len(labelled.places) == 512


def test_what_is_broken_is_broken_at_the_first_look(wrong: Path, answers: NDArray[np.int64]) -> None:
    proof = proof_of(wrong, images_of(source_of(2000, labels=answers)), COUNTED)
    (answer,) = proof.answers.values()
    assert (proof.report.ok, proof.report.images, answer.verdict) == (False, 256, "broken")


def test_the_page_calls_a_flipped_picture_by_its_name(wrong: Path, exported: Path) -> None:
    images = images_of(replace(source_of(40), names=tuple(f"shoes/{place}.png" for place in range(40))))
    proof = proof_of(wrong, images, Budget(own_error=0.0))
    bundle = Bundle(wrong, replace(Bundle.open(exported).manifest, files={}))
    page = page_from_proof(bundle, images, proof, None).decode()
    assert "shoes/39.png" in page
    assert "golden image" not in page
    assert source_of(1).name_of(0) == "noise 0"


def test_limits_of_one_figure_are_judged_once_over_all_images(tiny_model: Path) -> None:
    assert proof_of(tiny_model, images_of(source_of(100)), fp32.BUDGET).report.images == 100
    assert proof_of(tiny_model, images_of(source_of(100), most=70), fp32.BUDGET).report.images == 70


@pytest.mark.parametrize(("count", "most"), [(100, 2000), (2000, 100), (1, 2000)])
def test_too_few_images_leave_it_undecided_and_say_how_many_decide(tiny_model: Path, count: int, most: int) -> None:
    proof = proof_of(tiny_model, images_of(source_of(count), most), COUNTED)
    (answer,) = proof.answers.values()
    assert (proof.report.ok, proof.report.images) == (False, min(count, most))
    assert (answer.verdict, images_needed(answer)) == ("undecided", 133)
    assert "some 133 images would decide it" in proof.report.backends["onnxruntime"].undecided[0]
    assert proof_of(tiny_model, images_of(source_of(2000), most=133), COUNTED).report.ok


@pytest.mark.parametrize(
    ("parts", "wanted", "says"),
    [
        (1, 2000, "--data with some 33 more pictures"),
        (2, 2000, "--data with some 66 more pictures"),
        (1, 100, "--data with some 33 more pictures and --proof-images 133"),
    ],
)
def test_an_undecided_export_asks_for_so_many_more_pictures_as_its_proof_is_short_of(
    tiny_model: Path, parts: int, wanted: int, says: str
) -> None:
    """Pictures that were calibrated on are no proof, and of those that choose blocks as many are put aside."""
    images = replace(images_of(source_of(100)), parts=parts, wanted=wanted)
    proof = proof_of(tiny_model, images, COUNTED)
    lowering: Any = None  # not asked where nothing is broken
    assert why_refused(proof, images, lowering).endswith(f"would decide it; give {says}")


def test_more_images_that_are_looked_at_more_often_have_to_be_more(tiny_model: Path) -> None:
    """99.6 % takes 674 images in one look; of so many there are two."""
    budget = replace(COUNTED, min_agreement=0.996)
    (answer,) = proof_of(tiny_model, images_of(source_of(260)), budget).answers.values()
    needed = images_needed(answer)
    assert answer.images_needed == 674
    assert needed is not None
    assert needed > 674
    assert proof_of(tiny_model, images_of(source_of(2000), most=needed), budget).report.ok
    assert not proof_of(tiny_model, images_of(source_of(2000), most=needed - 2), budget).report.ok


def test_the_progress_counts_the_images_of_the_most_there_may_be(tiny_model: Path) -> None:
    said: list[tuple[int, int]] = []
    proof_of(tiny_model, images_of(source_of(2000)), COUNTED, said)
    done = [one for one, _ in said]
    assert {total for _, total in said} == {2000}
    assert done == sorted(done)
    assert done[-1] == 256
    assert len(set(done)) > 32  # it moves within a block


# --- which images ---


@pytest.mark.parametrize("place", [0, 31, 63, 64, 300, 511])
def test_a_picture_that_cannot_be_read_is_left_out_and_named_wherever_it_stands(tiny_model: Path, place: int) -> None:
    said: list[str] = []
    images = images_of(source_of(512, broken={place}), said=said)
    proof = proof_of(tiny_model, images, fp32.BUDGET)
    others = np.delete(np.arange(512), place)
    assert (proof.report.ok, proof.places.tolist()) == (True, others.tolist())
    assert said == [f"left out: cannot read the picture {place}"]
    np.testing.assert_array_equal(
        images.at(others[[0, 400]]).inputs, images_of(source_of(512)).at(others[[0, 400]]).inputs
    )


def test_pictures_that_cannot_be_read_are_replaced_by_others_up_to_the_most(tiny_model: Path) -> None:
    images = images_of(source_of(200, broken=range(90)), most=100)
    assert proof_of(tiny_model, images, fp32.BUDGET).places.tolist() == list(range(90, 190))
    with pytest.raises(BadInput, match="none of the 70 pictures of noise can be read; give others"):
        images_of(source_of(70, broken=range(70)))


def chosen(plan: ExportPlan) -> list[Images]:
    loaded = load_model(plan.model_request)
    return list(proof_images(loaded, plan, opened_data(plan), int8.BUDGET, Steps()).blocks())


@pytest.mark.parametrize(("calibrated", "left"), [(512, 488), (732, 268), (733, 1000)])
def test_calibration_pictures_are_no_proof_where_others_can_decide(calibrated: int, left: int) -> None:
    """268 show that no point of accuracy is lost, where none is."""
    plan = ExportPlan("resnet20", Path("b"), precision="int8", data="built-in", calibration_images=calibrated)
    blocks = chosen(plan)
    places = np.concatenate([block.places for block in blocks if block.places is not None])
    assert len(set(places.tolist())) == len(places) == left
    used = np.isin(places, chosen_places(built_in("train"), plan.lowering_request))
    assert used.sum() == (0 if left < 1000 else calibrated)


def test_the_first_images_are_spread_over_the_classes() -> None:
    plan = ExportPlan("resnet20", Path("b"), precision="int8", data="built-in")
    first = chosen(plan)[0]
    assert first.labels is not None
    assert set(np.bincount(first.labels, minlength=10).tolist()) <= {6, 7}
    again = chosen(plan)[0]
    np.testing.assert_array_equal(first.inputs, again.inputs)


# --- what is held ---


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """All of them as the network takes them are 361 MB."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=16), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    program = program_from_module(network.eval(), (3, 224, 224))
    onnx.save(onnx_from_program(program, opset=20, batch=BATCH), tmp_path / "model.onnx")
    save_program(program, tmp_path / "reference.pt2")
    preprocess = Preprocess(None, (224, 224), "bilinear", True, (0.5,) * 3, (0.25,) * 3)
    source = ImageSource("colours", 600, lambda place: Image.new("RGB", (224, 224), (place % 256, place // 3, 9)))

    def images(most: int) -> ProofImages:
        return ProofImages.reading(PictureReader(source, preprocess, None, Steps()), np.arange(600), most, 64)

    assert proof_of(tmp_path, images(64), fp32.BUDGET).report.ok  # what both libraries take for themselves
    with peak_growth_below(150):
        assert proof_of(tmp_path, images(600), fp32.BUDGET).report.images == 600


# --- what is wrong ---


def test_a_tensor_that_one_picture_of_a_late_block_overflows_is_named(tiny_model: Path, tmp_path: Path) -> None:
    original = onnx.load(tiny_model / "model.onnx")
    lowered = fp16.lower(original, {})
    onnx.save(lowered, tmp_path / "model.onnx")
    (tmp_path / "reference.pt2").symlink_to(tiny_model / "reference.pt2")
    preprocess = Preprocess(None, (28, 28), "bilinear", True, (0.5,), (2e-6,))

    def image(place: int) -> Image.Image:
        low, high = (0, 256) if place == 177 else (127, 129)
        return Image.fromarray(np.random.default_rng(place).integers(low, high, (28, 28), np.uint8))

    def images(count: int) -> ProofImages:
        reader = PictureReader(ImageSource("grey", count, image), preprocess, None, Steps())
        return ProofImages.reading(reader, np.arange(count), count, 64)

    candidate = Candidate(tmp_path, Graphs(original, fp16.simulation(lowered)), BATCH, ())
    assert prove(candidate, images(177), budget=fp16.BUDGET).report.backends["simulation"].finite
    with pytest.raises(LowerError, match=r"the values of '\S+' are beyond the precision's range on real images"):
        prove(candidate, images(178), budget=fp16.BUDGET)
