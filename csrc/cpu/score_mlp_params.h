#pragma once

#include <cstdint>

#include "cpu/parameter.h"

namespace jair {

// The score MLP s = w2 gelu(w1 LN(x) + b1) + b2 that TokenLearner and TokenFuser share.
struct ScoreMlpParams {
  int64_t batch, tokens, width, hidden, outputs;  // B, N, D, H, K
  const void* x;
  int64_t x_image, x_token;  // strides in elements; the last axis is contiguous
  const uint8_t* mask;       // null: all tokens are kept
  int64_t mask_image, mask_token;
  Parameter w1, b1, w2, b2, norm_weight, norm_bias;
  double eps;
  bool tanh;
  void* stats;  // [B,N,2] mean and 1/std in the compute type: written by the forward, read by the backward
  // Parameter gradients, contiguous and of their parameters' types; null = absent.
  void *dw1, *db1, *dw2, *db2, *dnorm_weight, *dnorm_bias;
};

}  // namespace jair
