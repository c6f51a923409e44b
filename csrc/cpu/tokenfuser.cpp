// fused_tokenfuser on the CPU: outputs and threads; the arithmetic is in tokenfuser_kernel.h and score_mlp.h.
#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/tokenfuser_params.h"

#define JAIR_KERNEL "cpu/tokenfuser_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/result.h"
#include "cpu/score_mlp_inputs.h"

namespace jair {
namespace {

constexpr int64_t kGrain = 32;

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor tokens, Tensor w1, OptionalTensor b1, Tensor w2,
                                           OptionalTensor b2, OptionalTensor norm_weight, OptionalTensor norm_bias,
                                           double eps, bool tanh, bool keep) {
  const ScoreMlpTensors tensors(x, w1, b1, w2, b2, norm_weight, norm_bias, std::nullopt);
  TokenFuserParams p{};
  p.mlp = tensors.params(eps, tanh);
  const auto [b, n, d, k] = std::array{p.mlp.batch, p.mlp.tokens, p.mlp.width, p.mlp.outputs};
  check_shape(tokens, {b, k, d}, "tokens");
  check_dtype(tokens, x.scalar_type(), "tokens");
  const Tensor dense_tokens = torch::stable::contiguous(tokens);
  Tensor y = result(x, {b, n, d}, x.scalar_type()), stats = result(x, {b, n, 2}, tensors.statistic());
  Tensor hidden = tensors.new_hidden(p.mlp, keep);
  const Plan plan(b, n, thread_count(), kGrain);
  p.tokens = dense_tokens.data_ptr(), p.y = y.data_ptr(), p.mlp.stats = stats.data_ptr(), p.plan = &plan;
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(tokenfuser_forward, T, p);
  });
  return {y, stats, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor dy, Tensor x, Tensor tokens, Tensor w1, OptionalTensor b1, Tensor w2, OptionalTensor b2,
    OptionalTensor norm_weight, OptionalTensor norm_bias, Tensor stats, Tensor hidden, bool tanh) {
  const ScoreMlpTensors tensors(x, w1, b1, w2, b2, norm_weight, norm_bias, std::nullopt);
  TokenFuserParams p{};
  p.mlp = tensors.params(0, tanh);
  const auto [b, n, d, k] = std::array{p.mlp.batch, p.mlp.tokens, p.mlp.width, p.mlp.outputs};
  check_shape(dy, {b, n, d}, "dy");
  check_dtype(dy, x.scalar_type(), "dy");
  check_kept(stats, {b, n, 2}, x, "stats");
  check_shape(tokens, {b, k, d}, "tokens");
  check_dtype(tokens, x.scalar_type(), "tokens");
  const Tensor rows_dy = with_dense_rows(dy), dense_tokens = torch::stable::contiguous(tokens);
  const Tensor dense_stats = torch::stable::contiguous(stats), dense_hidden = tensors.kept_hidden(p.mlp, hidden);
  Tensor dx = result(x, {b, n, d}, x.scalar_type()), dtokens = result(x, {b, k, d}, x.scalar_type());
  const ScoreMlpGradients grads(tensors, p.mlp);
  const Plan plan(b, n, thread_count(), kGrain);
  p.tokens = dense_tokens.data_ptr(), p.mlp.stats = dense_stats.data_ptr(), p.plan = &plan;
  p.dy = rows_dy.data_ptr(), p.dy_image = rows_dy.stride(0), p.dy_token = rows_dy.stride(1);
  p.dx = dx.data_ptr(), p.dtokens = dtokens.data_ptr();
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(tokenfuser_backward, T, p);
  });
  return {dx, dtokens, grads.w1, grads.b1, grads.w2, grads.b2, grads.norm_weight, grads.norm_bias};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("tokenfuser_forward", TORCH_BOX(&jair::forward));
  m.impl("tokenfuser_backward", TORCH_BOX(&jair::backward));
}
