"""Measure the accuracy of a bundle on labelled images, in one pass and in bounded memory however large the data is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from calibration.annotations import with_labels
from calibration.classes import ModelClasses, match_source
from calibration.data import ImageSource, check_channels, choose_evenly, open_source
from calibration.distributed.local import Local
from calibration.distributed.shards import Executor, OpenWorker, shards_of
from calibration.reading import check_readable
from calibration.synsets import synsets_from_file
from exporter.verification.accuracy.resume_file import EvaluatedShard, ResumeFile
from runtimes.bundle import Bundle
from runtimes.errors import PlanError
from runtimes.kinds import check_kinds
from runtimes.parity.intervals import wilson_interval

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
        model_images_per_s: of one worker, counting time in the model alone, while images are decoded beside it.
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
    source: ImageSource,
    open_worker: OpenWorker[EvaluatedShard],
    size: int,
    *,
    executor: Executor | None = None,
    resume_file: ResumeFile | None = None,
    on_shard: Callable[[EvaluatedShard], None] = lambda _: None,
) -> Evaluation:
    """Classify every image of `source`, and compare the classes with the labels.

    The figures depend neither on the number of workers nor on the order in which they finish.

    Args:
        source: labelled with the model's classes (see `EvaluationData.source`).
        open_worker: opens a `worker.EvaluationWorker` of these images.
        size: how many images are in a shard: `worker.shard_size` of the bundle.
        executor: where the workers are; None takes this process.
        resume_file: shards in it are not computed again; those that are computed are added to it.
        on_shard: called after each shard.

    Raises:
        CalibrationError: more than one image in a hundred cannot be read; names some.
        ExportError: the model gives logits that are not finite, or a shard's worker died each time.
    """
    tally = Tally()
    finished = set()
    for old in resume_file.shards(source, size) if resume_file is not None else ():
        finished.add(old.start)
        tally.add(old)
        on_shard(old)
    shards = [shard for shard in shards_of(source.count, size) if shard.start not in finished]
    with closing((executor or Local()).run(open_worker, shards, source.name_of)) as results:
        begin = time.perf_counter()
        for _, answers in results:
            now = time.perf_counter()
            found = replace(answers, elapsed_s=round(now - begin, 6))
            begin = now
            tally.add(found)
            if found.unreadable:  # before it is kept: the same command is to say so again
                check_readable(tally.unreadable, source.count)
            if resume_file is not None:
                resume_file.add(found)
            on_shard(found)
    if resume_file is not None:
        resume_file.sort(source, size)
    return tally.evaluation(source)


@dataclass
class Tally:
    """Counts over the shards so far, whatever their order.

    Attributes:
        images, top1, top5: images, and top-1 and top-5 hits, by label.
        wrong: wrong answers, by (label, predicted).
        left_out: what is wrong with images that were left out, by the start of their shard.
        model_s, elapsed_s: seconds in the model, added up over the workers, and in all.
    """

    images: Counter[int] = field(default_factory=Counter)
    top1: Counter[int] = field(default_factory=Counter)
    top5: Counter[int] = field(default_factory=Counter)
    wrong: Counter[tuple[int, int]] = field(default_factory=Counter)
    left_out: dict[int, tuple[str, ...]] = field(default_factory=dict)
    model_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, shard: EvaluatedShard) -> None:
        """Count one more shard."""
        for _, label, first, *others in shard.rows:
            self.images[label] += 1
            self.top1[label] += first == label
            self.top5[label] += label in (first, *others)
            if first != label:
                self.wrong[label, first] += 1
        if shard.unreadable:
            self.left_out[shard.start] = shard.unreadable
        self.model_s += shard.model_s
        self.elapsed_s += shard.elapsed_s

    @property
    def unreadable(self) -> tuple[str, ...]:
        """What is wrong with images that were left out, in their order."""
        return tuple(reason for _, reasons in sorted(self.left_out.items()) for reason in reasons)

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
            model_images_per_s=_speed(total, self.model_s),
            images_per_s=_speed(total, self.elapsed_s),
        )


def _rate(correct: int, images: int) -> Rate:
    return Rate(correct, images, correct / images, wilson_interval(correct, images))


def _speed(images: int, seconds: float) -> float:
    """Images a second; 0 where a resume file says that they took no time."""
    return round(images / seconds, 1) if seconds else 0.0
