// fused_tokenlearner on CUDA: the pass over x of its forward. Weights are folded before it, shares of an image merged
// after it, in jair_kernels/tokenlearner/cuda.py.
#include "cuda/tokenlearner_kernel.cuh"

#include "cuda/common.cuh"

namespace jair::cuda {
namespace {

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

struct Results {
  Tensor y, softmax, stats;
  bool cut;
};

template <typename T, int kWidth, int kRows, int kOutputs>
void launch_learner(const Launcher& launch, const Learner<T>& in, const Results& out) {
  using Shared = LearnerShared<T, kWidth, kRows, kOutputs>;
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, out.y.get_device()));
  const int64_t blocks = std::min<int64_t>(processors, in.batch * in.shares);
  launch.with_shared(sizeof(Shared), &learn_tokens<T, kWidth, kRows, kOutputs>, grid(blocks), kLearnerThreads, in,
                     out.cut ? nullptr : static_cast<T*>(out.y.data_ptr()),
                     out.cut ? static_cast<float*>(out.y.data_ptr()) : nullptr,
                     static_cast<float2*>(out.softmax.data_ptr()), static_cast<float2*>(out.stats.data_ptr()));
}

template <typename T, int kWidth, int kRows>
void launch_width(const Launcher& launch, const Learner<T>& in, const Results& out) {
  in.outputs <= 16 ? launch_learner<T, kWidth, kRows, 16>(launch, in, out)
                   : launch_learner<T, kWidth, kRows, 32>(launch, in, out);
}

template <typename T>
void dispatch_width(int64_t width, const Launcher& launch, const Learner<T>& in, const Results& out) {
  switch (width) {
    case 384: return launch_width<T, 384, 32>(launch, in, out);
    case 512: return launch_width<T, 512, 32>(launch, in, out);
    case 768: return launch_width<T, 768, 32>(launch, in, out);
    case 1024: return launch_width<T, 1024, 16>(launch, in, out);
    default: STD_TORCH_CHECK(false, "tokenlearner: unexpected width");
  }
}

// y [B,K,D] in x's dtype with one share, else [B,shares,K,D] in float; softmax [B,shares,K,2], stats [B,N,2].
std::tuple<Tensor, Tensor, Tensor> pool(Tensor x, Tensor wg, Tensor c, Tensor e, Tensor w2, OptionalTensor b2,
                                        OptionalTensor mask, double eps, bool tanh, int64_t shares,
                                        int64_t share_tokens) {
  const int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2), outputs = w2.size(0), hidden = w2.size(1);
  check_not_empty({batch, tokens, outputs, hidden, shares}, "tokenlearner");
  STD_TORCH_CHECK(outputs <= 32 && hidden <= kHidden, "tokenlearner: unexpected sizes");
  STD_TORCH_CHECK(share_tokens % 32 == 0 && shares * share_tokens >= tokens && (shares - 1) * share_tokens < tokens,
                  "tokenlearner: unexpected shares");
  check_shape(wg, {hidden, width}, "wg");
  check_shape(c, {hidden}, "c");
  check_shape(e, {hidden}, "e");
  check_shape(b2, {outputs}, "b2");
  check_shape(mask, {batch, tokens}, "mask");
  for (const Tensor* tensor : {&wg, &w2}) {
    check_dtype(*tensor, x.scalar_type(), "weights");
    STD_TORCH_CHECK(tensor->is_contiguous(), "weights: unexpected strides");
  }
  for (const Tensor* tensor : {&c, &e}) check_dtype(*tensor, ScalarType::Float, "sums");
  if (b2) check_dtype(*b2, ScalarType::Float, "b2");
  if (mask) check_dtype(*mask, ScalarType::Bool, "mask");
  const Launcher launch(x);
  const bool cut = shares > 1;
  Results out{cut ? empty(x, {batch, shares, outputs, width}, ScalarType::Float)
                  : empty(x, {batch, outputs, width}, x.scalar_type()),
              empty(x, {batch, shares, outputs, 2}, ScalarType::Float), empty(x, {batch, tokens, 2}, ScalarType::Float),
              cut};
  const auto run = [&](auto element) {
    using T = decltype(element);
    const Tensor rows = rows_are_aligned(data<T>(x), width, {x.stride(0), x.stride(1)}) && x.stride(2) == 1
                            ? x
                            : torch::stable::clone(torch::stable::contiguous(x));
    Learner<T> in{};
    in.x = data<T>(rows), in.x_image = rows.stride(0), in.x_token = rows.stride(1);
    if (mask) in.mask = data<uint8_t>(*mask), in.mask_image = mask->stride(0), in.mask_token = mask->stride(1);
    in.wg = data<T>(wg), in.c = data<float>(c), in.e = data<float>(e), in.w2 = data<T>(w2);
    if (b2) in.b2 = data<float>(*b2);
    in.batch = batch, in.tokens = tokens, in.hidden = hidden, in.outputs = outputs;
    in.shares = shares, in.share_tokens = share_tokens, in.eps = static_cast<float>(eps), in.tanh = tanh;
    dispatch_width(width, launch, in, out);
  };
  if (x.scalar_type() == ScalarType::BFloat16) {
    run(__nv_bfloat16{});
  } else {
    check_dtype(x, ScalarType::Half, "x");
    run(__half{});
  }
  return {out.y, out.softmax, out.stats};
}

}  // namespace
}  // namespace jair::cuda

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CUDA, m) { m.impl("tokenlearner_pool", TORCH_BOX(&jair::cuda::pool)); }
