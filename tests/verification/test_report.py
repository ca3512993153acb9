"""`report.html`: it shows what was measured, believes nothing it is given, and is the same page every time."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import onnx
import pytest
from conftest import TINY_BATCH, TINY_IMAGES, TINY_LABELS, Made
from PIL import Image
from reports import features_fixture, page_of, section, text_of  # noqa: F401  # pytest finds it by its name

from exporter.lowering.qdq.insert import insert_pairs
from exporter.lowering.qdq.targets.tensorrt import place_pairs
from exporter.verification.report import sections as sections_module
from exporter.verification.report.layers import layers_from_model
from exporter.verification.report.page import histogram_rows, html_from_sections
from exporter.verification.report.records import DriftChart, DriftSeries
from exporter.verification.report.sections import section_from_check
from exporter.verification.report.sentences import precision_text, verdict_sentences
from exporter.verification.verdicts import BackendCheck, BundleCheck
from runtimes import TensorSpec, open_runtime
from runtimes.nvidia.engine_file import SCHEMA_VERSION, EngineFacts, LayerFacts, json_from_facts
from runtimes.parity.evidence import compare_backend
from runtimes.preprocess import Preprocess

# --- what the page holds ---


def test_the_page_holds_what_was_measured(turned: Made) -> None:
    said = text_of(page_of(section(turned)))
    (one,) = turned[0].backends
    assert one.answer is not None
    measured = one.answer.report.backends["onnxruntime"]
    for limit in one.answer.limits:
        assert f"{limit.measured} {'✓ kept' if limit.ok else '✗ broken'}" in said
    assert (
        f"{measured.max_relative_error:.2e} {measured.mean_relative_error:.2e} {measured.p99_relative_error:.2e}"
        in said
    )
    assert turned[1].bundle.manifest.files["model.onnx"].sha256 in said
    assert "numpy 2.0.0" in said


def test_every_error_is_in_the_histogram_s_table(turned: Made) -> None:
    (one,) = turned[0].backends
    assert one.answer is not None
    assert one.answer.errors is not None
    rows = histogram_rows({"onnxruntime": one.answer.errors})
    assert sum(counts[0] for _, counts in rows) == one.answer.errors.exact + sum(one.answer.errors.counts)
    assert rows[0][0] == "equal to the last bit"


def test_outputs_that_are_not_finite_leave_the_rest_unjudged(good: Made) -> None:
    evidence = replace(good[2], outputs={"logits": np.full((TINY_IMAGES, 10), np.nan, np.float32)})
    with open_runtime(good[1].bundle) as runtime:
        answer = compare_backend(evidence, "tensorrt", runtime, good[0].budget, TINY_BATCH)
    check = replace(good[0], backends=(*good[0].backends, BackendCheck("tensorrt", "out of budget", "", answer, 0.0)))
    assert verdict_sentences(check)[0] == "tiny-fp32 is out of budget on tensorrt: a reference that is not finite."
    said = text_of(page_of(replace(section(good), check=check)))
    assert "Outputs finite finite ✓ kept not finite ✗ broken" in said
    assert "not judged" in said
    assert "✗ out of budget not finite not finite not finite" in said


@pytest.mark.parametrize(("limit", "drawn"), [(None, False), (1e-3, True), (0.0, False), (1e300, False)])
def test_the_budget_s_largest_error_is_a_line_where_it_is_in_sight(
    turned: Made, limit: float | None, drawn: bool
) -> None:
    check = replace(turned[0], budget=replace(turned[0].budget, max_relative_error=limit))
    assert (">budget's largest<" in page_of(replace(section(turned), check=check))) is drawn


def test_where_nothing_is_off_there_is_nothing_to_draw(good: Made) -> None:
    page = page_of(section(good))
    assert "<svg" not in page
    assert "onnxruntime: all 160 output values, at the largest batch, are the reference's to the last bit." in text_of(
        page
    )


def test_a_flip_shows_the_picture_that_the_model_was_fed(turned: Made) -> None:
    made = section(turned)
    page = page_of(made)
    addresses = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" class="small" alt="golden image (\d+), which was ([^"]+)"', page
    )
    assert len(addresses) == len(made.flips) == made.flip_count == TINY_IMAGES
    preprocess, inputs = turned[1].bundle.manifest.preprocess, turned[2].inputs[:]
    for data, place, said in addresses:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            np.testing.assert_array_equal(
                np.asarray(image)[..., None], preprocess.pixels_from_inputs(inputs[int(place)])
            )
        flip = next(one.flip for one in made.flips if one.flip.image == int(place))
        assert html.unescape(said) == f"{TINY_LABELS[flip.reference]} and became {TINY_LABELS[flip.got]}; it counts"


def test_of_many_flips_the_largest_margins_are_shown(turned: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections_module, "SHOWN_FLIPS", 3)
    made = section(turned)
    margins = sorted(
        (flip.margin for one in turned[0].backends if one.answer is not None for flip in one.answer.flips), reverse=True
    )
    assert [one.flip.margin for one in made.flips] == margins[:3]
    assert "And 13 more, with smaller margins." in text_of(page_of(made))


def test_a_flip_on_two_backends_is_one_picture(turned: Made) -> None:
    (one,) = turned[0].backends
    both = replace(turned[0], backends=(one, replace(one, backend="tensorrt")))
    made = section_from_check(both, *turned[1:])
    assert {flip.backends for flip in made.flips} == {("onnxruntime", "tensorrt")}
    assert "on onnxruntime and tensorrt" in text_of(page_of(made))


@pytest.mark.parametrize("channels", [3, 5])
def test_pictures_of_any_number_of_channels_are_shown(turned: Made, channels: int) -> None:
    preprocess = Preprocess(None, (28, 28), "bilinear", True, (0.5,) * channels, (0.5,) * channels)
    pixels = np.random.default_rng(1).integers(0, 256, (TINY_IMAGES, 28, 28, channels), np.uint8)
    found, plan, evidence = turned
    bundle = replace(plan.bundle, manifest=replace(plan.bundle.manifest, preprocess=preprocess))
    for fed in (preprocess.normalise(pixels), pixels):
        made = section_from_check(
            found, replace(plan, bundle=bundle), replace(evidence, inputs=fed, labels=np.zeros(TINY_IMAGES, np.int64))
        )
        for one in made.flips:
            np.testing.assert_array_equal(one.pixels, pixels[one.flip.image][..., : 3 if channels == 3 else 1])
        assert "labelled kind 0<script>" in text_of(page_of(made))


def test_drift_is_two_plots_and_one_table(good: Made) -> None:
    steps = [
        DriftSeries(step, ("stem", "layer1.0", "head"), (0.0, 0.25, 0.5), (200.0, 12.0, 6.0))
        for step in ("FP32 ONNX", "simulation")
    ]
    page = page_of(
        replace(
            section(good),
            drift=DriftChart(tuple(steps), "layer1.0 is the first out of line"),
            remedy=("Return it to FP32.",),
        )
    )
    assert page.count("<svg ") == 2
    said = text_of(page)
    assert "layer1.0 2.50e-01 12.0 2.50e-01 12.0" in said
    assert "layer1.0 is the first out of line" in said
    assert "Return it to FP32." in said


@pytest.mark.parametrize("errors", [(0.0, 0.0), (0.02, 0.03), (1e-7, 30.0), (0.1, sys.float_info.max)])
def test_drift_has_ticks_whatever_its_range(good: Made, errors: tuple[float, float]) -> None:
    names = ("a\x00b/中文/\udcff", "x" * 200 + "the end")
    page = page_of(
        replace(section(good), drift=DriftChart((DriftSeries("simulation", names, errors, (200.0, 6.0)),), ""))
    )
    plot = page[page.index("Relative error after each block") : page.index("Signal to quantization noise after")]
    assert len(re.findall(r">1e[-+]\d+<", plot)) >= 2
    assert ">a?b/??/?<" in plot
    assert ">...xxxxxxthe end<" in plot
    assert "x" * 200 in page


def test_features_get_a_row_for_each_output(good: Made, features: BundleCheck) -> None:
    manifest = replace(
        good[1].bundle.manifest,
        outputs=(TensorSpec("layer1", "float32", ("batch", 2)), TensorSpec("layer2", "float32", ("batch", 2))),
    )
    said = text_of(page_of(replace(section(good), check=features, manifest=manifest)))
    assert "features layer1 and layer2" in said
    assert "onnxruntime layer1 0.00e+00" in said
    assert "Agreement" not in said
    assert "error, relative to the output's largest value" in said


def test_engines_are_told_by_their_sidecars(good: Made) -> None:
    found, plan, evidence = good
    folder = plan.bundle.folder / "engines"
    folder.mkdir()
    sha256 = plan.bundle.manifest.files["model.onnx"].sha256
    layers = LayerFacts({"convolution": {"INT8": 7}}, {"INT8": 7}, ("fc<b>",))
    facts = EngineFacts(
        SCHEMA_VERSION,
        "tensorrt",
        "10.3",
        ("sm87",),
        "linux-aarch64",
        None,
        TINY_BATCH,
        "fp32",
        "strong",
        {},
        layers,
        1.0,
        False,
        sha256,
        "0" * 64,
        1,
        "k",
    )
    (folder / "fits.json").write_bytes(json_from_facts(facts))
    (folder / "other.json").write_bytes(json_from_facts(replace(facts, onnx_sha256="1" * 64)))
    (folder / "rubbish.json").write_bytes(b"{")
    (folder / "fits.check.json").write_bytes(b"{}")  # the check of an engine from a board
    (folder / ".half.partial-77.json").write_bytes(b"{}")  # of a build that is not done
    try:
        said = text_of(page_of(section_from_check(found, plan, evidence)))
        assert ("fits.check" in said, "half" in said) == (False, False)
    finally:
        shutil.rmtree(folder)
    assert (
        "Engine fits tensorrt 10.3 for sm87 on linux-aarch64, built ahead of time and not proven yet. Convolutions: 7 in INT8."
        in said
    )
    assert "Not in the promised precision: fc<b>." in said
    assert "Engine other: it was built from another model.onnx" in said
    assert re.search(r"Engine rubbish: \S*rubbish\.json", said)


def test_layers_say_what_they_read(tiny_model: Path) -> None:
    model = onnx.load(tiny_model / "model.onnx")
    floats = layers_from_model(model)
    assert {layer.precision for layer in floats} == {"FP32"}
    assert not any(layer.remark for layer in floats)
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"node{place}"
    placement = place_pairs(model)
    layers = layers_from_model(insert_pairs(model, placement, dict.fromkeys(placement.observed, 3.0)))
    convolutions = [layer for layer in layers if layer.operator == "Conv"]
    assert {(layer.precision, layer.weights) for layer in convolutions} == {("INT8", "INT8 per channel")}
    assert {layer.precision for layer in layers if layer.operator == "Add"} == {"FP32 + INT8"}
    assert {layer.precision for layer in layers if layer.operator in ("Gemm", "GlobalAveragePool")} == {"FP32"}
    assert precision_text(layers).startswith(
        f"{len(convolutions)} of {len(convolutions)} convolutions compute in INT8, with "
    )
    assert [layer.macs for layer in layers if layer.macs] == [layer.macs for layer in floats if layer.macs]


def test_without_the_onnx_package_the_page_says_so(good: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "The onnx package was not here to read model.onnx with." in text_of(page_of(section(good)))


# --- what it was given, it does not believe ---


def test_hostile_names_are_text(good: Made, turned: Made) -> None:
    evil = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'$\\frac$"
    flipped = section(turned)
    check = replace(
        turned[0],
        name=evil,
        reference=evil,
        evidence=evil,
        left_out=(evil,),
        backends=(*turned[0].backends, BackendCheck(evil, "failed", evil, None, 0.0)),
    )
    manifest = replace(flipped.manifest, versions={evil: evil}, model=replace(flipped.manifest.model, name=evil))
    steps = (DriftSeries(evil, (evil, "head"), (0.1, 0.2), (20.0, 14.0)),)
    hostile = replace(
        flipped, check=check, manifest=manifest, drift=DriftChart(steps, evil), reproduce=(evil,), remedy=(evil,)
    )
    page = page_of(section(good), hostile)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("<img ") == len(flipped.flips)
    assert "&lt;script&gt;alert(&#39;label&#39;)&lt;/script&gt;" in page


def test_nothing_points_out_of_the_page(turned: Made) -> None:
    page = page_of(section(turned))
    assert "default-src 'none'" in page
    links = re.findall(r"""(?:href|src)="([^"]*)"|url\(([^)]*)\)""", page)
    assert links
    assert all(one.startswith(("#", "data:image/png;base64,")) for pair in links for one in pair if one)


def test_the_same_input_gives_the_same_bytes(good: Made, turned: Made) -> None:
    made = [section(good), section(turned)]
    first = html_from_sections(made)
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "svg.hashsalt": "another"}):
        assert html_from_sections([section(good), section(turned)]) == first
    assert str(good[1].bundle.folder.parent).encode() not in first
    slower = replace(turned[0], backends=tuple(replace(one, seconds=99.5) for one in turned[0].backends))
    assert html_from_sections([made[0], replace(made[1], check=slower)]) == first


def test_ids_are_unique_where_several_plots_stand_in_one_page(turned: Made) -> None:
    steps = (DriftSeries("simulation", ("stem", "head"), (0.1, 0.2), (20.0, 14.0)),)
    made = replace(section(turned), drift=DriftChart(steps, "No block is out of line."))
    page = page_of(made, made)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-(?:labelledby|describedby)="([^"]+)"', page)
    assert {name for names in used for name in names if name} <= set(ids)
