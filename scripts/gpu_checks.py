"""Run what needs an NVIDIA GPU, in two parts of five and seven minutes, and write what was found to docs/measurements/.

    python scripts/gpu_checks.py part1 [--bundles FOLDER] [--wheels FOLDER] [--seconds N] [--output FILE] [--after FILE]
    python scripts/gpu_checks.py part2 ...          # the same with onnxruntime-gpu, and TensorRT where it is installed
    python scripts/gpu_checks.py part1 --only tests --after FILE    # one step again

Part 1 needs PyTorch alone beside the project: the tests marked `gpu` (CUDA streams, graphs, pinned memory, DLPack, a stand-in engine over
the real CUDA), the parity of FP32 bundles on PyTorch, the machine's roof, and how near PyTorch comes to it. Part 2 proves bundles of every
precision on ONNX Runtime's CUDA provider, and compares its speed in FP16 with PyTorch's best.

Each step is a process of its own with a share of the time, and what it found is written as soon as it is there, failures too.
Bundles that are not in --bundles yet are exported meanwhile, on the CPU. --wheels takes packages that are not installed out of wheels that
lie in a folder. `docs/measured.md` says how to read the result. Exit code 1: a step failed; 3: there is no GPU.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
SCHEMA_VERSION = 1
SECONDS = {1: 280, 2: 420}
SECONDS_TO_STOP = 5.0
SLOWER_ON_CPU = 10
"""How many times its share of the time a step gets where it is only tried out."""


@dataclass(frozen=True)
class Step:
    """One process: it may take `seconds` at most; `needs_bundles` waits until they are made."""

    name: str
    seconds: float
    needs_bundles: bool = False


PARTS = {
    1: (Step("tests", 150), Step("roofline", 30), Step("parity", 60, needs_bundles=True), Step("pytorch", 400)),
    2: (
        Step("onnxruntime", 180, needs_bundles=True),
        Step("parity", 150, needs_bundles=True),
        Step("foreign", 20, needs_bundles=True),
    ),
}
"""In this order; each ends earlier where the time of all is over."""
SECONDS_FOR_BUNDLES = 130


class CannotRunError(Exception):
    """There is no GPU, another one than before, or a package is missing that all needs."""


class Checks:
    """A part's run: its steps' processes, and the result that grows with them."""

    def __init__(
        self, part: int, result: dict[str, Any], output: Path | None, settings: dict[str, Any], end: float
    ) -> None:
        self.part, self.result, self._output, self.settings, self.end = part, result, output, settings, end
        only: tuple[str, ...] = settings.pop("only")
        self.steps = [step for step in PARTS[part] if not only or step.name in only]
        self.scratch = Path(settings.pop("scratch"))
        self.environment: dict[str, str] = settings.pop("environment")
        self.making: tuple[Step, subprocess.Popen[bytes], float] | None = None

    def run(self) -> None:
        """All steps; whatever happens, no process is left and what was found is written."""
        try:
            self._check_device()
            if any(step.needs_bundles for step in self.steps):
                self.making = self._start(Step("bundles", SECONDS_FOR_BUNDLES))
            for step in self.steps:
                if step.needs_bundles and self.making is not None:
                    making, self.making = self.making, None
                    self._finish(*making)
                self._finish(*self._start(step))
        finally:
            if self.making is not None:
                self._finish(*self.making, wait=False)

    def _check_device(self) -> None:
        before = self.result.get("device", {}).get("name")
        self._finish(*self._start(Step("facts", 60)))
        outcome = self.result["steps"][f"part {self.part}, facts"]["outcome"]
        if outcome != "done":
            raise CannotRunError(f"expected an NVIDIA GPU, got {outcome}; try the steps out with --device cpu")
        name = self.result["device"]["name"]
        if before not in (None, name):
            raise CannotRunError(f"expected {before}, of which --after's figures are, got {name}; leave --after out")

    def _start(self, step: Step) -> tuple[Step, subprocess.Popen[bytes], float]:
        now = time.time()
        deadline = min(now + self._seconds(step), self.end)
        job = {
            "step": step.name,
            "part": self.part,
            "record": str(self._record(step)),
            "deadline": deadline,
            **self.settings,
        }
        click.echo(f"{step.name}: {max(deadline - now, 0):.0f} s at most", err=True)
        log = self.scratch / f"{step.name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, str(SCRIPTS / "_gpu_steps.py"), json.dumps(job)],
                cwd=ROOT,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return step, process, now

    def _finish(self, step: Step, process: subprocess.Popen[bytes], start: float, *, wait: bool = True) -> None:
        """Wait for a step until it should have ended by itself, and keep what it found and how it ended."""
        deadline = min(start + self._seconds(step), self.end) + SECONDS_TO_STOP
        try:
            code = process.wait(max(deadline - time.time(), 0.1) if wait else 0.1)
            outcome = "done" if code == 0 else f"failed: exit code {code}: {self._last_words(step)}"
        except subprocess.TimeoutExpired:
            outcome = "stopped: its time was over"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            process.wait()
        record = self._record(step)
        if record.exists():
            _merge(self.result, json.loads(record.read_text()))
        self.result.setdefault("steps", {})[f"part {self.part}, {step.name}"] = {
            "outcome": outcome,
            "seconds": round(time.time() - start, 1),
        }
        if step.name != "facts":  # before it is known what device this is, nothing is
            self.write()
        click.echo(f"{step.name}: {outcome}", err=True)

    def _seconds(self, step: Step) -> float:
        return step.seconds * (SLOWER_ON_CPU if self.settings["device"] == "cpu" else 1)

    def _record(self, step: Step) -> Path:
        return self.scratch / f"{step.name}.json"

    def _last_words(self, step: Step) -> str:
        lines = (self.scratch / f"{step.name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no word"

    @property
    def output(self) -> Path:
        if self._output is not None:
            return self._output
        name = self.result["device"]["name"].replace(" ", "-")
        return ROOT / "docs" / "measurements" / f"{self.result['date']}-{name}.json"

    def write(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        beside = self.output.with_name(f"{self.output.name}.writing")
        beside.write_text(json.dumps(self.result, indent=2) + "\n")
        os.replace(beside, self.output)


def _merge(into: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what was found, name by name; what is there in both is the later's, and so is all where one of both failed."""
    for name, value in found.items():
        before = into.get(name)
        if isinstance(value, dict) and isinstance(before, dict) and "failed" not in before.keys() | value.keys():
            _merge(before, value)
        else:
            into[name] = value


@contextlib.contextmanager
def packages_of(wheels: Path | None) -> Iterator[dict[str, str]]:
    """The environment of a process that also finds the packages in a folder's wheels, which are unpacked meanwhile: a wheel is an archive
    of what is to lie in site-packages (PyPA's binary distribution format)."""
    found = sorted(wheels.glob("*.whl")) if wheels else []
    if wheels and not found:
        raise click.BadParameter(f"expected wheels in {wheels}, got none; leave --wheels out, or put them there")
    with tempfile.TemporaryDirectory() as site:
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        _describe_project(Path(site))
        paths = [site, str(ROOT), os.environ.get("PYTHONPATH", "")]
        yield {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _describe_project(site: Path) -> None:
    """A bundle names the version that wrote it, which Python knows of installed packages alone."""
    found = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    folder = site / f"resnet_export-{found[1]}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: resnet-export\nVersion: {found[1]}\n")


def run_part(part: int, options: dict[str, Any]) -> int:
    """Run a part, write the result; returns the exit code."""
    end = time.time() + (options["seconds"] or SECONDS[part])
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    after: Path | None = options["after"]
    result: dict[str, Any] = json.loads(after.read_text()) if after else {"schema_version": SCHEMA_VERSION}
    result["date"] = today
    with packages_of(options["wheels"]) as environment, tempfile.TemporaryDirectory() as scratch:
        bundles = options["bundles"] or Path(scratch) / "bundles"
        bundles.mkdir(parents=True, exist_ok=True)
        settings = {
            "device": options["device"],
            "small": options["device"] == "cpu",
            "bundles": str(bundles.resolve()),
            "only": options["only"],
            "scratch": scratch,
            "environment": environment,
        }
        checks = Checks(part, result, options["output"], settings, end)
        try:
            checks.run()
        except CannotRunError as error:
            click.echo(f"error: {error}", err=True)
            return 3
        click.echo(str(checks.output))
    return 0 if all(step["outcome"] == "done" for step in result["steps"].values()) else 1


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("part", type=click.Choice(["part1", "part2"]))
@click.option(
    "--bundles",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where bundles are, or are made.  [default: made, and dropped]",
)
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Packages that are not installed, as wheels.",
)
@click.option("--seconds", type=click.FloatRange(min=1), help="How long all may take.  [default: 280 and 420]")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The result.  [default: docs/measurements/DATE-GPU.json]",
)
@click.option(
    "--after", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The other part's result, to add to."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(sorted({step.name for steps in PARTS.values() for step in steps})),
    help="Run this step alone; several may be named.",
)
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cpu tries the steps out, in tiny sizes.",
)
def main(part: str, **options: Any) -> None:
    sys.exit(run_part(int(part[-1]), options))


if __name__ == "__main__":
    main()
