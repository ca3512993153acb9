"""Preprocess an image into the array a model takes. The steps are data: they stand in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtimes.errors import BadInput, PlanError
from runtimes.picture_file import Picture
from runtimes.picture_file import open_image as open_image  # as a part of this module's interface
from runtimes.specs import PICTURE, TensorSpec

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PIXELS = "uint8"
"""The input type of a model with its preprocessing inside: uint8 (batch, height, width, channels). If height and width
are free, the model takes pictures of any size, and resizes and crops them itself."""
MODES = {1: "L", 3: "RGB"}
WITH_ALPHA = {2: "LA", 4: "RGBA"}
"""Pillow's modes whose transparency is a channel like the others, for models of 2 or 4 channels."""
LEVELS = 255
SMALLEST_VALUE, LARGEST_VALUE = (float(value) for value in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
"""What a float32 holds with all its digits: mean and standard deviation become such."""
ChannelsOrder = Literal["rgb", "bgr"]
BGR: ChannelsOrder = "bgr"
LONGEST_CROP = 1 << 13
"""In pixels, of a model's input: both sides so long are 67 million of them."""
MOST_RESIZED, LONGEST_RESIZED = 1 << 24, 1 << 16
"""In pixels, of all and of one side. Only long strips get so large when they are resized, and of those only the crop's
part is resized."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop the centre, scale to 0..1, normalise: torchvision's `ImageClassification` preset, without
    torchvision.

    Attributes:
        resize: the shorter side in pixels, or (height, width); None leaves the size alone.
        crop: (height, width) of the model's input, cut from the centre; a smaller image is padded with black.
        interpolation: nearest, bilinear, bicubic or lanczos.
        antialias: filter before shrinking, as Pillow does. Without it, bicubic is sharper than torch's (Keys' a is -1,
            not -0.75).
        mean, std: one value per channel, for pixels scaled to 0..1, in the order of a picture's channels (red, green,
            blue), whatever order the model takes. Their count is the number of channels.
        channels_order: in which order the model takes three channels: `rgb`, as pictures have them, or `bgr`, as Caffe
            and OpenCV do. It is that of normalised inputs; pixels are always those of a picture, and a model that
            takes pixels changes their order itself.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    interpolation: str
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_order: ChannelsOrder = "rgb"

    def __post_init__(self) -> None:
        sizes = [
            *self.crop,
            *(self.resize if isinstance(self.resize, tuple) else [1 if self.resize is None else self.resize]),
        ]
        if min(sizes) < 1:
            raise PlanError(f"expected sizes of at least one pixel, got resize {self.resize} and crop {self.crop}")
        if max(self.crop) > LONGEST_CROP or max(sizes) > LONGEST_RESIZED:
            raise PlanError(
                f"expected a crop of at most {LONGEST_CROP:,} and a resize of at most {LONGEST_RESIZED:,} pixels, got "
                f"{self.crop} and {self.resize}; take smaller ones"
            )
        if self.interpolation not in RESAMPLING:
            raise PlanError(f"expected an interpolation among {', '.join(RESAMPLING)}, got '{self.interpolation}'")
        if self.interpolation == "lanczos" and not self.antialias:
            raise PlanError("expected lanczos with antialias, got it without; choose bilinear or bicubic")
        if len(self.mean) != len(self.std) or not self.mean:
            raise PlanError(
                f"expected one mean and one standard deviation per channel, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(abs(value) <= LARGEST_VALUE for value in self.mean) or not all(
            SMALLEST_VALUE <= value <= LARGEST_VALUE for value in self.std
        ):
            raise PlanError(
                f"expected finite means and positive standard deviations, got mean {self.mean} and std {self.std}"
            )
        if self.channels_order not in get_args(ChannelsOrder):
            raise PlanError(f"expected a channels_order of rgb or bgr, got '{self.channels_order}'")
        if self.channels_order == BGR and self.channels != 3:
            raise PlanError(f"expected three channels for the order bgr, got {self.channels}; take rgb")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one input."""
        return (self.channels, *self.crop)

    def __call__(self, picture: Picture) -> NDArray[np.float32]:
        """Preprocess one picture: float32 (channels, height, width).

        Raises:
            BadInput: the picture has other channels than the model. Grey and colour pictures fit both 1 and 3 channels.
        """
        return self.normalise(self.pixels(picture))

    def pixels(self, picture: Picture) -> NDArray[np.uint8]:
        """Resize and crop one picture, for a model that normalises itself: uint8 (height, width, channels).

        Raises:
            BadInput: as above.
        """
        return np.dstack([np.asarray(self._resize_and_crop(part)) for part in self._parts(picture)])

    def picture(self, picture: Picture) -> NDArray[np.uint8]:
        """One picture as it is, for a model that resizes and crops itself: uint8 (height, width, channels).

        Raises:
            BadInput: as above; or it is a strip, and resizing all of it would make more than MOST_RESIZED pixels.
        """
        parts = self._parts(picture)
        width, height = self._resized_size(parts[0].size)
        if width * height > MOST_RESIZED:
            found = f"{parts[0].height}x{parts[0].width}"
            raise BadInput(
                f"expected a picture that is resized to at most {MOST_RESIZED:,} pixels, got {width * height:,} of one "
                f"of {found}; cut it"
            )
        return np.dstack([np.asarray(part) for part in parts])

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scale and normalise pixels (..., height, width, channels): float32 (..., channels, height, width).

        The pixels are a picture's, in R, G, B order; the result is in the model's.
        """
        ordered = np.moveaxis(self._reordered(pixels), -1, -3)
        planes = np.ascontiguousarray(ordered, np.float32)  # and then in place: a tenth of the time
        mean, std = self._normalisation()
        planes /= np.float32(LEVELS)
        planes -= mean
        planes /= std
        return planes

    def pixels_from_inputs(self, inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The inverse of `normalise`, exact to the last bit: uint8 (..., height, width, channels), a picture's."""
        mean, std = self._normalisation()
        levels = np.rint((inputs * std + mean) * LEVELS)
        return np.ascontiguousarray(self._reordered(np.moveaxis(levels.astype(np.uint8), -3, -1)))

    def batch(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Preprocess several pictures: float32 (pictures, channels, height, width)."""
        return np.stack([self(picture) for picture in pictures])

    def inputs_from_pixels(self, pixels: NDArray[np.uint8], *, any_size: bool) -> NDArray[np.float32]:
        """Preprocess pixels for a model without its preprocessing inside.

        Args:
            pixels: uint8 (images, height, width, channels).
            any_size: they are still to be resized and cropped, not only normalised.
        """
        if not any_size:
            return self.normalise(pixels)
        return self.batch([image_from_pixels(picture) for picture in pixels])

    def check(self, picture: Picture) -> None:
        """Check that the picture has the model's channels.

        Raises:
            BadInput: it has others, as above.
        """
        self._parts(picture)

    def _reordered(self, channels: NDArray[Any]) -> NDArray[Any]:
        """Bring the last axis from a picture's order to the model's, or back."""
        return channels[..., ::-1] if self.channels_order == BGR else channels

    def _normalisation(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation in the order of the model, each float32 (channels, 1, 1)."""
        mean, std = (self._reordered(np.array(values, np.float32))[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def _parts(self, picture: Picture) -> list[Image.Image]:
        """The picture in the model's channels: one in grey or colour, or a grey one for each channel."""
        if isinstance(picture, Image.Image):
            if self.channels in MODES:
                mode = MODES[self.channels]
                return [picture if picture.mode == mode else picture.convert(mode)]
            if picture.mode == WITH_ALPHA.get(self.channels):
                return list(picture.split())
            found = f"pixels of mode {picture.mode}"
        elif picture.shape[2] == self.channels:
            return [Image.fromarray(picture[..., channel]) for channel in range(self.channels)]
        else:
            found = f"{picture.shape[2]} channels"
        count = self.channels
        kept = "grey or colour" if count in MODES else f"{count} channels"
        raise BadInput(
            f"expected pictures of {kept}, as the model takes, got {found}; give an .npz with images of uint8 (n, "
            f"height, width, {count}), or a folder of .npy files of (height, width, {count})"
        )

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize the image and cut the crop from its centre; what the crop does not need is not computed."""
        height, width = self.crop
        size = self._resized_size(image.size)
        left, top = _offset(size[0], width), _offset(size[1], height)
        box = (max(left, 0), max(top, 0), min(left + width, size[0]), min(top + height, size[1]))
        if size != image.size:
            image = self._resample(image, size, box)
            left, top = min(left, 0), min(top, 0)
        return image.crop((left, top, left + width, top + height))  # beyond its edges, Pillow pads with black

    def _resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) to which a picture of `size`, (width, height), is resized."""
        if self.resize is None:
            return size
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        short, long = sorted(size)
        scaled = int(self.resize * long / short)  # torchvision's rounding
        return (self.resize, scaled) if size[0] <= size[1] else (scaled, self.resize)

    def _resample(self, image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
        """Resize the image to `size`, (width, height), and cut out the box (left, top, right, bottom).

        The same bits as resizing first and then cutting; except for a strip that would need more than MOST_RESIZED on
        the way: of that only the box's part is resized, whose filter weights may differ in the last bit.
        """
        kind, (width, height), (left, top, right, bottom) = RESAMPLING[self.interpolation], size, box
        across, down = image.width / width, image.height / height
        part = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        strip = max(size) > LONGEST_RESIZED or width * max(height, image.height) > MOST_RESIZED
        if not self.antialias:
            # Pillow's `resize` always filters; an affine transform samples the four (or sixteen) nearest pixels.
            if strip:
                return image.transform((right - left, bottom - top), Image.Transform.EXTENT, part, kind)
            return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), kind).crop(box)
        if strip:
            return image.resize((right - left, bottom - top), kind, part)
        # Columns first, in two steps: Pillow does so until 12, and 13 starts with the rows where it loses far more of
        # them, one level off.
        columns = image.resize((width, image.height), kind).crop((left, 0, right, image.height))
        return columns.resize((right - left, height), kind).crop((0, top, right - left, bottom))


def _offset(size: int, crop: int) -> int:
    """Where a centred crop begins, rounded as torchvision does; negative if it is larger than the image."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def takes_any_size(spec: TensorSpec) -> bool:
    """Does the input take pictures of any size, rather than of the model's own?"""
    return spec.dtype == PIXELS and spec.shape[1:3] == PICTURE


def image_from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    """The picture of pixels (height, width, 1 or 3)."""
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
