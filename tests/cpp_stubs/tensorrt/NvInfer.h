// Our own stub of what examples/cpp uses of TensorRT: NVIDIA's header is in no package that the tests install. Names and
// signatures are those of NvInferRuntime.h of 10.3 to 11.1. It "runs" engines whose answer is their input's first values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include <cuda_runtime_api.h>

inline int stub_number(char const* name, int otherwise) {
    char const* text = std::getenv(name);
    return text == nullptr ? otherwise : std::atoi(text);
}

inline int32_t getInferLibMajorVersion() noexcept { return stub_number("STUB_MAJOR", 10); }
inline int32_t getInferLibMinorVersion() noexcept { return 3; }
inline int32_t getInferLibPatchVersion() noexcept { return 0; }
inline int32_t getInferLibBuildVersion() noexcept { return 30; }

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5 };

struct Dims {
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, char const* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
public:
    virtual ~IExecutionContext() noexcept = default;
    bool setInputShape(char const* name, Dims const& dims) noexcept {
        input_ = name;
        elements_ = 1;
        for (int32_t i = 0; i < dims.nbDims; ++i) {
            elements_ *= dims.d[i];
        }
        return dims.d[0] <= 8;
    }
    bool setTensorAddress(char const* name, void* data) noexcept {
        addresses_[name] = data;
        return std::strlen(name) > 0;
    }
    bool enqueueV3(cudaStream_t) noexcept {
        for (auto const& [name, data] : addresses_) {
            if (name != input_) {
                std::memcpy(data, addresses_[input_], 10 * sizeof(float));
            }
        }
        return elements_ >= 10;
    }

private:
    std::string input_;
    int64_t elements_ = 0;
    std::map<std::string, void*> addresses_;
};

class ICudaEngine {
public:
    virtual ~ICudaEngine() noexcept = default;
    IExecutionContext* createExecutionContext() noexcept { return new IExecutionContext; }
    DataType getTensorDataType(char const*) const noexcept { return DataType::kFLOAT; }
};

class IRuntime {
public:
    virtual ~IRuntime() noexcept = default;
    void setDLACore(int32_t) noexcept {}
    void setEngineHostCodeAllowed(bool) noexcept {}
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
        return size > 4 && std::memcmp(blob, "ftrt", 4) == 0 ? new ICudaEngine : nullptr;
    }
};

inline IRuntime* createInferRuntime(ILogger& logger) noexcept {
    logger.log(ILogger::Severity::kINFO, "a stub");
    return new IRuntime;
}

}  // namespace nvinfer1
