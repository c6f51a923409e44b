// fused_tokenlearner's backward as far as tokens go: dx, and what the gradients of the parameters are summed from, for
// 16-bit elements. x is read once, dx written once.
//
// Blocks work as in the forward (tokenlearner_forward.cuh): Wg stays in shared memory, dY of the image too, and of each
// step of kRows tokens
//
//   products   h = x Wg^T and dP = x dY^T: four warps share D, the others the columns
//   hidden     sums of the four, r (h - m c) and GELU; in the layout of an accumulator, so that dH needs no exchange
//   scores     P anew from S and what the forward kept, dS = P (dP - delta); 8 outputs a warp
//   gradient   dH = (dS w2) gelu'(h), and its sums along c and along h - e
//   inputs     dx = r (dH Wg - (dH . c + xhat (dH . (h - e))) / D) + P dY in the place of x, a part of D a warp
#pragma once

#include "cuda/tokenlearner_backward_products.cuh"

namespace jair::cuda {

template <typename T, int kWidth, int kRows, int kOutputs>
struct LearnerBackwardBlock : LearnerBackwardProducts<T, kWidth, kRows, kOutputs> {
  using Products = LearnerBackwardProducts<T, kWidth, kRows, kOutputs>;
  using Products::in, Products::out, Products::shared, Products::warp, Products::lane, Products::g, Products::t;
  using Products::kRowTiles, Products::kOutputTiles, Products::kMyRowTiles, Products::kColumns, Products::kPieces;
  using Products::summed;
  using typename Products::Shared;

  // Two neighbouring hidden units of a token.
  __device__ void store_hidden(T* to, const LearnerStep& step, int row, int h, uint32_t pair) const {
    if (step.n + row >= step.end) return;
    *reinterpret_cast<uint32_t*>(to + (step.image * in.tokens + step.n + row) * kHidden + h) = pair;
  }

  // The first row of this warp's tiles, and whether it has any.
  __device__ int first_row() const { return warp / 8 * kMyRowTiles * 16; }
  __device__ bool has_rows() const { return first_row() < kRows; }

