// From bytes to what $artifact takes. Needs C++17 and nothing else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

constexpr std::int64_t kChannels = $channels, kHeight = $height, kWidth = $width, kPixels = kHeight * kWidth;
constexpr float kMean[] = {$mean_f};
constexpr float kStd[] = {$std_f};

// One image's bytes [height, width, channels], $colour -> float32 [channels, height, width].
// A photo must be upright, as its EXIF orientation says (many decoders leave that to you); lay transparency on white.
inline std::vector<float> preprocess(const std::uint8_t* image) {
  std::vector<float> x(kChannels * kPixels);
  for (std::int64_t c = 0; c < kChannels; ++c)
    for (std::int64_t i = 0; i < kPixels; ++i)
      x[c * kPixels + i] = (image[i * kChannels + c] / 255.0f - kMean[c]) / kStd[c];
  return x;
}

// The bytes of sample/images.npy, one image after the other: what follows the file's header.
inline std::vector<std::uint8_t> sample_images(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() < 10) throw std::runtime_error("can't read " + path);
  const auto byte = [&](int i) { return static_cast<std::uint8_t>(bytes[i]); };
  return {bytes.begin() + 10 + byte(8) + 256 * byte(9), bytes.end()};
}

// The number of the highest score.
inline std::size_t best(const float* scores, std::size_t count) {
  return std::max_element(scores, scores + count) - scores;
}
