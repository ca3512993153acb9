"""What Hugging Face's `config.json` beside a checkpoint says of it: class names, and which form of the network it
is."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from exporter.models.registry import V1, V1_5
from exporter.models.spec import ModelSpec
from runtimes.errors import BadInput, PlanError

CONFIG = "config.json"
PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What transformers calls classes whose names it was not told."""


@dataclass(frozen=True)
class Config:
    """The facts of a `config.json` that bear on the network.

    Attributes:
        labels: in the order of the outputs; None where they are not named.
        other: an option that makes the network another one than the registered model, as `key = value`; None where
            there is none.
        first_strided: a bottleneck has its stride on the first 1x1 convolution (v1), not on the 3x3 (v1.5).
    """

    labels: tuple[str, ...] | None
    other: str | None
    first_strided: bool


def config_beside(checkpoint: Path) -> Config | None:
    """The config of a checkpoint's folder; None where there is none.

    Raises:
        BadInput: it cannot be read, or is not what transformers writes.
    """
    path = checkpoint.parent / CONFIG
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"cannot read {path}, beside {checkpoint.name}: {error}; put it right, or move it away"
        ) from error
    if not isinstance(value, dict):
        raise BadInput(f"expected {path} to hold an object, got {type(value).__name__}; put it right, or move it away")
    expected = {"hidden_act": "relu", "downsample_in_first_stage": False}
    other = next((f'"{key}" {value[key]!r}' for key, usual in expected.items() if value.get(key, usual) != usual), None)
    return Config(_labels(value.get("id2label")), other, bool(value.get("downsample_in_bottleneck", False)))


def check_form(config: Config, spec: ModelSpec, checkpoint: Path) -> None:
    """
    Raises:
        BadInput: the config is of a network that computes something else from the same tensors.
        PlanError: it has its strides in another place than the variant asked for.
    """
    beside = checkpoint.parent / CONFIG
    if config.other is not None:
        raise BadInput(
            f"{beside} says {config.other}, so {checkpoint.name} is of no {spec.name}; export package.module:factory, "
            "which makes it"
        )
    said = V1 if config.first_strided else V1_5
    if spec.variant in (V1, V1_5) and spec.variant != said:
        value = json.dumps(config.first_strided)
        raise PlanError(
            f'{beside} says "downsample_in_bottleneck": {value}, which is {said}, not {spec.variant}; give --variant {said}'
        )


def _labels(value: object) -> tuple[str, ...] | None:
    if not isinstance(value, dict) or not value:
        return None
    names = [value.get(str(place)) for place in range(len(value))]
    if not all(isinstance(name, str) and len(name.splitlines()) == 1 for name in names):
        return None
    labels = tuple(str(name) for name in names)
    return None if all(PLACEHOLDER.fullmatch(label) for label in labels) else labels
