"""Any module: `package.module:factory` names a callable that returns one. Making it imports that module and calls it: somebody's code runs."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from exporter.models.checkpoints import sha256_of_state
from exporter.models.failing_layer import kind_and_line, others_code, source_line
from exporter.models.spec import ModelSpec, Pretrained
from exporter.models.state_names import fitted
from exporter.models.wrappers import Checkpoint, Fitted
from runtimes.errors import BadInput
from runtimes.preprocess import Preprocess

AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""What training scripts put around a network, which is their `module`."""


def create(spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
    """What the factory returns, every layer initialised anew; its numbers of classes and channels are its own."""
    module = _prepared(spec.name, _made(spec))
    for name, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            with others_code(_telling(f"{spec.name}: reset_parameters of {name or 'the network'} raised")):
                reset()
    return module


def load(spec: ModelSpec, checkpoint: Checkpoint) -> Fitted:
    """What the factory returns, with a checkpoint's weights under its own names."""
    module = _made(spec)
    with others_code(_telling(f"loading {checkpoint.where} into {spec.name} raised")):
        found = fitted(module, checkpoint, spec.name)
    return replace(found, module=_prepared(spec.name, found.module))


def pretrained(spec: ModelSpec) -> Pretrained:
    """What the factory returns, as it is: trained or not, which nobody but its author knows."""
    module = _prepared(spec.name, _made(spec))
    with others_code(_telling(f"{spec.name}: its state_dict raised")):
        state = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    return Pretrained(module, preprocess(spec), None, "default", sha256_of_state(state))


def preprocess(spec: ModelSpec) -> Preprocess:
    """Pixels scaled to 0..1 and no more; the size is `--image-size`'s."""
    return Preprocess(224, (224, 224), "bilinear", True, (0.0,), (1.0,))


def _made(spec: ModelSpec) -> nn.Module:
    """The network that the factory returns, bare of what training put around it.

    Raises:
        BadInput: there is no such factory, it raises, or it returns what torch.export cannot follow; says what.
    """
    path, _, attribute = spec.name.partition(":")
    with _as_alone(path):
        with torch.random.fork_rng(devices=[]):  # a module is imported once, and its factory called often: random numbers are the latter's
            factory = _factory(path, attribute)
        module = _called(spec.name, factory)
    if not isinstance(module, nn.Module):
        raise BadInput(f"expected {spec.name} to return a torch.nn.Module, got {type(module).__name__}; return the network alone")
    module = _unwrapped(module)
    _check_parts(spec.name, module)
    return module


def _prepared(name: str, module: nn.Module) -> nn.Module:
    """The network in FP32 on the CPU, in evaluation mode, its tensors in the usual order of memory."""
    for key, tensor in _tensors(module).items():
        if tensor.is_meta:
            raise BadInput(f"{name} returns a network without values ('{key}' is on torch's meta device); load its weights before it is returned")
    with others_code(_telling(f"{name} returns a network that cannot be brought to FP32 on the CPU:")):
        module.float().cpu().requires_grad_(requires_grad=False)
        for tensor in _tensors(module).values():
            tensor.data = tensor.data.contiguous()  # of a network in channels_last, torch.export.save says that it misses a tensor
    with others_code(_telling(f"{name} returns a network that cannot be put into evaluation mode:")):
        module.eval()
    return module


def _unwrapped(module: nn.Module) -> nn.Module:
    """Without DataParallel, torch.compile and their like, around it or around its parts."""
    while True:
        inner = module.module if isinstance(module, AROUND) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        module = inner
    if not isinstance(module, torch.jit.ScriptModule):
        for name, part in list(module._modules.items()):
            if part is not None:
                module._modules[name] = _unwrapped(part)
    return module


def _check_parts(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise BadInput(
            f"expected {name} to return a network in Python, got TorchScript, which torch.export does not follow; return what it was before torch.jit"
        )
    for key, part in module.named_modules():
        if ".quantized" in type(part).__module__:
            raise BadInput(f"{name} returns a quantized network ('{key}' is a {type(part).__name__}); return the float one, --int8 quantizes it here")
    for key, tensor in _tensors(module).items():
        if is_lazy(tensor):
            raise BadInput(f"{name} returns a module with lazy layers that have no shape yet; let it run once before it is returned")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = "sparse" if tensor.layout != torch.strided else "quantized" if tensor.is_quantized else "complex"
            raise BadInput(f"expected dense float tensors in what {name} returns, got '{key}', which is {kind}; convert it before it is returned")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _factory(path: str, attribute: str) -> object:
    with others_code(_telling(f"importing {path} failed:")):
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):
                raise BadInput(f"importing {path} failed: it needs '{error.name}', which is not installed") from error
            raise BadInput(
                f"there is no module '{error.name}' in this folder or among the installed packages; give package.module:factory{_no_file(path)}"
            ) from error
        if not hasattr(module, attribute):
            nearest = difflib.get_close_matches(attribute, [name for name in vars(module) if not name.startswith("_")], n=3)
            raise BadInput(f"{path} has no '{attribute}'" + (f"; did you mean {' or '.join(nearest)}?" if nearest else ""))
        return getattr(module, attribute)


def _no_file(path: str) -> str:
    """`nets/small.py` is meant as `nets.small`."""
    named = path.removesuffix(".py").removeprefix("./").replace("/", ".")
    return f", here {named}:factory" if named != path else ""


def _called(name: str, factory: object) -> object:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise BadInput(f"expected {name} to be a function or class that makes a module, got {type(factory).__name__}")
    with others_code(_telling(f"{name} raised")):
        missing = _missing_arguments(factory)
        if missing:
            raise BadInput(f"expected {name} to be called without arguments, got one that needs {', '.join(missing)}; name one that gives them")
        return factory()


def _missing_arguments(factory: object) -> list[str]:
    assert callable(factory)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # of something that is not written in Python
        return []
    return [one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _telling(what: str) -> Callable[[BaseException], BadInput]:
    """Makes a BadInput of what somebody's code raises: what was at work, what it says, and where."""

    def told(error: BaseException) -> BadInput:
        line = source_line(error)
        return BadInput(f"{what} {kind_and_line(error)}" + (f" ({line})" if line else ""))

    return told


@contextmanager
def _as_alone(path: str) -> Iterator[None]:
    """As `python -m PATH` has it: this folder can be imported from, and there are no arguments, for those are ours.

    What a script sets for all of torch ends with it.
    """
    here, arguments = str(Path.cwd()), sys.argv
    kept = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    sys.path.insert(0, here)
    sys.argv = [path]
    try:
        yield
    finally:
        sys.path.remove(here)
        sys.argv = arguments
        torch.set_default_dtype(kept[0])
        torch.set_float32_matmul_precision(kept[1])
