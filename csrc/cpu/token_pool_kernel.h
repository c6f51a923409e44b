// fused_token_pool, forward and backward. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/gemm.h"
#include "cpu/pool.h"

namespace jair {
namespace JAIR_ISA {

// A block of tokens in the compute type.
constexpr int64_t kPoolBlock = 64;

template <typename T>
class TokenPool {
  using C = compute_t<T>;

 public:
  explicit TokenPool(const TokenPoolParams& p)
      : p_(p), kp_(padded<C>(p.outputs)), dp_(padded<C>(p.width)), rows_(frame_.take<C>(kPoolBlock * dp_)),
        weights_(frame_.take<C>(kPoolBlock * kp_)), pack_(frame_.take<C>(kPackDepth * kPackWidth<C>)) {}

  void forward(const Segment& s) {
    const int64_t size = PoolState<C>::size(p_.outputs, dp_);
    C* memory = s.partial < 0 ? frame_.take<C>(size) : static_cast<C*>(p_.partials) + s.partial * size;
    PoolState<C> state(memory, p_.outputs);
    state.clear(p_.outputs, dp_);
    for (int64_t n = s.begin; n < s.end; n += kPoolBlock) {
      const int64_t rows = std::min(kPoolBlock, s.end - n);
      const C* x = load_block(s.image, n, rows);
      if (p_.sigmoid) {
        sigmoid_weights(weights_, rows, keep(s.image, n), p_.mask_token, p_.outputs);
      } else {
        softmax_weights(state, weights_, rows, keep(s.image, n), p_.mask_token, p_.outputs, dp_);
      }
      gemm<C>(p_.outputs, dp_, rows, {weights_, 1, kp_}, x, ldx_, state.acc, dp_, true, p_.outputs > 12 ? pack_ : nullptr);
    }
    if (s.partial < 0) finish(s.image, state);
  }

  void finish(int64_t image, PoolState<C>& state) {
    T* y = static_cast<T*>(p_.y) + image * p_.outputs * p_.width;
    const C factor = p_.mean ? C(1) / kept(image) : C(1);
    if (p_.sigmoid) {
      for (int64_t i = 0; i < p_.outputs * dp_; i += kLanes<C>) store(state.acc + i, load(state.acc + i) * factor);
    } else {
      finish_softmax(state, static_cast<C*>(p_.lse) + image * p_.outputs, p_.outputs, dp_, factor);
    }
    for (int64_t k = 0; k < p_.outputs; ++k) convert_row_back(state.acc + k * dp_, y + k * p_.width, p_.width);
  }

  // dP = x dY^T;  softmax: dS = p (dP - delta), delta = sum_n p dP = y . dy;  sigmoid: dS = dP p (1 - p);  dx = P dY.
  void backward(const Segment& s) {
    load_dy(s.image);
    // Where one block holds the image, delta is summed from the very p and dP that it is subtracted from: exact
    // for a single token.
    const bool whole = s.begin == 0 && s.end == p_.tokens && p_.tokens <= kPoolBlock;
    if (!p_.sigmoid && !whole) delta_from_y(s.image);
    for (int64_t n = s.begin; n < s.end; n += kPoolBlock) {
      const int64_t rows = std::min(kPoolBlock, s.end - n);
      const C* x = load_block(s.image, n, rows);
      gemm<C>(rows, kp_, p_.width, {x, ldx_, 1}, dyt_, kp_, dweights_, kp_, false, nullptr);
      weights_from_lse(s.image, n, rows);
      if (!p_.sigmoid && whole) delta_from_block(rows);
      store_dx(s.image, n, rows);
      store_dscores(s.image, n, rows);
    }
  }

 private:
  const uint8_t* keep(int64_t image, int64_t token) const {
    return p_.mask ? p_.mask + image * p_.mask_image + token * p_.mask_token : nullptr;
  }

  C kept(int64_t image) const {
    int64_t count = p_.mask ? 0 : p_.tokens;
    for (int64_t n = 0; p_.mask && n < p_.tokens; ++n) count += *keep(image, n) != 0;
    return static_cast<C>(std::max<int64_t>(1, count));
  }

  // Tokens and scores in the compute type, those of masked tokens 0; x stays in place where it already fits.
  const C* load_block(int64_t image, int64_t token, int64_t rows) {
    const T* x = static_cast<const T*>(p_.x) + image * p_.x_image + token * p_.x_token;
    const T* scores = static_cast<const T*>(p_.scores) + image * p_.scores_image + token * p_.scores_token;
    const uint8_t* mask = keep(image, token);
    const bool in_place = std::is_same<T, C>::value && !mask && p_.width % kLanes<C> == 0;
    for (int64_t n = 0; n < rows; ++n) {
      const bool kept = !mask || mask[n * p_.mask_token];
      if (!kept) {
        zero(rows_ + n * dp_, dp_);
        zero(weights_ + n * kp_, kp_);
        continue;
      }
      convert_row(scores + n * p_.scores_token, weights_ + n * kp_, p_.outputs);
      if (!in_place) convert_row(x + n * p_.x_token, rows_ + n * dp_, p_.width);
    }
    ldx_ = in_place ? p_.x_token : dp_;
    return in_place ? reinterpret_cast<const C*>(x) : rows_;
  }

