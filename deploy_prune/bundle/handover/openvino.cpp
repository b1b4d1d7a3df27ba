// $artifact in OpenVINO:
// g++ -std=c++17 main.cpp -lopenvino && ./a.out ../$artifact/model.xml ../sample/images.npy
#include <openvino/openvino.hpp>
#include <openvino/runtime/intel_cpu/properties.hpp>

#include "decode.hpp"

int main(int, char** arguments) {
  ov::Core core;
  // Left to itself OpenVINO may compute in bfloat16, and the outputs differ from sample/expected_0.npy.
  // Denormal numbers, left as they are, take many times as long.
  auto model = core.compile_model(
      arguments[1], "CPU", ov::hint::inference_precision(ov::element::f32),
      ov::intel_cpu::denormals_optimization(true));
  auto request = model.create_infer_request();
  const ov::Shape shape = {1, kChannels, kHeight, kWidth};

  for (const Picture& picture : pictures(arguments[2])) {
    auto x = preprocess(picture);
    request.set_input_tensor(ov::Tensor(ov::element::f32, shape, x.data()));
    request.infer();
    Outputs outputs;
    for (std::size_t i = 0; i < model.outputs().size(); ++i) {
      const auto found = request.get_output_tensor(i);
      outputs.emplace_back(found.data<float>(), found.data<float>() + found.get_size());
    }
    print(outputs, picture);
  }
}
