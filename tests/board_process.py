"""A process of a board: it can import what a board has, and nothing else, and the stand-ins for TensorRT and CUDA, which
run on packages that the board has not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runtimes.nvidia.trust import KEY_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
ABSENT = (
    *("torch", "torchvision", "onnx", "onnxruntime", "onnxsim", "onnxscript", "openvino", "tensorrt_rtx"),
    *("matplotlib", "jinja2", "safetensors"),
)
FILES = {
    "sitecustomize.py": "import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n",
    "tensorrt.py": "import sys\nfor name in {absent!r}:\n    sys.modules.pop(name, None)\n"
    "import board_process\nboard_process.stand_in()\n",
}
"""What Python finds first there: it imports the one at its start, and a backend the other. An import of None fails."""


def stand_in() -> None:
    """Make `import tensorrt` give the stand-in, and hide again what that alone may use."""
    from standin_cuda import StandinCuda
    from standin_tensorrt import StandinTensorRT

    from runtimes.nvidia import cuda_call

    cuda = StandinCuda()
    vars(cuda_call)["cudart"] = cuda
    sys.modules["tensorrt"] = StandinTensorRT(cuda, "10.3.0.30")
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]  # an import of None fails


def on_board(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `resnet-deploy` in `folder`, as a process of a board."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (site / name).write_text(text.format(absent=ABSENT))
    return subprocess.run(
        [sys.executable, "-c", "from exporter.cli.deploy import program; program()", *map(str, arguments)],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT, ROOT / "tests"))),
            KEY_VARIABLE: os.environ[KEY_VARIABLE],
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
