"""A checkpoint's tensors, however a training script wrapped them; nothing in the file is executed."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from runtimes.errors import BadInput

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where training scripts put the weights, those of a moving average last: they are taken where there are no others."""


def state_from_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names it gives them, floats as FP32; optimizer state and the like are left.

    Reads .safetensors, and .pt, .pth and .ckpt files with nothing but tensors and plain values in them: `torch.load` with
    `weights_only=True` executes nothing.

    Raises:
        BadInput: missing, empty, truncated, not a checkpoint, a pickle that wants to run code, or values that are not finite.
    """
    if not path.is_file():
        raise BadInput(f"--weights: {path} is not a file; give default, random or a checkpoint (.safetensors, .pt, .pth, .ckpt)")
    _refuse_programs(path)
    try:
        loaded: Any = load_file(path) if path.suffix == ".safetensors" else _values_from_pickle(path)
    except pickle.UnpicklingError as error:
        # Both a malicious pickle and a file of junk end here; neither was executed.
        raise BadInput(
            f"{path} is not a checkpoint of plain tensors (nothing in it was run); save it with torch.save(model.state_dict(), ...)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} cannot be read as a checkpoint: {reason}; is it complete?") from error
    tensors = _tensors(loaded)
    if not tensors:
        places = ", ".join(WRAPPERS)
        raise BadInput(f"{path}: expected a state dict, bare or under one of {places}, got {type(loaded).__name__} without tensors")
    state = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"{path}: '{key}' holds NaN or infinite values; the training run diverged, take an earlier checkpoint")
    return state


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """The digest of names and values, for weights that are in no file."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: object) -> dict[str, Tensor]:
    """The innermost state dict; empty where there is none."""
    if not isinstance(value, Mapping):
        return {}
    wrapped = (_tensors(value.get(wrapper)) for wrapper in WRAPPERS)
    own = {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}
    return next(filter(None, wrapped), own)


def _values_from_pickle(path: Path) -> Any:
    """Beside tensors, the values that common scripts keep: their command line's options, and figures as numpy's numbers."""
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = (type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8"))
    harmless: list[Any] = [argparse.Namespace, scalar, np.dtype, *kinds]
    with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
        warnings.simplefilter("ignore")  # about the pickle protocols of checkpoints that are then read, or refused below
        return torch.load(path, map_location="cpu", weights_only=True)


def _refuse_programs(path: Path) -> None:
    """Files that hold a network and its weights as one, told by what is in the archive: their ending is often the same."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return
    saved = f"torch.save({{}}, '{path.with_suffix('.weights.pth').name}')"
    if names & {"archive_format", "serialized_exported_program.json"}:
        take = saved.format(f"program_from_file('{path.name}')[0].state_dict")  # torch.export.load would run what a stranger's file brings
        how = "from runtimes.backends.pytorch import program_from_file"
        raise BadInput(f"{path} is a program of torch.export (.pt2), not a checkpoint; take its weights out with {how}; {take}")
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        take = saved.format(f"torch.jit.load('{path.name}').state_dict()")
        raise BadInput(
            f"{path} is a TorchScript archive, not a checkpoint; if you trust it (loading may run its code), take its weights out with {take}"
        )
