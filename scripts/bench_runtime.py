"""What running through this package costs beside the bare libraries, on the processor. One run, medians, ratios.

    python scripts/bench_runtime.py BUNDLE... [--pictures 128] [--rounds 15]

Three parts, each of rounds in which the two sides take turns, so that a machine that slows down slows both:

- call: one picture through `Runtime.run`, and through the library's own call, on each backend that is here;
- stream: `Runtime.stream` beside decoding, preprocessing and running alone, each with all cores;
- command: `resnet-deploy run` on one picture, and a bare script of the same steps, from start to end of the process.

Random weights will do. `others` is the share of a core that other processes took meanwhile: figures are worth something where it is
near 0.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtimes import Bundle, Runtime, available_backends, open_runtime
from runtimes.ahead import map_ahead
from runtimes.cores import usable_cores
from runtimes.picture_file import open_image
from runtimes.preprocess import BGR
from runtimes.processor import processor

Call = Callable[[], object]
CALLS = 5
"""Calls timed in one round, after one that is not."""
BARE_SCRIPT = """
import sys
import numpy as np, onnxruntime
from PIL import Image
model, picture, short, side, mean, std, step = sys.argv[1], sys.argv[2], *map(eval, sys.argv[3:])
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
image = Image.open(picture).convert("RGB" if len(mean) == 3 else "L")
scale = short / min(image.size)
image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
left, top = (image.width - side) // 2, (image.height - side) // 2
pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
pixels = pixels.reshape(side, side, len(mean))
inputs = ((pixels - np.float32(mean)) / np.float32(std))[..., ::step].transpose(2, 0, 1)[None]
logits = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(inputs)})[0][0]
chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for place in np.argsort(-chances)[:5]:
    print(f"{chances[place]:.2%} {place}")
"""


def bare_onnxruntime(bundle: Bundle, inputs: NDArray[Any]) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(bundle.file("model.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: inputs}
    return lambda: session.run(None, feeds)


def bare_pytorch(bundle: Bundle, inputs: NDArray[Any]) -> Call:
    import torch

    module = torch.export.load(bundle.file("reference.pt2")).module()

    def call() -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(inputs))

    return call


def bare_openvino(bundle: Bundle, inputs: NDArray[Any]) -> Call:
    from runtimes.backends._openvino_package import ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}  # else BF16 where the processor can
    model = ov.Core().compile_model(bundle.file("model.onnx"), "CPU", settings)
    request = model.create_infer_request()
    return lambda: request.infer({0: inputs}, share_inputs=True)


BARE = {"onnxruntime": bare_onnxruntime, "openvino": bare_openvino, "pytorch": bare_pytorch}


class Others:
    """How much of a core other processes took since the start (Linux; elsewhere 0)."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy_s(), _own_s()

    @property
    def share(self) -> float:
        used = _busy_s() - self._busy - (_own_s() - self._own)
        return round(max(0.0, used) / (time.perf_counter() - self._start), 3)


