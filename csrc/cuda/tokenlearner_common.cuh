// What the passes of fused_tokenlearner over x share: a call's tensors, the folded weights in shared memory, steps over
// tokens, sums over warps.
#pragma once

#include "cuda/tiles.cuh"

namespace jair::cuda {

constexpr int kHidden = 64;  // hidden units, those beyond H with zero weights

// A call's tensors. Strides in elements; x has dense, 16-byte aligned rows.
template <typename T>
struct Learner {
  const T* x;
  int64_t x_image, x_token;
  const uint8_t* mask;  // null: all tokens are kept
  int64_t mask_image, mask_token;
  const T* wg;         // [H,D]
  const float *c, *e;  // [H]
  const T* w2;         // [K,H]
  const float* b2;     // [K] or null, as is b2_narrow: one of them at most is given
  const T* b2_narrow;
  int64_t batch, tokens, hidden, outputs;
  int64_t shares, share_tokens;  // parts of an image, and their tokens: a multiple of kRows
  float eps;
  bool tanh;

  __device__ float bias(int64_t k) const {
    if (k >= outputs) return 0.f;
    return b2 ? b2[k] : b2_narrow ? to_float(b2_narrow[k]) : 0.f;
  }

  __device__ bool kept(int64_t image, int64_t n, int64_t end) const {
    return n < end && (!mask || mask[image * mask_image + n * mask_token]);
  }
};

__device__ inline float gelu(float h, bool tanh) {
  if (tanh) return h / (1.f + exponential(-1.5957691216057308f * h * (1.f + 0.044715f * h * h)));
  return 0.5f * h * (1.f + erff(h * 0.7071067811865476f));
}

// One row of kPieces times 16 bytes by kLanes lanes; both pointers are at the first piece of this one.
template <int kPieces, int kLanes, typename T>
__device__ inline void copy_row(T* to, const T* from, int lane, bool inside) {
#pragma unroll
  for (int i = 0; i < kPieces; i += kLanes) {
    if (i + kLanes <= kPieces || i + lane < kPieces) copy16(to + i * 8, from + i * 8, inside);
  }
}

// Over the rows of a result's column, in all lanes that have a part of it.
__device__ inline float column_max(float value) {
#pragma unroll
  for (int hop = 4; hop < 32; hop *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, hop));
  return value;
}

__device__ inline float column_sum(float value) {
#pragma unroll
  for (int hop = 4; hop < 32; hop *= 2) value += __shfl_xor_sync(0xffffffffu, value, hop);
  return value;
}

// acc += x w^T over 16 columns of both, of 16 kRowTiles rows of x, which are left in `a`, and 8 kTiles rows of w. The
// pointers are at this lane's place in the first tile of each.
template <int kTiles, int kRowTiles, int kColumns, typename T>
__device__ void multiply_rows(const T* x, const T* w, int pitch, Fragment (&a)[kRowTiles],
                              Accumulator (&acc)[kRowTiles][kColumns]) {
  Fragment b[kTiles / 2];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) a[i] = load_matrices(x + i * 16 * pitch);
#pragma unroll
  for (int j = 0; j < kTiles / 2; ++j) b[j] = load_matrices(w + j * 16 * pitch);
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) multiply_add<T>(acc[i][j], a[i], b[j / 2].r[j % 2], b[j / 2].r[j % 2 + 2]);
  }
}

// gelu(h) w2^T for the `tile`-th 8 outputs.
template <int kRowTiles, typename T>
__device__ void score_tile(const T* hidden, const T* w2, int tile, int lane, Accumulator (&acc)[kRowTiles]) {
  constexpr int kPitch = kHidden + 8;
  hidden += tile_row(lane) * kPitch + tile_column(lane);
  w2 += (tile / 2 * 16 + tile_row(lane)) * kPitch + tile_column(lane);
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.f;
#pragma unroll
  for (int h = 0; h < kHidden; h += 16) {
    const Fragment b = load_matrices(w2 + h);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      multiply_add<T>(acc[i], load_matrices(hidden + i * 16 * kPitch + h), tile % 2 ? b.r[1] : b.r[0],
                      tile % 2 ? b.r[3] : b.r[2]);
    }
  }
}

