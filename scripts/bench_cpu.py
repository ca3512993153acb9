"""How fast and how true a network runs on this processor: PyTorch, onnxruntime and OpenVINO, their own quantizers, and ours.

    python scripts/bench_cpu.py --data FOLDER [--model resnet50 --model resnet18] [--nncf-python PYTHON] [--fashion FOLDER]

All run in the same rounds, one after the other, each in a process of its own; figures are medians over rounds, and ratios are paired
round by round; who begins changes, and every three rounds all are opened again, since one file in two processes differs by up to 2 %. Weights are random, which does for speed. Everybody calibrates on the same 128 pictures of a folder (of
the built-in ones, on as many); SQNR is of the logits without their mean over classes, against FP32 onnxruntime, on 32 others. --fashion also judges the shipped ResNet-20 on Fashion-MNIST's test set, picture by picture,
beside NNCF's. Exit code 4 where what is wanted does not hold, or the rounds do not decide it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from _cpu_contenders import Contender, Floats, Worker, contenders
from _quantize_elsewhere import QUANTIZERS

from calibration.data import inputs_from_source, open_source
from calibration.order import spread_places
from exporter.verification.bench.run import highest, order_of_round, roofs_of
from runtimes.benchmark.machine import this_machine
from runtimes.benchmark.statistics import Interval, median_interval, paired_ratio
from runtimes.bundle import Bundle
from runtimes.cores import usable_cores
from runtimes.parity.flips import centred
from runtimes.parity.intervals import tango_interval
from runtimes.parity.measures import sqnr_db

BATCHES = (1, 8, 32)
CALIBRATION, JUDGED = 128, 32
FASHION_IMAGES = 10_000
STATIC = {"U8S8": "onnxruntime U8S8", "S8S8": "onnxruntime S8S8", "QOperator": "onnxruntime QOperator"}
MOST_OVERHEAD = 1.03
OPENED_FOR = 3
"""Rounds, before everything is opened again."""
BUILT_IN = "built-in"
HOLDS, UNDECIDED, SHORT = "holds", "UNDECIDED", "SHORT"


@dataclass(frozen=True)
class Pictures:
    """What is calibrated on and what answers are compared on, each as `--data` takes it."""

    calibration: str
    judged: str


def parted(data: str, work: Path) -> Pictures:
    """The pictures of a folder in two folders of links; the built-in ones have parts of their own."""
    if data == BUILT_IN:
        return Pictures(data, data)
    source = open_source(data)
    if source.names is None or source.count < CALIBRATION + JUDGED:
        raise click.UsageError(f"--data: expected a folder of at least {CALIBRATION + JUDGED} pictures, got {data}")
    places = spread_places(source.count, CALIBRATION + JUDGED)
    judged = set(places[spread_places(len(places), JUDGED)].tolist())
    folders = {True: work / "judged", False: work / "calibration"}
    for place in map(int, places):
        path = (Path(data) / source.names[place]).resolve()
        link = folders[place in judged] / f"{place:06}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)
    return Pictures(str(folders[False]), str(folders[True]))


def prepare(model: str, pictures: Pictures, work: Path, nncf_python: Path | None, export: list[str]) -> dict[str, Path]:
    """Export the three bundles, and have the others quantize the FP32 graph; what is in `work` already is kept."""
    files = {}
    calibrated = ["--int8", "--calibration-images", str(CALIBRATION)]
    given = [] if pictures.calibration == BUILT_IN else ["--data", pictures.calibration]
    for name, options in (("fp32", ["--fp32"]), ("int8", calibrated), ("int8-cpu", [*calibrated, "--target", "cpu"])):
        files[name] = work / f"{model}-{name}"
        if not (files[name] / "manifest.json").exists():
            command = [
                str(Path(sys.executable).with_name("resnet-export")),
                model,
                *options,
                *given,
                *export,
                "--quiet",
            ]
            subprocess.run([*command, "--output", str(files[name])], check=True, stdout=subprocess.DEVNULL)
    bundle = Bundle.open(files["fp32"])
    images = work / f"{model}.npy"
    source = open_source(pictures.calibration)
    places = spread_places(source.count, CALIBRATION)
    np.save(images, inputs_from_source(source.subset(places), bundle.manifest.preprocess, len(places)))
    for name, tool in STATIC.items():
        files[name] = work / f"{model}-{name}.onnx"
        if not files[name].exists():
            QUANTIZERS[tool](bundle.file("model.onnx"), np.load(images), "MinMax", files[name])
    if nncf_python is not None:
        files["NNCF"] = work / f"{model}-nncf.xml"
        if not files["NNCF"].exists():
            script = Path(__file__).with_name("_quantize_elsewhere.py")
            order: list[str | Path] = ["quantize", "NNCF for OpenVINO", "performance", bundle.file("model.onnx")]
            subprocess.run([nncf_python, script, *order, images, files["NNCF"]], check=True, cwd=tempfile.gettempdir())
    return files


def rounds_of(workers: list[Worker], inputs: Floats, rounds: int, seconds: float) -> dict[str, dict[int, list[float]]]:
    """Images a second by name and batch size, round by round."""
    rates: dict[str, dict[int, list[float]]] = {one.contender.name: {size: [] for size in BATCHES} for one in workers}
    for place in range(rounds):
        if place % OPENED_FOR == 0:
            for worker in workers:
                if worker.problem:
                    continue
                if place:
                    worker.open_again()
                for size in BATCHES:
                    worker.seconds(inputs[:size], seconds)  # warm up
        for which in order_of_round(place, len(workers)):
            worker = workers[which]
            for size in BATCHES:
                taken = [] if worker.problem else worker.seconds(inputs[:size], seconds)
                rates[worker.contender.name][size] += [size / float(np.median(taken))] if taken else []
        click.echo(f"round {place + 1} of {rounds}", err=True)
    return {one.contender.name: rates[one.contender.name] for one in workers if not one.problem}


def best_batch(rates: dict[int, list[float]]) -> int:
    return max(rates, key=lambda size: float(np.median(rates[size])))


def row_of(
    contender: Contender, rates: dict[int, list[float]], sqnr_db: float | None, macs: int, roofs: dict[str, float]
) -> dict[str, Any]:
    """A row of the table, with its intervals."""
    best = best_batch(rates)
    speed, latency = median_interval(rates[best]), median_interval([1e3 / one for one in rates[1]])
    roof = roofs.get(contender.dtype)
    return {
        "name": contender.name,
        "best_batch": best,
        "images_per_s": asdict(speed),
        "latency_ms": asdict(latency),
        "sqnr_db": sqnr_db,
        "roof": contender.dtype,
        "roof_share": None if roof is None else speed.median * macs / roof,
    }


def logits_sqnr_db(found: Floats, reference: Floats) -> float:
    return sqnr_db(*(centred(one.astype(np.float64)) for one in (reference, found)))


def verdicts(rates: dict[str, dict[int, list[float]]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is wanted, and whether it holds: a ratio is short of it where its interval says so."""
    by_name = {row["name"]: row for row in rows}
    ours = {backend: f"ours, {backend}, INT8, --target cpu" for backend in ("onnxruntime", "openvino")}
    found = []

    def throughput(what: str, first: str, second: str, least: float) -> None:
        ratio = paired_ratio(rates[first][best_batch(rates[first])], rates[second][best_batch(rates[second])])
        found.append(_verdict(what, ratio, least))

    def latency(what: str, first: str, second: str, least: float) -> None:
        found.append(_verdict(what, paired_ratio(rates[first][1], rates[second][1]), least))

    nncf = "OpenVINO, quantized by NNCF"
    if nncf in rates and ours["openvino"] in rates:
        throughput("throughput in OpenVINO over NNCF's", ours["openvino"], nncf, 1.0)
        latency("speed at batch 1 in OpenVINO over NNCF's", ours["openvino"], nncf, 1.0)
        found.append(_truth("SQNR in OpenVINO over NNCF's", by_name[ours["openvino"]], [by_name[nncf]]))
    static = [name for name in rates if "static quantization" in name]
    best = max(static, key=lambda name: float(np.median(rates[name][best_batch(rates[name])])))
    throughput(f"throughput in onnxruntime over its own best ({best})", ours["onnxruntime"], best, 1.0)
    quickest = max(static, key=lambda name: float(np.median(rates[name][1])))
    latency(f"speed at batch 1 in onnxruntime over its own best ({quickest})", ours["onnxruntime"], quickest, 1.0)
    found.append(
        _truth("SQNR in onnxruntime over its own", by_name[ours["onnxruntime"]], [by_name[one] for one in static])
    )
    for bare, name in (("onnxruntime, FP32", "onnxruntime"), ("OpenVINO, FP32", "openvino")):
        mine = f"ours, {name}, FP32"
        if mine in rates:
            latency(f"speed of our runtime at batch 1 over bare {name}", mine, bare, 1 / MOST_OVERHEAD)
            throughput(f"throughput of our runtime over bare {name}", mine, bare, 1 / MOST_OVERHEAD)
    return found


