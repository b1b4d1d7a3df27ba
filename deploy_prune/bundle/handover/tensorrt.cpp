// The engine of $artifact in TensorRT 8.6 or newer. On the device: python3 $artifact/build_engine.py, then
// g++ -std=c++17 main.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
// ./a.out ../$artifact/engine.plan ../sample/images.npy
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "decode.hpp"

const char* const kOutputNames[] = {$output_names};
constexpr std::size_t kOutputSizes[] = {$output_sizes};

struct Log : nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << text << "\n";
  }
};

int main(int, char** arguments) {
  std::ifstream file(arguments[1], std::ios::binary);
  const std::vector<char> plan((std::istreambuf_iterator<char>(file)), {});
  Log log;
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(log));
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine) return 1;
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  const char* input = nullptr;
  for (int i = 0; i < engine->getNbIOTensors(); ++i) {
    const char* name = engine->getIOTensorName(i);
    if (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) input = name;
  }
  context->setInputShape(input, nvinfer1::Dims4(1, kChannels, kHeight, kWidth));
  void* on_input = nullptr;
  cudaMalloc(&on_input, kChannels * kPixels * sizeof(float));
  context->setTensorAddress(input, on_input);
  Outputs outputs;
  std::vector<void*> on_outputs;
  for (const std::size_t size : kOutputSizes) {
    outputs.emplace_back(size);
    on_outputs.push_back(nullptr);
    cudaMalloc(&on_outputs.back(), size * sizeof(float));
    context->setTensorAddress(kOutputNames[on_outputs.size() - 1], on_outputs.back());
  }
  cudaStream_t stream;
  cudaStreamCreate(&stream);

  for (const Picture& picture : pictures(arguments[2])) {
    const auto x = preprocess(picture);
    cudaMemcpyAsync(on_input, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice, stream);
    if (!context->enqueueV3(stream)) return 1;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::size_t bytes = outputs[i].size() * sizeof(float);
      cudaMemcpyAsync(outputs[i].data(), on_outputs[i], bytes, cudaMemcpyDeviceToHost, stream);
    }
    cudaStreamSynchronize(stream);
    print(outputs, picture);
  }
}
