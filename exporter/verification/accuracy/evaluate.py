"""Measure the accuracy of a bundle on labelled images, in one pass and in bounded memory however large the data is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.annotations import with_labels
from calibration.classes import ModelClasses, match_source
from calibration.data import ImageSource, check_channels, choose_evenly, open_source
from calibration.reading import Unreadable, check_readable, read_ahead
from calibration.synsets import synsets_from_file
from exporter.verification.accuracy.resume_file import EvaluatedBatch, ResumeFile
from runtimes.base import Runtime
from runtimes.bundle import Bundle
from runtimes.classify import check_finite
from runtimes.errors import PlanError
from runtimes.kinds import check_kinds
from runtimes.parity.compare import class_scores
from runtimes.parity.intervals import wilson_interval
from runtimes.stream import preparer

TOP = 5
BATCHES_AHEAD = 2
SEED = 0


@dataclass(frozen=True)
class Rate:
    """How many of how many images are right; `share` is 0..1, `interval` its Wilson 95 % interval."""

    correct: int
    images: int
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Recall:
    """How many of one class's images were given that class."""

    index: int
    name: str
    top1: Rate


@dataclass(frozen=True)
class Confusion:
    """How many of one class's images, `of` in all, were given one other class."""

    label: str
    predicted: str
    images: int
    of: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        images: how many were evaluated; those that could not be read are not among them.
        top1, top5: for how many the label is the most likely class, or one of the five most likely.
        mean_recall: the mean of the classes' recalls, 0..1; each class weighs the same, however many images it has.
        recall: of each class that has images, in the order of the model's classes.
        confused: pairs of classes, most often confused first.
        unreadable: what is wrong with images that were left out.
        model_images_per_s: counting time in the model alone, while images are decoded beside it.
        images_per_s: counting all time, from the files to the figures.
    """

    images: int
    top1: Rate
    top5: Rate
    mean_recall: float
    recall: tuple[Recall, ...]
    confused: tuple[Confusion, ...]
    unreadable: tuple[str, ...]
    model_images_per_s: float
    images_per_s: float


@dataclass(frozen=True)
class EvaluationData:
    """Which labelled images to evaluate on.

    Attributes:
        data: as `calibration.data.open_source` takes it; where there are training and test images, the test images.
        data_labels: a file, or a URL, with the images' labels, as `calibration.annotations.with_labels` takes it.
        synsets: a file, or a URL, with the model's WordNet ids, as `calibration.synsets.synsets_from_file` takes it.
        images: how many, spread evenly over the classes, the same ones each time; None takes all.

    Raises:
        PlanError: fewer than 1 image is asked for.
    """

    data: str
    data_labels: str | None = None
    synsets: str | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.images is not None and self.images < 1:
            raise PlanError(f"expected at least 1 of the images, got {self.images}; leave the number out for all")

    def source(self, bundle: Bundle) -> LabelledSource:
        """Open the images, and match their classes to the bundle's.

        Raises:
            BadInput: there are no images, they have other channels than the model, they have no labels, or it is not
                certain that their classes are the model's.
            PlanError: more images are asked for than there are.
        """
        count = bundle.manifest.model.classes
        source = open_source(self.data, split="test")
        check_channels(source, bundle.manifest.preprocess)
        if self.data_labels is not None:
            source = with_labels(source, self.data_labels)
        synsets = synsets_from_file(self.synsets, count) if self.synsets is not None else None
        source, how = match_source(source, ModelClasses(count, bundle.labels, synsets))
        if self.images is None:
            return LabelledSource(source, how)
        if self.images > source.count:
            raise PlanError(f"--images asks for {self.images}, but {source.name} has {source.count}; ask for fewer")
        return LabelledSource(source.subset(choose_evenly(source, self.images, SEED)), how)


class LabelledSource(NamedTuple):
    """Images whose labels and `classes` are the model's, and in words how their classes were matched."""

    source: ImageSource
    how: str


def evaluate(
    bundle: Bundle,
    runtime: Runtime,
    source: ImageSource,
    *,
    resume_file: ResumeFile | None = None,
    on_batch: Callable[[EvaluatedBatch], None] = lambda _: None,
) -> Evaluation:
    """Classify every image of `source` at the bundle's middle batch, and compare the classes with the labels.

    Args:
        source: labelled with the model's classes (see `EvaluationData.source`).
        resume_file: batches in it are not computed again; those that are computed are added to it.
        on_batch: called after each batch.

    Raises:
        CalibrationError: more than one image in a hundred cannot be read; names some.
        ExportError: the model gives logits that are not finite.
    """
    assert source.classes is not None
    tally = Tally()
    for batch in resume_file.batches() if resume_file is not None else ():
        tally.add(batch)
        on_batch(batch)
    for batch in _evaluate_rest(bundle, runtime, source, tally):
        if resume_file is not None:
            resume_file.add(batch)
        tally.add(batch)
        on_batch(batch)
    return tally.evaluation(source)


