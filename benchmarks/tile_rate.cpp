// FLOP/s that one core's AMX unit sustains on bf16 tiles that never leave the registers.
#pragma GCC target("amx-tile,amx-bf16")
#include <immintrin.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace {

struct alignas(64) TileConfig {
  unsigned char palette = 1, start_row = 0, reserved[14] = {};
  unsigned short row_bytes[16] = {};
  unsigned char rows[16] = {};
};

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

}  // namespace

extern "C" double tile_flops_per_second() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) != 0) return 0;
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = 64, config.rows[tile] = 16;
  // As inline assembly with the whole struct as operand: gcc 12's intrinsic declares a read of 8 bytes only.
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  __asm__ volatile("tilezero %tmm0; tilezero %tmm1; tilezero %tmm2; tilezero %tmm3");
  __asm__ volatile("tilezero %tmm4; tilezero %tmm5; tilezero %tmm6; tilezero %tmm7");
  constexpr int kRounds = 200000;
  const double start = now();
  for (int round = 0; round < kRounds; ++round) {  // four accumulators hide the latency of a product
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const double seconds = now() - start;
  _tile_release();
  return 4.0 * kRounds * 2 * 16 * 16 * 32 / seconds;
}
