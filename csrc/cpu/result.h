// Memory that kernels write their results to.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "checks.h"

namespace jair {

// Asks for huge pages where memory of this size is new to the process at every call, as glibc maps it: to be given it
// in pages of 4 KB takes a quarter of a TokenLearner's step. Smaller memory comes from a heap that has its pages.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kMapped = size_t{32} << 20;
  constexpr uintptr_t kPage = 4096;
  if (bytes < kMapped) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory), first = (address + kPage - 1) / kPage * kPage;
  // A wish: where it is refused, small pages do.
  (void)madvise(reinterpret_cast<void*>(first), (address + bytes - first) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

inline Tensor result(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  Tensor tensor = empty(like, sizes, dtype);
  prefer_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

}  // namespace jair
