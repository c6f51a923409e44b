// gelu(h) on the CPU: checks, outputs, threads; the arithmetic is in gelu_kernel.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/gelu_params.h"
#include "cpu/scratch.h"
#include "cpu/segments.h"

#define JAIR_KERNEL "cpu/gelu_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/result.h"

namespace jair {
namespace {

constexpr int64_t kLeast = 16384;  // elements of a thread: some 10 us

GeluParams make_params(const Tensor& h) {
  GeluParams p{};
  STD_TORCH_CHECK(h.dim() == 2, "h: unexpected shape");
  p.rows = h.size(0), p.width = h.size(1);
  p.h = h.data_ptr(), p.h_row = h.stride(0);
  return p;
}

Tensor forward(Tensor h, bool tanh) {
  const Tensor dense_h = with_dense_rows(h);
  GeluParams p = make_params(dense_h);
  Tensor g = result(h, {p.rows, p.width}, h.scalar_type());
  p.g = g.data_ptr();
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(h.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(gelu_forward, T, p, shares, tanh);
  });
  return g;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor dg, Tensor h, bool tanh, bool sums) {
  const Tensor dense_h = with_dense_rows(h), dense_dg = with_dense_rows(dg);
  GeluParams p = make_params(dense_h);
  check_shape(dg, {p.rows, p.width}, "dg");
  check_dtype(dg, h.scalar_type(), "dg");
  Tensor dh = result(h, {p.rows, p.width}, h.scalar_type()), g = result(h, {p.rows, p.width}, h.scalar_type());
  Tensor total = result(h, {sums ? p.width : 0}, accumulate_type(h.scalar_type()));
  p.dg = dense_dg.data_ptr(), p.dg_row = dense_dg.stride(0), p.dh = dh.data_ptr(), p.g = g.data_ptr();
  p.sums = sums ? total.data_ptr() : nullptr;
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(h.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(gelu_backward, T, p, shares, tanh);
  });
  return {dh, g, total};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("gelu_forward", TORCH_BOX(&jair::forward));
  m.impl("gelu_backward", TORCH_BOX(&jair::backward));
}
