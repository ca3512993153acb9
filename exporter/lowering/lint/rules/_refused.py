"""RE1xx: what the parser or the builder refuses, or reads otherwise than ONNX says."""

from __future__ import annotations

from exporter.lowering.lint.rules._rule import SOURCE_10_1, Rule, refused

INITIALIZER = "Write the number into an initializer; onnxsim folds what can be folded."
SYMMETRIC = "Quantize symmetrically to INT8, with zero points of 0."

RULES = (
    refused(
        "RE101",
        "An operator that the parser does not have",
        "The parser stops: it has no importer for the operator, and looks for a plugin of that name.",
        "Express it by other operators, or write a plugin. A graph in QOperator format (QLinearConv and the like) is "
        "written in Q/DQ format by the same tool.",
    ),
    refused(
        "RE102",
        "An operator of another domain",
        "The parser looks for a plugin of that name, and stops without one. Operators of `com.microsoft` come from "
        "files that ONNX Runtime saved after optimizing them.",
        "Save the file without ONNX Runtime's optimizations, or write a plugin.",
    ),
    refused(
        "RE103",
        "A constant of a type that is not read",
        "The parser reads no constants of 16-bit or unsigned integers, of strings, of complex numbers, nor of most "
        "8-bit floats.",
        "Quantize to INT8; store other numbers as FLOAT, FLOAT16, INT32 or INT64.",
    ),
    refused(
        "RE104",
        "A stored INT8 constant that something else than DequantizeLinear reads",
        "The parser stops: between a quantized constant and its DequantizeLinear nothing may stand.",
        "Transpose, reshape or join the numbers themselves, or do it behind DequantizeLinear.",
    ),
    refused(
        "RE105",
        "A bias quantized to INT32",
        "The parser takes INT8, INT4, FP8 and FP4 into DequantizeLinear, and no INT32. onnxruntime.quantization writes "
        "such biases by default.",
        "Leave biases in float (`extra_options={'QuantizeBias': False}`).",
    ),
    refused(
        "RE106",
        "A UINT8 tensor into DequantizeLinear that no QuantizeLinear made",
        "The parser stops at stored UINT8 weights and at UINT8 inputs of the graph.",
        "Quantize weights symmetrically to INT8; cast an input of pixels to float.",
    ),
    refused(
        "RE107",
        "Quantized to a type that TensorRT does not have",
        "The parser stops at 16-bit integers, UINT4, INT2 and most 8-bit floats.",
        "Quantize to INT8.",
    ),
    refused("RE108", "UINT8 by `output_dtype`", "The parser stops.", SYMMETRIC),
    Rule(
        "RE109",
        "Activations quantized to UINT8",
        "other values",
        "error",
        "The parser takes a UINT8 zero point of 0, and the absence of one, as INT8: what is above 127 steps is cut "
        "off, half of the range behind a ReLU. Nothing is said of it.",
        SYMMETRIC,
    ),
    refused(
        "RE110", "DequantizeLinear of a scalar", "The builder wants at least one axis.", "Give the tensor an axis."
    ),
    refused(
        "RE111",
        "A scale computed at run time",
        "Scales must be constants: dynamic quantization is refused, by some operators with a crash of the parser.",
        "Calibrate, and write the scale into an initializer.",
    ),
    refused(
        "RE112",
        "A scale computed by an operator that is not folded",
        "The parser of TensorRT-RTX 1.7.1 crashes where ReduceMax, Pow, Sigmoid and others compute a scale, even from "
        "constants.",
        INITIALIZER,
    ),
    refused("RE113", "A scale that is not positive", "Zero, negative numbers and NaN are refused.", "Calibrate again."),
    Rule(
        "RE114",
        "A computed scale that is not positive",
        "other values",
        "error",
        "Where the graph computes the scale, nothing notices that it is zero or negative.",
        "Calibrate again, and write the scale into an initializer.",
    ),
    refused(
        "RE115",
        "A zero point that is not zero",
        "TensorRT quantizes symmetrically alone (the parser's flag for asymmetric numbers is for DLA).",
        SYMMETRIC,
    ),
    refused(
        "RE116", "A zero point whose name is empty", "The parser reads it as a tensor without a name.", "Leave it out."
    ),
    refused(
        "RE117",
        "A zero point that is computed",
        "It must be an initializer, or come from one through casts and the like.",
        INITIALIZER,
    ),
    refused("RE118", "A zero point that becomes UINT8 in the graph", "The parser stops at the Cast.", SYMMETRIC),
    refused(
        "RE119",
        "Scales and zero points of different number",
        "The parser wants as many of the one as of the other.",
        "Give each scale a zero point of 0, or leave the zero points out.",
    ),
    refused(
        "RE120",
        "Scales that do not fit the tensor",
        "The parser wants one scale, or one for each channel along `axis`, as a list.",
        "Give it one, or one for each channel, along an axis that the tensor has.",
    ),
    refused(
        "RE121",
        "Quantized in blocks along another axis than the last two",
        "Blocks are for the last two axes alone.",
        "Quantize per channel, or in blocks along one of the last two axes.",
    ),
    refused(
        "RE122",
        "A weight joined behind DequantizeLinear",
        "The builder finds no kernel for a convolution whose weight a Concat of dequantized tensors makes.",
        "Join the weights before quantizing.",
    ),
    refused(
        "RE123",
        "A convolution of types that has no kernel",
        "There are convolutions of INT8 with INT8 (and of FP8 with FP8, where the GPU has it); none of INT4, none of "
        "two types.",
        "Quantize both to INT8.",
    ),
    Rule(
        "RE124",
        "FP8 or FP4, which needs a GPU that has it",
        "unknown",
        "warning",
        "FP8 builds for sm89 and newer, FP4 for sm100 and newer; for older GPUs the builder refuses the graph.",
        "Quantize to INT8 if it must run elsewhere.",
    ),
    Rule(
        "RE125",
        "A scale whose value cannot be told here",
        "unknown",
        "warning",
        "It depends on the tensors' sizes, or on an operator that nobody tried.",
        INITIALIZER,
    ),
    Rule(
        "RE126",
        "A zero point whose value cannot be told here",
        "unknown",
        "warning",
        "A zero point that is not zero is refused.",
        INITIALIZER,
    ),
    Rule(
        "RE127",
        "A local function that cannot be looked into",
        "unknown",
        "warning",
        "TensorRT-RTX takes functions of another opset than the file's; they cannot be inlined here, and so nothing is "
        "said of what is inside.",
        "Save the file with one opset, or inline its functions.",
    ),
    refused(
        "RE130",
        "An operator in training mode",
        "BatchNormalization and Dropout with `training_mode` are refused.",
        "Export the network in evaluation mode (`model.eval()`).",
    ),
    refused(
        "RE131",
        "A max pool that gives the places of its values",
        "The parser takes MaxPool with one output.",
        "Do without `Indices`, or drop the output if nothing reads it.",
        source=SOURCE_10_1,
    ),
    refused(
        "RE132", "A dilated pool", "Dilations other than 1 are refused.", "Express it by Slice.", source=SOURCE_10_1
    ),
    refused(
        "RE133",
        "A Resize that TensorRT does not have",
        "Refused are `antialias`, `tf_crop_and_resize`, `half_pixel_symmetric`, and a `keep_aspect_ratio_policy` "
        "other than `stretch`.",
        "Take `half_pixel` without antialiasing, or resize before the network; `--uint8-input full` of resnet-export "
        "resizes as Pillow does, by convolutions.",
        source=SOURCE_10_1,
    ),
    refused(
        "RE134",
        "An input, or a Cast, of a type that is not read",
        "Types are FLOAT, FLOAT16, BFLOAT16, INT8, INT32, INT64, BOOL and, for inputs and outputs, UINT8; DOUBLE is "
        "read as FLOAT.",
        "Take one of these types; pixels may be UINT8.",
    ),
    refused(
        "RE135",
        "Work on UINT8 numbers",
        "UINT8 is for inputs and outputs of the graph: nothing but Cast may read such an input, not even Transpose, "
        "and nothing may read what was cast to it.",
        "Cast to float first.",
        source=SOURCE_10_1,
    ),
    refused(
        "RE136",
        "A ReLU or a matrix product of integers",
        "Relu takes no INT32, and MatMul no integers.",
        "Cast to float before it.",
    ),
    refused(
        "RE137",
        "A batch norm with statistics for each pixel",
        "`spatial=0`, of opsets below 9, is refused.",
        "Write it as Mul and Add.",
    ),
    refused(
        "RE138",
        "An operator that TensorRT has as a plugin, and TensorRT-RTX does not have",
        "TensorRT-RTX 1.7.1 has no plugins for DeformConv, NonMaxSuppression, NonZero and RoiAlign. TensorRT has "
        "them, as its own page says; that was not seen.",
        "Build with TensorRT (`--target-trt 10.3` and the like), or leave this part out of the graph.",
        source=SOURCE_10_1,
    ),
    refused(
        "RE139",
        "A reduction over axes that are computed at run time",
        "The axes must be known when the engine is built.",
        INITIALIZER,
    ),
)
