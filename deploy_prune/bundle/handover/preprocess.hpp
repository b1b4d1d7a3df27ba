// From a picture's bytes to what $artifact takes, and back to the picture. Needs C++17 and nothing else.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

constexpr std::int64_t kChannels = $channels, kHeight = $height, kWidth = $width, kPixels = kHeight * kWidth;
constexpr float kMean[] = {$mean_f};
constexpr float kStd[] = {$std_f};

// How a picture is brought to the network's size. cut: it covers the size, and what is too much is cut off evenly;
// letterbox: all of it fits in, and kPad is evenly around it; stretch: height and width are scaled on their own.
enum class Fit { cut, letterbox, stretch };
constexpr Fit kFit = Fit::$fit;
constexpr std::uint8_t kPad = $pad;

// Bytes [height, width, kChannels], $colour. A photo must be upright, as its EXIF orientation says (many decoders leave
// that to you); lay transparency on white.
struct Picture {
  std::int64_t height, width;
  std::vector<std::uint8_t> bytes;
};

// The network's outputs for one picture, in order; compare them with sample/expected_0.npy and its like.
using Outputs = std::vector<std::vector<float>>;

// The part of a picture that is used, and where it lies in the network's input.
struct Placement {
  double left, top, right, bottom;
  std::int64_t to_left, to_top, to_right, to_bottom;
};

inline Placement placement(std::int64_t height, std::int64_t width) {
  const double high = height, wide = width;
  if (kFit == Fit::stretch) return {0, 0, wide, high, 0, 0, kWidth, kHeight};
  if (kFit == Fit::cut) {
    const double used_wide = std::min(wide, high * kWidth / kHeight);
    const double used_high = std::min(high, wide * kHeight / kWidth);
    const double left = (wide - used_wide) / 2, top = (high - used_high) / 2;
    return {left, top, left + used_wide, top + used_high, 0, 0, kWidth, kHeight};
  }
  const double scale = std::min(kWidth / wide, kHeight / high);
  const auto inner_wide = std::max<std::int64_t>(1, std::llrint(wide * scale));  // a half goes to the even number
  const auto inner_high = std::max<std::int64_t>(1, std::llrint(high * scale));
  const std::int64_t left = (kWidth - inner_wide) / 2, top = (kHeight - inner_high) / 2;
  return {0, 0, wide, high, left, top, left + inner_wide, top + inner_high};
}

// From a place in a picture, in pixels, to one in the network's input: times scale, plus shift.
struct Mapping {
  double scale_x, scale_y, shift_x, shift_y;
};

inline Mapping mapping(std::int64_t height, std::int64_t width) {
  const Placement p = placement(height, width);
  const double scale_x = (p.to_right - p.to_left) / (p.right - p.left);
  const double scale_y = (p.to_bottom - p.to_top) / (p.bottom - p.top);
  return {scale_x, scale_y, p.to_left - p.left * scale_x, p.to_top - p.top * scale_y};
}

// What a scaled pixel is made of: the pixels from first on, with these weights, which add up to 1 << kBits.
constexpr int kBits = 22;
struct Taps {
  std::int64_t first;
  std::vector<std::int32_t> weights;
};

// Of each of count pixels that the stretch from..to of size pixels is scaled to. Linear between centres; where it gets
// smaller, over as many pixels as go into one. As Pillow does it, to the last bit.
inline std::vector<Taps> taps(std::int64_t size, float from, float to, std::int64_t count) {
  const double scale = static_cast<double>(to - from) / count, reach = std::max(scale, 1.0);
  std::vector<Taps> found(count);
  for (std::int64_t i = 0; i < count; ++i) {
    const double centre = from + (i + 0.5) * scale;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(centre - reach + 0.5));
    const auto end = std::min(size, static_cast<std::int64_t>(centre + reach + 0.5));
    std::vector<double> shares;
    double sum = 0;
    for (std::int64_t x = first; x < end; ++x) {
      shares.push_back(std::max(0.0, 1 - std::abs((x - centre + 0.5) * (1 / reach))));
      sum += shares.back();
    }
    found[i].first = first;
    for (const double share : shares)
      found[i].weights.push_back(static_cast<std::int32_t>(0.5 + share / sum * (1 << kBits)));
  }
  return found;
}

