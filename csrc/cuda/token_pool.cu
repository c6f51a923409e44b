// fused_token_pool on CUDA.
//
//   forward   softmax_partials   max and sum of the scores, per share of an image's tokens
//             pool_tokens        y = P^T x: every warp has 8 outputs and 32 packs of columns in registers
//   backward  score_gradients    dP = dY x^T and, per share, sum_n p dP
//             token_gradients    dx = P dY and dS = p (dP - delta), sigmoid: dP p (1 - p)
//
// delta_k = sum_n p dP is summed from the same p and dP that it is subtracted from, so that dS of a single
// token is exactly 0. x is read once in each direction (for K > 128 once per 128 outputs). All sums have a
// fixed order; nothing of size N x D is kept.
#include "cuda/token_pool_kernel.cuh"

namespace jair::cuda {
namespace {

// A call's tensors: x and scores with dense rows, 1 / kept tokens of every image where a mask decides it.
struct Call {
  Tensor x, scores;
  OptionalTensor mask, factors;
  bool sigmoid, mean;

  Call(const Tensor& x_in, const Tensor& scores_in, const OptionalTensor& mask_in, bool sigmoid_in, bool mean_in)
      : x(with_dense_rows(x_in)),
        scores(with_dense_rows(scores_in)),
        mask(mask_in),
        sigmoid(sigmoid_in),
        mean(mean_in) {
    STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0 && scores.size(2) > 0, "token_pool: unexpected empty axis");
    check_shape(scores, {x.size(0), x.size(1), scores.size(2)}, "scores");
    check_shape(mask, {x.size(0), x.size(1)}, "mask");
    check_operand(scores, x.scalar_type(), "scores");
    if (mask) check_operand(*mask, ScalarType::Bool, "mask");
    if (mean && mask) factors = empty(x, {x.size(0)}, ScalarType::Float);
  }

  void check_operand(const Tensor& tensor, ScalarType dtype, const char* name) const {
    check_dtype(tensor, dtype, name);
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device() == x.get_device(), name, ": unexpected device");
  }

  int64_t batch() const { return x.size(0); }
  int64_t tokens() const { return x.size(1); }
  int64_t width() const { return x.size(2); }
  int64_t outputs() const { return scores.size(2); }
  int64_t output_tiles(Tile tile) const { return (outputs() + tile.outputs() - 1) / tile.outputs(); }
  template <typename T>
  int64_t chunks() const {
    return (width() + 32 * kPack<T> - 1) / (32 * kPack<T>);
  }

  template <typename T>
  Inputs<T> inputs() const {
    Inputs<T> in{batch(), tokens(), width(), outputs()};
    in.x = static_cast<const T*>(x.data_ptr()), in.x_image = x.stride(0), in.x_token = x.stride(1);
    in.scores = static_cast<const T*>(scores.data_ptr());
    in.scores_image = scores.stride(0), in.scores_token = scores.stride(1);
    if (mask) {
      in.mask = static_cast<const uint8_t*>(mask->data_ptr());
      in.mask_image = mask->stride(0), in.mask_token = mask->stride(1);
    }
    in.sigmoid = sigmoid, in.factor = mean ? 1.f / static_cast<float>(tokens()) : 1.f;
    if (factors) in.factors = static_cast<const float*>(factors->data_ptr());
    return in;
  }
};

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// What forward and backward begin with: the factors of "mean".
template <typename T>
void find_factors(const Call& call, const Launcher& launch) {
  if (!call.factors) return;
  const Inputs<T> in = call.inputs<T>();
  launch(&mean_factors, grid(in.batch), kThreads, in.mask, in.mask_image, in.mask_token, in.tokens,
         floats(*call.factors));
}

// Max and sum of the softmax in every share of the tokens, [B, share, K, 2].
template <typename T>
Tensor find_softmax(const Call& call, const Launcher& launch, Split split) {
  const Inputs<T> in = call.inputs<T>();
  if (call.sigmoid) return empty(call.x, {0}, ScalarType::Float);
  Tensor partials = empty(call.x, {in.batch, split.count, in.outputs, 2}, ScalarType::Float);
  int lanes = 1;
  while (lanes < 32 && lanes < in.outputs) lanes *= 2;
  launch(&softmax_partials<T>, grid(in.batch * split.count, (in.outputs + lanes - 1) / lanes), kThreads, in, split,
         lanes, static_cast<Statistics*>(partials.data_ptr()));
  return partials;
}

Split softmax_split(const Call& call) { return make_split(call.tokens(), call.batch(), 512, 128); }