def _verdict(what: str, ratio: Interval, least: float) -> dict[str, Any]:
    """It holds where the whole interval does, is short where none of it does, and is undecided otherwise."""
    low, high = ratio.low, ratio.high
    verdict = (
        UNDECIDED if low is None or high is None else HOLDS if low >= least else SHORT if high < least else UNDECIDED
    )
    return {"wanted": what, "at_least": round(least, 3), "ratio": asdict(ratio), "verdict": verdict}


def _truth(what: str, ours: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    best = max(one["sqnr_db"] for one in others)
    return {
        "wanted": what,
        "ours_db": ours["sqnr_db"],
        "best_db": best,
        "verdict": HOLDS if ours["sqnr_db"] >= best else SHORT,
    }


def measure_model(model: str, files: dict[str, Path], judged: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Every contender's row for one model."""
    bundle = Bundle.open(files["fp32"])
    source = open_source(judged, split="test")
    chosen = source.subset(spread_places(source.count, JUDGED))
    inputs = inputs_from_source(chosen, bundle.manifest.preprocess, JUDGED)
    workers = [Worker(one, inputs[:1]) for one in contenders(model, files)]
    rates = rounds_of([one for one in workers if not one.problem], inputs, rounds, seconds)
    running = [one for one in workers if not one.problem]
    answers = {one.contender.name: one.logits(inputs) for one in running}
    for worker in workers:
        worker.close()
    roofs = {one.dtype: one.macs_per_s for one in highest(roofs_of(["cpu"], usable_cores()))}
    reference = answers["onnxruntime, FP32"]
    rows = []
    for worker in running:
        name = worker.contender.name
        # torchvision's own random weights are others than the bundle's
        ratio = None if worker.contender.kind.startswith("torch") else logits_sqnr_db(answers[name], reference)
        rows.append(row_of(worker.contender, rates[name], ratio, bundle.manifest.graph.macs or 0, roofs))
    return {
        "model": model,
        "rows": rows,
        "not_measured": {one.contender.name: one.problem for one in workers if one.problem},
        "roofs_macs_per_s": roofs,
        "wanted": verdicts(rates, rows),
    }


def judge_fashion(folder: Path, work: Path, nncf_python: Path | None) -> dict[str, Any]:
    """Top-1 of the shipped ResNet-20 in OpenVINO: ours, and NNCF's, calibrated on the same built-in pictures."""
    files = prepare("resnet20", Pictures(BUILT_IN, BUILT_IN), work, nncf_python, [])
    bundle = Bundle.open(files["fp32"])
    source = open_source(str(folder), split="test")
    count = min(source.count, FASHION_IMAGES)
    inputs = inputs_from_source(source, bundle.manifest.preprocess, count)
    labels = np.asarray(source.labels)[:count]
    named = {
        "FP32": Contender("FP32", "onnxruntime", str(files["fp32"] / "model.onnx"), "fp32"),
        "ours": Contender("ours", "runtime", str(files["int8-cpu"]), "int8", "openvino"),
        "ours, onnxruntime": Contender("ours", "runtime", str(files["int8-cpu"]), "int8", "onnxruntime"),
        **({"NNCF": Contender("NNCF", "openvino", str(files["NNCF"]), "int8")} if "NNCF" in files else {}),
    }
    right, ratios, logits = {}, {}, {}
    for name, contender in named.items():
        worker = Worker(contender, inputs[:1])
        logits[name] = worker.logits(inputs)
        worker.close()
        right[name] = logits[name].argmax(1) == labels
        ratios[name] = logits_sqnr_db(logits[name], logits["FP32"])
    found: dict[str, Any] = {
        "images": count,
        "top1": {name: float(one.mean()) for name, one in right.items()},
        "sqnr_db": {name: round(one, 2) for name, one in ratios.items()},
    }
    if "NNCF" in right:
        lost = int((right["NNCF"] & ~right["ours"]).sum())
        gained = int((right["ours"] & ~right["NNCF"]).sum())
        interval = tango_interval(lost, gained, count)
        found |= {
            "only_nncf_right": lost,
            "only_ours_right": gained,
            "fall_from_nncf": [(lost - gained) / count, *interval],
        }
        found["verdict"] = SHORT if interval[0] > 0 else HOLDS  # no worse: no fall is shown
    return found


def table(found: dict[str, Any]) -> list[str]:
    """A model's rows, as Markdown."""
    lines = [
        f"| {found['model']} | images/s, best batch | ms, batch 1 | dB against FP32 | share of the roof |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        truth = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        share = "" if row["roof_share"] is None else f"{row['roof_share']:.0%} of {row['roof']}"
        speed, latency = row["images_per_s"]["median"], row["latency_ms"]["median"]
        lines.append(f"| {row['name']} | {speed:.1f} ({row['best_batch']}) | {latency:.1f} | {truth} | {share} |")
    return lines


@click.command(help=__doc__.split("\n", 1)[0])
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("resnet50", "resnet18"),
    show_default=True,
    help="A torchvision model; repeatable.",
)
@click.option(
    "--data",
    default="built-in",
    show_default=True,
    help="Pictures to calibrate on and, others of them, to compare answers on.",
)
@click.option("--nncf-python", type=click.Path(path_type=Path), help="An interpreter that has nncf and openvino.")
@click.option("--fashion", type=click.Path(path_type=Path), help="Fashion-MNIST's IDX files.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/bench-cpu"),
    show_default=True,
    help="Keeps what was exported and quantized.",
)
@click.option("--rounds", default=12, show_default=True)
@click.option("--seconds", default=0.3, show_default=True, help="Of each measurement in each round, at least.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench-cpu.json"), show_default=True)
def main(
    models: tuple[str, ...],
    data: str,
    nncf_python: Path | None,
    fashion: Path | None,
    work: Path,
    rounds: int,
    seconds: float,
    output: Path,
) -> None:
    work /= hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:8]  # of other pictures, another folder
    work.mkdir(parents=True, exist_ok=True)
    before, pictures = this_machine(), parted(data, work)
    prepared = {model: prepare(model, pictures, work, nncf_python, ["--weights", "random"]) for model in models}
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": asdict(before),
        "rounds": rounds,
        "models": [measure_model(model, files, pictures.judged, rounds, seconds) for model, files in prepared.items()],
    }
    if fashion is not None:
        result["fashion_mnist"] = judge_fashion(fashion, work, nncf_python)
    output.write_text(json.dumps(result, indent=2) + "\n")
    checks = [one for found in result["models"] for one in found["wanted"]]
    for found in result["models"]:
        click.echo(
            "\n".join([*table(found), *(f"not measured: {name}: {why}" for name, why in found["not_measured"].items())])
        )
        for one in found["wanted"]:
            value = (
                f"{one['ratio']['median']:.3f}"
                if "ratio" in one
                else f"{one['ours_db']:.1f} and {one['best_db']:.1f} dB"
            )
            click.echo(f"{one['verdict']}: {one['wanted']}: {value}")
    if fashion is not None:
        click.echo(json.dumps(result["fashion_mnist"], indent=1))
        checks.append({"verdict": result["fashion_mnist"].get("verdict", HOLDS)})
    sys.exit(0 if all(one["verdict"] == HOLDS for one in checks) else 4)


if __name__ == "__main__":
    main()
