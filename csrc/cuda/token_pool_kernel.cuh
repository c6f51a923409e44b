// The three large kernels of fused_token_pool.
#pragma once

#include "cuda/weights.cuh"

namespace jair::cuda {
namespace {

constexpr int kWarpOutputs = 8;     // outputs of one warp
constexpr int kBlockOutputs = 128;  // outputs of one block, at most: 16 warps
constexpr int kBuffer = 8192;       // floats of shared memory: weights, later partial sums of warps
constexpr int kBlockRows = 256;     // tokens whose weights a block keeps, at most
constexpr int kQuad = 4;            // tokens whose x a warp has in flight
constexpr int kWarpRows = 8;        // token_gradients: tokens of one warp, 64 of one block
constexpr int kTileRows = kWarpRows * kThreads / 32;

// Warps of a block: `groups` of 8 outputs times `ways` that share the tokens; `rows` of weights at a time.
struct Tile {
  int groups, ways, rows;
  __host__ __device__ int outputs() const { return groups * kWarpOutputs; }
  __host__ __device__ unsigned threads() const { return 32u * groups * ways; }
};

Tile make_tile(int64_t outputs) {
  const int groups = static_cast<int>((std::min<int64_t>(outputs, kBlockOutputs) + kWarpOutputs - 1) / kWarpOutputs);
  int ways = 1;
  while (2 * ways * groups <= kThreads / 32) ways *= 2;
  return {groups, ways, std::min(kBlockRows, kBuffer / (groups * kWarpOutputs))};
}

// Adds the accumulators of the warps that shared the tokens, pairwise; the first way has the sum.
template <int Columns>
__device__ void add_ways(float (&acc)[kWarpOutputs][Columns], float* buffer, Tile tile, int way, int group, int lane) {
  for (int half = tile.ways / 2; half > 0; half /= 2) {
    float* slot = buffer + (way % half * tile.groups + group) * (kWarpOutputs * Columns * 32) + lane;
    __syncthreads();
    if (way >= half && way < 2 * half) {
#pragma unroll
      for (int i = 0; i < kWarpOutputs * Columns; ++i) slot[i * 32] = acc[i / Columns][i % Columns];
    }
    __syncthreads();
    if (way < half) {
#pragma unroll
      for (int i = 0; i < kWarpOutputs * Columns; ++i) acc[i / Columns][i % Columns] += slot[i * 32];
    }
  }
}

// Weights [rows, tile.outputs()] of tokens from n on, and which tokens are kept; weights of outputs beyond K are 0.
template <typename T>
__device__ void block_weights(const Inputs<T>& in, Tile tile, int64_t image, int64_t n, int rows, int64_t first,
                              int count, const Statistics* softmax, float* weights, bool* keep) {
  const float factor = in.image_factor(image);
  const int stride = tile.outputs();
#pragma unroll 1  // the accumulators are live here: more in flight would spill
  for (int i = threadIdx.x; i < rows * stride; i += blockDim.x) {
    const int r = i / stride, j = i % stride;
    const bool kept = in.kept(image, n + r), used = kept && j < count;
    if (j == 0) keep[r] = kept;
    weights[i] = used ? weight(in.sigmoid, in.score(image, n + r, first + j), softmax[j]) * factor : 0.f;
  }
}

// y (Out = T, one share) or its shares [share, B, K, D] (Out = float).
template <typename T, typename Out, bool Wide>
__global__ void __launch_bounds__(512) pool_tokens(Inputs<T> in, Split split, Tile tile, Split softmax_split,
                                                   const Statistics* partials, Out* out, Statistics* kept) {
  alignas(16) __shared__ float buffer[kBuffer];
  __shared__ Statistics softmax[kBlockOutputs];
  __shared__ bool keep[kBlockRows];
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32 % tile.groups, way = threadIdx.x / 32 / tile.groups;
  const int64_t chunks = (in.width + 32 * kPack<T> - 1) / (32 * kPack<T>);
  const int64_t chunk = blockIdx.x % chunks, share = blockIdx.x / chunks % split.count;
  const int64_t image = blockIdx.x / chunks / split.count;
  const int64_t column = (chunk * 32 + lane) * kPack<T>, end = min(in.tokens, (share + 1) * split.size);
  const int64_t first = int64_t{blockIdx.y} * tile.outputs();
  const int stride = tile.outputs(), count = static_cast<int>(min(int64_t{stride}, in.outputs - first));
  if (!in.sigmoid) {
    Statistics* image_kept = chunk == 0 && share == 0 ? kept + image * in.outputs : nullptr;
    partials += image * softmax_split.count * in.outputs;
    merge_softmax(partials, softmax_split.count, in.outputs, first, count, softmax, image_kept);
  }
  constexpr int kFlight = kPack<T> == 4 ? 4 : 2;  // tokens in flight: what 128 registers allow beside acc
  float acc[kWarpOutputs][kPack<T>] = {};
  for (int64_t n = share * split.size; n < end; n += tile.rows) {
    const int rows = static_cast<int>(min(int64_t{tile.rows}, end - n));
    __syncthreads();
    block_weights(in, tile, image, n, rows, first, count, softmax, buffer, keep);
    __syncthreads();
    const T* row = in.row(image, n);
    for (int r0 = way; r0 < rows; r0 += kFlight * tile.ways) {
      Pack<T> x[kFlight];
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        const int r = r0 + u * tile.ways;
        const int64_t width = r < rows && keep[r] ? in.width : 0;  // a masked token is never read
        x[u] = load_pack<Wide>(row + r * in.x_token, column, width);
      }
#pragma unroll
      for (int u = 0; u < kFlight; ++u) {
        const int r = r0 + u * tile.ways;
        if (r >= rows) break;
        float w[kWarpOutputs];
        memcpy(w, __builtin_assume_aligned(buffer + r * stride + group * kWarpOutputs, 16), sizeof(w));
#pragma unroll
        for (int j = 0; j < kWarpOutputs; ++j) {
#pragma unroll
          for (int c = 0; c < kPack<T>; ++c) acc[j][c] += w[j] * x[u][c];
        }
      }
    }
  }
  add_ways(acc, buffer, tile, way, group, lane);
  if (way > 0) return;
  out += ((share * in.batch + image) * in.outputs + first + group * kWarpOutputs) * in.width;
#pragma unroll
  for (int j = 0; j < kWarpOutputs; ++j) {
    if (group * kWarpOutputs + j >= count) return;
    store_pack<Wide>(out + j * in.width, column, in.width, acc[j]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) add_shares(const float* partials, int64_t shares, int64_t size, T* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size) return;
  float total = 0.f;
  for (int64_t s = 0; s < shares; ++s) total += partials[s * size + i];
  out[i] = from_float<T>(total);
}

// dP [B,N,K] and the shares [B, share, K] of delta. A warp multiplies 4 tokens with 8 rows of dY.
template <typename T, bool Wide>
__global__ void __launch_bounds__(512)
    score_gradients(Inputs<T> in, Split split, Tile tile, const Statistics* kept_softmax, const T* dy, float* dp,
                    float* deltas) {
  __shared__ Statistics softmax[kBlockOutputs];
  __shared__ float shared[kBlockOutputs];
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32 % tile.groups, way = threadIdx.x / 32 / tile.groups;
  const int64_t image = blockIdx.x / split.count, share = blockIdx.x % split.count;
  const int64_t end = min(in.tokens, (share + 1) * split.size), first = int64_t{blockIdx.y} * tile.outputs();
  const int count = static_cast<int>(min(int64_t{tile.outputs()}, in.outputs - first));
  if (!in.sigmoid) {
    read_softmax(kept_softmax + image * in.outputs + first, count, softmax);
    __syncthreads();
  }
  const float factor = in.image_factor(image);
  const int j = group * kWarpOutputs + lane % kWarpOutputs;  // the output whose sums end in this lane
  dy += (image * in.outputs + first + group * kWarpOutputs) * in.width;
  float delta = 0.f;
  for (int64_t n = share * split.size + way * kQuad; n < end; n += kQuad * tile.ways) {
    float acc[kQuad * kWarpOutputs] = {};
    bool kept[kQuad];
    for (int u = 0; u < kQuad; ++u) kept[u] = n + u < end && in.kept(image, n + u);
    for (int64_t column = lane * kPack<T>; column < in.width; column += 32 * kPack<T>) {
      Pack<T> x[kQuad];
#pragma unroll
      for (int u = 0; u < kQuad; ++u) {
        x[u] = load_pack<Wide>(in.row(image, n + u), column, kept[u] ? in.width : 0);
      }
#pragma unroll
      for (int o = 0; o < kWarpOutputs; ++o) {
        if (group * kWarpOutputs + o >= count) break;
        const Pack<T> g = load_pack<Wide>(dy + o * in.width, column, in.width);
#pragma unroll
        for (int u = 0; u < kQuad; ++u) {
#pragma unroll
          for (int c = 0; c < kPack<T>; ++c) acc[u * kWarpOutputs + o] += x[u][c] * g[c];
        }
      }
    }
    __syncwarp();
    const float value = warp_sum_scatter(acc, lane) * factor;
    const int64_t token = n + lane / kWarpOutputs;
    if (token >= end || j >= count) continue;
    dp[(image * in.tokens + token) * in.outputs + first + j] = value;
    if (!in.sigmoid && in.kept(image, token)) {
      delta += weight(false, in.score(image, token, first + j), softmax[j]) * value;
    }
  }
  if (in.sigmoid) return;
  __syncwarp();
  delta += __shfl_xor_sync(0xffffffffu, delta, 8);
  delta += __shfl_xor_sync(0xffffffffu, delta, 16);
  if (lane < kWarpOutputs) shared[way * tile.outputs() + j] = delta;
  __syncthreads();
  if (threadIdx.x >= count) return;
  delta = shared[threadIdx.x];
  for (int w = 1; w < tile.ways; ++w) delta += shared[w * tile.outputs() + threadIdx.x];
  deltas[blockIdx.x * in.outputs + first + threadIdx.x] = delta;
}

// delta of outputs [first, first + count) from its shares [shares, K]; one warp per output.
__device__ void merge_deltas(const float* deltas, int64_t shares, int64_t outputs, int64_t first, int count,
                             float* shared) {
  const int lane = threadIdx.x % 32;
  for (int j = threadIdx.x / 32; j < count; j += blockDim.x / 32) {
    float total = 0.f;
    for (int64_t s = lane; s < shares; s += 32) total += deltas[s * outputs + first + j];
    total = warp_sum(total);
    if (lane == 0) shared[j] = total;
  }
}

// Weights of one (token, output), and dS where it is asked for; both 0 for a masked token, even where dP is not.
template <typename T>
__device__ float weight_and_gradient(const Inputs<T>& in, int64_t image, int64_t n, int64_t k, Statistics softmax,
                                     float delta, const float* dp, T* dscores) {
  if (n >= in.tokens) return 0.f;
  const bool kept = in.kept(image, n);
  const float w = kept ? weight(in.sigmoid, in.score(image, n, k), softmax) : 0.f;
  if (dscores) {
    const int64_t at = (image * in.tokens + n) * in.outputs + k;
    const float slope = in.sigmoid ? dp[at] * (1.f - w) : dp[at] - delta;
    dscores[at] = from_float<T>(kept ? w * slope : 0.f);
  }
  return w;
}

// dx and dS of 64 tokens: a warp has 8 tokens and 32 packs of columns. The blocks of the first columns write dS.
template <typename T, bool Wide>
__global__ void __launch_bounds__(kThreads, 2)
    token_gradients(Inputs<T> in, Split split, const Statistics* kept_softmax, const T* dy, const float* dp,
                    const float* deltas, T* dx, T* dscores) {
  constexpr int kStride = kTileRows + 4;  // spreads the writes of neighbouring outputs over the banks
  alignas(16) __shared__ float weights[kBlockOutputs * kStride];
  __shared__ Statistics softmax[kBlockOutputs];
  __shared__ float delta[kBlockOutputs];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t chunks = (in.width + 32 * kPack<T> - 1) / (32 * kPack<T>);
  const int64_t tiles = (in.tokens + kTileRows - 1) / kTileRows, chunk = blockIdx.x % chunks;
  const int64_t n0 = blockIdx.x / chunks % tiles * kTileRows, image = blockIdx.x / chunks / tiles;
  const int64_t column = (chunk * 32 + lane) * kPack<T>;
  float acc[kWarpRows][kPack<T>] = {};
  for (int64_t first = 0; first < in.outputs; first += kBlockOutputs) {
    const int count = static_cast<int>(min(int64_t{kBlockOutputs}, in.outputs - first));
    __syncthreads();
    if (!in.sigmoid) {
      read_softmax(kept_softmax + image * in.outputs + first, count, softmax);
      merge_deltas(deltas + image * split.count * in.outputs, split.count, in.outputs, first, count, delta);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTileRows * count; i += kThreads) {
      const int r = i / count, j = i % count;
      weights[j * kStride + r] =
          weight_and_gradient(in, image, n0 + r, first + j, softmax[j], delta[j], dp, chunk == 0 ? dscores : nullptr);
    }
    __syncthreads();
    for (int j = 0; j < count; ++j) {
      float w[kWarpRows];
      const Pack<T> g = load_pack<Wide>(dy + (image * in.outputs + first + j) * in.width, column, in.width);
      memcpy(w, __builtin_assume_aligned(weights + j * kStride + warp * kWarpRows, 16), sizeof(w));
#pragma unroll
      for (int u = 0; u < kWarpRows; ++u) {
#pragma unroll
        for (int c = 0; c < kPack<T>; ++c) acc[u][c] += w[u] * g[c];
      }
    }
  }
  const float factor = in.image_factor(image);
#pragma unroll
  for (int u = 0; u < kWarpRows; ++u) {
    const int64_t n = n0 + warp * kWarpRows + u;
    if (n >= in.tokens) return;
    const bool kept = in.kept(image, n);  // else 0, even where dY is infinite
#pragma unroll
    for (int c = 0; c < kPack<T>; ++c) acc[u][c] = kept ? acc[u][c] * factor : 0.f;
    store_pack<Wide>(dx + (image * in.tokens + n) * in.width, column, in.width, acc[u]);
  }
}

}  // namespace
}  // namespace jair::cuda
