// query_pool on the CPU: checks, outputs, threads; the arithmetic is in query_pool_kernel.h.
#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/query_pool_params.h"
#include "cpu/scratch.h"

#define JAIR_KERNEL "cpu/query_pool_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/result.h"
#include "cpu/token_rows_inputs.h"

namespace jair {
namespace {

constexpr int64_t kGrain = 32;

QueryPoolParams make_params(const Tensor& x, const Tensor& queries, const OptionalTensor& mask, const Plan& plan) {
  QueryPoolParams p{};
  set_token_rows(p, x, mask);
  p.outputs = queries.size(1), p.shared = queries.size(0) == 1;
  check_not_empty({p.outputs}, "queries");
  check_shape(queries, {p.shared ? 1 : p.batch, p.outputs, p.width}, "queries");
  check_dtype(queries, x.scalar_type(), "queries");
  p.queries = queries.data_ptr(), p.plan = &plan;
  return p;
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor queries, OptionalTensor mask, bool norm, double eps) {
  const Tensor rows = with_dense_rows(x), dense_queries = torch::stable::contiguous(queries);
  const Plan plan(x.size(0), x.size(1), thread_count(), kGrain);
  QueryPoolParams p = make_params(rows, dense_queries, mask, plan);
  const ScalarType dtype = x.scalar_type(), statistic = accumulate_type(dtype);
  Tensor y = result(x, {p.batch, p.outputs, p.width}, dtype), softmax = result(x, {p.batch, p.outputs, 2}, statistic);
  Tensor stats = norm ? result(x, {p.batch, p.tokens, 2}, statistic) : result(x, {0}, statistic);
  p.y = y.data_ptr(), p.softmax = softmax.data_ptr(), p.eps = eps;
  p.stats = norm ? stats.data_ptr() : nullptr;
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(query_pool_forward, T, p);
  });
  return {y, softmax, stats};
}

std::tuple<Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor queries, OptionalTensor mask, Tensor y, Tensor softmax,
                                    Tensor stats, bool norm) {
  const Tensor rows = with_dense_rows(x), dense_queries = torch::stable::contiguous(queries);
  const Tensor dense_dy = torch::stable::contiguous(dy);
  const Tensor dense_softmax = torch::stable::contiguous(softmax), dense_stats = torch::stable::contiguous(stats);
  const Plan plan(x.size(0), x.size(1), thread_count(), kGrain);
  QueryPoolParams p = make_params(rows, dense_queries, mask, plan);
  const ScalarType dtype = x.scalar_type();
  check_shape(dense_dy, {p.batch, p.outputs, p.width}, "dy");
  check_dtype(dense_dy, dtype, "dy");
  check_kept(dense_softmax, {p.batch, p.outputs, 2}, x, "softmax");
  if (norm) check_kept(dense_stats, {p.batch, p.tokens, 2}, x, "stats");
  Tensor dx = result(x, {p.batch, p.tokens, p.width}, dtype), dqueries = torch::stable::empty_like(dense_queries);
  p.dy = dense_dy.data_ptr(), p.softmax = dense_softmax.data_ptr();
  p.stats = norm ? dense_stats.data_ptr() : nullptr;
  p.dx = dx.data_ptr(), p.dqueries = dqueries.data_ptr();
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(query_pool_backward, T, p);
  });
  return {dx, dqueries};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("query_pool_forward", TORCH_BOX(&jair::forward));
  m.impl("query_pool_backward", TORCH_BOX(&jair::backward));
}
