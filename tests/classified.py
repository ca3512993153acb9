"""Pictures that a bundle classifies, beside what its reference makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from runtimes import Bundle, open_runtime
from runtimes.classify import classify


def assert_classified_as_by_the_reference(bundle: Bundle, images: Sequence[Image.Image]) -> None:
    """The same labels in the same order, with probabilities that differ by no more than 1e-5."""
    found = []
    for backend in ("onnxruntime", "pytorch"):
        with open_runtime(bundle, backend) as runtime:
            found.append(classify(runtime, bundle.manifest.preprocess, images, labels=bundle.labels))
    for inside, outside in zip(*found, strict=True):
        assert [one.label for one in inside] == [one.label for one in outside]
        assert [one.probability for one in inside] == pytest.approx([one.probability for one in outside], abs=1e-5)
