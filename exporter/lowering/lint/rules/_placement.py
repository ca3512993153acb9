"""RE2xx: where Q/DQ pairs stand, and so what runs in INT8 and what is fused.

What a convolution reads was seen in the builder's log. What is fused is NVIDIA's documentation: TensorRT-RTX fuses
nothing of it.
"""

from __future__ import annotations

from exporter.lowering.lint.rules._rule import EXPLICIT, SEEN, Kind, Rule, Severity


def _reads_float(number: str, title: str, does: str, mend: str) -> Rule:
    return Rule(number, title, "not fused", "warning", f"The convolution runs in float: {does}", mend)


def _documented(
    number: str, title: str, does: str, mend: str, kind: Kind = "not fused", severity: Severity = "warning"
) -> Rule:
    return Rule(number, title, kind, severity, does, mend, "", EXPLICIT)


RULES = (
    _reads_float(
        "RE201",
        "A convolution whose input or weight is not quantized",
        "an INT8 kernel needs both.",
        "Quantize both, or neither.",
    ),
    _reads_float(
        "RE202",
        "An operator that computes in float between a convolution and its pair",
        "DequantizeLinear is moved past operators that only move values, not past those that compute.",
        "Quantize behind the operator.",
    ),
    _reads_float(
        "RE203",
        "Activations quantized per channel",
        "activations have one scale.",
        "Quantize activations per tensor, and weights per output channel.",
    ),
    _reads_float(
        "RE204",
        "An activation's scale that is a list of one number",
        "it is taken as a scale per channel.",
        "Make the scale a scalar, of no axes.",
    ),
    _reads_float(
        "RE205",
        "A weight quantized along another axis than its output channels",
        "the scales must belong to axis 0 of the weight that the convolution reads.",
        "Quantize along the output channels, axis 0.",
    ),
    _reads_float(
        "RE206",
        "A join of tensors with different scales",
        "Concat, Max, Min and Where carry quantization if all their inputs have one scale.",
        "Give what is joined one scale, the largest.",
    ),
    _reads_float(
        "RE207",
        "A join of quantized tensors and others",
        "Concat, Max, Min and Where carry quantization if all their inputs are quantized.",
        "Quantize all that is joined by one scale, or quantize behind the join.",
    ),
    _reads_float("RE208", "Quantized in blocks", "convolutions read no blocks.", "Quantize per output channel."),
    _reads_float(
        "RE209", "A scale that is quantized itself", "the scale must be a number in the file.", "Write the number."
    ),
    _reads_float(
        "RE210",
        "A Cast between a convolution and its pair",
        "casts from FP32 down are carried, others are not.",
        "Cast once, from FP32 down, or give the scales the type that the convolution reads.",
    ),
    _reads_float(
        "RE211",
        "An operator between a convolution and its pair that mixes the channels",
        "behind a Reshape, Transpose or Mul there must still be one scale for each output channel.",
        "Reshape or multiply the weight itself, and quantize the result.",
    ),
    _reads_float(
        "RE212",
        "A transposed convolution",
        "TensorRT-RTX has no transposed convolution of INT8.",
        "Leave it in float, or measure on TensorRT what it does.",
    ),
    _documented(
        "RE213",
        "A pair between a convolution and its activation",
        "The convolution cannot take in the activation, which runs by itself.",
        "Quantize behind the activation.",
    ),
    _documented(
        "RE214",
        "An addition with both inputs quantized",
        "The convolution before it cannot take in the addition, since its output is quantized first.",
        "Quantize the shortcut alone.",
    ),
    _documented(
        "RE215",
        "An addition with the convolution's branch quantized in place of the shortcut",
        "The convolution before it cannot take in the addition.",
        "Quantize the shortcut alone.",
    ),
    _documented(
        "RE216",
        "An addition whose shortcut is not quantized",
        "The convolution that takes in the addition gives float, and the QuantizeLinear behind it stays.",
        "Quantize the shortcut; where it reads what the block's first convolution reads, with the same pair.",
    ),
    _documented(
        "RE217",
        "A max pool in float between INT8 layers",
        "The tensor becomes float for the pool and INT8 behind it again.",
        "Quantize the pool's input; its output then has the same scale.",
    ),
    _documented(
        "RE218",
        "A quantized global pool or classifier",
        "It is little work and much of the accuracy; a pool's mean is computed in float in any case.",
        "Leave it in float.",
    ),
    Rule(
        "RE219",
        "An addition of more than two tensors",
        "unknown",
        "warning",
        "Which of them a convolution takes in is not known.",
        "Add two at a time.",
        "",
    ),
    Rule(
        "RE220",
        "A convolution of which it cannot be told whether it runs in INT8",
        "unknown",
        "warning",
        "It depends on numbers or sizes that are not in the file.",
        "Write scales into initializers, and sizes into the graph.",
        SEEN,
    ),
    _documented(
        "RE221",
        "A convolution left in float on purpose",
        "It runs in float: a gate's convolution, or one whose weight is computed.",
        "Nothing: this is where it should be.",
        "left in float",
        "note",
    ),
    _documented(
        "RE222",
        "An addition left in float on purpose",
        "It runs in float, since there is no convolution before it that could take it in.",
        "Nothing: this is where it should be.",
        "left in float",
        "note",
    ),
)
