// Tile registers in software, for a processor that multiplies pairs of bfloat16 on vectors but has no AMX. Included
// before all else (g++ -include), it takes the place of the compiler's intrinsics; see emulated_isa.cpp.
//
// As Intel's manual has the instructions: the even and the odd elements of a depth are summed apart and joined at the
// end, subnormal numbers are zeros. What the processor would fault at ends the process.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulator {

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct Thread {
  Config config;
  alignas(64) float tiles[8][16][16];
};
inline thread_local Thread thread;

[[noreturn]] inline void fault(const char* why) {
  std::fprintf(stderr, "AMX emulator: %s\n", why);
  std::abort();
}

inline void check_configured(int tile) {
  if (thread.config.palette != 1) fault("a tile instruction, but this thread has no configuration");
  const bool whole = thread.config.rows[tile] == 16 && thread.config.row_bytes[tile] == 64;
  if (!whole) fault("a tile without 16 rows of 64 bytes");
}

inline void loadconfig(const void* config) {
  std::memcpy(&thread.config, config, sizeof(Config));
  std::memset(thread.tiles, 0, sizeof thread.tiles);
}
inline void release() { std::memset(&thread, 0, sizeof thread); }

inline void loadd(int tile, const void* base, int64_t stride) {
  check_configured(tile);
  for (int r = 0; r < 16; ++r) std::memcpy(thread.tiles[tile][r], static_cast<const char*>(base) + r * stride, 64);
}
inline void stored(int tile, void* base, int64_t stride) {
  check_configured(tile);
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(base) + r * stride, thread.tiles[tile][r], 64);
}
inline void zero(int tile) {
  check_configured(tile);
  std::memset(thread.tiles[tile], 0, sizeof thread.tiles[tile]);
}

__attribute__((target("avx512f"))) inline void dpbf16ps(int sums, int a, int b) {
  check_configured(sums), check_configured(a), check_configured(b);
  const unsigned state = _mm_getcsr();
  _mm_setcsr(state | 0x8040);  // subnormal results, and operands, are zeros
  const __m512i odd = _mm512_set1_epi32(0xffff0000);
  for (int r = 0; r < 16; ++r) {
    __m512 evens = _mm512_setzero_ps(), odds = evens;
    for (int k = 0; k < 16; ++k) {
      int32_t pair;
      std::memcpy(&pair, &thread.tiles[a][r][k], sizeof pair);
      const __m512i left = _mm512_set1_epi32(pair), right = _mm512_loadu_si512(thread.tiles[b][k]);
      evens = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(left, 16), (__m512)_mm512_slli_epi32(right, 16), evens);
      odds = _mm512_fmadd_ps((__m512)_mm512_and_si512(left, odd), (__m512)_mm512_and_si512(right, odd), odds);
    }
    float* row = thread.tiles[sums][r];
    _mm512_storeu_ps(row, _mm512_add_ps(_mm512_loadu_ps(row), _mm512_add_ps(evens, odds)));
  }
  _mm_setcsr(state);
}

}  // namespace amx_emulator

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_emulator::loadconfig
#define _tile_release amx_emulator::release
#define _tile_loadd amx_emulator::loadd
#define _tile_stored amx_emulator::stored
#define _tile_zero amx_emulator::zero
#define _tile_dpbf16ps amx_emulator::dpbf16ps
