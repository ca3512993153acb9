"""From a picture to the array a model takes: equal to torchvision's own presets, of any size and number of channels."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from memory_growth import peak_growth_below
from numpy.typing import NDArray
from PIL import Image
from plain_pictures import noise, pixels, plain
from torchvision.models import get_model_weights
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import center_crop

from runtimes.errors import BadInput, PlanError
from runtimes.preprocess import RESAMPLING, Preprocess

PRESETS = {
    "resnet50": "IMAGENET1K_V1",  # 256, 224, bilinear
    "resnet152": "IMAGENET1K_V2",  # 232, 224, bilinear
    "efficientnet_b0": "IMAGENET1K_V1",  # 256, 224, bicubic
    "inception_v3": "IMAGENET1K_V1",  # 342, 299, bilinear
    "regnet_y_16gf": "IMAGENET1K_SWAG_E2E_V1",  # 384, 384, bicubic
}
SIZES = {
    "square": (300, 300),
    "landscape": (240, 427),
    "portrait": (427, 240),
    "odd": (257, 333),
    "exactly the crop": (224, 224),
    "smaller than the crop": (101, 60),
    "a strip": (12, 97),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("model", PRESETS)
def test_a_picture_becomes_to_the_bit_what_torchvisions_preset_makes_of_it(model: str, size: tuple[int, int]) -> None:
    preset = get_model_weights(model)[PRESETS[model]].transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    ours = Preprocess(
        resize, (crop, crop), preset.interpolation.value, bool(preset.antialias), tuple(preset.mean), tuple(preset.std)
    )
    image = Image.fromarray(noise(*size))
    np.testing.assert_array_equal(ours(image), preset(image).numpy(), strict=True)


@pytest.mark.parametrize("size", [(28, 28), (20, 35), (31, 17)])
def test_a_grey_picture_for_a_model_of_one_channel_becomes_what_torchvision_makes_of_it(size: tuple[int, int]) -> None:
    preset = ImageClassification(crop_size=28, resize_size=32, mean=(0.286,), std=(0.353,))
    image = Image.fromarray(noise(*size, channels=1))
    np.testing.assert_array_equal(
        Preprocess(32, (28, 28), "bilinear", True, (0.286,), (0.353,))(image), preset(image).numpy(), strict=True
    )


def test_crops_wider_or_higher_than_the_picture_are_padded_as_torchvision_does() -> None:
    for height, width in ((3, 9), (9, 3), (4, 5), (2, 2), (4, 6), (5, 7)):
        image = Image.fromarray(noise(height, width))
        np.testing.assert_array_equal(pixels(plain()(image)), np.asarray(center_crop(image, [4, 6])))


@pytest.mark.parametrize("target", [(32, 32), (80, 90), (20, 120)], ids=str)
@pytest.mark.parametrize("size", [(50, 70), (100, 61)], ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_without_antialias_a_picture_is_sampled_as_torch_does_within_a_grey_level(
    interpolation: str, size: tuple[int, int], target: tuple[int, int]
) -> None:
    source, mean, std = noise(*size), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    ours = Preprocess(target, target, interpolation, False, mean, std)(Image.fromarray(source))
    tensor = torch.from_numpy(source.astype(np.float32)).permute(2, 0, 1)[None]
    if interpolation == "nearest":
        sampled = torch.nn.functional.interpolate(tensor, target, mode="nearest-exact")[0]
    else:
        sampled = torch.nn.functional.interpolate(
            tensor, target, mode=interpolation, align_corners=False, antialias=False
        )[0]
    expected = ((sampled / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).numpy()
    grey_levels = np.abs(ours - expected) * np.array(std)[:, None, None] * 255
    assert grey_levels.max() <= 1.01  # Pillow rounds down to whole levels


def test_without_antialias_bicubic_is_the_cubic_convolution_that_the_docstring_names() -> None:
    source = noise(20, 20, channels=1) // 2 + 60  # no overshoot to clip
    ours = plain(resize=(37, 41), crop=(37, 41), interpolation="bicubic", antialias=False, mean=(0.0,), std=(1.0,))(
        Image.fromarray(source)
    )[0]
    rows, columns = cubic_weights(20, 37, a=-1), cubic_weights(20, 41, a=-1)
    np.testing.assert_allclose(ours * 255, (rows @ source @ columns.T).clip(0, 255), rtol=0, atol=1.01)


def cubic_weights(size: int, target: int, *, a: float) -> NDArray[np.float64]:
    """Cubic convolution (Keys 1981) as a matrix (target, size), edges repeated."""
    weights = np.zeros((target, size))
    for place in range(target):
        centre = (place + 0.5) * size / target - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - tap)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            weights[place, min(max(tap, 0), size - 1)] += near if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
    return weights


def test_shrinking_with_and_without_antialias_differs() -> None:
    image = Image.fromarray(noise(64, 64))
    shrunk = [plain(resize=(8, 8), crop=(8, 8), antialias=antialias)(image) for antialias in (True, False)]
    assert np.abs(shrunk[0] - shrunk[1]).max() > 0.1
    assert shrunk[0].std() < shrunk[1].std() / 2  # a filter averages noise away


def test_a_size_of_height_and_width_is_taken_as_such() -> None:
    image = Image.fromarray(noise(10, 30))
    expected = np.asarray(image.resize((6, 4), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(pixels(plain(resize=(4, 6), interpolation="nearest")(image)), expected)


def test_without_a_size_the_centre_is_cut_from_the_picture_as_it_is() -> None:
    source = noise(10, 12)
    np.testing.assert_array_equal(pixels(plain()(Image.fromarray(source))), source[3:7, 3:9])


def test_a_batch_is_the_pictures_one_after_another() -> None:
    images = [Image.fromarray(noise(9, 9)), Image.fromarray(noise(5, 11))]
    batch = plain().batch(images)
    assert batch.shape == (2, *plain().shape) == (2, 3, 4, 6)
    assert batch.dtype == np.float32
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, plain()(image))


def test_the_array_is_contiguous_for_those_who_read_raw_memory() -> None:
    assert plain()(Image.fromarray(noise(9, 9))).flags.c_contiguous


def test_a_model_of_two_channels_takes_no_pictures() -> None:
    with pytest.raises(
        BadInput, match="expected pictures of 2 channels, as the model takes, got pixels of mode RGB; give an .npz"
    ):
        plain(mean=(0.0, 0.0), std=(1.0, 1.0))(Image.fromarray(noise(4, 6)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (0, 6)}, "expected sizes of at least one pixel, got resize None and crop (0, 6)"),
        ({"crop": (4, -1)}, "expected sizes of at least one pixel"),
        ({"resize": 0}, "expected sizes of at least one pixel, got resize 0"),
        ({"resize": -3}, "expected sizes of at least one pixel, got resize -3"),
        ({"resize": (4, 0)}, "expected sizes of at least one pixel, got resize (4, 0)"),
        (
            {"interpolation": "cubic"},
            "expected an interpolation among nearest, bilinear, bicubic, lanczos, got 'cubic'",
        ),
        (
            {"interpolation": "lanczos", "antialias": False},
            "expected lanczos with antialias, got it without; choose bilinear or bicubic",
        ),
        ({"mean": (0.0,)}, "expected one mean and one standard deviation per channel, got 1 and 3"),
        ({"mean": (), "std": ()}, "expected one mean and one standard deviation per channel, got 0 and 0"),
        ({"mean": (0.0, 0.0, float("nan"))}, "expected finite means and positive standard deviations"),
        ({"mean": (0.0, 0.0, float("inf"))}, "expected finite means and positive standard deviations"),
        ({"std": (1.0, 0.0, 1.0)}, "expected finite means and positive standard deviations"),
        ({"std": (1.0, -1.0, 1.0)}, "expected finite means and positive standard deviations"),
        ({"std": (1.0, float("nan"), 1.0)}, "expected finite means and positive standard deviations"),
        ({"std": (1.0, float("inf"), 1.0)}, "expected finite means and positive standard deviations"),
        ({"channels_order": "grb"}, "expected a channels_order of rgb or bgr, got 'grb'"),
        (
            {"channels_order": "bgr", "mean": (0.0,), "std": (1.0,)},
            "expected three channels for the order bgr, got 1; take rgb",
        ),
    ],
    ids=str,
)
def test_steps_that_cannot_be_taken_are_refused_when_they_are_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        plain(**changes)


@pytest.mark.parametrize(
    ("interpolation", "antialias"),
    [(name, antialias) for name in RESAMPLING for antialias in (True, False) if name != "lanczos" or antialias],
)
def test_every_interpolation_keeps_a_picture_of_one_colour(interpolation: str, antialias: bool) -> None:
    grey = Image.new("RGB", (21, 13), (51, 102, 204))
    made = plain(resize=9, interpolation=interpolation, antialias=antialias)(grey)
    np.testing.assert_array_equal(pixels(made), np.broadcast_to([51, 102, 204], (4, 6, 3)))


# --- only what the crop needs ---


def resized_whole(steps: Preprocess, image: Image.Image) -> Image.Image:
    """All of the picture resized, columns first; then it is cut."""
    short, long = sorted(image.size)
    assert isinstance(steps.resize, int)
    scaled = int(steps.resize * long / short)
    width, height = (steps.resize, scaled) if image.width <= image.height else (scaled, steps.resize)
    kind = RESAMPLING[steps.interpolation]
    if not steps.antialias:
        return image.transform((width, height), Image.Transform.EXTENT, (0, 0, *image.size), kind)
    return image.resize((width, image.height), kind).resize((width, height), kind)


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (3, 200), (97, 12), (64, 640), (480, 640), (333, 257)], ids=str)
@pytest.mark.parametrize(
    ("interpolation", "antialias"),
    [("bilinear", True), ("bicubic", True), ("lanczos", True), ("bilinear", False), ("nearest", False)],
)
def test_what_is_cut_is_to_the_bit_what_resizing_all_of_the_picture_gives(
    interpolation: str, antialias: bool, size: tuple[int, int]
) -> None:
    image = Image.fromarray(noise(*size))
    for resize, crop in ((32, (28, 28)), (32, (30, 17)), (20, (28, 24))):
        steps = plain(resize=resize, crop=crop, interpolation=interpolation, antialias=antialias)
        np.testing.assert_array_equal(
            steps.pixels(image), np.asarray(center_crop(resized_whole(steps, image), list(crop)))
        )


STRIPS = {"lying": (60_000, 1), "standing": (1, 60_000), "very long": (1_000_000, 2), "very high": (2, 1_000_000)}


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", STRIPS.values(), ids=STRIPS)
def test_of_a_strip_no_more_is_computed_than_the_crop_needs(size: tuple[int, int], antialias: bool) -> None:
    """Resizing all of 60,000 x 1 pixels to 256 makes four thousand million. The middle is smooth, so it is known."""
    along = np.arange(max(size)) // max(1, max(size) // 200) % 256
    row = np.broadcast_to(along[None] if size[0] > size[1] else along[:, None], size[::-1]).astype(np.uint8)
    steps = plain(resize=256, crop=(224, 224), antialias=antialias, mean=(0.0,), std=(1.0,))
    with peak_growth_below(mib=100):
        pixels = steps.pixels(Image.fromarray(row))
    assert pixels.shape == (224, 224, 1)
    middle = along[max(size) // 2]
    assert np.abs(pixels.astype(int) - middle).max() <= 1


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(300, 200), (37, 411), (900, 20)], ids=str)
def test_the_crops_own_part_resized_alone_is_what_resizing_all_gives_within_a_level(
    size: tuple[int, int], antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, steps = Image.fromarray(noise(*size)), plain(resize=64, crop=(56, 56), antialias=antialias)
    whole = steps.pixels(image)
    monkeypatch.setattr("runtimes.preprocess.LONGEST_RESIZED", 0)
    assert np.abs(steps.pixels(image).astype(int) - whole).max() <= 1


def test_a_crop_larger_than_a_long_picture_is_not_padded_along_all_of_it() -> None:
    image = Image.fromarray(noise(1, 3_000_000, channels=1))
    steps = plain(crop=(224, 224), mean=(0.0,), std=(1.0,))
    with peak_growth_below(mib=100):
        pixels = steps.pixels(image)
    np.testing.assert_array_equal(pixels[111, :, 0], np.asarray(image)[0, 1_499_888:1_500_112])
    assert pixels.sum() == pixels[111].sum()


def test_a_strip_is_refused_where_the_model_itself_would_resize_all_of_it() -> None:
    steps = plain(resize=256, crop=(224, 224))
    assert steps.picture(Image.new("RGB", (4000, 100))).shape == (100, 4000, 3)
    with pytest.raises(
        BadInput, match=r"resized to at most 16,777,216 pixels, got 3,932,160,000 of one of 1x60000; cut it"
    ):
        steps.picture(Image.new("RGB", (60_000, 1)))


# --- blue first ---


def test_blue_first_changes_places_in_the_input_alone_and_mean_and_std_stay_those_of_red_green_and_blue() -> None:
    image = Image.fromarray(noise(40, 50))
    first = plain(resize=32, crop=(28, 24), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    blue = replace(first, channels_order="bgr")
    np.testing.assert_array_equal(blue.pixels(image), first.pixels(image))
    np.testing.assert_array_equal(blue.picture(image), first.picture(image))
    np.testing.assert_array_equal(blue(image), first(image)[::-1], strict=True)
    assert blue(image).flags.c_contiguous
    batch = np.stack([blue.pixels(image), 255 - blue.pixels(image)])
    np.testing.assert_array_equal(blue.normalise(batch), first.normalise(batch)[:, ::-1])
    np.testing.assert_array_equal(blue.pixels_from_inputs(blue.normalise(batch)), batch)
    np.testing.assert_array_equal(blue.inputs_from_pixels(batch, any_size=False), blue.normalise(batch))


# --- any number of channels ---


@pytest.mark.parametrize("channels", [2, 4, 6, 13])
def test_each_channel_of_an_array_is_prepared_as_a_grey_picture(channels: int) -> None:
    array = noise(40, 50, channels)
    mean, std = tuple(np.linspace(0.1, 0.6, channels)), tuple(np.linspace(0.2, 0.3, channels))
    steps = plain(resize=32, crop=(28, 28), mean=mean, std=std)
    expected = [
        replace(steps, mean=mean[one : one + 1], std=std[one : one + 1])(Image.fromarray(array[..., one]))[0]
        for one in range(channels)
    ]
    np.testing.assert_array_equal(steps(array), np.stack(expected), strict=True)
    np.testing.assert_array_equal(steps.picture(array), array)
    np.testing.assert_array_equal(steps.pixels_from_inputs(steps(array)), steps.pixels(array))


def test_transparency_is_a_channel_for_a_model_of_four_and_does_not_darken_the_others() -> None:
    array = noise(40, 50, 4)
    steps = plain(resize=32, crop=(28, 28), mean=(0.0,) * 4, std=(1.0,) * 4)
    np.testing.assert_array_equal(steps(Image.fromarray(array, "RGBA")), steps(array))


@pytest.mark.parametrize(
    ("picture", "channels", "says"),
    [
        (
            Image.new("RGB", (9, 9)),
            4,
            "expected pictures of 4 channels, as the model takes, got pixels of mode RGB; give an .npz",
        ),
        (Image.new("CMYK", (9, 9)), 4, "expected pictures of 4 channels, as the model takes, got pixels of mode CMYK"),
        (
            noise(9, 9, 6),
            4,
            "expected pictures of 4 channels, as the model takes, got 6 channels; "
            "give an .npz with images of uint8 (n, height, width, 4)",
        ),
        (noise(9, 9, 13), 3, "expected pictures of grey or colour, as the model takes, got 13 channels"),
        (noise(9, 9, 4), 1, "expected pictures of grey or colour, as the model takes, got 4 channels"),
    ],
    ids=["colour", "print", "six", "thirteen", "alpha"],
)
def test_pictures_of_other_channels_than_the_models_are_refused(picture: Any, channels: int, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        plain(mean=(0.0,) * channels, std=(1.0,) * channels)(picture)
