// Includes JAIR_KERNEL (a header in quotes) once per instruction set, each time in its own namespace:
//   JAIR_ISA     the namespace and the name of the instruction set
//   JAIR_VECTOR  bytes in a vector
//   JAIR_TILES   defined where bfloat16 is multiplied in pairs, by tiles
//   JAIR_AMX     defined where there are tile registers to do so
// One source thus serves every processor, in one library, without flags of its own. Standard headers must be
// included before, or their inline functions would be compiled for the widest processor.
// No include guard: every op includes it.

#include "cpu/isa.h"

#define JAIR_ISA portable
#define JAIR_VECTOR 16
#include JAIR_KERNEL
#undef JAIR_ISA
#undef JAIR_VECTOR

#if defined(__x86_64__)

#if defined(__clang__)
#define JAIR_TARGET_BEGIN(isa) \
  _Pragma(JAIR_TEXT(clang attribute push(__attribute__((target(isa))), apply_to = function)))
#define JAIR_TARGET_END _Pragma("clang attribute pop")
#else
#define JAIR_TARGET_BEGIN(isa) _Pragma("GCC push_options") _Pragma(JAIR_TEXT(GCC target(isa)))
#define JAIR_TARGET_END _Pragma("GCC pop_options")
#endif
#define JAIR_TEXT(...) #__VA_ARGS__

#if JAIR_WIDEST_ISA >= 1
JAIR_TARGET_BEGIN("avx2,fma,f16c")
#define JAIR_ISA avx2
#define JAIR_VECTOR 32
#include JAIR_KERNEL
#undef JAIR_ISA
#undef JAIR_VECTOR
JAIR_TARGET_END
#endif

#if JAIR_WIDEST_ISA >= 2
JAIR_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define JAIR_ISA avx512
#define JAIR_VECTOR 64
#include JAIR_KERNEL
#undef JAIR_ISA
#undef JAIR_VECTOR
JAIR_TARGET_END
#endif

// Vectors as in avx512, bfloat16 products on tiles.
#if JAIR_WIDEST_ISA >= 3
JAIR_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#define JAIR_ISA avx512_bf16
#define JAIR_VECTOR 64
#define JAIR_TILES
#include JAIR_KERNEL
#undef JAIR_ISA
#undef JAIR_VECTOR
#undef JAIR_TILES
JAIR_TARGET_END
#endif

#if JAIR_WIDEST_ISA >= 4
JAIR_TARGET_BEGIN(
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")
#define JAIR_ISA amx
#define JAIR_VECTOR 64
#define JAIR_TILES
#define JAIR_AMX
#include JAIR_KERNEL
#undef JAIR_ISA
#undef JAIR_VECTOR
#undef JAIR_TILES
#undef JAIR_AMX
JAIR_TARGET_END
#endif

#undef JAIR_TARGET_BEGIN
#undef JAIR_TARGET_END
#undef JAIR_TEXT
#endif

#undef JAIR_KERNEL
