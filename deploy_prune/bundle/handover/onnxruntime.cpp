// $artifact in ONNX Runtime's C++ API:
// g++ -std=c++17 main.cpp -lonnxruntime && ./a.out ../$artifact ../sample/images.npy
#include <onnxruntime_cxx_api.h>

#include <array>
#include <iostream>

#include "preprocess.hpp"

int main(int, char** arguments) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "bundle");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  options.AddConfigEntry("session.set_denormal_as_zero", "1");  // else they take many times as long
  Ort::Session session(env, arguments[1], options);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
  const char* inputs[] = {input.get()};
  const char* outputs[] = {output.get()};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const std::array<std::int64_t, 4> shape = {1, kChannels, kHeight, kWidth};

  const auto images = sample_images(arguments[2]);
  for (std::size_t at = 0; at < images.size(); at += kChannels * kPixels) {
    auto x = preprocess(images.data() + at);
    auto fed = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape.data(), shape.size());
    auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &fed, 1, outputs, 1);
    const auto count = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
    std::cout << best(found[0].GetTensorData<float>(), count) << "\n";
  }
}
