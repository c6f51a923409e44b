// fused_tokenlearner's forward for Hopper: one pass over x, for 16-bit elements.
//
// A block (tokenlearner_hopper.cuh) keeps the folded weights Wg [64,D] in registers. Of step i, with the tokens of
// later steps arriving meanwhile,
//
//   products   h^T = Wg x^T, and the moments of the tokens beside it
//   hidden     sums of the quarters, LayerNorm as r (h - m c) + e, GELU; 8 tokens a warpgroup
//   softmax    scores and weights, 8 outputs a warp; what was pooled before is rescaled as in an online softmax
//   pool       y^T += x^T P: every warp has an equal part of the columns of all outputs in registers
//
// Products of step i + 1 run beside the softmax of step i. They alone are a warpgroup's (warpgroup.cuh says why).
#pragma once

#include "cuda/tokenlearner_hopper.cuh"

namespace jair::cuda {

// Outputs for which the registers of a block suffice.
template <int kWidth>
constexpr int kHopperOutputs = kWidth > 768   ? 0
                               : kWidth > 512 ? 16
                                              : 32;

template <typename T, int kWidth, int kOutputs>
struct HopperForwardShared {
  struct Rest {
    HopperSums sums;
    HopperWeights<T, kOutputs> fixed;
    alignas(16) HopperHidden<T> hidden;
    alignas(16) T weights[kOutputs / 8][kHopperRows / 8][8][8];  // P in tiles
    HopperMoments moments;
    float2 stats[kHopperRows];             // mean and 1/std
    float top[kOutputs], total[kOutputs];  // of the share so far: the largest score, and the sum below it
    float decay[kOutputs], inverse[kOutputs];
    uint8_t keep[6][kHopperRows];  // of every stage
  };
  using Tokens = HopperTokens<T, kWidth>;
  static constexpr int kFit = (kHopperShared - static_cast<int>(sizeof(Rest))) / static_cast<int>(sizeof(Tokens));
  static constexpr int kStages = kFit < 6 ? kFit : 6;
  static_assert(kStages >= 3);
  alignas(16) Tokens x[kStages];
  Rest rest;
};

template <typename T, int kWidth, int kOutputs>
struct HopperForwardBlock : HopperBlock<T, kWidth> {
  using Base = HopperBlock<T, kWidth>;
  using Base::in, Base::thread, Base::warp, Base::lane, Base::g, Base::t, Base::group, Base::part;
  using Base::kProducts, Base::kBlocks, Base::token, Base::transposed, Base::unit;
  using Shared = HopperForwardShared<T, kWidth, kOutputs>;
  static constexpr int kOutputTiles = kOutputs / 8;
  static_assert(kOutputs % 8 == 0);

  Shared& shared;
  typename Shared::Rest& rest = shared.rest;

