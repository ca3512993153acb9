"""Batches for `scripts/train.py`: augmented for training, plain for judging. All chance comes from draws the caller makes."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from _train_data import Part
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from runtimes.preprocess import BGR, MODES, RESAMPLING, Preprocess

LEAST_AREA, ASPECT, TRIES = 0.35, (3 / 4, 4 / 3), 10
BATCHES_AHEAD = 2
Plan = Iterable[tuple[Tensor, Tensor | None]]
"""For each batch its places, and what `draw` gave for it; None leaves the pictures as they are."""


class Examples(Protocol):
    """Labelled pictures as a network takes them."""

    @property
    def count(self) -> int: ...

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The chance that augmenting `count` pictures takes; the last dimension is `count`."""

    def batches(self, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs, float32 (batch, channels, height, width), normalised; labels, int64 (batch,)."""


def examples_of(part: Part, preprocess: Preprocess, shift: int, workers: int) -> Examples:
    """In memory where the pictures already have the network's size, else decoded and resized by `workers` threads."""
    if part.pixels is not None and tuple(part.pixels.shape[1:]) == preprocess.shape:
        return Pixels(part.pixels, part.labels, preprocess, shift)
    return Pictures(part, preprocess, workers)


@dataclass(frozen=True)
class Pixels:
    """uint8 (n, channels, height, width) in memory; augmented by shifts of up to `shift` pixels and mirroring."""

    images: Tensor
    labels: Tensor
    preprocess: Preprocess
    shift: int

    @property
    def count(self) -> int:
        return len(self.labels)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        corner = torch.randint(2 * self.shift + 1, (2, count), generator=generator)
        mirror = torch.rand(count, generator=generator) < 0.5
        return torch.cat([corner, mirror[None].long()])

    def batches(self, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.preprocess.mean, self.preprocess.std))
        for places, drawn in plan:
            images = self.images[places] if drawn is None else self._augment(places, drawn)
            inputs = (images.float() / 255 - mean) / std
            yield inputs.flip(1) if self.preprocess.channels_order == BGR else inputs, self.labels[places]

    def _augment(self, places: Tensor, drawn: Tensor) -> Tensor:
        images = self.images[places]
        count, channels, height, width = images.shape
        top, left, mirror = drawn
        padded = functional.pad(images, (self.shift,) * 4)
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.arange(width)
        columns = torch.where(mirror[:, None].bool(), columns.flip(1), columns)
        batch, planes = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
        return padded[batch, planes, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Pictures:
    """Files, decoded as they are needed; augmented by a random cut, resized to the network's size, and mirroring.

    Plain pictures go through `preprocess` itself, as they will on the device.
    """

    part: Part
    preprocess: Preprocess
    workers: int

    @property
    def count(self) -> int:
        return len(self.part.labels)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2**62, (count,), generator=generator)

    def batches(self, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
        pool = ThreadPoolExecutor(self.workers)  # Pillow lets go of Python's lock while it decodes and resizes
        waiting: deque[tuple[list[Future[NDArray[np.float32]]], Tensor]] = deque()
        try:
            for places, drawn in plan:
                seeds = [None] * len(places) if drawn is None else drawn.tolist()
                waiting.append(
                    ([pool.submit(self._input, *one) for one in zip(places.tolist(), seeds, strict=True)], places)
                )
                if len(waiting) > BATCHES_AHEAD:
                    yield self._gather(*waiting.popleft())
            while waiting:
                yield self._gather(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _gather(self, inputs: list[Future[NDArray[np.float32]]], places: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.stack([one.result() for one in inputs])), self.part.labels[places]

    def _input(self, place: int, seed: int | None) -> NDArray[np.float32]:
        image = self.part.source.image(place)
        if seed is None:
            return self.preprocess(image)
        chance = random.Random(seed)
        height, width = self.preprocess.crop
        cut = random_cut(image.size, width / height, chance)
        image = image.convert(MODES[self.preprocess.channels]).resize((width, height), RESAMPLING["bilinear"], box=cut)
        if chance.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return replace(self.preprocess, resize=None)(image)


def random_cut(size: tuple[int, int], aspect: float, chance: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part with at least LEAST_AREA of a picture, its width to height within ASPECT of `aspect`.

    As in Szegedy et al. 2015 (arXiv 1409.4842), section 6, whose least area is 0.08.
    """
    width, height = size
    for _ in range(TRIES):
        area = width * height * chance.uniform(LEAST_AREA, 1)
        ratio = aspect * math.exp(chance.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        across, down = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if across <= width and down <= height:
            left, top = chance.randint(0, width - across), chance.randint(0, height - down)
            return left, top, left + across, top + down
    across, down = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
