"""What a network answers before it is traced: to how many channels, at which size, and whether always alike."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporter.models.failing_layer import in_its_layer, layers_at_work, others_code, place, reason
from runtimes.errors import ResnetExportError, TraceError

SIDES = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)
"""Of square images: those that networks are usually made for."""
SAME, NEIGHBOURS = 1e-6, 1e-3
"""Of the largest value. The same work twice gives the same bits; for another size of the batch torch takes other
kernels, whose rounding a deep network amplifies."""
ROUNDS = 64
"""How often a network that draws random numbers is asked: what it does once in ten times is missed once in a
thousand."""
BATCH_REMEDY = "it must take batches of any size: take the size from the input's shape, and flatten from dimension 1 on"


@dataclass(frozen=True)
class Attempt:
    """What came of showing a network one black image.

    Attributes:
        shape: (channels, height, width) of the image.
        answer: what it answered; None where it failed.
        error: what it raised; None where it did not.
        where: ` in its layer 'layer2.0' (nets.py, line 12)`, of the error.
        depth: how many of its layers ran to their end.
    """

    shape: tuple[int, int, int]
    answer: object = None
    error: BaseException | None = None
    where: str = ""
    depth: int = 0


@contextmanager
def as_exported() -> Iterator[None]:
    """Whatever a network is wrapped in, it computes in FP32 and as it is written.

    `torch.compile` would compile for minutes, with a C++ compiler, what runs a few times; `torch.autocast` would make
    the FP32 reference one of half precision, and precision is what the command's options choose.
    """
    entering, leaving = torch.autocast.__enter__, torch.autocast.__exit__
    torch.autocast.__enter__ = lambda self: self  # type: ignore[method-assign]  # torch has no switch that an inner autocast heeds
    torch.autocast.__exit__ = lambda self, *error: None  # type: ignore[method-assign]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = entering, leaving  # type: ignore[method-assign]


def attempt(module: nn.Module, shape: tuple[int, int, int]) -> Attempt:
    """Show the network a black image of (channels, height, width), in evaluation mode."""
    with layers_at_work(module) as inside:
        try:
            return Attempt(shape, answer=_run(module, torch.zeros(1, *shape, dtype=torch.float32), TraceError))
        except TraceError as failed:
            error = failed.__cause__ or failed
    return Attempt(shape, None, error, place(inside, error), inside.ended)


def side_that_fits(module: nn.Module, shape: tuple[int, int, int]) -> int | None:
    """The side of a square image, near the one of `shape`, that the network does take; None where no usual one helps.

    Tried on torch's `meta` device, which computes shapes alone.
    """
    state = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    for side in sorted(SIDES, key=lambda side: abs(side - max(shape[1:]))):
        with suppress(TraceError), others_code(TraceError), as_exported(), torch.no_grad(), torch.device("meta"):
            torch.func.functional_call(module, state, (torch.zeros(1, shape[0], side, side),))
            return side
    return None


def logits_within(answer: object) -> Tensor | None:
    """The logits of an answer that is more than a tensor: those it calls so, or the only tensor there is."""
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    return parts[0] if isinstance(parts, list | tuple) and len(parts) == 1 and isinstance(parts[0], Tensor) else None


def described(answer: object) -> str:
    """An answer for people: `a tensor of shape (1, 10)`, `a dict of out (1, 21, 8, 8), aux (1, 21, 8, 8)`."""
    if isinstance(answer, Tensor):
        kind = "" if answer.dtype == torch.float32 else f"{str(answer.dtype).removeprefix('torch.')} "
        return f"a {kind}tensor of shape {tuple(answer.shape)}"
    named = (
        answer.items() if isinstance(answer, Mapping) else enumerate(answer) if isinstance(answer, list | tuple) else ()
    )
    parts = [f"{name} {tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__}" for name, one in named]
    return f"a {type(answer).__name__} of {', '.join(parts)}" if parts else type(answer).__name__


def check_steady(module: nn.Module, picture: NDArray[np.float32], name: str) -> None:
    """Does the network answer a picture, float32 (channels, height, width), alike each time, and alike beside another?

    Raises:
        TraceError: it draws random numbers, keeps what it saw, or looks at the whole batch; names the layer where that
            shows first.
    """
    alone = torch.tensor(picture)[None]
    both = torch.cat([alone, 1 - 2 * alone.flip(-1)])

    def run(inputs: Tensor) -> tuple[Tensor, ...]:
        def told(error: BaseException) -> TraceError:
            return TraceError(
                f"{name} does not take a batch of {len(inputs)}{place(inside, error)}: {reason(error)}; {BATCH_REMEDY}"
            )

        with layers_at_work(module) as inside:
            answer = _run(module, inputs, told)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        if not all(isinstance(one, Tensor) and one.ndim and len(one) == len(inputs) for one in outputs):
            raise TraceError(f"{name} answers a batch of {len(inputs)} with {described(answer)}; {BATCH_REMEDY}")
        return tuple(one[:1] for one in outputs)

    with torch.random.fork_rng(devices=[]):
        before = _generators()
        answer = run(alone)
        for _ in range(1 if before == _generators() else ROUNDS):
            apart = _apart(answer, run(alone))
            if not apart <= SAME:
                where = _first_to_differ(module, (alone, alone), SAME)
                raise TraceError(
                    f"{name} answers the same picture otherwise each time, "
                    f"{apart:.2g} of its largest value apart{where}: it draws random numbers "
                    "in evaluation mode too (F.dropout without training=self.training, torch.rand), "
                    "or keeps what it saw; take that out"
                )
        apart = _apart(answer, run(both))
        if not apart <= NEIGHBOURS:
            where = _first_to_differ(module, (alone, both), NEIGHBOURS)
            raise TraceError(
                f"{name}'s answer to a picture depends on the others of its batch, "
                f"{apart:.2g} of its largest value apart{where}: "
                "give batch norms their running statistics (track_running_stats=True, training=self.training), "
                "and normalise each picture by itself"
            )


def _run(module: nn.Module, inputs: Tensor, told: Callable[[BaseException], ResnetExportError]) -> object:
    with others_code(told), as_exported(), torch.no_grad():
        module.eval()  # somebody's own may return nothing
        return module(inputs)


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest value; infinite for other shapes, and where one alone is not
    finite."""
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
    """` in its layer 'layer2.0.drop'`: the first of two runs to give another output for the same input; empty where
    none."""
    for _ in range(ROUNDS if batches[0] is batches[1] else 1):
        calls = [_calls(module, inputs) for inputs in batches]
        for (name, taken, given), (same, also_taken, also_given) in zip(*calls, strict=False):
            if name != same or len(taken) != len(also_taken) or len(given) != len(also_given):
                return ""
            if _apart(taken, also_taken) <= tolerance < _apart(given, also_given):
                return in_its_layer(name)
    return ""


Call = tuple[str, list[Tensor], list[Tensor]]


def _calls(module: nn.Module, inputs: Tensor) -> list[Call]:
    """Every layer's name, and of the first picture what it was given and what it gave, in the order in which they
    ended."""
    begun: list[list[Tensor]] = []
    calls: list[Call] = []

    def of_first_picture(values: object) -> list[Tensor]:
        some = values if isinstance(values, list | tuple) else [values]
        # Copies: what comes behind may write to them.
        return [value[:1].clone() for value in some if isinstance(value, Tensor) and value.ndim]

    def leaving(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda part, taken, given: calls.append((name, begun.pop(), of_first_picture(given)))

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
