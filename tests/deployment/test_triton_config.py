"""Every configuration that is written, read with Triton's own schema, and its fields held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from triton_bundles import add_engine, bundle_fixture, parsed

from exporter.deployment.triton.config import LONGEST_DELAY_US, MOST_INSTANCES, MOST_VERSIONS, Serving
from exporter.deployment.triton.models import TritonPlan, triton_models
from exporter.deployment.triton.pbtxt import text_from_fields
from exporter.deployment.triton.repository import write_repository
from runtimes.bundle import Bundle
from runtimes.kernels import KernelCount
from runtimes.manifest import GraphFacts, Manifest
from runtimes.preprocess import Preprocess
from runtimes.specs import BatchRange, TensorSpec

__all__ = ["bundle_fixture"]

Made = Callable[..., Path]
ANY_SIZE = (TensorSpec("input", "uint8", ("batch", "height", "width", 3)),)
COLOUR = Preprocess((32, 30), (28, 28), "bilinear", True, (0.5,) * 3, (0.2,) * 3)
KINDS = {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2}
FP32, UINT8, STRING = 11, 2, 13
"""Numbers of data types in model_config.proto."""


def graph(**types: dict[str, int]) -> GraphFacts:
    return GraphFacts(2, 100, 1000, {"Conv": 2}, types)


def written(bundle: Path, tmp_path: Path, *backends: str, **options: Any) -> Path:
    plan = TritonPlan((Bundle.open(bundle),), backends, **options)
    write_repository(triton_models(plan), tmp_path / "repository", plan.version)
    return tmp_path / "repository"


def both(folder: Path) -> tuple[Any, Any]:
    """A model's two configurations."""
    return parsed(folder / "config.pbtxt"), parsed(folder / "configs" / "ci.pbtxt")


def test_onnxruntime_batches_on_what_the_server_has_in_fp32_without_tf32(bundle: Made, tmp_path: Path) -> None:
    folder = written(bundle(), tmp_path, "onnxruntime") / "tiny-fp32"
    for config in both(folder):
        assert (config.name, config.backend, config.default_model_filename) == (
            "tiny-fp32",
            "onnxruntime",
            "model.onnx",
        )
        assert config.max_batch_size == 4
        (source,), (logits,) = config.input, config.output
        assert (source.name, source.data_type, list(source.dims)) == ("input", FP32, [1, 28, 28])
        assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", FP32, [10])
        assert logits.label_filename == "labels.txt"
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.preferred_batch_size
        assert not config.dynamic_batching.max_queue_delay_microseconds
        assert config.version_policy.latest.num_versions == 1
        assert [(one.batch_size, list(one.inputs["input"].dims)) for one in config.model_warmup] == [
            (1, [1, 28, 28]),
            (4, [1, 28, 28]),
        ]
        assert all(one.inputs["input"].zero_data for one in config.model_warmup)
    config, ci = both(folder)
    assert [one.kind for one in (*config.instance_group, *ci.instance_group)] == [KINDS["KIND_AUTO"], KINDS["KIND_CPU"]]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert not ci.HasField("optimization")
    assert (folder / "labels.txt").read_text().startswith("0: a label\n")
    assert (folder / "1" / "model.onnx").read_text() == "the model of bundle"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"precision": "fp16", "graph": graph(Conv={"FLOAT16": 2})}, "KIND_GPU"),
        ({"precision": "int8", "target": "cpu", "kernels": KernelCount(2, 2, 1, 1)}, "KIND_CPU"),
    ],
)
def test_onnxruntime_runs_fp16_on_a_gpu_and_integers_on_a_processor(
    bundle: Made, tmp_path: Path, fields: dict[str, Any], kind: str
) -> None:
    config, ci = both(written(bundle(**fields), tmp_path, "onnxruntime") / "tiny-fp32")
    assert config.instance_group[0].kind == KINDS[kind]
    assert config.HasField("optimization") == (kind == "KIND_GPU")
    assert ci.instance_group[0].kind == KINDS["KIND_CPU"]


