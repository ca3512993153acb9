"""Run a network before it is traced: does it take such an image, and does it always give the same answer?"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.models.failing_layer import foreign_code, in_its_layer, reason, watch_layers, where_it_failed
from runtimes.errors import ResnetExportError, TraceError

SIDES = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
"""Usual sides of square input images, in pixels."""
SAME, NEIGHBOURS = 1e-6, 1e-3
"""Allowed difference, relative to the largest value: between two runs of the same input, which give the same bits; and
beside another picture, for which torch may take other kernels, whose rounding a deep network amplifies."""
ROUNDS = 64
"""Runs of a network that draws random numbers: a difference in one of ten runs is missed once in a thousand times."""
BATCH_REMEDY = "it must take batches of any size: take the size from the input's shape, and flatten from dimension 1 on"


@dataclass(frozen=True)
class Attempt:
    """The result of showing a network one black image.

    Attributes:
        shape: (channels, height, width) of the image.
        answer: what the network returned; None if it failed.
        error: what it raised; None if it did not.
        where: where it raised, such as ` in its layer 'layer2.0' (nets.py, line 12)`.
        depth: how many of its layers ran to their end before it raised.
    """

    shape: tuple[int, int, int]
    answer: object = None
    error: BaseException | None = None
    where: str = ""
    depth: int = 0


@contextmanager
def plain_fp32() -> Iterator[None]:
    """Run networks in FP32 and uncompiled, even if they are wrapped in `torch.autocast` or `torch.compile`.

    `torch.compile` would spend minutes with a C++ compiler on what runs a few times. `torch.autocast` would make the
    reference one of half precision, and the precision is chosen by the command's options.
    """
    entering, leaving = torch.autocast.__enter__, torch.autocast.__exit__
    # torch has no switch that an inner autocast heeds.
    torch.autocast.__enter__ = lambda self: self  # type: ignore[method-assign]
    torch.autocast.__exit__ = lambda self, *error: None  # type: ignore[method-assign]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = entering, leaving  # type: ignore[method-assign]


def try_black_image(module: nn.Module, shape: tuple[int, int, int]) -> Attempt:
    """Show a network, in evaluation mode, a black image of `shape` (channels, height, width)."""
    with watch_layers(module) as inside:
        try:
            return Attempt(shape, answer=_run(module, torch.zeros(1, *shape, dtype=torch.float32), TraceError))
        except TraceError as failed:
            error = failed.__cause__ or failed
    return Attempt(shape, None, error, where_it_failed(inside, error), inside.ended)


def side_that_fits(module: nn.Module, shape: tuple[int, int, int]) -> int | None:
    """The side of a square image that a network takes, the nearest to `shape`'s; None if it takes no usual one.

    Tried on torch's `meta` device, which computes shapes only.
    """
    state = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    for side in sorted(SIDES, key=lambda side: abs(side - max(shape[1:]))):
        with suppress(TraceError), foreign_code(TraceError), plain_fp32(), torch.no_grad(), torch.device("meta"):
            torch.func.functional_call(module, state, (torch.zeros(1, shape[0], side, side),))
            return side
    return None


def logits_within(answer: object) -> Tensor | None:
    """Find the logits in an answer that is not a tensor: what is called `logits`, or the only tensor in it."""
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    return parts[0] if isinstance(parts, list | tuple) and len(parts) == 1 and isinstance(parts[0], Tensor) else None


def describe(answer: object) -> str:
    """Describe an answer: `a tensor of shape (1, 10)`, `a dict of out (1, 21, 8, 8), aux (1, 21, 8, 8)`."""
    if isinstance(answer, Tensor):
        kind = "" if answer.dtype == torch.float32 else f"{str(answer.dtype).removeprefix('torch.')} "
        return f"a {kind}tensor of shape {tuple(answer.shape)}"
    named = (
        answer.items() if isinstance(answer, Mapping) else enumerate(answer) if isinstance(answer, list | tuple) else ()
    )
    parts = [f"{name} {tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__}" for name, one in named]
    return f"a {type(answer).__name__} of {', '.join(parts)}" if parts else type(answer).__name__


def check_deterministic(module: nn.Module, picture: NDArray[np.float32], name: str) -> None:
    """Check that a network gives the same answer to a picture each time, and whatever else is in its batch.

    Args:
        picture: float32 (channels, height, width).
        name: what messages call the network.

    Raises:
        TraceError: it draws random numbers, keeps a state, or mixes the pictures of a batch; names the layer where that
            shows first.
    """
    alone = torch.tensor(picture)[None]
    both = torch.cat([alone, 1 - 2 * alone.flip(-1)])

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        def batch_error(error: BaseException) -> TraceError:
            what = f"{name} does not take a batch of {len(inputs)}{where_it_failed(inside, error)}"
            return TraceError(f"{what}: {reason(error)}; {BATCH_REMEDY}")

        with watch_layers(module) as inside:
            answer = _run(module, inputs, batch_error)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        if not all(isinstance(one, Tensor) and one.ndim and len(one) == len(inputs) for one in outputs):
            raise TraceError(f"{name} answers a batch of {len(inputs)} with {describe(answer)}; {BATCH_REMEDY}")
        return tuple(one[:1] for one in outputs)

    with torch.random.fork_rng(devices=[]):
        before = _generators()
        answer = run(alone)
        for _ in range(1 if before == _generators() else ROUNDS):
            apart = _relative_difference(answer, run(alone))
            if not apart <= SAME:
                where = _first_to_differ(module, (alone, alone), SAME)
                raise TraceError(
                    f"{name} answers the same picture differently each time, "
                    f"{apart:.2g} of its largest value apart{where}: it draws random numbers "
                    "in evaluation mode too (F.dropout without training=self.training, torch.rand), "
                    "or keeps what it saw; take that out"
                )
        apart = _relative_difference(answer, run(both))
        if not apart <= NEIGHBOURS:
            where = _first_to_differ(module, (alone, both), NEIGHBOURS)
            raise TraceError(
                f"{name}'s answer to a picture depends on the others of its batch, "
                f"{apart:.2g} of its largest value apart{where}: "
                "give batch norms their running statistics (track_running_stats=True, training=self.training), "
                "and normalise each picture by itself"
            )


def _run(module: nn.Module, inputs: Tensor, as_error: Callable[[BaseException], ResnetExportError]) -> object:
    """Run a network in evaluation mode; what it raises becomes the error that `as_error` makes of it."""
    with foreign_code(as_error), plain_fp32(), torch.no_grad():
        module.eval()  # not chained: a foreign one may return None
        return module(inputs)


def _relative_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two answers, relative to the largest value.

    Infinite if shapes differ, or if a value is finite in only one of them.
    """
    differences = [0.0]
    for left, right in zip(one, other, strict=True):
        if left.shape != right.shape or not torch.equal(left.isfinite(), right.isfinite()):
            return float("inf")
        left, right = (torch.nan_to_num(value.double(), posinf=0.0, neginf=0.0) for value in (left, right))
        if left.numel():
            differences.append(
                float((left - right).abs().max() / left.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
            )
    return max(differences)


def _first_to_differ(module: nn.Module, batches: tuple[Tensor, Tensor], tolerance: float) -> str:
    """The first layer whose output differs for the same input, as ` in its layer 'layer2.0.drop'`; empty if unknown."""
    for _ in range(ROUNDS if batches[0] is batches[1] else 1):
        calls = [_layer_calls(module, inputs) for inputs in batches]
        for one, other in zip(*calls, strict=False):
            if (one.name, len(one.inputs), len(one.outputs)) != (other.name, len(other.inputs), len(other.outputs)):
                return ""
            if (
                _relative_difference(one.inputs, other.inputs)
                <= tolerance
                < _relative_difference(one.outputs, other.outputs)
            ):
                return in_its_layer(one.name)
    return ""


class _LayerCall(NamedTuple):
    """A layer's name, and its inputs and outputs for the first picture of a batch."""

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def _layer_calls(module: nn.Module, inputs: Tensor) -> list[_LayerCall]:
    """Run a network and record the calls of its layers, in the order in which they ended."""
    begun: list[list[Tensor]] = []
    calls: list[_LayerCall] = []

    def of_first_picture(values: object) -> list[Tensor]:
        some = values if isinstance(values, list | tuple) else [values]
        # Copies: what follows may write to them.
        return [value[:1].clone() for value in some if isinstance(value, Tensor) and value.ndim]

    def leaving(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda part, taken, given: calls.append(_LayerCall(name, begun.pop(), of_first_picture(given)))

    hooks = [
        part.register_forward_pre_hook(lambda part, taken: begun.append(of_first_picture(taken)))
        for part in module.modules()
    ]
    hooks += [part.register_forward_hook(leaving(name)) for name, part in module.named_modules()]
    try:
        _run(module, inputs, TraceError)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _generators() -> bytes:
    """The state of every source of random numbers that a network may draw from."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.random.get_rng_state().numpy()))