// The sum of the bytes that these taps take, step bytes apart.
inline std::uint8_t weighed(const std::uint8_t* bytes, std::int64_t step, const Taps& taps) {
  std::int32_t sum = 1 << (kBits - 1);
  for (std::size_t k = 0; k < taps.weights.size(); ++k)
    sum += bytes[(taps.first + static_cast<std::int64_t>(k)) * step] * taps.weights[k];
  return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

// A picture in the network's size: bytes [kHeight, kWidth, kChannels].
inline std::vector<std::uint8_t> fitted(const Picture& picture) {
  const Placement p = placement(picture.height, picture.width);
  const std::int64_t wide = p.to_right - p.to_left, high = p.to_bottom - p.to_top;
  const auto across = taps(picture.width, static_cast<float>(p.left), static_cast<float>(p.right), wide);
  const auto down = taps(picture.height, static_cast<float>(p.top), static_cast<float>(p.bottom), high);
  std::vector<std::uint8_t> rows(picture.height * wide * kChannels), found(kPixels * kChannels, kPad);
  for (std::int64_t y = 0; y < picture.height; ++y)
    for (std::int64_t x = 0; x < wide; ++x)
      for (std::int64_t c = 0; c < kChannels; ++c)
        rows[(y * wide + x) * kChannels + c] =
            weighed(picture.bytes.data() + y * picture.width * kChannels + c, kChannels, across[x]);
  for (std::int64_t y = 0; y < high; ++y)
    for (std::int64_t x = 0; x < wide; ++x)
      for (std::int64_t c = 0; c < kChannels; ++c)
        found[((p.to_top + y) * kWidth + p.to_left + x) * kChannels + c] =
            weighed(rows.data() + x * kChannels + c, wide * kChannels, down[y]);
  return found;
}

// A picture as the network takes it: float32 [kChannels, kHeight, kWidth].
inline std::vector<float> preprocess(const Picture& picture) {
  const auto bytes = fitted(picture);
  std::vector<float> x(kChannels * kPixels);
  for (std::int64_t c = 0; c < kChannels; ++c)
    for (std::int64_t i = 0; i < kPixels; ++i)
      x[c * kPixels + i] = (bytes[i * kChannels + c] / 255.0f - kMean[c]) / kStd[c];
  return x;
}

// The pictures of an .npy file: uint8 [N, height, width, kChannels], as sample/images.npy, or one without the N.
inline std::vector<Picture> pictures(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  if (bytes.size() < 10) throw std::runtime_error("can't read " + path);
  const auto byte = [&](int i) { return static_cast<std::uint8_t>(bytes[i]); };
  const std::size_t start = 10 + byte(8) + 256 * byte(9);
  const std::string header(bytes.begin() + 10, bytes.begin() + std::min(start, bytes.size()));
  std::vector<std::int64_t> shape;
  for (auto at = header.find('('); at < header.find(')'); at = header.find_first_of(",)", at + 1))
    if (const auto digit = header.find_first_of("0123456789)", at); header[digit] != ')')
      shape.push_back(std::stoll(header.substr(digit)));
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  const bool plain = header.find("'|u1'") != header.npos && header.find("False") != header.npos;
  if (!plain || shape.size() != 4 || shape[3] != kChannels) throw std::runtime_error(path + " has no such pictures");
  const std::int64_t size = shape[1] * shape[2] * kChannels, there = bytes.size() - start;
  if (there != shape[0] * size) throw std::runtime_error(path + " is cut off");
  std::vector<Picture> found;
  for (std::int64_t n = 0; n < shape[0]; ++n)
    found.push_back({shape[1], shape[2], {bytes.begin() + start + n * size, bytes.begin() + start + (n + 1) * size}});
  return found;
}
