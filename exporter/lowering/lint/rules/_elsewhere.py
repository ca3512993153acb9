"""RE6xx: onnxruntime. RE7xx: processors. RE8xx: DLA."""

from __future__ import annotations

from exporter.lowering.lint.rules._rule import Rule

ORT = "onnxruntime 1.23 to 1.32"
KERNELS = "onnxruntime's kernels on processors"
DLA_PAGES = "NVIDIA, Deep-Learning-Accelerator-SW (operators/README.md), and TensorRT's pages on DLA"


def _in_float(number: str, title: str, does: str, mend: str) -> Rule:
    return Rule(number, title, "runs in float", "warning", does, mend, KERNELS)


def _overflows(number: str, title: str, mend: str) -> Rule:
    does = "Processors without VNNI add two products of bytes in 16 bits, which may overflow."
    return Rule(number, title, "may overflow", "warning", does, mend, "", "Intel's manual, VPMADDUBSW")


def _not_on_dla(number: str, title: str, does: str, mend: str) -> Rule:
    return Rule(number, title, "not on DLA", "warning", does, mend, "", DLA_PAGES)


RULES = (
    Rule(
        "RE601",
        "A bias that a plain session of onnxruntime gets wrong",
        "other values in onnxruntime",
        "warning",
        "TensorRT is right. onnxruntime holds the bias as INT32 in steps of two FP16 scales multiplied, computed in "
        "FP16: it overflows or loses its digits.",
        "Add the bias behind the convolution, as a constant for each channel (resnet-export does), or open the file "
        "without graph optimizations.",
        ORT,
    ),
    Rule(
        "RE602",
        "FP16 scales below opset 19",
        "refused by onnxruntime",
        "warning",
        "TensorRT-RTX takes the file, onnxruntime refuses it: ONNX has FP16 scales from opset 19 on.",
        "Export with opset 19 or newer.",
        "onnxruntime 1.32, and TensorRT-RTX 1.7.1",
    ),
    _in_float(
        "RE701",
        "An input, weight or side of an addition that is not quantized",
        "An integer kernel needs both of its inputs quantized.",
        "Quantize it.",
    ),
    _in_float("RE702", "Scales that are not FLOAT", "Integer kernels read FP32 scales alone.", "Make them FLOAT."),
    _in_float("RE703", "Quantized to another type than bytes", "Kernels are of UINT8 and INT8.", "Take UINT8 or INT8."),
    _in_float(
        "RE704",
        "An output that is not read quantized by all",
        "The kernel gives integers alone; whoever reads floats keeps the whole in float.",
        "Quantize the output once, for all that read it.",
    ),
    _in_float(
        "RE705",
        "A kernel that would read one type and make another",
        "There is none from UINT8 to INT8 or back.",
        "Take one type for both.",
    ),
    _in_float(
        "RE706",
        "A ReLU that stays",
        "The kernel takes in a ReLU where its zero is the lowest number.",
        "Take UINT8 with a zero point of 0 behind a ReLU.",
    ),
    _in_float(
        "RE707",
        "A classifier's bias inside of it",
        "A Gemm with a float bias and a float output has no integer kernel.",
        "Add the bias behind it.",
    ),
    _overflows("RE708", "A first convolution with 8-bit weights", "Take 7 bits; resnet-export --target cpu does."),
    _overflows("RE709", "A classifier with 8-bit weights", "Take 7 bits; resnet-export --target cpu does."),
    Rule(
        "RE710",
        "A convolution left in float on purpose",
        "left in float",
        "note",
        "It runs in float: a gate's convolution, or one whose weight is computed.",
        "Nothing: this is where it should be.",
        KERNELS,
    ),
    _not_on_dla(
        "RE801",
        "Free sizes",
        "DLA takes fixed sizes alone: the smallest, usual and largest batch must be one number.",
        "Build with one batch size; give height and width in the graph.",
    ),
    _not_on_dla(
        "RE802",
        "An operator that DLA does not have",
        "It runs on the GPU (with GPU fallback allowed), and the tensor is copied there. Judged is what NVIDIA's list "
        "of DLA's operators says of each; a size that DLA does not take is seen by the build alone.",
        "Export with `--dla-friendly`: AveragePool of the whole picture in place of ReduceMean and GlobalAveragePool, "
        "a 1x1 convolution in place of Flatten and Gemm. It is refused with `--uint8-input full`, which resizes in the "
        "graph: export with `--uint8-input` alone, and resize and crop before the model. Other operators: nothing, or "
        "another network.",
    ),
    _not_on_dla(
        "RE803",
        "Convolutions in FP32",
        "DLA computes in FP16 and INT8; what is FP32 runs on the GPU.",
        "Export with `--fp16`.",
    ),
    _not_on_dla(
        "RE804",
        "Q/DQ pairs, for the DLA of TensorRT 10.3",
        "The DLA of TensorRT 8 and 10 takes INT8 by calibration caches, and no Q/DQ pairs. NVIDIA's qdq-translator "
        "(github.com/NVIDIA/Deep-Learning-Accelerator-SW, tools/qdq-translator) writes the pairs' scales into such a "
        "cache, and the graph without them.",
        "Export with `--fp16`. Or translate the scales: give `model.onnx` to qdq-translator, and what it writes to "
        "trtexec, as its README says; nothing proves that engine, and resnet-deploy does not load it.",
    ),
)
