// An engine of a bundle, loaded only after what its sidecar says was found to be true here.
#pragma once

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"
#include "picture.hpp"
#include "sha256.hpp"

namespace resnet {

inline void check_cuda(cudaError_t status, char const* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

// Keeps warnings and errors, the rest is dropped.
class Logger : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) {
            std::cerr << "TensorRT: " << message << '\n';
        }
    }
};

// GPU memory that frees itself.
class DeviceMemory {
public:
    explicit DeviceMemory(size_t bytes) { check_cuda(cudaMalloc(&pointer_, bytes), "cudaMalloc"); }
    ~DeviceMemory() { cudaFree(pointer_); }
    DeviceMemory(DeviceMemory const&) = delete;
    DeviceMemory& operator=(DeviceMemory const&) = delete;
    void* get() const { return pointer_; }

private:
    void* pointer_ = nullptr;
};

// `10.3.0.30`, or as many parts of it as are asked for.
inline std::string library_version(size_t parts = 4) {
    int const numbers[] = {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(),
                           getInferLibBuildVersion()};
    std::string text;
    for (size_t i = 0; i < parts && i < 4; ++i) {
        text += (i ? "." : "") + std::to_string(numbers[i]);
    }
    return text;
}

// `sm87`
inline std::string device_target() {
    int device = 0, major = 0, minor = 0;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
    return "sm" + std::to_string(major) + std::to_string(minor);
}

// Refuse an engine before TensorRT reads a byte of it: an engine is code. That it was built on this machine is not
// checked here, as resnet-deploy does by the sidecar's seal: load only engines that you built yourself.
inline void check_engine(Json const& sidecar, Json const& manifest, std::string const& plan) {
    auto const refuse = [](std::string const& what) {
        throw std::runtime_error(what + "; build it again with: resnet-deploy build BUNDLE");
    };
    Json const& options = sidecar["options"];
    bool const any_version = options.has("version_compatible") && options["version_compatible"].boolean();
    if (sidecar["backend"].text() != "tensorrt") {
        refuse("expected an engine of TensorRT, got one of " + sidecar["backend"].text());
    }
    if (sidecar["engine_bytes"].integer() != static_cast<int64_t>(plan.size()) ||
        sidecar["engine_sha256"].text() != sha256(plan)) {
        refuse("the engine was changed after it was built: its content is not what its sidecar names");
    }
    if (sidecar["onnx_sha256"].text() != manifest["files"]["model.onnx"]["sha256"].text()) {
        refuse("the engine was built from another model than the bundle's");
    }
    std::string const& version = sidecar["version"].text();
    std::string const here = library_version(1 + static_cast<size_t>(std::count(version.begin(), version.end(), '.')));
    if (version != here && !any_version) {
        refuse("the engine was built by TensorRT " + version + ", and this is " + here);
    }
    std::string const target = device_target();
    std::string targets;
    bool fits = options.has("hardware_compatible");  // then TensorRT itself says whether it does
    for (Json const& one : sidecar["targets"].list()) {
        targets += (targets.empty() ? "" : ", ") + one.text();
        fits = fits || one.text() == target;
    }
    if (!fits) {
        refuse("the engine is for " + targets + ", and this GPU is " + target);
    }
    if (options.has("strip_weights") && options["strip_weights"].boolean()) {
        refuse("the engine has no weights (--strip-weights), which this example does not bring back");
    }
}

// One input, one output, on one stream.
class Engine {
public:
    Engine(std::string const& path, Json const& manifest) {
        size_t const dot = path.rfind('.');
        Json const sidecar = Json::parse(read_file(path.substr(0, dot) + ".json"));
        std::string const plan = read_file(path);
        check_engine(sidecar, manifest, plan);
        Json const& options = sidecar["options"];
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (!runtime_) {
            throw std::runtime_error("TensorRT does not start here; see what it says above");
        }
        if (options.has("version_compatible")) {
            runtime_->setEngineHostCodeAllowed(true);  // the plan holds its own lean runtime
        }
        if (options.has("dla_core")) {
            runtime_->setDLACore(static_cast<int32_t>(options["dla_core"].integer()));
        }
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        context_.reset(engine_ ? engine_->createExecutionContext() : nullptr);
        if (!context_) {
            throw std::runtime_error("TensorRT does not load " + path + "; see what it says above");
        }
        check_cuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
    }
    ~Engine() {
        if (stream_ != nullptr) {
            cudaStreamDestroy(stream_);
        }
    }
    Engine(Engine const&) = delete;
    Engine& operator=(Engine const&) = delete;

    // The output for an input of this shape, as float32: `bytes` of host memory in, `values` numbers out.
    std::vector<float> run(std::string const& input, std::vector<int64_t> const& shape, void const* data, size_t bytes,
                           std::string const& output, size_t values) {
        if (engine_->getTensorDataType(output.c_str()) != nvinfer1::DataType::kFLOAT) {
            throw std::runtime_error("expected float32 from the engine's output '" + output + "'");
        }
        nvinfer1::Dims dims{};
        dims.nbDims = static_cast<int32_t>(shape.size());
        for (size_t i = 0; i < shape.size(); ++i) {
            dims.d[i] = static_cast<int32_t>(shape[i]);
        }
        if (!context_->setInputShape(input.c_str(), dims)) {
            throw std::runtime_error("the engine does not take the input's shape; see what TensorRT says above");
        }
        DeviceMemory const in(bytes), out(values * sizeof(float));
        if (!context_->setTensorAddress(input.c_str(), in.get()) ||
            !context_->setTensorAddress(output.c_str(), out.get())) {
            throw std::runtime_error("the engine has other inputs and outputs than the manifest says");
        }
        std::vector<float> result(values);
        check_cuda(cudaMemcpyAsync(in.get(), data, bytes, cudaMemcpyHostToDevice, stream_), "copying the input");
        if (!context_->enqueueV3(stream_)) {
            throw std::runtime_error("the engine does not run; see what TensorRT says above");
        }
        check_cuda(cudaMemcpyAsync(result.data(), out.get(), values * sizeof(float), cudaMemcpyDeviceToHost, stream_),
                   "copying the output");
        check_cuda(cudaStreamSynchronize(stream_), "running the engine");
        return result;
    }

private:
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace resnet
