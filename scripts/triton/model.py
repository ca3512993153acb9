"""A Python-based backend of Triton's that stands in for `onnxruntime` and `openvino`, which NVIDIA's Python package of the server leaves out.

The server reads the repository, batches, warms up and answers as ever; only the file of the model is run here, by the same library as the backend
of that name, and on the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

DEFAULT_FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml"}


def onnxruntime_run(path: Path, outputs: list[str]) -> Any:
    """A call that takes inputs by name and gives the outputs in order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(outputs, feeds)


def openvino_run(path: Path, outputs: list[str]) -> Any:
    """Likewise, with OpenVINO's own choices."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU")
    return lambda feeds: (lambda found: [found[name] for name in outputs])(compiled(feeds))


RUNS = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}


class TritonPythonModel:
    """What Triton's Python backend loads for each instance of a model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Nothing is guessed: what a repository leaves out is missing."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        name = config["backend"]
        file_name = config.get("default_model_filename") or DEFAULT_FILES[name]
        path = Path(args["model_repository"]) / args["model_version"] / file_name
        self.inputs = [spec["name"] for spec in config["input"]]
        self.outputs = [spec["name"] for spec in config["output"]]
        self.run = RUNS[name](path, self.outputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run for all that the server has put together, as a batch."""
        parts = {
            name: [pb_utils.get_input_tensor_by_name(one, name).as_numpy() for one in requests] for name in self.inputs
        }
        answers = self.run({name: np.concatenate(arrays) for name, arrays in parts.items()})
        ends = np.cumsum([len(array) for array in parts[self.inputs[0]]])[:-1]
        rows = zip(*(np.split(np.asarray(answer), ends) for answer in answers), strict=True)
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, np.ascontiguousarray(part))
                    for name, part in zip(self.outputs, row, strict=True)
                ]
            )
            for row in rows
        ]
