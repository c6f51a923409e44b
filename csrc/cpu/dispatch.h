// From a tensor's dtype and the active instruction set to one instance of a kernel.
#pragma once

#include <type_traits>

#include "checks.h"
#include "cpu/isa.h"

namespace jair {

// Calls f(T{}) with T = the element type of `dtype`.
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

}  // namespace jair

// Calls the function template `name`<T> of the active instruction set. Tiles multiply bfloat16 alone: for other types,
// avx512_bf16 and amx mean avx512.
#if defined(__x86_64__) && JAIR_WIDEST_ISA >= 4
#define JAIR_CALL_AMX(name, T, ...)                                                         \
  if constexpr (std::is_same<T, ::jair::bf16>::value) {                                     \
    if (::jair::active_isa() == ::jair::Isa::amx) return ::jair::amx::name<T>(__VA_ARGS__); \
  }
#else
#define JAIR_CALL_AMX(name, T, ...)
#endif

#if defined(__x86_64__) && JAIR_WIDEST_ISA >= 3
#define JAIR_CALL_AVX512_BF16(name, T, ...)                                                                 \
  if constexpr (std::is_same<T, ::jair::bf16>::value) {                                                     \
    if (::jair::active_isa() >= ::jair::Isa::avx512_bf16) return ::jair::avx512_bf16::name<T>(__VA_ARGS__); \
  }
#else
#define JAIR_CALL_AVX512_BF16(name, T, ...)
#endif

#if defined(__x86_64__) && JAIR_WIDEST_ISA >= 2
#define JAIR_CALL_AVX512(name, T, ...) \
  if (::jair::active_isa() >= ::jair::Isa::avx512) return ::jair::avx512::name<T>(__VA_ARGS__);
#else
#define JAIR_CALL_AVX512(name, T, ...)
#endif

#if defined(__x86_64__) && JAIR_WIDEST_ISA >= 1
#define JAIR_CALL_AVX2(name, T, ...) \
  if (::jair::active_isa() >= ::jair::Isa::avx2) return ::jair::avx2::name<T>(__VA_ARGS__);
#else
#define JAIR_CALL_AVX2(name, T, ...)
#endif

#define JAIR_CALL_ISA(name, T, ...)                \
  do {                                             \
    JAIR_CALL_AMX(name, T, __VA_ARGS__)            \
    JAIR_CALL_AVX512_BF16(name, T, __VA_ARGS__)    \
    JAIR_CALL_AVX512(name, T, __VA_ARGS__)         \
    JAIR_CALL_AVX2(name, T, __VA_ARGS__)           \
    return ::jair::portable::name<T>(__VA_ARGS__); \
  } while (false)
