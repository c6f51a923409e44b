// Python bindings of the CPU kernels' building blocks, one submodule per instruction set.
// Nothing of torch is needed: tests/test_blocks.py compiles this file with the project's headers alone.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/scratch.h"
#include "cpu/segments.h"

namespace jair {

enum class Function {
  exp,
  sigmoid,
  reciprocal,
  absolute,
  normal,
  exp_of_score,
  gelu_tanh,
  gelu_tanh_slope,
  gelu_erf,
  gelu_erf_slope
};
constexpr const char* kFunctions[] = {"exp",          "sigmoid",   "reciprocal",      "absolute", "normal",
                                      "exp_of_score", "gelu_tanh", "gelu_tanh_slope", "gelu_erf", "gelu_erf_slope"};

template <typename C>
struct Blocks {
  int lanes;
  void (*apply)(Function, const C*, C*, int64_t);
  C (*sum)(const C*, int);
  void (*larger)(const C*, const C*, C*, int);
  void (*product)(const C*, int64_t, int64_t, const C*, C*, const int64_t*, bool, bool);
  void (*turn)(const C*, int64_t, int64_t, C*);
};

struct Halves {
  void (*widen_bf16)(const uint16_t*, float*, int64_t);
  void (*narrow_bf16)(const float*, uint16_t*, int64_t);
  void (*widen_f16)(const uint16_t*, float*, int64_t);
  void (*narrow_f16)(const float*, uint16_t*, int64_t);
  void (*apply)(Function, const float*, float*, int64_t);
};

}  // namespace jair

#define JAIR_KERNEL "blocks_kernel.h"
#include "cpu/foreach_isa.h"

namespace {

namespace py = pybind11;
template <typename T>
using Dense = py::array_t<T, py::array::c_style>;

template <typename C>
void bind_functions(py::module_& m, int first, void (*apply)(jair::Function, const C*, C*, int64_t)) {
  for (int i = first; i < static_cast<int>(std::size(jair::kFunctions)); ++i) {
    m.def(jair::kFunctions[i], [apply, i](Dense<C> x) {
      Dense<C> out(x.size());
      apply(static_cast<jair::Function>(i), x.data(), out.mutable_data(), x.size());
      return out;
    });
  }
}

template <typename C>
void bind(py::module_& isa, const char* dtype, jair::Blocks<C> blocks) {
  auto m = isa.def_submodule(dtype);
  m.attr("lanes") = blocks.lanes;
  bind_functions(m, 0, blocks.apply);
  m.def("sum", [blocks](Dense<C> x) { return blocks.sum(x.data(), static_cast<int>(x.size())); });
  m.def("larger", [blocks](Dense<C> a, Dense<C> b) {
    Dense<C> out(a.size());
    blocks.larger(a.data(), b.data(), out.mutable_data(), static_cast<int>(a.size()));
    return out;
  });
  // a keeps its strides: rows of a matrix, its columns, or every second of either.
  m.def("gemm", [blocks](py::array_t<C> a, Dense<C> b, Dense<C> c, bool add, bool packed) {
    Dense<C> out({c.shape(0), c.shape(1)});
    std::copy(c.data(), c.data() + c.size(), out.mutable_data());
    const int64_t size = sizeof(C), sizes[] = {c.shape(0), c.shape(1), a.shape(1)};
    blocks.product(a.data(), a.strides(0) / size, a.strides(1) / size, b.data(), out.mutable_data(), sizes, add,
                   packed);
    return out;
  });
  m.def("transpose", [blocks](Dense<C> x) {
    Dense<C> out({x.shape(1), x.shape(0)});
    blocks.turn(x.data(), x.shape(0), x.shape(1), out.mutable_data());
    return out;
  });
}

template <typename From, typename To>
void bind_conversion(py::module_& m, const char* name, void (*convert)(const From*, To*, int64_t)) {
  m.def(name, [convert](Dense<From> x) {
    Dense<To> out(x.size());
    convert(x.data(), out.mutable_data(), x.size());
    return out;
  });
}

void bind_isa(py::module_& m, const char* name, jair::Blocks<float> single, jair::Blocks<double> twice,
              jair::Halves halves) {
  auto isa = m.def_submodule(name);
  bind(isa, "float32", single);
  bind(isa, "float64", twice);
  bind_conversion(isa, "widen_bf16", halves.widen_bf16);
  bind_conversion(isa, "narrow_bf16", halves.narrow_bf16);
  bind_conversion(isa, "widen_f16", halves.widen_f16);
  bind_conversion(isa, "narrow_f16", halves.narrow_f16);
  auto of_halves = isa.def_submodule("halves");
  bind_functions(of_halves, static_cast<int>(jair::Function::exp_of_score), halves.apply);
}

// (thread, image, begin, end, partial) of every segment, in the order of the threads.
std::vector<std::array<int64_t, 5>> plan(int64_t batch, int64_t tokens, int64_t threads, int64_t grain) {
  const jair::Plan plan(batch, tokens, threads, grain);
  std::vector<std::array<int64_t, 5>> result;
  for (int64_t t = 0; t < plan.threads(); ++t) {
    for (const jair::Segment& s : plan.of(t)) result.push_back({t, s.image, s.begin, s.end, s.partial});
  }
  return result;
}

}  // namespace

#define JAIR_BIND(isa) bind_isa(m, #isa, jair::isa::blocks<float>(), jair::isa::blocks<double>(), jair::isa::halves())

PYBIND11_MODULE(jair_blocks, m) {
  JAIR_BIND(portable);
#if defined(__x86_64__)
  JAIR_BIND(avx2);
  JAIR_BIND(avx512);
  JAIR_BIND(avx512_bf16);
  JAIR_BIND(amx);
#endif
  m.def("plan", &plan);
}
