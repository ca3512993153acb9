"""The proof's progress: how many images its models have run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporter.pipeline.image_count import ImageCount
from runtimes import open_runtime


def test_each_model_counts_all_images_once_and_gives_what_it_gave(tiny_model: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    count = ImageCount("prove", 4, 2, lambda step, done=0, total=0: reported.append((step, done, total)))
    images = np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)
    with open_runtime(tiny_model / "model.onnx") as runtime:
        expected = runtime.run({"input": images})["logits"]
    with count(open_runtime(tiny_model / "model.onnx")) as runtime:
        assert runtime.provider == "cpu"
        first = [runtime.run({"input": images[start : start + 2]})["logits"] for start in (0, 2)]
        runtime.run({"input": images})  # again, at another batch
    with count(open_runtime(tiny_model / "model.onnx")) as runtime:
        runtime.run({"input": images[:1]})  # no more than a few
    np.testing.assert_allclose(np.concatenate(first), expected, rtol=1e-4, atol=1e-5)
    assert {(step, total) for step, _, total in reported} == {("prove", 8)}
    done = [one for _, one, _ in reported]
    assert done == sorted(done)
    assert done[0] == 2
    assert 5 in done
    assert done[-1] == 8
