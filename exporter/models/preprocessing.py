"""The preprocessing that a request asks for, made from the model's own. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from exporter.models.request import ModelRequest, check_resize
from runtimes.errors import PlanError
from runtimes.preprocess import BGR, ChannelsOrder, Preprocess


def adjusted_preprocess(own: Preprocess, request: ModelRequest, channels: int) -> Preprocess:
    """The model's own preprocessing, changed by what the request says of it.

    Args:
        own: what the model was made for; what the request does not name stays as it is here. Its mean over the
            channels stands for another number of channels.
        channels: how many the model takes; one value of --mean or --std stands for every channel.

    Raises:
        PlanError: the request does not fit the channels or the size.
    """
    if request.channels_order == BGR and channels != 3:
        raise PlanError(
            f"expected --channels-order bgr for a model of 3 input channels, got one of {channels}; leave it out"
        )
    changed = replace(
        own,
        mean=_values(request.mean, own.mean, channels, request.scale, option="--mean"),
        std=_values(request.std, own.std, channels, request.scale, option="--std"),
        channels_order="rgb" if channels != 3 else cast(ChannelsOrder, request.channels_order or own.channels_order),
        interpolation=request.interpolation or own.interpolation,
    )
    if request.image_size is not None:
        changed = with_image_size(changed, request.image_size)
    if request.resize is None:
        return changed
    check_resize(request.resize, changed.crop)
    return replace(changed, resize=request.resize)


def with_image_size(own: Preprocess, size: tuple[int, int]) -> Preprocess:
    """The preprocessing for another size of the input, (height, width) in pixels.

    The shorter side of the resized picture keeps its ratio to the crop, as when the model was evaluated.
    """
    ratio = own.resize / min(own.crop) if isinstance(own.resize, int) else 1.0
    resize = round(size[0] * ratio) if size[0] == size[1] else size
    return replace(own, resize=resize, crop=size)


def _values(
    given: tuple[float, ...] | None, own: tuple[float, ...], channels: int, scale: int, *, option: str
) -> tuple[float, ...]:
    """One value for each channel, on pixels scaled to 0..1, from what is given on pixels of 0..scale."""
    chosen = tuple(value / scale for value in given) if given else own
    if len(chosen) == channels:
        return chosen
    if len(chosen) == 1:
        return chosen * channels
    if given is None:
        return (sum(own) / len(own),) * channels
    wanted = "1 value" if channels == 1 else f"1 or {channels} values"
    has = "1 input channel" if channels == 1 else f"{channels} input channels"
    raise PlanError(f"expected {option} with {wanted}, got {len(given)}; the model has {has}")
