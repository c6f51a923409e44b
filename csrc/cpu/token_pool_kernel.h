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
      : p_(p),
        kp_(padded<C>(p.outputs)),
        dp_(padded<C>(p.width)),
        rows_(frame_.take<C>(kPoolBlock * dp_)),
        weights_(frame_.take<C>(kPoolBlock * kp_)),
        pack_(frame_.take<C>(kPackDepth * kPackWidth<C>)) {}

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
      gemm<C>(p_.outputs, dp_, rows, {weights_, 1, kp_}, x, ldx_, state.acc, dp_, true,
              p_.outputs > 12 ? pack_ : nullptr);
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

  // dP = x dY^T;  softmax: dS = P (dP - delta), delta = sum_n P dP / sum_n P;  sigmoid: dS = dP P (1 - P);  dx = P dY.
  // delta is summed from the very P and dP that it is subtracted from, see TokenLearner.
  void backward(const Segment& s) {
    Scratch::Frame frame;
    const int64_t tokens = s.end - s.begin;
    Kept<C> kept(frame.take<C>(Kept<C>::size(tokens, 0, kp_)), tokens, 0, kp_);
    backward_weights(s, kept);
    backward_scores(s, kept);
  }

  // First pass: P, dP, dx and this segment's part of delta.
  void backward_weights(const Segment& s, Kept<C>& kept) {
    load_dy(s.image);
    zero(kept.delta, 2 * kp_);
    for (int64_t n = s.begin; n < s.end; n += kPoolBlock) {
      const int64_t rows = std::min(kPoolBlock, s.end - n), at = (n - s.begin) * kp_;
      const C* x = load_block(s.image, n, rows);
      C *p = kept.p + at, *dp = kept.dp + at;
      gemm<C>(rows, kp_, p_.width, {x, ldx_, 1}, dyt_, kp_, dp, kp_, false, nullptr);
      weights_from_lse(s.image, n, rows, p);
      kept.add(p, dp, rows, kp_);
      store_dx(s.image, n, rows, p);
    }
  }

  // Second pass, with the whole image's delta.
  void backward_scores(const Segment& s, const Kept<C>& kept) {
    T* dscores = static_cast<T*>(p_.dscores) + (s.image * p_.tokens + s.begin) * p_.outputs;
    Scratch::Frame frame;
    C* delta = frame.take<C>(kp_);
    for (int64_t k = 0; k < kp_; k += kLanes<C>) store(delta + k, kept.mean(k));
    for (int64_t n = 0; n < s.end - s.begin; ++n) {
      for (int64_t k = 0; k < kp_; k += kLanes<C>) {
        const Vec<C> p = load(kept.p + n * kp_ + k), dp = load(kept.dp + n * kp_ + k);
        store(kept.dp + n * kp_ + k, p_.sigmoid ? dp * p * (C(1) - p) : p * (dp - load(delta + k)));
      }
      convert_row_back(kept.dp + n * kp_, dscores + n * p_.outputs, p_.outputs);
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
    if (!dy_)
      dy_ = frame_.take<C>(p_.outputs * dp_), dyt_ = frame_.take<C>(dp_ * kp_), out_ = frame_.take<C>(kPoolBlock * dp_);
    const T* dy = static_cast<const T*>(p_.dy) + image * p_.outputs * p_.width;
    const C factor = p_.mean ? C(1) / kept(image) : C(1);
    for (int64_t k = 0; k < p_.outputs; ++k) {
      C* row = dy_ + k * dp_;
      convert_row(dy + k * p_.width, row, p_.width);
      for (int64_t d = 0; d < dp_; d += kLanes<C>) store(row + d, load(row + d) * factor);
    }
    zero(dyt_, dp_ * kp_);
    transpose(dy_, dp_, p_.outputs, dp_, dyt_, kp_);
  }

  // Scores, as load_block left them, become weights.
  void weights_from_lse(int64_t image, int64_t token, int64_t rows, C* out) {
    const uint8_t* mask = keep(image, token);
    std::memcpy(out, weights_, rows * kp_ * sizeof(C));
    if (p_.sigmoid) return sigmoid_weights(out, rows, mask, p_.mask_token, p_.outputs);
    const C* lse = static_cast<const C*>(p_.lse) + image * p_.outputs;
    for (int64_t k = 0; k < kp_; k += kLanes<C>) {
      const Vec<C> shift = load_part(lse + k, std::min<int64_t>(kLanes<C>, p_.outputs - k));
      for (int64_t n = 0; n < rows; ++n) {
        const bool kept = !mask || mask[n * p_.mask_token];
        store(out + n * kp_ + k, kept ? exp(load(out + n * kp_ + k) - shift) : Vec<C>{});
      }
    }
  }

  void store_dx(int64_t image, int64_t token, int64_t rows, const C* weights) {
    gemm<C>(rows, dp_, p_.outputs, {weights, kp_, 1}, dy_, dp_, out_, dp_, false, nullptr);
    T* dx = static_cast<T*>(p_.dx) + (image * p_.tokens + token) * p_.width;
    for (int64_t n = 0; n < rows; ++n) convert_row_back(out_ + n * dp_, dx + n * p_.width, p_.width);
  }

  const TokenPoolParams& p_;
  Scratch::Frame frame_;
  int64_t kp_, dp_, ldx_ = 0;
  C *rows_, *weights_, *pack_;
  C *dy_ = nullptr, *dyt_ = nullptr, *out_ = nullptr;
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
  merge_partials<RowLayout<C>>(*p.plan, partials, size, p.outputs, dp,
                               [&](int64_t image, PoolState<C>& state) { TokenPool<T>(p).finish(image, state); });
}

template <typename T>
void token_pool_backward(TokenPoolParams p) {
  using C = compute_t<T>;
  Scratch::Frame frame;
  std::vector<Kept<C>> kept = keep_split<C>(*p.plan, frame, 0, padded<C>(p.outputs));
  parallel(p.plan->threads(), [&](int64_t thread) {
    for (const Segment& s : p.plan->of(thread)) {
      TokenPool<T> kernel(p);
      s.partial < 0 ? kernel.backward(s) : kernel.backward_weights(s, kept[s.partial]);
    }
  });
  if (kept.empty()) return;
  const std::vector<Segment> split = p.plan->split();
  join_deltas(split, kept, padded<C>(p.outputs));
  parallel(static_cast<int64_t>(split.size()), [&](int64_t i) { TokenPool<T>(p).backward_scores(split[i], kept[i]); });
}

}  // namespace JAIR_ISA
}  // namespace jair
