#pragma once

#include <cstdint>

#include "cpu/segments.h"

namespace jair {

// Strides are in elements; the last axis of x, scores and mask is contiguous, of y, dy, dx and dscores all are.
struct TokenPoolParams {
  int64_t batch, tokens, width, outputs;  // B, N, D, K
  const void* x;
  int64_t x_image, x_token;
  const void* scores;
  int64_t scores_image, scores_token;
  const uint8_t* mask;  // null: all tokens are kept
  int64_t mask_image, mask_token;
  bool sigmoid, mean;
  void* y;
  void* softmax;   // max and 1/sum [B,K,2], not for sigmoid
  void* partials;  // forward: a pooling state for each partial segment of the plan
  const void* dy;
  void* dx;
  void* dscores;
  const Plan* plan;
};

}  // namespace jair
