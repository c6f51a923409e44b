// fused_token_pool, forward and backward. Included once per instruction set.
#include "cpu/engine.h"

namespace jair {
namespace JAIR_ISA {

template <typename T>
class TokenPool {
  using E = Engine<T>;
  using C = compute_t<T>;
  using Layout = typename E::Layout;

 public:
  using State = PoolState<C, Layout>;

  TokenPool(const TokenPoolParams& p, bool backward)
      : p_(p),
        k_(p.outputs),
        kp_(E::pad_count(k_)),
        dp_(E::pad_width(p.width)),
        engine_(frame_),
        block_(E::block_rows(p.width)),
        rows_(engine_.make_rows(frame_, p.width, block_)),
        row_(frame_.take<C>(dp_)) {
    if (!backward) {
      state_ = frame_.take<C>(State::size(k_, dp_)), weights_ = frame_.take<C>(block_ * kp_);
      return;
    }
    dy_ = frame_.take<C>(k_ * dp_), weights_ = frame_.take<C>(E::kStrip * kp_);
    softmax_ = Softmax<T>(frame_, kp_);
    columns_ = engine_.make_columns(frame_, p.width, k_), spread_ = engine_.make_spread(frame_, p.width, k_);
  }

  void forward(const Segment& s) {
    const int64_t size = State::size(k_, dp_);
    State state(s.partial < 0 ? state_ : static_cast<C*>(p_.partials) + s.partial * size, k_);
    state.clear(k_, dp_);
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i);
        load_rows(s.image, n + i, i, count);
        load_scores(s.image, n + i, count, weights_ + i * kp_);
      }
      if (p_.sigmoid) {
        sigmoid_weights(weights_, rows, keep(s.image, n), p_.mask_token, k_);
      } else {
        softmax_weights<T>(state, weights_, rows, keep(s.image, n), p_.mask_token, k_, dp_);
      }
      engine_.gather(rows_, rows, weights_, kp_, k_, state.acc);
    }
    if (s.partial < 0) finish(s.image, state);
  }

  void finish(int64_t image, State& state) {
    const C factor = p_.mean ? C(1) / kept(image) : C(1);
    if (p_.sigmoid) {
      for (int64_t k = 0; k < k_; ++k) Layout::scale(state.acc, dp_, k, factor);
    } else {
      finish_softmax(state, static_cast<C*>(p_.softmax) + 2 * image * k_, k_, dp_, factor);
    }
    T* y = static_cast<T*>(p_.y) + image * k_ * p_.width;
    for (int64_t k = 0; k < k_; ++k) {
      Layout::read(state.acc, dp_, k, 0, dp_, row_);
      convert_row_back(row_, y + k * p_.width, p_.width);
    }
  }

  // dP = x dY^T;  softmax: dS = P (dP - delta), delta = sum_n P dP / sum_n P;  sigmoid: dS = dP P (1 - P);  dx = P dY;
  // all but P divided by the number of kept tokens for a mean. delta is summed as in TokenLearner.
  void backward(const Segment& s) {
    Scratch::Frame frame;
    const int64_t tokens = s.end - s.begin;
    Kept<C> kept(frame.take<C>(Kept<C>::size(tokens, 0, kp_)), tokens, 0, kp_);
    backward_weights(s, kept);
    backward_scores(s, kept);
  }

  // First pass: P, dP, dx and this segment's part of delta.
  void backward_weights(const Segment& s, Kept<C>& kept_rows) {
    load_dy(s.image);
    kept_rows.begin(kp_);
    const C factor = p_.mean ? C(1) / kept(s.image) : C(1);
    for (int64_t n = s.begin; n < s.end; n += E::kStrip) {
      const int64_t count = std::min(E::kStrip, s.end - n);
      C *p = kept_rows.p + (n - s.begin) * kp_, *dp = kept_rows.dp + (n - s.begin) * kp_;
      load_rows(s.image, n, 0, count);
      load_scores(s.image, n, count, p);
      weights_again(s.image, n, count, p);
      engine_.times(rows_, 0, count, columns_, dp);
      for (int64_t i = 0; i < count * kp_; i += kLanes<C>) {
        store(dp + i, load(dp + i) * factor);
        store(weights_ + i, load(p + i) * factor);
      }
      kept_rows.add(p, dp, count, kp_);
      T* dx = static_cast<T*>(p_.dx) + (s.image * p_.tokens + n) * p_.width;
      engine_.spread(0, count, p_.width, {weights_, kp_, &spread_}, {nullptr, 0, nullptr}, {nullptr, nullptr, nullptr},
                     dx, p_.width);
      zero_masked_rows(dx, p_.width, p_.width, count, keep(s.image, n), p_.mask_token);
    }
  }

  // Second pass, with the whole image's delta.
  void backward_scores(const Segment& s, const Kept<C>& kept_rows) {
    T* dscores = static_cast<T*>(p_.dscores) + (s.image * p_.tokens + s.begin) * k_;
    Scratch::Frame frame;
    C* delta = frame.take<C>(kp_);
    for (int64_t k = 0; k < kp_; k += kLanes<C>) store(delta + k, kept_rows.mean(k));
    for (int64_t n = 0; n < s.end - s.begin; ++n) {
      for (int64_t k = 0; k < kp_; k += kLanes<C>) {
        const Vec<C> p = load(kept_rows.p + n * kp_ + k), dp = load(kept_rows.dp + n * kp_ + k);
        store(kept_rows.dp + n * kp_ + k, p_.sigmoid ? dp * p * (C(1) - p) : p * (dp - load(delta + k)));
      }
      convert_row_back(kept_rows.dp + n * kp_, dscores + n * k_, k_);
    }
    zero_masked_rows(dscores, k_, k_, s.end - s.begin, keep(s.image, s.begin), p_.mask_token);
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

  void load_rows(int64_t image, int64_t token, int64_t first, int64_t count) {
    const T* x = static_cast<const T*>(p_.x) + image * p_.x_image + token * p_.x_token;
    engine_.load_rows(rows_, first, count, p_.width, {x, p_.x_token, keep(image, token), p_.mask_token}, nullptr);
  }

  // Scores in the compute type, those of masked tokens 0.
  void load_scores(int64_t image, int64_t token, int64_t count, C* out) const {
    const T* scores = static_cast<const T*>(p_.scores) + image * p_.scores_image + token * p_.scores_token;
    const uint8_t* mask = keep(image, token);
    for (int64_t n = 0; n < count; ++n) {
      if (mask && !mask[n * p_.mask_token]) {
        zero(out + n * kp_, kp_);
      } else {
        convert_row(scores + n * p_.scores_token, out + n * kp_, k_);
      }
    }
  }

  void load_dy(int64_t image) {
    const T* dy = static_cast<const T*>(p_.dy) + image * k_ * p_.width;
    for (int64_t k = 0; k < k_; ++k) {
      C* row = dy_ + k * dp_;
      zero(row + padded<C>(p_.width), dp_ - padded<C>(p_.width));
      convert_row(dy + k * p_.width, row, p_.width);
    }
    E::set_columns(columns_, dy_, k_);
    E::set_spread(spread_, dy_);
    if (!p_.sigmoid) softmax_.read(p_.softmax, image, k_, kp_);
  }

  // Scores become weights.
  void weights_again(int64_t image, int64_t token, int64_t count, C* p) {
    const uint8_t* mask = keep(image, token);
    p_.sigmoid ? sigmoid_weights(p, count, mask, p_.mask_token, k_)
               : softmax_.weigh(p, count, kp_, mask, p_.mask_token);
  }

  const TokenPoolParams& p_;
  Scratch::Frame frame_;
  const int64_t k_, kp_, dp_;
  E engine_;
  const int64_t block_;
  typename E::Rows rows_;
  C *row_, *weights_, *state_ = nullptr, *dy_ = nullptr;
  Softmax<T> softmax_;
  typename E::Columns columns_;
  typename E::Spread spread_;
};

