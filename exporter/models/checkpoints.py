"""Read a checkpoint's tensors, however a training script wrapped them. Nothing in the file is run."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exporter.models.not_weights import archive_names, is_safetensors, refuse_other_formats, unpacked_bytes
from runtimes.arrays import check_growth
from runtimes.errors import BadInput

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
"""Keys under which training scripts keep the weights; a moving average comes last, for want of others."""
AVERAGE = re.compile(r"(.*_)?(ema|swa|averaged?)(_.*)?")
NOT_WEIGHTS = re.compile(r"optim\w*|(lr_)?sched\w*|scaler|callbacks|loops|\w*_optim\w*|\w*_state")
HARMLESS_MODULES = (
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "enum",
    "functools",
    "pathlib",
    "types",
    "typing",
    "uuid",
)
"""Modules of Python's library that hold the classes of plain values. A file that asks for others wants to run code."""
NUMPY_NUMBERS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""What numpy's numbers are made by. None of it is called: a type's spoilt state ends the process."""
HARMLESS_BUILTINS = ("list", "dict", "tuple", "frozenset", "slice", "range", "int", "float", "str", "bool", "object")


class _Ignored(list[Any]):
    """Stands in for an object whose class is not installed: takes what it is given and does nothing."""

    def __new__(cls, *args: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


class _IgnoredMapping:
    """Stands in for an object whose class is a kind of dict, as an OrderedDict: torch fills no other class."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # another class, on purpose
        return OrderedDict()


def state_from_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, under its own names, floats as FP32.

    Reads safetensors, and files of `torch.save` with tensors and plain values in them: `torch.load` with
    `weights_only=True` runs nothing. Optimizer states, and objects of other classes that training scripts keep beside
    the weights, are skipped. FP16, BF16 and FP8 become FP32 exactly; FP64 is rounded.

    Raises:
        BadInput: the file is missing, empty, truncated, not a checkpoint, a pickle that wants to run code, or holds
            tensors of other than plain numbers.
    """
    refuse_other_formats(path)
    _refuse_programs(path)
    try:
        loaded: Any = load_file(path) if is_safetensors(path) else _values_from_pickle(path)
    except pickle.UnpicklingError as error:
        # Both a malicious pickle and a file of junk end here; neither was run.
        raise BadInput(
            f"{path} is not a checkpoint of plain tensors (nothing in it was run); "
            "save it with torch.save(model.state_dict(), ...)"
        ) from error
    except (Exception, MemoryError) as error:  # a stranger's file: there is no end to what may be wrong with it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} cannot be read as a checkpoint: {reason}; is it complete?") from error
    if isinstance(loaded, _Ignored):
        kind = type(loaded).__qualname__
        raise BadInput(
            f"{path} holds a whole Python object ({kind}), which only its own code can read; "
            "where that code is, save its tensors: torch.save(model.state_dict(), ...)"
        )
    tensors = _tensors(loaded, path)
    if not tensors:
        places = ", ".join(WRAPPERS)
        raise BadInput(
            f"{path}: expected a state dict, bare or under one of {places}, got {type(loaded).__name__} without tensors"
        )
    return {key: _plain_tensor(value, key, path) for key, value in tensors.items()}


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """sha256 in hex of all names and values, for weights that are in no file."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: object, path: Path) -> dict[str, Tensor]:
    """Find the innermost state dict; empty if there is none.

    Raises:
        BadInput: there are several, and their names do not tell which one is meant.
    """
    if not isinstance(value, Mapping):
        return {}
    wrapped = (_tensors(value.get(wrapper), path) for wrapper in WRAPPERS)
    own = {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}
    if (found := next(filter(None, wrapped), None)) or any(tensor.ndim == 4 for tensor in own.values()):
        return found or own
    others = {
        str(key): inner
        for key, one in value.items()
        if not NOT_WEIGHTS.fullmatch(str(key)) or str(key).startswith(("model", "net"))
        if (inner := _tensors(one, path)) and any(tensor.ndim == 4 for tensor in inner.values())
    }
    steady = {key: inner for key, inner in others.items() if not AVERAGE.fullmatch(key)} or others
    if len(steady) > 1:
        first = next(iter(steady))
        raise BadInput(
            f"{path} holds several networks, {', '.join(map(repr, steady))}; save the one to export: "
            f"torch.save(torch.load('{path.name}', weights_only=True)['{first}'], ...)"
        )
    return next(iter(steady.values()), own)


