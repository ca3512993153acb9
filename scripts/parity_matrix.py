"""Prove every registered model in every precision on every backend that is here, and write the table of docs/parity.md.

    python scripts/parity_matrix.py [--model NAME ...] [--precision NAME ...]   # measures what is asked for, and keeps the rest
    python scripts/parity_matrix.py --table                                     # writes the table anew from what was measured

What was measured stands in docs/measurements/parity-matrix.json, a cell at a time, so that an interrupted run goes on where it was. Exit code 4
where a cell is out of budget. Rows for GPUs come from the newest result of scripts/gpu_checks.py; without one they read "not verified".
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from exporter import ExportPlan, export
from exporter.engines.build import BuildPlan, build_engine
from exporter.engines.builders import BuildOptions
from exporter.lowering.registry import precision_names
from exporter.models.registry import MODELS
from exporter.verification.check import check_bundle
from exporter.verification.plan import CheckPlan
from runtimes import Bundle, available_backends
from runtimes.bundle_writing import write_in_one_step
from runtimes.errors import ResnetExportError
from runtimes.parity.measures import Comparison
from runtimes.processor import processor

ROOT = Path(__file__).resolve().parent.parent
MEASURED, TABLE = ROOT / "docs" / "measurements" / "parity-matrix.json", ROOT / "docs" / "parity.md"
CANNOT = "cannot run it"
SHOWN = ("max_relative_error", "worst_cosine", "sqnr_db", "top1_agreement", "ok")
BUILT, BUILD_TARGETS = "tensorrt-rtx build", ("sm86", "sm120")
COLUMNS = {
    "onnxruntime": "ONNX Runtime, CPU",
    "simulation": "simulated",
    "pytorch": "PyTorch, CPU",
    "openvino": "OpenVINO, CPU",
    BUILT: "TensorRT-RTX builds",
}
ON_GPUS = {
    "onnxruntime (cuda)": "ONNX Runtime, CUDA",
    "onnxruntime (tensorrt)": "ONNX Runtime, TensorRT",
    "pytorch (cuda)": "PyTorch, CUDA",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
NOT_VERIFIED = "not verified"


def cell(model: str, precision: str) -> dict[str, Any]:
    """One model in one precision: the figures of each backend, or in which words it failed."""
    weights = "default" if MODELS[model].weights and MODELS[model].source == "cifar" else "random"
    with tempfile.TemporaryDirectory() as folder:
        try:
            manifest = export(ExportPlan(model, Path(folder) / "bundle", precision=precision, weights=weights)).manifest
            bundle = Bundle.open(Path(folder) / "bundle")
            found: dict[str, Any] = {name: figures(one) for name, one in manifest.parity.backends.items()}
            for one in check_bundle(CheckPlan(bundle, available_backends()))[0].backends:
                if one.answer is not None:
                    found.setdefault(one.backend, figures(one.answer.report.backends[one.backend]))
                elif one.verdict != "not here":
                    found[one.backend] = {"ok": False, "failed": one.reason}
            engine = build_engine(
                BuildPlan(bundle, "tensorrt-rtx", BuildOptions(targets=BUILD_TARGETS)),
                lambda step, done=0, total=0: None,
            )
            found[BUILT] = {"ok": True, "convolutions": engine.facts.layers.convolutions}
        except ResnetExportError as error:
            return {"ok": False, "failed": str(error)}
    return {
        "ok": all(one["ok"] for one in found.values()),
        "bytes": manifest.files["model.onnx"].bytes,
        "weights": weights,
        "backends": found,
    }


def figures(measured: Comparison) -> dict[str, Any]:
    """Three digits of what the table shows."""
    values = {name: getattr(measured, name) for name in SHOWN}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


def table_from_measurements(measured: dict[str, Any], gpu: dict[str, Any] | None) -> str:
    """docs/parity.md."""
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    lines = [
        "# Parity of every model, precision and backend",
        "",
        "Written by `scripts/parity_matrix.py`, whose figures `make test-all` measures again; do not edit. The largest error relative to the",
        "largest FP32 PyTorch logit (INT8: SQNR in dB of the logits without their mean over classes; what was measured before 2026-11-26 has",
        "it, and none of the repairs made since) and the top-1 agreement, over 32 images (resnet20: as many as decide, at most 2,000) at batch",
        "1, 8 and 32;",
        '"simulated" rounds every tensor as a device does.',
        'Weights are random (seed 0) but for resnet20\'s. "Builds" means that every convolution kernel reads the type asked for, on sm86 and sm120.',
        f"Measured on {measured['machine']}: {versions}.",
        "",
        f"GPU columns: {gpu_text(gpu)}.",
    ]
    for precision in precision_names():
        lines += ["", f"## {precision.upper()}", "", *_table(measured["cells"], precision, gpu)]
    return "\n".join(lines) + "\n"


def gpu_text(gpu: dict[str, Any] | None) -> str:
    """Where the GPU figures are from."""
    if gpu is None:
        return f"{NOT_VERIFIED}, no result of `scripts/gpu_checks.py` is there"
    return f'{gpu["device"]["name"]}, {gpu["date"]}, by `scripts/gpu_checks.py`; what it did not run reads "{NOT_VERIFIED}"'


def _table(cells: dict[str, Any], precision: str, gpu: dict[str, Any] | None) -> list[str]:
    columns = {**COLUMNS, **ON_GPUS}
    rows = [("model", "measured", "MB", *columns.values()), ("---", "---", "---:", *["---"] * len(columns))]
    for model in MODELS:
        one = cells.get(model, {}).get(precision)
        if one is None:
            rows.append((model, "", "", *["not measured"] * len(COLUMNS), *[NOT_VERIFIED] * len(ON_GPUS)))
            continue
        if "failed" in one:
            rows.append((model, one["date"], "", one["failed"], *[""] * (len(columns) - 1)))
            continue
        # It runs every file: without figures it was not installed when the cell was measured.
        missing = {"openvino": "not measured"}
        here = [_text(one["backends"].get(name), precision, missing.get(name, CANNOT)) for name in COLUMNS]
        there = (gpu or {}).get("bundles", {}).get(f"{model}-{precision}", {})
        rows.append(
            (
                model,
                one["date"],
                f"{one['bytes'] / 1e6:.1f}",
                *here,
                *(_text(there.get(name, {}).get("parity"), precision, NOT_VERIFIED) for name in ON_GPUS),
            )
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def _text(found: dict[str, Any] | None, precision: str, missing: str) -> str:
    if found is None:
        return missing
    if "failed" in found:
        return f"failed: {found['failed']}"
    if "convolutions" in found:
        return ", ".join(f"{count} {name}" for name, count in found["convolutions"].items())
    error = f"{found['sqnr_db']:.1f} dB" if precision == "int8" else f"{found['max_relative_error']:.1e}"
    verdict = "" if found["ok"] else ", OUT OF BUDGET"
    return f"{error}, {found['top1_agreement']:.2%}{verdict}"


def newest_gpu_result() -> dict[str, Any] | None:
    """The last of scripts/gpu_checks.py's, whose names begin with their dates."""
    found = sorted(MEASURED.parent.glob("[0-9]*.json"))
    result: dict[str, Any] | None = json.loads(found[-1].read_text()) if found else None
    return result


