"""A served model's `config.pbtxt` (Triton's model_config.proto), from the bundle's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.deployment.triton.backends import CPU, ServerBackend
from exporter.deployment.triton.engines import ServedEngine
from exporter.deployment.triton.pbtxt import TRUE, Field, Symbol, text_from_fields
from runtimes.bundle import LABELS, Bundle
from runtimes.errors import PlanError
from runtimes.parity.compare import is_classifier
from runtimes.specs import PICTURE_SIDES, TensorSpec

TRITON_FROM_NUMPY = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float64": "TYPE_FP64",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}
ANY = -1
"""The size of a free dimension."""
MOST_INSTANCES, MOST_VERSIONS = (1 << 31) - 1, (1 << 32) - 1
LONGEST_DELAY_US = ((1 << 63) - 1) // 1000
"""The types of `count`, `num_versions` (int32, uint32), and of the server's nanoseconds."""


@dataclass(frozen=True)
class Serving:
    """How models are served, whichever they are.

    Attributes:
        instances: how many of each run at once, on each GPU or on the CPU.
        max_delay_us: how long a request may wait for others that make a batch with it, in microseconds; None waits for
            none: a batch is what came while the last one ran.
        served_versions: of the versions in the repository, so many of the newest are served.

    Raises:
        PlanError: one is out of range.
    """

    instances: int = 1
    max_delay_us: int | None = None
    served_versions: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= MOST_INSTANCES:
            raise PlanError(f"expected 1 to {MOST_INSTANCES} instances, got {self.instances}")
        if not 1 <= self.served_versions <= MOST_VERSIONS:
            raise PlanError(f"expected 1 to {MOST_VERSIONS} versions to serve, got {self.served_versions}")
        if self.max_delay_us is not None and not 1 <= self.max_delay_us <= LONGEST_DELAY_US:
            raise PlanError(
                f"expected a delay of 1 to {LONGEST_DELAY_US} us, got {self.max_delay_us}; leave it out to wait for "
                "none"
            )


def batches_freely(bundle: Bundle, backend: ServerBackend) -> bool:
    """Does the server put requests for this bundle together into batches?"""
    return backend.batches and isinstance(bundle.manifest.inputs[0].shape[0], str)


def config_text(
    name: str, bundle: Bundle, backend: ServerBackend, engines: Sequence[ServedEngine], serving: Serving
) -> str:
    """The configuration for the server that the bundle is for."""
    kind = backend.kind(bundle.manifest)
    of_backend = [*_plan_files(engines), *_parameters(bundle, backend, kind)]
    fields = _fields(name, bundle, backend, serving)
    return text_from_fields([*fields, _instances(kind, serving, engines), *of_backend])


def ci_config_text(name: str, bundle: Bundle, backend: ServerBackend, serving: Serving) -> str:
    """The same for a server without a GPU, which `--model-config-name=ci` asks for."""
    return text_from_fields([*_fields(name, bundle, backend, serving), _instances(CPU, serving, ())])


def model_file(backend: ServerBackend) -> str:
    """The file that the server loads where no plan is meant."""
    return "model.plan" if backend.name == "tensorrt" else "model.onnx"


def output_fields(bundle: Bundle, *, batching: bool) -> list[Field]:
    """The outputs, the classifier's with its labels."""
    has_labels = bundle.labels is not None and is_classifier(spec.name for spec in bundle.manifest.outputs)
    label: tuple[Field, ...] = (("label_filename", LABELS),) if has_labels else ()
    return [("output", (*_tensor(spec, batching=batching), *label)) for spec in bundle.manifest.outputs]


def version_policy(serving: Serving) -> Field:
    """Serve the newest versions."""
    return ("version_policy", (("latest", (("num_versions", serving.served_versions),)),))


def dims_of(spec: TensorSpec, *, batching: bool) -> list[int]:
    """A tensor's dimensions as Triton has them: without the batch where the server makes it."""
    sizes = spec.shape[1:] if batching else spec.shape
    return [ANY if isinstance(size, str) else size for size in sizes]