@dataclass
class Tally:
    """Counts over the batches so far.

    Attributes:
        images, top1, top5: images, and top-1 and top-5 hits, by label.
        wrong: wrong answers, by (label, predicted).
        unreadable: what is wrong with images that were left out.
        done: the place after the last image, read or not.
        model_s, elapsed_s: seconds in the model, and in all.
    """

    images: Counter[int] = field(default_factory=Counter)
    top1: Counter[int] = field(default_factory=Counter)
    top5: Counter[int] = field(default_factory=Counter)
    wrong: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    done: int = 0
    model_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, batch: EvaluatedBatch) -> None:
        """Count one more batch."""
        for _, label, first, *others in batch.rows:
            self.images[label] += 1
            self.top1[label] += first == label
            self.top5[label] += label in (first, *others)
            if first != label:
                self.wrong[label, first] += 1
        self.unreadable += batch.unreadable
        self.done = batch.after
        self.model_s += batch.model_s
        self.elapsed_s += batch.elapsed_s

    def evaluation(self, source: ImageSource) -> Evaluation:
        """The figures, with the names of the model's classes; a class without any readable image is `unreadable`."""
        assert source.classes is not None
        assert source.labels is not None
        names, total = source.classes, self.images.total()
        lost = [names[label] for label in np.unique(source.labels) if label not in self.images]
        recall = tuple(
            Recall(index, names[index], _rate(self.top1[index], count)) for index, count in sorted(self.images.items())
        )
        worst = sorted(self.wrong.items(), key=lambda item: (-item[1], item[0]))
        return Evaluation(
            images=total,
            top1=_rate(self.top1.total(), total),
            top5=_rate(self.top5.total(), total),
            mean_recall=float(np.mean([one.top1.share for one in recall])),
            recall=recall,
            confused=tuple(
                Confusion(names[label], names[given], count, self.images[label]) for (label, given), count in worst
            ),
            unreadable=(*self.unreadable, *(f"none of the pictures of class '{name}' can be read" for name in lost)),
            model_images_per_s=round(total / self.model_s, 1),
            images_per_s=round(total / self.elapsed_s, 1),
        )


def _rate(correct: int, images: int) -> Rate:
    return Rate(correct, images, correct / images, wilson_interval(correct, images))


def _evaluate_rest(bundle: Bundle, runtime: Runtime, source: ImageSource, tally: Tally) -> Iterator[EvaluatedBatch]:
    """Evaluate the images that the tally does not hold yet, the bundle's middle batch at once; decodes ahead."""
    assert source.labels is not None
    labels = source.labels
    size = bundle.manifest.batch.opt
    places = range(tally.done, source.count)
    begin = time.perf_counter()
    fed: list[tuple[int, NDArray[Any]]] = []
    unreadable: list[str] = []

    def evaluate_batch(after: int) -> EvaluatedBatch:
        nonlocal begin
        start = time.perf_counter()
        tops = _top_classes(runtime, [array for _, array in fed]) if fed else np.zeros((0, 0), np.int64)
        now = time.perf_counter()
        rows = tuple((place, int(labels[place]), *top) for (place, _), top in zip(fed, tops.tolist(), strict=True))
        batch = EvaluatedBatch(after, rows, tuple(unreadable), round(now - start, 6), round(now - begin, 6))
        begin = now
        fed.clear()
        unreadable.clear()
        return batch

    read = read_ahead(
        source, places, preparer(bundle.manifest.preprocess, runtime.inputs[0]), ahead=BATCHES_AHEAD * size
    )
    for place, picture in zip(places, read, strict=True):
        if isinstance(picture, Unreadable):
            unreadable.append(picture.reason)
            check_readable([*tally.unreadable, *unreadable], source.count)
        else:
            fed.append((place, picture))
        if len(fed) == size or place == source.count - 1:
            yield evaluate_batch(place + 1)


def _top_classes(runtime: Runtime, inputs: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The most likely classes of each image, most likely first, int64 (images, 5), or fewer where there are fewer.

    Images of several sizes, which a model that resizes takes, are fed one by one.
    """
    batches = [np.stack(inputs)] if len({one.shape for one in inputs}) == 1 else [one[None] for one in inputs]
    logits = np.concatenate([class_scores(runtime.run({runtime.inputs[0].name: batch})) for batch in batches])
    check_finite(logits)
    return np.argsort(-logits, axis=1, kind="stable")[:, :TOP].astype(np.int64)
