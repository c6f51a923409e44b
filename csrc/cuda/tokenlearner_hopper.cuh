// What the passes of fused_tokenlearner over x share on Hopper, for 16-bit elements.
//
// A block of four warpgroups takes the tokens of its share of an image 32 at a time. They lie in shared memory in tiles
// of 8x8 elements, as which they are an operand of every product. Of h^T = Wg x^T a warpgroup has a quarter of D, and
// of the sums of the quarters 8 tokens, a warp of those 16 hidden units.
#pragma once

#include "cuda/tokenlearner_common.cuh"
#include "cuda/warpgroup.cuh"

namespace jair::cuda {

constexpr int kHopperThreads = 512, kHopperRows = 32, kHopperShared = 227 * 1024;

// Tokens in rows of 16 bytes: columns of 8 elements, tokens.
template <typename T, int kWidth>
using HopperTokens = T[kWidth / 8][kHopperRows][8];

// For 8 tokens each, what the other three quarters have.
using HopperSums = float4[4][3][128];

// Of a quarter of D: the mean, and the sum of squares of what lies around it.
using HopperMoments = float2[4][kHopperRows];

// gelu(h)^T with rows longer than their contents, so that 8 of them lie in different banks.
constexpr int kHopperHiddenPitch = kHopperRows + 8;
template <typename T>
using HopperHidden = T[kHidden * kHopperHiddenPitch];

// What is small of the score MLP. 16 outputs at least, as many as a product takes.
template <typename T, int kOutputs>
struct HopperWeights {
  static constexpr int kPadded = kOutputs < 16 ? 16 : kOutputs, kPitch = kHidden + 8;
  alignas(16) T w2[kPadded * kPitch];
  float c[kHidden], e[kHidden], b2[kPadded];

  __device__ void load(const Learner<T>& in) {
    const int thread = threadIdx.x;
    for (int i = thread; i < kPadded * kHidden; i += kHopperThreads) {
      const int k = i / kHidden, h = i % kHidden;
      const bool inside = k < in.outputs && h < in.hidden;
      w2[k * kPitch + h] = inside ? in.w2[k * in.hidden + h] : from_float<T>(0.f);
    }
    if (thread < kHidden) {
      c[thread] = thread < in.hidden ? in.c[thread] : 0.f;
      e[thread] = thread < in.hidden ? in.e[thread] : 0.f;
    }
    if (thread < kPadded) b2[thread] = in.bias(thread);
  }
};

template <typename T, int kWidth>
struct HopperBlock {
  using Tokens = HopperTokens<T, kWidth>;
  static constexpr int kProducts = kWidth / 64;            // of 16 columns, in a quarter of D
  static constexpr int kBlocks = (kWidth / 16 + 15) / 16;  // of 16 columns, of a warp at most
  static constexpr int kPieces = kWidth / 8 / 16;          // of a token, that a thread copies
  static constexpr int kTile = 8 * 8 * sizeof(T), kTileColumn = kHopperRows * 8 * sizeof(T);
  static_assert(kWidth % 128 == 0);

  const Learner<T>& in;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int group = warp / 4, part = warp % 4;  // of this warp's warpgroup
  // A thread copies pieces of one token of a step: every fourth of a quarter.
  const int token = part * 8 + lane % 8, piece = group * (kWidth / 32) + lane / 8;

  // Whether this thread's token is kept. What is not is zeros, whatever lies there.
  __device__ bool copy_tokens(const LearnerStep& step, Tokens& x) const {
    const int image = step.image(in);
    const bool keep = in.kept(image, step.n + token, step.end);
    const T* from = in.x + image * in.x_image + (keep ? step.n + token : 0) * in.x_token + piece * 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) copy16(x[piece + 4 * i][token], from + i * 32, keep);
    return keep;
  }

  // Begins this warpgroup's quarter of h^T; `wg` has its columns and this warp's 16 hidden units.
  __device__ void begin_hidden(const Tokens& x, const Fragment (&wg)[kProducts], Accumulator (&acc)[4]) const {
    const Operand tokens(x[group * (kWidth / 32)], kTileColumn, kTile);
    begin_products();
#pragma unroll
    for (int k = 0; k < kProducts; ++k) multiply_group<T>(acc, wg[k], tokens + k * 2 * kTileColumn, k > 0);
    commit_products();
  }

