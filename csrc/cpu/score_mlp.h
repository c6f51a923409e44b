// s = w2 gelu(w1 LN(x) + b1) + b2 over blocks of token rows, forward and backward, on an engine's products.
// Included once per instruction set.
//
// The LayerNorm folds into the first product: with Wg = w1 diag(gamma), c = Wg 1, e = w1 beta + b1, mean m, r = 1/std
// and rows held as x - shift:   h = r ((x - shift) Wg^T - (m - shift) c) + e.
// Backward, with dH = (dS w2) gelu'(h):   dx = r dH Wg - r (dH . c)/D - r xhat (dH . (h - e))/D
//   M = (r dH)^T (x - shift) - (sum of r dH (m - shift)) 1^T,   dw1 = M diag(gamma) + db1 beta^T,
//   dgamma = sum_h w1 * M,   dbeta = w1^T db1.                                        (docs/derivations.md)
// h is rounded to x's type before anything is made of it, so that a backward which reads a kept h finds the same
// scores.
#include "cpu/gelu.h"
#include "cpu/parameter_rows.h"

namespace jair {
namespace JAIR_ISA {

// The weights as the products want them, made once per call and shared by its threads.
template <typename T>
struct ScoreMlpWeights {
  using E = Engine<T>;
  using C = compute_t<T>;
  int64_t dp, hp, kp;
  typename E::Columns wg, w2_columns;
  typename E::Spread wg_spread;
  C *c, *e, *w2, *b2;

  ScoreMlpWeights(const ScoreMlpParams& p, Scratch::Frame& frame, bool backward)
      : dp(E::pad_width(p.width)), hp(E::pad_count(p.hidden)), kp(E::pad_count(p.outputs)) {
    const E engine(frame);
    C *rows = frame.take<C>(p.hidden * dp), *gamma = frame.take<C>(dp), *beta = frame.take<C>(dp);
    c = frame.take<C>(hp), e = frame.take<C>(hp), b2 = frame.take<C>(kp);
    zero(c, hp), zero(e, hp), zero(b2, kp), zero(beta, dp);
    for (int64_t d = 0; d < dp; ++d) gamma[d] = C(1);
    if (p.norm_weight.data) read_parameter(p.norm_weight, 0, p.width, gamma);
    if (p.norm_bias.data) read_parameter(p.norm_bias, 0, p.width, beta);
    if (p.b1.data) read_parameter(p.b1, 0, p.hidden, e);
    if (p.b2.data) read_parameter(p.b2, 0, p.outputs, b2);
    for (int64_t h = 0; h < p.hidden; ++h) fold_row(p, h, rows + h * dp, gamma, beta);
    wg = engine.make_columns(frame, p.width, p.hidden);
    E::set_columns(wg, rows, p.hidden);
    const int64_t depth = E::pad_width(p.hidden);
    w2 = frame.take<C>(p.outputs * depth);
    zero(w2, p.outputs * depth);
    for (int64_t k = 0; k < p.outputs; ++k) read_parameter(p.w2, k * p.hidden, p.hidden, w2 + k * depth);
    w2_columns = engine.make_columns(frame, p.hidden, p.outputs);
    E::set_columns(w2_columns, w2, p.outputs);
    if (!backward) return;
    wg_spread = engine.make_spread(frame, p.width, p.hidden);
    E::set_spread(wg_spread, rows);
  }

