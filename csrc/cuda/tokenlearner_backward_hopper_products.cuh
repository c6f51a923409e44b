// The first half of fused_tokenlearner's backward on Hopper (tokenlearner_backward_hopper.cuh): shared memory, loads,
// and the products over D.
#pragma once

#include <type_traits>

#include "cuda/tokenlearner_backward_products.cuh"
#include "cuda/tokenlearner_hopper.cuh"

namespace jair::cuda {

template <typename T, int kWidth, int kOutputs>
struct HopperBackwardShared {
  using Tokens = HopperTokens<T, kWidth>;
  struct Exchange {
    HopperSums h;
    float4 dp[4][kOutputs / 16][4][32];  // of every quarter
  };
  struct Gradient {
    alignas(16) T q[kHidden / 8][kHopperRows][8];
    float2 along[4][kHopperRows];  // of every warp's hidden units: q . c and q . (h - e)
  };
  static constexpr bool kInPlace = sizeof(Tokens) >= sizeof(Exchange);
  struct None {};

  alignas(16) T wg[kWidth / 8][kHidden][8];
  alignas(16) T dy[kWidth / 8][kOutputs][8];
  alignas(16) Tokens x[2];
  std::conditional_t<kInPlace, None, Exchange> exchange;
  union {
    alignas(16) HopperHidden<T> hidden;  // dead once there are scores
    Gradient gradient;
  };
  alignas(16) T p[kOutputs / 8][kHopperRows][8];
  alignas(16) T ds[kOutputs / 8][kHopperRows][8];
  HopperWeights<T, kOutputs> fixed;
  float top[kOutputs], inverse[kOutputs], delta[kOutputs];
  float2 stats[2][kHopperRows];  // zeros of rows that are not kept
  uint8_t keep[2][kHopperRows];

  __device__ Exchange& exchange_of(int buffer) {
    if constexpr (kInPlace) {
      return *reinterpret_cast<Exchange*>(&x[buffer ^ 1]);
    } else {
      return exchange;
    }
  }
};

template <typename T, int kWidth, int kOutputs>
struct HopperBackwardProducts : HopperBlock<T, kWidth> {
  using Base = HopperBlock<T, kWidth>;
  using Base::in, Base::thread, Base::warp, Base::lane, Base::g, Base::t, Base::group, Base::part;
  using Base::kProducts, Base::token, Base::transposed, Base::unit, Base::first_token;
  using Shared = HopperBackwardShared<T, kWidth, kOutputs>;
  static constexpr int kOutputTiles = kOutputs / 16;
  static_assert(kOutputs % 16 == 0);

  const LearnerGradients<T>& out;
  Shared& shared;

  // Wg is pending until `wait_copies`.
  __device__ void load_weights() {
    for (int i = warp; i < kHidden / 8 * (kWidth / 32); i += kHopperThreads / 32) {
      const int h = i % (kHidden / 8) * 8 + lane % 8, column = i / (kHidden / 8) * 4 + lane / 8;
      const bool inside = h < in.hidden;
      copy16(shared.wg[column][h], in.wg + (inside ? h : 0) * kWidth + column * 8, inside);
    }
    shared.fixed.load(in);
  }

  __device__ void load_image(int64_t image) {
    for (int i = warp; i < kOutputs / 8 * (kWidth / 32); i += kHopperThreads / 32) {
      const int k = i % (kOutputs / 8) * 8 + lane % 8, column = i / (kOutputs / 8) * 4 + lane / 8;
      const bool inside = k < in.outputs;
      copy16(shared.dy[column][k], out.dy + (image * in.outputs + (inside ? k : 0)) * kWidth + column * 8, inside);
    }
    if (thread < kOutputs) {
      const bool inside = thread < in.outputs;
      const float2 pair = inside ? out.pairs[image * in.outputs + thread] : make_float2(0.f, 0.f);
      shared.top[thread] = pair.x, shared.inverse[thread] = pair.y;
      shared.delta[thread] = inside ? out.delta[image * in.outputs + thread] : 0.f;
    }
  }

  __device__ void load_tokens(const LearnerStep& step, int buffer) {
    const bool keep = this->copy_tokens(step, shared.x[buffer]);
    if (group == 0 && lane < 8) {
      shared.keep[buffer][token] = keep;
      const int64_t at = row_of(step, token);
      shared.stats[buffer][token] = keep ? out.stats[at] : make_float2(0.f, 0.f);
    }
  }

  // Of all tokens, the n-th of a step.
  __device__ int64_t row_of(const LearnerStep& step, int n) const { return step.image(in) * in.tokens + step.n + n; }

  // This warpgroup's quarter of h^T, of which it leaves to each what belongs to its 8 tokens and keeps its own, and
  // this warp's of dP^T for 8 tokens.
  __device__ void products(int buffer, float4& own) {
    const auto& x = shared.x[buffer];
    auto& exchange = shared.exchange_of(buffer);
    const int first = group * (kWidth / 32);
    Accumulator h[4], dp[kOutputTiles] = {};
    Fragment wg[kProducts];
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      wg[k] = load_matrices(shared.wg[first + 2 * k + lane / 16][part * 16 + lane % 16]);
    }
    this->begin_hidden(x, wg, h);
#pragma unroll
    for (int k = 0; k < kProducts; k += 2) {
      const Fragment b = load_matrices(x[first + 2 * k + lane / 8][part * 8 + lane % 8]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int m = 0; m < kOutputTiles; ++m) {
          const Fragment a = load_matrices(shared.dy[first + 2 * (k + i) + lane / 16][m * 16 + lane % 16]);
          multiply_add<T>(dp[m], a, b.r[2 * i], b.r[2 * i + 1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kOutputTiles; ++m) {
      exchange.dp[group][m][part][lane] = make_float4(dp[m][0], dp[m][1], dp[m][2], dp[m][3]);
    }
    wait_products<0>();
    this->exchange(h, exchange.h, own);
  }
};

}  // namespace jair::cuda
