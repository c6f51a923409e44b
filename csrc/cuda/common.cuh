// What every CUDA op shares: device and stream, checked launches, dtype dispatch, rows in 16-byte packs,
// fixed-order warp reductions.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "checks.h"
#include "cuda/numbers.cuh"

namespace jair::cuda {

inline void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error)); }

// PyTorch's current stream. The symbol is looked up by hand: a reference to it would keep the library from
// loading where there is no CUDA, and libtorch_cuda is loaded RTLD_LOCAL, which leaves a weak reference null.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(getter, "CUDA: PyTorch's libtorch_cuda.so is not loaded");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "CUDA: no current stream");
  return static_cast<cudaStream_t>(stream);
}

// Makes a tensor's device current for this scope and launches on PyTorch's stream there. No call in here
// synchronises, so that ops can be captured in a CUDA graph.
class Launcher {
 public:
  explicit Launcher(const Tensor& tensor) : guard_(tensor.get_device()), stream_(current_stream(tensor.get_device())) {
    check(cudaSetDevice(tensor.get_device()));  // this library has a CUDA runtime of its own
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, unsigned threads, Arguments... arguments) const {
    with_shared(0, kernel, grid, threads, arguments...);
  }

  // With bytes of dynamic shared memory, of which a kernel gets more than 48 KB only after asking for it.
  template <typename... Parameters, typename... Arguments>
  void with_shared(size_t bytes, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                   Arguments... arguments) const {
    const auto* function = reinterpret_cast<const void*>(kernel);
    if (bytes > 0) {
      check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid, config.blockDim = threads, config.stream = stream_, config.dynamicSmemBytes = bytes;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline dim3 grid(int64_t x, int64_t y = 1) {
  STD_TORCH_CHECK(x <= INT32_MAX && y <= 65535, "CUDA: the tensors need more blocks than a grid has");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

template <typename F>
void dispatch_dtype(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::BFloat16: return f(__nv_bfloat16{});
    case ScalarType::Half: return f(__half{});
    default: STD_TORCH_CHECK(false, "unexpected dtype");
  }
}

// Columns of T in 16 bytes, which is what one lane loads at once.
template <typename T>
constexpr int kPack = 16 / sizeof(T);

template <typename T>
bool rows_are_aligned(const T* data, int64_t width, std::initializer_list<int64_t> strides) {
  bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && width % kPack<T> == 0;
  for (int64_t stride : strides) aligned = aligned && stride % kPack<T> == 0;
  return aligned;
}

// 16 bytes of a row as they were loaded; as floats they take two to four times the registers.
template <typename T>
struct Pack {
  T values[kPack<T>];
  __device__ float operator[](int i) const { return to_float(values[i]); }
};

// Columns [column, column + kPack) of a row, zero from `width` on. Wide: row and width allow 16-byte loads.
template <bool Wide, typename T>
__device__ inline Pack<T> load_pack(const T* row, int64_t column, int64_t width) {
  Pack<T> pack;
  if constexpr (Wide) {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (column < width) bits = *reinterpret_cast<const uint4*>(row + column);
    memcpy(&pack, &bits, 16);
  } else {
#pragma unroll
    for (int i = 0; i < kPack<T>; ++i) pack.values[i] = column + i < width ? row[column + i] : from_float<T>(0.f);
  }
  return pack;
}

template <bool Wide, typename T, int Count>
__device__ inline void store_pack(T* row, int64_t column, int64_t width, const float (&values)[Count]) {
  T raw[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) raw[i] = from_float<T>(values[i]);
  if constexpr (Wide) {
    if (column >= width) return;
#pragma unroll
    for (int i = 0; i < Count; i += kPack<T>) {
      uint4 bits;
      memcpy(&bits, raw + i, 16);
      *reinterpret_cast<uint4*>(row + column + i) = bits;
    }
  } else {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if (column + i < width) row[column + i] = raw[i];
    }
  }
}

// The sum over a warp, in every lane; lanes are always paired in the same order.
template <typename T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Sums 32 values over a warp with 31 shuffles instead of 160: lane i returns the sum of the i-th value.
// Recursion, because a loop over Half stays a loop and puts the values into local memory.
template <int Half = 16>
__device__ inline float warp_sum_scatter(float (&values)[32], int lane) {
  const bool upper = lane & Half;
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, upper ? values[i] : values[i + Half], Half);
    values[i] = (upper ? values[i + Half] : values[i]) + other;
  }
  if constexpr (Half > 1) {
    return warp_sum_scatter<Half / 2>(values, lane);
  } else {
    return values[0];
  }
}

}  // namespace jair::cuda
