#pragma once

#include <cstdint>

#include "cpu/parameter.h"
#include "cpu/token_rows_params.h"

namespace jair {

// The score MLP s = w2 gelu(w1 LN(x) + b1) + b2 that TokenLearner and TokenFuser share.
struct ScoreMlpParams : TokenRowsParams {
  int64_t hidden, outputs;  // H, K
  Parameter w1, b1, w2, b2, norm_weight, norm_bias;
  bool tanh;
  void* kept;  // h [B,N,H] in x's type: written by the forward, read by the backward; null: computed again
  // Parameter gradients, contiguous and of their parameters' types; null = absent.
  void *dw1, *db1, *dw2, *db2, *dnorm_weight, *dnorm_bias;
};

}  // namespace jair
