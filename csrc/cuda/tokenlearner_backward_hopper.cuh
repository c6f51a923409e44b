// fused_tokenlearner's backward as far as tokens go (tokenlearner_backward.cuh), for Hopper. x is read once, dx written
// once.
//
// Of each step of a block (tokenlearner_hopper.cuh)
//
//   products   h^T = Wg x^T and dP^T = dY x^T: a quarter of D a warpgroup
//   hidden     sums of the quarters, r (h - m c) and GELU; 16 hidden units and 8 tokens a warp
//   scores     P anew from S and what the forward kept, dS = P (dP - delta); 16 outputs and 8 tokens a warp
//   gradient   q = r dH with dH = (dS w2) gelu'(h), and its sums along c and along h - e
//   inputs     dx = q Wg - (q . c + xhat (q . (h - e))) / D + P dY, transposed, in the place of x; 16 columns of it a
//              warp at a time
//
// Products with Wg alone are a warpgroup's, as in the forward. What the quarters exchange lies where the tokens of the
// next step arrive once it has been read.
#pragma once

#include "cuda/tokenlearner_backward_hopper_products.cuh"

namespace jair::cuda {

template <typename T, int kWidth, int kOutputs>
struct HopperBackwardBlock : HopperBackwardProducts<T, kWidth, kOutputs> {
  using Base = HopperBackwardProducts<T, kWidth, kOutputs>;
  using Base::group, Base::kOutputTiles, Base::transposed, Base::unit, Base::first_token, Base::row_of;
  using Base::in, Base::out, Base::shared, Base::thread, Base::warp, Base::lane, Base::g, Base::t, Base::part;
  using typename Base::Shared;

  // Two neighbouring tokens of one hidden unit.
  __device__ void store_hidden(T* to, const LearnerStep& step, int n, int h, uint32_t pair) const {
    T values[2];
    memcpy(static_cast<void*>(values), &pair, 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (step.n + n + i < step.end) to[row_of(step, n + i) * kHidden + h] = values[i];
    }
  }

  // Of two hidden units and two tokens: h - e into `normed`, gelu'(h) into `slope`, gelu(h) to memory.
  __device__ void hidden(const LearnerStep& step, int buffer, float4 own, Accumulator& normed, Accumulator& slope) {
    float values[4];
    this->add_quarters(shared.exchange_of(buffer).h, own, values);
    const int n = first_token();
    const float2 stats[2] = {shared.stats[buffer][n], shared.stats[buffer][n + 1]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int h = unit(i / 2);
      normed[i] = stats[i % 2].y * (values[i] - stats[i % 2].x * shared.fixed.c[h]);
      values[i] = normed[i] + shared.fixed.e[h];
    }
    gelus(values, in.tanh, slope);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int h = unit(i);
      const uint32_t pair = pack<T>(values[2 * i], values[2 * i + 1]);
      *reinterpret_cast<uint32_t*>(shared.hidden + h * kHopperHiddenPitch + n) = pair;
      store_hidden(out.g, step, n, h, pair);
    }
  }

  static constexpr int kScoreWarps = 4 * kOutputTiles;
  __device__ bool has_scores() const { return warp < kScoreWarps; }

