"""Shapes of an engine's tensors: what its profile allows, and checks of what is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import BadInput
from runtimes.nvidia.dlpack import DeviceTensor
from runtimes.specs import PICTURE, BatchRange, TensorSpec

if TYPE_CHECKING:
    import tensorrt as trt

Shapes = dict[str, tuple[int, ...]]
"""Shapes by tensor name, each with the batch first."""


def engine_specs(api: Any, engine: trt.ICudaEngine, *, outputs: bool = False) -> list[TensorSpec]:
    """The inputs or the outputs of an engine: the batch may be free, and a picture's height and width."""
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    return [
        _spec(api, engine, name)
        for name in names
        if (engine.get_tensor_mode(name) == api.TensorIOMode.INPUT) is not outputs
    ]


def _spec(api: Any, engine: trt.ICudaEngine, name: str) -> TensorSpec:
    dtype = np.dtype(api.nptype(engine.get_tensor_dtype(name))).name
    sizes = [int(size) for size in engine.get_tensor_shape(name)]
    return TensorSpec(
        name, dtype, tuple(size if size >= 0 else ("batch", *PICTURE)[place] for place, size in enumerate(sizes))
    )


def batch_range(engine: trt.ICudaEngine, name: str) -> BatchRange:
    """The batch sizes of an input's profile."""
    least, best, most = (int(shape[0]) for shape in engine.get_tensor_profile_shape(name, 0))
    return BatchRange(least, best, most)


def largest_shape(engine: trt.ICudaEngine, name: str) -> tuple[int, ...]:
    """The largest shape of an input's profile."""
    return tuple(int(size) for size in engine.get_tensor_profile_shape(name, 0)[2])


def rows_of(shapes: Shapes) -> int:
    """The batch size, which all tensors share."""
    return next(iter(shapes.values()))[0]


def check_sizes(fed: Mapping[str, Sequence[int]], largest: Shapes) -> None:
    """Check that no picture is larger than the engine takes.

    Raises:
        BadInput: one is.
    """
    for name, shape in fed.items():
        if any(size > most for size, most in zip(shape[1:], largest[name][1:], strict=True)):
            got, most = ("x".join(map(str, sizes[1:3])) for sizes in (shape, largest[name]))
            raise BadInput(
                f"input '{name}': expected pictures of at most {most}, which the engine was built for, got {got}; "
                "shrink them first, or run the bundle on another backend"
            )


def placeholder(tensor: DeviceTensor) -> NDArray[Any]:
    """An array of the tensor's type and shape, for `check_feeds`; it takes no memory. bfloat16, which numpy lacks,
    becomes two raw bytes."""
    return np.broadcast_to(np.zeros((), "V2" if tensor.dtype == "bfloat16" else tensor.dtype), tensor.shape)
