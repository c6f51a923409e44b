// fused_tokenlearner's forward: one pass over x, for 16-bit elements.
//
// A block of 16 warps (8 for narrow rows) keeps the folded weights Wg [64,D] in shared memory and takes the tokens of
// its share of an image `kRows` at a time, the next ones arriving meanwhile. Of each step
//
//   products   h = x Wg^T and the moments of the rows: four warps share D, the others the hidden units
//   hidden     sums of the four, LayerNorm as r (h - m c) + e, GELU
//   softmax    scores and weights, 8 outputs a warp; what was pooled before is rescaled as in an online softmax
//   pool       y += P^T x: every warp has an equal part of the columns of all outputs in registers
//
// so that x crosses the memory bus and the L2 cache once.
#pragma once

#include "cuda/tokenlearner_common.cuh"

namespace jair::cuda {

// Shared memory of one block. Rows are 16 bytes longer than their contents, so that the 8 rows of an 8x8 matrix lie
// in different banks.
template <typename T, int kWidth, int kRows, int kOutputs>
struct LearnerShared {
  static constexpr int kPitch = kWidth + 8, kHiddenPitch = kHidden + 8, kWeightPitch = kRows + 8;
  static constexpr int kSumPitch = kHidden + 8;
  LearnerWeights<T, kWidth, kOutputs> fixed;
  T x[2][kRows * kPitch];
  T hidden[kRows * kHiddenPitch];
  T weights[kOutputs * kWeightPitch];  // P^T
  float sums[2][kRows * kSumPitch];
  float2 moments[4][kRows];  // sums of x - shift and of its squares, of a quarter of D each
  float decay[kOutputs], inverse[kOutputs];
  uint8_t keep[2][kRows];
};

template <typename T, int kWidth, int kRows, int kOutputs>
struct LearnerBlock {
  using Shared = LearnerShared<T, kWidth, kRows, kOutputs>;
  static constexpr int kWarps = kLearnerWarps<kWidth>, kThreads = 32 * kWarps;
  static constexpr int kRowTiles = kRows / 16, kOutputTiles = kOutputs / 16;
  static constexpr int kColumns = kWidth / kWarps, kColumnTiles = kColumns / 8;  // of one warp
  static constexpr int kHiddenTiles = kHidden / 8 / (kWarps / 4);                // of one warp's products
  static_assert(kColumns % 16 == 0 && kRows % 16 == 0 && kOutputs % 16 == 0 && kRowTiles <= 2);

  const Learner<T>& in;
  Shared& shared;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  // Rows that are not kept are zeros, whatever lies there. A warp takes whole rows, so that addresses are a row's.
  __device__ void load_tokens(const LearnerStep& step, int buffer) {
    const T* image = in.x + step.image * in.x_image + lane * 8;
    T* to = shared.x[buffer] + lane * 8;
#pragma unroll
    for (int i = 0; i < kRows / kWarps; ++i) {
      const int row = warp + i * kWarps;
      const bool keep = in.kept(step.image, step.n + row, step.end);
      copy_row<kWidth / 8, 32>(to + row * Shared::kPitch, image + (keep ? step.n + row : 0) * in.x_token, lane, keep);
      if (lane == 0) shared.keep[buffer][row] = keep;
    }
  }

