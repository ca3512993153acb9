"""Write the bias of each quantized convolution or classifier as an addition behind it, and put it back inside.

onnxruntime turns the constant bias of a convolution between Q/DQ pairs into INT32, whose scale is that of the input
times that of the weight, computed in the scales' own type (`WeightBiasQuantization`, at every level of optimisation but
none; pull request 22889). It does so from 1.23 on, and since 1.21 where QuantizeLinear follows at once. In FP16 that
product has few digits left or none, and the bias divided by it overflows: a ResNet-50 of random weights had 49.7 dB of
SQNR as it is written, and 9.5 dB in a plain session. Only a bias that is an input of its convolution is turned so.
Behind it, as a constant for each channel, it stays what it is.

NVIDIA's ModelOpt 0.47 counts such an addition among what TensorRT fuses into a convolution, as it does a batch norm
(`get_fusible_backbone`: Relu, BiasAdd, Conv), and TensorRT-RTX 1.7 builds the same kernels of both forms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import onnx
from onnx import TensorProto, helper


def with_biases_behind(model: onnx.ModelProto, operators: Collection[str] = ("Conv",)) -> onnx.ModelProto:
    """A copy whose quantized convolutions have their constant biases in an Add behind them.

    The Add makes the tensor that the convolution made, of the same name; the convolution keeps its own name, and makes
    TENSOR.without_bias. A convolution without a bias gets no Add. Shapes of what convolutions make must be inferred.

    Args:
        operators: those whose biases are moved, Conv or Gemm.
    """
    graph, quantized = model.graph, _dequantized(model.graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    nodes, biases, values = [], [], []
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        nodes.append(node)
        if node.op_type not in operators or node.input[1] not in quantized or not tensors.keys() & set(node.input[2:]):
            continue
        output, bias = original.output[0], TensorProto()
        node.output[0] = f"{output}.without_bias"
        bias.CopyFrom(tensors[node.input[2]])
        bias.name = f"{node.name}.bias_per_channel"
        if node.op_type == "Conv":
            value = onnx.ValueInfoProto()
            value.CopyFrom(known[output])
            value.name = node.output[0]
            bias.dims[:] = [1, *bias.dims, *[1] * (len(value.type.tensor_type.shape.dim) - 2)]
            values.append(value)
        del node.input[2]
        nodes.append(helper.make_node("Add", [node.output[0], bias.name], [output], name=f"{node.name}.add_bias"))
        biases.append(bias)
    return _rebuilt(model, nodes, biases, values)


def with_biases_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose quantized convolutions have their biases as inputs again: the reverse of `with_biases_behind`."""
    graph, quantized = model.graph, _dequantized(model.graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    additions = bias_additions(graph)
    biased = {place: graph.node[addition] for addition, place in additions.items()}
    joined: set[int] = set()
    nodes, biases = [], []
    for place, original in enumerate(graph.node):
        if place in joined:
            continue
        node = onnx.NodeProto()
        node.CopyFrom(original)
        nodes.append(node)
        if place in biased and node.input[1] in quantized and len(node.input) == 2:
            bias = TensorProto()
            bias.CopyFrom(next(tensors[name] for name in biased[place].input if name in tensors))
            bias.name = f"{node.name}.bias_inside"
            bias.dims[:] = [bias.dims[1]]
            node.input.append(bias.name)
            node.output[0] = biased[place].output[0]
            biases.append(bias)
            joined.update(addition for addition, convolution in additions.items() if convolution == place)
    return _rebuilt(model, nodes, biases, [])


def bias_additions(graph: onnx.GraphProto) -> dict[int, int]:
    """The additions of a constant for each channel to a convolution's output that nothing else reads.

    Such an addition is a bias, which is computed with its convolution: the addition's place among the nodes -> that of
    the convolution.
    """
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def channels(weight: str) -> int | None:
        place = makers.get(weight)
        shape = shapes.get(weight if place is None else graph.node[place].input[0])
        return shape[0] if shape else None

    found = {}
    for place, node in enumerate(graph.node):
        if node.op_type != "Add":
            continue
        for source, constant in (node.input, list(reversed(node.input))):
            before = makers.get(source, -1)
            if before < 0 or graph.node[before].op_type != "Conv" or readers[source] > 1 or constant not in shapes:
                continue
            _, *rest = shapes[constant] or (0,)
            if shapes[constant] == (1, channels(graph.node[before].input[1]), *[1] * (len(rest) - 1)):
                found[place] = before
    return found


def _dequantized(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}


def _rebuilt(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[TensorProto],
    values: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of `nodes`, with what they need of its constants and shapes and of further ones."""
    graph = model.graph
    read, made = {name for node in nodes for name in node.input}, {name for node in nodes for name in node.output}
    result = helper.make_graph(
        nodes,
        graph.name,
        graph.input,
        graph.output,
        [tensor for tensor in (*graph.initializer, *tensors) if tensor.name in read],
        value_info=[value for value in (*graph.value_info, *values) if value.name in made],
    )
    return helper.make_model(
        result, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )
