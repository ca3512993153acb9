"""Peak memory of export, calibration, check and eval: flat in the number and in the size of the pictures.

    python scripts/peak_memory.py [--few 64] [--many 512] [--small 640x480] [--large 4000x3000]

Each command runs in a process of its own, over few small pictures, many small ones, and few large ones (12 megapixels, as
a phone takes them). Prints, for each, the peak of the resident memory of the largest of its processes, in MiB, and what
the pictures would take were they all kept decoded. A large picture is in memory while it is decoded: `large` is above
`small` by a few of them, one for each thread that reads.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

from runtimes.benchmark.measure import peak_memory_bytes

CLASSES, DISTINCT = 10, 4
"""How many folders of classes, and how many different pictures: the others are links to them."""
COMMANDS = {
    "export": "export resnet20 --fp16 --uint8-input full --data {data} --proof-images {count} --output {out} --quiet",
    "calibration": "export resnet20 --int8 --data {data} --calibration-images {count} --weights random --output {out} --quiet",
    "check": "deploy check {bundle} --backend onnxruntime --data {data} --images {count} --budget confidence=0 --quiet",
    "eval": "deploy eval {bundle} --data {data} --images {count} --quiet",
}
BUNDLE = "export resnet20 --fp16 --weights random --output {bundle} --quiet"
MIB = 1 << 20


def size_from_text(_context: click.Context, option: click.Parameter, text: str) -> tuple[int, int]:
    """(width, height) of `640x480`."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise click.BadParameter(f"expected WIDTHxHEIGHT, got {text}", param=option)
    return int(width), int(height)


@click.command(help=__doc__)
@click.option("--few", default=64, type=click.IntRange(min=64), help="Pictures of a small set.")
@click.option("--many", default=512, type=click.IntRange(min=64), help="Pictures of a large set.")
@click.option("--small", default="640x480", callback=size_from_text, help="Size of small pictures.")
@click.option("--large", default="4000x3000", callback=size_from_text, help="Size of large pictures.")
@click.option("--command", "names", multiple=True, type=click.Choice(list(COMMANDS)), help="Only this one; repeatable.")
def main(few: int, many: int, small: tuple[int, int], large: tuple[int, int], names: tuple[str, ...]) -> None:
    cases = [(few, small), (many, small), (few, large)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = work / "bundle"
        peak_of(BUNDLE.format(bundle=bundle))
        sources = [make_pictures(work / f"{count}-{size[0]}", count, size) for count, size in cases]
        heads = [f"{count} of {width}x{height}" for count, (width, height) in cases]
        print(f"{'MiB':<14}" + "".join(f"{head:>20}" for head in heads))
        kept = [count * width * height * 3 / MIB for count, (width, height) in cases]
        print(f"{'all decoded':<14}" + "".join(f"{mib:>20,.0f}" for mib in kept))
        for name in names or COMMANDS:
            found = []
            for place, (source, (count, _)) in enumerate(zip(sources, cases, strict=True)):
                given = COMMANDS[name].format(data=source, count=count, out=work / f"{name}-{place}", bundle=bundle)
                found.append(peak_of(given))
            print(f"{name:<14}" + "".join(f"{mib:>20,.0f}" for mib in found), flush=True)


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files of one size in a folder for each class; few of them are drawn, the others are links."""
    drawn = []
    for number in range(DISTINCT):
        (folder / "drawn").mkdir(parents=True, exist_ok=True)
        path = folder / "drawn" / f"{number}.jpg"
        Image.linear_gradient("L").rotate(90 * number).resize(size).convert("RGB").save(path, quality=90)
        drawn.append(path)
    for place in range(count):
        path = folder / "classes" / f"{place % CLASSES}" / f"{place:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(drawn[place % DISTINCT], path)
    return folder / "classes"


def peak_of(command: str) -> float:
    """Run a command in a new process: the peak of its memory, or of its largest child's, in MiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--inside", *command.split()], check=False, capture_output=True, text=True
    )
    if done.returncode not in (0, 4):  # random weights may well be out of budget
        raise click.ClickException(f"{command}\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def inside(program: str, *arguments: str) -> None:
    """In the new process: run the command, and print the peak as the last line."""
    from exporter.cli import deploy, export

    main_of = {"export": export.main, "deploy": deploy.main}[program]
    sys.argv = [program, *arguments]
    code: object = 0
    try:
        main_of()
    except SystemExit as left:
        code = left.code
    for child in multiprocessing.active_children():
        child.join()  # until then, its peak is not counted
    own = peak_memory_bytes()
    assert own is not None
    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10) / MIB)
    raise SystemExit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(*sys.argv[2:])
    else:
        main()
