"""Any module: `package.module:factory` names a callable that returns one. To import and to call it runs its code."""

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
from exporter.models.failing_layer import foreign_code, kind_and_line, source_line
from exporter.models.find_network import Checkpoint, FittedModule
from exporter.models.spec import ModelSpec, Pretrained
from exporter.models.state_names import fit_checkpoint
from runtimes.errors import BadInput
from runtimes.preprocess import Preprocess

AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Wrappers that training scripts put around a network; it is their `module`."""


def create(spec: ModelSpec, classes: int | None, channels: int | None) -> nn.Module:
    """Call the factory and initialise every layer anew; the numbers of classes and channels are the network's own."""
    module = _prepare(spec.name, _make(spec))
    for name, part in module.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            with foreign_code(_error_from(f"{spec.name}: reset_parameters of {name or 'the network'} raised")):
                reset()
    return module


def load(spec: ModelSpec, checkpoint: Checkpoint) -> FittedModule:
    """Call the factory and give the network a checkpoint's weights, which have the network's own names."""
    module = _make(spec)
    with foreign_code(_error_from(f"loading {checkpoint.where} into {spec.name} raised")):
        found = fit_checkpoint(module, checkpoint, spec.name)
    return replace(found, module=_prepare(spec.name, found.module))


def pretrained(spec: ModelSpec) -> Pretrained:
    """Call the factory and take the network as it is; whether it is trained, only its author knows."""
    module = _prepare(spec.name, _make(spec))
    with foreign_code(_error_from(f"{spec.name}: its state_dict raised")):
        state = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    return Pretrained(module, preprocess(spec), None, "default", sha256_of_state(state))


def preprocess(spec: ModelSpec) -> Preprocess:
    """Pixels scaled to 0..1, and no more; `--image-size` replaces the size."""
    return Preprocess(224, (224, 224), "bilinear", True, (0.0,), (1.0,))


def _make(spec: ModelSpec) -> nn.Module:
    """Call the factory, and take off what training put around the network.

    Raises:
        BadInput: there is no such factory, it raises, or it returns what torch.export cannot follow; says which.
    """
    path, _, attribute = spec.name.partition(":")
    with _run_as_script(path):
        # Importing happens once and the factory may be called often: it must not use up the factory's random numbers.
        with torch.random.fork_rng(devices=[]):
            factory = _factory(path, attribute)
        module = _call(spec.name, factory)
    if not isinstance(module, nn.Module):
        raise BadInput(
            f"expected {spec.name} to return a torch.nn.Module, got {type(module).__name__}; return the network alone"
        )
    module = _unwrap(module)
    _check_parts(spec.name, module)
    return module


def _prepare(name: str, module: nn.Module) -> nn.Module:
    """Bring a network to FP32 on the CPU and into evaluation mode, its tensors contiguous."""
    for key, tensor in _tensors(module).items():
        if tensor.is_meta:
            raise BadInput(
                f"{name} returns a network without values ('{key}' is on torch's meta device); "
                "load its weights before it is returned"
            )
    with foreign_code(_error_from(f"{name} returns a network that cannot be brought to FP32 on the CPU:")):
        module.float().cpu().requires_grad_(requires_grad=False)
        for tensor in _tensors(module).values():
            tensor.data = tensor.data.contiguous()  # torch.export.save warns of tensors in channels_last
    with foreign_code(_error_from(f"{name} returns a network that cannot be put into evaluation mode:")):
        module.eval()
    return module


def _unwrap(module: nn.Module) -> nn.Module:
    """Remove DataParallel, torch.compile and their like from around a network and its parts."""
    while True:
        inner = module.module if isinstance(module, AROUND) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        module = inner
    if not isinstance(module, torch.jit.ScriptModule):
        for name, part in list(module._modules.items()):
            if part is not None:
                module._modules[name] = _unwrap(part)
    return module


def _check_parts(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise BadInput(
            f"expected {name} to return a network in Python, got TorchScript, which torch.export does not follow; "
            "return what it was before torch.jit"
        )
    for key, part in module.named_modules():
        if ".quantized" in type(part).__module__:
            raise BadInput(
                f"{name} returns a quantized network ('{key}' is a {type(part).__name__}); return the float one, "
                "--int8 quantizes it here"
            )
    for key, tensor in _tensors(module).items():
        if is_lazy(tensor):
            raise BadInput(
                f"{name} returns a module with lazy layers that have no shape yet; "
                "let it run once before it is returned"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = "sparse" if tensor.layout != torch.strided else "quantized" if tensor.is_quantized else "complex"
            raise BadInput(
                f"expected dense float tensors in what {name} returns, got '{key}', which is {kind}; "
                "convert it before it is returned"
            )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _factory(path: str, attribute: str) -> object:
    with foreign_code(_error_from(f"importing {path} failed:")):
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{path}.".startswith(f"{error.name}."):
                raise BadInput(f"importing {path} failed: it needs '{error.name}', which is not installed") from error
            raise BadInput(
                f"there is no module '{error.name}' in this folder or among the installed packages; "
                f"give package.module:factory{_no_file(path)}"
            ) from error
        if not hasattr(module, attribute):
            nearest = difflib.get_close_matches(
                attribute, [name for name in vars(module) if not name.startswith("_")], n=3
            )
            raise BadInput(
                f"{path} has no '{attribute}'; "
                + (f"did you mean {' or '.join(nearest)}?" if nearest else "name a function or class of that module")
            )
        return getattr(module, attribute)


def _no_file(path: str) -> str:
    """A hint for a path in a module's place: `nets/small.py` is meant as `nets.small`."""
    named = path.removesuffix(".py").removeprefix("./").replace("/", ".")
    return f", here {named}:factory" if named != path else ""


def _call(name: str, factory: object) -> object:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise BadInput(f"expected {name} to be a function or class that makes a module, got {type(factory).__name__}")
    with foreign_code(_error_from(f"{name} raised")):
        missing = _missing_arguments(factory)
        if missing:
            raise BadInput(
                f"expected {name} to be called without arguments, got one that needs {', '.join(missing)}; "
                "name one that gives them"
            )
        return factory()


def _missing_arguments(factory: object) -> list[str]:
    assert callable(factory)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # of something that is not written in Python
        return []
    return [
        one.name
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]


def _error_from(what: str) -> Callable[[BaseException], BadInput]:
    """For `foreign_code`: make a BadInput of an error that says what was done, the reason, and the source line."""

    def bad_input(error: BaseException) -> BadInput:
        line = source_line(error)
        return BadInput(f"{what} {kind_and_line(error)}" + (f" ({line})" if line else ""))

    return bad_input


@contextmanager
def _run_as_script(path: str) -> Iterator[None]:
    """Run foreign code as `python -m PATH` does: it can import from this folder, and does not see our arguments.

    Its settings for all of torch (default dtype, matmul precision) are undone afterwards.
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
