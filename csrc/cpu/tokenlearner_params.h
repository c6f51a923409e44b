#pragma once

#include "cpu/score_mlp_params.h"
#include "cpu/segments.h"

namespace jair {

struct TokenLearnerParams {
  ScoreMlpParams mlp;
  void* y;         // [B,K,D]
  void* softmax;   // max and 1/sum, [B,K,2]
  const void* dy;  // [B,K,D]
  void* dx;        // [B,N,D]
  void* partials;  // forward: a pooling state for each partial segment of the plan
  const void* weights;
  const Plan* plan;
};

}  // namespace jair
