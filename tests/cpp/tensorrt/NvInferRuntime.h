// The declarations of TensorRT's NvInferRuntime.h that examples/cpp uses, for machines without TensorRT; standin.cpp defines them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

int32_t getInferLibMajorVersion() noexcept;
int32_t getInferLibMinorVersion() noexcept;
int32_t getInferLibPatchVersion() noexcept;

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1 };

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

class ILogger {
  public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, char const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
  public:
    virtual ~IExecutionContext() = default;
    virtual bool setInputShape(char const* name, Dims const& dims) noexcept = 0;
    virtual Dims getTensorShape(char const* name) const noexcept = 0;
    virtual bool setTensorAddress(char const* name, void* data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
  public:
    virtual ~ICudaEngine() = default;
    virtual IExecutionContext* createExecutionContext() noexcept = 0;
    virtual DataType getTensorDataType(char const* name) const noexcept = 0;
};

class IRuntime {
  public:
    virtual ~IRuntime() = default;
    virtual ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept = 0;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
