"""Others' quantizers, each called as its own documents do, in an interpreter that has it; imports nothing of this project.

    PYTHON scripts/_quantize_elsewhere.py version PACKAGE
    PYTHON scripts/_quantize_elsewhere.py quantize TOOL VARIANT MODEL.onnx IMAGES.npy OUTPUT.onnx

IMAGES.npy holds preprocessed images, float32 (images, channels, height, width).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Floats = NDArray[np.float32]

AT_ONCE = 32
"""Images whose activations onnxruntime's histogram calibrators hold in memory together; by themselves they hold all."""
SYMMETRIC_AIMET = {
    "defaults": {
        "ops": {"is_output_quantized": "True", "is_symmetric": "True"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "strict_symmetric": "False",
        "per_channel_quantization": "True",
    },
    "params": {"bias": {"is_quantized": "False"}},
    "op_type": {"Gemm": {"is_output_quantized": "False", "params": {"weight": {"is_quantized": "False"}}}},
    "supergroups": [{"op_list": ["Conv", "Relu"]}, {"op_list": ["Add", "Relu"]}],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}
"""AIMET's default with weights per channel, made symmetric and signed; the classifier in float, as the others leave it."""


def onnxruntime(model: Path, images: Floats, variant: str, output: Path, **options: Any) -> None:
    """`quantize_static` with its defaults; `variant` names its calibrator."""
    from onnxruntime.quantization import CalibrationMethod, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader, HistogramCalibrater

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self, feeds: Iterator[dict[str, Floats]]) -> None:
            self._feeds = feeds

        def get_next(self) -> dict[str, Floats] | None:
            return next(self._feeds, None)

    collect_all = HistogramCalibrater.collect_data

    def collect_some_at_once(calibrater: Any, reader: Any) -> None:
        while feeds := [feed for _ in range(AT_ONCE) if (feed := reader.get_next()) is not None]:
            collect_all(calibrater, Reader(iter(feeds)))

    HistogramCalibrater.collect_data = collect_some_at_once
    name = onnx.load(model).graph.input[0].name
    reader = Reader({name: image[None]} for image in images)
    quantize_static(model, output, reader, calibrate_method=CalibrationMethod[variant], **options)


def onnxruntime_for_tensorrt(model: Path, images: Floats, variant: str, output: Path) -> None:
    """The same, with the options that TensorRT's explicit quantization asks for."""
    extra = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": False,
        "OpTypesToExcludeOutputQuantization": sorted({node.op_type for node in onnx.load(model).graph.node}),
        "ForceQuantizeNoInputCheck": True,
    }
    kinds = ["Conv", "Add", "MaxPool"]
    onnxruntime(model, images, variant, output, per_channel=True, op_types_to_quantize=kinds, extra_options=extra)


def onnxruntime_on_cpu(model: Path, images: Floats, variant: str, output: Path, form: str) -> None:
    """For onnxruntime's own kernels on a CPU, as its documents advise: the graph pre-processed, weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(model), str(ready))
        activation = QuantType.QInt8 if form == "S8S8" else QuantType.QUInt8
        written = QuantFormat.QOperator if form == "QOperator" else QuantFormat.QDQ
        options = {"per_channel": True, "activation_type": activation, "weight_type": QuantType.QInt8}
        onnxruntime(ready, images, variant, output, quant_format=written, **options)


def nncf_for_openvino(model: Path, images: Floats, variant: str, output: Path) -> None:
    """`nncf.quantize` of OpenVINO's own model, saved as OpenVINO's IR (`output`, an .xml)."""
    import nncf as package
    import openvino

    loaded = openvino.Core().read_model(model)
    data = package.Dataset([image[None] for image in images])
    preset = package.QuantizationPreset(variant)
    openvino.save_model(package.quantize(loaded, data, preset=preset, subset_size=len(images)), output)


def modelopt(model: Path, images: Floats, variant: str, output: Path) -> None:
    """`modelopt.onnx.quantization.quantize` in INT8 on the CPU; `variant` names its calibrator."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=images,
        calibration_method=variant,
        calibration_eps=["cpu"],
        output_path=str(output),
    )


def nncf(model: Path, images: Floats, variant: str, output: Path) -> None:
    """`nncf.quantize` over all images; `variant` names its preset."""
    import nncf as package

    loaded = onnx.load(model)
    data = package.Dataset([{loaded.graph.input[0].name: image[None]} for image in images])
    preset = package.QuantizationPreset(variant)
    onnx.save(package.quantize(loaded, data, preset=preset, subset_size=len(images)), output)


def aimet(model: Path, images: Floats, variant: str, output: Path, config: str | None = None) -> None:
    """AIMET-onnx: cross-layer equalization where `variant` begins with it, then ranges by its quantization scheme."""
    import aimet_onnx
    from aimet_onnx.cross_layer_equalization import equalize_model

    loaded = onnx.load(model)
    name, scheme = loaded.graph.input[0].name, variant.removeprefix("equalized, ")
    if scheme != variant:
        equalize_model(loaded)
    simulated = aimet_onnx.QuantizationSimModel(
        loaded, quant_scheme=scheme, config_file=config or _per_channel_config()
    )
    simulated.compute_encodings([{name: image[None]} for image in images])
    signed = {} if config is None else {"force_activation_as": "signed"}
    onnx.save(simulated.to_onnx_qdq(**signed), output)


def aimet_for_tensorrt(model: Path, images: Floats, variant: str, output: Path) -> None:
    """The same with `SYMMETRIC_AIMET`."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "symmetric.json"
        config.write_text(json.dumps(SYMMETRIC_AIMET))
        aimet(model, images, variant, output, str(config))


def _per_channel_config() -> str:
    """AIMET's own default with one scale for each channel of a weight, as everyone else has."""
    from aimet_onnx.common import quantsim_config

    return str(Path(quantsim_config.__file__).with_name("default_config_per_channel.json"))


QUANTIZERS: dict[str, Callable[[Path, Floats, str, Path], None]] = {
    "onnxruntime": onnxruntime,
    "onnxruntime for TensorRT": onnxruntime_for_tensorrt,
    "ModelOpt": modelopt,
    "NNCF": nncf,
    "AIMET": aimet,
    "AIMET for TensorRT": aimet_for_tensorrt,
    "NNCF for OpenVINO": nncf_for_openvino,
    **{f"onnxruntime {form}": partial(onnxruntime_on_cpu, form=form) for form in ("U8S8", "S8S8", "QOperator")},
}


def main(arguments: list[str]) -> None:
    if arguments[0] == "version":
        print(importlib.metadata.version(arguments[1]))
        return
    tool, variant, model, images, output = arguments[1:]
    QUANTIZERS[tool](Path(model), np.load(images), variant, Path(output))


if __name__ == "__main__":
    main(sys.argv[1:])
