// Scores of tokens, their mask, and how softmax or sigmoid turn them into weights.
#pragma once

#include "cuda/common.cuh"

namespace jair::cuda {
namespace {

constexpr int kThreads = 256;

// Strides are in elements; the last axis of x and scores is contiguous.
template <typename T>
struct Inputs {
  int64_t batch, tokens, width, outputs;  // B, N, D, K
  const T* x;
  int64_t x_image, x_token;
  const T* scores;
  int64_t scores_image, scores_token;
  const uint8_t* mask;  // null: all tokens are kept
  int64_t mask_image, mask_token;
  bool sigmoid;
  float factor;          // of every weight: 1, or 1 / N for "mean",
  const float* factors;  // or per image where a mask decides

  __device__ bool kept(int64_t image, int64_t token) const {
    return !mask || mask[image * mask_image + token * mask_token];
  }
  __device__ float score(int64_t image, int64_t token, int64_t k) const {
    return to_float(scores[image * scores_image + token * scores_token + k]);
  }
  __device__ const T* row(int64_t image, int64_t token) const { return x + image * x_image + token * x_token; }
  __device__ float image_factor(int64_t image) const { return factors ? factors[image] : factor; }
};

// An image's tokens in `count` shares of `size`.
struct Split {
  int64_t count, size;
};

// As many shares as give the device about `blocks` blocks where there are `others` already. It depends on the
// shapes alone: results are equal from run to run and from device to device.
Split make_split(int64_t tokens, int64_t others, int64_t blocks, int64_t grain) {
  const int64_t grains = (tokens + grain - 1) / grain;
  const int64_t wanted = std::min(grains, std::max<int64_t>(1, blocks / others));
  const int64_t size = (grains + wanted - 1) / wanted * grain;
  return {(tokens + size - 1) / size, size};
}

// Max (x) and sum of exp(score - max) (y) over some tokens; {-inf, 0} for none.
using Statistics = float2;

// What exp subtracts: nothing while no finite score was seen, every exp is then exp(-inf) = 0.
__device__ float shift(float max) { return max == -INFINITY ? 0.f : max; }

__device__ Statistics join(Statistics a, Statistics b) {
  const float max = fmaxf(a.x, b.x);
  return make_float2(max, a.y * expf(a.x - shift(max)) + b.y * expf(b.x - shift(max)));
}

// Per (image, share, output). `lanes` neighbouring threads (a power of two) take neighbouring outputs.
template <typename T>
__global__ void __launch_bounds__(kThreads) softmax_partials(Inputs<T> in, Split split, int lanes, Statistics* out) {
  __shared__ Statistics shared[kThreads];
  const int64_t image = blockIdx.x / split.count, begin = blockIdx.x % split.count * split.size;
  const int64_t end = min(in.tokens, begin + split.size);
  const int row = threadIdx.x / lanes, rows = kThreads / lanes;
  const int64_t k = int64_t{blockIdx.y} * lanes + threadIdx.x % lanes;
  Statistics mine = make_float2(-INFINITY, 0.f);
  if (k < in.outputs) {
    for (int64_t n = begin + row; n < end; n += rows) {
      if (!in.kept(image, n)) continue;
      const float score = in.score(image, n, k);
      if (score > mine.x) mine = make_float2(score, mine.y * expf(mine.x - score));
      mine.y += expf(score - shift(mine.x));
    }
  }
  shared[threadIdx.x] = mine;
  for (int half = rows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) shared[threadIdx.x] = join(shared[threadIdx.x], shared[threadIdx.x + half * lanes]);
  }
  if (row == 0 && k < in.outputs) out[blockIdx.x * in.outputs + k] = shared[threadIdx.x];
}

// How outputs [first, first + count) of one image are normalised, from the shares [shares, K]: into shared memory
// what exp subtracts and 1 / sum (both 0 where no token is kept), and to `kept` where asked for. One warp per output.
__device__ void merge_softmax(const Statistics* partials, int64_t shares, int64_t outputs, int64_t first, int count,
                              Statistics* shared, Statistics* kept) {
  const int lane = threadIdx.x % 32;
  for (int j = threadIdx.x / 32; j < count; j += blockDim.x / 32) {
    Statistics all = make_float2(-INFINITY, 0.f);
    for (int64_t s = lane; s < shares; s += 32) all = join(all, partials[s * outputs + first + j]);
    for (int step = 16; step > 0; step /= 2) {
      const float max = __shfl_xor_sync(0xffffffffu, all.x, step), sum = __shfl_xor_sync(0xffffffffu, all.y, step);
      all = join(all, make_float2(max, sum));
    }
    if (lane == 0) {
      shared[j] = make_float2(shift(all.x), all.y == 0.f ? 0.f : 1.f / all.y);
      if (kept) kept[first + j] = shared[j];
    }
  }
}

// The same from what a forward kept.
__device__ void read_softmax(const Statistics* kept, int count, Statistics* shared) {
  for (int j = threadIdx.x; j < count; j += blockDim.x) shared[j] = kept[j];
}

__device__ float weight(bool sigmoid, float score, Statistics softmax) {
  return sigmoid ? 1.f / (1.f + expf(-score)) : expf(score - softmax.x) * softmax.y;
}

// factors[b] = 1 / kept tokens of image b.
__global__ void __launch_bounds__(kThreads)
    mean_factors(const uint8_t* mask, int64_t mask_image, int64_t mask_token, int64_t tokens, float* factors) {
  __shared__ int shared[kThreads / 32];
  int kept = 0;
  for (int64_t n = threadIdx.x; n < tokens; n += kThreads) kept += mask[blockIdx.x * mask_image + n * mask_token] != 0;
  kept = warp_sum(kept);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = kept;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kThreads / 32; ++i) kept += shared[i];
  factors[blockIdx.x] = 1.f / static_cast<float>(max(kept, 1));
}

}  // namespace
}  // namespace jair::cuda
