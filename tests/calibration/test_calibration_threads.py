"""The sessions that measure ranges and follow blocks use the cores that the process may use, not the machine's."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from calibration import collect
from exporter.graph import probe


@pytest.mark.parametrize("cores", [1, 3])
def test_sessions_of_an_export_have_as_many_threads_as_the_process_has_cores(
    tiny_model: Path, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(tiny_model / "model.onnx")
    for module in (collect, probe):
        monkeypatch.setattr(module, "usable_cores", lambda: cores)
    for session in (collect._session_with_outputs(model, []), probe.open_session(model)):
        assert session.get_session_options().intra_op_num_threads == cores