__device__ inline float gelu_slope(float h, bool tanh) {
  if (tanh) {
    const float gate = 1.f / (1.f + exponential(-1.5957691216057308f * h * (1.f + 0.044715f * h * h)));
    return gate + h * gate * (1.f - gate) * 1.5957691216057308f * (1.f + 0.134145f * h * h);
  }
  return 0.5f * (1.f + erff(h * 0.7071067811865476f)) + h * 0.3989422804014327f * exponential(-0.5f * h * h);
}

// Tokens [n, end) of a share; one step takes kRows of them.
struct LearnerStep {
  int64_t item, image;
  int n, end;

  template <typename T>
  __device__ static LearnerStep first(const Learner<T>& in, int64_t item) {
    const int64_t image = item / in.shares, n = item % in.shares * in.share_tokens, end = n + in.share_tokens;
    return {item, image, static_cast<int>(n), static_cast<int>(end < in.tokens ? end : in.tokens)};
  }

  template <typename T>
  __device__ LearnerStep next(const Learner<T>& in, int rows) const {
    return last(rows) ? first(in, item + gridDim.x) : LearnerStep{item, image, n + rows, end};
  }

  __device__ bool last(int rows) const { return n + rows >= end; }
};

// Warps of a block: as many as leave each an even number of tiles of 8 columns.
template <int kWidth>
constexpr int kLearnerWarps = kWidth % 256 == 0 ? 16 : 8;

// The weights as a block keeps them. Rows are 16 bytes longer than their contents, so that the 8 rows of an 8x8 matrix
// lie in different banks.
template <typename T, int kWidth, int kOutputs>
struct LearnerWeights {
  static constexpr int kPitch = kWidth + 8, kHiddenPitch = kHidden + 8;
  static constexpr int kWarps = kLearnerWarps<kWidth>, kThreads = 32 * kWarps;
  T wg[kHidden * kPitch];
  T w2[kOutputs * kHiddenPitch];
  float c[kHidden], e[kHidden], b2[kOutputs];

  // Wg is pending until `wait_copies`.
  __device__ void load(const Learner<T>& in) {
    const int thread = threadIdx.x, lane = thread % 32;
    for (int h = thread / 32; h < kHidden; h += kWarps) {
      const bool inside = h < in.hidden;
      copy_row<kWidth / 8, 32>(wg + h * kPitch + lane * 8, in.wg + (inside ? h : 0) * kWidth + lane * 8, lane, inside);
    }
    for (int i = thread; i < kOutputs * kHidden; i += kThreads) {
      const int k = i / kHidden, h = i % kHidden;
      const bool inside = k < in.outputs && h < in.hidden;
      w2[k * kHiddenPitch + h] = inside ? in.w2[k * in.hidden + h] : from_float<T>(0.f);
    }
    for (int i = thread; i < kHidden; i += kThreads) {
      c[i] = i < in.hidden ? in.c[i] : 0.f;
      e[i] = i < in.hidden ? in.e[i] : 0.f;
    }
    for (int i = thread; i < kOutputs; i += kThreads) b2[i] = in.bias(i);
  }
};

// Sums of four warps' accumulators in shared memory, two by two: at(i, j, low) is the place, of the quarter's parity,
// of a pair of elements. The sums of the even and of the odd quarters are left there.
template <int kRowTiles, int kTiles, typename At>
__device__ void add_in_pairs(const Accumulator (&acc)[kRowTiles][kTiles], int quarter, int tiles, const At& at) {
  for (int turn = 0; turn < 2; ++turn) {
    if (quarter / 2 != turn) {  // first quarters 2 and 3, then 0 and 1
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          if (j >= tiles) continue;
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            float2 value = make_float2(acc[i][j][2 * low], acc[i][j][2 * low + 1]);
            if (turn == 1) {
              const float2 other = *at(i, j, low);
              value = make_float2(value.x + other.x, value.y + other.y);
            }
            *at(i, j, low) = value;
          }
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace jair::cuda
