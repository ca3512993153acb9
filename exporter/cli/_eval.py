"""`resnet-deploy eval`: the accuracy of a bundle on labelled images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from exporter.cli._common import echo_json, echo_lines, status
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import (
    backend_option,
    needs_gpu,
    output_group,
    provider_option,
    quiet_option,
    ray_options,
    threads_option,
    trust_option,
    url_option,
)
from runtimes.errors import AccuracyError, BadInput, PlanError, UnknownName
from runtimes.printable import count_text

if TYPE_CHECKING:
    from calibration.data import ImageSource
    from calibration.distributed.shards import Executor, OpenWorker
    from exporter.verification.accuracy.evaluate import Evaluation, Rate
    from exporter.verification.accuracy.paired import PairedComparison, PairedCount
    from exporter.verification.accuracy.resume_file import EvaluatedShard, Ran
    from runtimes.bundle import Bundle
    from runtimes.progress import Progress

_data = option_group("Data")


@click.command("eval", cls=GroupedCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@_data(
    "--data",
    required=True,
    metavar="SOURCE",
    help="Labelled images: a folder with class folders, a flat folder, an .npz file, an IDX file, or the URL of one"
    " (s3://, gs://, hf://); or built-in (its test images).",
)
@_data(
    "--data-labels",
    metavar="FILE",
    help="Classes of a flat folder, a file or its URL: lines of IMAGE CLASS, or ImageNet's LOC_val_solution.csv.",
)
@_data(
    "--synsets",
    metavar="FILE",
    help="WordNet ids of the model's classes, a file or its URL, in order, such as LOC_synset_mapping.txt.",
)
@_data(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of images, spread evenly over the classes.  [default: all]",
)
@backend_option
@provider_option
@url_option
@threads_option
@trust_option
@ray_options
@output_group(
    "--min-top1",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Fail with exit code 4 if the top-1 accuracy is below X.",
)
@output_group(
    "--worst",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="Number of classes, and of confused pairs, to list; the worst first.",
)
@output_group(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Save progress in FILE, and continue from it if it exists.",
)
@output_group(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare, image by image, with the --resume file of another evaluation, such as that of --backend pytorch.",
)
@output_group("--json", "as_json", is_flag=True, help="Print JSON on stdout, with every class's recall.")
@quiet_option
def evaluate(bundle: Path, **options: Any) -> None:
    """Measure the accuracy of BUNDLE on labelled images.

    Gives top-1, top-5, the recall of each class, and which classes are confused. ImageNet's folders and its flat
    validation folder are understood; a class that cannot be matched is an error, never a guess. A finished --resume
    file gives the same figures again at once; it knows images by name and label, not by content. --min-top1 is compared
    with the measured accuracy, not with the ends of its interval. --against gives the fall of the top-1 with its paired
    95 % interval, which is much narrower than the difference of two single ones.
    """
    from exporter.verification.accuracy.evaluate import EvaluationData
    from exporter.verification.accuracy.paired import PairedCount
    from runtimes.bundle import Bundle
    from runtimes.classify import check_classifier
    from runtimes.server_url import place_of

    _check_files(options)
    options["provider"] = place_of(options["backend"], options["provider"], options["url"])
    with status(quiet=options["quiet"]) as progress:
        progress("read the bundle and the data")
        opened = Bundle.open(bundle)
        check_classifier(opened.manifest.outputs)
        labelled = EvaluationData(options["data"], options["data_labels"], options["synsets"], options["images"])
        source, how = labelled.source(opened)
        for problem in source.left_out:
            progress(f"left out {problem}")
        pairs = PairedCount(options["against"], source) if options["against"] is not None else None
        at_work = _on_ray if options["ray"] is not None else _here
        with at_work(opened, source, options, progress) as crew:
            found = _evaluate(opened, source, crew, options["resume"], progress, pairs)
    paired = pairs.comparison() if pairs is not None else None
    shown = replace(found, confused=found.confused[: options["worst"]])
    backend, provider, _ = crew.ran
    if options["as_json"]:
        import msgspec

        facts: dict[str, object] = {"bundle": str(bundle), "backend": backend, "provider": provider}
        facts |= {"data": source.name, "left_out": source.left_out, "matched": how}
        facts |= {} if paired is None else {"paired": msgspec.to_builtins(paired)}
        echo_json({**facts, **msgspec.to_builtins(shown)})
    else:
        runs = "the fp32 reference" if backend == "pytorch" else opened.manifest.precision
        bundle_line = f"{'bundle':<12} {bundle}, {runs} on {backend} ({provider})"
        echo_lines([bundle_line, _data_line(source, found, how), *_lines(shown, paired, options["worst"])])
    _check_top1(found.top1, options["min_top1"])


def _check_files(options: dict[str, Any]) -> None:
    """Refuse values that cannot be meant, before anything is read."""
    resume, against = options["resume"], options["against"]
    if options["min_top1"] is not None and math.isnan(options["min_top1"]):
        raise BadInput("expected --min-top1 from 0 to 1, got nan")
    if against is not None and resume is not None and against.absolute() == resume.absolute():
        raise PlanError(f"expected the file of another evaluation for --against, got {against} for both; give two")
    if resume is not None and not resume.absolute().parent.is_dir():
        raise BadInput(f"--resume: cannot write {resume}: there is no folder {resume.parent}; make it first")


class _Crew(NamedTuple):
    """Who evaluates: what they run, how a worker is opened, and where."""

    ran: Ran
    open_worker: OpenWorker[EvaluatedShard]
    executor: Executor


@contextmanager
def _here(bundle: Bundle, source: ImageSource, options: dict[str, Any], progress: Progress) -> Iterator[_Crew]:
    """One worker, in this process."""
    from calibration.distributed.local import Local
    from exporter.verification.accuracy.worker import EvaluationWorker, ran_by
    from runtimes._open import open_runtime

    backend, tuning = options["backend"], options["tuning"]
    provider, trusted = options["provider"], options["trust_engines"]
    with open_runtime(bundle, backend, provider=provider, trust_engine=trusted, tuning=tuning) as runtime:
        if runtime.choice is not None:
            progress(f"auto chose {runtime.choice}")
        yield _Crew(
            ran_by(bundle, backend, runtime, trusted),
            lambda threads: EvaluationWorker(bundle, runtime, source, threads),
            Local(tuning.threads),
        )


@contextmanager
def _on_ray(bundle: Bundle, source: ImageSource, options: dict[str, Any], progress: Progress) -> Iterator[_Crew]:
    """Workers of a Ray cluster; the first tells what all of them are to run."""
    from calibration.distributed.request import executor_of
    from calibration.distributed.seen import first_readable, manifest_digest
    from calibration.distributed.shards import Shard
    from exporter.verification.accuracy.worker import OpenEvaluation
    from runtimes._open import AUTO, backend_names

    backend = options["backend"]
    if backend not in (AUTO, *backend_names()):  # before Ray is started
        raise UnknownName("backend", backend, backend_names())
    provider, trusted = options["provider"], options["trust_engines"]
    opening = OpenEvaluation(
        bundle.folder.absolute(), manifest_digest(bundle), source, first_readable(source), backend, provider, trusted
    )
    with executor_of(options["ray"], options["tuning"].threads, gpu=needs_gpu(backend, provider)) as executor:
        progress(f"evaluate on {executor}")
        ((_, ran),) = executor.run(opening.telling, [Shard(0, 0, 0)])
        same = replace(opening, backend=ran.backend, provider=ran.provider, ran=ran)
        yield _Crew(ran, same, executor)


def _evaluate(
    bundle: Bundle,
    source: ImageSource,
    crew: _Crew,
    resume: Path | None,
    progress: Progress,
    pairs: PairedCount | None,
) -> Evaluation:
    from exporter.verification.accuracy.evaluate import evaluate as measure
    from exporter.verification.accuracy.resume_file import evaluation_key, open_resume_file
    from exporter.verification.accuracy.worker import shard_size

    done, size = 0, shard_size(bundle)

    def report(shard: EvaluatedShard) -> None:
        nonlocal done
        for reason in shard.unreadable:
            progress(f"left out {reason}")
        done += shard.stop - shard.start
        if pairs is not None:
            pairs.add(shard)
        progress("evaluate", done, source.count)

    progress("evaluate")
    key = evaluation_key(bundle, crew.ran, source, size)
    with open_resume_file(resume, key) if resume is not None else nullcontext() as resume_file:
        try:
            return measure(
                source, crew.open_worker, size, executor=crew.executor, resume_file=resume_file, on_shard=report
            )
        except KeyboardInterrupt as stop:
            if resume_file is None:
                raise
            raise click.Abort(
                f"interrupted; {done} of {source.count} pictures are in {resume_file.path}, "
                "and the same command goes on from there"
            ) from stop


def _data_line(source: ImageSource, found: Evaluation, how: str) -> str:
    some, every = len(found.recall), len(source.classes or ())
    which = f"{every} classes" if some == every else f"{some} of the model's {every} classes"
    return f"{'data':<12} {source.name}, {count_text(found.images)}, {which}, matched {how}"


def _lines(found: Evaluation, paired: PairedComparison | None, worst: int) -> list[str]:
    lowest = sorted(found.recall, key=lambda one: (one.top1.share, one.index))[:worst]
    lines = [_rate_line("top-1", found.top1), *_paired_lines(paired), _rate_line("top-5", found.top5)]
    singles = "; of each, lowest first:" if lowest else ""
    lines.append(f"{'recall':<12} {found.mean_recall:.2%} on average over the classes{singles}")
    lines += [f"{'':<12} {one.top1.share:>7.2%}  {one.top1.correct} of {one.top1.images}  {one.name}" for one in lowest]
    if found.confused:
        lines.append(f"{'confused':<12} most often first, and how many of the class's pictures:")
    lines += [
        f"{'':<12} {one.images / one.of:>7.2%}  {one.images} of {one.of}  {one.label} taken for {one.predicted}"
        for one in found.confused
    ]
    if found.unreadable:
        lines.append(f"{'left out':<12} {len(found.unreadable)} that cannot be read: {found.unreadable[0]}")
    with_reading = f"{found.images_per_s:.1f} with reading and preparing pictures"
    return [*lines, f"{'images/s':<12} {found.model_images_per_s:.1f} in the model, {with_reading}"]


def _paired_lines(paired: PairedComparison | None) -> list[str]:
    if paired is None:
        return []
    low, high = paired.interval
    pairs = f"{paired.lost} lost and {paired.gained} gained of {count_text(paired.images)}"
    fall = f"a fall of {paired.fall:.2%} (95 % interval {low:.2%} to {high:.2%})"
    return [f"{'against':<12} {paired.against} with {paired.other_top1:.2%}: {fall}, {pairs}"]


def _rate_line(name: str, rate: Rate) -> str:
    low, high = rate.interval
    return f"{name:<12} {rate.share:.2%} (95 % interval {low:.2%} to {high:.2%}), {rate.correct} of {rate.images}"


def _check_top1(top1: Rate, least: float | None) -> None:
    if least is None or top1.share >= least:
        return
    low, high = top1.interval
    end = "all of it below" if high < least else "which holds what was expected: evaluate on more images to know"
    raise AccuracyError(
        f"expected a top-1 of at least {least:.2%}, got {top1.share:.2%} (95 % interval {low:.2%} to {high:.2%}, {end})"
    )
