// Matrix products of a warp on tensor cores (sm_80 and later), and copies into shared memory that run beside them.
// What the hardware does is in the functions of this file alone: tests/csrc/cuda_emulator.h has them for a CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/numbers.cuh"

namespace jair::cuda {

// Of a 16x16 matrix of 16-bit elements what one lane holds, as mma.m16n8k16 takes it for A: with g = lane / 4 and
// t = lane % 4, rows g, g + 8, g, g + 8 and columns 2t, 2t + 1 (of the right half in the last two). Seen as two B
// matrices of 8 columns: r[0], r[1] and r[2], r[3].
struct Fragment {
  uint32_t r[4];
};

// Of a 16x8 float32 result: elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
using Accumulator = float[4];

// Kernels that need more shared memory than a block had before Hopper are empty for earlier GPUs.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define JAIR_LARGE_SHARED
#endif

#ifdef JAIR_EMULATED
#include "cuda_emulator.h"
#else

#define JAIR_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global memory, zeros where not `inside`. Pending until `wait_copies`.
__device__ inline void copy16(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

// This thread's copies since the last call are a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// All of this thread's groups but the last `Pending` have arrived.
template <int Pending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + j gives the address of row j of matrix i.
__device__ inline Fragment load_matrices(const void* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}

// The same, each matrix transposed.
__device__ inline Fragment load_transposed(const void* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}

// acc += A B with A 16x16 and B 16x8, given by its two registers.
template <typename T>
__device__ inline void multiply_add(Accumulator& acc, const Fragment& a, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
  }
}

__device__ inline float exponential(float x) { return __expf(x); }

#endif

// Two neighbouring elements in one register.
template <typename T>
__device__ inline uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, 4);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, 4);
  }
  return bits;
}

template <typename T>
__device__ inline float2 unpack(uint32_t bits) {
  T pair[2];
  memcpy(static_cast<void*>(pair), &bits, 4);
  return make_float2(to_float(pair[0]), to_float(pair[1]));
}

// Where lane `lane` points ldmatrix for a 16x16 tile of a row-major matrix: with load_matrices the tile as A, or, for
// a matrix that holds B transposed (its rows are B's columns), two B matrices in r[0], r[2] and r[1], r[3].
// With load_transposed the tile's rows as the summed axis of two B matrices: r[0], r[1] and r[2], r[3]; and, rows and
// columns exchanged, those of a matrix whose transpose is A.
__device__ inline int tile_row(int lane) { return lane % 16; }
__device__ inline int tile_column(int lane) { return lane / 16 * 8; }

}  // namespace jair::cuda