def _plain_tensor(value: Tensor, key: str, path: Path) -> Tensor:
    """Check that a tensor holds plain numbers, each in memory of its own, and bring floats to FP32.

    Raises:
        BadInput: it is of another kind.
    """
    kinds = {
        "of a class of its own": type(value) not in (Tensor, nn.Parameter),
        "quantized": value.is_quantized,
        f"laid out as {value.layout}": value.layout != torch.strided or value.is_nested,
        "complex": value.is_complex(),
        "without values, on the meta device": value.is_meta,
    }
    kind = next((kind for kind, found in kinds.items() if found), None)
    if kind is None and value.numel() * value.element_size() > value.untyped_storage().nbytes():
        kind = "a view that repeats its values"
    remedy = {
        "quantized": "save the float model's state_dict, and quantize it with --int8",
        "laid out as torch.sparse_coo": "save value.to_dense()",
    }
    if kind:
        do = remedy.get(kind, "save the dense float32 tensors of the trained model")
        raise BadInput(f"{path}: expected plain tensors of real numbers, got '{key}', which is {kind}; {do}")
    if not value.is_floating_point():
        return value.detach()
    try:
        result = value.detach().float()
    except RuntimeError as error:  # of FP4, two numbers to a byte
        raise BadInput(
            f"{path}: expected plain tensors of real numbers, got '{key}' as {value.dtype}; save it as float32"
        ) from error
    if value.dtype == torch.float64 and result.isinf().any() and not value.isinf().any():
        raise BadInput(
            f"{path}: '{key}' holds values in FP64 that are beyond FP32's range; a network is computed in FP32"
        )
    return result


def _values_from_pickle(path: Path) -> Any:
    """Load tensors, and skip the values that scripts keep beside them, such as command-line options and numpy's
    numbers."""
    check_growth(unpacked_bytes(path), path.stat().st_size)
    harmless: list[Any] = [argparse.Namespace, *((type(name, (_Ignored,), {}), name) for name in NUMPY_NUMBERS)]
    with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
        warnings.simplefilter("ignore")  # about pickle protocols, of checkpoints that are read or refused all the same
        # A file, since of a path torch looks at the ending.
        with torch.serialization.safe_globals(_stand_ins(path)), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _stand_ins(path: Path) -> list[Any]:
    """Make a class that does nothing for every class in a checkpoint that torch refuses; the real one is not imported.

    Raises:
        pickle.UnpicklingError: the checkpoint asks for a part of Python's library that is no class of plain values.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before PyTorch 1.6, which cannot be searched
        return []
    stand_ins = []
    for name in names:
        module, _, kind = name.rpartition(".")
        package = module.partition(".")[0]
        harmless = kind in HARMLESS_BUILTINS if package == "builtins" else package in HARMLESS_MODULES
        if package in sys.stdlib_module_names and not harmless:
            raise pickle.UnpicklingError(f"{name} is asked for")
        base = _IgnoredMapping if "dict" in kind.lower() else _Ignored
        stand_ins.append((type(kind, (base,), {"__qualname__": name}), name))
    return stand_ins


def _refuse_programs(path: Path) -> None:
    """Refuse archives that hold a network together with its weights; their ending is often a checkpoint's.

    Raises:
        BadInput: it is a program of torch.export or a TorchScript archive; says how to take the weights out.
    """
    names = {name.split("/", 1)[-1] for name in archive_names(path) or ()}
    saved = f"torch.save({{}}, '{path.with_suffix('.weights.pth').name}')"
    trusted = "which runs code of the file: only where you trust its maker"
    if names & {"archive_format", "serialized_exported_program.json"}:
        # Not torch.export.load, which would run code from the file.
        take = saved.format(f"program_from_file('{path.name}')[0].state_dict")
        how = "from runtimes.backends.pytorch import program_from_file"
        raise BadInput(
            f"{path} is a program of torch.export (.pt2), not a checkpoint; take its weights out with {how}; {take}"
        )
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        take = saved.format(f"torch.jit.load('{path.name}').state_dict()")
        raise BadInput(f"{path} is a TorchScript archive, not a checkpoint; take its weights out, {trusted}: {take}")
