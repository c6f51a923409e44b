// fused_tokenlearner on CUDA: its passes over x. What is as small as the weights is done around them, in
// jair_kernels/tokenlearner/cuda.py.
#include "cuda/tokenlearner_backward.cuh"
#include "cuda/tokenlearner_forward.cuh"
#include "cuda/tokenlearner_weights.cuh"

#include "cuda/common.cuh"

namespace jair::cuda {
namespace {

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

// A pass's tensors, as both directions take them.
struct LearnerCall {
  Tensor x, wg, c, e, w2;
  OptionalTensor b2, mask;
  double eps;
  bool tanh;
  int64_t shares, share_tokens;

  int64_t batch() const { return x.size(0); }
  int64_t tokens() const { return x.size(1); }
  int64_t width() const { return x.size(2); }
  int64_t outputs() const { return w2.size(0); }
  int64_t hidden() const { return w2.size(1); }

  void check_all() const {
    check_not_empty({batch(), tokens(), outputs(), hidden(), shares}, "tokenlearner");
    STD_TORCH_CHECK(outputs() <= 32 && hidden() <= kHidden, "tokenlearner: unexpected sizes");
    STD_TORCH_CHECK(tokens() < INT32_MAX / 2 && share_tokens > 0 && share_tokens % 32 == 0 &&
                        shares * share_tokens >= tokens() && (shares - 1) * share_tokens < tokens(),
                    "tokenlearner: unexpected shares");
    check_shape(wg, {hidden(), width()}, "wg");
    check_shape(c, {hidden()}, "c");
    check_shape(e, {hidden()}, "e");
    check_shape(b2, {outputs()}, "b2");
    check_shape(mask, {batch(), tokens()}, "mask");
    for (const Tensor* tensor : {&wg, &w2}) check_operand(*tensor, x.scalar_type(), "weights");
    for (const Tensor* tensor : {&c, &e}) check_operand(*tensor, ScalarType::Float, "sums of weights");
    if (b2) check_operand(*b2, b2->scalar_type() == ScalarType::Float ? ScalarType::Float : x.scalar_type(), "b2");
    if (mask) check_dtype(*mask, ScalarType::Bool, "mask");
  }

  void check_operand(const Tensor& tensor, ScalarType dtype, const char* name) const {
    check_dtype(tensor, dtype, name);
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device() == x.get_device(), name, ": unexpected device");
    STD_TORCH_CHECK(tensor.is_contiguous(), name, ": unexpected strides");
  }

  template <typename T>
  Learner<T> arguments() const {
    Learner<T> in{};
    in.x = data<T>(x), in.x_image = x.stride(0), in.x_token = x.stride(1);
    STD_TORCH_CHECK(x.stride(2) == 1 && rows_are_aligned(in.x, width(), {in.x_image, in.x_token}),
                    "x: unexpected alignment");
    if (mask) {
      in.mask = static_cast<const uint8_t*>(mask->data_ptr());
      in.mask_image = mask->stride(0), in.mask_token = mask->stride(1);
    }
    in.wg = data<T>(wg), in.c = data<float>(c), in.e = data<float>(e), in.w2 = data<T>(w2);
    if (b2 && b2->scalar_type() == ScalarType::Float) in.b2 = data<float>(*b2);
    if (b2 && b2->scalar_type() != ScalarType::Float) in.b2_narrow = data<T>(*b2);
    in.batch = batch(), in.tokens = tokens(), in.hidden = hidden(), in.outputs = outputs();
    in.shares = shares, in.share_tokens = share_tokens, in.eps = static_cast<float>(eps), in.tanh = tanh;
    return in;
  }

  dim3 blocks() const {
    int processors = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.get_device()));
    return grid(std::min<int64_t>(processors, batch() * shares));
  }
};

template <int Value>
using Constant = std::integral_constant<int, Value>;

