"""RE3xx: types. RE4xx: opsets. RE5xx: the range of numbers."""

from __future__ import annotations

from exporter.lowering.lint.rules._rule import SEEN, Rule, refused

HEADER_10 = "NvInfer.h of TensorRT 10.3, IQuantizeLayer"
OPSET_PAGES = "onnx-tensorrt's docs/operators.md of 10.0 and 10.15; NVIDIA's ONNX Opset Guide for 11.x"

RULES = (
    refused(
        "RE301",
        "One operator that reads two types",
        "Networks are strongly typed: nothing is cast by itself. A convolution's input, weight and bias, both sides of "
        "an addition, and a normalization's input and scale must share one type.",
        "Cast the constant, or put a Cast in front of the operator.",
    ),
    Rule(
        "RE302",
        "A convolution or matrix product in FP32 in an FP16 graph",
        "slower",
        "warning",
        "It runs in FP32, as the graph says: TensorRT 11 and TensorRT-RTX have no flag that would allow them FP16.",
        "Cast its input and weight to FP16, unless its numbers do not fit.",
    ),
    Rule(
        "RE303",
        "An FP32 island in an FP16 graph",
        "slower",
        "note",
        "The operators between a Cast up to FP32 and the next Cast down run in FP32, with two more conversions; they "
        "are not fused with their neighbours.",
        "Nothing where the numbers need FP32's range; else drop the two casts.",
        "",
        "strong typing: the graph's types are those of the engine",
    ),
    Rule(
        "RE304",
        "QuantizeLinear whose input and scale have different types",
        "unknown",
        "warning",
        "TensorRT 10's header demands one type; TensorRT-RTX 1.7.1 takes two.",
        "Give the scale the type of the input.",
        "",
        HEADER_10,
    ),
    Rule(
        "RE305",
        "DOUBLE numbers",
        "slower",
        "note",
        "They are read as FP32, and cut off at its largest number.",
        "Store them as FLOAT.",
        SEEN,
        "onnx-tensorrt's docs/operators.md",
    ),
    Rule(
        "RE401",
        "An opset newer than the parser is documented for",
        "unknown",
        "warning",
        "The parser does not check it, and reads each operator by the rules it knows: TensorRT 10.3 to opset 20, 10.16 "
        "to 24, 11 to 25. TensorRT-RTX 1.7.1 read a convolution in every opset from 5 to 27, and every IR version from "
        "3 to 14: the IR version is not checked either.",
        "Export with a lower opset, or convert with onnx.version_converter.",
        "",
        OPSET_PAGES,
    ),
    Rule(
        "RE402",
        "An opset older than the parser is documented for",
        "unknown",
        "note",
        "The parser reads opsets from 9 on, older ones as far as their operators mean the same; below 7 it warns.",
        "Convert with onnx.version_converter to opset 13 or newer.",
        SEEN,
        OPSET_PAGES,
    ),
    refused(
        "RE403",
        "An operator newer than the parser is documented for",
        "The parser has no importer for an operator that came with a later opset than it is documented for.",
        "Export with a lower opset, which spells the operator out.",
        seen="",
        source=OPSET_PAGES,
    ),
    refused(
        "RE404",
        "An operator of an opset below 7 that broadcasts",
        "Add, Mul and the like are refused below opset 7, and Gemm and PRelu where they broadcast.",
        "Convert with onnx.version_converter to opset 13 or newer.",
    ),
    Rule(
        "RE501",
        "A constant that is infinite or not a number",
        "out of range",
        "error",
        "It is taken without a word, and spreads to the outputs. In FP16 it is mostly a number beyond 65504 that was "
        "cast.",
        "Export again from weights that are numbers; keep what does not fit in FP32 or BF16.",
    ),
    Rule(
        "RE502",
        "A constant that a Cast to FP16 makes infinite",
        "out of range",
        "error",
        "The Cast is folded, and numbers beyond 65504 become infinite.",
        "Keep the operators that read it in FP32, or scale the layer.",
        "",
        "IEEE 754",
    ),
    Rule(
        "RE503",
        "A tiny constant in FP16",
        "out of range",
        "warning",
        "Below 2**-19 at most 5 of FP16's 11 significant bits are left, and below 2**-25 none: an epsilon becomes 0, "
        "and a division by zero is guarded no longer.",
        "Keep the operator in FP32, or take an epsilon of 1e-5.",
        "",
        "IEEE 754",
    ),
)