  void load_dy(int64_t image) {
    if (!dy_) {
      dy_ = frame_.take<C>(p_.outputs * dp_);
      dyt_ = frame_.take<C>(p_.width * kp_);
      dweights_ = frame_.take<C>(kPoolBlock * kp_);
      out_ = frame_.take<C>(kPoolBlock * dp_);
      delta_ = frame_.take<C>(kp_);
    }
    const T* dy = static_cast<const T*>(p_.dy) + image * p_.outputs * p_.width;
    const C factor = p_.mean ? C(1) / kept(image) : C(1);
    zero(dyt_, p_.width * kp_);
    zero(delta_, kp_);
    for (int64_t k = 0; k < p_.outputs; ++k) {
      C* row = dy_ + k * dp_;
      convert_row(dy + k * p_.width, row, p_.width);
      for (int64_t d = 0; d < dp_; d += kLanes<C>) store(row + d, load(row + d) * factor);
      for (int64_t d = 0; d < p_.width; ++d) dyt_[d * kp_ + k] = row[d];
    }
  }

  void delta_from_y(int64_t image) {
    const T* y = static_cast<const T*>(p_.y) + image * p_.outputs * p_.width;
    const C factor = p_.mean ? kept(image) : C(1);  // dy_ and y carry one division each, delta only one
    for (int64_t k = 0; k < p_.outputs; ++k) {
      convert_row(y + k * p_.width, out_, p_.width);
      Vec<C> total{};
      for (int64_t d = 0; d < dp_; d += kLanes<C>) total += load(out_ + d) * load(dy_ + k * dp_ + d);
      delta_[k] = sum<C>(total) * factor;
    }
  }

  void delta_from_block(int64_t rows) {
    for (int64_t k = 0; k < kp_; k += kLanes<C>) {
      Vec<C> total{};
      for (int64_t n = 0; n < rows; ++n) total += load(weights_ + n * kp_ + k) * load(dweights_ + n * kp_ + k);
      store(delta_ + k, total);
    }
  }

  void weights_from_lse(int64_t image, int64_t token, int64_t rows) {
    const uint8_t* mask = keep(image, token);
    if (p_.sigmoid) return sigmoid_weights(weights_, rows, mask, p_.mask_token, p_.outputs);
    C* lse = frame_lse_ ? frame_lse_ : (frame_lse_ = frame_.take<C>(kp_));
    zero(lse, kp_);
    std::memcpy(lse, static_cast<const C*>(p_.lse) + image * p_.outputs, p_.outputs * sizeof(C));
    for (int64_t n = 0; n < rows; ++n) {
      const bool kept = !mask || mask[n * p_.mask_token];
      for (int64_t k = 0; k < kp_; k += kLanes<C>) {
        store(weights_ + n * kp_ + k, kept ? exp(load(weights_ + n * kp_ + k) - load(lse + k)) : Vec<C>{});
      }
    }
  }

  void store_dx(int64_t image, int64_t token, int64_t rows) {
    gemm<C>(rows, dp_, p_.outputs, {weights_, kp_, 1}, dy_, dp_, out_, dp_, false, nullptr);
    T* dx = static_cast<T*>(p_.dx) + (image * p_.tokens + token) * p_.width;
    for (int64_t n = 0; n < rows; ++n) convert_row_back(out_ + n * dp_, dx + n * p_.width, p_.width);
  }

  void store_dscores(int64_t image, int64_t token, int64_t rows) {
    T* dscores = static_cast<T*>(p_.dscores) + (image * p_.tokens + token) * p_.outputs;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t k = 0; k < kp_; k += kLanes<C>) {
        const Vec<C> p = load(weights_ + n * kp_ + k), dp = load(dweights_ + n * kp_ + k);
        store(dweights_ + n * kp_ + k, p_.sigmoid ? dp * p * (C(1) - p) : p * (dp - load(delta_ + k)));
      }
      convert_row_back(dweights_ + n * kp_, dscores + n * p_.outputs, p_.outputs);
    }
  }

  const TokenPoolParams& p_;
  Scratch::Frame frame_;
  int64_t kp_, dp_, ldx_ = 0;
  C *rows_, *weights_, *pack_;
  C *dy_ = nullptr, *dyt_ = nullptr, *dweights_ = nullptr, *out_ = nullptr, *delta_ = nullptr, *frame_lse_ = nullptr;
};

template <typename T>
void token_pool_forward(TokenPoolParams p) {
  using C = compute_t<T>;
  const int64_t dp = padded<C>(p.width), size = PoolState<C>::size(p.outputs, dp);
  Scratch::Frame frame;
  C* partials = frame.take<C>(p.plan->partials() * size);
  p.partials = partials;
  parallel(p.plan->threads(), [&](int64_t thread) {
    for (const Segment& s : p.plan->of(thread)) TokenPool<T>(p).forward(s);
  });
  merge_partials(*p.plan, partials, size, p.outputs, dp,
                 [&](int64_t image, PoolState<C>& state) { TokenPool<T>(p).finish(image, state); });
}

template <typename T>
void token_pool_backward(TokenPoolParams p) {
  parallel(p.plan->threads(), [&](int64_t thread) {
    for (const Segment& s : p.plan->of(thread)) TokenPool<T>(p).backward(s);
  });
}

}  // namespace JAIR_ISA
}  // namespace jair
