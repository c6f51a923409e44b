#include "cpu/isa.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace jair {
namespace {

#if defined(__x86_64__)
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

Isa detect() {
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
Isa detect() { return Isa::portable; }
#endif

Isa from_environment() {
  constexpr const char* names[] = {"portable", "avx2", "avx512", "avx512_bf16", "amx"};
  const char* wish = std::getenv("JAIR_KERNELS_CPU_ISA");
  for (int i = 0; wish && i < static_cast<int>(best_isa()); ++i) {
    if (std::strcmp(wish, names[i]) == 0) return static_cast<Isa>(i);
  }
  return best_isa();
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{from_environment()};
  return isa;
}

}  // namespace

Isa best_isa() {
  static const Isa best = std::min(detect(), static_cast<Isa>(JAIR_WIDEST_ISA));
  return best;
}

Isa active_isa() { return current().load(std::memory_order_relaxed); }

Isa set_isa(Isa isa) {
  current() = isa < best_isa() ? isa : best_isa();
  return active_isa();
}

}  // namespace jair

namespace {

// Whether the processor is an x86-64 of another maker.
bool cpu_is_not_intel() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}
int64_t cpu_isa_best() { return static_cast<int64_t>(jair::best_isa()); }
int64_t cpu_isa() { return static_cast<int64_t>(jair::active_isa()); }
int64_t set_cpu_isa(int64_t isa) {
  STD_TORCH_CHECK(isa >= 0, "isa: expected 0 or more, got ", isa);
  return static_cast<int64_t>(jair::set_isa(static_cast<jair::Isa>(std::min(isa, cpu_isa_best()))));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_is_not_intel", TORCH_BOX(&cpu_is_not_intel));
  m.impl("cpu_isa_best", TORCH_BOX(&cpu_isa_best));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("set_cpu_isa", TORCH_BOX(&set_cpu_isa));
}