  // Of this warp's rows and 8 hidden units: h - e into `normed`, gelu'(h) into `slope`, gelu(h) to memory.
  __device__ void hidden(const LearnerStep& step, int buffer, Accumulator (&normed)[kMyRowTiles],
                         Accumulator (&slope)[kMyRowTiles]) {
    const int h = warp % 8 * 8 + 2 * t;
#pragma unroll
    for (int i = 0; i < kMyRowTiles; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const int row = first_row() + i * 16 + g + low * 8;
        const float2 stats = shared.stats[buffer][row], sum = summed(row, h);
        float values[2] = {sum.x, sum.y};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float value = stats.y * (values[j] - stats.x * shared.fixed.c[h + j]);
          normed[i][2 * low + j] = value;
          slope[i][2 * low + j] = gelu_slope(value + shared.fixed.e[h + j], in.tanh);
          values[j] = gelu(value + shared.fixed.e[h + j], in.tanh);
        }
        const uint32_t pair = pack<T>(values[0], values[1]);
        *reinterpret_cast<uint32_t*>(shared.hidden + row * Shared::kHiddenPitch + h) = pair;
        store_hidden(out.g, step, row, h, pair);
      }
    }
  }

  // P and dS of all rows for the 8 outputs of this warp's tile. Where the step is a whole image, softmax and delta are
  // summed from these very scores, which is exact for a single token.
  __device__ void scores(const LearnerStep& step, int buffer) {
    Accumulator acc[kRowTiles];
    score_tile<kRowTiles>(shared.hidden, shared.fixed.w2, warp, lane, acc);
    const bool whole = in.tokens <= kRows;
    const int first = warp * 8 + 2 * t;
    bool keep[2 * kRowTiles];
    float2 products[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      keep[i] = shared.keep[buffer][i * 8 + g];
      products[i] = summed(i * 8 + g, kHidden + first);
    }
    float p[2 * kRowTiles][2], ds[2 * kRowTiles][2];
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      const int k = first + column;
      float s[2 * kRowTiles], dp[2 * kRowTiles];
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        s[i] = acc[i / 2][i % 2 * 2 + column] + shared.fixed.b2[k];
        dp[i] = column ? products[i].y : products[i].x;
      }
      float top = shared.top[k], inverse = shared.inverse[k], inner = shared.delta[k];
      if (whole) {
        float total = 0.f;
        top = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
          if (keep[i]) top = fmaxf(top, s[i]);
        }
        top = column_max(top);
        top = top == -INFINITY ? 0.f : top;
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) total += keep[i] ? exponential(s[i] - top) : 0.f;
        total = column_sum(total);
        inverse = total == 0.f ? 0.f : 1.f / total;
      }
      float along = 0.f;
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
        p[i][column] = keep[i] ? exponential(s[i] - top) * inverse : 0.f;
        along += p[i][column] * dp[i];
      }
      if (whole) inner = column_sum(along);
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) ds[i][column] = p[i][column] * (dp[i] - inner);
    }
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int row = i * 8 + g, at = row * Shared::kOutputPitch + first;
      *reinterpret_cast<uint32_t*>(shared.weights + at) = pack<T>(p[i][0], p[i][1]);
      const uint32_t pair = pack<T>(ds[i][0], ds[i][1]);
      *reinterpret_cast<uint32_t*>(shared.ds + at) = pair;
      if (step.n + row >= step.end) continue;
      *reinterpret_cast<uint32_t*>(out.ds + (step.image * in.tokens + step.n + row) * kOutputs + first) = pair;
    }
  }

  // dH of this warp's hidden units, rounded as the products take it, and its sums along c and h - e.
  __device__ void gradient(const LearnerStep& step, const Accumulator (&normed)[kMyRowTiles],
                           const Accumulator (&slope)[kMyRowTiles]) {
    const int tile = warp % 8, h = tile * 8 + 2 * t;
    Accumulator acc[kMyRowTiles] = {};
#pragma unroll
    for (int j = 0; j < kOutputTiles; ++j) {
      const T* w =
          shared.fixed.w2 + (j * 16 + tile_row(lane)) * Shared::kHiddenPitch + tile / 2 * 16 + tile_column(lane);
      const Fragment b = load_transposed(w);
#pragma unroll
      for (int i = 0; i < kMyRowTiles; ++i) {
        const int row = first_row() + i * 16 + tile_row(lane);
        const Fragment a = load_matrices(shared.ds + row * Shared::kOutputPitch + j * 16 + tile_column(lane));
        multiply_add<T>(acc[i], a, tile % 2 ? b.r[2] : b.r[0], tile % 2 ? b.r[3] : b.r[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < kMyRowTiles; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const int row = first_row() + i * 16 + g + low * 8;
        const uint32_t pair = pack<T>(acc[i][2 * low] * slope[i][2 * low], acc[i][2 * low + 1] * slope[i][2 * low + 1]);
        *reinterpret_cast<uint32_t*>(shared.hidden + row * Shared::kHiddenPitch + h) = pair;
        store_hidden(out.dh, step, row, h, pair);
        const float2 dh = unpack<T>(pair);
        float2 along = make_float2(dh.x * shared.fixed.c[h] + dh.y * shared.fixed.c[h + 1],
                                   dh.x * normed[i][2 * low] + dh.y * normed[i][2 * low + 1]);
#pragma unroll
        for (int hop = 1; hop < 4; hop *= 2) {
          along.x += __shfl_xor_sync(0xffffffffu, along.x, hop);
          along.y += __shfl_xor_sync(0xffffffffu, along.y, hop);
        }
        if (t == 0) shared.along[tile][row] = along;
      }
    }
  }

  // dx in this warp's columns, over x in shared memory and then to memory in whole rows of them.
  __device__ void inputs(const LearnerStep& step, int buffer) {
    float2 stats[2 * kRowTiles], along[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      const int row = i * 8 + g;
      stats[i] = shared.stats[buffer][row];
      along[i] = make_float2(0.f, 0.f);
#pragma unroll
      for (int w = 0; w < 8; ++w) {
        const float2 part = shared.along[w][row];
        along[i].x += part.x, along[i].y += part.y;
      }
      along[i].x *= 1.f / kWidth, along[i].y *= 1.f / kWidth;
    }
    Fragment dh[kRowTiles][kHidden / 16];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int h = 0; h < kHidden / 16; ++h) {
        const T* rows = shared.hidden + (i * 16 + tile_row(lane)) * Shared::kHiddenPitch;
        dh[i][h] = load_matrices(rows + h * 16 + tile_column(lane));
      }
    }
    const int first = warp * kColumns;
#pragma unroll 1
    for (int d = first; d < first + kColumns; d += 16) {
      Accumulator acc[kRowTiles][2] = {};
      const int at = tile_row(lane) * Shared::kPitch + d + tile_column(lane);
#pragma unroll
      for (int h = 0; h < kHidden / 16; ++h) {
        const Fragment b = load_transposed(shared.fixed.wg + h * 16 * Shared::kPitch + at);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          multiply_add<T>(acc[i][0], dh[i][h], b.r[0], b.r[1]);
          multiply_add<T>(acc[i][1], dh[i][h], b.r[2], b.r[3]);
        }
      }
      T* x = shared.x + g * Shared::kPitch + d + 2 * t;
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          uint32_t bits;
          memcpy(&bits, x + i * 8 * Shared::kPitch + j * 8, 4);
          const float2 pair = unpack<T>(bits);
          float* part = acc[i / 2][j] + i % 2 * 2;
          const float r = stats[i].y, m = stats[i].x;
          part[0] = r * (part[0] - (along[i].x + (pair.x - m) * r * along[i].y));
          part[1] = r * (part[1] - (along[i].x + (pair.y - m) * r * along[i].y));
        }
      }
