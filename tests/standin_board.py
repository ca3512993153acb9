"""`resnet-deploy` on a board: this checkout over the stand-ins for CUDA and TensorRT. Run as a script."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from standin_cuda import StandinCuda  # noqa: E402  # found by the line above
from standin_tensorrt import StandinTensorRT  # noqa: E402

from exporter.cli.deploy import program  # noqa: E402
from runtimes.nvidia import cuda_call  # noqa: E402

# Also in the process that a check starts, which runs this file under another name.
checker = StandinCuda()
setattr(cuda_call, "cudart", checker)  # noqa: B010  # typed as a module
sys.modules["tensorrt"] = StandinTensorRT(checker, "10.3.0.30")

if __name__ == "__main__":
    program()
