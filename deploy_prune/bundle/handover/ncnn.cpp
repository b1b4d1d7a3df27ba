// $artifact in ncnn:
// g++ -std=c++17 -fopenmp main.cpp -lncnn && ./a.out ../$artifact ../sample/images.npy
#include <ncnn/net.h>

#include <iostream>

#include "preprocess.hpp"

int main(int, char** arguments) {
  const std::string folder = arguments[1];
  ncnn::Net net;
  net.opt.num_threads = 1;
  net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = $half;
  if (net.load_param((folder + "/model.param").c_str()) || net.load_model((folder + "/model.bin").c_str())) return 1;

  const auto images = sample_images(arguments[2]);
  for (std::size_t at = 0; at < images.size(); at += kChannels * kPixels) {
    const auto x = preprocess(images.data() + at);
    ncnn::Mat fed(kWidth, kHeight, kChannels), found;
    for (int c = 0; c < kChannels; ++c)  // ncnn pads its channels, so each is copied
      std::copy_n(x.data() + c * kPixels, kPixels, static_cast<float*>(fed.channel(c)));
    auto extractor = net.create_extractor();
    extractor.input(net.input_names()[0], fed);
    if (extractor.extract("out0", found)) return 1;
    std::cout << best(found, found.total()) << "\n";
  }
}
