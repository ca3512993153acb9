"""What Ray's workers cost and gain beside the plain loop, on this machine, and the parts that bound a cluster.

    python scripts/bench_scale.py [--pictures FOLDER] [--few 256] [--many 2048] [--rounds 3]

First `resnet-deploy eval` of a ResNet-18 in FP32 on ONNX Runtime, as a process of its own, on two numbers of pictures: from both come the
time to start and the rate once it runs. The ways take turns in each round, so that a machine that slows down slows all; of the rounds the
median counts. Then the parts, one after the other: to list names, to decode and preprocess a picture, to send a shard to a
worker and its result back, and to count a result; with these, what bounds ImageNet on 64 GPUs.

FOLDER holds JPEG photographs, whose crops of 500 x 375 pixels are evaluated on; without it, the built-in pictures are enlarged to that.
Random weights will do: only time is measured.
"""

from __future__ import annotations

import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image

from calibration.data import built_in, open_source
from calibration.distributed.address import RayRequest
from calibration.distributed.request import executor_of
from calibration.distributed.shards import Shard, shards_of
from exporter.verification.accuracy.evaluate import Tally
from exporter.verification.accuracy.resume_file import EvaluatedShard, EvaluationKey, open_resume_file
from exporter.verification.accuracy.worker import SHARD
from runtimes import Bundle
from runtimes.cores import usable_cores
from runtimes.processor import processor

CLASSES = 10
SIZE = (500, 375)
"""Flickr's medium size, that of many of ImageNet's pictures."""
NAMES = 50_000
"""How many names the listing is timed on."""
SHARDS = 300
"""How many shards the driver is timed on."""
KEY = EvaluationKey("", "", "onnxruntime", "cpu", "1:8:32", SHARDS * SHARD, SHARD, "")
IMAGENET, IMAGENET_BYTES, GPUS = 1_281_167, 138e9, 64
"""ILSVRC2012's training pictures, and the size of their archive."""
SETTLED = 3
"""How many seconds the machine rests before each round."""


class Way(NamedTuple):
    """A way to evaluate: on how many cores, and with which options."""

    name: str
    cores: int
    options: tuple[str, ...]


def ways() -> list[Way]:
    """The plain loop and Ray's workers, on one core and on all."""
    cores = usable_cores()
    found = [Way("plain", 1, ()), Way("local:1", 1, ("--ray", "local:1"))]
    if cores > 1:
        found += [Way("plain", cores, ())]
        found += [Way(f"local:{count}", cores, ("--ray", f"local:{count}")) for count in (1, 2, 4)]
    return found


