"""Put the normalisation into the graph, so that it takes uint8 (batch, height, width, channels) as a camera gives it.

A Cast, a Transpose and a Sub of the mean colour stand in front of the network; the division by 255 and by the standard
deviation is folded into the weights of the first convolution, which computes the same up to rounding. The mean is not
folded into its bias: the convolution pads with zeros, which stand for the mean colour, so that a bias would be wrong at
the borders.

Pixels are always in R, G, B order. For a network that takes B, G, R, that convolution's weights change places.

The picture has the network's size. Resizing and cropping, which `Preprocess.pixels` does with Pillow, stay outside, or
are put in front by `exporter.graph.pillow_resize`.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from runtimes.errors import PlanError
from runtimes.preprocess import BGR, LEVELS, Preprocess

MEAN, SCALE, ORDER = "pixels.mean", "pixels.scale", "pixels.order"
CAST, TRANSPOSE, ORDERED = "pixels.cast", "pixels.transpose", "pixels.reorder"


def with_uint8_input(model: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """A copy of a float graph that takes uint8 (batch, height, width, channels) in place of its normalised input.

    If anything but a plain convolution reads the input, the division stays a node of its own, and so does the change of
    the channels' order.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (source,) = graph.input
    name = source.name
    scale = 1 / (LEVELS * np.array(preprocess.std, np.float64))
    order = np.arange(preprocess.channels)[:: -1 if preprocess.channels_order == BGR else 1]
    folded = _fold(graph, name, scale, order)
    steps = [
        helper.make_node("Cast", [name], ["pixels.float"], name=CAST, to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels.float"], ["pixels.planes"], name=TRANSPOSE, perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["pixels.planes", MEAN], ["pixels.centred"], name="pixels.centre"),
    ]
    graph.initializer.append(_per_channel(MEAN, LEVELS * np.array(preprocess.mean, np.float64)))
    if not folded:
        steps.append(helper.make_node("Mul", ["pixels.centred", SCALE], ["pixels.normalised"], name="pixels.normalise"))
        graph.initializer.append(_per_channel(SCALE, scale))
        if preprocess.channels_order == BGR:
            steps.append(helper.make_node("Gather", [steps[-1].output[0], ORDER], ["pixels.bgr"], ORDERED, axis=1))
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(order), ORDER))
    for node in graph.node:
        for place, value in enumerate(node.input):
            if value == name:
                node.input[place] = steps[-1].output[0]
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    batch, channels, height, width = source.type.tensor_type.shape.dim
    shape = [batch.dim_param or batch.dim_value, height.dim_value, width.dim_value, channels.dim_value]
    source.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
    onnx.checker.check_model(result, full_check=True)
    return result


def with_float_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph made by `with_uint8_input`, lowered or not, that takes the same pixels as float32 (batch,
    channels, height, width). Every type on the way holds the 256 levels, so that it computes the same bits.

    Raises:
        PlanError: it does not begin as such a graph does.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    (source,) = graph.input
    cast, transpose = (next((node for node in graph.node if node.name == name), None) for name in (CAST, TRANSPOSE))
    shape = source.type.tensor_type.shape.dim
    if cast is None or transpose is None or list(transpose.input) != list(cast.output) or len(shape) != 4:
        raise PlanError(
            "expected a graph that begins with the Cast and the Transpose of pixels, as --uint8-input makes it"
        )
    rows, height, width, channels = (size.dim_param or size.dim_value for size in shape)
    source.CopyFrom(helper.make_tensor_value_info(source.name, TensorProto.FLOAT, [rows, channels, height, width]))
    kept = [value for value in graph.value_info if value.name != cast.output[0]]
    cast.output[0] = transpose.output[0]
    graph.node.remove(transpose)
    del graph.value_info[:]
    graph.value_info.extend(kept)
    onnx.checker.check_model(result, full_check=True)
    return result


def _fold(graph: onnx.GraphProto, name: str, scale: NDArray[np.float64], order: NDArray[np.int64]) -> bool:
    """Scale and order the weights of the convolutions that read `name` along their input channels; in place.

    Args:
        scale: for each of a picture's channels.
        order: for each of a picture's channels, which of the network's it is.

    Returns:
        Whether it was possible: all readers are convolutions without groups, whose weights no other node reads.
    """
    users = [node for node in graph.node if name in node.input]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = [value for node in graph.node for value in node.input]
    for node in users:
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type != "Conv" or groups != 1 or node.input[1] not in weights or readers.count(node.input[1]) != 1:
            return False
    for node in users:
        tensor = weights[node.input[1]]
        values = numpy_helper.to_array(tensor)[:, order] * scale[:, None, None]
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return True


def _per_channel(name: str, values: NDArray[np.float64]) -> onnx.TensorProto:
    return numpy_helper.from_array(values.astype(np.float32).reshape(1, -1, 1, 1), name)
