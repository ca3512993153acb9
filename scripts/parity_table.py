"""Export every model in every precision and print the parity table of the README.

python scripts/parity_table.py [--weights random]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from exporter import ExportPlan, export
from exporter.models import MODELS
from exporter.plan import precision_names


@click.command(help=__doc__.split("\n", 1)[0])
@click.option("--model", "models", multiple=True, help="Only these.  [default: all]")
def main(models: tuple[str, ...]) -> None:
    names = [name for name in precision_names() if name != "fp32"]
    click.echo("| model | size FP32 | FP32 error | " + " | ".join(f"{name.upper()} size | file | simulated | agreement" for name in names) + " |")
    click.echo("| --- | ---: | ---: | " + " | ".join(["---: | ---: | ---: | ---:"] * len(names)) + " |")
    for model in models or MODELS:
        cells = []
        for precision in ("fp32", *names):
            with tempfile.TemporaryDirectory() as folder:
                weights = "default" if MODELS[model].source == "cifar" else "random"
                manifest = export(ExportPlan(model, Path(folder) / "bundle", precision=precision, weights=weights)).manifest
            size = manifest.files["model.onnx"].bytes / 1e6
            measured = manifest.parity.backends
            shown = ("onnxruntime",) if precision == "fp32" else ("onnxruntime", "simulation")
            errors = " | ".join(f"{measured[name].max_relative_error:.1e}" if name in measured else "" for name in shown)
            worst = min(one.top1_agreement or 0.0 for one in measured.values())
            cells.append(f"{size:.1f} MB | {errors}" + (f" | {worst:.2%}" if precision != "fp32" else ""))
        click.echo(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
