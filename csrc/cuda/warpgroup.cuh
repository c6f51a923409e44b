// Matrix products of four warps on Hopper's tensor cores (sm_90a), which read shared memory themselves and run beside
// the threads that have asked for them. They may read what copy16 has brought there, once it has been waited for and
// after a barrier; for what threads have stored they would need a fence, which waits for copies that are under way too.
#pragma once

#include "cuda/tiles.cuh"

namespace jair::cuda {

// Kernels with these products are empty for other GPUs.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define JAIR_WARPGROUPS
#endif

// Matrices in shared memory lie in tiles of 8 rows of 16 bytes each, 128 bytes without a gap. A tile serves as 8x8
// elements of a matrix whose summed axis runs along the rows' 16 bytes (kAlong) or across them (kAcross).
enum Layout { kAlong, kAcross };

#ifdef JAIR_EMULATED
#include "warpgroup_emulator.h"
#else

// Where the tiles lie: bytes from one to the next along the summed axis, and along the other.
struct Operand {
  uint64_t bits;

  __device__ Operand(const void* tiles, int summed_step, int other_step)
      : bits((shared_address(tiles) & 0x3ffff) >> 4 | static_cast<uint64_t>(summed_step >> 4) << 16 |
             static_cast<uint64_t>(other_step >> 4) << 32) {}

  // The same `bytes` further.
  __device__ Operand operator+(int bytes) const {
    Operand next = *this;
    next.bits += bytes >> 4;
    return next;
  }
};

// Registers of products may be touched before it and not after, until `wait_products`.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

// The products since the last call are a group.
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// All groups but the last `Pending` have ended.
template <int Pending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}

// The reverse of load_transposed.
__device__ inline void store_transposed(void* row, const Fragment& f) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(shared_address(row)),
               "r"(f.r[0]), "r"(f.r[1]), "r"(f.r[2]), "r"(f.r[3])
               : "memory");
}

#define JAIR_PRODUCT(shape, count, results, operands, ...)                                              \
  if constexpr (std::is_same_v<T, __half>) {                                                            \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" count ", 0;\nwgmma.mma_async.sync.aligned." shape \
                 ".f32.f16.f16 " results ", " operands ";\n}\n" __VA_ARGS__);                           \
  } else {                                                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" count ", 0;\nwgmma.mma_async.sync.aligned." shape \
                 ".f32.bf16.bf16 " results ", " operands ";\n}\n" __VA_ARGS__);                         \
  }
#define JAIR_TILE(i) "+f"(acc[i][0]), "+f"(acc[i][1]), "+f"(acc[i][2]), "+f"(acc[i][3])

// acc = A B, or acc += A B where `add`. A is 64x16, of which each of the four warps gives 16 rows as for
// multiply_add; B 16x32. acc: for every 8 columns what multiply_add has.
template <typename T, Layout kB = kAlong>
__device__ inline void multiply_group(Accumulator (&acc)[4], const Fragment& a, Operand b, bool add) {
  JAIR_PRODUCT("m64n32k16", "21", "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}",
               "{%16, %17, %18, %19}, %20, p, 1, 1, %22", : JAIR_TILE(0), JAIR_TILE(1), JAIR_TILE(2),
               JAIR_TILE(3) : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b.bits),
               "r"(static_cast<int>(add)), "n"(static_cast<int>(kB)))
}

// The same with both in shared memory, A kAcross.
template <typename T, Layout kB = kAlong>
__device__ inline void multiply_group(Accumulator (&acc)[2], Operand a, Operand b, bool add) {
  JAIR_PRODUCT("m64n16k16", "10", "{%0, %1, %2, %3, %4, %5, %6, %7}", "%8, %9, p, 1, 1, 1, %11", : JAIR_TILE(0),
               JAIR_TILE(1) : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(add)), "n"(static_cast<int>(kB)))
}

template <typename T, Layout kB = kAlong>
__device__ inline void multiply_group(Accumulator (&acc)[4], Operand a, Operand b, bool add) {
  JAIR_PRODUCT("m64n32k16", "18", "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}",
               "%16, %17, p, 1, 1, 1, %19", : JAIR_TILE(0), JAIR_TILE(1), JAIR_TILE(2), JAIR_TILE(3) : "l"(a.bits),
               "l"(b.bits), "r"(static_cast<int>(add)), "n"(static_cast<int>(kB)))
}

#undef JAIR_PRODUCT
#undef JAIR_TILE

#endif

}  // namespace jair::cuda
