#include "cpu/isa.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace jair {
namespace {

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
  static const Isa best = std::min(detect_isa(), static_cast<Isa>(JAIR_WIDEST_ISA));
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
