// The first half of fused_tokenlearner's backward (tokenlearner_backward.cuh): tensors, loads, and the products over D.
#pragma once

#include "cuda/tokenlearner_common.cuh"

namespace jair::cuda {

template <typename T>
struct LearnerGradients {
  const T* dy;          // [B,K,D]
  const float2* pairs;  // [B,K]: largest score and inverse sum
  const float2* stats;  // [B,N]: mean and 1/std
  const float* delta;   // [B,K]: y . dy
  T *dx, *dh, *g, *ds;  // [B,N,D], [B,N,64], [B,N,64] = gelu(h), [B,N,kOutputs]: the latter with zeros beyond H and K
};

template <typename T, int kWidth, int kRows, int kOutputs>
struct LearnerBackwardShared {
  static constexpr int kPitch = kWidth + 8, kHiddenPitch = kHidden + 8, kOutputPitch = kOutputs + 8;
  static constexpr int kSumPitch = kHidden + kOutputs + 8;
  LearnerWeights<T, kWidth, kOutputs> fixed;
  T x[kRows * kPitch];
  T dy[kOutputs * kPitch];
  T hidden[kRows * kHiddenPitch];   // gelu(h), then dH
  T weights[kRows * kOutputPitch];  // P
  T ds[kRows * kOutputPitch];
  float sums[2][kRows * kSumPitch];
  float2 along[8][kRows];  // of every warp's hidden units: dH . c and dH . (h - e)
  float top[kOutputs], inverse[kOutputs], delta[kOutputs];
  float2 stats[2][kRows];  // zeros of rows that are not kept
  uint8_t keep[2][kRows];
};

template <typename T, int kWidth, int kRows, int kOutputs>
struct LearnerBackwardProducts {
  using Shared = LearnerBackwardShared<T, kWidth, kRows, kOutputs>;
  static constexpr int kWarps = kLearnerWarps<kWidth>, kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kRows / 16, kOutputTiles = kOutputs / 16;
  static constexpr int kColumns = kWidth / kWarps, kPieces = kColumns / 8;  // of one warp; pieces of 16 bytes
  // Tiles of 8 columns of one warp's products: of h, and of dP, of which there may be fewer than warps.
  static constexpr int kHiddenTiles = kHidden / 8 / (kWarps / 4);
  static constexpr int kScoreTiles = 2 * kOutputTiles > kWarps / 4 ? 2 * kOutputTiles / (kWarps / 4) : 1;
  static constexpr int kProducts = kHiddenTiles + kScoreTiles;
  // Of the tiles of h as they are worked on: 8 hidden units of every warp, and rows.
  static constexpr int kMyRowTiles = kRowTiles * 8 > kWarps ? kRowTiles * 8 / kWarps : 1;
  static_assert(kColumns % 16 == 0 && kRows % 16 == 0 && kOutputs % 16 == 0 && kRowTiles <= 2 && kScoreTiles <= 2);

  const Learner<T>& in;
  const LearnerGradients<T>& out;
  Shared& shared;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  __device__ void load_image(int64_t image) {
    for (int k = warp; k < kOutputs; k += kWarps) {
      const bool inside = k < in.outputs;
      const T* row = out.dy + (image * in.outputs + (inside ? k : 0)) * kWidth + lane * 8;
      copy_row<kWidth / 8, 32>(shared.dy + k * Shared::kPitch + lane * 8, row, lane, inside);
    }
    for (int k = thread; k < kOutputs; k += kThreads) {
      const bool inside = k < in.outputs;
      const float2 pair = inside ? out.pairs[image * in.outputs + k] : make_float2(0.f, 0.f);
      shared.top[k] = pair.x, shared.inverse[k] = pair.y;
      shared.delta[k] = inside ? out.delta[image * in.outputs + k] : 0.f;
    }
  }

  // This warp's columns of the rows; rows that are not kept are zeros.
  __device__ void load_tokens(const LearnerStep& step, int buffer) {
    const T* image = in.x + step.image * in.x_image + warp * kColumns + t * 8;
    T* to = shared.x + warp * kColumns + t * 8;
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {  // four lanes a row
      const int row = g + i * 8;
      const bool keep = in.kept(step.image, step.n + row, step.end);
      copy_row<kPieces, 4>(to + row * Shared::kPitch, image + (keep ? step.n + row : 0) * in.x_token, t, keep);
    }
    if (warp == 0 && lane < kRows) {
      const bool keep = in.kept(step.image, step.n + lane, step.end);
      shared.keep[buffer][lane] = keep;
      shared.stats[buffer][lane] = keep ? out.stats[step.image * in.tokens + step.n + lane] : make_float2(0.f, 0.f);
    }
  }

  // The first of this warp's tiles of dP, where it has any.
  __device__ int score_tile_of_warp() const { return warp / 4 * kScoreTiles; }
  __device__ bool has_scores() const { return score_tile_of_warp() < 2 * kOutputTiles; }

  // This warp's part of h and dP: all rows, some of the columns of each, a quarter of D.
  __device__ void products(Accumulator (&acc)[kRowTiles][kProducts]) {
    const int quarter = warp % 4, tile = has_scores() ? score_tile_of_warp() : 0;
    const T* x = shared.x + tile_row(lane) * Shared::kPitch + tile_column(lane);
    const T* w = shared.fixed.wg + (warp / 4 * kHiddenTiles * 8 + tile_row(lane)) * Shared::kPitch + tile_column(lane);
    const T* dy = shared.dy + (tile / 2 * 16 + tile_row(lane)) * Shared::kPitch + tile_column(lane);
#pragma unroll 2
    for (int i = 0; i < kWidth / 4; i += 16) {
      const int d = quarter * (kWidth / 4) + i;
      Fragment a[kRowTiles];
      multiply_rows<kHiddenTiles>(x + d, w + d, Shared::kPitch, a, acc);
      if (!has_scores()) continue;
      const Fragment s = load_matrices(dy + d);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        if constexpr (kScoreTiles == 1) {
          multiply_add<T>(acc[i][kHiddenTiles], a[i], tile % 2 ? s.r[1] : s.r[0], tile % 2 ? s.r[3] : s.r[2]);
        } else {
          multiply_add<T>(acc[i][kHiddenTiles], a[i], s.r[0], s.r[2]);
          multiply_add<T>(acc[i][kHiddenTiles + 1], a[i], s.r[1], s.r[3]);
        }
      }
    }
  }

  // Sums over the quarters of D, two by two; the last two are left for their readers. Columns: h, then dP.
  __device__ void add_quarters(Accumulator (&acc)[kRowTiles][kProducts]) {
    const int quarter = warp % 4, tiles = has_scores() ? kProducts : kHiddenTiles;
    float* sums = shared.sums[quarter % 2] + 2 * t;
    auto at = [&](int i, int j, int low) {
      const int column = j < kHiddenTiles ? (warp / 4 * kHiddenTiles + j) * 8
                                          : kHidden + (score_tile_of_warp() + j - kHiddenTiles) * 8;
      return reinterpret_cast<float2*>(sums + (i * 16 + g + low * 8) * Shared::kSumPitch + column);
    };
    add_in_pairs(acc, quarter, tiles, at);
  }

  __device__ float2 summed(int row, int column) const {
    const float* low = shared.sums[0] + row * Shared::kSumPitch + column;
    const float2 a = *reinterpret_cast<const float2*>(low);
    const float2 b = *reinterpret_cast<const float2*>(low + kRows * Shared::kSumPitch);
    return make_float2(a.x + b.x, a.y + b.y);
  }
};

}  // namespace jair::cuda
