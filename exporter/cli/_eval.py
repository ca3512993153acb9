"""`resnet-deploy eval`: the accuracy of a bundle on labelled images."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.cli._common import echo_json, echo_lines, status
from exporter.cli._help import GroupedCommand, option_group
from exporter.cli._options import (
    backend_option,
    output_group,
    provider_option,
    quiet_option,
    threads_option,
    trust_option,
    url_option,
)
from runtimes.errors import AccuracyError, BadInput, PlanError
from runtimes.printable import count_text

if TYPE_CHECKING:
    from calibration.data import ImageSource
    from exporter.verification.accuracy.evaluate import Evaluation, Rate
    from exporter.verification.accuracy.paired import PairedComparison, PairedCount
    from exporter.verification.accuracy.resume_file import EvaluatedBatch, ResumeFile
    from runtimes.base import Runtime
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
    from runtimes._open import open_runtime
    from runtimes.bundle import Bundle
    from runtimes.classify import check_classifier
    from runtimes.server_url import place_of

    backend, tuning = options["backend"], options["tuning"]
    provider = place_of(backend, options["provider"], options["url"])
    if options["min_top1"] is not None and math.isnan(options["min_top1"]):
        raise BadInput("expected --min-top1 from 0 to 1, got nan")
    resume, against = options["resume"], options["against"]
    if against is not None and resume is not None and against.absolute() == resume.absolute():
        raise PlanError(f"expected the file of another evaluation for --against, got {against} for both; give two")
    if resume is not None and not resume.absolute().parent.is_dir():
        raise BadInput(f"--resume: cannot write {resume}: there is no folder {resume.parent}; make it first")
    with status(quiet=options["quiet"]) as progress:
        progress("read the bundle and the data")
        opened = Bundle.open(bundle)
        check_classifier(opened.manifest.outputs)
        labelled = EvaluationData(options["data"], options["data_labels"], options["synsets"], options["images"])
        source, how = labelled.source(opened)
        for problem in source.left_out:
            progress(f"left out {problem}")
        pairs = PairedCount(against, source) if against is not None else None
        trusted = options["trust_engines"]
        with open_runtime(opened, backend, provider=provider, trust_engine=trusted, tuning=tuning) as runtime:
            provider = runtime.provider
            if runtime.choice is not None:
                backend = runtime.choice.backend
                progress(f"auto chose {runtime.choice}")
            opening = _opening(resume, opened, backend, runtime, source)
            found = _evaluate(opened, runtime, source, opening, progress, pairs)
    paired = pairs.comparison() if pairs is not None else None
    shown = replace(found, confused=found.confused[: options["worst"]])
    if options["as_json"]:
        import msgspec

        facts = {"bundle": str(bundle), "backend": backend, "provider": provider}
        facts |= {"data": source.name, "left_out": source.left_out, "matched": how}
        facts |= {} if paired is None else {"paired": msgspec.to_builtins(paired)}
        echo_json({**facts, **msgspec.to_builtins(shown)})
    else:
        runs = "the fp32 reference" if backend == "pytorch" else opened.manifest.precision
        bundle_line = f"{'bundle':<12} {bundle}, {runs} on {backend} ({provider})"
        echo_lines([bundle_line, _data_line(source, found, how), *_lines(shown, paired, options["worst"])])
    _check_top1(found.top1, options["min_top1"])


def _opening(
    resume: Path | None, bundle: Bundle, backend: str, runtime: Runtime, source: ImageSource
) -> AbstractContextManager[ResumeFile | None]:
    from exporter.verification.accuracy.resume_file import evaluation_key, open_resume_file

    if resume is None:
        return nullcontext()
    return open_resume_file(resume, evaluation_key(bundle, backend, runtime, source))


def _evaluate(
    bundle: Bundle,
    runtime: Runtime,
    source: ImageSource,
    opening: AbstractContextManager[ResumeFile | None],
    progress: Progress,
    pairs: PairedCount | None,
) -> Evaluation:
    from exporter.verification.accuracy.evaluate import evaluate as measure

    done = 0

    def report(batch: EvaluatedBatch) -> None:
        nonlocal done
        for reason in batch.unreadable:
            progress(f"left out {reason}")
        done = batch.after
        if pairs is not None:
            pairs.add(batch)
        progress("evaluate", done, source.count)

    progress("evaluate")
    with opening as resume_file:
        try:
            return measure(bundle, runtime, source, resume_file=resume_file, on_batch=report)
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
