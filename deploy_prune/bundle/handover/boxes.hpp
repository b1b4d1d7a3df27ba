// What the outputs of $artifact say: boxes. The program is the same for all kinds of detectors; the numbers are this
// one's.
#pragma once

#include <array>
#include <iostream>

#include "preprocess.hpp"

// Edges in pixels; label: a place in labels.json, from 0 on.
struct Box {
  float left, top, right, bottom, score;
  std::int64_t label;
};

// Numbers in an output: that of a row and column stands at start + row * per_row + column * per_column.
struct Field {
  std::int64_t output, start, per_row, per_column;
};

// Rows whose numbers stand together. Anchors on a grid: kAnchors[first] and the following, per_place at a place, moved
// by the steps; or, where anchors has an output, among the outputs. more: a number that the scores depend on, too.
struct Level {
  std::int64_t rows, width, per_place, first;
  double step_y, step_x;
  Field scores, codes, more, anchors;
};

enum class More { none, factor, root };                 // scores as they are, times more, or the root of that
enum class Group { all, level, column };                // what has kCandidates of its own
enum class Codes { deltas, distances, shares, edges };  // what a box's numbers are
enum class Clip { before, after, never };               // when a box is cut at the input's edges

const std::vector<Level> kLevels = {
$levels
};
const std::vector<std::array<double, 4>> kAnchors = {
$anchors
};
constexpr std::int64_t kLogits = $logits, kFirst = $first, kColumns = $columns, kCandidates = $candidates;
constexpr std::int64_t kBins = $bins, kCodesPerLogit = $codes_per_logit, kMostBoxes = $most_boxes, kShift = $shift;
constexpr bool kSoftmax = $softmax, kOneEach = $one_each;
constexpr More kMore = More::$more;
constexpr Group kGroup = Group::$group;
constexpr Codes kCodes = Codes::$codes;
constexpr Clip kClip = Clip::$clip;
constexpr float kLeastScore = $least_score, kOverlap = $overlap, kLeastSide = $least_side, kMost = $most;
constexpr float kWeights[] = {$weights};
constexpr float kSure = $sure;  // boxes with this score are printed

inline float number(const Outputs& outputs, const Field& field, std::int64_t row, std::int64_t column) {
  return outputs[field.output][field.start + row * field.per_row + column * field.per_column];
}

inline float sigmoid(float logit) { return 1 / (1 + std::exp(-logit)); }

// Shares of a whole, from logits.
inline void softmax(std::vector<float>& logits) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  float sum = 0;
  for (float& logit : logits) sum += logit = std::exp(logit - highest);
  for (float& share : logits) share /= sum;
}

// Scores [kColumns] of a row.
inline std::vector<float> scores_of(const Outputs& outputs, const Level& level, std::int64_t row) {
  std::vector<float> every(kLogits);
  for (std::int64_t i = 0; i < kLogits; ++i) every[i] = number(outputs, level.scores, row, i);
  if (kSoftmax) softmax(every);
  std::vector<float> scores(every.begin() + kFirst, every.begin() + kFirst + kColumns);
  for (float& score : scores) {
    if (!kSoftmax) score = sigmoid(score);
    if (kMore != More::none) score *= sigmoid(number(outputs, level.more, row, 0));
    if (kMore == More::root) score = std::sqrt(score);
  }
  return scores;
}

// The anchor of a row: left, top, right, bottom.
inline std::array<float, 4> anchor_of(const Outputs& outputs, const Level& level, std::int64_t row) {
  std::array<float, 4> found;
  const std::int64_t place = row / level.per_place, y = place / level.width, x = place % level.width;
  for (std::int64_t i = 0; i < 4; ++i) {
    if (level.anchors.output >= 0) {
      found[i] = number(outputs, level.anchors, row, i);
    } else {
      const double moved = i % 2 == 0 ? x * level.step_x : y * level.step_y;
      found[i] = static_cast<float>(kAnchors[level.first + row % level.per_place][i] + moved);
    }
  }
  return found;
}

// A row's numbers for a box; of a distribution over bins the mean. Classes may have their own.
inline std::array<float, 4> codes_of(
    const Outputs& outputs, const Level& level, std::int64_t row, std::int64_t column) {
  std::array<float, 4> found;
  for (std::int64_t i = 0; i < 4; ++i) {
    const std::int64_t before = (kFirst + column) * kCodesPerLogit + i * kBins;
    std::vector<float> bins(kBins);
    for (std::int64_t bin = 0; bin < kBins; ++bin) bins[bin] = number(outputs, level.codes, row, before + bin);
    found[i] = bins[0];
    if (kBins == 1) continue;
    softmax(bins);
    found[i] = 0;
    for (std::int64_t bin = 0; bin < kBins; ++bin) found[i] += bins[bin] * bin;
  }
  return found;
}

// One side of a box, along x (axis 0) or y (axis 1), of size pixels: from, to.
inline std::array<float, 2> side_of(
    const std::array<float, 4>& code, const std::array<float, 4>& anchor, std::int64_t axis, float size) {
  if (kCodes == Codes::edges) return {code[axis], code[axis + 2]};
  if (kCodes == Codes::shares)
    return {(code[axis] - code[axis + 2] / 2) * size, (code[axis] + code[axis + 2] / 2) * size};
  const float side = anchor[axis + 2] - anchor[axis], centre = anchor[axis] + side / 2;
  if (kCodes == Codes::distances) return {centre - code[axis] * side, centre + code[axis + 2] * side};
  const float moved = centre + code[axis] / kWeights[axis] * side;
  const float half = std::exp(std::min(code[axis + 2] / kWeights[axis + 2], kMost)) * side / 2;
  return {moved - half, moved + half};
}

