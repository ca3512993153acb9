"""As `cpu`, with 7 bits for the weights of all convolutions: no processor overflows, at half the weights' precision.

For OpenVINO on x86 processors without VNNI, where two products are added in 16 bits (see
`exporter.lowering.qdq.targets.cpu`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import onnx

from exporter.lowering.qdq.targets import Placement, cpu
from exporter.lowering.qdq.targets._float import places_left_in_float

ON_INTEGERS = True


def place_pairs(model: onnx.ModelProto, float_nodes: Collection[str] = ()) -> Placement:
    """As `exporter.lowering.qdq.targets.cpu.place_pairs`."""
    found = cpu.place_pairs(model, float_nodes)
    return replace(found, narrow=frozenset(found.weights))


__all__ = ["ON_INTEGERS", "place_pairs", "places_left_in_float"]
