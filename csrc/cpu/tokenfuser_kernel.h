// fused_tokenfuser, forward and backward. Included once per instruction set.
#include "cpu/engine.h"
#include "cpu/token_rows.h"
#include "cpu/score_mlp.h"
#include "cpu/gradient_sums.h"

namespace jair {
namespace JAIR_ISA {

template <typename T>
class TokenFuser {
  using E = Engine<T>;
  using C = compute_t<T>;

 public:
  TokenFuser(const TokenFuserParams& p, C* sums)
      : p_(p),
        k_(p.mlp.outputs),
        kp_(E::pad_count(k_)),
        hp_(E::pad_count(p.mlp.hidden)),
        dp_(E::pad_width(p.mlp.width)),
        mlp_(p.mlp, *static_cast<const ScoreMlpWeights<T>*>(p.weights), frame_, sums),
        weights_(frame_.take<C>(mlp_.block * kp_)),
        token_rows_(frame_.take<C>(k_ * dp_)),
        spread_(mlp_.engine.make_spread(frame_, p.mlp.width, k_)) {
    if (!sums) return;
    columns_ = mlp_.engine.make_columns(frame_, p.mlp.width, k_);
    dy_rows_ = mlp_.engine.make_rows(frame_, p.mlp.width, mlp_.block);
    dscores_ = frame_.take<C>(E::kStrip * kp_), centred_ = frame_.take<C>(E::kStrip * hp_);
    dtokens_ = frame_.take<C>(sum_size());
  }

  // y = M tokens, M = sigmoid(scores)
  void forward(const Segment& s) {
    load_tokens(s.image);
    for (int64_t n = s.begin; n < s.end; n += E::kStrip) {
      const int64_t count = std::min(E::kStrip, s.end - n);
      mlp_.load_rows(s.image, n, 0, count);
      mlp_.scores(s.image, n, 0, count, weights_, nullptr);
      sigmoid_weights<C>(weights_, count, nullptr, 0, k_);
      T* y = static_cast<T*>(p_.y) + (s.image * p_.mlp.tokens + n) * p_.mlp.width;
      mlp_.engine.spread(0, count, p_.mlp.width, {weights_, kp_, &spread_}, {nullptr, 0, nullptr},
                         {nullptr, nullptr, nullptr}, y, p_.mlp.width);
    }
  }

  // dM = dy tokens^T, dS = dM M (1 - M), dtokens = M^T dy, dx = the score MLP's.
  void backward(const Segment& s) {
    load_tokens(s.image);
    C* dtokens = s.partial < 0 ? dtokens_ : static_cast<C*>(p_.partials) + s.partial * sum_size();
    zero(dtokens, sum_size());
    for (int64_t n = s.begin; n < s.end; n += mlp_.block) {
      const int64_t rows = std::min(mlp_.block, s.end - n);
      for (int64_t i = 0; i < rows; i += E::kStrip) backward_strip(s.image, n + i, i, std::min(E::kStrip, rows - i));
      mlp_.end_block(rows);
      mlp_.engine.gather(dy_rows_, rows, weights_, kp_, k_, dtokens);
    }
    if (s.partial < 0) finish(s.image, dtokens);
  }

  void finish(int64_t image, C* dtokens) {
    Scratch::Frame frame;
    C* row = frame.take<C>(dp_);
    T* out = static_cast<T*>(p_.dtokens) + image * k_ * p_.mlp.width;
    for (int64_t k = 0; k < k_; ++k) {
      E::Layout::read(dtokens, dp_, k, 0, dp_, row);
      convert_row_back(row, out + k * p_.mlp.width, p_.mlp.width);
    }
  }

 private:
  int64_t sum_size() const { return E::Layout::size(k_, dp_); }

  void load_tokens(int64_t image) {
    const int64_t width = p_.mlp.width;
    const T* tokens = static_cast<const T*>(p_.tokens) + image * k_ * width;
    for (int64_t k = 0; k < k_; ++k) {
      C* row = token_rows_ + k * dp_;
      zero(row + padded<C>(width), dp_ - padded<C>(width));
      convert_row(tokens + k * width, row, width);
    }
    E::set_spread(spread_, token_rows_);
    if (dscores_) E::set_columns(columns_, token_rows_, k_);
  }

  void backward_strip(int64_t image, int64_t token, int64_t first, int64_t count) {
    const int64_t width = p_.mlp.width;
    C* weights = weights_ + first * kp_;
    mlp_.load_rows(image, token, first, count);
    mlp_.scores(image, token, first, count, weights, centred_);
    sigmoid_weights<C>(weights, count, nullptr, 0, k_);
    const T* dy = static_cast<const T*>(p_.dy) + image * p_.dy_image + token * p_.dy_token;
    mlp_.engine.load_rows(dy_rows_, first, count, width, {dy, p_.dy_token, nullptr, 0}, nullptr);
    mlp_.engine.times(dy_rows_, first, count, columns_, dscores_);
    for (int64_t i = 0; i < count * kp_; i += kLanes<C>) {
      const Vec<C> m = load(weights + i);
      store(dscores_ + i, load(dscores_ + i) * m * (C(1) - m));
    }
    mlp_.backward(first, count, dscores_, centred_);
    T* dx = static_cast<T*>(p_.dx) + (image * p_.mlp.tokens + token) * width;
    mlp_.dx(first, count, {nullptr, 0, nullptr}, dx);
  }

  Scratch::Frame frame_;
  const TokenFuserParams& p_;
  const int64_t k_, kp_, hp_, dp_;
  ScoreMlp<T> mlp_;
  C *weights_, *token_rows_;
  typename E::Spread spread_;
  typename E::Columns columns_;
  typename E::Rows dy_rows_;
  C *dscores_ = nullptr, *centred_ = nullptr, *dtokens_ = nullptr;
};

template <typename T>
void tokenfuser_forward(TokenFuserParams p) {
  Scratch::Frame frame;
  const ScoreMlpWeights<T> weights(p.mlp, frame, false);
  p.weights = &weights;
  parallel(p.plan->threads(), [&](int64_t thread) {
    TokenFuser<T> kernel(p, nullptr);
    for (const Segment& s : p.plan->of(thread)) kernel.forward(s);
  });
}

template <typename T>
void tokenfuser_backward(TokenFuserParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  const int64_t size = E::Layout::size(p.mlp.outputs, E::pad_width(p.mlp.width)), threads = p.plan->threads();
  Scratch::Frame frame;
  const ScoreMlpWeights<T> weights(p.mlp, frame, true);
  C* partials = frame.take<C>(p.plan->partials() * size);
  p.weights = &weights, p.partials = partials;
  GradientSums<T> sums(p.mlp, threads, frame);
  parallel(threads, [&](int64_t thread) {
    TokenFuser<T> kernel(p, sums.of(thread));
    sums.clear(thread);
    for (const Segment& s : p.plan->of(thread)) kernel.backward(s);
  });
  const std::vector<Segment> split = p.plan->split();
  for (size_t i = 0; i < split.size();) {
    size_t j = i + 1;
    for (; j < split.size() && split[j].image == split[i].image; ++j) {
      for (int64_t d = 0; d < size; ++d) partials[i * size + d] += partials[j * size + d];
    }
    TokenFuser<T>(p, sums.of(0)).finish(split[i].image, partials + i * size);
    i = j;
  }
  sums.finish();
}

}  // namespace JAIR_ISA
}  // namespace jair
