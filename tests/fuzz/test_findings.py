"""What spoilt files once did to their readers, each in its smallest form."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from data_sets import PIXELS
from fuzz_addresses import URL, server_readers
from fuzz_bundles import bundle_readers, command
from fuzz_models import checkpoint_readers, onnx_readers, small_network
from fuzz_readers import PREPROCESS, json_readers
from fuzz_watch import held
from manifest_edits import rewrite_manifest
from onnx import numpy_helper
from PIL import Image
from small_bundles import write_bundle

from calibration.data import built_in, open_source
from calibration.reading import read_ahead
from calibration.synsets import synsets_from_file
from calibration.table import table_from_file
from exporter.cli import _common
from exporter.graph.intake.read import read_model_file
from exporter.graph.onnx_file import model_from_file
from exporter.models.checkpoints import state_from_file
from exporter.models.hugging_face import config_beside
from exporter.models.labels import labels_from_metadata, labels_from_path
from exporter.pipeline.search_journal import Journal
from exporter.verification.accuracy.resume_file import _whole_lines
from exporter.verification.parity_toml import CONFIG, entries_from_toml, plan_from_entry
from runtimes import Bundle, Manifest, open_runtime
from runtimes.benchmark.statistics import median_interval
from runtimes.errors import BadInput, BundleError, PlanError, ResnetExportError
from runtimes.picture_file import open_picture
from runtimes.specs import LARGEST_BATCH, BatchRange

DEEP = b"[" * 100_000
LONG = "9" * 5000
SOURCE = {"input": "x", "layout": "nchw", "outputs": {"logits": "y"}}


# --- texts ---


@pytest.mark.parametrize("read", [labels_from_path, lambda path: synsets_from_file(path, 10)])
def test_a_text_that_is_far_larger_than_any_list_of_classes_is_not_read(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"a\n" * (3 << 20))
    error = held(read, path)
    assert isinstance(error, BadInput)
    assert "larger than" in str(error)


@pytest.mark.parametrize("read", [labels_from_path, lambda path: synsets_from_file(path, 10)])
def test_a_pipe_is_no_text(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "names.txt")
    assert isinstance(held(read, tmp_path / "names.txt"), BadInput)


def test_a_key_that_is_there_twice_among_very_many_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    keys = [f'"{place}": "x"' for place in range(40_000)]
    path.write_text(f"{{{', '.join([*keys, keys[-1]])}}}")
    assert "'39999' stands in it twice" in str(held(labels_from_path, path))


@pytest.mark.parametrize("text", ['{"0": "a", "0": "b"}', f"[{LONG}]", f'{{"a": {LONG}}}'])
def test_metadata_that_is_no_list_of_names_gives_none(text: str) -> None:
    assert labels_from_metadata(text) is None


def test_a_config_beside_a_checkpoint_is_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (5 << 20) + b"{}")
    with pytest.raises(BadInput, match="config.json"):
        config_beside(tmp_path / "model.safetensors")


def test_a_config_that_is_no_object_is_named(tmp_path: Path) -> None:
    reader = next(one for one in checkpoint_readers() if one.name == "config.json")
    error = held(reader.read, reader.put(tmp_path, b'"x"'), named=reader.named)
    assert f"expected {tmp_path / 'config.json'} to hold an object, got str" in str(error)


@pytest.mark.parametrize("text", [f"images = {LONG}", f"a = {'[' * 5000}", f"{'a.' * 5000}b = 1"])
def test_a_toml_of_endless_numbers_or_depth_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / CONFIG
    path.write_text(text)
    assert isinstance(held(entries_from_toml, path), ResnetExportError)


@pytest.mark.parametrize("line", ['backends = ["nosuch"]', "images = 5", 'against = "nothing"'])
def test_what_a_toml_asks_for_wrongly_names_the_file(line: str, tmp_path: Path, manifest: Manifest) -> None:
    write_bundle(tmp_path / "bundle", manifest)
    path = tmp_path / CONFIG
    path.write_text(f'{line}\n[[bundles]]\npath = "bundle"\n')
    (entry,) = entries_from_toml(path)
    with pytest.raises(ResnetExportError) as refused:
        plan_from_entry(entry)
    assert str(refused.value).startswith(f"{path}: ")


# --- JSON ---


def test_a_journal_of_endless_depth_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.search.json"
    path.write_bytes(b'{"digest": "d", "tried": [], "more": ' + DEEP)
    with pytest.raises(PlanError, match="x.search.json is no journal"):
        Journal(path, "d", lambda said: None)


def test_a_line_of_endless_depth_damages_a_resume_file(tmp_path: Path) -> None:
    path = tmp_path / "resume.jsonl"
    path.write_bytes(b"{}\n" + b'{"more": ' + DEEP + b"\n")
    with pytest.raises(BadInput, match="line 2 is damaged"):
        list(_whole_lines(path, built_in("test"), 4, "--resume"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("corrections", {"mse": {"conv": [1e39]}}), ("factors", {"x": [1e39]}), ("factors", {"x": [1e-60]})],
)
def test_a_table_holds_no_number_beyond_float32(field: str, value: Any, tmp_path: Path) -> None:
    right = next(reader for reader in json_readers() if reader.file == "calibration.json").seeds[0]
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**json.loads(right), field: value}))
    with pytest.raises(BadInput, match="damaged"):
        table_from_file(path)


# --- results of benchmarks ---


def _of_many_rounds(result: Any) -> None:
    result["entries"][0]["timings"][0]["images_per_s"] = [100.0] * 100_000


def _of_many_bundles(result: Any) -> None:
    result["bundles"] += [{**result["bundles"][0], "folder": str(place)} for place in range(10_000)]
    result["entries"] += [{"contender": {"bundle": "x", "backend": "y"}, "verdict": "z"}] * 40_000


def _of_one_bundle_many_times(result: Any) -> None:
    result["bundles"] *= 5000
    result["entries"][0]["timings"] *= 1000


@pytest.mark.parametrize("spoil", [_of_many_rounds, _of_many_bundles, _of_one_bundle_many_times])
def test_a_result_of_very_many_numbers_is_compared_at_once(spoil: Any, tmp_path: Path) -> None:
    reader = next(one for one in json_readers() if one.name == "bench result")
    result, path = json.loads(reader.seeds[0]), tmp_path / "bench.json"
    spoil(result)
    path.write_text(json.dumps(result))
    assert held(reader.read, path) is None


def test_an_interval_of_very_many_values_is_that_of_the_sign_test() -> None:
    found = median_interval(range(1, 24_951))
    assert (found.median, found.low, found.high) == (12_475.5, 12_320, 12_631)


# --- manifests ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one["batch"].update(max=10**12), "at most 65,536 images"),
        (lambda one: one["preprocess"].update(crop=[10**6, 10**6]), "a crop of at most"),
        (lambda one: one["preprocess"].update(resize=10**12), "a resize of at most"),
        (lambda one: one["model"].update(classes=10**12), "from 0 to 1,048,576 classes"),
        (lambda one: one["model"].update(classes=-1), "from 0 to 1,048,576 classes"),
        (lambda one: one["parity"]["budget"].update(confidence=1.0), "a confidence from 0.5 to below 1"),
        (lambda one: one["inputs"][0].update(dtype="float8"), "'input' as float8"),
        (lambda one: one["inputs"][0].update(shape=[]), "without a batch"),
        (lambda one: one["outputs"][0].update(shape=["batch", -1]), "batchx-1"),
        (lambda one: one["outputs"][0].update(shape=["batch", 10**30]), "manifest.json"),
        (lambda one: one["outputs"][0].update(shape=["", 10]), "'logits'"),
        (lambda one: one.update(source_file={**SOURCE, "batch": -1}), "got -1:-1:-1"),
        (lambda one: one.update(source_file={**SOURCE, "batch": 10**12}), "at most 65,536 images"),
    ],
)
def test_a_manifest_of_sizes_that_nothing_has_is_refused(
    change: Any, said: str, tmp_path: Path, manifest: Manifest
) -> None:
    bundle = write_bundle(tmp_path / "bundle", manifest)
    rewrite_manifest(bundle, change)
    with pytest.raises(BundleError) as refused:
        Bundle.open(bundle)
    assert said in str(refused.value)


def test_operators_without_types_are_shown(tmp_path: Path, manifest: Manifest, deploy: Any) -> None:
    bundle = write_bundle(tmp_path / "bundle", manifest)
    rewrite_manifest(bundle, lambda one: one["graph"].update(types={}))
    assert "Conv" in deploy("inspect", bundle).out


def test_a_batch_that_no_device_runs_is_refused() -> None:
    assert BatchRange.parse(str(LARGEST_BATCH)).max == LARGEST_BATCH
    with pytest.raises(PlanError, match="at most 65,536 images"):
        BatchRange.parse(str(LARGEST_BATCH + 1))


def test_a_bundle_of_a_batch_that_fills_the_memory_is_not_run(good: Any, tmp_path: Path) -> None:
    readers = {one.name: one for one in bundle_readers(good[1].bundle.folder)}
    for name in ("manifest measured", "manifest evaluated"):
        document = json.loads(readers[name].seeds[0])
        document["batch"] = {"min": 8000, "opt": 8000, "max": 8000}
        path = readers[name].put(tmp_path, json.dumps(document).encode())
        assert held(readers[name].read, path, writes=tmp_path) is None


# --- ONNX ---


def _of_a_tensor_of_a_type_that_there_is_not(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = (1 << 31) - 1


def _of_an_input_of_a_type_that_there_is_not(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 1000


def _of_values_that_do_not_fit(model: onnx.ModelProto) -> None:
    model.graph.initializer[1].raw_data += b"\0"


def _of_a_negative_size(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([-4, -1, 3, 3])


@pytest.mark.parametrize(
    "spoil",
    [
        _of_a_tensor_of_a_type_that_there_is_not,
        _of_an_input_of_a_type_that_there_is_not,
        _of_values_that_do_not_fit,
        _of_a_negative_size,
    ],
)
def test_a_model_with_a_tensor_of_no_known_kind_is_refused(spoil: Any, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_network())
    spoil(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    error = held(model_from_file, path)
    assert isinstance(error, BadInput)


@pytest.mark.parametrize("name", [b"fc.w", b"conv", b"GlobalAveragePool"])
def test_a_model_with_a_name_that_is_no_utf8_is_refused(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_network().replace(name, b"\xff" + name[1:]))
    assert "no UTF-8" in str(held(lambda given: command("inspect", given), path))


def test_a_file_of_a_batch_that_fills_the_memory_is_not_run(good: Any, tmp_path: Path) -> None:
    reader = next(one for one in onnx_readers(good[1].bundle.folder) if one.name == "ONNX taken in")
    model = onnx.load_model_from_string(small_network())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = LARGEST_BATCH
    assert held(reader.read, reader.put(tmp_path, model.SerializeToString())) is None


def test_a_model_of_very_many_small_tensors_is_in_memory_twice_at_most(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_network())
    values = np.zeros(60_000, np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(values, f"t{place}") for place in range(400))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    del model
    assert held(model_from_file, path) is None


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Range", "Tile"])
def test_a_linter_computes_no_constant_that_fills_the_memory(kind: str, tmp_path: Path) -> None:
    """A scale that is the largest of 300 million numbers, which a node makes of one or two."""
    model = onnx.load_model_from_string(small_network(quantized=True))
    numbers = {
        "size": np.array([60_000, 5_000], np.int64),
        "one": np.float32(0.1),
        "row": np.array([1.0], np.float32),
        "times": np.array([300_000_000], np.int64),
        "none": np.float32(0),
        "end": np.float32(3e8),
        "step": np.float32(1),
    }
    inputs = {"ConstantOfShape": ["size"], "Expand": ["one", "size"], "Range": ["none", "end", "step"]}
    huge = onnx.helper.make_node(kind, inputs.get(kind, ["row", "times"]), ["huge"], "huge")
    model.graph.node.insert(0, onnx.helper.make_node("ReduceMax", ["huge"], ["largest"], "largest", keepdims=0))
    model.graph.node.insert(0, huge)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items())
    for node in model.graph.node:
        if node.name in ("q", "dq"):
            node.input[1] = "largest"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert held(lambda given: command("inspect", given), path) is None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [0, LARGEST_BATCH + 1])
def test_a_model_of_a_batch_that_nothing_has_is_refused(size: int, backend: str, tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_network())
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = size
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput) as refused:
        open_runtime(path, backend)
    said = f"{path}: input 'x': expected a batch of 1 to 65,536 images, or a free one, got {size}"
    assert str(refused.value).startswith(said)


# --- names that no file can have ---


def test_weights_in_a_file_of_a_name_that_none_can_have_are_not_there(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(small_network())
    for tensor in model.graph.initializer:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="x" * 300)
        tensor.ClearField("raw_data")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for read in (model_from_file, read_model_file):
        assert "got nothing there" in str(held(read, path))


@pytest.mark.parametrize("read", [state_from_file, lambda path: open_source(str(path))])
def test_a_file_of_a_name_that_none_can_have_cannot_be_read(read: Any, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    error = held(read, path)
    assert isinstance(error, BadInput)
    assert str(path) in str(error)
    assert "File name too long" in str(error)


# --- servers ---


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("config", lambda one: setattr(one.config, "max_batch_size", -8), "max_batch_size from 0 on, got -8"),
        ("metadata", lambda one: one.inputs[0].shape.__setitem__(0, 0), "got 'input' as float32 0x1x28x28"),
        ("metadata", lambda one: one.inputs[0].shape.__setitem__(0, 70_000), "a batch of 1 to 65,536 images"),
        ("metadata", lambda one: one.outputs[0].shape.__setitem__(1, -2), "got 'logits' as float32 batchx-2"),
    ],
)
def test_a_servers_model_of_sizes_that_nothing_has_is_refused(
    part: str, change: Any, said: str, good: Any, tmp_path: Path
) -> None:
    from tritonclient.grpc import service_pb2

    reader = next(one for one in server_readers(good[1].bundle.folder) if one.file == part)
    kinds = {"config": service_pb2.ModelConfigResponse, "metadata": service_pb2.ModelMetadataResponse}
    message = kinds[part].FromString(reader.seeds[0])
    change(message)
    error = held(reader.read, reader.put(tmp_path, message.SerializeToString()), named=reader.named)
    assert isinstance(error, BadInput)
    assert str(error).startswith(f"{URL}: ")
    assert said in str(error)


# --- pictures ---


def test_a_picture_of_other_channels_is_named(tmp_path: Path) -> None:
    for place, channels in enumerate((1, 2)):
        np.save(tmp_path / f"{place}.npy", PIXELS[0, ..., :channels])
    source = open_source(str(tmp_path))
    _, found = read_ahead(source, range(2), PREPROCESS, ahead=1)
    assert found.reason.startswith("1.npy: expected pictures of grey or colour")  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_a_picture_of_nothing_that_fills_the_memory_is_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.{form}"
    Image.new("RGB", (6000, 3500)).save(path, quality=5, progressive=True)
    assert "times as many" in str(held(open_picture, path))


# --- checkpoints ---


def test_a_checkpoint_of_nothing_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    buffer, path = io.BytesIO(), tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(60_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as right, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name in right.namelist():
            packed.writestr(name, right.read(name))
    del buffer
    assert "times as many" in str(held(state_from_file, path))


@pytest.mark.parametrize("new", [False, True])
def test_a_spoilt_type_of_numpy_in_a_checkpoint_is_not_looked_at(new: bool, tmp_path: Path) -> None:
    """numpy's own reader of such a state reads memory that is not its own, and the process ends."""
    packed, path = io.BytesIO(), tmp_path / "c.pth"
    torch.save(
        {"model": {"fc.weight": torch.ones(2, 3)}, "best": np.float64(0.5)}, packed, _use_new_zipfile_serialization=new
    )
    ends = b"J\xff\xff\xff\xffJ\xff\xff\xff\xff"
    if new:
        with zipfile.ZipFile(packed) as right, zipfile.ZipFile(path, "w") as spoilt:
            for name in right.namelist():
                spoilt.writestr(name, right.read(name).replace(b"NNN" + ends, b"N" + ends))
    else:
        path.write_bytes(packed.getvalue().replace(b"NNN" + ends, b"N" + ends))
        assert path.stat().st_size == len(packed.getvalue()) - 2
    found: dict[str, Any] = {}
    assert held(lambda given: found.update(state_from_file(given)), path) is None
    assert torch.equal(found["fc.weight"], torch.ones(2, 3))


# --- what is said ---


def test_an_error_is_no_longer_than_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _common._fail("x.txt: expected a name, got " + "x" * 100_000 + "; give another", 2)
    said = capsys.readouterr().err
    assert len(said) < 4100
    assert said.startswith("error: x.txt: expected")
    assert said.endswith("; give another\n")
