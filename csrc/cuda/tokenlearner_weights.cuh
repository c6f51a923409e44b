// What the gradients of the score MLP's parameters are summed from: of each share of all tokens
//
//   dH^T xhat [H,D]     dS^T gelu(h) [K,H]     sum dH [H]     sum dS [K]
//
// with xhat = (x - m) r rounded as the product takes it. A block has all hidden units and a chunk of the columns of x;
// every warp half of the former and an eighth of the latter, in registers. The shares are added in their order later.
#pragma once

#include "cuda/tokenlearner_common.cuh"

namespace jair::cuda {

constexpr int kWeightThreads = 512, kWeightRows = 32, kWeightStages = 3;

template <typename T>
struct LearnerSums {
  const T* x;
  int64_t x_image, x_token;
  const uint8_t* mask;
  int64_t mask_image, mask_token;
  const float2* stats;   // [B,N]: mean and 1/std
  const T *dh, *g, *ds;  // [B,N,64], [B,N,64], [B,N,kOutputs]
  int64_t tokens, all;   // of an image and of the batch
  int64_t hidden, outputs;
  int64_t share_tokens;  // a multiple of kWeightRows
  float* parts;          // [share, H D + K H + H + K]
};

template <typename T, int kChunk, int kOutputs>
struct LearnerWeightShared {
  static constexpr int kPitch = kChunk + 8, kHiddenPitch = kHidden + 8, kOutputPitch = kOutputs + 8;
  struct Stage {
    T x[kWeightRows * kPitch];
    T dh[kWeightRows * kHiddenPitch];
    T g[kWeightRows * kHiddenPitch];
    T ds[kWeightRows * kOutputPitch];
    float2 stats[kWeightRows];  // zeros of rows that are not kept
  };
  Stage stages[kWeightStages];
};

template <typename T, int kWidth, int kChunk, int kOutputs>
struct LearnerWeightBlock {
  using Shared = LearnerWeightShared<T, kChunk, kOutputs>;
  using Stage = typename Shared::Stage;
  static constexpr int kTiles = kChunk / 8 / 8;  // of 8 columns, of one warp
  static_assert(kChunk % 128 == 0 && kWidth % kChunk == 0);

  const LearnerSums<T>& in;
  Shared& shared;
  const int chunk;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int columns = warp % 8, half = warp / 8;  // of 32 hidden units

  // Rows [first, first + kWeightRows) of all tokens, zeros from `end` on. A warp takes whole rows.
  __device__ void load(Stage& stage, int64_t first, int64_t end) {
    const uint32_t tokens = static_cast<uint32_t>(in.tokens);  // of all tokens there are fewer than 2^31
#pragma unroll
    for (int i = 0; i < kWeightRows / 16; ++i) {
      const int row = warp + i * 16;
      const uint32_t token = static_cast<uint32_t>(first) + row, image = token / tokens, n = token - image * tokens;
      const bool inside = token < end, keep = kept(image, n, inside);
      const T* from = in.x + (keep ? image * in.x_image + n * in.x_token : 0) + chunk * kChunk + lane * 8;
      copy_row<kChunk / 8, 32>(stage.x + row * Shared::kPitch + lane * 8, from, lane, keep);
      const int64_t at = inside ? token : 0;
      const int piece = lane % 8 * 8;
      if (lane < 8) copy16(stage.dh + row * Shared::kHiddenPitch + piece, in.dh + at * kHidden + piece, inside);
      if (chunk == 0 && lane >= 8 && lane < 16) {
        copy16(stage.g + row * Shared::kHiddenPitch + piece, in.g + at * kHidden + piece, inside);
      }
      if (chunk == 0 && lane >= 16 && lane < 16 + kOutputs / 8) {
        copy16(stage.ds + row * Shared::kOutputPitch + piece, in.ds + at * kOutputs + piece, inside);
      }
      if (lane == 31) stage.stats[row] = keep ? in.stats[token] : make_float2(0.f, 0.f);
    }
  }

  __device__ bool kept(int64_t image, int64_t n, bool inside) const {
    return inside && (!in.mask || in.mask[image * in.mask_image + n * in.mask_token]);
  }

