// TensorRT and CUDA as far as examples/cpp calls them, on the CPU. A plan is a text: "plan DTYPE CLASSES LARGEST", and the network that it holds
// gives class c the mean of the input's values i with i % CLASSES == c; it takes at most LARGEST values a row.
#include <NvInferRuntime.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Network {
    std::string dtype;
    std::size_t classes = 0, largest = 0;
};

class Context : public nvinfer1::IExecutionContext {
  public:
    explicit Context(const Network& network) : network_(network) {}

    bool setInputShape(char const*, nvinfer1::Dims const& dims) noexcept override {
        rows_ = static_cast<std::size_t>(dims.d[0]), values_ = 1;
        for (int i = 1; i < dims.nbDims; ++i) {
            values_ *= static_cast<std::size_t>(dims.d[i]);
        }
        return values_ <= network_.largest;
    }
    nvinfer1::Dims getTensorShape(char const*) const noexcept override {
        return {2, {static_cast<int64_t>(rows_), static_cast<int64_t>(network_.classes)}};
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        return true;
    }
    bool enqueueV3(cudaStream_t) noexcept override {
        auto* answers = static_cast<float*>(addresses_["logits"]);
        for (std::size_t row = 0; row < rows_; ++row) {
            std::vector<double> sums(network_.classes), counts(network_.classes);
            for (std::size_t i = 0; i < values_; ++i) {
                sums[i % network_.classes] += value(row * values_ + i);
                counts[i % network_.classes] += 1;
            }
            for (std::size_t c = 0; c < network_.classes; ++c) {
                answers[row * network_.classes + c] = static_cast<float>(sums[c] / counts[c]);
            }
        }
        return true;
    }

  private:
    double value(std::size_t i) {
        const void* data = addresses_["input"];
        return network_.dtype == "uint8" ? static_cast<const unsigned char*>(data)[i] : static_cast<const float*>(data)[i];
    }

    Network network_;
    std::size_t rows_ = 0, values_ = 0;
    std::map<std::string, void*> addresses_;
};

class Engine : public nvinfer1::ICudaEngine {
  public:
    explicit Engine(const Network& network) : network_(network) {}
    nvinfer1::IExecutionContext* createExecutionContext() noexcept override { return new Context(network_); }
    nvinfer1::DataType getTensorDataType(char const*) const noexcept override { return nvinfer1::DataType::kFLOAT; }

  private:
    Network network_;
};

class Runtime : public nvinfer1::IRuntime {
  public:
    explicit Runtime(nvinfer1::ILogger& log) : log_(log) {}
    nvinfer1::ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        std::istringstream plan(std::string(static_cast<const char*>(blob), size));
        std::string tag;
        Network network;
        if (!(plan >> tag >> network.dtype >> network.classes >> network.largest) || tag != "plan") {
            log_.log(nvinfer1::ILogger::Severity::kERROR, "no plan");
            return nullptr;
        }
        return new Engine(network);
    }

  private:
    nvinfer1::ILogger& log_;
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept { return new Runtime(logger); }
int32_t getInferLibMajorVersion() noexcept { return 10; }
int32_t getInferLibMinorVersion() noexcept { return 3; }
int32_t getInferLibPatchVersion() noexcept { return 0; }

cudaError_t cudaMalloc(void** pointer, std::size_t size) {
    *pointer = std::malloc(size);
    return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
    std::free(pointer);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t count, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(target, source, count);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = nullptr;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 7;
    return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
