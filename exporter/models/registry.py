"""The table of models, by name. Imports nothing heavy; `exporter.models.sources` makes the models themselves.

A name is one of the table; a ResNeXt or Wide ResNet of any width after the same pattern (`resnext50_16x8d`,
`wide_resnet101_4`); `timm:NAME`; `package.module:factory`, for which that module is imported, so that its code runs; or
the path of an ONNX file, which is no module's (see `exporter.graph.intake`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

from exporter.models import sources
from exporter.models.spec import Architecture, ModelSpec
from runtimes._plugins import load_plugin
from runtimes.errors import BadInput, PlanError, UnknownName

V1_5, V1 = "v1.5", "v1"
"""Where a bottleneck that halves the image has its stride: on the 3x3 convolution, or, as in the paper and in Caffe, on
the first 1x1."""
PROJECTION, PAD = "projection", "pad"
"""Shortcuts that change shape: 1x1 convolutions (the paper's option B), or every other pixel, padded with channels of
zeros (option A)."""


DEPTHS: Mapping[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
"""Layers -> the number of blocks in each stage, and whether they are bottlenecks (He et al. 2015, table 1)."""
PATH_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx", ".h5", ".pt2", ".py", ".json")
PATTERN = re.compile(r"resnet(\d+)|resnext(\d+)_([1-9]\d{0,3})x([1-9]\d{0,3})d|wide_resnet(\d+)_([1-9]\d?)")


def imagenet_architecture(name: str) -> Architecture | None:
    """The architecture of `resnet50`, `resnext50_32x4d`, `wide_resnet50_2` and the like; None for another name."""
    match = PATTERN.fullmatch(name)
    if match is None:
        return None
    plain, resnext, groups, width, wide, factor = match.groups()
    blocks, bottleneck = DEPTHS.get(int(plain or resnext or wide), (None, False))
    if blocks is None or not (plain or bottleneck):
        return None
    return Architecture(blocks, bottleneck, int(groups or 1), int(width or 64 * int(factor or 1)))


def cifar_architecture(depth: int) -> Architecture:
    """The architecture of the CIFAR network with `depth` = 6n + 2 layers."""
    return Architecture(((depth - 2) // 6,) * 3, False, width=16, stem="cifar")


def _imagenet_spec(name: str, parameters: int | None = None, macs: int | None = None) -> ModelSpec:
    architecture = imagenet_architecture(name)
    assert architecture is not None
    variants = (V1_5, V1) if architecture.bottleneck else ("basic",)
    return ModelSpec(
        name, "torchvision", variants, 224, 1000, architecture, parameters, macs, weights=parameters is not None
    )


def _cifar_spec(depth: int, parameters: int, macs: int) -> ModelSpec:
    return ModelSpec(
        f"resnet{depth}",
        "cifar",
        (PROJECTION, PAD),
        28 if depth == 20 else 32,
        10,
        cifar_architecture(depth),
        parameters,
        macs,
        depth == 20,
    )


def _cifar_stem_spec(depth: int, parameters: int, macs: int) -> ModelSpec:
    spec = _imagenet_spec(f"resnet{depth}")
    assert spec.architecture is not None
    return ModelSpec(
        f"{spec.name}_cifar", "cifar", spec.variants, 32, 10, replace(spec.architecture, stem="cifar"), parameters, macs
    )


# Counted on the exported graphs, with the heads above; tests count again.
MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _cifar_spec(20, 271_402, 31_021_952),
        _cifar_spec(32, 465_674, 69_124_736),
        _cifar_spec(44, 659_658, 97_436_288),
        _cifar_spec(56, 853_642, 125_747_840),
        _cifar_spec(110, 1_726_570, 253_149_824),
        _cifar_spec(1202, 19_379_114, 2_829_501_056),
        _cifar_stem_spec(18, 11_169_162, 555_422_720),
        _cifar_stem_spec(34, 21_273_610, 1_159_402_496),
        _cifar_stem_spec(50, 23_494_282, 1_297_829_888),
        _imagenet_spec("resnet18", 11_684_712, 1_814_073_344),
        _imagenet_spec("resnet34", 21_789_160, 3_663_761_408),
        _imagenet_spec("resnet50", 25_530_472, 4_089_184_256),
        _imagenet_spec("resnet101", 44_496_488, 7_801_405_440),
        _imagenet_spec("resnet152", 60_117_096, 11_513_626_624),
        _imagenet_spec("resnext50_32x4d", 24_994_792, 4_230_479_872),
        _imagenet_spec("resnext101_32x8d", 88_689_896, 16_414_015_488),
        _imagenet_spec("resnext101_64x4d", 83_353_832, 15_460_270_080),
        _imagenet_spec("wide_resnet50_2", 68_849_128, 11_398_021_120),
        _imagenet_spec("wide_resnet101_2", 126_817_768, 22_753_050_624),
    )
}


def find_model(name: str, variant: str | None = None) -> ModelSpec:
    """The model of a name, in its default variant or the given one.

    Raises:
        UnknownName: there is no such model; lists the nearest names.
        PlanError: the model does not have that variant.
    """
    spec = _find(name)
    if variant is None:
        return spec
    if len(spec.variants) == 1:
        same = spec.variant == "basic" and variant in (V1_5, V1)
        why = "its basic blocks are the same in v1 and v1.5" if same else "it comes in one form"
        raise PlanError(f"'{variant}' means nothing for {name}: {why}; leave the option out")
    if variant not in spec.variants:
        raise PlanError(f"{name} comes as {' or '.join(spec.variants)}, not as '{variant}'; name one of these, or none")
    return replace(spec, variant=variant)


def _find(name: str) -> ModelSpec:
    if name in MODELS:
        return MODELS[name]
    if Path(name).suffix.lower() == ".onnx":
        return _file_spec(name)
    if name.startswith("timm:"):
        return ModelSpec(name, "timm", ("timm",), None, None, weights=True)
    if ":" in name:
        return ModelSpec(name, "custom", ("custom",), None, None, weights=True)
    if imagenet_architecture(name):
        return _imagenet_spec(name)
    _refuse_path(name)
    raise UnknownName("model", name, MODELS, "resnet-export --list")


def _file_spec(name: str) -> ModelSpec:
    """The model in an ONNX file.

    Raises:
        BadInput: there is no such file.
    """
    path = Path(name)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing"
        raise BadInput(f"expected MODEL as an ONNX file, got {got} at {name}; give its path")
    return ModelSpec(name, "onnx", ("onnx",), None, None, weights=True)


def _refuse_path(name: str) -> None:
    """Explain a path that stands where a model's name belongs.

    Raises:
        BadInput: `name` is a path.
    """
    path = Path(name)
    if not path.exists() and "/" not in name and path.suffix not in PATH_SUFFIXES:
        return
    names = "a name of --list, its pattern, package.module:factory, or FILE.onnx"
    if not path.exists():
        raise BadInput(f"expected MODEL as {names}, got a path, and there is no file {name}")
    kind = "folder" if path.is_dir() else "file"
    checkpoint = f" {name}" if kind == "file" else ""
    remedy = f"give the network's name, and a checkpoint of it with --weights{checkpoint}"
    raise BadInput(f"expected MODEL as {names}, got the {kind} {name}; {remedy}")


def load_source(spec: ModelSpec) -> sources.ModelSource:
    """Import the plug-in that makes a model.

    Raises:
        BackendUnavailable: a package that it needs is not installed.
    """
    extra = "timm" if spec.source == "timm" else "export"
    return cast(
        sources.ModelSource,
        load_plugin(sources, spec.source, kind="model source", remedy=f"pip install 'resnet-export[{extra}]'"),
    )
