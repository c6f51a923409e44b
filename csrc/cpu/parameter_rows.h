// Parameters of any floating type as rows of the compute type, and back. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// Calls f with a pointer of the parameter's own type to its element `offset`. float64 comes only beside float64.
template <typename C, typename F>
inline void with_parameter(const Parameter& p, int64_t offset, F f) {
  if constexpr (sizeof(C) == sizeof(float)) {
    if (p.dtype == Dtype::f32) return f(static_cast<const float*>(p.data) + offset);
    if (p.dtype == Dtype::bf16) return f(static_cast<const bf16*>(p.data) + offset);
    if (p.dtype == Dtype::f16) return f(static_cast<const f16*>(p.data) + offset);
  } else {
    f(static_cast<const double*>(p.data) + offset);
  }
}

// Elements [offset, offset + count) of a parameter in the compute type, the rest of the last vector 0.
template <typename C>
inline void read_parameter(const Parameter& p, int64_t offset, int64_t count, C* out) {
  with_parameter<C>(p, offset, [&](const auto* from) { convert_row(from, out, count); });
}

// A parameter [width] in the compute type, padded with zeros, and `absent` in all columns where there is none.
template <typename C>
inline C* whole_parameter(const Parameter& p, int64_t width, C absent, Scratch::Frame& frame) {
  C* out = frame.take<C>(padded<C>(width));
  if (p.data) {
    read_parameter(p, 0, width, out);
  } else {
    std::fill(out, out + padded<C>(width), absent);
  }
  return out;
}

// `count` gradients from element `offset` on, in the type of their parameter; nothing where it is absent.
template <typename C>
inline void write_gradient(const Parameter& p, void* gradient, int64_t offset, int64_t count, const C* from) {
  if (!gradient) return;
  if constexpr (sizeof(C) == sizeof(float)) {
    if (p.dtype == Dtype::f32) convert_row_back(from, static_cast<float*>(gradient) + offset, count);
    if (p.dtype == Dtype::bf16) convert_row_back(from, static_cast<bf16*>(gradient) + offset, count);
    if (p.dtype == Dtype::f16) convert_row_back(from, static_cast<f16*>(gradient) + offset, count);
  } else {
    convert_row_back(from, static_cast<double*>(gradient) + offset, count);
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
