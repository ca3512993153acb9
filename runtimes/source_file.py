"""The ONNX file that a bundle was made from: what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtimes.specs import BatchRange

QuantizedFile = Literal["", "kept", "dequantized"]
KEPT: Literal["kept"] = "kept"
DEQUANTIZED: Literal["dequantized"] = "dequantized"


@dataclass(frozen=True)
class SourceFile:
    """How the file is fed and read, and what was changed in making the bundle's graph from it.

    Attributes:
        input: the name of its input.
        layout: of its input: `nchw`, (batch, channels, height, width), or `nhwc`, (batch, height, width, channels).
        batch: the size of the batch that it fixes; None where it is free.
        outputs: the bundle's outputs, each with the tensor of the file that it is.
        steps: what was done to the file, in words.
        normalises: it normalises its pixels itself, so that no mean and no standard deviation were told.
        quantized: what became of a file that was quantized already: its scales are `kept`, or it was `dequantized`:
            then the reference is the float network behind it. Empty for a float file.

    Raises:
        PlanError: `batch` is no size of a batch.
    """

    input: str
    layout: Literal["nchw", "nhwc"]
    batch: int | None
    outputs: dict[str, str]
    steps: tuple[str, ...] = ()
    normalises: bool = False
    quantized: QuantizedFile = ""

    def __post_init__(self) -> None:
        if self.batch is not None:
            BatchRange(self.batch, self.batch, self.batch)

    @property
    def keeps_scales(self) -> bool:
        """It is quantized already, and stays so."""
        return self.quantized == KEPT
