"""The proof of an engine's precision, read off TensorRT's inspector."""

from __future__ import annotations

import json

import pytest

from exporter.engines.layers import EngineLayer, check_precision, layer_facts, layers_from_inspector
from runtimes.errors import BuildError


def inspected(style: int, *, conv: str = "Int8", linear: str = "Half") -> str:
    """An engine's layers as TensorRT 10 or 11 tells them."""

    def tensor(words: str) -> dict[str, object]:
        long = {
            "Int8": "Thirty-two wide channel vectorized row major Int8 format",
            "Half": "Row major linear FP16 format",
            "Float": "Row major linear FP32",
        }
        return (
            {"Name": "t", "Format/Datatype": long[words]}
            if style == 10
            else {"Name": "t", "Format": "Linear", "Datatype": words}
        )

    return json.dumps(
        {
            "Layers": [
                {
                    "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
                    "LayerType": "Reformat",
                    "Inputs": [tensor("Float")],
                },
                {
                    "Name": "conv1.weight + conv1 + relu",
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor(conv)],
                    "Metadata": "[ONNX Layer: conv1]",
                },
                {
                    "Name": "layer1.0.conv1 + layer1.0.add",
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor(conv), tensor("Half")],
                    "Metadata": "[ONNX Layer: layer1.0.conv1]\x1e[ONNX Layer: layer1.0.add]",
                },
                {
                    "Name": "fc",
                    "LayerType": "CaskGemmMatrixMultiply",
                    "Inputs": [tensor(linear)],
                    "Metadata": "[ONNX Layer: fc]",
                },
            ]
        }
    )


@pytest.mark.parametrize("style", [10, 11])
def test_the_inspectors_layers_are_read_in_both_dialects(style: int) -> None:
    layers = layers_from_inspector(inspected(style))
    assert layers[1] == EngineLayer("CaskConvolution", ("int8",), frozenset({"conv1", "conv1.weight", "relu"}))
    facts = layer_facts(layers, ("conv1", "layer1.0.conv1"), "int8")
    assert facts.convolutions == {"int8": 2}
    assert facts.kernels == {
        "CaskConvolution": {"int8": 2},
        "CaskGemmMatrixMultiply": {"fp16": 1},
        "Reformat": {"fp32": 1},
    }
    check_precision(facts, "int8")


@pytest.mark.parametrize("style", [10, 11])
def test_convolutions_that_fell_back_are_named(style: int) -> None:
    facts = layer_facts(layers_from_inspector(inspected(style, conv="Half")), ("conv1", "layer1.0.conv1"), "int8")
    with pytest.raises(
        BuildError, match=r"promises int8, but 2 of its convolutions run otherwise \(2 fp16\): conv1, layer1.0.conv1"
    ):
        check_precision(facts, "int8")


def test_a_convolution_that_no_layer_names_is_unknown_and_not_taken_on_trust() -> None:
    facts = layer_facts(layers_from_inspector(inspected(10)), ("conv1", "lost"), "int8")
    assert facts.convolutions == {"int8": 1, "unknown": 1}
    with pytest.raises(BuildError, match="lost"):
        check_precision(facts, "int8")


@pytest.mark.parametrize("information", ["", "{}", "null", '{"Layers": ["conv1", "fc"]}'])
def test_an_inspector_that_tells_nothing_is_an_error(information: str) -> None:
    with pytest.raises(BuildError, match="its precision is unknown"):
        layers_from_inspector(information)
