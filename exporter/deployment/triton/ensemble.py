"""Picture files to classes in one request: a decoder in front of a model that takes pixels of any size."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from exporter.deployment.triton.backends import CPU, ServerBackend
from exporter.deployment.triton.config import (
    ANY,
    Serving,
    batches_freely,
    dims_of,
    output_fields,
    version_policy,
)
from exporter.deployment.triton.pbtxt import Field, Symbol, text_from_fields
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.preprocess import MODES, takes_any_size

PICTURE, PIXELS = "picture", "pixels"
"""What the ensemble takes, and what goes from the decoder to the model."""


def check_ensemble(bundle: Bundle) -> None:
    """Refuse a bundle whose model cannot stand behind a decoder.

    Raises:
        PlanError: it does not take pixels of any size, or other channels than a picture has.
    """
    manifest = bundle.manifest
    if not takes_any_size(manifest.inputs[0]):
        raise PlanError(
            f"--ensemble decodes pictures for a model that takes pixels of any size, and {bundle.folder} does not; "
            "export it with --uint8-input full"
        )
    if manifest.preprocess.channels not in MODES:
        raise PlanError(
            f"--ensemble decodes pictures of 1 or 3 channels, and {bundle.folder} takes {manifest.preprocess.channels}"
            "; leave it out"
        )


def decoder_name(model: str) -> str:
    """The name of the decoder in front of a model."""
    return f"{model}-decoder"


def ensemble_name(model: str) -> str:
    """The name of the decoder and the model as one."""
    return f"{model}-ensemble"


def decoder_code() -> bytes:
    """The decoder's `model.py`."""
    return (resources.files(__package__) / "decoder.py").read_bytes()


def decoder_config(model: str, bundle: Bundle, backend: ServerBackend, serving: Serving) -> str:
    """The decoder's configuration: file contents to uint8 (height, width, channels)."""
    manifest, batching = bundle.manifest, batches_freely(bundle, backend)
    resize = manifest.preprocess.resize
    sides = () if resize is None else resize if isinstance(resize, tuple) else (resize,)
    pixels = dims_of(manifest.inputs[0], batching=batching)
    return text_from_fields(
        [
            ("name", decoder_name(model)),
            ("backend", "python"),
            ("max_batch_size", manifest.batch.max if batching else 0),
            ("input", _pictures(pixels, batching=batching)),
            ("output", (("name", PIXELS), ("data_type", Symbol("TYPE_UINT8")), ("dims", pixels))),
            version_policy(serving),
            ("instance_group", (("count", serving.instances), ("kind", Symbol(CPU)))),
            _parameter("channels", str(manifest.preprocess.channels)),
            _parameter("resize", "x".join(map(str, sides))),
        ]
    )


def ensemble_config(model: str, bundle: Bundle, backend: ServerBackend, serving: Serving) -> str:
    """The configuration of both as one: file contents to the model's outputs."""
    manifest, batching = bundle.manifest, batches_freely(bundle, backend)
    outputs = [spec.name for spec in manifest.outputs]
    decode = _step(decoder_name(model), {PICTURE: PICTURE}, {PIXELS: PIXELS})
    classify = _step(model, {manifest.inputs[0].name: PIXELS}, {name: name for name in outputs})
    return text_from_fields(
        [
            ("name", ensemble_name(model)),
            ("platform", "ensemble"),
            ("max_batch_size", manifest.batch.max if batching else 0),
            ("input", _pictures(dims_of(manifest.inputs[0], batching=batching), batching=batching)),
            *output_fields(bundle, batching=batching),
            version_policy(serving),
            ("ensemble_scheduling", (decode, classify)),
        ]
    )


def _pictures(pixels: Sequence[int], *, batching: bool) -> tuple[Field, ...]:
    """One file for each image: of a batch the second dimension, else as many as the model takes at once."""
    return (("name", PICTURE), ("data_type", Symbol("TYPE_STRING")), ("dims", [1 if batching else pixels[0]]))


def _parameter(name: str, value: str) -> Field:
    return ("parameters", (("key", name), ("value", (("string_value", value),))))


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Field:
    """One model of an ensemble, in its newest version; its tensors' names, and theirs in the ensemble."""
    maps = [("input_map", pair) for pair in inputs.items()] + [("output_map", pair) for pair in outputs.items()]
    named: list[Field] = [(field, (("key", key), ("value", value))) for field, (key, value) in maps]
    return ("step", (("model_name", model), ("model_version", ANY), *named))
