"""The proof that travels: a bundle's golden inputs through a backend, against the FP32 PyTorch logits that were recorded for them."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.errors import BundleError
from runtimes.parity import ParityReport, compare


def golden_arrays(bundle: Bundle) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs (images, ...) and the reference's logits, float32 (images, classes).

    Raises:
        BundleError: `golden.npz` is missing or does not hold them.
    """
    path = bundle.file("golden.npz")
    try:
        with np.load(path) as arrays:
            inputs, logits = arrays["inputs"], arrays["logits"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} does not hold golden inputs and logits ({error}); export the bundle again") from error
    if len(inputs) != len(logits) or len(inputs) == 0:
        raise BundleError(f"{path} holds {len(inputs)} inputs and {len(logits)} logits; export the bundle again")
    return inputs, logits


def golden_report(bundle: Bundle, name: str, runtime: Runtime) -> ParityReport:
    """Run the golden inputs at the smallest, the middle and the largest batch of the range; `name` is the backend's in the report."""
    inputs, logits = golden_arrays(bundle)
    source, result = runtime.inputs[0].name, runtime.outputs[0].name
    expected, answers, batches = [], [], []
    for size in bundle.manifest.batch.checked:
        count = min(size, len(inputs))
        repeated = np.resize(np.arange(len(inputs)), size)  # a batch larger than the golden set holds some images twice
        answers.append(runtime.run({source: inputs[repeated]})[result][:count])
        expected.append(logits[:count])
        batches.append(size)
    budget = bundle.manifest.parity.budget
    compared = compare(np.concatenate(expected), np.concatenate(answers), budget)
    return ParityReport(compared.ok, len(inputs), tuple(batches), {name: compared}, budget)