inline void clip(Box& box, float height, float width) {
  box.left = std::clamp(box.left, 0.0f, width), box.right = std::clamp(box.right, 0.0f, width);
  box.top = std::clamp(box.top, 0.0f, height), box.bottom = std::clamp(box.bottom, 0.0f, height);
}

inline Box box_of(
    const Outputs& outputs, const Level& level, std::int64_t row, std::int64_t column, float score) {
  const auto code = codes_of(outputs, level, row, column);
  auto anchor = code;
  if (kCodes == Codes::deltas || kCodes == Codes::distances) anchor = anchor_of(outputs, level, row);
  const auto across = side_of(code, anchor, 0, kWidth), down = side_of(code, anchor, 1, kHeight);
  Box box = {across[0], down[0], across[1], down[1], score, kFirst + column};
  if (kClip == Clip::before) clip(box, kHeight, kWidth);
  return box;
}

// A score, and what has it.
struct Candidate {
  float score;
  std::int64_t level, row, column;
};

// The best of one group, their scores falling.
inline void add_best(std::vector<Candidate>& found, std::vector<Candidate>& group) {
  std::stable_sort(group.begin(), group.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
  if (static_cast<std::int64_t>(group.size()) > kCandidates) group.resize(kCandidates);
  found.insert(found.end(), group.begin(), group.end());
  group.clear();
}

// What scores above kLeastScore, the best of each group.
inline std::vector<Candidate> candidates(const Outputs& outputs) {
  std::vector<std::vector<Candidate>> groups(kGroup == Group::column ? kColumns : 1);
  std::vector<Candidate> found;
  for (std::int64_t l = 0; l < static_cast<std::int64_t>(kLevels.size()); ++l) {
    for (std::int64_t row = 0; row < kLevels[l].rows; ++row) {
      const auto scores = scores_of(outputs, kLevels[l], row);
      const std::int64_t best = std::max_element(scores.begin(), scores.end()) - scores.begin();
      for (std::int64_t column = 0; column < kColumns; ++column)
        if (scores[column] > kLeastScore && (!kOneEach || column == best))
          groups[kGroup == Group::column ? column : 0].push_back({scores[column], l, row, column});
    }
    if (kGroup == Group::level) add_best(found, groups[0]);
  }
  for (auto& group : groups) add_best(found, group);
  return found;
}

// Intersection over union; 0 where neither has an area.
inline float overlap(const Box& a, const Box& b) {
  const float across = std::min(a.right, b.right) - std::max(a.left, b.left);
  const float down = std::min(a.bottom, b.bottom) - std::max(a.top, b.top);
  const float both = std::max(across, 0.0f) * std::max(down, 0.0f);
  const float all = (a.right - a.left) * (a.bottom - a.top) + (b.right - b.left) * (b.bottom - b.top) - both;
  return all > 0 ? both / all : 0;
}

// Non-maximum suppression, each class on its own: the boxes that stay, their scores falling.
inline std::vector<Box> suppressed(std::vector<Box> boxes) {
  std::stable_sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) { return a.label < b.label; });
  std::stable_sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
  std::vector<Box> stay;
  for (const Box& box : boxes) {
    if (static_cast<std::int64_t>(stay.size()) == kMostBoxes) break;
    const auto hides = [&](const Box& other) { return other.label == box.label && overlap(other, box) > kOverlap; };
    if (std::none_of(stay.begin(), stay.end(), hides)) stay.push_back(box);
  }
  return stay;
}

// Boxes in pixels of the network's input.
inline std::vector<Box> boxes_in_input(const Outputs& outputs) {
  std::vector<Box> every, found;
  for (const Candidate& each : candidates(outputs)) {
    const Box box = box_of(outputs, kLevels[each.level], each.row, each.column, each.score);
    const float side = std::min(box.right - box.left, box.bottom - box.top);
    if (kLeastSide == 0 || side >= kLeastSide) every.push_back(box);
  }
  for (Box box : suppressed(every)) {
    box.label -= kShift;
    if (kClip == Clip::after) clip(box, kHeight, kWidth);
    if (box.label >= 0) found.push_back(box);
  }
  return found;
}

// Boxes in pixels of a picture of this size, their scores falling.
inline std::vector<Box> boxes(const Outputs& outputs, std::int64_t height, std::int64_t width) {
  const Mapping m = mapping(height, width);
  auto found = boxes_in_input(outputs);
  for (Box& box : found) {
    box.left = static_cast<float>((box.left - m.shift_x) / m.scale_x);
    box.right = static_cast<float>((box.right - m.shift_x) / m.scale_x);
    box.top = static_cast<float>((box.top - m.shift_y) / m.scale_y);
    box.bottom = static_cast<float>((box.bottom - m.shift_y) / m.scale_y);
    clip(box, static_cast<float>(height), static_cast<float>(width));
  }
  return found;
}

// How many boxes are sure enough, and a line for each: label, score, left, top, right, bottom.
inline void print(const Outputs& outputs, const Picture& picture) {
  const auto found = boxes(outputs, picture.height, picture.width);
  const auto unsure = std::find_if(found.begin(), found.end(), [](const Box& box) { return box.score < kSure; });
  std::cout << unsure - found.begin() << " boxes\n";
  for (auto box = found.begin(); box != unsure; ++box)
    std::cout << "  " << box->label << " " << box->score << " " << box->left << " " << box->top << " " << box->right
              << " " << box->bottom << "\n";
}
