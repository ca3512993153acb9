"""What the tests of Triton repositories share: engines made of an ONNX file, and configurations read as Triton reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # it ships no types
from tritonclient.grpc import model_config_pb2

from runtimes.bundle_writing import write_manifest
from runtimes.manifest import Manifest
from runtimes.nvidia.engine_file import (
    SCHEMA_VERSION,
    DeviceFacts,
    EngineFacts,
    LayerFacts,
    json_from_facts,
    seal_facts,
)
from runtimes.nvidia.plan_files import HEADER_BYTES, engine_name, platform_text, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange, TensorSpec

VERSION = "10.13.3.9"
BATCH = BatchRange(1, 2, 4)
ANY_SIZE: dict[str, Any] = {
    "inputs": (TensorSpec("input", "uint8", ("batch", "height", "width", 3)),),
    "preprocess": Preprocess(32, (28, 28), "bilinear", True, (0.5,) * 3, (0.2,) * 3),
}
"""Fields of a bundle that takes pictures of any size."""


@pytest.fixture(name="bundle")
def bundle_fixture(manifest: Manifest, tmp_path: Path) -> Callable[..., Path]:
    """Makes bundles whose model is a line of text, with these fields in their manifests."""

    def made(folder: str = "bundle", *, labels: bool = True, **fields: Any) -> Path:
        path = tmp_path / folder
        path.mkdir()
        (path / "model.onnx").write_text(f"the model of {folder}")
        if labels:
            (path / "labels.txt").write_text("".join(f"{place}: a label\n" for place in range(10)))
        write_manifest(path, replace(manifest, **{"batch": BATCH, "kernels": None, **fields}))
        return path

    return made


def parsed(config: Path) -> Any:
    """A configuration as Triton parses it: a field that its schema has not is an error."""
    return text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def add_engine(
    bundle: Path,
    target: str = "sm86",
    *,
    version: str = VERSION,
    batch: BatchRange = BATCH,
    key: bytes | None = None,
    tag: bytes = b"ftrt",
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """An engine for TensorRT as `resnet-deploy build` leaves it: a plan's header, and behind it the ONNX file.

    Args:
        key: of the machine that built it; None for this one.
        changes: fields of the sidecar that are other ones.
        options: the builder's, as the sidecar names them.
    """
    model = (bundle / "model.onnx").read_bytes()
    plan = tag + bytes(HEADER_BYTES - 8) + bytes(map(int, version.split("."))) + model
    facts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "backend": "tensorrt",
        "version": version,
        "targets": (target,),
        "platform": platform_text(),
        "device": DeviceFacts("stand-in", target, "12.6"),
        "batch": batch,
        "precision": "fp32",
        "typing": "strong",
        "options": options,
        "layers": LayerFacts({}, {}, ()),
        "seconds": 0.0,
        "checked": True,
        "onnx_sha256": hashlib.sha256(model).hexdigest(),
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "engine_bytes": len(plan),
        "key": "0" * 64,
        **(changes or {}),
    }
    path = bundle / "engines" / engine_name(facts["backend"], version, (target,), batch, options)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan)
    sealed = seal_facts(EngineFacts(**facts), ensure_machine_key() if key is None else key)
    sidecar_of(path).write_bytes(json_from_facts(sealed))
    return path


def refused(ran: Any, output: Path, code: int) -> str:
    """The one line that it says; nothing was written."""
    assert ran.code == code, ran.err
    assert not output.exists()
    error: str = ran.error
    return error