  // This warp's part of h: all rows, some of the hidden units, a quarter of D.
  __device__ void products(int buffer, Accumulator (&acc)[kRowTiles][kHiddenTiles]) {
    const int quarter = warp % 4, part = warp / 4;
    const T* x = shared.x[buffer] + tile_row(lane) * Shared::kPitch + tile_column(lane);
    const T* w = shared.fixed.wg + (part * kHiddenTiles * 8 + tile_row(lane)) * Shared::kPitch + tile_column(lane);
    const bool measures = part < kRowTiles;  // the moments of 16 rows
    const T* row = shared.x[buffer] + part * 16 * Shared::kPitch;
    const float shift[2] = {measures ? to_float(row[g * Shared::kPitch]) : 0.f,
                            measures ? to_float(row[(g + 8) * Shared::kPitch]) : 0.f};
    float sum[2] = {}, square[2] = {};
#pragma unroll 2
    for (int i = 0; i < kWidth / 4; i += 16) {
      const int d = quarter * (kWidth / 4) + i;
      Fragment a[kRowTiles];
      multiply_rows<kHiddenTiles>(x + d, w + d, Shared::kPitch, a, acc);
      if (measures) {
        const Fragment mine = kRowTiles == 2 && part == 1 ? a[kRowTiles - 1] : a[0];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair = unpack<T>(mine.r[i]);
          const float low = pair.x - shift[i % 2], high = pair.y - shift[i % 2];
          sum[i % 2] += low + high;
          square[i % 2] += low * low;
          square[i % 2] += high * high;
        }
      }
    }
    if (!measures) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
        square[i] += __shfl_xor_sync(0xffffffffu, square[i], step);
      }
      if (t == 0) shared.moments[quarter][part * 16 + g + i * 8] = make_float2(sum[i], square[i]);
    }
  }

  // Sums over the quarters of D, two by two; the last two are left for `hidden`.
  __device__ void add_quarters(Accumulator (&acc)[kRowTiles][kHiddenTiles]) {
    const int quarter = warp % 4;
    float* sums = shared.sums[quarter % 2] + warp / 4 * kHiddenTiles * 8 + 2 * t;
    auto at = [&](int i, int j, int low) {
      return reinterpret_cast<float2*>(sums + (i * 16 + g + low * 8) * Shared::kSumPitch + j * 8);
    };
    add_in_pairs(acc, quarter, kHiddenTiles, at);
  }

  // gelu(h) of all rows, and their mean and 1/std.
  __device__ void hidden(const LearnerStep& step, int buffer, float2* stats) {
    constexpr int kSharing = kThreads / kRows, kMine = kHidden / kSharing;  // threads of a row, units of each
    const int row = thread / kSharing, first = thread % kSharing * kMine;
    float sum = 0.f, square = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 part = shared.moments[i][row];
      sum += part.x, square += part.y;
    }
    const float offset = sum * (1.f / kWidth);
    const float mean = to_float(shared.x[buffer][row * Shared::kPitch]) + offset;
    const float rstd = 1.f / sqrtf(fmaxf(square * (1.f / kWidth) - offset * offset, 0.f) + in.eps);
    const float* sums = shared.sums[0] + row * Shared::kSumPitch + first;
    constexpr int kNext = kRows * Shared::kSumPitch;
