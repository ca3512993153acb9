"""How a stranger's file is rightly read: what an intake must find out or be told, and the images it then gives the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Made-up images, uint8 (count, height, width, 3) in the order R, G, B: coarse patches of colour under noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, 3))
    rows, columns = (np.arange(side) * 4 // side for side in size)
    patches = coarse[:, rows][:, :, columns]
    noise = random.integers(-40, 41, patches.shape)
    found: NDArray[np.uint8] = np.clip(patches + noise, 0, 255).astype(np.uint8)
    return found


@dataclass(frozen=True)
class Reading:
    """The right reading of one file.

    - `size`: height and width in pixels that the network is used at.
    - `output`: the file's name of the scores; `classes` is their number, 0 for a backbone.
    - `opset`: of the domain ONNX.
    - `layout`: of the file's input, "nchw" or "nhwc".
    - `order`: the order in which the network takes the channels, "rgb" or "bgr".
    - `scale`: pixels are 0..1 for 1 and 0..255 for 255; `mean` and `std` are for such pixels, in the order R, G, B.
    - `batch`: the number of images to which the file is fixed, None where it is free.
    - `softmax`: the file ends with a Softmax, so its scores are no logits.
    - `labels`: class names, where the file's metadata or its package has them.
    """

    size: tuple[int, int]
    output: str
    classes: int
    opset: int
    layout: str = "nchw"
    order: str = "rgb"
    scale: int = 1
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    batch: int | None = None
    softmax: bool = False
    labels: tuple[str, ...] = ()

    def network_input(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images, uint8 (count, height, width, 3) in R, G, B, as a bundle takes them: float32 (count, 3, height, width)."""
        pixels = images.astype(np.float32) / np.float32(255 // self.scale)
        normalised = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        ordered = normalised[..., ::-1] if self.order == "bgr" else normalised
        return np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), dtype=np.float32)

    def file_input(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same, in the layout of the file."""
        value = self.network_input(images)
        return np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if self.layout == "nhwc" else value

    def told(self) -> list[str]:
        """The options that tell `resnet-export` how images become the network's input."""
        numbers = [",".join(str(number) for number in channels) for channels in (self.mean, self.std)]
        options = ["--image-size", "x".join(map(str, self.size)), "--mean", numbers[0], "--std", numbers[1]]
        options += ["--channels-order", "bgr"] if self.order == "bgr" else []
        return options + (["--scale", "255"] if self.scale == 255 else [])


def scores(file: Path | bytes, inputs: NDArray[np.float32], output: str | None = None) -> NDArray[np.float32]:
    """What onnxruntime answers, unoptimised on the CPU: float32 (count, classes) of the output of this name, or the first."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(file) if isinstance(file, Path) else file, options, providers=["CPUExecutionProvider"]
    )
    taken = session.get_inputs()[0]
    step = taken.shape[0] if isinstance(taken.shape[0], int) and taken.shape[0] > 0 else len(inputs)
    names = [output] if output else [session.get_outputs()[0].name]
    parts = [session.run(names, {taken.name: inputs[start : start + step]})[0] for start in range(0, len(inputs), step)]
    return np.concatenate(parts)
