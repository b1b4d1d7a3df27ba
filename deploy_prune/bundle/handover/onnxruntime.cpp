// $artifact in ONNX Runtime's C++ API:
// g++ -std=c++17 main.cpp -lonnxruntime && ./a.out ../$loaded ../sample/images.npy
#include <onnxruntime_cxx_api.h>

#include <array>

#include "decode.hpp"

int main(int, char** arguments) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "bundle");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  options.AddConfigEntry("session.set_denormal_as_zero", "1");  // else they take many times as long
  Ort::Session session(env, arguments[1], options);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input = session.GetInputNameAllocated(0, allocator);
  const char* inputs[] = {input.get()};
  std::vector<Ort::AllocatedStringPtr> kept;
  std::vector<const char*> names;
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i) {
    kept.push_back(session.GetOutputNameAllocated(i, allocator));
    names.push_back(kept.back().get());
  }
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const std::array<std::int64_t, 4> shape = {1, kChannels, kHeight, kWidth};

  for (const Picture& picture : pictures(arguments[2])) {
    auto x = preprocess(picture);
    auto fed = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape.data(), shape.size());
    const auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &fed, 1, names.data(), names.size());
    Outputs outputs;
    for (const Ort::Value& each : found) {
      const float* values = each.GetTensorData<float>();
      outputs.emplace_back(values, values + each.GetTensorTypeAndShapeInfo().GetElementCount());
    }
    print(outputs, picture);
  }
}