#pragma unroll
      for (int m = 0; m < kOutputTiles; ++m) {
        const Fragment b = load_transposed(shared.dy + m * 16 * Shared::kPitch + at);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          const T* rows = shared.weights + (i * 16 + tile_row(lane)) * Shared::kOutputPitch;
          const Fragment p = load_matrices(rows + m * 16 + tile_column(lane));
          multiply_add<T>(acc[i][0], p, b.r[0], b.r[1]);
          multiply_add<T>(acc[i][1], p, b.r[2], b.r[3]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float* part = acc[i / 2][j] + i % 2 * 2;
          const uint32_t bits = pack<T>(part[0], part[1]);
          memcpy(static_cast<void*>(x + i * 8 * Shared::kPitch + j * 8), &bits, 4);
        }
      }
    }
    __syncwarp();
    T* to = out.dx + (step.image * in.tokens + step.n) * kWidth + first + t * 8;
    const T* from = shared.x + first + t * 8;
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
      const int row = g + i * 8;
      if (step.n + row >= step.end) continue;
#pragma unroll
      for (int j = 0; j < kPieces; j += 4) {
        if (j + 4 > kPieces && j + t >= kPieces) continue;
        *reinterpret_cast<uint4*>(to + row * kWidth + j * 8) =
            *reinterpret_cast<const uint4*>(from + row * Shared::kPitch + j * 8);
      }
    }
    __syncwarp();  // the warp's columns are free for the next tokens
  }
};

template <typename T, int kWidth, int kRows, int kOutputs>
__global__ __launch_bounds__(32 * kLearnerWarps<kWidth>, 1) void learn_tokens_backward(Learner<T> in,
                                                                                       LearnerGradients<T> out) {
#ifdef JAIR_LARGE_SHARED
  using Block = LearnerBackwardBlock<T, kWidth, kRows, kOutputs>;
  JAIR_SHARED(memory);
  Block block{{in, out, *reinterpret_cast<typename Block::Shared*>(memory)}};
  const int64_t items = in.batch * in.shares;
  LearnerStep step = LearnerStep::first(in, blockIdx.x);
  int64_t image = -1;
  block.shared.fixed.load(in);
  if (step.item < items) block.load_tokens(step, 0);
  for (int buffer = 0; step.item < items; buffer ^= 1) {
    if (step.image != image) {
      __syncthreads();  // nobody reads dY of the image before
      image = step.image;
      block.load_image(image);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();  // the step's tokens have arrived
    {
      Accumulator acc[Block::kRowTiles][Block::kProducts] = {};
      block.products(acc);
      block.add_quarters(acc);
    }
    Accumulator normed[Block::kMyRowTiles], slope[Block::kMyRowTiles];
    if (block.has_rows()) block.hidden(step, buffer, normed, slope);
    __syncthreads();
    if (block.warp < 2 * Block::kOutputTiles) block.scores(step, buffer);
    __syncthreads();
    if (block.has_rows()) block.gradient(step, normed, slope);
    __syncthreads();
    block.inputs(step, buffer);
    step = step.next(in, kRows);
    if (step.item < items) block.load_tokens(step, buffer ^ 1);
  }
#endif
}

}  // namespace jair::cuda