 private:
  // Row h of Wg, its sum c_h and its part of e_h, in one pass.
  void fold_row(const ScoreMlpParams& p, int64_t h, C* row, const C* gamma, const C* beta) {
    zero(row + dp - E::pad_width(1), E::pad_width(1));
    Vec<C> total{}, along{};
    with_parameter<C>(p.w1, h * p.width, [&](const auto* w1) {
      const auto step = [&](int64_t d, Vec<C> w) {
        along += w * load(beta + d);
        w = E::rounded(w * load(gamma + d));
        total += w;
        store(row + d, w);
      };
      int64_t d = 0;
      for (; d + kLanes<C> <= p.width; d += kLanes<C>) step(d, load(w1 + d));
      if (d < p.width) step(d, load_part(w1 + d, p.width - d));
    });
    c[h] = sum<C>(total);
    e[h] += sum<C>(along);
  }
};

// One thread's sums of parameter gradients.
template <typename C>
struct ScoreMlpSums {
  C *m, *shifted, *db1, *dw2, *db2;  // [H,dp] in the engine's layout, [hp], [hp], [K,hp], [kp]; m null: none
  static int64_t small_size(int64_t hp, int64_t kp, int64_t outputs) { return 2 * hp + outputs * hp + kp; }
  ScoreMlpSums(C* memory, int64_t m_size, int64_t hp, int64_t outputs)
      : m(memory), shifted(nullptr), db1(nullptr), dw2(nullptr), db2(nullptr) {
    if (!memory) return;
    shifted = m + m_size, db1 = shifted + hp, dw2 = db1 + hp, db2 = dw2 + outputs * hp;
  }
};

template <typename T>
class ScoreMlp : public TokenRows<T> {
 public:
  using E = Engine<T>;
  using C = compute_t<T>;
  using TokenRows<T>::engine, TokenRows<T>::block, TokenRows<T>::rows;

  // `sums` null: forward only.
  ScoreMlp(const ScoreMlpParams& p, const ScoreMlpWeights<T>& weights, Scratch::Frame& frame, C* sums)
      : TokenRows<T>(p, frame, sums != nullptr),
        p_(p),
        w_(weights),
        sums_(sums, E::Layout::size(p.hidden, w_.dp), w_.hp, p.outputs),
        value_(frame.take<C>(E::kStrip * w_.hp)),
        centred_(frame.take<C>(E::kStrip * w_.hp)) {
    if (!sums) return;
    rdh_ = frame.take<C>(block * w_.hp), slope_ = frame.take<C>(E::kStrip * w_.hp);
    constant_ = frame.take<C>(block), linear_ = frame.take<C>(block), strip_ = frame.take<C>(2 * w_.hp);
  }

  // Scores [count,kp] of rows first.. of the block, which hold tokens `token`.. of the image; h - e [count,hp] goes to
  // `centred` where it is not null.
  void scores(int64_t image, int64_t token, int64_t first, int64_t count, C* out, C* centred) {
    const int64_t hp = w_.hp;
    if (!centred) centred = centred_;
    T* kept = p_.kept ? static_cast<T*>(p_.kept) + (image * p_.tokens + token) * p_.hidden : nullptr;
    if (reads_hidden()) {
      read_hidden(kept, count, centred);
    } else {
      make_hidden(first, count, centred, kept);
    }
    engine.times_plain(value_, count, hp, w_.w2_columns, out);
    for (int64_t n = 0; n < count * w_.kp; n += w_.kp) {
      for (int64_t k = 0; k < w_.kp; k += kLanes<C>) store(out + n + k, load(out + n + k) + load(w_.b2 + k));
    }
  }

  // What another product of these rows may ask for while it runs, if no product with Wg has done so.
  Ahead ahead_of_others() const { return reads_hidden() ? this->ahead : Ahead{}; }