  // A^T of 16 tokens and 16 columns of a row-major matrix.
  __device__ static Fragment load_as_transpose(const T* tile, int pitch, int lane) {
    return load_transposed(tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
  }

  __device__ void add(const Stage& stage, Accumulator (&acc)[2][kTiles], Accumulator (&small)[kOutputs / 16]) {
#pragma unroll
    for (int n = 0; n < kWeightRows; n += 16) {
      Fragment a[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i] = load_as_transpose(stage.dh + n * Shared::kHiddenPitch + half * 32 + i * 16, Shared::kHiddenPitch, lane);
      }
      const float2 stats[4] = {stage.stats[n + 2 * t], stage.stats[n + 2 * t + 1], stage.stats[n + 2 * t + 8],
                               stage.stats[n + 2 * t + 9]};
      const T* x = stage.x + (n + tile_row(lane)) * Shared::kPitch + columns * (kChunk / 8) + tile_column(lane);
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        Fragment b = load_transposed(x + j * 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair = unpack<T>(b.r[i]), low = stats[i % 2 * 2], high = stats[i % 2 * 2 + 1];
          b.r[i] = pack<T>((pair.x - low.x) * low.y, (pair.y - high.x) * high.y);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add<T>(acc[i][j], a[i], b.r[0], b.r[1]);
          multiply_add<T>(acc[i][j + 1], a[i], b.r[2], b.r[3]);
        }
      }
      if (chunk > 0 || half > 0) continue;
      const T* hidden = stage.g + (n + tile_row(lane)) * Shared::kHiddenPitch + columns / 2 * 16 + tile_column(lane);
      const Fragment b = load_transposed(hidden);
#pragma unroll
      for (int m = 0; m < kOutputs / 16; ++m) {
        const Fragment s = load_as_transpose(stage.ds + n * Shared::kOutputPitch + m * 16, Shared::kOutputPitch, lane);
        multiply_add<T>(small[m], s, columns % 2 ? b.r[2] : b.r[0], columns % 2 ? b.r[3] : b.r[1]);
      }
    }
  }

  // Sums of dH and dS over the rows, a column a thread.
  __device__ float add_column(const Stage& stage) const {
    const T* column = thread < kHidden ? stage.dh + thread : stage.ds + thread - kHidden;
    const int pitch = thread < kHidden ? Shared::kHiddenPitch : Shared::kOutputPitch;
    float sum = 0.f;
#pragma unroll 8
    for (int row = 0; row < kWeightRows; ++row) sum += to_float(column[row * pitch]);
    return sum;
  }

  __device__ void store(int64_t share, const Accumulator (&acc)[2][kTiles], const Accumulator (&small)[kOutputs / 16],
                        float column) {
    float* to = in.parts + share * (in.hidden * kWidth + in.outputs * in.hidden + in.hidden + in.outputs);
    const int first = chunk * kChunk + columns * (kChunk / 8) + 2 * t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const int h = half * 32 + i * 16 + g + low * 8;
        if (h >= in.hidden) continue;
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          to[h * kWidth + first + j * 8] = acc[i][j][2 * low];
          to[h * kWidth + first + j * 8 + 1] = acc[i][j][2 * low + 1];
        }
      }
    }
    if (chunk > 0) return;
    to += in.hidden * kWidth;
#pragma unroll
    for (int m = 0; m < kOutputs / 16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = m * 16 + g + i / 2 * 8, h = columns * 8 + 2 * t + i % 2;
        if (half == 0 && k < in.outputs && h < in.hidden) to[k * in.hidden + h] = small[m][i];
      }
    }
    to += in.outputs * in.hidden;
    if (thread < in.hidden) to[thread] = column;
    if (thread >= kHidden && thread - kHidden < in.outputs) to[in.hidden + thread - kHidden] = column;
  }
};

// Blocks: all chunks of the first share, then of the second, ...
template <typename T, int kWidth, int kChunk, int kOutputs>
__global__ __launch_bounds__(kWeightThreads, 1) void learn_weights(LearnerSums<T> in) {
#ifdef JAIR_LARGE_SHARED
  using Block = LearnerWeightBlock<T, kWidth, kChunk, kOutputs>;
  JAIR_SHARED(memory);
  constexpr int kChunks = kWidth / kChunk;
  Block block{in, *reinterpret_cast<typename Block::Shared*>(memory), static_cast<int>(blockIdx.x % kChunks)};
  const int64_t share = blockIdx.x / kChunks, begin = share * in.share_tokens;
  const int64_t end = begin + in.share_tokens < in.all ? begin + in.share_tokens : in.all;
  Accumulator acc[2][Block::kTiles] = {}, small[kOutputs / 16] = {};
  float column = 0.f;
  const bool sums = block.chunk == 0 && block.thread < kHidden + kOutputs;
  for (int i = 0; i < kWeightStages - 1; ++i) {
    if (begin + i * kWeightRows < end) block.load(block.shared.stages[i], begin + i * kWeightRows, end);
    commit_copies();
  }
  int stage = 0;
  for (int64_t first = begin; first < end; first += kWeightRows) {
    wait_copies<kWeightStages - 2>();
    __syncthreads();  // the rows have arrived, and nobody reads the stage that is loaded next
    const int64_t ahead = first + (kWeightStages - 1) * kWeightRows;
    if (ahead < end) block.load(block.shared.stages[(stage + kWeightStages - 1) % kWeightStages], ahead, end);
    commit_copies();
    block.add(block.shared.stages[stage], acc, small);
    if (sums) column += block.add_column(block.shared.stages[stage]);
    stage = (stage + 1) % kWeightStages;
  }
  block.store(share, acc, small, column);
#endif
}

}  // namespace jair::cuda
