"""The worked examples of docs/extending.md: each is taken out of the page, put into its folder, and used."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxsim
import pytest
import torch

import calibration.observers as observers
import runtimes.backends as backends
from calibration.histogram import Histogram
from exporter.lowering import precisions
from exporter.lowering.qdq import targets
from exporter.lowering.registry import load_precision, precision_names, target_names
from exporter.models import registry, sources
from exporter.models.find_network import Checkpoint
from exporter.models.spec import ModelSpec
from exporter.pipeline.export import export
from exporter.pipeline.plan import ExportPlan
from runtimes import open_runtime
from runtimes._open import backend_class
from runtimes.errors import BackendUnavailable, WeightsUnavailable

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()
EXAMPLES = dict(re.findall(r'^```python title="([\w/]+\.py)"\n(.*?)^```', PAGE, re.DOTALL | re.MULTILINE))
HOMES = {"/".join(one.__name__.split(".")): one for one in (backends, precisions, targets, observers, sources)}

PutIn = Callable[[ModuleType], None]


@pytest.fixture
def put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PutIn]:
    """Puts a package's example beside the plug-ins it has, for the length of a test."""
    added: list[tuple[ModuleType, str]] = []

    def put(package: ModuleType) -> None:
        (path,) = [Path(name) for name in EXAMPLES if HOMES[str(Path(name).parent)] is package]
        assert package.__file__ is not None
        folder = tmp_path / path.parent.name
        folder.mkdir()
        for file in Path(package.__file__).parent.glob("*.py"):
            (folder / file.name).symlink_to(file)
        (folder / path.name).write_text(EXAMPLES[str(path)])
        monkeypatch.setattr(package, "__file__", str(folder / "__init__.py"))
        monkeypatch.setattr(package, "__path__", [str(folder)])
        importlib.invalidate_caches()
        added.append((package, path.stem))

    yield put
    for package, name in added:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


def test_each_kind_of_plug_in_has_one_example() -> None:
    assert sorted(str(Path(name).parent) for name in EXAMPLES) == sorted(HOMES)


def test_a_backend_is_one_file(put_in: PutIn, tiny_model: Path) -> None:
    put_in(backends)
    path = tiny_model / "model.onnx"
    images = np.random.default_rng(0).normal(size=(3, 1, 28, 28)).astype(np.float32)
    with open_runtime(path, "onnx-reference") as model, open_runtime(path, "onnxruntime") as other:
        assert (model.inputs, model.outputs) == (other.inputs, other.outputs)
        np.testing.assert_allclose(
            model.run({"input": images})["logits"], other.run({"input": images})["logits"], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(BackendUnavailable, match="no provider 'cuda'"):
        backend_class("onnx-reference").open(path, provider="cuda")


@pytest.fixture(scope="module")
def clean(tiny_model: Path) -> onnx.ModelProto:
    """The small network, batch norms folded: float32 (batch, 1, 28, 28)."""
    model, _ = onnxsim.simplify(onnx.load(tiny_model / "model.onnx"))
    assert isinstance(model, onnx.ModelProto)
    return model


def test_a_precision_is_one_file(put_in: PutIn, clean: onnx.ModelProto, tmp_path: Path) -> None:
    put_in(precisions)
    assert "w16" in precision_names()
    w16 = load_precision("w16")
    assert w16.observed_tensors(clean) == ()
    images = np.random.default_rng(1).normal(size=(8, 1, 28, 28)).astype(np.float32)
    logits = []
    for name, model in (("fp32", clean), ("w16", w16.lower(clean, {}))):
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, tmp_path / f"{name}.onnx")
        with open_runtime(tmp_path / f"{name}.onnx", "onnxruntime") as runtime:
            logits.append(runtime.run({"input": images})["logits"])
    error = np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max()
    assert w16.BUDGET.max_relative_error is not None
    assert 0 < error <= w16.BUDGET.max_relative_error
    assert (tmp_path / "w16.onnx").stat().st_size < 0.7 * (tmp_path / "fp32.onnx").stat().st_size


def test_a_target_is_one_file(put_in: PutIn, clean: onnx.ModelProto) -> None:
    put_in(targets)
    target = importlib.import_module("exporter.lowering.qdq.targets.convolutions_only")
    placement = target.place_pairs(clean)
    convolutions = {node.name for node in clean.graph.node if node.op_type == "Conv"}
    assert {edge.node for edge in placement.edges} == set(placement.weights) == convolutions
    assert target.places_left_in_float(clean.graph) == {}


def test_an_export_places_its_pairs_for_the_target_that_is_named(put_in: PutIn, tmp_path: Path) -> None:
    put_in(targets)
    pairs = {}
    for target in target_names():
        plan = ExportPlan("resnet20", tmp_path / target, "int8", weights="random", target=target)
        model = onnx.load(export(plan).folder / "model.onnx")
        pairs[target] = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert pairs["convolutions-only"] < pairs["tensorrt"]  # which quantizes the additions' shortcuts, too


def test_an_observer_is_one_file(put_in: PutIn) -> None:
    put_in(observers)
    assert "four-sigma" in observers.observers()
    histogram = Histogram()
    histogram.update(np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32), "values")
    assert observers.find_observer("four-sigma")(histogram) == pytest.approx(4.0, rel=0.01)


def test_a_model_source_is_one_file_and_a_row(put_in: PutIn, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(sources)
    (row,) = re.findall(r"^MODELS\[.*$", PAGE, re.MULTILINE)
    models = dict(registry.MODELS)
    exec(row, {"MODELS": models, "ModelSpec": ModelSpec})
    monkeypatch.setattr(registry, "MODELS", models)
    spec = registry.find_model("resnet50_dilated")
    source = registry.load_source(spec)
    with torch.device("meta"):
        module = source.create(spec, 7, 3)
        assert module.get_submodule("layer4")(torch.empty(1, 1024, 28, 28)).shape == (1, 2048, 28, 28)
    with pytest.raises(WeightsUnavailable, match="resnet50_dilated has no default weights"):
        source.pretrained(spec)
    state = source.create(spec, 7, 3).state_dict()
    loaded = source.load(spec, Checkpoint(state, "a checkpoint")).module
    assert source.preprocess(spec).channels == 3
    assert torch.equal(loaded.state_dict()["fc.weight"], state["fc.weight"])
