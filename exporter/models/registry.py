"""The models there are, by name: a light table. `ModelSpec.source` names the file of `exporter.models.sources` that
makes a model.

A name is one of the table; a ResNeXt or Wide ResNet of any width after the same pattern (`resnext50_16x8d`,
`wide_resnet101_4`); or `package.module:factory`, which is made by importing that module: somebody's code, which then
runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from exporter.models import sources
from runtimes._plugins import load_plugin
from runtimes.errors import BadInput, PlanError, UnknownName

if TYPE_CHECKING:
    pass
from exporter.models.spec import ModelSpec, Shape

V1_5, V1 = "v1.5", "v1"
"""Where a bottleneck that halves the image has its stride: on the 3x3 convolution, or on the first 1x1 as in the paper
and in Caffe."""
PROJECTION, PAD = "projection", "pad"
"""Shortcuts that change shape: 1x1 convolutions (the paper's option B), or every other pixel and channels of zeros
(option A)."""


DEPTHS: Mapping[int, tuple[tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
"""Blocks in each stage, and whether they are bottlenecks (He et al. 2015, table 1)."""
PATH_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx", ".h5", ".pt2", ".py", ".json")
PATTERN = re.compile(r"resnet(\d+)|resnext(\d+)_([1-9]\d{0,3})x([1-9]\d{0,3})d|wide_resnet(\d+)_([1-9]\d?)")


def imagenet_shape(name: str) -> Shape | None:
    """What `resnet50`, `resnext50_32x4d` or `wide_resnet50_2` is built from; None for another name."""
    match = PATTERN.fullmatch(name)
    if match is None:
        return None
    plain, resnext, groups, width, wide, factor = match.groups()
    blocks, bottleneck = DEPTHS.get(int(plain or resnext or wide), (None, False))
    if blocks is None or not (plain or bottleneck):
        return None
    return Shape(blocks, bottleneck, int(groups or 1), int(width or 64 * int(factor or 1)))


def cifar_shape(depth: int) -> Shape:
    """The CIFAR network of that many layers, 6n + 2."""
    return Shape(((depth - 2) // 6,) * 3, False, width=16, stem="cifar")


def _imagenet(name: str, parameters: int | None = None, macs: int | None = None) -> ModelSpec:
    shape = imagenet_shape(name)
    assert shape is not None
    variants = (V1_5, V1) if shape.bottleneck else ("basic",)
    return ModelSpec(name, "torchvision", variants, 224, 1000, shape, parameters, macs, weights=parameters is not None)


def _cifar(depth: int, parameters: int, macs: int) -> ModelSpec:
    return ModelSpec(
        f"resnet{depth}",
        "cifar",
        (PROJECTION, PAD),
        28 if depth == 20 else 32,
        10,
        cifar_shape(depth),
        parameters,
        macs,
        depth == 20,
    )


def _with_cifar_stem(depth: int, parameters: int, macs: int) -> ModelSpec:
    spec = _imagenet(f"resnet{depth}")
    assert spec.shape is not None
    return ModelSpec(
        f"{spec.name}_cifar", "cifar", spec.variants, 32, 10, replace(spec.shape, stem="cifar"), parameters, macs
    )


# Counted on the exported graphs, with the heads above; tests count again.
MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _cifar(20, 271_402, 31_021_952),
        _cifar(32, 465_674, 69_124_736),
        _cifar(44, 659_658, 97_436_288),
        _cifar(56, 853_642, 125_747_840),
        _cifar(110, 1_726_570, 253_149_824),
        _cifar(1202, 19_379_114, 2_829_501_056),
        _with_cifar_stem(18, 11_169_162, 555_422_720),
        _with_cifar_stem(34, 21_273_610, 1_159_402_496),
        _with_cifar_stem(50, 23_494_282, 1_297_829_888),
        _imagenet("resnet18", 11_684_712, 1_814_073_344),
        _imagenet("resnet34", 21_789_160, 3_663_761_408),
        _imagenet("resnet50", 25_530_472, 4_089_184_256),
        _imagenet("resnet101", 44_496_488, 7_801_405_440),
        _imagenet("resnet152", 60_117_096, 11_513_626_624),
        _imagenet("resnext50_32x4d", 24_994_792, 4_230_479_872),
        _imagenet("resnext101_32x8d", 88_689_896, 16_414_015_488),
        _imagenet("resnext101_64x4d", 83_353_832, 15_460_270_080),
        _imagenet("wide_resnet50_2", 68_849_128, 11_398_021_120),
        _imagenet("wide_resnet101_2", 126_817_768, 22_753_050_624),
    )
}


def find_model(name: str, variant: str | None = None) -> ModelSpec:
    """The model of that name, in the form asked for.

    Raises:
        UnknownName: there is none; lists the nearest.
        PlanError: it does not come in that form.
    """
    spec = _find(name)
    if variant is None:
        return spec
    if len(spec.variants) == 1:
        why = "its basic blocks are the same in v1 and v1.5" if spec.variant == "basic" else "it comes in one form"
        raise PlanError(f"'{variant}' means nothing for {name}: {why}; leave the option out")
    if variant not in spec.variants:
        raise PlanError(f"{name} comes as {' or '.join(spec.variants)}, not as '{variant}'")
    return replace(spec, variant=variant)


def _find(name: str) -> ModelSpec:
    if name in MODELS:
        return MODELS[name]
    if name.startswith("timm:"):
        return ModelSpec(name, "timm", ("timm",), None, None, weights=True)
    if ":" in name:
        return ModelSpec(name, "custom", ("custom",), None, None, weights=True)
    if imagenet_shape(name):
        return _imagenet(name)
    _refuse_path(name)
    raise UnknownName("model", name, MODELS)


def _refuse_path(name: str) -> None:
    """
    Raises:
        BadInput: a path where a model's name belongs.
    """
    path = Path(name)
    if not path.exists() and "/" not in name and path.suffix not in PATH_SUFFIXES:
        return
    names = "a name of --list, its pattern, or package.module:factory"
    if not path.exists():
        raise BadInput(f"expected MODEL as {names}, got a path, and there is no file {name}")
    kind = "folder" if path.is_dir() else "file"
    weights = f"give the network's name, and a checkpoint of it with --weights{' ' + name if kind == 'file' and path.suffix != '.onnx' else ''}"
    raise BadInput(f"expected MODEL as {names}, got the {kind} {name}; {weights}")


def load_source(spec: ModelSpec) -> sources.ModelSource:
    """The file that makes a model.

    Raises:
        BackendUnavailable: a package it stands on is missing.
    """
    extra = "timm" if spec.source == "timm" else "export"
    return cast(
        sources.ModelSource,
        load_plugin(sources, spec.source, kind="model source", remedy=f"pip install 'resnet-export[{extra}]'"),
    )
