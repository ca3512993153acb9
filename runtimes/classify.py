"""Classify pictures with a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtimes.base import Runtime
from runtimes.preprocess import Preprocess


@dataclass(frozen=True)
class Prediction:
    """One class of one picture; `probability` is the softmax over all classes, 0..1."""

    index: int
    label: str
    probability: float


def classify(
    runtime: Runtime, preprocess: Preprocess, images: Sequence[Image.Image], *, labels: Sequence[str] | None = None, top: int = 5
) -> list[list[Prediction]]:
    """The `top` most likely classes of each picture, most likely first."""
    logits = runtime.run({runtime.inputs[0].name: preprocess.batch(images)})[runtime.outputs[0].name]
    return [
        [Prediction(int(index), labels[index] if labels else str(index), float(row[index])) for index in np.argsort(-row, kind="stable")[:top]]
        for row in softmax(logits)
    ]


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities for logits (images, classes)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