def _busy_s() -> float:
    try:
        ticks = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    return float(sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    return sum(os.times()[:4])


def compare_calls(bare: Call, ours: Call, rounds: int) -> dict[str, float]:
    """Median milliseconds of both sides, and the median over rounds of their ratio."""
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    sides = [("bare", bare), ("ours", ours)]
    others = Others()
    for round_ in range(rounds):
        for name, call in sides[:: 1 if round_ % 2 else -1]:
            call()
            time.sleep(0.005)  # the other side's threads stop waiting for work
            seconds[name].append(statistics.median(timed(call) for _ in range(CALLS)))
    ratios = [ours / bare for bare, ours in zip(seconds["bare"], seconds["ours"], strict=True)]
    found = {f"{name}_ms": round(statistics.median(values) * 1e3, 3) for name, values in seconds.items()}
    return {**found, "ratio": round(statistics.median(ratios), 4), "others": others.share}


def timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bench_call(bundle: Bundle, rounds: int) -> dict[str, dict[str, float]]:
    """For each backend that is here: one picture through both sides."""
    steps = bundle.manifest.preprocess
    inputs = steps.normalise(np.random.default_rng(0).integers(0, 256, (1, *steps.crop, steps.channels), np.uint8))
    found = {}
    for backend in sorted(BARE.keys() & set(available_backends())):
        with open_runtime(bundle, backend) as runtime:
            feeds = {runtime.inputs[0].name: inputs}
            found[backend] = compare_calls(BARE[backend](bundle, inputs), partial(runtime.run, feeds), rounds)
    return found


def bench_stream(bundle: Bundle, paths: list[Path], rounds: int) -> dict[str, Any]:
    """Pictures a second of each step alone and of all together, at the bundle's middle batch, and two bounds: the
    slowest step alone, and all cores busy with the sum of the steps' processor time."""
    preprocess, threads = bundle.manifest.preprocess, usable_cores()
    pictures = [open_image(path) for path in paths]
    with open_runtime(bundle) as runtime:
        batch = bundle.manifest.batch.opt
        inputs = preprocess.batch(pictures)
        steps = {
            "decode": lambda: _exhaust(map_ahead(open_image, paths, ahead=2 * threads)),
            "preprocess": lambda: _exhaust(map_ahead(preprocess, pictures, ahead=2 * threads)),
            "run": lambda: _run_all(runtime, inputs, batch),
            "stream": lambda: _exhaust(runtime.stream(paths, batch=batch)),
        }
        wall: dict[str, list[float]] = {name: [] for name in steps}
        own: dict[str, list[float]] = {name: [] for name in steps}
        others = Others()
        for name, step in [(name, step) for _ in range(rounds) for name, step in steps.items()]:
            before = time.process_time()
            wall[name].append(timed(step))
            own[name].append(time.process_time() - before)
    rates = {name: len(paths) / statistics.median(values) for name, values in wall.items()}
    alone = [name for name in steps if name != "stream"]
    slowest = min(rates[name] for name in alone)
    busy = len(paths) * threads / sum(statistics.median(own[name]) for name in alone)
    return {
        **{f"{name}_per_s": round(rate, 1) for name, rate in rates.items()},
        "all_cores_busy_per_s": round(busy, 1),
        "of_slowest": round(rates["stream"] / slowest, 3),
        "of_all_cores_busy": round(rates["stream"] / busy, 3),
        "others": others.share,
    }


def _exhaust(values: Any) -> None:
    deque(values, maxlen=0)


def _run_all(runtime: Runtime, inputs: NDArray[Any], batch: int) -> None:
    for start in range(0, len(inputs), batch):
        runtime.run({runtime.inputs[0].name: inputs[start : start + batch]})


def commands(bundle: Bundle, picture: Path) -> tuple[list[str], list[str]]:
    """The bare script and `resnet-deploy run`, on one picture."""
    steps = bundle.manifest.preprocess
    step = -1 if steps.channels_order == BGR else 1
    given = [json.dumps(value) for value in (steps.resize, steps.crop[0], steps.mean, steps.std, step)]
    bare = [sys.executable, "-c", BARE_SCRIPT, str(bundle.file("model.onnx")), str(picture), *given]
    return bare, [sys.executable, "-m", "exporter.cli.deploy", "run", str(bundle.folder), str(picture)]


def bench_command(bundle: Bundle, picture: Path, rounds: int) -> dict[str, float]:
    """Seconds from start to end of the process, on both sides, and the median of their difference."""
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    others = Others()
    for _ in range(rounds):
        for name, command in zip(seconds, commands(bundle, picture), strict=True):
            seconds[name].append(timed(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)))
    differences = [ours - bare for bare, ours in zip(seconds["bare"], seconds["ours"], strict=True)]
    found = {f"{name}_s": round(statistics.median(values), 3) for name, values in seconds.items()}
    return {**found, "difference_s": round(statistics.median(differences), 3), "others": others.share}


def write_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 x 375 and 375 x 500, smooth shapes and noise, as large as photographs of that size."""
    chance = np.random.default_rng(0)
    paths = []
    for place in range(count):
        width, height = (500, 375) if place % 2 else (375, 500)
        small = Image.fromarray(chance.integers(0, 256, (height // 25, width // 25, 3), np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + chance.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{place:04}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--pictures", default=128, show_default=True, type=click.IntRange(min=1), help="Files to stream.")
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(["call", "stream", "command"]), help="Leave out the others."
)
def main(bundles: tuple[Path, ...], pictures: int, rounds: int, parts: tuple[str, ...]) -> None:
    """Measure bundles of models that take float32 and resize pictures bilinearly by the shorter side; print JSON."""
    wanted = parts or ("call", "stream", "command")
    found: dict[str, Any] = {
        "machine": {
            "processor": str(processor()),
            "cores": usable_cores(),
            "python": platform.python_version(),
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), pictures)
        for path in bundles:
            bundle = Bundle.open(path)
            one: dict[str, Any] = {}
            if "call" in wanted:
                one["call"] = bench_call(bundle, rounds)
            if "stream" in wanted:
                one["stream"] = bench_stream(bundle, paths, max(1, rounds // 5))
            if "command" in wanted:
                one["command"] = bench_command(bundle, paths[0], max(1, rounds // 3))
            found[path.name] = one
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
