"""Read and check an ONNX file of any origin; large weights in other files are left unread."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from exporter.graph.facts import inline_functions, subgraphs
from runtimes.errors import BadInput, first_line

LARGEST_BYTES = 2 << 30
"""Protobuf's limit for one message; larger models keep their weights in files beside them."""
ITEM_BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
}
"""Bytes of a value of the types that weights have."""
LOADED_ELEMENTS = 1 << 16
"""Tensors in other files are read up to this size: scales, zero points, shapes. Of weights, type and shape suffice."""


def model_from_file(path: Path) -> onnx.ModelProto:
    """Read a model, check it with onnx's checker, and inline its local functions.

    Of tensors stored in files beside it, the small ones are loaded and the large ones are not.

    Raises:
        BadInput: there is no such file, it is no ONNX model or holds no graph, or a file that it names is missing or
            too short.
    """
    return checked_model(unchecked_model(path), path)


def unchecked_model(path: Path) -> onnx.ModelProto:
    """Read a model as it stands in its file, without what it stores in others.

    Raises:
        BadInput: there is no such file, it is no ONNX model or holds no graph.
    """
    if not path.is_file():
        raise BadInput(
            f"{path}: expected an ONNX model, got {'a folder' if path.is_dir() else 'nothing'} there; give a file"
        )
    if path.stat().st_size >= LARGEST_BYTES:
        raise BadInput(
            f"{path} is no ONNX model: expected less than 2 GiB, got {path.stat().st_size / 1e9:.1f} GB; "
            "keep its weights in a file beside it"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds, which share no base with onnx's
        raise BadInput(f"{path} is no ONNX model: {first_line(error)}; save or download it again") from error
    if any(isinstance(text, bytes) for text in _texts_of(model)):  # as protobuf gives those that are no UTF-8
        raise BadInput(f"{path} is no ONNX model: it holds names that are no UTF-8; save or download it again")
    if not model.graph.node and not model.graph.output:
        raise BadInput(f"{path} is no ONNX model: it holds no graph; save it again")
    return model


def _texts_of(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """The names in a model, and what it tells of itself."""
    yield from (entry.domain for entry in model.opset_import)
    yield from (text for entry in model.metadata_props for text in (entry.key, entry.value))
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output, *function.attribute)
        yield from _texts_of_nodes(function.node)
    yield from _texts_of_graph(model.graph)
    for tensor in tensors_of(model.graph):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _texts_of_graph(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    yield graph.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dimension.dim_param for dimension in value.type.tensor_type.shape.dim)
    yield from _texts_of_nodes(graph.node)


def _texts_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[str | bytes]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
        for _, inner in subgraphs(node):
            yield from _texts_of_graph(inner)


def checked_model(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A model that was read from `path`, checked, with its local functions inlined; the small ones of the tensors that
    it stores in other files are loaded, in place.

    Raises:
        BadInput: onnx's checker refuses it, or a file that it names is missing or too short.
    """
    for tensor in tensors_of(model.graph):
        _check_tensor(tensor, path)
        if tensor.data_location == TensorProto.EXTERNAL:
            _load_small(tensor, path)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        _check_type(value.type.tensor_type.elem_type, value.name, path)
    try:
        onnx.checker.check_model(_without_weights(model))
        model = inline_functions(model)
    except Exception as error:  # as above
        raise BadInput(f"{path} is no valid ONNX model: {first_line(error)}; save it again") from error
    _check_sizes(model, path)
    _check_inputs(model.graph, path)
    return model


def _check_inputs(graph: onnx.GraphProto, path: Path) -> None:
    """Check nodes of other domains that have the name of an operator of ONNX: onnx's checker skips them.

    Raises:
        BadInput: one has fewer inputs or outputs than ONNX's operator.
    """
    for node in graph.node:
        if onnx.defs.has(node.op_type):
            schema = onnx.defs.get_schema(node.op_type)
            for what, got, least in (
                ("inputs", len(node.input), schema.min_input),
                ("outputs", len(node.output), schema.min_output),
            ):
                if got < least and node.domain:
                    raise BadInput(
                        f"{path}: expected {least} {what} of {node.domain}'s {node.op_type} '{node.name}', got {got}; "
                        "save it again"
                    )
        for _, inner in subgraphs(node):
            _check_inputs(inner, path)


def _check_tensor(tensor: TensorProto, path: Path) -> None:
    """Check a tensor's type, its shape and, of one that is small and stored in the file, its values.

    Raises:
        BadInput: one of them is none.
    """
    _check_type(tensor.data_type, tensor.name, path)
    try:
        if any(size < 0 for size in tensor.dims):
            raise ValueError(f"its shape is {list(tensor.dims)}")
        if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= LOADED_ELEMENTS:
            numpy_helper.to_array(tensor)
    except Exception as error:  # numpy's, and onnx's own
        raise BadInput(
            f"{path} is no valid ONNX model: the values of '{tensor.name}' cannot be read: {first_line(error)}; "
            "save it again"
        ) from error


def _check_type(kind: int, name: str, path: Path) -> None:
    if kind not in TensorProto.DataType.values():
        raise BadInput(
            f"{path}: expected a type of values that onnx {onnx.__version__} knows, got number {kind} for '{name}'; "
            "save it again, or update onnx"
        )


def _load_small(tensor: TensorProto, path: Path) -> None:
    """Load a tensor from the file that holds it, if it is small; in place.

    Raises:
        BadInput: that file is missing, not beside the model, or too short.
    """
    storage = {entry.key: entry.value for entry in tensor.external_data}
    name = storage.get("location", "")
    file = path.parent / name
    folder = os.path.realpath(path.parent)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadInput(
            f"{path}: expected the weights of '{tensor.name}' in a file beside it, got '{name}'; save it again"
        )
    if not os.path.isfile(file):  # nor is a name that no file can have
        raise BadInput(f"{path}: expected its weights in {file}, got nothing there; put that file beside it")
    try:
        end = int(storage.get("offset") or 0) + int(storage.get("length") or 0)
    except ValueError as error:
        raise BadInput(f"{path} is no ONNX model: where '{tensor.name}' is stored is not a number") from error
    if file.stat().st_size < end:
        raise BadInput(
            f"{path}: expected at least {end} bytes in {file}, got {file.stat().st_size}; copy that file again"
        )
    if math.prod(tensor.dims) <= LOADED_ELEMENTS:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, folder)
        except Exception as error:  # onnx's checker has its own kinds; a link to elsewhere is one of them
            raise BadInput(
                f"{path}: cannot read '{tensor.name}' from {file}: {first_line(error)}; copy the file itself there"
            ) from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for onnx's checker, with its initializers, and tensors that were left in other files, made empty.

    The checker would copy the former twice, and look for the files in the working folder. It asks for a graph's name,
    and for its outputs' types and shapes, which follow from the graph and which some tools leave out: here they stand.
    """
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set_field(copy, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set_field(copy.graph, field.name, value)
    copy.graph.initializer.extend(map(_emptied, model.graph.initializer))
    copy.graph.name = model.graph.name or "graph"
    for value in copy.graph.output:
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
            value.type.tensor_type.shape.SetInParent()
    for tensor in tensors_of(copy.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(_emptied(tensor))
    return copy


def _set_field(message: Any, name: str, value: Any) -> None:
    """Set a field of a message, of whatever kind it is, to a copy of `value`."""
    if isinstance(value, str | bytes | int | float):
        setattr(message, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(message, name).CopyFrom(value)
    else:
        getattr(message, name).extend(value)


def _emptied(tensor: TensorProto) -> TensorProto:
    """The tensor; one without values in its place where they are raw bytes, or stored in another file."""
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0], raw_data=b"")


def _check_sizes(model: onnx.ModelProto, path: Path) -> None:
    """Check that the large initializers have as many bytes as their shapes say, which onnx's checker is not shown.

    Raises:
        BadInput: one has not; names it.
    """
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or not tensor.HasField("raw_data"):
            continue
        wanted = math.prod(tensor.dims) * ITEM_BYTES.get(tensor.data_type, 0)
        if not wanted or len(tensor.raw_data) == wanted:
            continue
        raise BadInput(
            f"{path} is no valid ONNX model: expected {wanted} bytes in '{tensor.name}', got {len(tensor.raw_data)}; "
            "save it again"
        )


def tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every initializer and every tensor held by a node's attribute, in a graph and in those inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR)
        for _, inner in subgraphs(node):
            yield from tensors_of(inner)