def make_pictures(folder: Path, photographs: Path | None, count: int) -> None:
    """`count` JPEG pictures of SIZE in class folders; a few hundred different ones, linked as often as it takes."""
    files = sorted(photographs.rglob("*.jp*g")) if photographs is not None else []
    source, places = built_in("train"), np.random.default_rng(0)
    made: list[Path] = []
    for place in range(count):
        path = folder / f"class{place % CLASSES}" / f"{place:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(made) == 256:
            path.hardlink_to(made[place % len(made)])
            continue
        picture = Image.open(files[place % len(files)]) if files else source.image(place)
        left, top = (int(places.integers(max(1, side // 4))) for side in picture.size)
        part = (
            picture.convert("RGB")
            .crop((left, top, picture.width, picture.height))
            .resize(SIZE, Image.Resampling.BICUBIC)
        )
        part.save(path, quality=90)
        made.append(path)


def make_bundle(folder: Path) -> Path:
    """A ResNet-18 in FP32 with random weights, of ten named classes."""
    labels = folder / "labels.txt"
    labels.write_text("".join(f"class{number}\n" for number in range(CLASSES)))
    command = ["resnet18", "--fp32", "--weights", "random", "--num-classes", str(CLASSES), "--labels", str(labels)]
    command += ["--quiet", "--no-report", "--output", str(folder / "bundle")]
    subprocess.run([Path(sys.executable).with_name("resnet-export"), *command], check=True, stdout=subprocess.DEVNULL)
    return folder / "bundle"


def seconds_of(way: Way, bundle: Path, data: Path, count: int) -> float:
    """Seconds of one evaluation, from the start of its process to its end."""
    command = [str(Path(sys.executable).with_name("resnet-deploy")), "eval", str(bundle), "--data", str(data)]
    command += ["--images", str(count), "--backend", "onnxruntime", "--json", "--quiet", *way.options]
    cores = sorted(os.sched_getaffinity(0))[: way.cores]
    begin = time.perf_counter()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    taken = time.perf_counter() - begin
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr}")
    assert json.loads(done.stdout)["images"] == count
    return taken


def compare(bundle: Path, data: Path, few: int, many: int, rounds: int) -> None:
    """Print the time to start and the rate of each way, beside the plain loop's on the same cores."""
    taken: dict[tuple[Way, int], list[float]] = {}
    for _ in range(rounds):
        time.sleep(SETTLED)
        for way in ways():
            for count in (few, many):
                taken.setdefault((way, count), []).append(seconds_of(way, bundle, data, count))
    rates: dict[Way, float] = {}
    click.echo(f"{'way':<10} {'cores':>5} {'start s':>8} {'images/s':>9}   of plain there   of one core's plain")
    for way in ways():
        short, long = (statistics.median(taken[way, count]) for count in (few, many))
        rates[way] = rate = (many - few) / (long - short)
        plain = next(one for one in rates if one.name == "plain" and one.cores == way.cores)
        first = next(iter(rates))
        click.echo(
            f"{way.name:<10} {way.cores:>5} {short - few / rate:>8.2f} {rate:>9.1f}   {rate / rates[plain]:>14.3f}   {rate / rates[first]:>19.2f}"
        )


def median_seconds(call: Callable[[], object], times: int = 7) -> float:
    """The median of some calls' seconds, after one that is not counted."""
    call()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


class Parts(NamedTuple):
    """What the parts of an evaluation take.

    Attributes:
        list_us: to list a name.
        decode_ms: to read, decode and preprocess a picture on one core.
        result_kb: what a worker sends for a shard.
        trip_ms: to hand a shard to a worker and take its result, one after another.
        count_ms: to count a shard's answers and save them in the resume file.
    """

    list_us: float
    decode_ms: float
    result_kb: float
    trip_ms: float
    count_ms: float


def measure_parts(bundle: Path, data: Path, folder: Path) -> Parts:
    """What each part of an evaluation takes, on one core where it computes."""
    for place in range(NAMES):
        path = folder / f"n{place % 1000:08}" / f"ILSVRC2012_{place:08}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listing = median_seconds(lambda: open_source(str(folder)), 3)
    preprocess, source = Bundle.open(bundle).manifest.preprocess, open_source(str(data))
    count = min(128, source.count)

    def decode() -> None:
        for place in range(count):
            preprocess(source.picture(place))

    decoding = median_seconds(decode, 3)
    size = sum((data / source.name_of(place)).stat().st_size for place in range(count)) / count
    trip, counting = driver_seconds(folder)
    parts = Parts(
        list_us=listing / NAMES * 1e6,
        decode_ms=decoding / count * 1e3,
        result_kb=len(pickle.dumps(canned_answers(0))) / 1e3,
        trip_ms=trip * 1e3,
        count_ms=counting * 1e3,
    )
    click.echo(f"\nlist                 {parts.list_us:>8.2f} us a name")
    click.echo(f"read and preprocess  {parts.decode_ms:>8.2f} ms a picture of {size / 1e3:.0f} kB, on one core")
    click.echo(f"a shard's result     {parts.result_kb:>8.2f} kB for {SHARD} pictures")
    click.echo(
        f"the list of names    {len(pickle.dumps(source)) / source.count:>8.1f} bytes a picture, to each worker once"
    )
    click.echo(f"a shard's way        {parts.trip_ms:>8.2f} ms to a worker that answers at once, and back")
    click.echo(f"count and save       {parts.count_ms:>8.2f} ms a shard")
    return parts


def driver_seconds(folder: Path) -> tuple[float, float]:
    """Seconds a shard takes between the driver and a worker that answers at once, and to count and save its answers."""
    shards = shards_of(SHARDS * SHARD, SHARD)
    with executor_of(RayRequest("local", 1), None) as executor:
        found = executor.run(OpenCanned(), shards)
        next(found)  # the worker is there
        begin = time.perf_counter()
        for _ in found:
            pass
        trip = (time.perf_counter() - begin) / (len(shards) - 1)
    tally = Tally()
    with open_resume_file(folder / "resume.jsonl", KEY) as resume:
        begin = time.perf_counter()
        for shard in shards:
            one = canned_answers(shard.start)
            resume.add(one)
            tally.add(one)
    return trip, (time.perf_counter() - begin) / len(shards)


def show_cluster(parts: Parts) -> None:
    """Print what these parts allow a cluster: the pictures a second that each of them bounds."""
    listing = IMAGENET * parts.list_us / 1e6
    click.echo(f"\nImageNet's {IMAGENET:,} pictures on {GPUS} GPUs, with these parts: {listing:.0f} s to list")
    click.echo(f"driver: {SHARD * 1e3 / (parts.trip_ms + parts.count_ms):,.0f} images/s")
    click.echo(f"{'cores a GPU':>11} {'decoded a GPU':>14} {'in all':>9} {'network':>10} {'time':>8}")
    for cores in (4, 8, 16, 32):
        rate = cores * 1e3 / parts.decode_ms
        network = GPUS * rate * IMAGENET_BYTES / IMAGENET
        click.echo(
            f"{cores:>11} {rate:>9,.0f} im/s {GPUS * rate:>9,.0f} {network / 1e9:>7.1f} GB/s {listing + IMAGENET / (GPUS * rate):>6.0f} s"
        )


def canned_answers(start: int) -> EvaluatedShard:
    """Answers to one shard, as a worker gives them."""
    rows = tuple((start + row, row % CLASSES, *range(5)) for row in range(SHARD))
    return EvaluatedShard(start, start + SHARD, rows, (), 0.1, 0.1)


class OpenCanned:
    """Opens a worker that answers at once."""

    def __call__(self, threads: int) -> OpenCanned:
        return self

    def work(self, shard: Shard) -> EvaluatedShard:
        return canned_answers(shard.start)

    def close(self) -> None:
        pass


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER")
@click.option("--few", default=256, show_default=True)
@click.option("--many", default=2048, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(pictures: Path | None, few: int, many: int, rounds: int) -> None:
    chip = processor()
    click.echo(f"{chip}, {usable_cores()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures", pictures, many)
        bundle = make_bundle(folder)
        compare(bundle, folder / "pictures", few, many, rounds)
        show_cluster(measure_parts(bundle, folder / "pictures", folder / "names"))


if __name__ == "__main__":
    main()
