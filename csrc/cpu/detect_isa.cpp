// What the processor and the operating system offer. A test build for tile registers in software has another.
#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace jair {

#if defined(__x86_64__)
namespace {

// The state components that the operating system saves (XCR0): 1|2 = vector registers of 32 bytes, 5-7 = of 64.
unsigned enabled_state() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// The kernel keeps the 8 KB of tile data out of a process until it asks. The permission is the process's: threads
// and forked children have it too.
bool request_tiles() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

}  // namespace

Isa detect_isa() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::portable;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::portable;
  const unsigned state = enabled_state();
  const bool avx2 = b >> 5 & 1, avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);
  if (!(avx2 && fma && f16c && (state & 0x6) == 0x6)) return Isa::portable;
  if (!(avx512 && (state & 0xe6) == 0xe6)) return Isa::avx2;
  unsigned a1, b1, c1, d1;
  const bool bf16 = __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 >> 5 & 1);
  if (!bf16) return Isa::avx512;
  if (!(tiles && (state >> 17 & 3) == 3 && request_tiles())) return Isa::avx512_bf16;
  return Isa::amx;
}
#else
Isa detect_isa() { return Isa::portable; }
#endif

}  // namespace jair