  // dP^T of this warp's 16 outputs and 8 tokens.
  __device__ void read_products(int buffer, Accumulator& dp) {
    auto& exchange = shared.exchange_of(buffer);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 quarter = exchange.dp[i][warp / 4][part][lane];
      dp[0] += quarter.x, dp[1] += quarter.y, dp[2] += quarter.z, dp[3] += quarter.w;
    }
  }

  // P and dS of this warp's 16 outputs and 8 tokens.
  __device__ void scores(int buffer, const Accumulator& dp) {
    const int m = warp / 4 * 16, n = part * 8;
    Accumulator acc = {};
#pragma unroll
    for (int h = 0; h < kHidden; h += 32) {
      const Fragment b = load_transposed(shared.hidden + (h + lane) * kHopperHiddenPitch + n);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const T* w2 = shared.fixed.w2 + (m + tile_row(lane)) * shared.fixed.kPitch + h + i * 16 + tile_column(lane);
        multiply_add<T>(acc, load_matrices(w2), b.r[2 * i], b.r[2 * i + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = m + g + i / 2 * 8, row = n + 2 * t + i % 2;
      const bool keep = shared.keep[buffer][row];
      const float s = keep ? acc[i] + shared.fixed.b2[k] - shared.top[k] : -INFINITY;
      const float p = exponential(s) * shared.inverse[k];
      shared.p[k / 8][row][k % 8] = from_float<T>(p);
      shared.ds[k / 8][row][k % 8] = from_float<T>(p * (dp[i] - shared.delta[k]));
    }
  }

  // dS to memory; q of this warp's hidden units and tokens, and its sums.
  __device__ void gradient(const LearnerStep& step, int buffer, const Accumulator& normed, const Accumulator& slope) {
    if (thread < kOutputs / 8 * kHopperRows) {
      const int n = thread % kHopperRows, k = thread / kHopperRows;
      const uint4 bits = *reinterpret_cast<const uint4*>(shared.ds[k][n]);
      T* to = out.ds + row_of(step, n) * kOutputs + k * 8;
      if (step.n + n < step.end) *reinterpret_cast<uint4*>(to) = bits;
    }
    Accumulator acc = {};
#pragma unroll
    for (int k = 0; k < kOutputTiles; ++k) {
      const T* w2 = shared.fixed.w2 + (k * 16 + lane / 16 * 8 + lane % 8) * shared.fixed.kPitch + part * 16;
      const Fragment a = load_transposed(w2 + lane / 8 % 2 * 8);
      const Fragment b = load_matrices(shared.ds[k * 2 + lane / 8 % 2][group * 8 + lane % 8]);
      multiply_add<T>(acc, a, b.r[0], b.r[1]);
    }
    const int n = first_token();
    const float r[2] = {shared.stats[buffer][n].y, shared.stats[buffer][n + 1].y};
    float2 along[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int h = unit(i);
      const float c = shared.fixed.c[h];
      const float dh[2] = {acc[2 * i] * slope[2 * i], acc[2 * i + 1] * slope[2 * i + 1]};
      store_hidden(out.dh, step, n, h, pack<T>(dh[0], dh[1]));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const T q = from_float<T>(r[j] * dh[j]);
        shared.gradient.q[h / 8][n + j][h % 8] = q;
        along[j].x += to_float(q) * c, along[j].y += to_float(q) * normed[2 * i + j];
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      along[j].x = column_sum(along[j].x), along[j].y = column_sum(along[j].y);
      if (g == 0) shared.gradient.along[part][n + j] = along[j];
    }
  }

  // dx of this warp's columns.
  __device__ void inputs(const LearnerStep& step, int buffer) {
    auto& x = shared.x[buffer];
    const float2 line = line_of_lane(buffer);
    Fragment q[4][2], p[kOutputTiles][2];  // of 8 tokens and 32 hidden units each, of 16 tokens and 16 outputs
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) q[j][h] = load_matrices(shared.gradient.q[h * 4 + lane / 8][j * 8 + lane % 8]);
    }
#pragma unroll
    for (int k = 0; k < kOutputTiles; ++k) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        p[k][j] = load_matrices(shared.p[k * 2 + lane / 8 % 2][(j * 2 + lane / 16) * 8 + lane % 8]);
      }
    }
