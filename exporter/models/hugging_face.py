"""Read Hugging Face's `config.json` beside a checkpoint: class names, and which variant of the network it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from exporter.models.labels import labels_from_id2label
from exporter.models.registry import V1, V1_5
from exporter.models.spec import ModelSpec
from runtimes.errors import BadInput, PlanError
from runtimes.textfile import text_from_file

CONFIG = "config.json"


@dataclass(frozen=True)
class Config:
    """What a `config.json` says of the network.

    Attributes:
        labels: class names in the order of the outputs; None where it has none.
        unsupported: an option with which the network differs from the table's model, as `"key" value`; None for none.
        first_strided: a bottleneck has its stride on the first 1x1 convolution (v1), not on the 3x3 (v1.5).
    """

    labels: tuple[str, ...] | None
    unsupported: str | None
    first_strided: bool


def config_beside(checkpoint: Path) -> Config | None:
    """Read the `config.json` in a checkpoint's folder; None if there is none.

    Raises:
        BadInput: it cannot be read, or is no JSON object.
    """
    path = checkpoint.parent / CONFIG
    if not path.is_file():
        return None
    try:
        value = json.loads(text_from_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"cannot read {path}, beside {checkpoint.name}: {error}; put it right, or move it away"
        ) from error
    if not isinstance(value, dict):
        raise BadInput(f"expected {path} to hold an object, got {type(value).__name__}; put it right, or move it away")
    expected = {"hidden_act": "relu", "downsample_in_first_stage": False}
    unsupported = (f'"{key}" {value[key]!r}' for key, usual in expected.items() if value.get(key, usual) != usual)
    return Config(
        labels_from_id2label(value.get("id2label")),
        next(unsupported, None),
        bool(value.get("downsample_in_bottleneck", False)),
    )


def check_config(config: Config, spec: ModelSpec, checkpoint: Path) -> None:
    """Check that a config describes the network that is asked for.

    Raises:
        BadInput: it describes one that computes something else from the same tensors.
        PlanError: it describes another variant: the strides are in another place.
    """
    beside = checkpoint.parent / CONFIG
    if config.unsupported is not None:
        raise BadInput(
            f"{beside} says {config.unsupported}, so {checkpoint.name} is not a {spec.name}; "
            "export package.module:factory, which makes it"
        )
    variant = V1 if config.first_strided else V1_5
    if spec.variant in (V1, V1_5) and spec.variant != variant:
        value = json.dumps(config.first_strided)
        raise PlanError(
            f'{beside} says "downsample_in_bottleneck": {value}, which is {variant}, not {spec.variant}; '
            f"give --variant {variant}"
        )
