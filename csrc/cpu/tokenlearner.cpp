// fused_tokenlearner on the CPU: outputs and threads; the arithmetic is in tokenlearner_kernel.h and score_mlp.h.
#include <algorithm>
#include <array>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/tokenlearner_params.h"

#define JAIR_KERNEL "cpu/tokenlearner_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/result.h"
#include "cpu/score_mlp_inputs.h"

namespace jair {
namespace {

constexpr int64_t kGrain = 32;

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor x, Tensor w1, OptionalTensor b1, Tensor w2, OptionalTensor b2,
                                                   OptionalTensor norm_weight, OptionalTensor norm_bias,
                                                   OptionalTensor mask, double eps, bool tanh, bool keep) {
  const ScoreMlpTensors tensors(x, w1, b1, w2, b2, norm_weight, norm_bias, mask);
  TokenLearnerParams p{};
  p.mlp = tensors.params(eps, tanh);
  const auto [b, n, d, k] = std::array{p.mlp.batch, p.mlp.tokens, p.mlp.width, p.mlp.outputs};
  Tensor y = result(x, {b, k, d}, x.scalar_type());
  Tensor softmax = result(x, {b, k, 2}, tensors.statistic()), stats = result(x, {b, n, 2}, tensors.statistic());
  Tensor hidden = tensors.new_hidden(p.mlp, keep);
  const Plan plan(b, n, thread_count(), kGrain);
  p.y = y.data_ptr(), p.softmax = softmax.data_ptr(), p.mlp.stats = stats.data_ptr(), p.plan = &plan;
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(tokenlearner_forward, T, p);
  });
  return {y, softmax, stats, hidden};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor dy, Tensor x, Tensor w1, OptionalTensor b1, Tensor w2, OptionalTensor b2, OptionalTensor norm_weight,
    OptionalTensor norm_bias, OptionalTensor mask, OptionalTensor, Tensor softmax, Tensor stats, Tensor hidden,
    bool tanh) {
  const ScoreMlpTensors tensors(x, w1, b1, w2, b2, norm_weight, norm_bias, mask);
  TokenLearnerParams p{};
  p.mlp = tensors.params(0, tanh);
  const auto [b, n, d, k] = std::array{p.mlp.batch, p.mlp.tokens, p.mlp.width, p.mlp.outputs};
  check_shape(dy, {b, k, d}, "dy");
  check_dtype(dy, x.scalar_type(), "dy");
  check_kept(softmax, {b, k, 2}, x, "softmax");
  check_kept(stats, {b, n, 2}, x, "stats");
  const Tensor dense_dy = torch::stable::contiguous(dy);
  const Tensor dense_softmax = torch::stable::contiguous(softmax), dense_stats = torch::stable::contiguous(stats);
  const Tensor dense_hidden = tensors.kept_hidden(p.mlp, hidden);
  Tensor dx = result(x, {b, n, d}, x.scalar_type());
  const ScoreMlpGradients grads(tensors, p.mlp);
  const Plan plan(b, n, thread_count(), kGrain);
  p.dy = dense_dy.data_ptr(), p.softmax = dense_softmax.data_ptr();
  p.mlp.stats = dense_stats.data_ptr(), p.dx = dx.data_ptr(), p.plan = &plan;
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(tokenlearner_backward, T, p);
  });
  return {dx, grads.w1, grads.b1, grads.w2, grads.b2, grads.norm_weight, grads.norm_bias};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("tokenlearner_forward", TORCH_BOX(&jair::forward));
  m.impl("tokenlearner_backward", TORCH_BOX(&jair::backward));
}
