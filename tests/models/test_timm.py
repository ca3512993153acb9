"""timm's ResNet relatives: names, preprocessing and weights are timm's; the export is as for the others."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import pytest
import timm
import torch
from commands import run_main
from safetensors.torch import save_file

from calibration.collect import collect
from calibration.data import built_in, inputs_from_source
from calibration.observers.mse import mse
from exporter import ExportPlan
from exporter.cli import deploy as deploy_cli
from exporter.engines.builders import BuildOptions, Job, tensorrt_rtx
from exporter.engines.layers import check_precision, layer_facts
from exporter.graph.facts import tensor_specs
from exporter.graph.simplify import simplify
from exporter.graph.trace import onnx_from_program, program_from_module, save_program
from exporter.lowering.bias_correction import classifier_correction, subtract_from_biases
from exporter.lowering.precisions import int8
from exporter.lowering.qdq.lint import lint
from exporter.lowering.qdq.targets import left_in_float, tensorrt
from exporter.lowering.qdq.targets.tensorrt import place_pairs
from exporter.lowering.registry import load_precision
from exporter.lowering.repairs import Bench
from exporter.models.loading import load_model
from exporter.models.registry import find_model
from exporter.models.sources import timm as source
from exporter.pipeline.images import Candidate, Graphs, Images
from exporter.pipeline.proof_images import ProofImages
from exporter.pipeline.prove import prove
from runtimes import BatchRange
from runtimes.errors import BadInput, UnknownName, WeightsUnavailable
from runtimes.preprocess import Preprocess

BATCH = BatchRange(1, 2, 4)
TARGETS = ("sm86", "sm120")
QUICK = ("timm:seresnet18", "timm:resnetv2_18")
SLOW = (
    "timm:resnet50d",
    "timm:resnetaa50",
    "timm:seresnet50",
    "timm:ecaresnet50t",
    "timm:resnetv2_50",
    "timm:resnetrs50",
    "timm:res2net50_26w_4s",
    "timm:resnest50d",
    "timm:hrnet_w18",
    "timm:pvt_v2_b0",
)
SMALLER = {"timm:seresnet18": (96, 96), "timm:resnetv2_18": (96, 96)}
GATES = {
    "timm:seresnet18": 16,
    "timm:seresnet50": 32,
    "timm:ecaresnet50t": 16,
    "timm:resnetrs50": 32,
    "timm:resnest50d": 32,
}
"""Convolutions that look at one pooled pixel."""


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_model_is_in_budget_and_tensorrt_builds_it(name: str, tmp_path: Path) -> None:
    plan = ExportPlan(name, tmp_path / "unused", weights="random", batch=BATCH, image_size=SMALLER.get(name))
    loaded = load_model(plan.model_request)
    images = ProofImages(Images(inputs_from_source(built_in("test"), loaded.preprocess, 8), None), 8)
    program = program_from_module(loaded.module, loaded.preprocess.shape)
    graph = simplify(onnx_from_program(program, opset=20, batch=BATCH), images.first.inputs[:2])
    save_program(program, tmp_path / "reference.pt2")
    batches = np.split(inputs_from_source(built_in("train"), loaded.preprocess, 8), 2)
    for name_of_precision in ("fp16", "int8"):
        precision: Any = load_precision(name_of_precision)
        lowered = with_pairs(graph, batches) if name_of_precision == "int8" else precision.lower(graph, {})
        onnx.checker.check_model(lowered, full_check=True)
        onnx.save(lowered, tmp_path / "model.onnx")
        graphs = Graphs(graph, precision.simulation(lowered))
        candidate = Candidate(tmp_path, graphs, BATCH, precision.runs_on(lowered))
        assert prove(candidate, images, budget=precision.BUDGET.errors_alone()).report.ok
        job = Job(
            (tmp_path / "model.onnx").read_bytes(),
            name_of_precision,
            tensor_specs(lowered.graph.input),
            BATCH,
            BuildOptions(targets=TARGETS),
        )
        built, layers = tensorrt_rtx.build(job, lambda step, done=0, total=0: None)
        facts = layer_facts(layers, built.convolutions, name_of_precision, built.left_in_float)
        check_precision(facts, name_of_precision)
        assert built.left_in_float == (
            set(left_in_float(tensorrt, graph.graph)) if name_of_precision == "int8" else set()
        )
    check_what_is_left_in_float(lowered, GATES.get(name, 0))


def with_pairs(graph: onnx.ModelProto, batches: list[Any]) -> onnx.ModelProto:
    """The graph in INT8, with its thresholds and its bias correction measured on the images."""
    thresholds = {
        name: mse(histogram) for name, histogram in collect(graph, int8.observed_tensors(graph), batches).items()
    }
    bench = Bench.of(graph, "tensorrt", np.concatenate(batches))
    correction = classifier_correction(graph, bench.error(graph, thresholds))
    return int8.lower(subtract_from_biases(graph, correction), thresholds)


def check_what_is_left_in_float(lowered: onnx.ModelProto, gates: int) -> None:
    """The gates' convolutions are, each is said to be, and nothing else is found wanting."""
    report = lint(lowered)
    assert report is not None
    assert {finding.kind for finding in report.findings} <= {"left in float"}
    quantized, convolutions = report.convolutions
    assert convolutions - quantized == gates
    assert len([finding for finding in report.findings if "pooled pixel" in finding.message]) == gates
    said = {finding.node for finding in report.findings}
    assert {node.name for node in lowered.graph.node if node.op_type == "Conv"} - said == set(
        place_pairs(lowered).weights
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet50d", Preprocess(256, (224, 224), "bicubic", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("timm:resnetv2_50.a1h_in1k", Preprocess(235, (224, 224), "bicubic", True, (0.5,) * 3, (0.5,) * 3)),
        (
            "timm:ecaresnet26t",
            Preprocess(292, (256, 256), "bicubic", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        ("timm:hrnet_w18", Preprocess(235, (224, 224), "bilinear", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ],
)
def test_the_preprocessing_is_timms_own(name: str, expected: Preprocess) -> None:
    assert source.preprocess(find_model(name)) == expected
    config = timm.get_pretrained_cfg(name.removeprefix("timm:")).to_dict()
    steps = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config))
    picture = built_in("test").image(0).convert("RGB").resize((300, 400))
    np.testing.assert_allclose(expected(picture), steps(picture).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet50dd", r"unknown timm model 'resnet50dd'; did you mean .*resnet50d\b"),
        ("timm:resnet50.a1_in2k", r"unknown timm model 'resnet50.a1_in2k'; did you mean .*resnet50.a1_in1k"),
        ("timm:qqqq", r"unknown timm model 'qqqq'; choose from \S+, \S+, \S+$"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_names(name: str, message: str, run: Any) -> None:
    with pytest.raises(UnknownName, match=message):
        load_model(ExportPlan(name, Path("unused"), weights="random").model_request)
    ran = run(name, "--weights", "random", "--output", "out")
    assert ran.code == 2
    assert len(ran.error.strip().splitlines()) == 1


def test_a_checkpoint_brings_its_own_numbers_of_classes_and_channels(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=7, in_chans=1).eval()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "own.pth"
    )
    loaded = load_model(
        ExportPlan("timm:resnet10t", tmp_path / "unused", weights=str(tmp_path / "own.pth")).model_request
    )
    assert (loaded.facts.classes, loaded.preprocess.shape) == (7, (1, 176, 176))
    example = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.module(example), network(example))


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        BadInput, match=r"other.pth does not fit timm:resnet14t: .*is it a checkpoint of another architecture\?"
    ):
        load_model(ExportPlan("timm:resnet14t", tmp_path / "unused", weights=str(tmp_path / "other.pth")).model_request)


