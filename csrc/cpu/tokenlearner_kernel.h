// fused_tokenlearner, forward and backward. Included once per instruction set.
#include "cpu/engine.h"
#include "cpu/token_rows.h"
#include "cpu/score_mlp.h"
#include "cpu/gradient_sums.h"

namespace jair {
namespace JAIR_ISA {

template <typename T>
class TokenLearner {
  using E = Engine<T>;
  using C = compute_t<T>;
  using Layout = typename E::Layout;
  using State = PoolState<C, Layout>;

 public:
  TokenLearner(const TokenLearnerParams& p, C* sums)
      : p_(p),
        k_(p.mlp.outputs),
        kp_(E::pad_count(k_)),
        hp_(E::pad_count(p.mlp.hidden)),
        dp_(E::pad_width(p.mlp.width)),
        mlp_(p.mlp, *static_cast<const ScoreMlpWeights<T>*>(p.weights), frame_, sums) {
    if (!sums) {
      state_ = frame_.take<C>(State::size(k_, dp_));
      weights_ = frame_.take<C>(mlp_.block * kp_);
      return;
    }
    dy_ = frame_.take<C>(k_ * dp_), dy_sum_ = frame_.take<C>(kp_);
    softmax_ = Softmax<T>(frame_, kp_);
    dy_columns_ = mlp_.engine.make_columns(frame_, p.mlp.width, k_);
    dy_spread_ = mlp_.engine.make_spread(frame_, p.mlp.width, k_);
  }

  void forward(const Segment& s) {
    const int64_t size = State::size(k_, dp_);
    State state(s.partial < 0 ? state_ : static_cast<C*>(p_.partials) + s.partial * size, k_);
    state.clear(k_, dp_);
    for (int64_t n = s.begin; n < s.end; n += mlp_.block) {
      const int64_t rows = std::min(mlp_.block, s.end - n);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i);
        mlp_.load_rows(s.image, n + i, i, count);
        mlp_.scores(s.image, n + i, i, count, weights_ + i * kp_, nullptr);
      }
      softmax_weights<T>(state, weights_, rows, mlp_.keep(s.image, n), p_.mlp.mask_token, k_, dp_);
      mlp_.engine.gather(mlp_.rows, rows, weights_, kp_, k_, state.acc);
      add_shift(state, rows);
    }
    if (s.partial < 0) finish(s.image, state);
  }

  void finish(int64_t image, State& state) {
    finish_softmax(state, static_cast<C*>(p_.softmax) + 2 * image * k_, k_, dp_, C(1));
    Scratch::Frame frame;
    C* row = frame.take<C>(dp_);
    T* y = static_cast<T*>(p_.y) + image * k_ * p_.mlp.width;
    for (int64_t k = 0; k < k_; ++k) {
      Layout::read(state.acc, dp_, k, 0, dp_, row);
      convert_row_back(row, y + k * p_.mlp.width, p_.mlp.width);
    }
  }

  // dP = x dY^T, dS = P (dP - delta), delta = sum_n P dP / sum_n P, dx = P dY + the score MLP's. delta is summed from
  // the very P and dP that it is subtracted from: y . dy has the rounding of y in it, the same for all tokens of an
  // image, and such errors add up in the weight gradients.
  void backward(const Segment& s) {
    Scratch::Frame frame;
    const int64_t tokens = s.end - s.begin;
    Kept<C> kept(frame.take<C>(Kept<C>::size(tokens, hp_, kp_)), tokens, hp_, kp_);
    backward_weights(s, kept);
    backward_gradients(s, kept);
  }

