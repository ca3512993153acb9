"""The README of a kit: what is in it, what board it is for, and the commands, in their order."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from exporter.deployment.jetson.base_wheels import WheelPlatform
from exporter.deployment.jetson.next_commands import ON_DLA, jetpacks_with_dla
from runtimes.board.dla import DLA_VERSIONS, INT8_DLA_VERSIONS

if TYPE_CHECKING:
    from runtimes.board.jetpack import JetPack
    from runtimes.manifest import Manifest

CUDA_OF_PYTHON = {10: "cuda-python>=12.8,<13", 12: "cuda-python>=13"}
"""NVIDIA's bindings of CUDA, by the minor version of Python: JetPack 6 has 3.10 and CUDA 12, JetPack 7 3.12 and 13."""
DEPLOY = "~/resnet/bin/resnet-deploy"
L4T_OF = "`cat /etc/nv_tegra_release` names its L4T: `# R36 (release), REVISION: 4.3` is 36.4.3."


def readme(
    bundles: Mapping[str, Manifest], boards: Sequence[JetPack], wheels: WheelPlatform | None, own_wheel: str
) -> str:
    """Markdown.

    Args:
        bundles: by their names in the kit.
        boards: the releases of JetPack that it is for; none for a machine that is no Jetson.
        own_wheel: the file name of this package's wheel.
    """
    lines = [
        "# resnet-kit",
        "",
        f"Bundles of resnet-export, and what builds engines from them, proves them and runs them ({own_wheel}).",
        "`SHA256SUMS` lists every file.",
        "",
        *_bundle_table(bundles),
        "",
        "## 1. The machine",
        "",
        *(_board_table(boards) if boards else _other_machine(wheels)),
        "",
        "## 2. Install",
        "",
        *_install(boards, wheels),
        "",
        "## 3. Build, check, measure, run",
        "",
        *_commands(bundles, boards),
    ]
    return "".join(f"{line}\n" for line in lines)


def _bundle_table(bundles: Mapping[str, Manifest]) -> Iterator[str]:
    yield "| bundle | model | precision | batch | input |"
    yield "| --- | --- | --- | --- | --- |"
    for name, manifest in bundles.items():
        fed = ", ".join(f"{one.name} {one.dtype} {'x'.join(map(str, one.shape))}" for one in manifest.inputs)
        cells = (name, manifest.model.name, manifest.precision, str(manifest.batch), fed)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _board_table(boards: Sequence[JetPack]) -> Iterator[str]:
    yield f"A Jetson with JetPack {_one_of([one.name for one in boards])}. {L4T_OF}"
    yield ""
    yield "| JetPack | L4T | TensorRT | CUDA | Ubuntu | Python | GPU |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for one in boards:
        cells = (one.name, one.l4t, one.tensorrt, one.cuda, one.ubuntu, one.python, ", ".join(one.targets))
        yield f"| {' | '.join(cells)} |"


def _other_machine(wheels: WheelPlatform | None) -> Iterator[str]:
    python = "3.10 to 3.13" if wheels is None else wheels.python
    yield f"Linux with glibc 2.35 or newer, Python {python}, an NVIDIA driver, and TensorRT 10.3 or newer for it."


def _install(boards: Sequence[JetPack], wheels: WheelPlatform | None) -> Iterator[str]:
    yield "```"
    if boards:
        yield "sudo apt-get install python3-libnvinfer python3-venv   # needs a network"
    yield "./install.sh"
    yield "```"
    yield ""
    yield (
        "It makes `~/resnet` (or `./install.sh FOLDER`), which sees the system's own TensorRT, and "
        + (
            "needs no network: all other packages are in `wheels/`."
            if wheels
            else "takes other packages from the network."
        )
    )


def _commands(bundles: Mapping[str, Manifest], boards: Sequence[JetPack]) -> Iterator[str]:
    yield "```"
    for name, manifest in bundles.items():
        folder = shlex.quote(f"bundles/{name}")
        yield f"{DEPLOY} build {folder}{ON_DLA if jetpacks_with_dla(manifest, boards) else ''}"
        yield f"{DEPLOY} check {folder}"
        yield f"{DEPLOY} bench {folder}"
        yield f"{DEPLOY} run {folder} photo.jpg   # a picture of yours"
    yield "```"
    yield ""
    for name, manifest in bundles.items():
        if manifest.asked.dla_friendly:
            yield from (_about_dla(name, manifest, boards), "")
    yield "`build` keeps an engine only after its precision and its answers are proven on this machine."
    if boards:
        yield "The power mode decides the speed: `sudo nvpmodel -q` shows it, `sudo jetson_clocks` locks the clocks."
    yield f"Where something does not work, `{DEPLOY} doctor` says why."


def _about_dla(name: str, manifest: Manifest, boards: Sequence[JetPack]) -> str:
    """Where a bundle that was written for DLA can be built for it."""
    found = jetpacks_with_dla(manifest, boards)
    written = f"`{name}` ({manifest.precision}) was written for DLA"
    if found:
        return (
            f"{written}, and `--dla 0` builds it for DLA core 0: on AGX Orin or Orin NX with JetPack {_one_of(found)}."
            " On any other board leave `--dla 0` out, and it is built for the GPU."
        )
    if not boards:
        return f"{written}, which this machine has not: it is built for the GPU."
    needed = INT8_DLA_VERSIONS if manifest.precision == "int8" else DLA_VERSIONS
    return (
        f"{written}, and no JetPack of section 1 has DLA for it: it is built for the GPU. {manifest.precision} on DLA"
        f" needs {needed}."
    )


def _one_of(names: Sequence[str]) -> str:
    """`6.1, 6.2 or 6.2.1`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
