// From a tensor's dtype and the active instruction set to one instance of a kernel.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <utility>

#include "checks.h"
#include "cpu/isa.h"

// Calls f(T{}) with T = the element type of `dtype`.
namespace jair {

template <typename F>
void dispatch_dtype(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(bf16{});
    case ScalarType::Half: return f(f16{});
    default: STD_TORCH_CHECK(false, "unexpected dtype");
  }
}

// Runs f(t) for t = 0 .. threads-1, one each where the thread pool has as many.
template <typename F>
void parallel(int64_t threads, const F& f) {
  if (threads == 1) return f(0);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) f(t);
  });
}

}  // namespace jair

// The function template `name`<T> of the active instruction set, called with the arguments.
#if defined(__x86_64__)
#define JAIR_CALL_ISA(name, T, ...)                                                    \
  (::jair::active_isa() == ::jair::Isa::portable ? ::jair::portable::name<T>(__VA_ARGS__) \
   : ::jair::active_isa() == ::jair::Isa::avx2   ? ::jair::avx2::name<T>(__VA_ARGS__)     \
                                                 : ::jair::avx512::name<T>(__VA_ARGS__))
#else
#define JAIR_CALL_ISA(name, T, ...) ::jair::portable::name<T>(__VA_ARGS__)
#endif