  __device__ void load_weights(Fragment (&wg)[kProducts]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = unit(i) < in.hidden;
      const T* row = in.wg + (inside ? unit(i) : 0) * kWidth + group * (kWidth / 4) + 2 * t;
#pragma unroll
      for (int k = 0; k < kProducts; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t pair = *reinterpret_cast<const uint32_t*>(row + k * 16 + half * 8);
          wg[k].r[half * 2 + i] = inside ? pair : 0;
        }
      }
    }
    rest.fixed.load(in);
    if (thread < kOutputs) rest.top[thread] = -INFINITY, rest.total[thread] = 0.f;
  }

  __device__ void load_tokens(const LearnerStep& step, int stage) {
    const bool keep = this->copy_tokens(step, shared.x[stage]);
    if (group == 0 && lane < 8) rest.keep[stage][token] = keep;
  }

  // gelu(h) of two hidden units and two tokens a thread, and the tokens' mean and 1/std.
  __device__ void hidden(float4 own) {
    float values[4];
    this->add_quarters(rest.sums, own, values);
    const int first = this->first_token();
    float mean[2], rstd[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 quarters[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) quarters[i] = rest.moments[i][first + j];
      mean[j] = 0.25f * (quarters[0].x + quarters[1].x + (quarters[2].x + quarters[3].x));
      float around = 0.f, between = 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        around += quarters[i].y;
        between += (quarters[i].x - mean[j]) * (quarters[i].x - mean[j]);
      }
      rstd[j] = rsqrtf(around * (1.f / kWidth) + 0.25f * between + in.eps);
      if (thread % 128 < 4) rest.stats[first + j] = make_float2(mean[j], rstd[j]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int h = unit(i / 2);
      values[i] = rstd[i % 2] * (values[i] - mean[i % 2] * rest.fixed.c[h]) + rest.fixed.e[h];
    }
    gelus(values, in.tanh);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* to = rest.hidden + unit(i) * kHopperHiddenPitch + first;
      *reinterpret_cast<uint32_t*>(to) = pack<T>(values[2 * i], values[2 * i + 1]);
    }
  }

  // Scores of 8 outputs for all tokens: gelu(h) w2^T.
  __device__ void scores(Accumulator (&acc)[2]) {
    const T* hidden = rest.hidden + (lane / 16 * 8 + lane % 8) * kHopperHiddenPitch + lane / 8 % 2 * 8;
    const T* w2 = rest.fixed.w2 + (warp / 2 * 16 + tile_row(lane)) * rest.fixed.kPitch + tile_column(lane);
#pragma unroll
    for (int i = 0; i < 2; ++i) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.f;
#pragma unroll
    for (int h = 0; h < kHidden; h += 16) {
      const Fragment b = load_matrices(w2 + h);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Fragment a = load_transposed(hidden + h * kHopperHiddenPitch + i * 16);
        multiply_add<T>(acc[i], a, warp % 2 ? b.r[1] : b.r[0], warp % 2 ? b.r[3] : b.r[2]);
      }
    }
  }

  // The weights of 8 outputs below the largest score so far, and what earlier sums are to be scaled by.
  __device__ void softmax(const LearnerStep& step, int stage, float2* pairs) {
    Accumulator acc[2];
    scores(acc);
    bool keep[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) keep[i] = rest.keep[stage][i * 8 + g];
    const bool last = step.last(kHopperRows);
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int k = warp * 8 + 2 * t + column;
      float s[4], largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[i] = acc[i / 2][i % 2 * 2 + column] + rest.fixed.b2[k];
        if (keep[i]) largest = fmaxf(largest, s[i]);
      }
      const float top = rest.top[k];
      largest = fmaxf(top, column_max(largest));
      const float base = largest == -INFINITY ? 0.f : largest;
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = exponential(keep[i] ? s[i] - base : -INFINITY);
        sum += p;
        rest.weights[warp][i][2 * t + column][g] = from_float<T>(p);
      }
      const float decay = exponential(top - base);
      const float all = rest.total[k] * decay + column_sum(sum);
      __syncwarp();  // all lanes have read what the first of a column writes
      if (g == 0) {
        rest.decay[k] = decay;
        rest.top[k] = last ? -INFINITY : largest, rest.total[k] = last ? 0.f : all;
        if (last) {
          const float inverse = all == 0.f ? 0.f : 1.f / all;
          rest.inverse[k] = inverse;
          if (k < in.outputs) pairs[step.item * in.outputs + k] = make_float2(all == 0.f ? 0.f : largest, inverse);
        }
      }
    }
  }

  // acc = decay acc + x^T P in this warp's columns.
  __device__ void pool(int stage, Accumulator (&acc)[kBlocks][kOutputTiles]) {
    Fragment weights[kOutputTiles];
#pragma unroll
    for (int j = 0; j < kOutputTiles; ++j) {
      const float first = rest.decay[j * 8 + 2 * t], second = rest.decay[j * 8 + 2 * t + 1];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        acc[m][j][0] *= first, acc[m][j][1] *= second, acc[m][j][2] *= first, acc[m][j][3] *= second;
      }
    }
#pragma unroll
    for (int j = 0; j < kOutputTiles; ++j) weights[j] = load_matrices(rest.weights[j][lane / 8][lane % 8]);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      if (!has_block(m)) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const Fragment x = load_transposed(transposed(shared.x[stage], column(m) / 8, n * 16));
