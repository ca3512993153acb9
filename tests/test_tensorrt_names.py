"""Every name of TensorRT's API that the code uses exists in every version promised, as recorded by scripts/record_tensorrt_names.py.

The tests cannot count on `tensorrt` being installed. What a version has is in tests/tensorrt_names/<version>.txt, what the code uses in its source:

- a chain that starts at the module (`api.BuilderFlag.TF32`) is checked as it stands, class and member;
- an attribute of anything else (`config.set_flag`) is checked as a word, when it is one of the API's words;
- a name that some version lacks must be in FEATURES, and its file must ask for it with `hasattr(x, "name")` or `getattr(x, "name", default)`.

Not seen: misspelt words that no version has (mypy's part), names made at run time, and what a call takes and gives.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "tests" / "tensorrt_names"
SOURCES = ("exporter/engines/builders/*.py", "runtimes/nvidia/*.py", "runtimes/backends/tensorrt*.py")
MODULE_NAMES = {"trt", "api", "API", "_trt", "_api", "tensorrt", "tensorrt_rtx"}

# Names that some version lacks, with their class where another has the same word -> the versions that have them (checked below).
FEATURES: dict[str, str] = {
    "BuilderFlag.EDITABLE_TIMING_CACHE": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "BuilderFlag.FP16": "10.3 10.13 10.16 rtx-1.4",
    "BuilderFlag.INT8": "10.3 10.13 10.16 rtx-1.4",
    "ADJUST_FOR_DLA": "10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "IRuntimeConfig": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "REPORT_CAPABILITY_DLA": "10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "SAME_COMPUTE_CAPABILITY": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "create_runtime_cache": "rtx-1.4 rtx-1.7",
    "create_runtime_config": "10.13 10.16 11.0 11.4 rtx-1.4 rtx-1.7",
    "cuda_graph_strategy": "rtx-1.4 rtx-1.7",
    "get_engine_validity": "rtx-1.4 rtx-1.7",
    "is_stream_capturable": "rtx-1.4 rtx-1.7",
    "num_compute_capabilities": "rtx-1.4 rtx-1.7",
    "set_compute_capability": "rtx-1.4 rtx-1.7",
    "set_runtime_cache": "rtx-1.4 rtx-1.7",
}
# The API's words that mean something else here; chains from the module are checked all the same.
OTHERS = {"allocate", "mask", "precision", "query", "seek", "strides", "update", "write"}


@dataclass(frozen=True)
class Record:
    """What one version has: `Class`, `Class.member`."""

    version: str
    names: frozenset[str]

    @property
    def short(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @cached_property
    def words(self) -> frozenset[str]:
        """The last part of each name."""
        return frozenset(name.rpartition(".")[2] for name in self.names)


@dataclass(frozen=True, order=True)
class Use:
    """One place in the code that needs a name: a word, or a chain from the module."""

    line: int
    name: str
    chain: tuple[str, ...] = ()


@cache
def records() -> tuple[Record, ...]:
    def version(path: Path) -> tuple[bool, list[int]]:
        return path.stem.startswith("rtx"), [int(part) for part in path.stem.removeprefix("rtx-").split(".")]

    return tuple(
        Record(path.stem, frozenset(line for line in path.read_text().splitlines() if not line.startswith("#")))
        for path in sorted(RECORDS.glob("*.txt"), key=version)
    )


def faced_by(path: Path) -> tuple[Record, ...]:
    """A file named after one of the two modules meets that one alone; any other meets both."""
    if path.name not in {"tensorrt.py", "tensorrt_rtx.py"}:
        return records()
    return tuple(record for record in records() if record.version.startswith("rtx") == (path.name == "tensorrt_rtx.py"))


def chain_of(node: ast.expr, modules: set[str]) -> tuple[str, ...] | None:
    """`api.A.B` and `self._api.A.B` -> (A, B), the module itself -> (), anything else -> None."""
    if isinstance(node, ast.Name):
        return () if node.id in modules else None
    if not isinstance(node, ast.Attribute):
        return None
    before = chain_of(node.value, modules)
    if before is not None:
        return (*before, node.attr)
    return () if node.attr in modules else None


def modules_of(tree: ast.AST) -> set[str]:
    """The names by which a file reaches the module."""
    imported = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return MODULE_NAMES | {alias.asname for alias in imported if alias.asname and alias.name in MODULE_NAMES}


def use_of(owner: ast.expr, name: str, modules: set[str]) -> Use:
    before = chain_of(owner, modules)
    return Use(owner.lineno, name, () if before is None else (*before, name))


def asked_for(tree: ast.AST) -> Iterator[Use]:
    """The feature tests: `hasattr(x, "name")` and `getattr(x, "name", default)`."""
    modules = modules_of(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="hasattr"), args=[owner, ast.Constant(value=str(name))]):
                yield use_of(owner, name, modules)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name)), _]):
                yield use_of(owner, name, modules)


def uses(tree: ast.AST) -> Iterator[Use]:
    """What the code needs without asking: attributes, `getattr` and `setattr` by name, and names imported."""
    modules = modules_of(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name):
                yield use_of(owner, name, modules)
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
                yield use_of(owner, name, modules)
            case ast.Call(func=ast.Name(id="setattr"), args=[owner, ast.Constant(value=str(name)), _]):
                yield use_of(owner, name, modules)
            case ast.ImportFrom(module="tensorrt" | "tensorrt_rtx", names=names):
                yield from (Use(node.lineno, alias.name, (alias.name,)) for alias in names)


def lacking(use: Use, faced: Sequence[Record]) -> list[str]:
    """The versions that have not what `use` needs; none where it is no name of the API, as what is below an enum's member."""
    if use.name.startswith("_"):
        return []
    if use.chain and (len(use.chain) == 1 or is_owner(".".join(use.chain[:-1]))):
        return [record.version for record in faced if ".".join(use.chain) not in record.names]
    if use.name in OTHERS or not is_word(use.name):
        return []
    return [record.version for record in faced if use.name not in record.words]


