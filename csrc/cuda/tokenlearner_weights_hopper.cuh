// What the gradients of the score MLP's parameters are summed from (tokenlearner_weights.cuh), for Hopper.
//
// A block has all hidden units and a chunk of the columns of x, a quarter of them each warpgroup, and takes the tokens
// of a share 32 at a time. With q = r dH, rounded,
//
//   dH^T xhat = q^T x - sum q m
//
// so that x is an operand as it lies, and the rounding of q is the same on both sides. q is scaled in registers.
#pragma once

#include "cuda/tokenlearner_hopper.cuh"
#include "cuda/tokenlearner_weights.cuh"

namespace jair::cuda {

template <typename T, int kChunk, int kOutputs>
struct HopperWeightShared {
  using Tokens = T[kChunk / 8][kHopperRows][8];
  struct Stage {
    alignas(16) Tokens x;
    alignas(16) T g[kHidden / 8][kHopperRows][8];
    alignas(16) T ds[kOutputs / 8][kHopperRows][8];
    alignas(16) T dh[kHidden / 8][kHopperRows][8];
    alignas(16) float2 stats[kHopperRows];  // mean and 1/std, zeros of tokens that are not kept
  };
  static constexpr int kFit = kHopperShared / sizeof(Stage);
  static constexpr int kStages = kFit < 5 ? kFit : 5;
  Stage stages[kStages];
};

template <typename T, int kWidth, int kChunk, int kOutputs>
struct HopperWeightBlock {
  using Shared = HopperWeightShared<T, kChunk, kOutputs>;
  using Stage = typename Shared::Stage;
  static constexpr int kTiles = kChunk / 4 / 32;   // of 32 columns, of a warpgroup
  static constexpr int kPieces = kChunk / 8 / 16;  // of a token, that a thread copies
  static constexpr int kMine = kOutputs / 16;      // elements of dS a thread adds up
  static constexpr int kTile = 8 * 8 * sizeof(T), kTileColumn = kHopperRows * 8 * sizeof(T);
  static_assert(kChunk % 128 == 0 && kWidth % kChunk == 0 && kOutputs % 16 == 0);

  const LearnerSums<T>& in;
  Shared& shared;
  const int chunk;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int group = warp / 4, part = warp % 4;
  const int token = part * 8 + lane % 8, piece = group * (kChunk / 32) + lane / 8;  // as it copies

  struct Place {
    int64_t image, n;
    bool inside, keep;
  };

  __device__ Place place(int64_t at, int64_t end) const {
    const uint32_t tokens = static_cast<uint32_t>(in.tokens);  // of all tokens there are fewer than 2^31
    const uint32_t image = static_cast<uint32_t>(at) / tokens, n = static_cast<uint32_t>(at) - image * tokens;
    const bool inside = at < end;
    return {image, n, inside, inside && (!in.mask || in.mask[image * in.mask_image + n * in.mask_token])};
  }

  // Tokens [first, first + 32), zeros from `end` on.
  __device__ void load(Stage& stage, int64_t first, int64_t end) {
    const Place mine = place(first + token, end);
    const int64_t at = mine.inside ? first + token : 0;
    const T* from = in.x + (mine.keep ? mine.image * in.x_image + mine.n * in.x_token : 0) + chunk * kChunk + piece * 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) copy16(stage.x[piece + 4 * i][token], from + i * 32, mine.keep);
    const int part_of_row = lane / 8 + group % 2 * 4;
    if (group < 2) copy16(stage.dh[part_of_row][token], in.dh + at * kHidden + part_of_row * 8, mine.inside);
    if (group == 3 && lane < 8) copy8(stage.stats + token, in.stats + at, mine.keep);
    if (chunk > 0) return;
    if (group >= 2) copy16(stage.g[part_of_row][token], in.g + at * kHidden + part_of_row * 8, mine.inside);
    if (group == 0 && lane / 8 < kOutputs / 8) {
      copy16(stage.ds[lane / 8][token], in.ds + at * kOutputs + lane / 8 * 8, mine.inside);
    }
  }

