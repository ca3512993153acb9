"""A checkpoint's tensors, however a training script wrapped them; nothing in the file is executed."""

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

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exporter.models.not_weights import archive_names, is_safetensors, refuse_what_is_none
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
"""Where training scripts put the weights, those of a moving average last: they are taken where there are no others."""
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
"""Of Python's own: where the values in a checkpoint come from. A file that asks for other parts of Python's library
wants to run something."""
HARMLESS_BUILTINS = ("list", "dict", "tuple", "frozenset", "slice", "range", "int", "float", "str", "bool", "object")


class _Ignored(list[Any]):
    """Stands in for an object of a checkpoint whose class is not known here: takes what it is given and does
    nothing."""

    def __new__(cls, *args: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass


class _IgnoredMapping:
    """The same for one that is a kind of dict: torch fills no other than these."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]  # an instance of another class, on purpose
        return OrderedDict()


def state_from_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names it gives them, floats as FP32; optimizer state and the like are left.

    Reads safetensors, and files of `torch.save` with tensors and plain values in them: `torch.load` with
    `weights_only=True` executes nothing. Objects of other classes, which training scripts keep beside the weights, are
    passed over. FP16, BF16 and FP8 become FP32 exactly, FP64 is rounded.

    Raises:
        BadInput: missing, empty, truncated, not a checkpoint, a pickle that wants to run code, or tensors that hold no
            plain numbers.
    """
    refuse_what_is_none(path)
    _refuse_programs(path)
    try:
        loaded: Any = load_file(path) if is_safetensors(path) else _values_from_pickle(path)
    except pickle.UnpicklingError as error:
        # Both a malicious pickle and a file of junk end here; neither was executed.
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
    return {key: _plain(value, key, path) for key, value in tensors.items()}


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """The digest of names and values, for weights that are in no file."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: object, path: Path) -> dict[str, Tensor]:
    """The innermost state dict; empty where there is none.

    Raises:
        BadInput: there are several, under names that do not tell which one is meant.
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


def _plain(value: Tensor, key: str, path: Path) -> Tensor:
    """A tensor of plain numbers, floats as FP32, each with a place of its own in memory.

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
    """Beside tensors, the values that common scripts keep: their command line's options, and figures as numpy's
    numbers."""
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = (type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8"))
    harmless: list[Any] = [argparse.Namespace, scalar, np.dtype, *kinds]
    with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
        warnings.simplefilter(
            "ignore"
        )  # about the pickle protocols of checkpoints that are then read, or refused below
        with (
            torch.serialization.safe_globals(_stand_ins(path)),
            path.open("rb") as file,
        ):  # by its path, torch goes by the ending
            return torch.load(file, map_location="cpu", weights_only=True)


def _stand_ins(path: Path) -> list[Any]:
    """For every class in a checkpoint that torch does not take, one that does nothing, under that name: nothing of the
    real one is imported.

    Raises:
        pickle.UnpicklingError: it asks for something of Python's own that holds no value.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before PyTorch 1.6, which cannot be looked through
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
    """Files that hold a network and its weights as one, told by what is in the archive: their ending is often the
    same."""
    names = {name.split("/", 1)[-1] for name in archive_names(path) or ()}
    saved = f"torch.save({{}}, '{path.with_suffix('.weights.pth').name}')"
    trusted = "which runs code of the file: only where you trust its maker"
    if names & {"archive_format", "serialized_exported_program.json"}:
        take = saved.format(
            f"program_from_file('{path.name}')[0].state_dict"
        )  # torch.export.load would run what a stranger's file brings
        how = "from runtimes.backends.pytorch import program_from_file"
        raise BadInput(
            f"{path} is a program of torch.export (.pt2), not a checkpoint; take its weights out with {how}; {take}"
        )
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        take = saved.format(f"torch.jit.load('{path.name}').state_dict()")
        raise BadInput(f"{path} is a TorchScript archive, not a checkpoint; take its weights out, {trusted}: {take}")