  // Takes dS [count,kp] of rows first.. of the block; adds to the parameter sums and prepares dx().
  void backward(int64_t first, int64_t count, const C* ds, const C* centred) {
    const int64_t hp = w_.hp, kp = w_.kp;
    C* rdh = rdh_ + first * hp;
    for (int64_t n = 0; n < count * hp; n += hp) {
      for (int64_t h = 0; h < hp; h += kLanes<C>) {
        Vec<C> g, slope;
        gelu<T>(p_.tanh, load(centred + n + h) + load(w_.e + h), &g, &slope);
        store(value_ + n + h, g);
        store(slope_ + n + h, slope);
      }
    }
    gemm<C>(count, hp, p_.outputs, {ds, kp, 1}, w_.w2, E::pad_width(p_.hidden), rdh, hp, false, nullptr);
    gemm<C>(p_.outputs, hp, count, {ds, 1, kp}, value_, hp, sums_.dw2, hp, true, nullptr);
    // Sums over many tokens go through sums over this strip, or their error would grow with N.
    for (int64_t k = 0; k < kp; k += kLanes<C>) {
      Vec<C> total{};
      for (int64_t n = 0; n < count * kp; n += kp) total += load(ds + n + k);
      store(sums_.db2 + k, load(sums_.db2 + k) + total);
    }
    zero(strip_, 2 * hp);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t row = first + n;
      const C r = this->rstd[row], offset = this->offset(row);
      Vec<C> along_c{}, along_h{};
      for (int64_t h = 0; h < hp; h += kLanes<C>) {
        const Vec<C> dh = load(rdh + n * hp + h) * load(slope_ + n * hp + h);
        along_c += dh * load(w_.c + h);
        along_h += dh * load(centred + n * hp + h);
        store(strip_ + h, load(strip_ + h) + dh);
        store(rdh + n * hp + h, r * dh);
        store(strip_ + hp + h, load(strip_ + hp + h) + r * offset * dh);
      }
      linear_[row] = r * r * sum<C>(along_h) / p_.width;
      constant_[row] = r * sum<C>(along_c) / p_.width - linear_[row] * offset;
    }
    for (int64_t h = 0; h < hp; h += kLanes<C>) {
      store(sums_.db1 + h, load(sums_.db1 + h) + load(strip_ + h));
      store(sums_.shifted + h, load(sums_.shifted + h) + load(strip_ + hp + h));
    }
  }

  // dx of rows first.. of the block, plus weights S of a further term.
  void dx(int64_t first, int64_t count, typename E::Term further, T* out) {
    const typename E::Term term{rdh_ + first * w_.hp, w_.hp, &w_.wg_spread};
    engine.spread(first, count, p_.width, term, further, {&rows, constant_ + first, linear_ + first}, out, p_.width);
  }

  // Adds the whole block to M.
  void end_block(int64_t count) { engine.gather(rows, count, rdh_, w_.hp, p_.hidden, sums_.m); }

 private:
  bool reads_hidden() const { return p_.kept && sums_.m; }

  // gelu(h) and h - e [count,hp] of rows first.. of the block; h itself goes to `kept` [count,H] where it is not null.
  void make_hidden(int64_t first, int64_t count, C* centred, T* kept) {
    engine.times(rows, first, count, w_.wg, centred, this->ahead);
    for (int64_t n = 0; n < count; ++n) {
      const C r = this->rstd[first + n], offset = this->offset(first + n);
      C *normed = centred + n * w_.hp, *value = value_ + n * w_.hp;
      over_columns<C>(p_.hidden, [&](int64_t h, auto vector) {
        const Vec<C> h_less_e = r * (load(normed + h) - offset * load(w_.c + h));
        const Vec<C> whole = E::in_type(h_less_e + load(w_.e + h));
        if (kept) vector.put(kept + n * p_.hidden + h, whole);
        store(value + h, activated(whole));
        store(normed + h, h_less_e);
      });
    }
  }

  // The same from a kept h.
  void read_hidden(const T* kept, int64_t count, C* centred) {
    for (int64_t n = 0; n < count; ++n) {
      over_columns<C>(p_.hidden, [&](int64_t h, auto vector) {
        const Vec<C> whole = vector.get(kept + n * p_.hidden + h);
        store(value_ + n * w_.hp + h, activated(whole));
        store(centred + n * w_.hp + h, whole - load(w_.e + h));
      });
    }
  }

  Vec<C> activated(Vec<C> h) const {
    Vec<C> g, slope;
    gelu<T>(p_.tanh, h, &g, &slope);
    return g;
  }

  const ScoreMlpParams& p_;
  const ScoreMlpWeights<T>& w_;
  ScoreMlpSums<C> sums_;
  C *value_, *centred_;
  C *slope_ = nullptr, *rdh_ = nullptr, *constant_ = nullptr, *linear_ = nullptr, *strip_ = nullptr;
};

}  // namespace JAIR_ISA
}  // namespace jair
