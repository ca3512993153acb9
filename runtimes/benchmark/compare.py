"""Two results side by side: ratios of their rates, where they are of the same model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from runtimes.benchmark.results import BundleFacts, Entry, Line, Result
from runtimes.benchmark.statistics import Interval, unpaired_ratio
from runtimes.errors import BadInput


@dataclass(frozen=True)
class Row:
    """A contender that both results have, on one line at one batch size: medians in images a second, and the ratio of
    the second to the first."""

    name: str
    line: Line
    batch: int
    first: float
    second: float
    ratio: Interval

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the interval decides it."""
        if self.ratio.low is None or self.ratio.high is None:
            return "too few rounds to tell"
        return "faster" if self.ratio.low > 1 else "slower" if self.ratio.high < 1 else "no difference to be told"


@dataclass(frozen=True)
class Compared:
    """Two results side by side.

    Attributes:
        machines: what differs between the machines, in words; empty where nothing does.
        alone: what only one of them has, or could measure, in words.
    """

    machines: str
    rows: tuple[Row, ...]
    alone: tuple[str, ...]


def compare_results(first: Result, second: Result) -> Compared:
    """Put two results of the same models side by side; the first is what the second is measured by.

    A result of one bundle each is compared whatever their precisions; of several, those of equal names are.

    Raises:
        BadInput: they are of different models; names the field that differs.
    """
    rows: list[Row] = []
    alone: list[str] = []
    measured, compared = _measured(first), _measured(second)
    for one, other in _pairs(first, second, alone):
        _check_same_model(one, other)
        mine, theirs = measured[one.folder], compared[other.folder]
        for name in sorted(mine.keys() | theirs.keys()):
            if name in mine and name in theirs:
                rows += _rows(name if len(first.bundles) == 1 else f"{one.name} {name}", mine[name], theirs[name])
            else:
                alone.append(f"{name}: only the {'first' if name in mine else 'second'} result has it")
    return Compared(_difference_of_machines(first, second), tuple(rows), tuple(alone))


def _pairs(first: Result, second: Result, alone: list[str]) -> list[tuple[BundleFacts, BundleFacts]]:
    if len(first.bundles) == len(second.bundles) == 1:
        return [(first.bundles[0], second.bundles[0])]
    others = {one.name: one for one in second.bundles}
    each = {one.folder: one for one in first.bundles}.values()
    pairs = [(one, others[one.name]) for one in each if one.name in others]
    for which, mine, theirs in (("first", first, second), ("second", second, first)):
        known = {one.name for one in theirs.bundles}
        alone += [f"{one.name}: only the {which} result has it" for one in mine.bundles if one.name not in known]
    if not pairs:
        names = [", ".join(one.name for one in result.bundles) for result in (first, second)]
        raise BadInput(f"expected two results of the same bundles, got {names[0]} and {names[1]}; measure the same")
    return pairs


def _check_same_model(first: BundleFacts, second: BundleFacts) -> None:
    fields = {
        "model.name": (first.model.name, second.model.name),
        "model.source": (first.model.source, second.model.source),
        "model.variant": (first.model.variant, second.model.variant),
        "model.classes": (first.model.classes, second.model.classes),
        "inputs": (_shapes(first), _shapes(second)),
        "macs": (first.macs, second.macs),
    }
    for name, (one, other) in fields.items():
        if one != other:
            raise BadInput(
                f"expected two results of the same model, got {name} {one} and {other}; compare results of one model"
            )


def _shapes(bundle: BundleFacts) -> str:
    return ", ".join("x".join(map(str, spec.shape)) for spec in bundle.inputs)


def _measured(result: Result) -> dict[str, dict[str, Entry]]:
    """What was measured, by its bundle's folder and its contender's name."""
    found: dict[str, dict[str, Entry]] = defaultdict(dict)
    for one in result.entries:
        if one.timings:
            found[one.contender.bundle][one.contender.name] = one
    return found


def _rows(name: str, first: Entry, second: Entry) -> list[Row]:
    others = {(one.line, one.batch): one for one in second.timings}
    found = []
    for one in first.timings:
        other = others.get((one.line, one.batch))
        if other is not None:
            ratio = unpaired_ratio(other.images_per_s, one.images_per_s)
            medians = one.interval.median, other.interval.median
            found.append(Row(name, one.line, one.batch, *medians, ratio))
    return found


def _difference_of_machines(first: Result, second: Result) -> str:
    one, other = first.machine, second.machine
    fields = {
        "processor": (one.processor, other.processor),
        "flags": (" ".join(one.flags), " ".join(other.flags)),
        "GPU": (one.gpu.name if one.gpu else "none", other.gpu.name if other.gpu else "none"),
        "power mode": (one.power.mode if one.power else "none", other.power.mode if other.power else "none"),
        "usable cores": (one.usable_cores, other.usable_cores),
        "threads": (first.settings.threads, second.settings.threads),
        **{
            name: (one.versions.get(name, "none"), other.versions.get(name, "none"))
            for name in sorted(one.versions.keys() | other.versions.keys())
        },
    }
    return ", ".join(f"{name} {mine} and {theirs}" for name, (mine, theirs) in fields.items() if mine != theirs)