template <typename T>
void token_pool_forward(TokenPoolParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  using State = typename TokenPool<T>::State;
  const int64_t dp = E::pad_width(p.width), size = State::size(p.outputs, dp);
  Scratch::Frame frame;
  C* partials = frame.take<C>(p.plan->partials() * size);
  p.partials = partials;
  parallel(p.plan->threads(), [&](int64_t thread) {
    TokenPool<T> kernel(p, false);
    for (const Segment& s : p.plan->of(thread)) kernel.forward(s);
  });
  merge_partials<typename E::Layout>(*p.plan, partials, size, p.outputs, dp,
                                     [&](int64_t image, State& state) { TokenPool<T>(p, false).finish(image, state); });
}

template <typename T>
void token_pool_backward(TokenPoolParams p) {
  using C = compute_t<T>;
  const int64_t kp = Engine<T>::pad_count(p.outputs);
  Scratch::Frame frame;
  std::vector<Kept<C>> kept = keep_split<C>(*p.plan, frame, 0, kp);
  parallel(p.plan->threads(), [&](int64_t thread) {
    TokenPool<T> kernel(p, true);
    for (const Segment& s : p.plan->of(thread)) {
      s.partial < 0 ? kernel.backward(s) : kernel.backward_weights(s, kept[s.partial]);
    }
  });
  if (kept.empty()) return;
  const std::vector<Segment> split = p.plan->split();
  join_deltas(split, kept, kp);
  parallel(static_cast<int64_t>(split.size()),
           [&](int64_t i) { TokenPool<T>(p, true).backward_scores(split[i], kept[i]); });
}

}  // namespace JAIR_ISA
}  // namespace jair