def test_openvino_takes_each_request_as_the_batch_that_it_is(bundle: Made, tmp_path: Path) -> None:
    for config in both(written(bundle(), tmp_path, "openvino") / "tiny-fp32"):
        assert (config.backend, config.max_batch_size, config.default_model_filename) == ("openvino", 0, "model.onnx")
        assert list(config.input[0].dims) == [-1, 1, 28, 28]
        assert list(config.output[0].dims) == [-1, 10]
        assert not config.HasField("dynamic_batching")
        assert config.instance_group[0].kind == KINDS["KIND_CPU"]
        assert [(one.batch_size, list(one.inputs["input"].dims)) for one in config.model_warmup] == [
            (1, [1, 1, 28, 28]),
            (1, [4, 1, 28, 28]),
        ]


def test_a_fixed_batch_is_part_of_the_shapes_and_nothing_is_batched(
    bundle: Made, manifest: Manifest, tmp_path: Path
) -> None:
    inputs = (replace(manifest.inputs[0], shape=(4, 1, 28, 28)),)
    outputs = (replace(manifest.outputs[0], shape=(4, 10)),)
    made = bundle(inputs=inputs, outputs=outputs, batch=BatchRange(4, 4, 4))
    for config in both(written(made, tmp_path, "onnxruntime") / "tiny-fp32"):
        assert config.max_batch_size == 0
        assert (list(config.input[0].dims), list(config.output[0].dims)) == ([4, 1, 28, 28], [4, 10])
        assert not config.HasField("dynamic_batching")
        assert [(one.batch_size, list(one.inputs["input"].dims)) for one in config.model_warmup] == [
            (1, [4, 1, 28, 28])
        ]


def test_features_have_no_labels_and_keep_their_free_sizes(bundle: Made, tmp_path: Path) -> None:
    outputs = (
        TensorSpec("c1", "float32", ("batch", 64, "h1", "w1")),
        TensorSpec("c2", "float32", ("batch", 128, 7, 7)),
    )
    config, _ = both(written(bundle(outputs=outputs), tmp_path) / "tiny-fp32")
    assert [(one.name, list(one.dims), one.label_filename) for one in config.output] == [
        ("c1", [64, -1, -1], ""),
        ("c2", [128, 7, 7], ""),
    ]


def test_without_labels_none_are_named(bundle: Made, tmp_path: Path) -> None:
    folder = written(bundle(labels=False), tmp_path) / "tiny-fp32"
    assert both(folder)[0].output[0].label_filename == ""
    assert not (folder / "labels.txt").exists()


def test_what_is_asked_of_the_server_is_written(bundle: Made, tmp_path: Path) -> None:
    serving = Serving(instances=3, max_delay_us=250, served_versions=2)
    for config in both(written(bundle(), tmp_path, serving=serving) / "tiny-fp32"):
        assert config.instance_group[0].count == 3
        assert config.dynamic_batching.max_queue_delay_microseconds == 250
        assert config.version_policy.latest.num_versions == 2


def test_the_largest_numbers_are_those_that_the_schema_holds(bundle: Made, tmp_path: Path) -> None:
    serving = Serving(MOST_INSTANCES, LONGEST_DELAY_US, MOST_VERSIONS)
    folder = written(bundle(), tmp_path, serving=serving) / "tiny-fp32"
    found = parsed(folder / "config.pbtxt")
    assert found.instance_group[0].count == MOST_INSTANCES
    assert found.version_policy.latest.num_versions == MOST_VERSIONS
    assert found.dynamic_batching.max_queue_delay_microseconds == LONGEST_DELAY_US


# --- engines ---


def test_each_gpu_gets_the_plan_of_its_compute_capability(bundle: Made, tmp_path: Path) -> None:
    made = bundle()
    plans = {target: add_engine(made, target) for target in ("sm87", "sm120")}
    folder = written(made, tmp_path) / "tiny-fp32"
    config, ci = both(folder)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert dict(config.cc_model_filenames) == {"8.7": "sm87.plan", "12.0": "sm120.plan"}
    assert config.instance_group[0].kind == KINDS["KIND_GPU"]
    assert config.optimization.cuda.graphs
    assert (config.max_batch_size, list(config.input[0].dims)) == (4, [1, 28, 28])
    assert ci.instance_group[0].kind == KINDS["KIND_CPU"]
    assert not ci.cc_model_filenames
    for target, plan in plans.items():
        assert (folder / "1" / f"{target}.plan").read_bytes() == plan.read_bytes()
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["sm120.plan", "sm87.plan"]