template <typename T, bool Wide>
void launch_forward(const Call& call, const Launcher& launch, const Tensor& y, Statistics* softmax) {
  const Tile tile = make_tile(call.outputs());
  const Split statistics = softmax_split(call);
  const int64_t chunks = call.chunks<T>(), output_tiles = call.output_tiles(tile);
  const Split split = make_split(call.tokens(), call.batch() * chunks * output_tiles, 264, 32);
  find_factors<T>(call, launch);
  const Tensor partials = find_softmax<T>(call, launch, statistics);
  const auto* sums = static_cast<const Statistics*>(partials.data_ptr());
  const dim3 blocks = grid(call.batch() * split.count * chunks, output_tiles);
  T* out = static_cast<T*>(y.data_ptr());
  if (split.count == 1) {
    launch(&pool_tokens<T, T, Wide>, blocks, tile.threads(), call.inputs<T>(), split, tile, statistics, sums, out,
           softmax);
    return;
  }
  const int64_t size = call.batch() * call.outputs() * call.width();
  const Tensor shares = empty(call.x, {split.count, size}, ScalarType::Float);
  launch(&pool_tokens<T, float, Wide>, blocks, tile.threads(), call.inputs<T>(), split, tile, statistics, sums,
         floats(shares), softmax);
  launch(&add_shares<T>, grid((size + kThreads - 1) / kThreads), kThreads, floats(shares), split.count, size, out);
}

template <typename T, bool Wide>
void launch_backward(const Call& call, const Launcher& launch, const Tensor& dy, const Statistics* softmax,
                     const Tensor& dx, const Tensor& ds) {
  const Tile tile = make_tile(call.outputs());
  const int64_t output_tiles = call.output_tiles(tile), tiles = (call.tokens() + kTileRows - 1) / kTileRows;
  const Split split = make_split(call.tokens(), call.batch() * output_tiles, 1024, kQuad * tile.ways);
  find_factors<T>(call, launch);
  const Tensor dp = empty(call.x, {call.batch(), call.tokens(), call.outputs()}, ScalarType::Float);
  const Tensor deltas = empty(call.x, {call.batch(), split.count, call.outputs()}, ScalarType::Float);
  const T* grad = static_cast<const T*>(dy.data_ptr());
  launch(&score_gradients<T, Wide>, grid(call.batch() * split.count, output_tiles), tile.threads(), call.inputs<T>(),
         split, tile, softmax, grad, floats(dp), floats(deltas));
  launch(&token_gradients<T, Wide>, grid(call.batch() * tiles * call.chunks<T>()), kThreads, call.inputs<T>(), split,
         softmax, grad, floats(dp), floats(deltas), static_cast<T*>(dx.data_ptr()), static_cast<T*>(ds.data_ptr()));
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor scores, OptionalTensor mask, bool sigmoid, bool mean) {
  const Launcher launch(x);
  const Call call(x, scores, mask, sigmoid, mean);
  Tensor y = empty(x, {call.batch(), call.outputs(), call.width()}, x.scalar_type());
  Tensor softmax =
      sigmoid ? empty(x, {0}, ScalarType::Float) : empty(x, {call.batch(), call.outputs(), 2}, ScalarType::Float);
  if (call.batch() == 0) return {y, softmax};
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const Inputs<T> in = call.inputs<T>();
    const bool wide = rows_are_aligned(in.x, in.width, {in.x_image, in.x_token});
    auto* kept = static_cast<Statistics*>(softmax.data_ptr());
    wide ? launch_forward<T, true>(call, launch, y, kept) : launch_forward<T, false>(call, launch, y, kept);
  });
  return {y, softmax};
}

// y . dy, for which other backends need y, is summed here as delta.
std::tuple<Tensor, Tensor> backward(Tensor dy, Tensor x, Tensor scores, OptionalTensor mask, OptionalTensor,
                                    Tensor softmax, bool sigmoid, bool mean) {
  const Launcher launch(x);
  const Call call(x, scores, mask, sigmoid, mean);
  const Tensor grad = torch::stable::contiguous(dy);
  check_shape(grad, {call.batch(), call.outputs(), call.width()}, "dy");
  call.check_operand(grad, x.scalar_type(), "dy");
  const Tensor dense_softmax = torch::stable::contiguous(softmax);
  if (!sigmoid) {
    check_shape(dense_softmax, {call.batch(), call.outputs(), 2}, "softmax");
    call.check_operand(dense_softmax, ScalarType::Float, "softmax");
  }
  Tensor dx = empty(x, {call.batch(), call.tokens(), call.width()}, x.scalar_type());
  Tensor dscores = empty(x, {call.batch(), call.tokens(), call.outputs()}, x.scalar_type());
  if (call.batch() == 0) return {dx, dscores};
  dispatch_dtype(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const Inputs<T> in = call.inputs<T>();
    const bool wide = rows_are_aligned(in.x, in.width, {in.x_image, in.x_token}) &&
                      rows_are_aligned(static_cast<const T*>(grad.data_ptr()), in.width, {});
    const auto* kept = static_cast<const Statistics*>(dense_softmax.data_ptr());
    wide ? launch_backward<T, true>(call, launch, grad, kept, dx, dscores)
         : launch_backward<T, false>(call, launch, grad, kept, dx, dscores);
  });
  return {dx, dscores};
}

}  // namespace
}  // namespace jair::cuda

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CUDA, m) {
  m.impl("token_pool_forward", TORCH_BOX(&jair::cuda::forward));
  m.impl("token_pool_backward", TORCH_BOX(&jair::cuda::backward));
}
