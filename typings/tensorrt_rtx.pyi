# What the code uses of TensorRT-RTX: some of TensorRT's, and its own. Its classes are not TensorRT's, but stand for them where code serves both.

from typing import ClassVar

import tensorrt  # noqa: TID253  # a stub is never run
from tensorrt import IExecutionContext as IExecutionContext  # noqa: TID253  # likewise
from tensorrt import ILogger as ILogger  # noqa: TID253
from tensorrt import NetworkDefinitionCreationFlag as NetworkDefinitionCreationFlag  # noqa: TID253
from tensorrt import OnnxParser as OnnxParser  # noqa: TID253
from tensorrt import ProfilingVerbosity as ProfilingVerbosity  # noqa: TID253
from typing_extensions import Buffer

__version__: str

class ComputeCapability:
    __members__: ClassVar[dict[str, ComputeCapability]]

class CudaGraphStrategy:
    DISABLED: ClassVar[CudaGraphStrategy]
    WHOLE_GRAPH_CAPTURE: ClassVar[CudaGraphStrategy]

class DynamicShapesKernelSpecializationStrategy:
    EAGER: ClassVar[DynamicShapesKernelSpecializationStrategy]
    NONE: ClassVar[DynamicShapesKernelSpecializationStrategy]

class IBuilderConfig(tensorrt.IBuilderConfig):
    num_compute_capabilities: int
    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool: ...

class Builder(tensorrt.Builder):
    def create_builder_config(self) -> IBuilderConfig: ...

class IRuntimeCache:
    def deserialize(self, blob: Buffer) -> bool: ...
    def serialize(self) -> tensorrt.IHostMemory: ...

class IRuntimeConfig:
    cuda_graph_strategy: CudaGraphStrategy
    dynamic_shapes_kernel_specialization_strategy: DynamicShapesKernelSpecializationStrategy
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...

class ICudaEngine(tensorrt.ICudaEngine):
    def create_execution_context(self, runtime_config: IRuntimeConfig = ...) -> IExecutionContext | None: ...
    def create_runtime_config(self) -> IRuntimeConfig: ...
