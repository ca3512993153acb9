"""Find what a Jetson's DLA does not run. Nothing of it was seen on a board."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exporter.lowering.lint.dla_operators import operator_findings
from exporter.lowering.lint.findings import Finding, finding, findings_at
from exporter.lowering.lint.versions import TensorRtVersion
from exporter.lowering.qdq.reading import Readings
from exporter.lowering.qdq.view import DEQUANTIZE, QUANTIZE, View


def dla_findings(view: View, versions: Sequence[TensorRtVersion]) -> Iterator[Finding]:
    """What of the model's own graph falls back to the GPU, or is refused."""
    stored = {tensor.name for tensor in view.scope.graph.initializer}
    for value in view.scope.graph.input:
        sizes = value.type.tensor_type.shape.dim
        free = [one.dim_param or "?" for one in sizes if not one.HasField("dim_value")]
        if free and value.name not in stored:
            told = f"its sizes {', '.join(free)} are free; fix height and width, and build with one batch size"
            yield finding(("RE801", told), value.name)
    readings = Readings(view)
    wide = [
        (place, node)
        for place, node in enumerate(view.nodes)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and view.type(node.input[0]) == "FLOAT"
        and not readings.is_quantized(node.input[0])
    ]
    if wide:
        more = f" and {len(wide) - 1} more run" if len(wide) > 1 else " runs"
        told = f"it{more} in FP32, which DLA does not have; export with --fp16"
        yield from findings_at(*wide[0], [("RE803", told)])
    yield from operator_findings(view)
    pairs = [(place, node) for place, node in enumerate(view.nodes) if node.op_type in (QUANTIZE, DEQUANTIZE)]
    older = [one.text for one in versions if one.dla and not one.qdq_on_dla]
    if pairs and older:
        told = (
            f"the DLA of {', '.join(older)} takes no Q/DQ pairs; export with --fp16, or translate the scales (its page)"
        )
        yield from findings_at(*pairs[0], [("RE804", told)])
