// The building blocks of csrc/cpu as plain functions over arrays. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/exp.h"
#include "cpu/gelu.h"
#include "cpu/gemm.h"
#include "cpu/pool.h"

namespace jair {
namespace JAIR_ISA {

// Whole vectors, then the rest through load_part and store_part, as kernels do.
template <typename From, typename To, typename F>
void map(const From* in, To* out, int64_t count, F f) {
  using C = compute_t<From>;
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) store(out + i, f(load(in + i)));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) store_part(out + i, f(load_part(in + i, rest)), rest);
}

// T: as what the arguments of GELU and softmax are held.
template <typename C, typename T = C>
void apply(Function function, const C* in, C* out, int64_t count) {
  map(in, out, count, [=](Vec<C> x) {
    Vec<C> value{}, slope{};
    switch (function) {
      case Function::exp: return exp(x);
      case Function::sigmoid: return sigmoid<C>(x);
      case Function::reciprocal: return reciprocal(x);
      case Function::absolute: return absolute<C>(x);
      case Function::normal: normal(x, &value, &slope); return value;
      case Function::exp_of_score: return exp_of_score<T>(x);
      case Function::gelu_tanh: gelu<T>(true, x, &value, &slope); return value;
      case Function::gelu_tanh_slope: gelu<T>(true, x, &value, &slope); return slope;
      case Function::gelu_erf: gelu<T>(false, x, &value, &slope); return value;
      default: gelu<T>(false, x, &value, &slope); return slope;
    }
  });
}

template <typename Half>
void widen(const uint16_t* in, float* out, int64_t count) {
  map(reinterpret_cast<const Half*>(in), out, count, [](Vec<float> x) { return x; });
}
template <typename Half>
void narrow(const float* in, uint16_t* out, int64_t count) {
  map(in, reinterpret_cast<Half*>(out), count, [](Vec<float> x) { return x; });
}

// One vector each: what is left over is filled with zeros, or with -infinity.
template <typename C>
C sum_lanes(const C* in, int count) {
  return sum<C>(load_part(in, count));
}
template <typename C>
void larger(const C* a, const C* b, C* out, int count) {
  store_part(out, vmax(load_part(a, count), load_part(b, count)), count);
}

// C[m,n] (+)= A[m,k] B[k,n] with A at any strides; B and C are padded here.
template <typename C>
void product(const C* a, int64_t row, int64_t step, const C* b, C* c, const int64_t* sizes, bool add, bool packed) {
  const int64_t m = sizes[0], n = sizes[1], k = sizes[2], np = padded<C>(n);
  Scratch::Frame frame;
  C *wide = frame.take<C>(k * np), *out = frame.take<C>(m * np), *pack = frame.take<C>(kDepth * kPackWidth<C>);
  for (int64_t i = 0; i < k; ++i) convert_row(b + i * n, wide + i * np, n);
  for (int64_t i = 0; i < m; ++i) convert_row(c + i * n, out + i * np, n);
  gemm<C>(m, np, k, {a, row, step}, wide, np, out, np, add, packed ? pack : nullptr);
  for (int64_t i = 0; i < m; ++i) convert_row_back(out + i * np, c + i * n, n);
}

template <typename C>
void turn(const C* from, int64_t rows, int64_t columns, C* to) {
  transpose(from, columns, rows, columns, to, rows);
}

template <typename C>
Blocks<C> blocks() {
  return {kLanes<C>, apply<C>, sum_lanes<C>, larger<C>, product<C>, turn<C>};
}
inline Halves halves() { return {widen<bf16>, narrow<bf16>, widen<f16>, narrow<f16>, apply<float, bf16>}; }

}  // namespace JAIR_ISA
}  // namespace jair