#pragma unroll
        for (int j = 0; j < kOutputTiles; ++j)
          multiply_add<T>(acc[m][j], x, weights[j].r[2 * n], weights[j].r[2 * n + 1]);
      }
    }
  }

  // The first of the m-th 16 columns that this warp pools.
  __device__ int column(int m) const { return (m * 16 + warp) * 16; }
  __device__ bool has_block(int m) const { return kWidth % 256 == 0 || column(m) < kWidth; }

  __device__ void store_stats(const LearnerStep& step, float2* to) const {
    if (warp == 15 && step.n + lane < step.end) to[step.image(in) * in.tokens + step.n + lane] = rest.stats[lane];
  }

  // The share's pooled tokens; acc is then 0 for the next.
  __device__ void store(const LearnerStep& step, Accumulator (&acc)[kBlocks][kOutputTiles], T* y, float* parts) {
#pragma unroll
    for (int j = 0; j < kOutputTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = j * 8 + 2 * t + i;
        const float inverse = rest.inverse[k];
        const int64_t to = (step.item * in.outputs + k) * kWidth + g;
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            const float value = acc[m][j][2 * low + i] * inverse;
            acc[m][j][2 * low + i] = 0.f;
            if (k >= in.outputs || !has_block(m)) continue;
            if (parts) {
              parts[to + column(m) + low * 8] = value;
            } else {
              y[to + column(m) + low * 8] = from_float<T>(value);
            }
          }
        }
      }
    }
  }
};

// y [B,K,D], or where images are cut `parts` [B,share,K,D]; pairs [B,share,K]: largest score and inverse sum of a
// share's softmax; stats [B,N]: mean and 1/std of every token. No more blocks than shares.
template <typename T, int kWidth, int kOutputs>
__global__ __launch_bounds__(kHopperThreads, 1) void learn_tokens_hopper(Learner<T> in, T* y, float* parts,
                                                                         float2* pairs, float2* stats) {
#ifdef JAIR_WARPGROUPS
  using Block = HopperForwardBlock<T, kWidth, kOutputs>;
  constexpr int kStages = Block::Shared::kStages;
  JAIR_SHARED(memory);
  Block block{{in}, *reinterpret_cast<typename Block::Shared*>(memory)};
  const int64_t items = in.batch * in.shares;
  LearnerStep step = LearnerStep::first(in, blockIdx.x), ahead = step;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (ahead.item < items) {
      block.load_tokens(ahead, i);
      ahead = ahead.next(in, kHopperRows);
    }
    commit_copies();
  }
  Fragment wg[Block::kProducts];
  block.load_weights(wg);
  Accumulator pooled[Block::kBlocks][Block::kOutputTiles] = {};
  float4 own;
  {
    wait_copies<kStages - 2>();
    __syncthreads();
    Accumulator acc[4];
    block.begin_hidden(block.shared.x[0], wg, acc);
    block.moments(block.shared.x[0], block.rest.moments);
    wait_products<0>();
    block.exchange(acc, block.rest.sums, own);
    __syncthreads();
    block.hidden(own);
  }
  for (int stage = 0; step.item < items;) {
    const LearnerStep next = step.next(in, kHopperRows);
    const int following = stage + 1 == kStages ? 0 : stage + 1;
    const bool more = next.item < items;
    wait_copies<kStages - 3>();
    __syncthreads();  // the next step's tokens have arrived, and nobody reads those of the step before
    if (ahead.item < items) {
      block.load_tokens(ahead, stage == 0 ? kStages - 1 : stage - 1);
      ahead = ahead.next(in, kHopperRows);
    }
    commit_copies();
    Accumulator acc[4];
    block.begin_hidden(block.shared.x[following], wg, acc);  // of whatever lies there after the last step
    if (block.warp < Block::kOutputTiles) block.softmax(step, stage, pairs);
    block.store_stats(step, stats);
    if (more) block.moments(block.shared.x[following], block.rest.moments);
    wait_products<0>();
    if (more) block.exchange(acc, block.rest.sums, own);
    __syncthreads();
    block.pool(stage, pooled);
    if (more) block.hidden(own);
    if (step.last(kHopperRows)) block.store(step, pooled, y, parts);
    step = next, stage = following;
  }
#endif
}

}  // namespace jair::cuda
