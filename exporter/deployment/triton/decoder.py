"""A model of Triton's Python backend: decodes picture files into pixels, as `resnet-deploy run` reads them.

It needs Pillow and numpy in the server's Python, and nothing else: resnet-export wrote it, and the server runs it.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "GIF", "AVIF", "JPEG2000")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MOST_PIXELS, LONGEST_SIDE = 178_956_970, 1 << 20
FREE_BYTES, MOST_GROWTH = 64 << 20, 400
MOST_RESIZED = 1 << 24
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureRefused(ValueError):
    """A file that is not decoded, which is the sender's to mend."""


def decode(data: bytes, channels: int, resize: list[int]) -> NDArray[np.uint8]:
    """The pixels of a picture file, upright: uint8 (height, width, channels).

    Args:
        channels: 1 or 3.
        resize: to what the model resizes it: the shorter side, or height and width; empty for not at all.

    Raises:
        PictureRefused: it is no picture, damaged, or too large.
    """
    image = _opened(data)
    if image.mode.startswith("I"):  # 16 bits
        levels = (np.arange(1 << 16) / 257).round().astype(np.uint8)
        image = Image.fromarray(levels[np.asarray(image).clip(0, (1 << 16) - 1)])
    if image.mode not in MODES:
        raise PictureRefused(
            f"expected whole numbers in grey or colour, got pixels of mode {image.mode}; save it as a PNG"
        )
    width, height = _resized(image.size, resize)
    if width * height > MOST_RESIZED:
        raise PictureRefused(
            f"expected a picture that is resized to at most {MOST_RESIZED:,} pixels, got {width * height:,} of one of "
            f"{image.height}x{image.width}; cut it"
        )
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _opened(data: bytes) -> Image.Image:
    """The picture of a file, upright. What else a decoder stumbles over, and Pillow's raise whatever they like, is
    damage; what it says of that names objects of this process."""
    try:
        return _open(data)
    except (PictureRefused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureRefused(f"more than {MOST_PIXELS:,} pixels are not read; make it smaller") from error
    except Exception as error:
        raise PictureRefused("not a picture file, or a damaged one") from error


def _open(data: bytes) -> Image.Image:
    """A JPEG is read as one: Pillow looks behind it for further pictures, and fails where that part is damaged."""
    file, is_jpeg = io.BytesIO(data), data[:2] == b"\xff\xd8"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are mostly about metadata
        with JpegImagePlugin.JpegImageFile(file) if is_jpeg else Image.open(file, formats=_formats()) as opened:
            if opened.width * opened.height > MOST_PIXELS or max(opened.size) > LONGEST_SIDE:
                raise PictureRefused(
                    f"it has {opened.width}x{opened.height} pixels, and more than {MOST_PIXELS:,}, or {LONGEST_SIDE:,} "
                    "on a side, are not read; make it smaller"
                )
            pixel_bytes = 1 if opened.mode in ("1", "L", "P") else 4
            if opened.width * opened.height * pixel_bytes > max(FREE_BYTES, MOST_GROWTH * len(data)):
                raise PictureRefused(
                    f"it unpacks to {opened.width}x{opened.height} pixels, more than {MOST_GROWTH} times its size; "
                    "make it smaller"
                )
            opened.load()
            turn = TURNS.get(_orientation(opened))
            image = opened.copy() if turn is None else opened.transpose(turn)
    image.info.clear()  # unused, and Pillow warns of some transparencies on converting
    return image


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _orientation(opened: Image.Image) -> int:
    """By EXIF, or else by XMP, 1 to 8; 1 where neither has one, or they are damaged."""
    alone = Image.new("1", (1, 1))
    if opened.format != "TIFF":  # Pillow turns those itself
        alone.info = {name: value for name, value in opened.info.items() if "xmp" in str(name).lower()}
    for image in (opened, alone):
        try:
            found = image.getexif().get(ORIENTATION)
        except Exception:  # a decoder raises whatever it stumbles over
            continue
        if isinstance(found, int) and found in TURNS:
            return found
    return 1


def _resized(size: tuple[int, int], resize: list[int]) -> tuple[int, int]:
    """The (width, height) to which the model resizes a picture of `size`, (width, height)."""
    if not resize:
        return size
    if len(resize) == 2:
        return resize[1], resize[0]
    short, long = sorted(size)
    scaled = int(resize[0] * long / short)
    return (resize[0], scaled) if size[0] <= size[1] else (scaled, resize[0])


def _error(said: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(said, code))


class TritonPythonModel:
    """What the Python backend loads for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what the model takes from the configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.channels = int(parameters["channels"]["string_value"])
        self.resize = [int(side) for side in re.findall(r"\d+", parameters["resize"]["string_value"])]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request: its pictures' pixels, uint8 (pictures, height, width, channels)."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        files = pb_utils.get_input_tensor_by_name(request, "picture").as_numpy().reshape(-1)
        try:
            pictures = [decode(bytes(data), self.channels, self.resize) for data in files]
        except PictureRefused as error:
            return _error(f"cannot read the picture: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            return _error(f"cannot read the picture: {type(error).__name__}", pb_utils.TritonError.INTERNAL)
        if len({picture.shape for picture in pictures}) > 1:
            said = "expected pictures of one size in one request, got several; send a request for each"
            return _error(said, pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", np.stack(pictures))])
