// What the outputs of $artifact say.
#pragma once

#include <iostream>

#include "preprocess.hpp"

// The number of the highest score of the first output: a place in labels.json, from 0 on.
inline std::size_t best(const Outputs& outputs) {
  return std::max_element(outputs[0].begin(), outputs[0].end()) - outputs[0].begin();
}

// A line.
inline void print(const Outputs& outputs, const Picture&) { std::cout << best(outputs) << "\n"; }
