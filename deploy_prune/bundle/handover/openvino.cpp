// $artifact in OpenVINO:
// g++ -std=c++17 main.cpp -lopenvino && ./a.out ../$artifact/model.xml ../sample/images.npy
#include <iostream>
#include <openvino/openvino.hpp>
#include <openvino/runtime/intel_cpu/properties.hpp>

#include "preprocess.hpp"

int main(int, char** arguments) {
  ov::Core core;
  // Left to itself OpenVINO may compute in bfloat16, and the outputs differ from sample/expected_0.npy.
  // Denormal numbers, left as they are, take many times as long.
  auto model = core.compile_model(
      arguments[1], "CPU", ov::hint::inference_precision(ov::element::f32),
      ov::intel_cpu::denormals_optimization(true));
  auto request = model.create_infer_request();
  const ov::Shape shape = {1, kChannels, kHeight, kWidth};

  const auto images = sample_images(arguments[2]);
  for (std::size_t at = 0; at < images.size(); at += kChannels * kPixels) {
    auto x = preprocess(images.data() + at);
    request.set_input_tensor(ov::Tensor(ov::element::f32, shape, x.data()));
    request.infer();
    const auto found = request.get_output_tensor(0);
    std::cout << best(found.data<float>(), found.get_size()) << "\n";
  }
}
