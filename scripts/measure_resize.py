"""Measure on photographs what resizing in the graph changes: against Pillow outside, and beside ONNX's own Resize. Prints the table of docs/measured.md.

    python scripts/measure_resize.py FOLDER [--model resnet18]

For that table: astronaut, camera, chelsea, coffee, hubble_deep_field, ihc, motorcycle_left, retina and rocket of scikit-image's wheel (skimage/data),
china and flower of scikit-learn's (sklearn/datasets/images).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from calibration.data import open_source
from exporter import ExportPlan, export
from exporter.graph.pillow_resize import resizing_graph
from runtimes import Bundle, open_runtime
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.preprocess import Preprocess, image_from_pixels

OPSET = 20
MODES = {"bilinear": "linear", "bicubic": "cubic"}
Pixels = Callable[[Image.Image], NDArray[np.uint8]]


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--model", default="resnet18", show_default=True, help="Whose logits are compared; its weights are random."
)
def main(folder: Path, model: str) -> None:
    source = open_source(str(folder))
    pictures = [source.image(place) for place in range(source.count)]
    with tempfile.TemporaryDirectory() as place:
        bundle = Bundle.open(
            export(
                ExportPlan(model, Path(place) / "bundle", weights="random", data=str(folder), uint8_input="full")
            ).folder
        )
        click.echo(
            f"{len(pictures)} photographs, {len({picture.size for picture in pictures})} sizes, {model} of random weights\n"
        )
        click.echo("| filter | resized by | levels that differ | by at most | logit error | other top class |")
        click.echo("| --- | --- | ---: | ---: | ---: | ---: |")
        with open_runtime(bundle, "pytorch") as network:
            for interpolation in MODES:
                steps = replace(bundle.manifest.preprocess, interpolation=interpolation)
                for name, pixels in {
                    "this graph": _by_graph(steps),
                    "ONNX's Resize, antialias": _by_onnx(steps),
                }.items():
                    click.echo(f"| {interpolation} | {name} | {_row(network, steps, pixels, pictures)} |")


def _row(network: Any, steps: Preprocess, pixels: Pixels, pictures: list[Image.Image]) -> str:
    expected = np.stack([steps.pixels(picture) for picture in pictures])
    found = np.stack([pixels(picture) for picture in pictures])
    differences = np.abs(found.astype(int) - expected)
    (reference,), (logits,) = (
        network.run({network.inputs[0].name: steps.normalise(one)}).values() for one in (expected, found)
    )
    error = np.abs(logits - reference).max() / np.abs(reference).max()
    flips = int((logits.argmax(1) != reference.argmax(1)).sum())
    return f"{(differences > 0).mean():.2%} | {differences.max()} | {error:.1e} | {flips} of {len(pictures)}"


def _by_graph(steps: Preprocess) -> Pixels:
    runtime = OnnxRuntime.from_bytes(resizing_graph(steps, OPSET).SerializeToString())

    def pixels(picture: Image.Image) -> NDArray[np.uint8]:
        (levels,) = runtime.run({"picture": steps.picture(picture)[None]}).values()
        return np.asarray(levels[0].transpose(1, 2, 0), np.uint8)

    return pixels


def _by_onnx(steps: Preprocess) -> Pixels:
    """Resize as it is mostly written: of floats, at half pixels, with antialias and the cubic's a as Pillow has it."""
    cropped = replace(steps, resize=None)

    def pixels(picture: Image.Image) -> NDArray[np.uint8]:
        planes = steps.picture(picture).transpose(2, 0, 1)[None].astype(np.float32)
        assert isinstance(steps.resize, int)
        height, width = (steps.resize * side // min(picture.size) for side in (picture.height, picture.width))
        with OnnxRuntime.from_bytes(
            _resize(planes.shape, (height, width), MODES[steps.interpolation]).SerializeToString()
        ) as runtime:
            (levels,) = runtime.run({"planes": planes}).values()
        whole = levels[0].round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        return cropped.pixels(image_from_pixels(whole))

    return pixels


def _resize(shape: tuple[int, ...], size: tuple[int, int], mode: str) -> onnx.ModelProto:
    sizes = numpy_helper.from_array(np.array([*shape[:2], *size]), "sizes")
    node = helper.make_node(
        "Resize", ["planes", "", "", "sizes"], ["resized"], mode=mode, antialias=1, cubic_coeff_a=-0.5
    )
    source = helper.make_tensor_value_info("planes", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("resized", TensorProto.FLOAT, [*shape[:2], *size])
    return helper.make_model(
        helper.make_graph([node], "resize", [source], [result], [sizes]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=9,
    )


if __name__ == "__main__":
    main()
