// What the outputs of $artifact say: a class for each pixel.
#pragma once

#include <array>
#include <iostream>

#include "preprocess.hpp"

constexpr std::int64_t kClasses = $map_classes, kMapHeight = $map_height, kMapWidth = $map_width;
constexpr std::uint8_t kUnseen = $unseen;

// A place between two of a map, each with its share.
struct Between {
  std::int64_t first, second;
  float first_share, second_share;
};

// Of a pixel's centre, of large, on a map with small places; beyond the outermost centres it is the outermost.
inline Between between(std::int64_t pixel, std::int64_t small, std::int64_t large) {
  const double at = std::clamp((pixel + 0.5) * small / large - 0.5, 0.0, static_cast<double>(small - 1));
  const auto first = static_cast<std::int64_t>(at);
  return {first, std::min(first + 1, small - 1), static_cast<float>(1 - (at - first)), static_cast<float>(at - first)};
}

// Of each pixel of the network's input the class with the highest logit.
inline std::vector<std::uint8_t> classes_of_input(const Outputs& outputs) {
  const float* map = outputs[0].data();  // [kClasses, kMapHeight, kMapWidth]
  std::vector<std::uint8_t> found(kPixels);
  for (std::int64_t y = 0; y < kHeight; ++y) {
    const Between down = between(y, kMapHeight, kHeight);
    for (std::int64_t x = 0; x < kWidth; ++x) {
      const Between across = between(x, kMapWidth, kWidth);
      float highest = 0;
      for (std::int64_t c = 0; c < kClasses; ++c) {
        const float* above = map + (c * kMapHeight + down.first) * kMapWidth;
        const float* below = map + (c * kMapHeight + down.second) * kMapWidth;
        const float left = down.first_share * above[across.first] + down.second_share * below[across.first];
        const float right = down.first_share * above[across.second] + down.second_share * below[across.second];
        const float logit = across.first_share * left + across.second_share * right;
        if (c == 0 || logit > highest) {
          highest = logit;
          found[y * kWidth + x] = static_cast<std::uint8_t>(c);
        }
      }
    }
  }
  return found;
}

// Of each pixel of a picture [height, width] its class's place in labels.json, from 0 on; kUnseen where the network
// doesn't see the pixel.
inline std::vector<std::uint8_t> classes(const Outputs& outputs, std::int64_t height, std::int64_t width) {
  const auto of_input = classes_of_input(outputs);
  const Mapping m = mapping(height, width);
  std::vector<std::uint8_t> found(height * width, kUnseen);
  for (std::int64_t y = 0; y < height; ++y) {
    const auto in_y = static_cast<std::int64_t>(std::floor((y + 0.5) * m.scale_y + m.shift_y));
    for (std::int64_t x = 0; x < width; ++x) {
      const auto in_x = static_cast<std::int64_t>(std::floor((x + 0.5) * m.scale_x + m.shift_x));
      const bool seen = in_y >= 0 && in_y < kHeight && in_x >= 0 && in_x < kWidth;
      if (seen) found[y * width + x] = of_input[in_y * kWidth + in_x];
    }
  }
  return found;
}

// A line: of each class that there is, its number and its share of the picture.
inline void print(const Outputs& outputs, const Picture& picture) {
  std::array<std::int64_t, 256> counts{};
  for (const auto each : classes(outputs, picture.height, picture.width)) ++counts[each];
  const double all = picture.height * picture.width;
  for (std::int64_t c = 0; c < kClasses; ++c)
    if (counts[c] > 0) std::cout << c << " " << counts[c] / all << " ";
  std::cout << "\n";
}