def _fields(name: str, bundle: Bundle, backend: ServerBackend, serving: Serving) -> list[Field]:
    """What both configurations of a model say."""
    manifest, batching = bundle.manifest, batches_freely(bundle, backend)
    fields: list[Field] = [
        ("name", name),
        ("backend", backend.name),
        ("default_model_filename", model_file(backend)),
        ("max_batch_size", manifest.batch.max if batching else 0),
        *(("input", _tensor(spec, batching=batching)) for spec in manifest.inputs),
        *output_fields(bundle, batching=batching),
        version_policy(serving),
    ]
    if batching:
        delay = serving.max_delay_us
        fields.append(("dynamic_batching", () if delay is None else (("max_queue_delay_microseconds", delay),)))
    return [*fields, *_warm_up(bundle, batching=batching)]


def _tensor(spec: TensorSpec, *, batching: bool) -> tuple[Field, ...]:
    return (
        ("name", spec.name),
        ("data_type", Symbol(TRITON_FROM_NUMPY[spec.dtype])),
        ("dims", dims_of(spec, batching=batching)),
    )


def _instances(kind: str, serving: Serving, engines: Sequence[ServedEngine]) -> Field:
    fields: list[Field] = [("count", serving.instances), ("kind", Symbol(kind))]
    for core in sorted({int(engine.facts.options["dla_core"]) for engine in engines if _runs_on_dla(engine)}):
        fields.append(("secondary_devices", (("kind", Symbol("KIND_NVDLA")), ("device_id", core))))
    return ("instance_group", tuple(fields))


def _runs_on_dla(engine: ServedEngine) -> bool:
    return "dla_core" in engine.facts.options


def _plan_files(engines: Sequence[ServedEngine]) -> list[Field]:
    """Which plan a GPU gets, by its compute capability."""
    return [
        ("cc_model_filenames", (("key", engine.capability), ("value", engine.file)))
        for engine in engines
        if engine.capability
    ]


def _parameters(bundle: Bundle, backend: ServerBackend, kind: str) -> list[Field]:
    """A plan's CUDA graphs, for the batch sizes 1 and the largest, as the backend has it; not for free sizes, of which
    each would need one. ONNX Runtime's FP32 stays FP32: TF32, its default on a GPU, keeps ten bits of mantissa."""
    if backend.name == "tensorrt":
        sizes = (size for spec in bundle.manifest.inputs for size in spec.shape[1:])
        free = any(isinstance(size, str) for size in sizes)
        return [] if free else [("optimization", (("cuda", (("graphs", TRUE),)),))]
    if backend.name == "onnxruntime" and kind != CPU:
        cuda = (("name", "cuda"), ("parameters", (("key", "use_tf32"), ("value", "0"))))
        return [("optimization", (("execution_accelerators", (("gpu_execution_accelerator", cuda),)),))]
    return []


def _warm_up(bundle: Bundle, *, batching: bool) -> list[Field]:
    """The smallest batch and the largest, of zeros: the model is ready once it has answered them."""
    manifest = bundle.manifest
    found: list[Field] = []
    for size in sorted({manifest.batch.min, manifest.batch.max}):
        inputs = [
            ("inputs", (("key", spec.name), ("value", _zeros(spec, size, batching=batching))))
            for spec in manifest.inputs
        ]
        found.append(("model_warmup", (("name", f"batch of {size}"), ("batch_size", size if batching else 1), *inputs)))
    return found


def _zeros(spec: TensorSpec, size: int, *, batching: bool) -> tuple[Field, ...]:
    """Of a free batch, `size` images; of free sides, those that engines are tuned for."""
    dims = [PICTURE_SIDES[1] if one == ANY else one for one in dims_of(spec, batching=True)]
    whole = dims if batching else [size, *dims]
    return (("data_type", Symbol(TRITON_FROM_NUMPY[spec.dtype])), ("dims", whole), ("zero_data", TRUE))
