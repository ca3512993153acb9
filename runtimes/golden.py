"""The proof that travels: a bundle's golden inputs through a backend, against the FP32 PyTorch outputs that were recorded for them."""

from __future__ import annotations

import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BundleError
from runtimes.parity import ParityReport, compare_outputs
from runtimes.preprocess import PIXELS, takes_any_size

UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for a file that is no archive of arrays: the middle ones for an empty one and for a single array."""


def golden_arrays(bundle: Bundle) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Inputs (images, ...) and the reference's outputs by name, float32 (images, ...).

    Raises:
        BundleError: `golden.npz` is missing or does not hold them.
    """
    path = bundle.file("golden.npz")
    names = [spec.name for spec in bundle.manifest.outputs]
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # of an archive that it cannot read, numpy leaves its own file open
            inputs, outputs = arrays["inputs"], {name: arrays[name] for name in names}
    except UNREADABLE as error:
        raise BundleError(f"{path} does not hold golden inputs and {' and '.join(names)} ({error}); export the bundle again") from error
    for name, values in outputs.items():
        if len(inputs) != len(values) or len(inputs) == 0:
            raise BundleError(f"{path} holds {len(inputs)} inputs and {len(values)} {name}; export the bundle again")
    return inputs, outputs


def golden_report(bundle: Bundle, name: str, runtime: Runtime) -> ParityReport:
    """Run the golden inputs at the smallest, the middle and the largest batch of the range; `name` is the backend's in the report."""
    inputs, outputs = golden_arrays(bundle)
    if inputs.dtype == PIXELS and runtime.inputs[0].dtype != PIXELS:  # the reference of a model with its preprocessing inside has it outside
        inputs = bundle.manifest.preprocess.outside(inputs, any_size=takes_any_size(bundle.manifest.inputs[0]))
    rows, answers, batches = [], [], []
    for size in bundle.manifest.batch.checked:
        count = min(size, len(inputs))
        repeated = np.resize(np.arange(len(inputs)), size)  # a batch larger than the golden set holds some images twice
        answers.append(runtime.run({runtime.inputs[0].name: inputs[repeated]}))
        rows.append(np.arange(count))
        batches.append(size)
    budget = bundle.manifest.parity.budget
    expected = {name: values[np.concatenate(rows)] for name, values in outputs.items()}
    got = {name: np.concatenate([answer[name][: len(each)] for answer, each in zip(answers, rows, strict=True)]) for name in outputs}
    compared = compare_outputs(expected, got, budget)
    return ParityReport(compared.ok, len(inputs), tuple(batches), {name: compared}, budget)
