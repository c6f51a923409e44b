#pragma once

#include <cstdint>

namespace jair {

// Token rows [B,N,D] with a mask, and the statistics of their LayerNorm.
struct TokenRowsParams {
  int64_t batch, tokens, width;  // B, N, D
  const void* x;
  int64_t x_image, x_token;  // strides in elements; the last axis is contiguous
  const uint8_t* mask;       // null: all tokens are kept
  int64_t mask_image, mask_token;
  double eps;
  void* stats;  // [B,N,2] mean and 1/std in the compute type: written by the forward, read by the backward
};

}  // namespace jair
