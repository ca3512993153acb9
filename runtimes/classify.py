"""Classify pictures with a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.errors import BadInput, ExportError
from runtimes.parity.compare import LOGITS, class_scores, is_classifier
from runtimes.preprocess import Preprocess
from runtimes.specs import TensorSpec
from runtimes.stream import AnyPicture


@dataclass(frozen=True)
class Prediction:
    """One class of one picture; `probability` is the softmax over all classes, 0..1; of a single logit its sigmoid."""

    index: int
    label: str
    probability: float


def classify(
    runtime: Runtime,
    preprocess: Preprocess,
    images: Iterable[AnyPicture],
    *,
    labels: Sequence[str] | None = None,
    top: int = 5,
) -> list[list[Prediction]]:
    """The `top` most likely classes of each picture, most likely first.

    Pictures are read ahead in threads, a few at a time (see `Runtime.stream`). A model that takes uint8 has its
    preprocessing inside and gets pixels; one that takes any size gets the pictures as they are.

    Raises:
        BadInput: the model gives features, not classes; a picture cannot be read, or has other channels (named).
        ExportError: it gives logits that are not finite.
    """
    check_classifier(runtime.outputs)
    found: list[list[Prediction]] = []
    for outputs in runtime.stream(images, preprocess):
        scores = class_scores(outputs)
        check_finite(scores)
        likely = softmax(scores) if LOGITS in outputs else scores.astype(np.float64)
        found += [_predictions(row, labels, top) for row in likely]
    return found


def _predictions(row: NDArray[np.float64], labels: Sequence[str] | None, top: int) -> list[Prediction]:
    order = np.argsort(-row, kind="stable")[:top]
    return [Prediction(int(index), labels[index] if labels else str(index), float(row[index])) for index in order]


def check_classifier(outputs: Sequence[TensorSpec]) -> None:
    """Refuse a model that gives features, not classes, by its outputs.

    Raises:
        BadInput: it gives features.
    """
    if not is_classifier(spec.name for spec in outputs):
        found = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in outputs)
        raise BadInput(
            f"expected a classifier, got a model that gives features ({found}); take them in Python with "
            "open_runtime(...).run(...)"
        )


def check_finite(logits: NDArray[Any]) -> None:
    """Refuse logits with NaN or infinity among them.

    Raises:
        ExportError: there are some.
    """
    if not np.isfinite(logits).all():
        raise ExportError("the model gives logits that are not finite; see what resnet-deploy check says of the bundle")


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities for logits (images, classes): each row sums to 1. A single logit gives the sigmoid, the probability
    that its class is present."""
    if logits.shape[1] == 1:
        # 1 / (1 + exp(-x)) without its overflow
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))))
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
