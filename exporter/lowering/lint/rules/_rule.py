"""What a rule is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "refused", "other values", "not fused", "left in float", "unknown", "slower", "out of range",
    "other values in onnxruntime", "refused by onnxruntime", "runs in float", "may overflow", "not on DLA",
]  # fmt: skip
Severity = Literal["error", "warning", "note"]

SEEN = "TensorRT-RTX 1.7.1, without a GPU"
SOURCE_10_1 = "onnx-tensorrt 10.1 (docs/operators.md, and its source)"
EXPLICIT = 'NVIDIA, "Working with Quantized Types", Q/DQ placement recommendations'


@dataclass(frozen=True)
class Rule:
    """One thing that the linter looks for.

    Attributes:
        id: such as `RE101`; never given to another rule.
        title: what is found, in one line.
        kind: what it does to the file, in the words of `Finding.kind`.
        severity: `error`: it is refused, or other values are computed; `warning`: it is slower, may overflow, is wrong
            elsewhere, or cannot be told; `note`: it is as it should be, and worth knowing.
        does: what TensorRT, or the library that the rule is about, does.
        mend: how to mend it.
        seen: the builder or library on which it was seen, which the tests run; empty for one that was seen on none.
        source: the documentation or source that says it; empty for a rule that was measured alone.
    """

    id: str
    title: str
    kind: Kind
    severity: Severity
    does: str
    mend: str
    seen: str = SEEN
    source: str = ""


def refused(number: str, title: str, does: str, mend: str, *, seen: str = SEEN, source: str = "") -> Rule:
    """A rule about something that TensorRT refuses."""
    return Rule(number, title, "refused", "error", does, mend, seen, source)
