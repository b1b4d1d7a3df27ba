// $artifact in ncnn:
// g++ -std=c++17 -fopenmp main.cpp -lncnn && ./a.out ../$artifact ../sample/images.npy
#include <ncnn/net.h>

#include "decode.hpp"

constexpr std::size_t kOutputSizes[] = {$output_sizes};

int main(int, char** arguments) {
  const std::string folder = arguments[1];
  ncnn::Net net;
  net.opt.num_threads = 1;
  net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = $half;
  if (net.load_param((folder + "/model.param").c_str()) || net.load_model((folder + "/model.bin").c_str())) return 1;

  for (const Picture& picture : pictures(arguments[2])) {
    const auto x = preprocess(picture);
    ncnn::Mat fed(kWidth, kHeight, kChannels);
    for (int c = 0; c < kChannels; ++c)  // ncnn pads its channels, so each is copied
      std::copy_n(x.data() + c * kPixels, kPixels, static_cast<float*>(fed.channel(c)));
    auto extractor = net.create_extractor();
    extractor.input(net.input_names()[0], fed);
    Outputs outputs;
    for (const std::size_t size : kOutputSizes) {
      ncnn::Mat found;
      if (extractor.extract(("out" + std::to_string(outputs.size())).c_str(), found)) return 1;
      outputs.emplace_back();
      for (int c = 0; c < found.c; ++c) {
        const float* values = found.channel(c);
        outputs.back().insert(outputs.back().end(), values, values + found.w * found.h * found.d);
      }
      if (outputs.back().size() != size) return 1;
    }
    print(outputs, picture);
  }
}