def test_a_plan_for_all_newer_gpus_is_the_one_without_a_capability(bundle: Made, tmp_path: Path) -> None:
    made = bundle()
    add_engine(made, "sm90")
    add_engine(made, "sm80", hardware_compatible="ampere-plus")
    folder = written(made, tmp_path) / "tiny-fp32"
    assert dict(both(folder)[0].cc_model_filenames) == {"9.0": "sm90.plan"}
    assert sorted(path.name for path in (folder / "1").iterdir()) == ["model.plan", "sm90.plan"]


def test_a_plan_for_dla_runs_on_its_core(bundle: Made, tmp_path: Path) -> None:
    made = bundle()
    add_engine(made, "sm87", dla_core=1)
    (group,) = both(written(made, tmp_path) / "tiny-fp32")[0].instance_group
    (device,) = group.secondary_devices
    assert (group.kind, device.kind, device.device_id) == (KINDS["KIND_GPU"], 0, 1)


def test_no_cuda_graphs_for_pictures_of_any_size(bundle: Made, tmp_path: Path) -> None:
    made = bundle(inputs=ANY_SIZE, preprocess=COLOUR)
    add_engine(made)
    config, _ = both(written(made, tmp_path) / "tiny-fp32")
    assert not config.HasField("optimization")
    assert list(config.input[0].dims) == [-1, -1, 3]
    assert [list(one.inputs["input"].dims) for one in config.model_warmup] == [[512, 512, 3]] * 2


# --- ensembles ---


@pytest.mark.parametrize(("backend", "batched"), [("onnxruntime", True), ("openvino", False)])
def test_an_ensemble_is_a_decoder_and_the_model(bundle: Made, tmp_path: Path, backend: str, batched: bool) -> None:
    made = bundle(inputs=ANY_SIZE, preprocess=COLOUR)
    repository = written(made, tmp_path, backend, ensemble=True, name="cls")
    decoder, ensemble = (parsed(repository / f"cls-{name}" / "config.pbtxt") for name in ("decoder", "ensemble"))
    model, _ = both(repository / "cls")
    assert [one.max_batch_size for one in (decoder, ensemble, model)] == [4 if batched else 0] * 3
    assert (decoder.backend, ensemble.platform, ensemble.backend) == ("python", "ensemble", "")
    for one in (decoder, ensemble):
        assert (one.input[0].name, one.input[0].data_type) == ("picture", STRING)
        assert list(one.input[0].dims) == [1 if batched else -1]
    assert (decoder.output[0].data_type, list(decoder.output[0].dims)) == (UINT8, list(model.input[0].dims))
    assert {key: one.string_value for key, one in decoder.parameters.items()} == {"channels": "3", "resize": "32x30"}
    decode, classify = ensemble.ensemble_scheduling.step
    assert (decode.model_name, classify.model_name) == ("cls-decoder", "cls")
    assert (dict(decode.input_map), dict(decode.output_map)) == ({"picture": "picture"}, {"pixels": "pixels"})
    assert (dict(classify.input_map), dict(classify.output_map)) == ({"input": "pixels"}, {"logits": "logits"})
    assert ensemble.output[0] == model.output[0]
    assert (repository / "cls-ensemble" / "labels.txt").exists()
    assert (repository / "cls-decoder" / "1" / "model.py").read_text().startswith('"""A model of Triton')
    assert [path.name for path in (repository / "cls-ensemble" / "1").iterdir()] == [".keep"]


# --- text ---


def test_any_text_is_quoted_so_that_it_is_read_back(tmp_path: Path) -> None:
    name = 'a "quoted" \\ name,\ttab, line\nand Königin'
    path = tmp_path / "config.pbtxt"
    path.write_text(text_from_fields([("name", name), ("dynamic_batching", ())]), encoding="utf-8")
    assert parsed(path).name == name
