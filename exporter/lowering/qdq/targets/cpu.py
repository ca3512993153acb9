"""Choose the tensors to quantize so that a processor runs a network on integers, in ONNX Runtime and in OpenVINO.

The rules are those of ONNX Runtime's selectors (`qdq_selectors.cc`, `relu_quantizelinear.cc`) and of OpenVINO's and
NNCF's CPU set-up (`nncf/common/hardware/setups/cpu.py`), and were tried on both:

- an integer kernel reads quantized tensors alone and makes one, so a convolution's output is quantized, behind its
  ReLU, which the rounding to unsigned numbers then does; so are both inputs and the output of an addition;
- a tensor is read quantized by all that read it: one float reader is enough for ONNX Runtime to compute its maker in
  float;
- a max pool's output has its input's range; an average pool between convolutions is quantized on both sides;
- tensors without negative values have all 255 steps above zero, the others are unsigned with 128 for zero: kernels for
  x86 processors multiply unsigned by signed numbers;
- global pooling is quantized on both sides, and the classifier behind it reads quantized features and weights; its
  output stays float, and so does its bias, which is added behind it: ONNX Runtime's kernel takes no float bias. (Of a
  ResNet-50 on two cores with VNNI that takes 2.4 % off the time of one image in ONNX Runtime and 1.6 % in OpenVINO, of
  a batch of 8 it is 1.4 and 0.8 %.) It costs accuracy, so `exporter.lowering.repairs` measures whether it stays;
- scales, biases and the remainder are FP32: ONNX Runtime turns biases of convolutions into INT32, exactly;
- the weights of the first convolution, whose input fills its range, have 7 bits, as NNCF does it, and so have those of
  the classifier (with 8 a ResNet-20 had 31 dB of SQNR with AVX2, and 38 with VNNI): without the VNNI instructions, x86
  processors add two products in 16 bits, where 255 * 127 * 2 does not fit. ONNX Runtime has another way around
  (`session.x64quantprecision`, see `runtimes.backends.onnxruntime`), OpenVINO has none: `cpu-safe` gives the weights of
  all convolutions 7 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx
from onnx import helper

from exporter.graph.blocks import residual_additions
from exporter.lowering.qdq.targets import Edge, Placement, Stored
from exporter.lowering.qdq.targets._float import global_pools, places_left_in_float
from exporter.lowering.qdq.targets._signs import tensors_without_negatives

ACTIVATIONS = ("Relu", "Clip")
"""What integer kernels do as they round."""
SPATIAL_POOLS = ("MaxPool", "AveragePool")
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Identity")
"""What may stand between global pooling and a classifier."""
GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
"""The attributes of a Gemm and their defaults."""
PLAIN_GEMM = {**GEMM, "transB": 1}
"""Those of a classifier as PyTorch writes it: a row of the weight is a class."""
UNSIGNED, CENTRED = Stored("uint8", 0, 255), Stored("uint8", 128, 127)

ON_INTEGERS = True


def place_pairs(model: onnx.ModelProto, float_nodes: Collection[str] = ()) -> Placement:
    """Choose what to quantize in a float graph with folded batch norms and distinct node names.

    Args:
        float_nodes: names of the nodes that read nothing quantized. Global pooling among them still does: rounding
            averages out over its pixels, and a float reader would keep the addition before it from integers.
    """
    graph = model.graph
    floats, pools = places_left_in_float(graph), {node.output[0]: node for node in global_pools(graph)}
    convolutions = [
        node
        for place, node in enumerate(graph.node)
        if node.op_type == "Conv" and place not in floats and node.name not in float_nodes
    ]
    reader = _Readers(graph)
    chosen = {node.input[0] for node in convolutions} | {reader.activated(node.output[0]) for node in convolutions}
    for node in residual_additions(graph):
        if convolutions and node.name not in float_nodes:
            chosen |= {*node.input, reader.activated(node.output[0])}
    ranges = {name: name for name in chosen}
    for node in reversed(graph.node):
        if node.op_type in SPATIAL_POOLS and node.output[0] in chosen and node.name not in float_nodes:
            chosen.add(node.input[0])
            ranges.setdefault(node.input[0], node.input[0])
    for node in graph.node:
        if node.op_type == "MaxPool" and {node.input[0], node.output[0]} <= chosen:
            ranges[node.output[0]] = ranges[node.input[0]]
    classifiers = []
    for node, (pooled, *reshaped) in _classifiers(graph, pools):
        if convolutions and node.name not in float_nodes:
            classifiers.append(node.name)
            chosen |= {pooled, *reshaped}
            ranges |= dict.fromkeys((pooled, *reshaped), pooled)
    made = (name for node in graph.node for name in node.output)
    ordered = [name for name in (*(value.name for value in graph.input), *made) if name in chosen]
    in_float = set(float_nodes) - {node.name for node in pools.values()}
    edges = frozenset(edge for name in ordered for edge in reader.edges(name) if edge.node not in in_float)
    positive = tensors_without_negatives(graph)
    return Placement(
        edges,
        tuple(ordered),
        {name: ranges[name] for name in ordered},
        (*(node.name for node in convolutions), *classifiers),
        tuple(classifiers),
        stored={name: UNSIGNED if name in positive else CENTRED for name in ordered},
        narrow=frozenset((*(node.name for node in first_convolutions(graph)), *classifiers)),
        half=False,
    )


def _classifiers(
    graph: onnx.GraphProto, pools: Mapping[str, onnx.NodeProto]
) -> Iterator[tuple[onnx.NodeProto, list[str]]]:
    """The matrix products of globally pooled features with a constant, and the tensors from the pool's output to each.

    Args:
        pools: by what they make.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in shapes or _form(node) != PLAIN_GEMM:
            continue
        if any(shapes.get(bias) != shapes[node.input[1]][:1] for bias in node.input[2:]):
            continue
        tensors = [node.input[0]]
        while tensors[0] not in pools and tensors[0] in makers and makers[tensors[0]].op_type in RESHAPES:
            tensors.insert(0, makers[tensors[0]].input[0])
        if tensors[0] in pools:
            yield node, tensors


def _form(gemm: onnx.NodeProto) -> dict[str, float]:
    """A Gemm's attributes."""
    return {**GEMM, **{one.name: helper.get_attribute_value(one) for one in gemm.attribute}}


class _Readers:
    """The readers of a graph's tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            for place, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, place))

    def edges(self, tensor: str) -> Iterator[Edge]:
        """The inputs that a tensor is fed to."""
        return (Edge(node.name, place) for node, place in self.readers.get(tensor, ()))

    def activated(self, tensor: str) -> str:
        """The tensor, or what its only reader makes of it, if that is an activation."""
        found = self.readers.get(tensor, [])
        if tensor not in self.outputs and len(found) == 1 and found[0][0].op_type in ACTIVATIONS:
            return str(found[0][0].output[0])
        return tensor


def first_convolutions(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The convolutions before which there is none."""
    convolved: set[str] = set()
    for node in graph.node:
        is_behind = not convolved.isdisjoint(node.input)
        if node.op_type == "Conv" and not is_behind:
            yield node
        if node.op_type == "Conv" or is_behind:
            convolved.update(node.output)


__all__ = ["ACTIVATIONS", "ON_INTEGERS", "first_convolutions", "place_pairs", "places_left_in_float"]
