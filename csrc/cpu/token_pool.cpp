// fused_token_pool on the CPU: checks, outputs, threads; the arithmetic is in token_pool_kernel.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/token_pool_params.h"

#define JAIR_KERNEL "cpu/token_pool_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/result.h"

namespace jair {
namespace {

constexpr int64_t kGrain = 32;

struct Inputs {
  Tensor x, scores;
  OptionalTensor mask;
};

TokenPoolParams make_params(const Inputs& in, bool sigmoid, bool mean, const Plan& plan) {
  TokenPoolParams p{};
  p.batch = in.x.size(0), p.tokens = in.x.size(1), p.width = in.x.size(2), p.outputs = in.scores.size(2);
  check_not_empty({p.tokens, p.width}, "x");
  check_not_empty({p.outputs}, "scores");
  check_shape(in.scores, {p.batch, p.tokens, p.outputs}, "scores");
  check_shape(in.mask, {p.batch, p.tokens}, "mask");
  check_dtype(in.scores, in.x.scalar_type(), "scores");
  p.x = in.x.data_ptr(), p.x_image = in.x.stride(0), p.x_token = in.x.stride(1);
  p.scores = in.scores.data_ptr(), p.scores_image = in.scores.stride(0), p.scores_token = in.scores.stride(1);
  if (in.mask) {
    check_dtype(*in.mask, ScalarType::Bool, "mask");
    p.mask = static_cast<const uint8_t*>(in.mask->data_ptr());
    p.mask_image = in.mask->stride(0), p.mask_token = in.mask->stride(1);
  }
  p.sigmoid = sigmoid, p.mean = mean, p.plan = &plan;
  return p;
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor scores, OptionalTensor mask, bool sigmoid, bool mean) {
  const Inputs in{with_dense_rows(x), with_dense_rows(scores), mask};
  const Plan plan(x.size(0), x.size(1), thread_count(), kGrain);
  TokenPoolParams p = make_params(in, sigmoid, mean, plan);
  const ScalarType dtype = x.scalar_type(), statistic = accumulate_type(dtype);
  Tensor y = result(x, {p.batch, p.outputs, p.width}, dtype);
  Tensor softmax = sigmoid ? result(x, {0}, statistic) : result(x, {p.batch, p.outputs, 2}, statistic);
  p.y = y.data_ptr(), p.softmax = softmax.data_ptr();
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(token_pool_forward, T, p);
  });
  return {y, softmax};
}

std::tuple<Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor scores, OptionalTensor mask, OptionalTensor,
                                    Tensor softmax, bool sigmoid, bool mean) {
  const Inputs in{with_dense_rows(x), with_dense_rows(scores), mask};
  const Tensor dense_dy = torch::stable::contiguous(dy), dense_softmax = torch::stable::contiguous(softmax);
  const Plan plan(x.size(0), x.size(1), thread_count(), kGrain);
  TokenPoolParams p = make_params(in, sigmoid, mean, plan);
  check_shape(dense_dy, {p.batch, p.outputs, p.width}, "dy");
  check_dtype(dense_dy, x.scalar_type(), "dy");
  if (!sigmoid) check_kept(softmax, {p.batch, p.outputs, 2}, x, "softmax");
  Tensor dx = result(x, {p.batch, p.tokens, p.width}, x.scalar_type());
  Tensor dscores = result(x, {p.batch, p.tokens, p.outputs}, x.scalar_type());
  p.dy = dense_dy.data_ptr(), p.softmax = dense_softmax.data_ptr();
  p.dx = dx.data_ptr(), p.dscores = dscores.data_ptr();
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(token_pool_backward, T, p);
  });
  return {dx, dscores};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("token_pool_forward", TORCH_BOX(&jair::forward));
  m.impl("token_pool_backward", TORCH_BOX(&jair::backward));
}
