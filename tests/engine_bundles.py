"""A small bundle, engines in it as a build leaves them, and what they are to answer, over the stand-ins."""

from __future__ import annotations

import gc
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from standin_cuda import StandinCuda
from standin_tensorrt import StandinTensorRT
from tiny_answers import INPUT, OUTPUT, assert_same_rows

from runtimes._open import backend_class
from runtimes.backends.onnxruntime import OnnxRuntime
from runtimes.nvidia.engine_file import (
    SCHEMA_VERSION,
    DeviceFacts,
    EngineFacts,
    LayerFacts,
    json_from_facts,
    read_sidecar,
    seal_facts,
)
from runtimes.nvidia.engine_runtime import EngineRuntime
from runtimes.nvidia.plan_files import engine_name, platform_text, sidecar_of
from runtimes.nvidia.trust import ensure_machine_key
from runtimes.specs import BatchRange

BATCH = BatchRange(2, 3, 4)
IMAGE_BYTES = 28 * 28 * 4


def leaks(cuda: StandinCuda) -> list[str]:
    """What is still there once the garbage is collected, which takes long."""
    if cuda.leaks():
        gc.collect()
    return cuda.leaks()


def add_engine(
    folder: Path, api: StandinTensorRT, *, batch: BatchRange = BATCH, backend: str = "tensorrt", **options: Any
) -> Path:
    """An engine and its sidecar, as `resnet-deploy build` leaves them; `options` as the sidecar names them."""
    model = (folder / "model.onnx").read_bytes()
    rows = (batch.min, batch.opt, batch.max)
    asked = {
        "stripped": options.get("strip_weights", False),
        "version_compatible": options.get("version_compatible", False),
    }
    plan = api.plan(model, {INPUT: tuple((size, 1, 28, 28) for size in rows)}, **asked)  # type: ignore[dict-item]  # of three, as it says
    facts = EngineFacts(
        schema_version=SCHEMA_VERSION,
        backend=backend,
        version=api.__version__,
        targets=("sm87",),
        platform=platform_text(),
        device=DeviceFacts("stand-in", "sm87", "12.6"),
        batch=batch,
        precision="fp32",
        typing="strong",
        options=options,
        layers=LayerFacts({}, {}, ()),
        seconds=0.0,
        checked=True,
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        key="0" * 64,
    )
    path = folder / "engines" / engine_name(backend, api.__version__, facts.targets, batch, options)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan)
    sidecar_of(path).write_bytes(json_from_facts(seal_facts(facts, ensure_machine_key())))
    return path


def as_a_strangers(engine: Path, **changes: Any) -> str:
    """The sidecar as another machine's build writes it; returns the engine's sha256."""
    facts = seal_facts(replace(read_sidecar(sidecar_of(engine)), **changes), bytes(32))
    sidecar_of(engine).write_bytes(json_from_facts(facts))
    return facts.engine_sha256


def opened(engine: Path) -> EngineRuntime:
    runtime = backend_class("tensorrt").open(engine)
    assert isinstance(runtime, EngineRuntime)
    return runtime


def assert_right(got: NDArray[Any], reference: OnnxRuntime, inputs: NDArray[Any]) -> None:
    """The network's answers, each in its row, where rows are far apart."""
    assert_same_rows(got, reference.run({INPUT: inputs})[OUTPUT])
