"""An evaluation feeds pictures of any size one by one: a batch of photographs would be gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.data import built_in
from calibration.distributed.shards import Shard
from exporter.verification.accuracy.worker import EvaluationWorker
from runtimes import Bundle
from runtimes.manifest import Manifest
from runtimes.preprocess import PIXELS
from runtimes.specs import PICTURE, TensorSpec


class Recorder:
    """Answers with the first class, and keeps the sizes of batches."""

    def __init__(self, spec: TensorSpec) -> None:
        self.inputs, self.batches = (spec,), list[int]()

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(feeds["input"])
        self.batches.append(count)
        return {"logits": np.tile(np.arange(10, 0, -1, dtype=np.float32), (count, 1))}


@pytest.mark.parametrize(
    ("shape", "expected"), [(("batch", *PICTURE, 1), [1] * 10), (("batch", 28, 28, 1), [3, 3, 3, 1])], ids=str
)
def test_batches_are_of_one_where_pictures_come_in_any_size(
    manifest: Manifest, shape: tuple[str | int, ...], expected: list[int]
) -> None:
    runtime: Any = Recorder(TensorSpec("input", PIXELS, shape))
    found = EvaluationWorker(Bundle(Path(), manifest), runtime, built_in("test"), 1).work(Shard(0, 0, 10))
    assert runtime.batches == expected
    assert [row[0] for row in found.rows] == list(range(10))
    assert {row[2:] for row in found.rows} == {(0, 1, 2, 3, 4)}
