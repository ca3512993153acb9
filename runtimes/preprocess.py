"""From an image file to the array a model takes. The steps are data: they stand in the manifest and travel with the model."""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from runtimes.errors import BadInput, PlanError
from runtimes.specs import PICTURE, TensorSpec

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PIXELS = "uint8"
"""The type of the input of a model with its preprocessing inside: uint8 (batch, height, width, channels). Where height and width are free, the model
takes pictures of any size, and resizes and crops them itself."""
MODES = {1: "L", 3: "RGB"}
LEVELS = 255


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale to 0..1, normalise: torchvision's `ImageClassification` preset, without torchvision.

    Attributes:
        resize: the shorter side in pixels, or (height, width); None leaves the size alone.
        crop: (height, width) of the model's input, cut from the centre; a smaller image is padded with black.
        interpolation: nearest, bilinear, bicubic or lanczos.
        antialias: filter before shrinking, as Pillow does. Without it, bicubic is sharper than torch's (Keys' a is -1, not -0.75).
        mean, std: one value per channel, for pixels scaled to 0..1. Their count is the number of channels.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    interpolation: str
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = [*self.crop, *(self.resize if isinstance(self.resize, tuple) else [1 if self.resize is None else self.resize])]
        if min(sizes) < 1:
            raise PlanError(f"expected sizes of at least one pixel, got resize {self.resize} and crop {self.crop}")
        if self.interpolation not in RESAMPLING:
            raise PlanError(f"expected an interpolation among {', '.join(RESAMPLING)}, got '{self.interpolation}'")
        if self.interpolation == "lanczos" and not self.antialias:
            raise PlanError("expected lanczos with antialias, got it without; choose bilinear or bicubic")
        if len(self.mean) != len(self.std) or not self.mean:
            raise PlanError(f"expected one mean and one standard deviation per channel, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(value) for value in self.mean) or not all(math.isfinite(value) and value > 0 for value in self.std):
            raise PlanError(f"expected finite means and positive standard deviations, got mean {self.mean} and std {self.std}")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one input."""
        return (self.channels, *self.crop)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """One image as float32 (channels, height, width).

        Raises:
            BadInput: the model does not take pictures (it has neither one nor three channels).
        """
        return self.normalised(self.pixels(image))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """One image resized and cropped, uint8 (height, width, channels): what a model with its preprocessing inside takes.

        Raises:
            BadInput: as above.
        """
        return self._array(self._cropped(self._resized(self._converted(image))))

    def picture(self, image: Image.Image) -> NDArray[np.uint8]:
        """One image as it is, uint8 (height, width, channels): what a model takes that resizes and crops itself.

        Raises:
            BadInput: as above.
        """
        return self._array(self._converted(image))

    def normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (..., height, width, channels) scaled and normalised, float32 (..., channels, height, width)."""
        planes = np.moveaxis(pixels.astype(np.float32) / np.float32(LEVELS), -1, -3)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return np.ascontiguousarray((planes - mean) / std)

    def pixels_from_inputs(self, inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The pixels that `normalised` made these inputs of, to the last bit: uint8 (..., height, width, channels)."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        levels = np.rint((inputs * std + mean) * LEVELS)
        return np.ascontiguousarray(np.moveaxis(levels.astype(np.uint8), -3, -1))

    def batch(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Images as float32 (images, channels, height, width)."""
        return np.stack([self(image) for image in images])

    def outside(self, pixels: NDArray[np.uint8], *, any_size: bool) -> NDArray[np.float32]:
        """What a model without its preprocessing inside takes in place of pixels, uint8 (images, height, width, channels), of its size or any."""
        if not any_size:
            return self.normalised(pixels)
        return self.batch([image_from_pixels(picture) for picture in pixels])

    def _converted(self, image: Image.Image) -> Image.Image:
        if self.channels not in MODES:
            raise BadInput(f"expected a model of 1 or 3 channels to feed pictures to, got {self.channels}; feed arrays instead")
        return image.convert(MODES[self.channels])

    def _array(self, image: Image.Image) -> NDArray[np.uint8]:
        return np.array(image, np.uint8).reshape(image.height, image.width, self.channels)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short, long = sorted(image.size)
            scaled = int(self.resize * long / short)  # torchvision's rounding
            width, height = (self.resize, scaled) if image.width <= image.height else (scaled, self.resize)
        if (width, height) == image.size:
            return image
        if self.antialias:
            # Columns first, in two steps: Pillow does so until 12, and 13 starts with the rows where it loses far more of them, one level off.
            columns = image.resize((width, image.height), RESAMPLING[self.interpolation])
            return columns.resize((width, height), RESAMPLING[self.interpolation])
        # Pillow's `resize` always filters; an affine transform samples the four (or sixteen) nearest pixels.
        return image.transform((width, height), Image.Transform.EXTENT, (0, 0, *image.size), RESAMPLING[self.interpolation])

    def _cropped(self, image: Image.Image) -> Image.Image:
        height, width = self.crop
        if image.width < width or image.height < height:
            left, top = max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)
            padded = Image.new(image.mode, (max(width, image.width), max(height, image.height)))
            padded.paste(image, (left, top))
            image = padded
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


def takes_any_size(spec: TensorSpec) -> bool:
    """Does the input take pictures of any size? Otherwise it takes images of the model's size."""
    return spec.dtype == PIXELS and spec.shape[1:3] == PICTURE


def image_from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """The picture of pixels (height, width, 1 or 3)."""
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])


def open_image(path: Path) -> Image.Image:
    """The picture in a file, upright (EXIF) and in eight bits.

    Raises:
        BadInput: the file is missing or is no picture that Pillow reads.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            raise OSError("it is no file")
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
        image.info.pop("transparency", None)  # unused, and Pillow warns of some on converting
    except Exception as error:  # a decoder raises whatever it stumbles over: OSError, SyntaxError, ValueError, RuntimeError (AVIF)
        raise BadInput(f"cannot read the picture {path}: {error}") from error
    if image.mode in ("F", "LAB"):
        raise BadInput(f"{path}: expected whole numbers in grey or colour, got pixels of mode {image.mode}; save it as a PNG")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips at 255 instead of scaling
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    return image