  // q^T of this warp's 16 hidden units, rounded, and this lane's sums of dH and q m of two of them.
  __device__ void scale(const Stage& stage, Fragment (&q)[2], float (&dh_sums)[2], float (&qm_sums)[2]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      q[n] = load_transposed(stage.dh[part * 2 + lane / 8 % 2][n * 16 + lane / 16 * 8 + lane % 8]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 stats = *reinterpret_cast<const float4*>(stage.stats + n * 16 + i / 2 * 8 + 2 * t);
        const float2 dh = unpack<T>(q[n].r[i]);
        q[n].r[i] = pack<T>(dh.x * stats.y, dh.y * stats.w);
        const float2 rounded = unpack<T>(q[n].r[i]);
        dh_sums[i % 2] += dh.x + dh.y;
        qm_sums[i % 2] += rounded.x * stats.x + rounded.y * stats.z;
      }
    }
  }

  // This thread's sums of dS.
  __device__ void add_scores(const Stage& stage, float (&ds_sums)[kMine]) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int k = thread % 16 + i * 16;
      ds_sums[i] += to_float(stage.ds[k / 8][thread / 16][k % 8]);
    }
  }

  // Begins acc += q^T x, and small += gelu(h)^T dS.
  __device__ void add(const Stage& stage, const Fragment (&q)[2], Accumulator (&acc)[kTiles][4],
                      Accumulator (&small)[kOutputs / 8]) {
    const Operand g(stage.g, kTile, kTileColumn), ds(stage.ds, kTile, kTileColumn);
    begin_products();
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const Operand x(stage.x[group * (kChunk / 32) + i * 4], kTile, kTileColumn);
        multiply_group<T, kAcross>(acc[i], q[n], x + n * 2 * kTile, true);
      }
      if (chunk == 0) multiply_group<T, kAcross>(small, g + n * 2 * kTile, ds + n * 2 * kTile, true);
    }
    commit_products();
  }

  __device__ void store(int64_t share, const Accumulator (&acc)[kTiles][4], const Accumulator (&small)[kOutputs / 8],
                        float (&dh_sums)[2], float (&qm_sums)[2], const float (&ds_sums)[kMine]) {
    auto sums = reinterpret_cast<float (*)[kOutputs]>(&shared.stages[0]);
    __syncthreads();  // no product reads the stages any more
#pragma unroll
    for (int i = 0; i < kMine; ++i) sums[thread / 16][thread % 16 + i * 16] = ds_sums[i];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int hop = 1; hop < 4; hop *= 2) {
        dh_sums[i] += __shfl_xor_sync(0xffffffffu, dh_sums[i], hop);
        qm_sums[i] += __shfl_xor_sync(0xffffffffu, qm_sums[i], hop);
      }
    }
    __syncthreads();
    float* to = in.parts + share * (in.hidden * kWidth + in.outputs * in.hidden + in.hidden + in.outputs);
    const int first = chunk * kChunk + group * (kChunk / 4) + 2 * t;
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int h = part * 16 + g + low * 8;
      if (h >= in.hidden) continue;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          to[h * kWidth + first + i * 32 + j * 8] = acc[i][j][2 * low] - qm_sums[low];
          to[h * kWidth + first + i * 32 + j * 8 + 1] = acc[i][j][2 * low + 1] - qm_sums[low];
        }
      }
    }
    if (chunk > 0) return;
    to += in.hidden * kWidth;
#pragma unroll
    for (int j = 0; j < kOutputs / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = j * 8 + 2 * t + i % 2, h = part * 16 + g + i / 2 * 8;
        if (group == 0 && k < in.outputs && h < in.hidden) to[k * in.hidden + h] = small[j][i];
      }
    }
    to += in.outputs * in.hidden;
    if (group == 0 && t == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int h = part * 16 + g + i * 8;
        if (h < in.hidden) to[h] = dh_sums[i];
      }
    }
    if (thread >= in.outputs) return;
    float sum = 0.f;
#pragma unroll 8
    for (int i = 0; i < kHopperRows; ++i) sum += sums[i][thread];
    to[in.hidden + thread] = sum;
  }
};

// Blocks: all chunks of the first share, then of the second, ...
template <typename T, int kWidth, int kChunk, int kOutputs>
__global__ __launch_bounds__(kHopperThreads, 1) void learn_weights_hopper(LearnerSums<T> in) {
#ifdef JAIR_WARPGROUPS
  using Block = HopperWeightBlock<T, kWidth, kChunk, kOutputs>;
  constexpr int kStages = Block::Shared::kStages, kChunks = kWidth / kChunk;
  JAIR_SHARED(memory);
  auto& shared = *reinterpret_cast<typename Block::Shared*>(memory);
  Block block{in, shared, static_cast<int>(blockIdx.x % kChunks)};
  const int64_t share = blockIdx.x / kChunks, begin = share * in.share_tokens;
  const int64_t end = begin + in.share_tokens < in.all ? begin + in.share_tokens : in.all;
  Accumulator acc[Block::kTiles][4] = {}, small[kOutputs / 8] = {};
  float dh_sums[2] = {}, qm_sums[2] = {}, ds_sums[Block::kMine] = {};
  for (int i = 0; i < kStages - 1; ++i) {
    if (begin + i * kHopperRows < end) block.load(shared.stages[i], begin + i * kHopperRows, end);
    commit_copies();
  }
  int stage = 0;
  for (int64_t first = begin; first < end; first += kHopperRows) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the tokens have arrived, and nobody reads the stage that is loaded next
    const int64_t ahead = first + (kStages - 1) * kHopperRows;
    if (ahead < end) block.load(shared.stages[stage == 0 ? kStages - 1 : stage - 1], ahead, end);
    commit_copies();
    Fragment q[2];
    block.scale(shared.stages[stage], q, dh_sums, qm_sums);
    block.add(shared.stages[stage], q, acc, small);
    if (block.chunk == 0) block.add_scores(shared.stages[stage], ds_sums);
    wait_products<0>();
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  block.store(share, acc, small, dh_sums, qm_sums, ds_sums);
#endif
}

}  // namespace jair::cuda