#pragma unroll
    for (int i = 0; i < kMine; i += 2) {
      const float2 low = *reinterpret_cast<const float2*>(sums + i);
      const float2 high = *reinterpret_cast<const float2*>(sums + i + kNext);
      const float h0 = rstd * (low.x + high.x - mean * shared.fixed.c[first + i]) + shared.fixed.e[first + i];
      const float h1 = rstd * (low.y + high.y - mean * shared.fixed.c[first + i + 1]) + shared.fixed.e[first + i + 1];
      const uint32_t pair = pack<T>(gelu(h0, in.tanh), gelu(h1, in.tanh));
      *reinterpret_cast<uint32_t*>(shared.hidden + row * Shared::kHiddenPitch + first + i) = pair;
    }
    const int64_t n = step.n + row;
    if (first == 0 && n < step.end) stats[step.image * in.tokens + n] = make_float2(mean, rstd);
  }

  // Scores of 8 outputs, their weights below the largest score so far, and what earlier sums are to be scaled by. A
  // warp has one tile of outputs; its lanes keep the largest score and the sum of two of them.
  __device__ void softmax(const LearnerStep& step, int buffer, float (&top)[2], float (&total)[2], float2* pairs) {
    Accumulator acc[kRowTiles];
    score_tile<kRowTiles>(shared.hidden, shared.fixed.w2, warp, lane, acc);
    bool keep[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) keep[i] = shared.keep[buffer][i * 8 + g];
    const bool last = step.last(kRows);
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int k = warp * 8 + 2 * t + column;
      float s[2 * kRowTiles], largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        s[i] = acc[i / 2][i % 2 * 2 + column] + shared.fixed.b2[k];
        if (keep[i]) largest = fmaxf(largest, s[i]);
      }
      largest = fmaxf(top[column], column_max(largest));
      const float base = largest == -INFINITY ? 0.f : largest;
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        const float p = keep[i] ? exponential(s[i] - base) : 0.f;
        sum += p;
        shared.weights[k * Shared::kWeightPitch + i * 8 + g] = from_float<T>(p);
      }
      const float decay = exponential(top[column] - base);
      const float all = total[column] * decay + column_sum(sum), inverse = all == 0.f ? 0.f : 1.f / all;
      if (g == 0) {
        shared.decay[k] = decay, shared.inverse[k] = inverse;
        if (last && k < in.outputs)
          pairs[step.item * in.outputs + k] = make_float2(all == 0.f ? 0.f : largest, inverse);
      }
      top[column] = last ? -INFINITY : largest, total[column] = last ? 0.f : all;
    }
  }

  // acc = decay acc + P^T x in this warp's columns.
  __device__ void pool(int buffer, Accumulator (&acc)[kOutputTiles][kColumnTiles]) {
    const T* weights = shared.weights + tile_row(lane) * Shared::kWeightPitch + tile_column(lane);
    const T* x = shared.x[buffer] + tile_row(lane) * Shared::kPitch + warp * kColumns + tile_column(lane);
#pragma unroll
    for (int m = 0; m < kOutputTiles; ++m) {
      const float high = shared.decay[m * 16 + g], low = shared.decay[m * 16 + g + 8];
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        acc[m][j][0] *= high, acc[m][j][1] *= high, acc[m][j][2] *= low, acc[m][j][3] *= low;
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      Fragment a[kOutputTiles];
#pragma unroll
      for (int m = 0; m < kOutputTiles; ++m) a[m] = load_matrices(weights + m * 16 * Shared::kWeightPitch + i * 16);
#pragma unroll
      for (int j = 0; j < kColumnTiles; j += 2) {
        const Fragment b = load_transposed(x + i * 16 * Shared::kPitch + j * 8);
#pragma unroll
        for (int m = 0; m < kOutputTiles; ++m) {
          multiply_add<T>(acc[m][j], a[m], b.r[0], b.r[1]);
          multiply_add<T>(acc[m][j + 1], a[m], b.r[2], b.r[3]);
        }
      }
    }
  }

  // The share's pooled tokens; acc is then 0 for the next.
  __device__ void store(const LearnerStep& step, Accumulator (&acc)[kOutputTiles][kColumnTiles], T* y, float* parts) {
#pragma unroll
    for (int m = 0; m < kOutputTiles; ++m) {
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const int k = m * 16 + g + low * 8;
        const float inverse = shared.inverse[k];
        const int64_t to = (step.item * in.outputs + k) * kWidth + warp * kColumns + 2 * t;
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          const float first = acc[m][j][2 * low] * inverse, second = acc[m][j][2 * low + 1] * inverse;
          if (k < in.outputs && parts) *reinterpret_cast<float2*>(parts + to + j * 8) = make_float2(first, second);
          if (k < in.outputs && !parts) *reinterpret_cast<uint32_t*>(y + to + j * 8) = pack<T>(first, second);
          acc[m][j][2 * low] = acc[m][j][2 * low + 1] = 0.f;
        }
      }
    }
  }
};

// y [B,K,D], or where images are cut `parts` [B,share,K,D]; pairs [B,share,K]: largest score and inverse sum of a
// share's softmax; stats [B,N]: mean and 1/std of every token.
template <typename T, int kWidth, int kRows, int kOutputs>
__global__ __launch_bounds__(32 * kLearnerWarps<kWidth>, 1) void learn_tokens(Learner<T> in, T* y, float* parts,
                                                                              float2* pairs, float2* stats) {
#ifdef JAIR_LARGE_SHARED
  using Block = LearnerBlock<T, kWidth, kRows, kOutputs>;
  JAIR_SHARED(memory);
  Block block{in, *reinterpret_cast<typename Block::Shared*>(memory)};
  const int64_t items = in.batch * in.shares;
  Accumulator pooled[Block::kOutputTiles][Block::kColumnTiles] = {};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  LearnerStep step = LearnerStep::first(in, blockIdx.x);
  block.shared.fixed.load(in);
  if (step.item < items) block.load_tokens(step, 0);
  commit_copies();
  for (int buffer = 0; step.item < items; buffer ^= 1) {
    const LearnerStep next = step.next(in, kRows);
    wait_copies<0>();
    __syncthreads();  // the step's tokens have arrived, and nobody reads those of the step before
    if (next.item < items) block.load_tokens(next, buffer ^ 1);
    commit_copies();
    Accumulator acc[Block::kRowTiles][Block::kHiddenTiles] = {};
    block.products(buffer, acc);
    block.add_quarters(acc);
    block.hidden(step, buffer, stats);
    __syncthreads();
    if (block.warp < 2 * Block::kOutputTiles) block.softmax(step, buffer, top, total, pairs);
    __syncthreads();
    block.pool(buffer, pooled);
    if (step.last(kRows)) block.store(step, pooled, y, parts);
    step = next;
  }
#endif
}

}  // namespace jair::cuda
