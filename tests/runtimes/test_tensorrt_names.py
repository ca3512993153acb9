"""Every name of TensorRT's API that the code uses exists in every version promised.

The tests cannot count on `tensorrt` being installed. What a version has is in tests/tensorrt_names/<version>.txt, as
scripts/record_tensorrt_names.py recorded it; what the code uses is in its source:

- a chain that starts at the module (`api.BuilderFlag.TF32`) is checked as it stands, class and member;
- an attribute of anything else (`config.set_flag`) is checked as a word, when it is one of the API's words;
- a name that some version lacks must be in FEATURES, and its file must ask for it with `hasattr(x, "name")` or
  `getattr(x, "name", default)`.

Not seen: misspelt words that no version has (mypy's part), names made at run time, and what a call takes and gives.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tensorrt_uses import FEATURES, MODULE_NAMES, ROOT, complaints, records, sources, uses


def test_every_name_used_exists_in_every_version() -> None:
    wrong = [line for path in sources() for line in complaints(path.read_text(), path.relative_to(ROOT))]
    assert not wrong, "\n".join(wrong)


def test_the_builders_are_read_and_reach_the_module_by_a_known_name() -> None:
    trees = [ast.parse(path.read_text()) for path in ROOT.glob("exporter/engines/builders/*.py")]
    assert trees, "no file in exporter/engines/builders"
    found = [use for tree in trees for use in uses(tree)]
    assert {"build_serialized_network", "parse"} <= {use.name for use in found}
    assert {("Builder",), ("OnnxParser",)} <= {use.chain for use in found}, (
        f"the module is reached by a name that is not in {sorted(MODULE_NAMES)}"
    )


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "import tensorrt as trt\nconfig.set_flag(trt.BuilderFlag.FP16)",
            "x.py:2: BuilderFlag.FP16 is not in 11.0.0.114, 11.4.0.106, rtx-1.7.1.116;",
        ),
        ("import tensorrt as nv\nnv.BuilderFlag.FP16", "BuilderFlag.FP16 is not in 11.0"),
        ("from tensorrt import IInt8EntropyCalibrator2", "IInt8EntropyCalibrator2 is not in 11.0"),
        ("self._api.BuilderFlag.INT8", "BuilderFlag.INT8 is not in 11.0"),
        ("getattr(api, 'IRuntimeConfig')", "IRuntimeConfig is not in 10.3.0;"),
        (
            "api.NetworkDefinitionCreationFlag.EXPLICIT_BATCH.value",
            "NetworkDefinitionCreationFlag.EXPLICIT_BATCH is not in 11.0",
        ),
        ("api.BuilderFlags.TF32", "BuilderFlags is not in 10.3.0, 10.13.3.9,"),
        ("api.Builder(log).platform_has_fast_fp16", "platform_has_fast_fp16 is not in 11.0"),
        ("setattr(config, 'int8_calibrator', None)", "int8_calibrator is not in 11.0"),
        ("engine.create_runtime_config()", "create_runtime_config is not in 10.3.0;"),
        ("getattr(engine, 'create_runtime_config')()", "create_runtime_config is not in 10.3.0;"),
        ("if hasattr(api.BuilderFlag, 'BF16'):\n    pass", "x.py:1: BuilderFlag.BF16 is not in 11.0"),
        ("hasattr(api.BuilderFlag, 'HALF')", "BuilderFlag.HALF is not in 10.3.0, 10.13.3.9,"),
        (
            "hasattr(builder, 'build_engine_with_config')",
            "build_engine_with_config is not in 10.3.0, rtx-1.4.0.76, rtx-1.7.1.116;",
        ),
        (
            "hasattr(engine, 'create_runtime_configs')",
            "create_runtime_configs is asked for, but no version recorded has it",
        ),
    ],
)
def test_a_name_that_some_version_lacks_is_caught(source: str, named: str) -> None:
    (complaint,) = complaints(source, Path("x.py"))
    assert named in complaint


@pytest.mark.parametrize(
    "source",
    [
        "if hasattr(engine, 'create_runtime_config'):\n    engine.create_runtime_config()",
        "api.BuilderFlag.TF32.name, api.ILogger.Severity.ERROR, api.Logger.ERROR, api.__version__, api.nptype(kind)",
        "if hasattr(api.BuilderFlag, 'INT8'):\n    config.set_flag(api.BuilderFlag.INT8)",
        "level = getattr(api.HardwareCompatibilityLevel, 'SAME_COMPUTE_CAPABILITY', None)",
        "np.random.default_rng(0).shuffle(manifest.precision)",
        "hashlib.sha256().update(b'')",
    ],
)
def test_what_every_version_has_what_is_asked_for_and_what_is_not_tensorrt_pass(source: str) -> None:
    assert complaints(source, Path("x.py")) == []


def test_a_file_about_one_module_is_held_to_that_module_alone() -> None:
    rtx, tensorrt = (
        "config.set_compute_capability(api.ComputeCapability.SM86, 0)",
        "builder.build_engine_with_config(network, config)",
    )
    assert len(complaints(rtx, Path("tensorrt.py"))) == 3  # the method, the enum, and its member
    assert complaints(rtx, Path("tensorrt_rtx.py")) == []
    assert "is not in rtx-1.4.0.76, rtx-1.7.1.116;" in complaints(tensorrt, Path("tensorrt_rtx.py"))[0]
    assert "is not in 10.3.0;" in complaints(tensorrt, Path("tensorrt.py"))[0]


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_in_the_versions_it_is_said_to_be_in(name: str) -> None:
    having = [record.short for record in records() if name in record.words | record.names]
    assert " ".join(having) == FEATURES[name]
    assert 0 < len(having) < len(records())


def test_the_versions_promised_are_recorded() -> None:
    assert [record.short for record in records()] == ["10.3", "10.13", "10.16", "11.0", "11.4", "rtx-1.4", "rtx-1.7"]


IN_10_ALONE = """ICudaEngine.device_memory_size NetworkDefinitionCreationFlag.EXPLICIT_BATCH BuilderFlag.FP16 BuilderFlag.INT8
    BuilderFlag.OBEY_PRECISION_CONSTRAINTS IInt8EntropyCalibrator2 IBuilderConfig.int8_calibrator QuantizationFlag
    ITensor.dynamic_range ILayer.precision ILayer.set_output_type Builder.platform_has_fast_fp16
    ICudaEngine.create_execution_context_without_device_memory OnnxParser.supports_model IStreamReader"""
SINCE_10_13 = (
    "ICudaEngine.create_runtime_config IRuntimeConfig "
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY IStreamReaderV2"
)
IN_RTX_ALONE = (
    "Runtime.get_engine_validity IExecutionContext.is_stream_capturable "
    "IBuilderConfig.set_compute_capability ComputeCapability.SM86"
)
IN_ALL = """Builder.create_network Builder.build_serialized_network IBuilderConfig.set_memory_pool_limit IBuilderConfig.profiling_verbosity
    IOptimizationProfile.set_shape OnnxParser.parse OnnxParser.get_error OnnxParser.supports_model_v2 BuilderFlag.TF32 BuilderFlag.STRIP_PLAN
    NetworkDefinitionCreationFlag.STRONGLY_TYPED Runtime.deserialize_cuda_engine Runtime.engine_host_code_allowed ICudaEngine.num_io_tensors
    ICudaEngine.get_tensor_profile_shape ICudaEngine.create_engine_inspector IExecutionContext.execute_async_v3 IExecutionContext.set_tensor_address
    IExecutionContext.set_input_shape IExecutionContext.infer_shapes Refitter OnnxParserRefitter ILogger.Severity.VERBOSE Logger nptype"""


@pytest.mark.parametrize(
    ("names", "versions"),
    [
        (IN_10_ALONE, {"10.3", "10.13", "10.16"}),
        (SINCE_10_13, {"10.13", "10.16", "11.0", "11.4"}),
        (IN_RTX_ALONE, set()),
        (IN_ALL, {"10.3", "10.13", "10.16", "11.0", "11.4"}),
    ],
)
def test_the_records_agree_with_what_is_documented_of_tensorrt(names: str, versions: set[str]) -> None:
    for name in names.split():
        assert {
            record.short for record in records() if name in record.names and not record.version.startswith("rtx")
        } == versions, name


def test_the_record_of_the_rtx_that_is_installed_is_what_it_has_with_its_real_libraries() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    record = next((record for record in records() if record.version == f"rtx-{rtx.__version__}"), None)
    assert record, (
        f"no record of TensorRT-RTX {rtx.__version__}; "
        "add it to WHEELS of scripts/record_tensorrt_names.py and run that"
    )
    command = [sys.executable, str(ROOT / "scripts" / "record_tensorrt_names.py"), "--print", "tensorrt_rtx"]
    assert set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()) == record.names
