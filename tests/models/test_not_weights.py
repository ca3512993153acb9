"""Files given as a checkpoint that are none, tensors that are no plain numbers, and paths where there is nothing."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from exporter import ExportPlan
from exporter.models.checkpoints import state_from_file
from exporter.models.loading import load_model
from exporter.models.registry import find_model
from runtimes.errors import BadInput, UnknownName

STATE = {"conv1.weight": torch.arange(9.0).reshape(1, 1, 3, 3)}


def said(path: Path) -> str:
    with pytest.raises(BadInput) as refused:
        state_from_file(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- told by the first bytes ---

ONNX = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []), producer_name="x").SerializeToString()
FILES = {
    "lfs.pth": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64,
        "a Git LFS pointer, .* git lfs pull",
    ),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "page.pth": (
        b"<!DOCTYPE html><html><head><title>Virus scan warning</title></head></html>",
        "a web page, .*download it again",
    ),
    "page.safetensors": (b"\n  <html>\n", "a web page"),
    "access.pth": (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
    "model.xml": (b"<?xml version='1.0'?>\n<net name='x' version='11'>", "an OpenVINO model"),
    "error.pth": (b'{"error": "Not {found}"}', "JSON text, not a checkpoint"),
    "list.ckpt": (b"[1, 2", "JSON text, not a checkpoint"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 500, "an HDF5 file, as Keras writes"),
    "weights.pth": (b"\x89HDF\r\n\x1a\n" + b"\0" * 500, "an HDF5 file, as Keras writes"),
    "model.onnx": (ONNX, "an ONNX graph, not a checkpoint"),
    "onnx.pth": (ONNX, "an ONNX graph, not a checkpoint"),
    "saved_model.pb": (b"\x08\x01\x12\x80\x04\n\x05serve", "a TensorFlow SavedModel"),
    "mobile.tflite": (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    "a.npy": (b"\x93NUMPY\x01\x00", r"a NumPy array \(.npy\)"),
    "w.pth.gz": (b"\x1f\x8b\x08", "a gzip archive; unpack it"),
    "w.pth.tar": (b"model.pth".ljust(257, b"\0") + b"ustar\x0000", "a tar archive; unpack it"),
    "picture.pt": (b"\x89PNG\r\n\x1a\n", "a picture, .*--data"),
    "notes.pt": (b"epoch 3: loss 0.1\n", "text, not a checkpoint"),
    "empty.pt": (b"", "empty; download it again"),
    "cut.pth": (b"PK\x03\x04" + b"\0" * 100, "incomplete: .*copy or download it again"),
    "one.index.json": (
        b'{"weight_map": {"conv1.weight": "model{0}.safetensors"}}',
        "the index of a checkpoint in one file; give that: model",
    ),
    "pytorch_model.bin.index.json": (
        json.dumps({"metadata": {}, "weight_map": {"a": "p-1.bin", "b": "p-2.bin", "c": "p-2.bin"}}).encode(),
        r"the index of a checkpoint in 2 files \(p-1.bin, p-2.bin\), which holds no tensors; save them as one",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_checkpoint_is_told_for_what_it_is(tmp_path: Path, name: str) -> None:
    content, says = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"{name} is {says}"):
        state_from_file(path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.npy", "b.npy"], r"NumPy arrays \(.npz\)"),
        (["metadata.json", "config.json", "model.weights.h5"], r"a Keras model \(.keras\)"),
        (["readme.txt", "run/best.pth"], r"a zip archive \(run/best.pth\), .*give the checkpoint in it"),
        (["\n{x}.txt"], r"a zip archive \(\?\(x\).txt\)"),
    ],
)
def test_archives_of_other_kinds_are_told(tmp_path: Path, names: list[str], says: str) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(BadInput, match=says):
        state_from_file(path)


@pytest.mark.parametrize("name", ["w.bin", "w.pth", "W.SAFETENSORS", "w"])
def test_safetensors_and_pickles_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert torch.equal(state_from_file(tmp_path / name)["conv1.weight"], STATE["conv1.weight"])
    torch.save(STATE, tmp_path / "pickle.safetensors")
    assert torch.equal(state_from_file(tmp_path / "pickle.safetensors")["conv1.weight"], STATE["conv1.weight"])


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "whole.pth")
    save_file(STATE, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for share in (0.02, 0.5, 0.99):
            (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
            said(tmp_path / name)


# --- nothing there ---


@pytest.mark.parametrize("name", ["foo.bin", "foo.pth", "foo.onnx", "foo", "gone/foo.safetensors"])
def test_a_path_without_a_file_is_told_whatever_its_ending(tmp_path: Path, name: str) -> None:
    assert said(tmp_path / name).endswith(
        f"--weights: there is no file {tmp_path / name}; give default, random or the path of a checkpoint"
    )


def test_a_folder_names_the_file_in_it(tmp_path: Path) -> None:
    assert said(tmp_path).endswith("is a folder, expected a file; give the checkpoint in it")
    (tmp_path / "other.bin").touch()
    (tmp_path / "model.safetensors").touch()
    assert said(tmp_path).endswith(f"give the checkpoint in it: {tmp_path / 'model.safetensors'}")
    (tmp_path / "saved_model.pb").touch()
    assert "a TensorFlow SavedModel" in said(tmp_path)


def test_labels_that_are_nowhere_are_told(tmp_path: Path) -> None:
    for name in ("gone.json", "gone.txt", "gone"):
        with pytest.raises(BadInput, match=f"--labels: there is no file or folder .*{name};"):
            load_model(ExportPlan("resnet20", tmp_path / "out", labels=tmp_path / name).model_request)


def test_a_path_in_place_of_a_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    with pytest.raises(
        BadInput, match=r"expected MODEL as a name of --list, .* got a path, and there is no file .*resnet50.pth$"
    ):
        find_model(str(path))
    path.touch()
    with pytest.raises(
        BadInput,
        match=r"got the file .*; give the network's name, and a checkpoint of it with --weights .*resnet50.pth$",
    ):
        find_model(str(path))
    with pytest.raises(BadInput, match=r"got the folder .*; give the network's name"):
        find_model(str(tmp_path))
    with pytest.raises(BadInput, match=r"there is no file model.safetensors$"):
        find_model("model.safetensors")
    with pytest.raises(UnknownName):
        find_model("resnet51")


# --- tensors that are no plain numbers ---


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # PyTorch's own, about sparse and quantized tensors
def unusual() -> dict[str, tuple[Callable[[], Any], str]]:
    value = STATE["conv1.weight"]
    return {
        "quantized": (
            lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            "quantized; save the float model's state_dict",
        ),
        "sparse": (value.to_sparse, "laid out as torch.sparse_coo; save value.to_dense()"),
        "complex": (lambda: value.to(torch.complex64), "complex"),
        "meta": (lambda: value.to("meta"), "without values, on the meta device"),
        "repeated": (lambda: torch.zeros(1).expand(1 << 40), "a view that repeats its values"),
        "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "laid out as"),
        "too large": (lambda: torch.full((2,), 1e300, dtype=torch.float64), "beyond FP32's range"),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's own, about sparse, nested and quantized tensors
@pytest.mark.parametrize("kind", list(unusual()))
def test_tensors_that_hold_no_plain_numbers_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    make, says = unusual()[kind]
    torch.save({**STATE, "fc.weight": make()}, tmp_path / "c.pth")
    message = said(tmp_path / "c.pth")
    assert "'fc.weight'" in message
    assert says in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floats_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([0.0, 1.5, -448.0, 2.0**-6])
    torch.save({"conv1.weight": value.to(dtype)}, tmp_path / "c.pth")
    found = state_from_file(tmp_path / "c.pth")["conv1.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, value)


def test_views_of_one_storage_are_read_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save({"a": whole[:6].reshape(2, 3), "b": whole.reshape(3, 4).T, "c": whole}, tmp_path / "c.pth")
    state = state_from_file(tmp_path / "c.pth")
    assert torch.equal(state["a"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(state["b"], torch.arange(12.0).reshape(3, 4).T)


# --- what stands beside the tensors ---


def foreign_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package that is installed where the checkpoint was written, and imports with a bang here."""
    module = types.ModuleType("foreign_package")
    exec(
        "class HistoryBuffer:\n    pass\n\nclass AttributeDict(dict):\n    pass\n\nclass Net:\n    pass\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "foreign_package", module)
    return module


def beside(module: Any) -> dict[str, object]:
    history = module.HistoryBuffer()
    history.values = np.ones(3)
    return {
        "an object": history,
        "a kind of dict": module.AttributeDict(lr=0.1),
        "a class": module.Net,
        "a path": PurePosixPath("/data/x"),
        "an array": np.arange(6.0).reshape(2, 3),
        "figures": defaultdict(list, loss=[1.0]),
        "options": argparse.Namespace(out=PurePosixPath("out")),
        "an ordered dict": OrderedDict(a=1),
    }


@pytest.mark.parametrize(
    "kind", list(beside(types.SimpleNamespace(HistoryBuffer=type("H", (), {}), AttributeDict=dict, Net=int)))
)
def test_values_beside_the_tensors_are_passed_over_and_nothing_of_theirs_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with monkeypatch.context() as context:
        torch.save(
            {"state_dict": STATE, "epoch": 3, "extra": beside(foreign_module(context))[kind]}, tmp_path / "c.pth"
        )
    state = state_from_file(tmp_path / "c.pth")
    assert state.keys() == STATE.keys()
    assert torch.equal(state["conv1.weight"], STATE["conv1.weight"])
    assert "foreign_package" not in sys.modules


def test_a_whole_model_says_how_to_save_its_tensors(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "c.pth")
    message = said(tmp_path / "c.pth")
    assert "holds a whole Python object (torch.nn.modules.linear.Linear), which only its own code can read" in message
    assert message.endswith("torch.save(model.state_dict(), ...)")


class Calls:
    """Calls something when unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function",
    [eval, exec, getattr, __import__, pickle.loads, print],
    ids=["eval", "exec", "getattr", "__import__", "loads", "print"],
)
def test_a_checkpoint_that_asks_for_pythons_functions_is_refused(tmp_path: Path, function: Any) -> None:
    torch.save({"state_dict": STATE, "extra": Calls(function, "x")}, tmp_path / "c.pth")
    assert "is not a checkpoint of plain tensors (nothing in it was run)" in said(tmp_path / "c.pth")


def test_a_strangers_function_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    module = types.ModuleType("strange_functions")

    def trap(value: str) -> None:
        called.append(value)

    trap.__module__, trap.__qualname__ = module.__name__, "trap"
    module.trap = trap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": STATE, "extra": Calls(trap, "x")}, tmp_path / "c.pth")
    assert state_from_file(tmp_path / "c.pth").keys() == STATE.keys()
    assert called == []


def test_a_tensor_of_a_strangers_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("strange_tensors")
    kind = type("Special", (Tensor,), {"__module__": module.__name__})
    module.Special = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as context:
        context.setitem(sys.modules, module.__name__, module)
        torch.save({"conv1.weight": STATE["conv1.weight"].as_subclass(kind)}, tmp_path / "c.pth")
    said(tmp_path / "c.pth")
