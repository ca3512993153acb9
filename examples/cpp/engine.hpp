// An engine of TensorRT 10.3 to 11 on the current GPU: load it, and run one batch after another.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bundle.hpp"

inline void check_cuda(cudaError_t status) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
    }
}

inline Here this_machine() {
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
    return {{getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion()},
            "sm" + std::to_string(major) + std::to_string(minor)};
}

// Memory on the GPU.
class DeviceMemory {
  public:
    explicit DeviceMemory(std::size_t bytes) { check_cuda(cudaMalloc(&pointer_, bytes)); }
    ~DeviceMemory() { cudaFree(pointer_); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    void* get() const { return pointer_; }

  private:
    void* pointer_ = nullptr;
};

class Engine {
  public:
    // Throws std::runtime_error if TensorRT does not load it; TensorRT's own words are on stderr.
    Engine(const EngineFile& file, const Bundle& bundle) : bundle_(bundle), smallest_batch_(file.smallest_batch) {
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        engine_.reset(runtime_ ? runtime_->deserializeCudaEngine(file.plan.data(), file.plan.size()) : nullptr);
        context_.reset(engine_ ? engine_->createExecutionContext() : nullptr);
        if (!context_) {
            throw std::runtime_error("TensorRT does not load the engine");
        }
        if (engine_->getTensorDataType(bundle.output.c_str()) != nvinfer1::DataType::kFLOAT) {
            throw std::runtime_error("expected an engine whose output " + bundle.output + " is float32");
        }
        check_cuda(cudaStreamCreate(&stream_));
    }

    ~Engine() { cudaStreamDestroy(stream_); }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Run one picture, given as the bytes of its input without the batch: its row of the output.
    std::vector<float> run(const void* input, std::size_t bytes, const std::vector<std::int64_t>& shape) {
        nvinfer1::Dims dims{};
        dims.nbDims = static_cast<int>(shape.size()) + 1;
        dims.d[0] = smallest_batch_;
        for (std::size_t i = 0; i < shape.size(); ++i) {
            dims.d[i + 1] = shape[i];
        }
        if (!context_->setInputShape(bundle_.input.c_str(), dims)) {
            throw std::runtime_error("the engine does not take a picture of this size");
        }
        const nvinfer1::Dims answer = context_->getTensorShape(bundle_.output.c_str());
        std::vector<float> row(static_cast<std::size_t>(answer.d[1]));
        const DeviceMemory fed(bytes * smallest_batch_), given(row.size() * sizeof(float) * smallest_batch_);
        for (int i = 0; i < smallest_batch_; ++i) {  // an engine for larger batches alone gets the picture again and again
            check_cuda(cudaMemcpyAsync(static_cast<char*>(fed.get()) + bytes * i, input, bytes,
                                       cudaMemcpyHostToDevice, stream_));
        }
        if (!context_->setTensorAddress(bundle_.input.c_str(), fed.get()) ||
            !context_->setTensorAddress(bundle_.output.c_str(), given.get()) || !context_->enqueueV3(stream_)) {
            throw std::runtime_error("TensorRT could not run the engine");
        }
        check_cuda(cudaMemcpyAsync(row.data(), given.get(), row.size() * sizeof(float), cudaMemcpyDeviceToHost,
                                   stream_));
        check_cuda(cudaStreamSynchronize(stream_));
        return row;
    }

  private:
    class Log : public nvinfer1::ILogger {
        void log(Severity severity, const char* message) noexcept override {
            if (severity <= Severity::kWARNING) {
                std::cerr << "TensorRT: " << message << '\n';
            }
        }
    };

    Log log_;  // outlives what writes to it
    const Bundle& bundle_;
    int smallest_batch_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cudaStream_t stream_ = nullptr;
};
