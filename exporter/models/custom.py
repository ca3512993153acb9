"""Any module: `package.module:factory` names a callable that returns one. Making it imports that module and calls it: somebody's code runs."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from exporter.checkpoints import sha256_of_state
from exporter.layouts import fitted
from exporter.models import ModelSpec, Pretrained
from exporter.wrappers import Checkpoint, Fitted
from runtimes.errors import BadInput
from runtimes.preprocess import Preprocess


def create(spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
    """What the factory returns, every layer initialised anew; its numbers of classes and channels are its own."""
    module = _made(spec)
    for part in module.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return module


def load(spec: ModelSpec, checkpoint: Checkpoint) -> Fitted:
    """What the factory returns, with a checkpoint's weights under its own names."""
    return fitted(_made(spec), checkpoint, spec.name)


def pretrained(spec: ModelSpec) -> Pretrained:
    """What the factory returns, as it is: trained or not, which nobody but its author knows."""
    module = _made(spec)
    return Pretrained(module, preprocess(spec), None, "default", sha256_of_state(module.state_dict()))


def preprocess(spec: ModelSpec) -> Preprocess:
    """Pixels scaled to 0..1 and no more; the size is `--image-size`'s."""
    return Preprocess(224, (224, 224), "bilinear", True, (0.0,), (1.0,))


def _made(spec: ModelSpec) -> nn.Module:
    path, _, attribute = spec.name.partition(":")
    with _this_folder_importable():
        with torch.random.fork_rng(devices=[]):  # a module is imported once, and its factory called often: random numbers are the latter's
            factory = _factory(path, attribute)
        module = _called(spec.name, factory)
    if not isinstance(module, nn.Module):
        raise BadInput(f"expected {spec.name} to return a torch.nn.Module, got {type(module).__name__}")
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise BadInput(f"{spec.name} returns a module with lazy layers that have no shape yet; let it run once before it is returned")
    return module.float().cpu().requires_grad_(requires_grad=False)


def _factory(path: str, attribute: str) -> object:
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise BadInput(f"importing {path} failed: it needs '{error.name}', which is not installed") from error
        raise BadInput(f"there is no module '{error.name}' in this folder or among the installed packages; give package.module:factory") from error
    except (Exception, SystemExit) as error:  # it is anybody's code
        raise BadInput(f"importing {path} failed: {_reason(error)}") from error
    if not hasattr(module, attribute):
        nearest = difflib.get_close_matches(attribute, [name for name in vars(module) if not name.startswith("_")], n=3)
        raise BadInput(f"{path} has no '{attribute}'" + (f"; did you mean {' or '.join(nearest)}?" if nearest else ""))
    return getattr(module, attribute)


def _called(name: str, factory: object) -> object:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise BadInput(f"expected {name} to be a function or class that makes a module, got {type(factory).__name__}")
    try:
        return factory()
    except (Exception, SystemExit) as error:  # as above
        raise BadInput(f"{name} raised {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _this_folder_importable() -> Iterator[None]:
    """As `python -m` has it; an installed command looks in its own folder instead."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
