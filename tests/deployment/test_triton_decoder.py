"""The decoder that stands in a repository reads pictures to the bit as `resnet-deploy run` does."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from any_size import noise, preprocess
from numpy.typing import NDArray
from PIL import Image

from exporter.deployment.triton.ensemble import decoder_code
from runtimes.errors import BadInput
from runtimes.picture_file import open_image


@dataclass(frozen=True)
class Tensor:
    name: str
    values: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.values


@dataclass(frozen=True)
class TritonError:
    said: str
    code: str = "internal"
    INTERNAL: ClassVar = "internal"
    INVALID_ARG: ClassVar = "invalid"


@dataclass(frozen=True)
class InferenceResponse:
    tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


@pytest.fixture(name="decoder")
def decoder_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file as the server loads it, in a room with what the Python backend has there."""
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.InferenceResponse, backend.TritonError = Tensor, InferenceResponse, TritonError
    backend.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    path = tmp_path / "model.py"
    path.write_bytes(decoder_code())
    spec = importlib.util.spec_from_file_location("decoder_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pictures(folder: Path) -> Iterator[Path]:
    """One of each kind that is read in its own way."""
    colour, turned = noise(40, 30), Image.Exif()
    for orientation in range(1, 9):
        turned[0x0112] = orientation
        yield saved(colour, folder / f"turned-{orientation}.jpg", exif=turned)
        yield saved(colour, folder / f"turned-{orientation}.png", exif=turned)
    yield saved(colour, folder / "turned.tif", exif=turned)
    yield saved(noise(40, 30, 1), folder / "grey.png")
    yield saved(colour.convert("CMYK"), folder / "print.jpg")
    yield saved(colour.convert("RGBA"), folder / "alpha.webp", lossless=True)
    yield saved(colour.convert("P"), folder / "palette.gif")
    yield saved(colour.convert("1"), folder / "bits.bmp")
    yield saved(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), folder / "deep.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_run_to_the_bit(decoder: Any, tmp_path: Path, channels: int) -> None:
    prepared = preprocess(channels=channels)
    for path in pictures(tmp_path):
        expected = prepared.picture(open_image(path))
        np.testing.assert_array_equal(decoder.decode(path.read_bytes(), channels, [32]), expected, path.name)


@pytest.mark.parametrize("resize", [None, 32, (32, 20)])
def test_a_strip_is_refused_where_run_refuses_it(decoder: Any, tmp_path: Path, resize: Any) -> None:
    sides = [] if resize is None else [resize] if isinstance(resize, int) else list(resize)
    prepared = preprocess(resize=resize)
    for size in ((1, 16500), (16500, 1)):
        path = saved(Image.new("RGB", size), tmp_path / "strip.png")
        try:
            expected: Any = prepared.picture(open_image(path))
        except BadInput:
            with pytest.raises(ValueError, match="cut it"):
                decoder.decode(path.read_bytes(), 3, sides)
        else:
            np.testing.assert_array_equal(decoder.decode(path.read_bytes(), 3, sides), expected)


def answers(decoder: Any, *requests: list[bytes]) -> list[Any]:
    parameters = {"channels": {"string_value": "3"}, "resize": {"string_value": "32x30"}}
    model = decoder.TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    assert (model.channels, model.resize) == (3, [32, 30])
    found: list[Any] = model.execute([{"picture": Tensor("picture", np.array(one, np.object_))} for one in requests])
    return found


def test_each_request_has_its_own_answer_and_its_own_error(decoder: Any) -> None:
    def png(height: int, width: int) -> bytes:
        file = io.BytesIO()
        noise(height, width).save(file, "PNG")
        return file.getvalue()

    good, bad, mixed, deep = answers(
        decoder, [png(5, 4), png(5, 4)], [b"no picture"], [png(5, 4), png(4, 5)], [floating()]
    )
    (tensor,) = good.tensors
    assert (tensor.name, tensor.values.shape, tensor.values.dtype) == ("pixels", (2, 5, 4, 3), np.uint8)
    assert bad.error == TritonError("cannot read the picture: not a picture file, or a damaged one", "invalid")
    assert mixed.error.said.startswith("expected pictures of one size in one request")
    assert "got pixels of mode F" in deep.error.said
    assert (mixed.error.code, deep.error.code) == ("invalid", "invalid")


def test_too_many_pixels_are_not_called_damage_and_a_full_memory_is_the_servers(
    decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = b"P4 20000 20000 "
    (answer,) = answers(decoder, [large])
    assert answer.error == TritonError(
        "cannot read the picture: more than 178,956,970 pixels are not read; make it smaller", "invalid"
    )

    def full(_: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, "_open", full)
    (answer,) = answers(decoder, [large])
    assert answer.error == TritonError("cannot read the picture: MemoryError", "internal")


def floating() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(file, "TIFF")
    return file.getvalue()
