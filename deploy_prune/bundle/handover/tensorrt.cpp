// The engine of $artifact in TensorRT 8.6 or newer. On the device: python3 $artifact/build_engine.py, then
// g++ -std=c++17 main.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
// ./a.out ../$artifact/engine.plan ../sample/images.npy
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <iostream>
#include <memory>

#include "preprocess.hpp"

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
  const char *input = nullptr, *output = "$output";
  for (int i = 0; i < engine->getNbIOTensors(); ++i) {
    const char* name = engine->getIOTensorName(i);
    if (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) input = name;
  }
  context->setInputShape(input, nvinfer1::Dims4(1, kChannels, kHeight, kWidth));
  std::vector<float> scores($num_scores);
  void *on_input = nullptr, *on_output = nullptr;
  cudaMalloc(&on_input, kChannels * kPixels * sizeof(float));
  cudaMalloc(&on_output, scores.size() * sizeof(float));
  context->setTensorAddress(input, on_input);
  context->setTensorAddress(output, on_output);
  cudaStream_t stream;
  cudaStreamCreate(&stream);

  const auto images = sample_images(arguments[2]);
  for (std::size_t at = 0; at < images.size(); at += kChannels * kPixels) {
    const auto x = preprocess(images.data() + at);
    cudaMemcpyAsync(on_input, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice, stream);
    if (!context->enqueueV3(stream)) return 1;
    cudaMemcpyAsync(scores.data(), on_output, scores.size() * sizeof(float), cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    std::cout << best(scores.data(), scores.size()) << "\n";
  }
}