  // Moments of 8 tokens in a quarter of D, whose sums of x and x^2 tensor cores find: with eight rows of ones below the
  // tokens as A and the tokens as B, products have squares on the diagonal and sums below.
  __device__ void moments(const Tokens& x, HopperMoments& out) const {
    constexpr float kShare = 4.f / kWidth;
    const uint32_t ones = pack<T>(1.f, 1.f);
    Accumulator acc[2] = {};
#pragma unroll
    for (int k = 0; k < kProducts; k += 2) {
      const Fragment tile = load_matrices(x[group * (kWidth / 32) + 2 * k + lane / 8][part * 8 + lane % 8]);
      multiply_add<T>(acc[0], Fragment{{tile.r[0], ones, tile.r[1], ones}}, tile.r[0], tile.r[1]);
      multiply_add<T>(acc[1], Fragment{{tile.r[2], ones, tile.r[3], ones}}, tile.r[2], tile.r[3]);
    }
    const bool mine = g / 2 == t;  // this lane has token g's
    const float square = g % 2 ? acc[0][1] + acc[1][1] : acc[0][0] + acc[1][0];
    const float sum = g % 2 ? acc[0][3] + acc[1][3] : acc[0][2] + acc[1][2];
    const float mean = sum * kShare, around = square - sum * mean;
    // Where the mean is 8 times what lies around it or more, that is found by itself.
    if (__any_sync(0xffffffffu, mine && !(around >= square * 0.015625f))) {
      moments_around(x, out, __shfl_sync(0xffffffffu, mean, lane % 8 * 4 + lane % 8 / 2));
    } else if (mine) {
      out[group][part * 8 + g] = make_float2(mean, around);
    }
  }

  // The same around a mean of the token that this thread copies.
  __device__ void moments_around(const Tokens& x, HopperMoments& out, float mean) const {
    constexpr float kShare = 4.f / kWidth;
    float sum = 0.f, square = 0.f;
#pragma unroll 1
    for (int i = 0; i < kPieces; ++i) {
      const uint4 bits = *reinterpret_cast<const uint4*>(x[piece + 4 * i][token]);
      const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = unpack<T>(pairs[j]);
        const float low = pair.x - mean, high = pair.y - mean;
        sum += low + high;
        square += low * low + high * high;
      }
    }
#pragma unroll
    for (int hop = 8; hop < 32; hop *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, hop);
      square += __shfl_xor_sync(0xffffffffu, square, hop);
    }
    const float off = sum * kShare;
    if (lane < 8) out[group][token] = make_float2(mean + off, fmaxf(square - sum * off, 0.f));
  }

  // Leaves to each warpgroup this one's part of its 8 tokens, and keeps its own.
  __device__ void exchange(const Accumulator (&acc)[4], HopperSums& sums, float4& own) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 part_sum = make_float4(acc[j][0], acc[j][1], acc[j][2], acc[j][3]);
      if (j == group) {
        own = part_sum;
      } else {
        sums[j][group < j ? group : group - 1][thread % 128] = part_sum;
      }
    }
  }

  // The sums of two hidden units, `unit` and 8 further, for two tokens, `first_token` and the next.
  __device__ void add_quarters(const HopperSums& sums, float4 own, float (&h)[4]) const {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const float4 other = sums[group][i][thread % 128];
      own.x += other.x, own.y += other.y, own.z += other.z, own.w += other.w;
    }
    h[0] = own.x, h[1] = own.y, h[2] = own.z, h[3] = own.w;
  }

  __device__ int unit(int i) const { return part * 16 + g + i * 8; }
  __device__ int first_token() const { return group * 8 + 2 * t; }

  // Where this lane finds its row of a 16x16 tile, 16 tokens from `n` on and the columns of two tiles from `column` on,
  // for load_transposed: an operand A whose rows are the columns.
  template <int kRows>
  __device__ const T* transposed(const T (*tiles)[kRows][8], int column, int n) const {
    return tiles[column + lane / 8 % 2][n + lane / 16 * 8 + lane % 8];
  }
};

}  // namespace jair::cuda