#pragma unroll 1
    for (int first = warp * 2; first < kWidth / 8; first += kHopperThreads / 16) {
      Accumulator acc[4] = {};
#pragma unroll
      for (int h = 0; h < kHidden / 16; ++h) {
        const Fragment wg = load_transposed(transposed(shared.wg, first, h * 16));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Fragment& b = q[j][h / 2];
          multiply_add<T>(acc[j], wg, b.r[h % 2 * 2], b.r[h % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int k = 0; k < kOutputTiles; ++k) {
        const Fragment dy = load_transposed(transposed(shared.dy, first, k * 16));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Fragment& b = p[k][j / 2];
          multiply_add<T>(acc[j], dy, b.r[j % 2 * 2], b.r[j % 2 * 2 + 1]);
        }
      }
      subtract(x, first, acc, line);
      store(step, x, first);
    }
  }

  // a and b of the token of this lane's number: a + b x is to be taken from dx.
  __device__ float2 line_of_lane(int buffer) const {
    float2 sum = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 along = shared.gradient.along[i][lane];
      sum.x += along.x, sum.y += along.y;
    }
    const float2 stats = shared.stats[buffer][lane];
    const float b = stats.y * sum.y * (1.f / kWidth);
    return make_float2(sum.x * (1.f / kWidth) - b * stats.x, b);
  }

  // dx of 16 columns, from tile column `first` on, in the place of x.
  __device__ void subtract(typename Shared::Tokens& x, int first, const Accumulator (&acc)[4], float2 line) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      T* tile = x[first + lane / 8 % 2][(j + lane / 16) * 8 + lane % 8];
      Fragment f = load_transposed(tile);
#pragma unroll
      for (int i = 0; i < 4; i += 2) {  // two rows, 8 apart, of tile j or j + 1
        const int source = (j + i / 2) * 8 + 2 * t;
        const float a[2] = {__shfl_sync(0xffffffffu, line.x, source), __shfl_sync(0xffffffffu, line.x, source + 1)};
        const float b[2] = {__shfl_sync(0xffffffffu, line.y, source), __shfl_sync(0xffffffffu, line.y, source + 1)};
#pragma unroll
        for (int low = 0; low < 2; ++low) {
          const float2 pair = unpack<T>(f.r[i + low]);
          const float* sums = acc[j + i / 2] + low * 2;
          f.r[i + low] = pack<T>(sums[0] - (a[0] + b[0] * pair.x), sums[1] - (a[1] + b[1] * pair.y));
        }
      }
      store_transposed(tile, f);
    }
  }

  __device__ void store(const LearnerStep& step, const typename Shared::Tokens& x, int first) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = i * 16 + lane / 2, column = first + lane % 2;
      const uint4 bits = *reinterpret_cast<const uint4*>(x[column][n]);
      T* to = out.dx + row_of(step, n) * kWidth + column * 8;
      if (step.n + n < step.end) *reinterpret_cast<uint4*>(to) = bits;
    }
  }
};

// Whole images, of more than 32 tokens: `top` and the like are those of all tokens. No more blocks than shares.
template <typename T, int kWidth, int kOutputs>
__global__ __launch_bounds__(kHopperThreads, 1) void learn_tokens_backward_hopper(Learner<T> in,
                                                                                  LearnerGradients<T> out) {
#ifdef JAIR_WARPGROUPS
  using Block = HopperBackwardBlock<T, kWidth, kOutputs>;
  JAIR_SHARED(memory);
  Block block{{{in}, out, *reinterpret_cast<typename Block::Shared*>(memory)}};
  const int64_t items = in.batch * in.shares;
  LearnerStep step = LearnerStep::first(in, blockIdx.x);
  int image = -1;
  block.load_weights();
  block.load_tokens(step, 0);
  for (int buffer = 0; step.item < items; buffer ^= 1) {
    if (step.image(in) != image) {
      __syncthreads();  // nobody reads dY of the image before
      image = step.image(in);
      block.load_image(image);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();  // the step's tokens have arrived, and nobody reads those of the step before
    float4 own;
    block.products(buffer, own);
    __syncthreads();
    Accumulator normed, slope, dp = {};
    block.hidden(step, buffer, own, normed, slope);
    if (block.has_scores()) block.read_products(buffer, dp);
    __syncthreads();  // the exchange is over
    const LearnerStep next = step.next(in, kHopperRows);
    if (next.item < items) block.load_tokens(next, buffer ^ 1);
    if (block.has_scores()) block.scores(buffer, dp);
    __syncthreads();
    block.gradient(step, buffer, normed, slope);
    __syncthreads();
    block.inputs(step, buffer);
    step = next;
  }
#endif
}

}  // namespace jair::cuda
