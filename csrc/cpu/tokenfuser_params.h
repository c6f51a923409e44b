#pragma once

#include "cpu/score_mlp_params.h"
#include "cpu/segments.h"

namespace jair {

struct TokenFuserParams {
  ScoreMlpParams mlp;
  const void* tokens;          // [B,K,D]
  void* y;                     // [B,N,D]
  const void* dy;              // [B,N,D]
  int64_t dy_image, dy_token;  // strides in elements; the last axis is contiguous
  void* dx;                    // [B,N,D]
  void* dtokens;               // [B,K,D]
  void* partials;              // backward: token gradients [K,dp] of each partial segment of the plan
  const void* weights;
  const Plan* plan;
};

}  // namespace jair