// f(element, width, outputs), the latter two as compile-time constants.
template <typename F>
void dispatch(const Tensor& x, int64_t output_count, F&& f) {
  const auto outputs = [&](auto element, auto width) {
    output_count <= 16 ? f(element, width, Constant<16>{}) : f(element, width, Constant<32>{});
  };
  const auto widths = [&](auto element) {
    switch (x.size(2)) {
      case 384: return outputs(element, Constant<384>{});
      case 512: return outputs(element, Constant<512>{});
      case 768: return outputs(element, Constant<768>{});
      case 1024: return outputs(element, Constant<1024>{});
      default: STD_TORCH_CHECK(false, "tokenlearner: unexpected width");
    }
  };
  if (x.scalar_type() == ScalarType::BFloat16) return widths(__nv_bfloat16{});
  check_dtype(x, ScalarType::Half, "x");
  widths(__half{});
}

std::tuple<Tensor, Tensor, Tensor> pool(Tensor x, Tensor wg, Tensor c, Tensor e, Tensor w2, OptionalTensor b2,
                                        OptionalTensor mask, double eps, bool tanh, int64_t shares,
                                        int64_t share_tokens) {
  const LearnerCall call{x, wg, c, e, w2, b2, mask, eps, tanh, shares, share_tokens};
  call.check_all();
  const Launcher launch(x);
  const bool cut = shares > 1;
  Tensor y = cut ? empty(x, {call.batch(), shares, call.outputs(), call.width()}, ScalarType::Float)
                 : empty(x, {call.batch(), call.outputs(), call.width()}, x.scalar_type());
  Tensor softmax = empty(x, {call.batch(), shares, call.outputs(), 2}, ScalarType::Float);
  Tensor stats = empty(x, {call.batch(), call.tokens(), 2}, ScalarType::Float);
  dispatch(x, call.outputs(), [&](auto element, auto width, auto outputs) {
    using T = decltype(element);
    constexpr int kRows = width.value <= 768 ? 32 : 16;
    using Shared = LearnerShared<T, width.value, kRows, outputs.value>;
    launch.with_shared(sizeof(Shared), &learn_tokens<T, width.value, kRows, outputs.value>, call.blocks(),
                       32 * kLearnerWarps<width.value>, call.arguments<T>(),
                       cut ? nullptr : static_cast<T*>(y.data_ptr()), cut ? static_cast<float*>(y.data_ptr()) : nullptr,
                       static_cast<float2*>(softmax.data_ptr()), static_cast<float2*>(stats.data_ptr()));
  });
  return {y, softmax, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> inputs(Tensor dy, Tensor x, Tensor wg, Tensor c, Tensor e, Tensor w2,
                                                  OptionalTensor b2, OptionalTensor mask, Tensor softmax, Tensor stats,
                                                  Tensor delta, bool tanh, int64_t shares, int64_t share_tokens) {
  const LearnerCall call{x, wg, c, e, w2, b2, mask, 0, tanh, shares, share_tokens};
  call.check_all();
  check_shape(dy, {call.batch(), call.outputs(), call.width()}, "dy");
  call.check_operand(dy, x.scalar_type(), "dy");
  check_shape(softmax, {call.batch(), call.outputs(), 2}, "softmax");
  check_shape(stats, {call.batch(), call.tokens(), 2}, "stats");
  check_shape(delta, {call.batch(), call.outputs()}, "delta");
  for (const Tensor* tensor : {&softmax, &stats, &delta}) call.check_operand(*tensor, ScalarType::Float, "statistics");
  const Launcher launch(x);
  const auto rows = [&](int64_t columns) { return empty(x, {call.batch(), call.tokens(), columns}, x.scalar_type()); };
  Tensor dx = rows(call.width()), dh = rows(kHidden), g = rows(kHidden), ds = rows(call.outputs() <= 16 ? 16 : 32);
  dispatch(x, call.outputs(), [&](auto element, auto width, auto outputs) {
    using T = decltype(element);
    if constexpr (width.value == 1024 && outputs.value == 32) {
      STD_TORCH_CHECK(false, "tokenlearner: unexpected sizes");
    } else {
      constexpr int kRows = width.value == 1024 || (width.value == 768 && outputs.value == 32) ? 16 : 32;
      using Shared = LearnerBackwardShared<T, width.value, kRows, outputs.value>;
      static_assert(sizeof(Shared) <= 227 * 1024);
      const LearnerGradients<T> out{data<T>(dy),
                                    data<float2>(softmax),
                                    data<float2>(stats),
                                    data<float>(delta),
                                    static_cast<T*>(dx.data_ptr()),
                                    static_cast<T*>(dh.data_ptr()),
                                    static_cast<T*>(g.data_ptr()),
                                    static_cast<T*>(ds.data_ptr())};
      launch.with_shared(sizeof(Shared), &learn_tokens_backward<T, width.value, kRows, outputs.value>, call.blocks(),
                         32 * kLearnerWarps<width.value>, call.arguments<T>(), out);
    }
  });
  return {dx, dh, g, ds};
}

// Of shares of all tokens, in rows: dH^T xhat [H,D], dS^T gelu(h) [K,H], sum dH [H], sum dS [K].
Tensor sums(Tensor x, OptionalTensor mask, Tensor stats, Tensor dh, Tensor g, Tensor ds, int64_t hidden,
            int64_t outputs, int64_t share_tokens) {
  const int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2), all = batch * tokens;
  check_not_empty({batch, tokens, outputs, hidden}, "tokenlearner");
  STD_TORCH_CHECK(outputs <= 32 && hidden <= kHidden, "tokenlearner: unexpected sizes");
  STD_TORCH_CHECK(share_tokens > 0 && share_tokens % kWeightRows == 0 && all < INT32_MAX - share_tokens,
                  "tokenlearner: unexpected shares");
  check_shape(mask, {batch, tokens}, "mask");
  if (mask) check_dtype(*mask, ScalarType::Bool, "mask");
  check_shape(stats, {batch, tokens, 2}, "stats");
  check_shape(ds, {batch, tokens, outputs <= 16 ? 16 : 32}, "ds");
  for (const Tensor* tensor : {&dh, &g}) check_shape(*tensor, {batch, tokens, kHidden}, "dh");
  const auto check_operand = [&](const Tensor& tensor, ScalarType dtype) {
    check_dtype(tensor, dtype, "tokens");
    STD_TORCH_CHECK(tensor.get_device() == x.get_device() && tensor.is_contiguous(), "tokens: unexpected layout");
  };
  for (const Tensor* tensor : {&dh, &g, &ds}) check_operand(*tensor, x.scalar_type());
  check_operand(stats, ScalarType::Float);
  const Launcher launch(x);
  const int64_t shares = (all + share_tokens - 1) / share_tokens;
  Tensor parts = empty(x, {shares, hidden * width + outputs * hidden + hidden + outputs}, ScalarType::Float);
  dispatch(x, outputs, [&](auto element, auto width_constant, auto padded) {
    using T = decltype(element);
    constexpr int kWidth = width_constant.value, kChunk = kWidth == 384 ? kWidth : kWidth / 2;
    LearnerSums<T> in{data<T>(x), x.stride(0), x.stride(1)};
    STD_TORCH_CHECK(x.stride(2) == 1 && rows_are_aligned(in.x, kWidth, {in.x_image, in.x_token}),
                    "x: unexpected alignment");
    if (mask) {
      in.mask = static_cast<const uint8_t*>(mask->data_ptr());
      in.mask_image = mask->stride(0), in.mask_token = mask->stride(1);
    }
    in.stats = data<float2>(stats), in.dh = data<T>(dh), in.g = data<T>(g), in.ds = data<T>(ds);
    in.tokens = tokens, in.all = all, in.hidden = hidden, in.outputs = outputs, in.share_tokens = share_tokens;
    in.parts = static_cast<float*>(parts.data_ptr());
    launch.with_shared(sizeof(LearnerWeightShared<T, kChunk, padded.value>),
                       &learn_weights<T, kWidth, kChunk, padded.value>, grid(shares * (kWidth / kChunk)),
                       kWeightThreads, in);
  });
  return parts;
}

}  // namespace
}  // namespace jair::cuda

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CUDA, m) {
  m.impl("tokenlearner_pool", TORCH_BOX(&jair::cuda::pool));
  m.impl("tokenlearner_inputs", TORCH_BOX(&jair::cuda::inputs));
  m.impl("tokenlearner_sums", TORCH_BOX(&jair::cuda::sums));
}
