"""Read a whole ONNX file, with weights that it keeps in other files, and copy it as a bundle's reference."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from exporter.graph.facts import type_name
from exporter.graph.intake.plain import OLDEST_OPSET, opset_of
from exporter.graph.intake.wiring import replace_nodes
from exporter.graph.onnx_file import LARGEST_BYTES, checked_model, tensors_of, unchecked_model
from runtimes.bundle import sha256_of_file
from runtimes.errors import BadInput, first_line

PLAIN_DOMAIN = "ai.onnx"


@dataclass
class ModelFile:
    """An ONNX file, read.

    Attributes:
        model: the whole of it, its local functions inlined; it changes as it is taken in.
        sha256: of the file itself.
        beside: the files that hold its weights; empty where it holds them itself.
        is_quantized: its graph holds Q/DQ pairs, in place of the operators on integers that the file may have.
        is_copied: as a bundle's reference, the file is copied as it is; else its weights are put inside, its local
            functions inlined, its nodes sorted, and names of nodes that are there twice left out.
    """

    path: Path
    model: onnx.ModelProto
    sha256: str
    beside: tuple[Path, ...]
    is_copied: bool
    is_quantized: bool = False

    @property
    def name(self) -> str:
        return self.path.name


def read_model_file(path: Path) -> ModelFile:
    """Read a file and all its weights.

    Raises:
        BadInput: it cannot be read (see `unchecked_model`, `checked_model`), has weights of 2 GiB or more, or such that
            are sparse or no finite numbers (named), or was changed while it was read.
    """
    digest = sha256_of_file(path) if path.is_file() else ""
    model = unchecked_model(path)
    _use_plain_domain(model)
    _check_opset(path, model)
    _check_dense(path, model.graph)
    is_odd = any([bool(model.functions), _sort(path, model.graph), _clear_double_names(model.graph)])
    beside = tuple(path.parent / name for name in _locations(model))
    stamps = [_stamp(file) for file in beside]
    model = checked_model(model, path)
    _check_size(path, model)
    for tensor in tensors_of(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        try:
            external_data_helper.load_external_data_for_tensor(tensor, os.path.realpath(path.parent))
        except Exception as error:  # onnx's checker has its own kinds; a link to elsewhere is one of them
            raise BadInput(f"{path}: cannot read the weights of '{tensor.name}': {first_line(error)}") from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    _check_finite(path, model)
    if sha256_of_file(path) != digest or [_stamp(file) for file in beside] != stamps:
        raise _changed(path)
    return ModelFile(path, model, digest, beside, is_copied=not (is_odd or beside))


def with_other_graph(file: ModelFile, model: onnx.ModelProto) -> ModelFile:
    """The file with another graph, which is written in its place where it is saved."""
    return replace(file, model=model, is_copied=False)


def save_reference(file: ModelFile, target: Path) -> None:
    """Write a file that was read, and not changed since, as a bundle's reference.

    Raises:
        BadInput: the file was changed since it was read.
    """
    if not file.is_copied:
        onnx.save(file.model, target)
        return
    shutil.copyfile(file.path, target)
    if sha256_of_file(target) != file.sha256:
        raise _changed(file.path)


def _changed(path: Path) -> BadInput:
    return BadInput(f"{path} was changed while it was read; wait until it is written, and repeat")


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    found, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= found <= newest:
        remedy = "save it with a newer one" if found < OLDEST_OPSET else "save it with an older one, or update onnx"
        raise BadInput(f"{path}: expected an opset from {OLDEST_OPSET} to {newest}, got {found}; {remedy}")


def _use_plain_domain(model: onnx.ModelProto) -> None:
    """Write the domain of ONNX's own operators as an empty text, wherever it is written `ai.onnx`."""
    functions = [node for function in model.functions for node in function.node]
    for one in (*model.graph.node, *functions, *model.opset_import):
        if one.domain == PLAIN_DOMAIN:
            one.domain = ""


def _check_dense(path: Path, graph: onnx.GraphProto) -> None:
    sparse = [tensor.values.name for tensor in graph.sparse_initializer]
    sparse += [node.output[0] for node in graph.node if any(one.name == "sparse_value" for one in node.attribute)]
    if sparse:
        raise BadInput(f"{path}: expected dense weights, got sparse ones in '{sparse[0]}'; save it with dense ones")


def _sort(path: Path, graph: onnx.GraphProto) -> bool:
    """Bring the nodes into an order in which each comes after those that it reads; false where they are in one.

    Raises:
        BadInput: there is none, since they read one another; names one.
    """
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    before = [{makers[name] for name in node.input if name in makers} for node in graph.node]
    if all(max(needed, default=-1) < place for place, needed in enumerate(before)):
        return False
    try:
        order = list(TopologicalSorter(dict(enumerate(before))).static_order())
    except CycleError as error:
        node = graph.node[error.args[1][0]]
        raise BadInput(
            f"{path}: expected nodes that follow from one another, got {node.op_type} '{node.name}', which reads what "
            "it makes itself; save the file again"
        ) from error
    replace_nodes(graph, [graph.node[place] for place in order])
    return True


def _clear_double_names(graph: onnx.GraphProto) -> bool:
    """Take names off nodes that have another's, which onnxruntime refuses; false where there are none."""
    seen, count = {""}, 0
    for node in graph.node:
        if node.name in seen and node.name:
            node.name, count = "", count + 1
        seen.add(node.name)
    return count > 0


def _locations(model: onnx.ModelProto) -> list[str]:
    """The names of the files beside a model that hold its tensors, sorted."""
    return sorted(
        {
            entry.value
            for tensor in tensors_of(model.graph)
            if tensor.data_location == TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file does: its size, and when it was written; None where there is none."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _check_size(path: Path, model: onnx.ModelProto) -> None:
    size = sum(math.prod(tensor.dims) * _bytes_of(tensor) for tensor in tensors_of(model.graph))
    if size >= LARGEST_BYTES:
        raise BadInput(
            f"{path}: expected weights of less than 2 GiB, got {size / 1e9:.1f} GB; a bundle's graph is one file, and "
            "protobuf allows no larger ones"
        )


def _bytes_of(tensor: TensorProto) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError):
        return 1


def _check_finite(path: Path, model: onnx.ModelProto) -> None:
    for tensor in _floats(model.graph):
        values = numpy_helper.to_array(tensor)
        if not np.isfinite(values).all() and values.size > 1:  # a bound of a Clip may be infinite
            raise BadInput(
                f"{path}: expected finite weights, got NaN or infinity in '{tensor.name}'; save the file again from "
                "weights that are"
            )


def _floats(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    return (one for one in tensors_of(graph) if type_name(one.data_type) in ("FLOAT", "FLOAT16", "DOUBLE"))
