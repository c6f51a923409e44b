// gelu(h + bias) on the CPU: checks, outputs, threads; the arithmetic is in bias_gelu_kernel.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/bias_gelu_params.h"
#include "cpu/scratch.h"
#include "cpu/segments.h"

#define JAIR_KERNEL "cpu/bias_gelu_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/parameter_inputs.h"

namespace jair {
namespace {

constexpr int64_t kLeast = 16384;  // elements of a thread: some 10 us

BiasGeluParams make_params(const Tensor& h, const OptionalTensor& bias) {
  BiasGeluParams p{};
  STD_TORCH_CHECK(h.dim() == 2, "h: unexpected shape");
  p.rows = h.size(0), p.width = h.size(1);
  check_parameter(bias, p.width, h, "bias");
  p.h = h.data_ptr(), p.h_row = h.stride(0), p.bias = parameter(bias);
  return p;
}

Tensor forward(Tensor h, OptionalTensor bias, bool tanh) {
  const Tensor dense_h = with_dense_rows(h);
  const OptionalTensor dense_bias = contiguous(bias);
  BiasGeluParams p = make_params(dense_h, dense_bias);
  Tensor g = empty(h, {p.rows, p.width}, h.scalar_type());
  p.g = g.data_ptr();
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(h.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(bias_gelu_forward, T, p, shares, tanh);
  });
  return g;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor dg, Tensor h, OptionalTensor bias, bool tanh) {
  const Tensor dense_h = with_dense_rows(h), dense_dg = with_dense_rows(dg);
  const OptionalTensor dense_bias = contiguous(bias);
  BiasGeluParams p = make_params(dense_h, dense_bias);
  check_shape(dg, {p.rows, p.width}, "dg");
  check_dtype(dg, h.scalar_type(), "dg");
  Tensor dh = empty(h, {p.rows, p.width}, h.scalar_type()), g = empty(h, {p.rows, p.width}, h.scalar_type());
  Tensor dbias = gradient_of(dense_bias, h);
  p.dg = dense_dg.data_ptr(), p.dg_row = dense_dg.stride(0), p.dh = dh.data_ptr(), p.g = g.data_ptr();
  p.dbias = bias ? dbias.data_ptr() : nullptr;
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(h.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(bias_gelu_backward, T, p, shares, tanh);
  });
  return {dh, g, dbias};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("bias_gelu_forward", TORCH_BOX(&jair::forward));
  m.impl("bias_gelu_backward", TORCH_BOX(&jair::backward));
}
