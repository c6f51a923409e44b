// The tensors of a score MLP as its kernels take them.
#pragma once

#include "cpu/parameter_inputs.h"
#include "cpu/result.h"
#include "cpu/score_mlp_params.h"
#include "cpu/token_rows_inputs.h"

namespace jair {

// Contiguous parameters; the tensors live as long as their kernels run.
struct ScoreMlpTensors {
  Tensor x;
  OptionalTensor w1, b1, w2, b2, norm_weight, norm_bias, mask;

  ScoreMlpTensors(const Tensor& x, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                  const OptionalTensor& b2, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                  const OptionalTensor& mask)
      : x(with_dense_rows(x)),
        w1(contiguous(w1)),
        b1(contiguous(b1)),
        w2(contiguous(w2)),
        b2(contiguous(b2)),
        norm_weight(contiguous(norm_weight)),
        norm_bias(contiguous(norm_bias)),
        mask(mask) {}

  ScoreMlpParams params(double eps, bool tanh) const {
    ScoreMlpParams p{};
    set_token_rows(p, x, mask);
    p.hidden = w1->size(0), p.outputs = w2->size(0);
    check_not_empty({p.hidden}, "w1");
    check_not_empty({p.outputs}, "w2");
    check_shape(w1, {p.hidden, p.width}, "w1");
    check_shape(b1, {p.hidden}, "b1");
    check_shape(w2, {p.outputs, p.hidden}, "w2");
    check_shape(b2, {p.outputs}, "b2");
    check_shape(norm_weight, {p.width}, "norm_weight");
    check_shape(norm_bias, {p.width}, "norm_bias");
    p.w1 = parameter(w1), p.b1 = parameter(b1), p.w2 = parameter(w2), p.b2 = parameter(b2);
    p.norm_weight = parameter(norm_weight), p.norm_bias = parameter(norm_bias);
    const bool wide = w1->scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(wide == (x.scalar_type() == ScalarType::Double), "w1: unexpected dtype");
    p.eps = eps, p.tanh = tanh;
    return p;
  }

  // h as a forward keeps it, [B,N,H], or [B,N,0] where it does not; entered into the parameters.
  Tensor new_hidden(ScoreMlpParams& p, bool keep) const {
    Tensor hidden = result(x, {p.batch, p.tokens, keep ? p.hidden : 0}, x.scalar_type());
    p.kept = keep ? hidden.data_ptr() : nullptr;
    return hidden;
  }

  // What a forward returned so, contiguous, for its backward.
  Tensor kept_hidden(ScoreMlpParams& p, const Tensor& hidden) const {
    const bool kept = hidden.dim() == 3 && hidden.size(2) > 0;
    check_shape(hidden, {p.batch, p.tokens, kept ? p.hidden : 0}, "hidden");
    check_dtype(hidden, x.scalar_type(), "hidden");
    Tensor dense = torch::stable::contiguous(hidden);
    p.kept = kept ? dense.data_ptr() : nullptr;
    return dense;
  }

  ScalarType statistic() const { return accumulate_type(x.scalar_type()); }
};

// Parameter gradients, allocated and entered into the parameters; those of absent parameters are empty.
struct ScoreMlpGradients {
  Tensor w1, b1, w2, b2, norm_weight, norm_bias;

  ScoreMlpGradients(const ScoreMlpTensors& t, ScoreMlpParams& p)
      : w1(gradient_of(t.w1, t.x)),
        b1(gradient_of(t.b1, t.x)),
        w2(gradient_of(t.w2, t.x)),
        b2(gradient_of(t.b2, t.x)),
        norm_weight(gradient_of(t.norm_weight, t.x)),
        norm_bias(gradient_of(t.norm_bias, t.x)) {
    p.dw1 = w1.data_ptr(), p.dw2 = w2.data_ptr();
    p.db1 = t.b1 ? b1.data_ptr() : nullptr, p.db2 = t.b2 ? b2.data_ptr() : nullptr;
    p.dnorm_weight = t.norm_weight ? norm_weight.data_ptr() : nullptr;
    p.dnorm_bias = t.norm_bias ? norm_bias.data_ptr() : nullptr;
  }
};

}  // namespace jair
