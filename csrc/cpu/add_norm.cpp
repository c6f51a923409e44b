// add_norm on the CPU: checks, outputs, threads; the arithmetic is in add_norm_kernel.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/add_norm_params.h"
#include "cpu/scratch.h"
#include "cpu/segments.h"

#define JAIR_KERNEL "cpu/add_norm_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/parameter_inputs.h"
#include "cpu/result.h"

namespace jair {
namespace {

constexpr int64_t kLeast = 32768;  // elements of a thread: some 10 us

void check_rows(const OptionalTensor& tensor, const Tensor& x, const char* name) {
  if (!tensor) return;
  check_shape(*tensor, {x.size(0), x.size(1)}, name);
  check_dtype(*tensor, x.scalar_type(), name);
}

void check_stats(const OptionalTensor& stats, const Tensor& x, const char* name) {
  if (!stats) return;
  check_shape(*stats, {x.size(0), 2}, name);
  check_dtype(*stats, accumulate_type(x.scalar_type()), name);
}

struct Inputs {
  Tensor x;
  OptionalTensor x_stats, x_weight, x_bias, update, gate, weight, bias;

  AddNormParams params(bool norm, double eps) const {
    STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "x: unexpected shape");
    AddNormParams p{};
    p.rows = x.size(0), p.width = x.size(1), p.norm = norm, p.eps = eps;
    check_stats(x_stats, x, "x_stats");
    check_rows(update, x, "update");
    check_parameter(x_weight, p.width, x, "x_weight");
    check_parameter(x_bias, p.width, x, "x_bias");
    p.gate_size = gate ? gate->numel() : 0;
    STD_TORCH_CHECK(!gate || p.gate_size == 1 || p.gate_size == p.width, "gate: unexpected shape");
    check_parameter(gate, p.gate_size, x, "gate");
    check_parameter(weight, p.width, x, "weight");
    check_parameter(bias, p.width, x, "bias");
    p.x = x.data_ptr(), p.x_row = x.stride(0);
    if (x_stats) p.x_stats = x_stats->data_ptr();
    if (update) p.update = update->data_ptr(), p.update_row = update->stride(0);
    p.x_weight = parameter(x_weight), p.x_bias = parameter(x_bias);
    p.gate = parameter(gate);
    p.weight = parameter(weight), p.bias = parameter(bias);
    return p;
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, OptionalTensor x_stats, OptionalTensor x_weight,
                                           OptionalTensor x_bias, OptionalTensor update, OptionalTensor gate, bool norm,
                                           OptionalTensor weight, OptionalTensor bias, double eps) {
  STD_TORCH_CHECK(x.dim() == 2, "x: unexpected shape");
  const Inputs in{with_dense_rows(x),      contiguous(x_stats), contiguous(x_weight), contiguous(x_bias),
                  with_dense_rows(update), contiguous(gate),    contiguous(weight),   contiguous(bias)};
  AddNormParams p = in.params(norm, eps);
  const ScalarType dtype = x.scalar_type(), statistic = accumulate_type(dtype);
  const auto rows = [&](bool wanted) { return wanted ? result(x, {p.rows, p.width}, dtype) : result(x, {0}, dtype); };
  Tensor z = rows(x_stats || update), y = rows(norm);
  Tensor stats = norm ? result(x, {p.rows, 2}, statistic) : result(x, {0}, statistic);
  p.z = z.data_ptr(), p.y = y.data_ptr(), p.stats = stats.data_ptr();
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(add_norm_forward, T, p, shares);
  });
  return {z, y, stats};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor dy, OptionalTensor dz, Tensor z, Tensor stats, OptionalTensor weight,
                                            OptionalTensor bias) {
  STD_TORCH_CHECK(z.dim() == 2 && z.size(1) > 0, "z: unexpected shape");
  const Tensor rows_dy = with_dense_rows(dy), rows_z = with_dense_rows(z);
  const Tensor dense_stats = torch::stable::contiguous(stats);
  const OptionalTensor rows_dz = with_dense_rows(dz), dense_weight = contiguous(weight), dense_bias = contiguous(bias);
  AddNormGradParams p{};
  p.rows = z.size(0), p.width = z.size(1);
  check_rows(dy, z, "dy");
  check_rows(dz, z, "dz");
  check_stats(stats, z, "stats");
  check_parameter(weight, p.width, z, "weight");
  check_parameter(bias, p.width, z, "bias");
  p.dy = rows_dy.data_ptr(), p.dy_row = rows_dy.stride(0), p.z = rows_z.data_ptr(), p.z_row = rows_z.stride(0);
  if (dz) p.dz = rows_dz->data_ptr(), p.dz_row = rows_dz->stride(0);
  p.stats = dense_stats.data_ptr(), p.weight = parameter(dense_weight), p.bias = parameter(dense_bias);
  Tensor dx = result(z, {p.rows, p.width}, z.scalar_type());
  Tensor dweight = gradient_of(dense_weight, z), dbias = gradient_of(dense_bias, z);
  p.dx = dx.data_ptr();
  p.dweight = weight ? dweight.data_ptr() : nullptr, p.dbias = bias ? dbias.data_ptr() : nullptr;
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(z.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(add_norm_backward, T, p, shares);
  });
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("add_norm_forward", TORCH_BOX(&jair::forward));
  m.impl("add_norm_backward", TORCH_BOX(&jair::backward));
}
