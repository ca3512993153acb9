"""In which types a backend really runs a graph's convolutions and additions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

MARK = {"kernels": "integers"}
"""What an export writes into the metadata of a graph whose Q/DQ pairs a processor is to run on integers; others are run
as they are written."""


def promises_integers(metadata: Mapping[str, str]) -> bool:
    """Whether an ONNX file's metadata has `MARK`."""
    return MARK.items() <= metadata.items()


@dataclass(frozen=True)
class KernelCount:
    """How many of a graph's convolutions and residual additions there are as the backend runs it, and how many of them
    it runs on 8-bit integers. An addition that is part of an integer convolution's kernel counts as one on integers."""

    convolutions: int
    integer_convolutions: int
    additions: int
    integer_additions: int

    def shortfall(self, promised: KernelCount) -> str:
        """What is missing to what a bundle promises, in words; empty where nothing is."""
        if (
            self.integer_convolutions >= promised.integer_convolutions
            and self.integer_additions >= promised.integer_additions
        ):
            return ""
        ran = self.beside(promised)
        return (
            f"the bundle promises {promised}; {ran.integer_convolutions} convolutions and {ran.integer_additions} "
            "additions ran there"
        )

    def beside(self, promised: KernelCount) -> KernelCount:
        """What ran on integers, of the convolutions and additions that a bundle counts: a backend may count others as
        additions, such as those of batch norms."""
        return replace(self, convolutions=promised.convolutions, additions=promised.additions)

    def __str__(self) -> str:
        return (
            f"{self.integer_convolutions} of {self.convolutions} convolutions and {self.integer_additions} of "
            f"{self.additions} additions on integers"
        )
