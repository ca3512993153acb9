"""`calibration.json`: the measured range of every tensor, with the model, images and versions it was measured with."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.histogram import Histogram, exponent_above
from calibration.observers import find_observer, observers
from calibration.sample import DIGEST_BITS
from runtimes.errors import BadInput, CalibrationError, PlanError
from runtimes.preprocess import Preprocess

SCHEMA_VERSION = 2
SIGNIFICANT_DIGITS = 9
LARGEST_VALUE, SMALLEST_FACTOR = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
"""What a float32 holds with all its digits."""
LARGEST_FILE = 64 << 20
"""In bytes. A tensor takes some ten thousand, and a ResNet-1202 has a few thousand of them."""


@dataclass(frozen=True)
class TensorRange:
    """One tensor: its largest magnitude, the threshold each calibrator chose, and the histogram they chose it from.

    The histogram has 2048 equal bins over [0, 2**exponent); `counts` are its int64 counts, zlib-compressed, in base64.
    """

    largest: float
    thresholds: dict[str, float]
    exponent: int
    counts: str

    @property
    def histogram(self) -> Histogram:
        return Histogram.from_text(self.exponent, self.counts, self.largest)


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges of a model's tensors, and what they were measured with.

    Attributes:
        model_sha256: of the simplified FP32 graph that ran.
        images: how many were measured.
        fingerprint: of their content (see `calibration.sample.Sample`).
        versions: of the packages that decode, run and count.
        calibrator: the one whose thresholds the graph was lowered with; empty for a table of ranges alone.
        factors: what the channels of tensors were divided by before their ranges were measured, by the first of the
            tensors that are tied together (see `exporter.lowering.equalize`).
        corrections: by calibrator, what was taken off the biases, by node (see `exporter.lowering.bias_correction`).
        float_nodes: names of the nodes that had been returned to float where the corrections were measured.
        repairs: what was done against the error of quantization, and what it brought, in words.

    What a single run measured (`calibrator`, `corrections`, `repairs`) is not there in a merged table.
    """

    schema_version: int
    model_sha256: str
    images: int
    fingerprint: str
    preprocess: Preprocess
    versions: dict[str, str]
    tensors: dict[str, TensorRange]
    calibrator: str = ""
    factors: dict[str, list[float]] = field(default_factory=dict)
    corrections: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    float_nodes: list[str] = field(default_factory=list)

    def thresholds(self, calibrator: str) -> dict[str, float]:
        """The threshold that `calibrator` chose for every tensor.

        Raises:
            UnknownName: there is no such calibrator.
        """
        observer = find_observer(calibrator)
        return {
            name: tensor.thresholds[calibrator] if calibrator in tensor.thresholds else observer(tensor.histogram)
            for name, tensor in self.tensors.items()
        }

    def json(self) -> bytes:
        """Indented UTF-8 JSON; equal tables give equal bytes."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


@dataclass(frozen=True)
class Provenance:
    """What a table must have been measured with, to be used."""

    model_sha256: str
    preprocess: Preprocess
    versions: dict[str, str]

    def check(self, table: CalibrationTable, where: str) -> None:
        """Refuse a table of another model, preprocessing or version.

        Raises:
            CalibrationError: says what differs.
        """
        pairs: Mapping[str, tuple[object, object]] = {
            "model_sha256": (self.model_sha256, table.model_sha256),
            "preprocess": (self.preprocess, table.preprocess),
            **{f"version of {name}": (number, table.versions.get(name)) for name, number in self.versions.items()},
        }
        for what, (expected, found) in pairs.items():
            if expected != found:
                raise CalibrationError(
                    f"{where} was not measured on this: {what} is {found}, expected {expected}; leave --calibration "
                    "out to measure again"
                )


def table_from_histograms(
    histograms: Mapping[str, Histogram], provenance: Provenance, *, images: int, fingerprint: str
) -> CalibrationTable:
    """The table of one run, with every calibrator's thresholds.

    Raises:
        CalibrationError: nothing was counted.
    """
    known = observers()
    tensors = {}
    for name, histogram in histograms.items():
        if not histogram.counts.any():
            raise CalibrationError(f"no value of '{name}' was seen; give calibration images")
        thresholds = {kind: _nine_digits(observer(histogram)) for kind, observer in known.items()}
        tensors[name] = TensorRange(histogram.largest, thresholds, histogram.exponent, histogram.text())
    return CalibrationTable(
        SCHEMA_VERSION,
        provenance.model_sha256,
        images,
        fingerprint,
        provenance.preprocess,
        provenance.versions,
        tensors,
    )


def merge_tables(tables: Sequence[CalibrationTable]) -> CalibrationTable:
    """Merge the tables of shards: the same table, to the last bit, as from one run over all images.

    Raises:
        CalibrationError: the tables are of different models, preprocessing, versions or tensors.
    """
    first, *others = tables
    provenance = Provenance(first.model_sha256, first.preprocess, first.versions)
    histograms = {name: tensor.histogram for name, tensor in first.tensors.items()}
    for place, table in enumerate(others, start=2):
        provenance.check(table, f"table {place}")
        if list(table.tensors) != list(histograms):
            raise CalibrationError(f"table {place} has other tensors than the first; merge tables of one model")
        if table.factors != first.factors:
            raise CalibrationError(
                f"table {place} was measured with other factors of equalization than the first; measure all shards "
                "with the first one's"
            )
        histograms = {name: histogram.merge(table.tensors[name].histogram) for name, histogram in histograms.items()}
    digests = sum(int(table.fingerprint, 16) for table in tables) % (1 << DIGEST_BITS)
    merged = table_from_histograms(
        histograms,
        provenance,
        images=sum(table.images for table in tables),
        fingerprint=f"{digests:0{DIGEST_BITS // 4}x}",
    )
    return replace(merged, factors=first.factors)


def table_from_file(path: Path) -> CalibrationTable:
    """Read and validate a table.

    Raises:
        BadInput: the file is missing, no table, of another schema version, or damaged.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe would be waited for without end
            raise ValueError("it is no file")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"expected at most {LARGEST_FILE:,} bytes, got {path.stat().st_size:,}")
        table = msgspec.json.decode(path.read_bytes(), type=CalibrationTable)
        int(table.fingerprint, 16)
        for name, tensor in table.tensors.items():
            numbers = (tensor.largest, *tensor.thresholds.values())
            if (
                not all(_is_finite(number) and number >= 0 for number in numbers)
                or exponent_above(tensor.largest) > tensor.exponent
            ):
                raise ValueError(f"the range of '{name}' is damaged")
            _ = tensor.histogram
        for values in table.factors.values():
            if not all(_is_finite(value) and value >= SMALLEST_FACTOR for value in values):
                raise ValueError("a factor of equalization is damaged")
        for each in table.corrections.values():
            if not all(_is_finite(value) for values in each.values() for value in values):
                raise ValueError("a correction of a bias is damaged")
    except OSError as error:
        raise BadInput(f"cannot read the calibration table {path}: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError, PlanError, RecursionError) as error:
        raise BadInput(f"{path} is no calibration table: {' '.join(str(error).split())}") from error
    if table.schema_version != SCHEMA_VERSION:
        raise BadInput(
            f"{path}: expected schema_version {SCHEMA_VERSION}, got {table.schema_version}; calibrate again with this "
            "version"
        )
    return table


def _is_finite(value: float) -> bool:
    """Whether it is finite as a float32, too, which it becomes."""
    return abs(value) <= LARGEST_VALUE


def lists_from_arrays(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, list[float]]:
    """Arrays of float32 as a table holds them, in nine digits: as many as it takes to read back the same."""
    return {name: [_nine_digits(value) for value in values] for name, values in arrays.items()}


def arrays_from_lists(lists: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float32]]:
    """The reverse of `lists_from_arrays`."""
    return {name: np.array(values, np.float32) for name, values in lists.items()}


def _nine_digits(value: float) -> float:
    """The value in nine digits: as much as a float32 holds, and readable."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