def test_default_weights_are_read_from_the_cache_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("resnet10t").eval()
    snapshot = tmp_path / "models--timm--resnet10t.c3_in1k" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0", encoding="utf-8")
    save_file(network.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_model(ExportPlan("timm:resnet10t.c3_in1k", tmp_path / "unused").model_request)
    assert loaded.labels is not None
    assert (len(loaded.labels), loaded.labels[0]) == (1000, "tench, Tinca tinca")
    assert loaded.facts.weights.kind == "default"
    example = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.module(example), network(example))


def test_a_damaged_file_of_the_cache_is_removed_to_be_downloaded_again(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"the weights").hexdigest()
    blob, name = tmp_path / "blobs" / digest, tmp_path / "snapshots" / "0" / "model.safetensors"
    for path in (blob, name):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"the weights")
    name.symlink_to(blob)
    assert source._is_whole(name)
    blob.write_bytes(b"the weight")
    assert not source._is_whole(name)
    assert not blob.exists()
    (tmp_path / "config.json").write_text("{}")  # small files are not called by their sha256
    assert source._is_whole(tmp_path / "config.json")


def test_without_a_network_default_weights_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    def nowhere(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    ran = run("timm:resnet10t", "--output", "out")
    assert time.perf_counter() - start < 10
    assert (ran.code, len(ran.error.strip().splitlines())) == (3, 1)
    assert "--weights random" in ran.error
    with pytest.raises(WeightsUnavailable, match=r"no weights of timm:seresnet18; give --weights random or FILE"):
        source.pretrained(find_model("timm:seresnet18"))


def test_random_weights_leave_no_branch_at_zero() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in ("timm:resnetv2_18", "timm:resnet10t"):
            network = source.create(find_model(name), 10, 3)
            weights = [
                layer.weight for layer in network.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d)
            ]
            assert all(torch.count_nonzero(weight) for weight in weights)


def test_without_timm_the_command_says_how_to_get_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "exporter.models.sources.timm")
    monkeypatch.setitem(sys.modules, "timm", None)
    ran = run("timm:resnet50d", "--weights", "random", "--output", "out")
    assert ran.code == 3
    assert "needs the package 'timm', which is not installed; pip install 'resnet-export[timm]'" in ran.error


def test_the_command_says_which_convolutions_stay_in_fp16_and_inspect_says_so_block_by_block(
    run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run("timm:seresnet18", "--int8", "--weights", "random", "--image-size", 64, "--output", "out")
    assert ran.code == 0
    said = " ".join(ran.err.split())  # a terminal's width breaks lines
    assert (
        "left out: 16 of 36 convolutions stay in float, layer1.0.se.fc1 the first: its input is one pooled pixel"
        in said
    )
    assert json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["versions"]["timm"] == timm.__version__
    shown = run_main(deploy_cli.main, ["inspect", "out/model.onnx"], capsys, monkeypatch)
    assert "20 of 36 convolutions, 0 of 8 residual shortcuts; TensorRT takes this graph" in shown.out
    assert "left in float: layer1.0.se.fc1: its input is one pooled pixel" in shown.out
    assert "layer1.0.add: it follows 'layer1.0.se.mul' (Mul): there is no convolution to take it in" in shown.out
    assert "not as it should be" not in shown.out
