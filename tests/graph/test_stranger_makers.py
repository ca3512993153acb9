"""What the makers of strangers' files make: valid, equal to its network in PyTorch, and as odd as the real ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from stranger_graphs import Made
from stranger_makers import MAKERS, class_index, external_data, legacy_resnet18, legacy_training, made
from stranger_readings import pictures, scores

EXACT = [name for name in MAKERS if not name.startswith("q")]
TRAINED = 0.1  # fake quantization in PyTorch multiplies where ONNX divides: a value on an edge falls to the other side


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def answers(file: Made) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The file's scores of four images, and the network's, both (4, classes)."""
    images = pictures(4, file.reading.size, seed=9)
    got = scores(file.model.SerializeToString(), file.reading.file_input(images), file.reading.output)
    assert file.network is not None
    with torch.no_grad():
        logits = file.network(torch.from_numpy(file.reading.network_input(images)))
    wanted: NDArray[np.float32] = (logits.softmax(1) if file.reading.softmax else logits).numpy()
    return got, wanted


@pytest.mark.parametrize("name", MAKERS)
def test_a_made_file_is_valid_and_tells_images_apart(name: str) -> None:
    one = made(name)

    onnx.checker.check_model(one.model, full_check=True)
    got = scores(
        one.model.SerializeToString(), one.reading.file_input(pictures(4, one.reading.size)), one.reading.output
    )
    assert got.shape == (4, one.reading.classes)
    assert np.ptp(got, 0).max() > 0.05
    assert {opset.version for opset in one.model.opset_import if opset.domain == ""} == {one.reading.opset}


@pytest.mark.parametrize("name", EXACT)
def test_a_made_file_is_its_network(name: str) -> None:
    got, wanted = answers(made(name))

    np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_a_trained_file_is_its_network_but_for_roundings() -> None:
    got, wanted = answers(made("qat_torch"))

    np.testing.assert_allclose(got, wanted, atol=TRAINED)


def test_the_tensorflow_file_has_what_tf2onnx_leaves() -> None:
    model = made("tensorflow_nhwc").model

    first = model.graph.node[0]
    assert (first.op_type, first.input[0], list(first.attribute[0].ints)) == ("Transpose", "image", [0, 3, 1, 2])
    assert [node.op_type for node in model.graph.node[1:5]] == ["Pad", "Conv", "Add", "BatchNormalization"]
    assert model.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3
    assert any(one.s == b"SAME_UPPER" for node in model.graph.node for one in node.attribute)
    assert model.ir_version == 4


def test_the_pad_of_the_keras_file_cannot_become_the_pools() -> None:
    keras = made("keras_v2")
    pad = next(node for node in keras.model.graph.node if node.op_type == "Pad")
    pool = next(node for node in keras.model.graph.node if node.op_type == "MaxPool")
    before, _ = answers(keras)

    pool.input[0] = pad.input[0]
    pool.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    keras.model.graph.node.remove(pad)

    after, _ = answers(keras)
    assert np.abs(after - before).max() > 1e-3


def test_the_caffe_file_lists_its_initializers_as_inputs() -> None:
    model = made("caffe_bgr").model

    assert model.ir_version == 3
    assert {tensor.name for tensor in model.graph.initializer} < {one.name for one in model.graph.input}
    assert operators(model)["BatchNormalization"] == operators(model)["Mul"] == 6


def test_the_fixed_batch_is_in_a_reshape() -> None:
    model = made("legacy_17").model

    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    shape = next(node for node in model.graph.node if reshape.input[1] in node.output)
    assert numpy_helper.to_array(shape.attribute[0].t).tolist() == [1, -1]


def test_an_export_in_training_mode_trains() -> None:
    nodes = legacy_training().model.graph.node

    modes = [one.i for node in nodes for one in node.attribute if one.name == "training_mode"]
    assert modes == [1] * 6
    assert "Dropout" in {node.op_type for node in nodes}


def test_quantized_files_are_of_their_kinds() -> None:
    assert operators(made("qoperator").model)["QLinearConv"] == 6
    kinds = [
        {
            numpy_helper.to_array(tensor).dtype.name
            for tensor in model.graph.initializer
            if tensor.name.endswith("zero_point")
        }
        for model in (made("qdq_uint8").model, made("qdq_int8").model)
    ]
    assert kinds == [{"uint8", "int8", "int32"}, {"int8", "int32"}]
    trained = operators(made("qat_torch").model)
    assert trained["QuantizeLinear"] == trained["DequantizeLinear"] == 14
    assert trained["BatchNormalization"] == 6


def test_the_external_data_are_below_the_files_folder(tmp_path: Path) -> None:
    path = external_data(tmp_path)

    onnx.checker.check_model(str(path))
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)
    assert path.stat().st_size < (tmp_path / "weights" / "model.bin").stat().st_size


def test_several_outputs_and_an_index() -> None:
    assert [output.name for output in made("several_outputs").model.graph.output] == ["map", "embedding", "logits"]
    assert operators(class_index().model)["ArgMax"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 17])
def test_torchvisions_resnet18_by_the_old_exporter(opset: int) -> None:
    got, wanted = answers(legacy_resnet18(opset))

    np.testing.assert_allclose(got, wanted, atol=5e-5)
