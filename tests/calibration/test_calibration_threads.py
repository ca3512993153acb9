"""The sessions that measure ranges and follow blocks use the cores that the process may use, not the machine's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime
import pytest

from calibration import collect
from exporter.graph import probe


@pytest.mark.parametrize(("cores", "at_once", "threads"), [(1, 1, 1), (3, 3, 1), (16, 4, 4)])
def test_sessions_of_an_export_have_as_many_threads_as_the_process_has_cores(
    tiny_model: Path, cores: int, at_once: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(tiny_model / "model.onnx")
    for module in (collect, probe):
        monkeypatch.setattr(module, "usable_cores", lambda: cores)
    assert probe.open_session(model).get_session_options().intra_op_num_threads == cores
    seen: list[onnxruntime.InferenceSession] = []

    class Runner(collect._Runner):
        def __init__(self, session: onnxruntime.InferenceSession, tensors: Sequence[str]) -> None:
            super().__init__(session, tensors)
            seen.append(session)

    monkeypatch.setattr(collect, "_Runner", Runner)
    collect.collect(model, [model.graph.output[0].name], [])
    assert [one.get_session_options().intra_op_num_threads for one in seen] == [threads] * at_once