def environment() -> dict[str, Any]:
    """Where and with what."""
    packages = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "tensorrt-rtx-cu13")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
    return {"machine": f"{processor().name}, {os.cpu_count()} cores, no GPU", "versions": versions}


def measure(models: Sequence[str], precisions: Sequence[str], known: dict[str, Any]) -> bool:
    """Measure the cells, each kept as soon as it is there; are all in budget?"""
    cells = known.get("cells", {})
    good = True
    for model in models:
        for precision in precisions:
            click.echo(f"{model} {precision}", err=True)
            found = {"date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(), **cell(model, precision)}
            good &= found["ok"]
            cells.setdefault(model, {})[precision] = found
            MEASURED.parent.mkdir(exist_ok=True)
            write_in_one_step(MEASURED, (json.dumps({**environment(), "cells": cells}, indent=1) + "\n").encode())
    return good


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), help="Only these.  [default: all]")
@click.option(
    "--precision", "precisions", multiple=True, type=click.Choice(precision_names()), help="Only these.  [default: all]"
)
@click.option("--missing", is_flag=True, help="Only what has no figures yet.")
@click.option("--table", "table_only", is_flag=True, help="Measure nothing, write the table anew.")
def main(models: tuple[str, ...], precisions: tuple[str, ...], missing: bool, table_only: bool) -> None:
    known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    good = True
    if not table_only:
        for model in models or MODELS:
            there = known.get("cells", {}).get(model, {}) if missing else {}
            good &= measure([model], [name for name in precisions or precision_names() if name not in there], known)
            known = json.loads(MEASURED.read_text()) if MEASURED.exists() else known
    write_in_one_step(TABLE, table_from_measurements(json.loads(MEASURED.read_text()), newest_gpu_result()).encode())
    click.echo(str(TABLE))
    sys.exit(0 if good else 4)


if __name__ == "__main__":
    main()