def is_owner(name: str) -> bool:
    """Whether some version has members of `name`."""
    return any(other.startswith(f"{name}.") for record in records() for other in record.names)


def is_word(name: str) -> bool:
    return any(name in record.words for record in records())


def complaints(source: str, path: Path) -> list[str]:
    """What is wrong with the names in one file, a line each."""
    tree = ast.parse(source)
    asked = {*asked_for(tree)}
    wrong = []
    for use in sorted({*uses(tree)} | asked):
        name = ".".join(use.chain) or use.name
        missing = lacking(use, faced_by(path))
        listed = use.name in FEATURES or name in FEATURES
        if missing and not (listed and use.name in {other.name for other in asked}):
            wrong.append(f"{path}:{use.line}: {name} is not in {', '.join(missing)}; ask with hasattr or getattr first, and list it in FEATURES")
        elif use in asked and not use.chain and not is_word(use.name) and use.name not in OTHERS and not use.name.startswith("_"):
            wrong.append(f"{path}:{use.line}: {name} is asked for, but no version recorded has it; correct it, or list it in OTHERS")
    return wrong


def sources() -> list[Path]:
    return [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]


def test_every_name_used_exists_in_every_version() -> None:
    wrong = [line for path in sources() for line in complaints(path.read_text(), path.relative_to(ROOT))]
    assert not wrong, "\n".join(wrong)


def test_the_builders_are_read_and_reach_the_module_by_a_known_name() -> None:
    trees = [ast.parse(path.read_text()) for path in ROOT.glob("exporter/engines/builders/*.py")]
    assert trees, "no file in exporter/engines/builders"
    found = [use for tree in trees for use in uses(tree)]
    assert {"build_serialized_network", "parse"} <= {use.name for use in found}
    assert {("Builder",), ("OnnxParser",)} <= {use.chain for use in found}, f"the module is reached by a name that is not in {sorted(MODULE_NAMES)}"


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
        ("api.NetworkDefinitionCreationFlag.EXPLICIT_BATCH.value", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH is not in 11.0"),
        ("api.BuilderFlags.TF32", "BuilderFlags is not in 10.3.0, 10.13.3.9,"),
        ("api.Builder(log).platform_has_fast_fp16", "platform_has_fast_fp16 is not in 11.0"),
        ("setattr(config, 'int8_calibrator', None)", "int8_calibrator is not in 11.0"),
        ("engine.create_runtime_config()", "create_runtime_config is not in 10.3.0;"),
        ("getattr(engine, 'create_runtime_config')()", "create_runtime_config is not in 10.3.0;"),
        ("if hasattr(api.BuilderFlag, 'BF16'):\n    pass", "x.py:1: BuilderFlag.BF16 is not in 11.0"),
        ("hasattr(api.BuilderFlag, 'HALF')", "BuilderFlag.HALF is not in 10.3.0, 10.13.3.9,"),
        ("hasattr(builder, 'build_engine_with_config')", "build_engine_with_config is not in 10.3.0, rtx-1.4.0.76, rtx-1.7.1.116;"),
        ("hasattr(engine, 'create_runtime_configs')", "create_runtime_configs is asked for, but no version recorded has it"),
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
    rtx, tensorrt = "config.set_compute_capability(api.ComputeCapability.SM86, 0)", "builder.build_engine_with_config(network, config)"
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
SINCE_10_13 = "ICudaEngine.create_runtime_config IRuntimeConfig HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY IStreamReaderV2"
IN_RTX_ALONE = "Runtime.get_engine_validity IExecutionContext.is_stream_capturable IBuilderConfig.set_compute_capability ComputeCapability.SM86"
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
        assert {record.short for record in records() if name in record.names and not record.version.startswith("rtx")} == versions, name


def test_the_record_of_the_rtx_that_is_installed_is_what_it_has_with_its_real_libraries() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    record = next((record for record in records() if record.version == f"rtx-{rtx.__version__}"), None)
    assert record, f"no record of TensorRT-RTX {rtx.__version__}; add it to WHEELS of scripts/record_tensorrt_names.py and run that"
    command = [sys.executable, str(ROOT / "scripts" / "record_tensorrt_names.py"), "--print", "tensorrt_rtx"]
    assert set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()) == record.names