  // First pass: P, dP, h - e and this segment's part of delta.
  void backward_weights(const Segment& s, Kept<C>& kept) {
    load_dy(s.image);
    kept.begin(kp_);
    for (int64_t n = s.begin; n < s.end; n += mlp_.block) {
      const int64_t rows = std::min(mlp_.block, s.end - n);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i), at = n - s.begin + i;
        mlp_.load_rows(s.image, n + i, i, count);
        mlp_.scores(s.image, n + i, i, count, kept.p + at * kp_, kept.centred + at * hp_);
        mlp_.engine.times(mlp_.rows, i, count, dy_columns_, kept.dp + at * kp_, mlp_.ahead_of_others());
        softmax_.weigh(kept.p + at * kp_, count, kp_, mlp_.keep(s.image, n + i), p_.mlp.mask_token);
        add_shift(i, count, kept.dp + at * kp_);
        kept.add(kept.p + at * kp_, kept.dp + at * kp_, count, kp_);
      }
      loaded_ = n;
    }
  }

  // Second pass, with the whole image's delta.
  void backward_gradients(const Segment& s, const Kept<C>& kept) {
    load_dy(s.image);
    Scratch::Frame frame;
    C* delta = frame.take<C>(kp_);
    for (int64_t k = 0; k < kp_; k += kLanes<C>) store(delta + k, kept.mean(k));
    for (int64_t n = s.begin; n < s.end; n += mlp_.block) {
      const int64_t rows = std::min(mlp_.block, s.end - n);
      if (loaded_ != n) mlp_.load_rows(s.image, n, 0, rows);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i), at = n - s.begin + i;
        C *p = kept.p + at * kp_, *ds = kept.dp + at * kp_;
        for (int64_t j = 0; j < count * kp_; j += kp_) {
          for (int64_t k = 0; k < kp_; k += kLanes<C>) {
            store(ds + j + k, load(p + j + k) * (load(ds + j + k) - load(delta + k)));
          }
        }
        mlp_.backward(i, count, ds, kept.centred + at * hp_);
        T* dx = static_cast<T*>(p_.dx) + (s.image * p_.mlp.tokens + n + i) * p_.mlp.width;
        mlp_.dx(i, count, {p, kp_, &dy_spread_}, dx);
      }
      mlp_.end_block(rows);
      loaded_ = -1;
    }
  }

 private:
  // The engine pooled x - shift.
  void add_shift(State& state, int64_t rows) {
    const C* shift = mlp_.rows.shift;
    bool any = false;
    for (int64_t n = 0; n < rows; ++n) any = any || shift[n] != C(0);
    if (!any) return;
    for (int64_t k = 0; k < k_; ++k) {
      C total = 0;
      for (int64_t n = 0; n < rows; ++n) total += E::rounded_weight(weights_[n * kp_ + k]) * shift[n];
      Layout::add(state.acc, dp_, k, total);
    }
  }

  void load_dy(int64_t image) {
    if (image == image_) return;
    image_ = image, loaded_ = -1;
    const int64_t width = p_.mlp.width;
    const T* dy = static_cast<const T*>(p_.dy) + image * k_ * width;
    zero(dy_sum_, kp_);
    for (int64_t k = 0; k < k_; ++k) {
      C* row = dy_ + k * dp_;
      zero(row + padded<C>(width), dp_ - padded<C>(width));
      convert_row(dy + k * width, row, width);
      Vec<C> total{};
      for (int64_t d = 0; d < dp_; d += kLanes<C>) total += load(row + d);
      dy_sum_[k] = sum<C>(total);
    }
    softmax_.read(p_.softmax, image, k_, kp_);
    E::set_columns(dy_columns_, dy_, k_);
    E::set_spread(dy_spread_, dy_);
  }

  // dP of rows `first`.. gets what the shift left out.
  void add_shift(int64_t first, int64_t count, C* dp) const {
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t k = 0; k < kp_; k += kLanes<C>) {
        C* at = dp + n * kp_ + k;
        store(at, load(at) + mlp_.rows.shift[first + n] * load(dy_sum_ + k));
      }
    }
  }

  Scratch::Frame frame_;
  const TokenLearnerParams& p_;
  const int64_t k_, kp_, hp_, dp_;
  ScoreMlp<T> mlp_;
  int64_t image_ = -1, loaded_ = -1;  // the image that dy_ holds; the first token of the block that the rows hold
  C *weights_ = nullptr, *state_ = nullptr, *dy_ = nullptr, *dy_sum_ = nullptr;
  Softmax<T> softmax_;
  typename E::Columns dy_columns_;
  typename E::Spread dy_spread_;
};

template <typename T>
void tokenlearner_forward(TokenLearnerParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  using State = PoolState<C, typename E::Layout>;
  const int64_t dp = E::pad_width(p.mlp.width), size = State::size(p.mlp.outputs, dp);
  Scratch::Frame frame;
  const ScoreMlpWeights<T> weights(p.mlp, frame, false);
  C* partials = frame.take<C>(p.plan->partials() * size);
  p.weights = &weights, p.partials = partials;
  parallel(p.plan->threads(), [&](int64_t thread) {
    TokenLearner<T> kernel(p, nullptr);
    for (const Segment& s : p.plan->of(thread)) kernel.forward(s);
  });
  merge_partials<typename E::Layout>(*p.plan, partials, size, p.mlp.outputs, dp, [&](int64_t image, State& state) {
    TokenLearner<T>(p, nullptr).finish(image, state);
  });
}

template <typename T>
void tokenlearner_backward(TokenLearnerParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  const int64_t hp = E::pad_count(p.mlp.hidden), kp = E::pad_count(p.mlp.outputs), threads = p.plan->threads();
  Scratch::Frame frame;
  const ScoreMlpWeights<T> weights(p.mlp, frame, true);
  p.weights = &weights;
  std::vector<Kept<C>> kept = keep_split<C>(*p.plan, frame, hp, kp);
  GradientSums<T> sums(p.mlp, threads, frame);
  if (!kept.empty()) {
    parallel(threads, [&](int64_t thread) {
      TokenLearner<T> kernel(p, sums.of(thread));
      for (const Segment& s : p.plan->of(thread)) {
        if (s.partial >= 0) kernel.backward_weights(s, kept[s.partial]);
      }
    });
    join_deltas(p.plan->split(), kept, kp);
  }
  parallel(threads, [&](int64_t thread) {
    TokenLearner<T> kernel(p, sums.of(thread));
    sums.clear(thread);
    for (const Segment& s : p.plan->of(thread)) {
      s.partial < 0 ? kernel.backward(s) : kernel.backward_gradients(s, kept[s.partial]);
    }
  });
  sums.finish();
  // b2 moves all scores of an output alike, and a softmax over tokens does not see that.
  C* zeros = frame.take<C>(kp);
  zero(zeros, kp);
  write_gradient(p.mlp.b2, p.mlp.db2, 0, p.mlp.outputs, zeros);
}

}  // namespace JAIR_ISA
}  // namespace jair
