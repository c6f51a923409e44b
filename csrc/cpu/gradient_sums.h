// Parameter gradients of the score MLP from the sums of its threads. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// The sums of all threads, and the parameter gradients from them.
template <typename T>
class GradientSums {
  using E = Engine<T>;
  using C = compute_t<T>;

 public:
  GradientSums(const ScoreMlpParams& p, int64_t threads, Scratch::Frame& frame)
      : p_(p),
        threads_(threads),
        dp_(E::pad_width(p.width)),
        hp_(E::pad_count(p.hidden)),
        m_size_(E::Layout::size(p.hidden, dp_)),
        small_size_(ScoreMlpSums<C>::small_size(hp_, E::pad_count(p.outputs), p.outputs)),
        all_(frame.take<C>(threads * (m_size_ + small_size_))) {}

  C* of(int64_t thread) const { return all_ + thread * (m_size_ + small_size_); }
  void clear(int64_t thread) const { zero(of(thread), m_size_ + small_size_); }

  void finish() const {
    const int64_t unit = E::pad_width(1), units = dp_ / unit, shares = std::min(units, threads_);
    parallel(shares, [&](int64_t i) { finish_columns(units * i / shares * unit, units * (i + 1) / shares * unit); });
  }

 private:
  // Joins the threads' sums in their order and writes columns [first, last) of the gradients. The share that begins at
  // 0 also writes what has no columns.
  void finish_columns(int64_t first, int64_t last) const {
    Scratch::Frame frame;
    const int64_t count = last - first, valid = std::min(last, p_.width) - first;
    C *small = frame.take<C>(small_size_), *row = frame.take<C>(count), *part = frame.take<C>(count);
    C *w1 = frame.take<C>(count), *gamma = frame.take<C>(count), *beta = frame.take<C>(count);
    C *dgamma = frame.take<C>(count), *dbeta = frame.take<C>(count);
    zero(small, small_size_), zero(dgamma, count), zero(dbeta, count);
    for (int64_t t = 0; t < threads_; ++t) add(small, of(t) + m_size_, small_size_);
    const C *shifted = small, *db1 = small + hp_;
    if (p_.norm_weight.data) read_parameter(p_.norm_weight, first, valid, gamma);
    if (p_.norm_bias.data) read_parameter(p_.norm_bias, first, valid, beta);
    for (int64_t h = 0; h < p_.hidden; ++h) {
      E::Layout::read(of(0), dp_, h, first, count, row);
      for (int64_t t = 1; t < threads_; ++t) {
        E::Layout::read(of(t), dp_, h, first, count, part);
        add(row, part, count);
      }
      read_parameter(p_.w1, h * p_.width + first, valid, w1);
      for (int64_t d = 0; d < padded<C>(valid); d += kLanes<C>) {
        const Vec<C> m = load(row + d) - shifted[h], w = load(w1 + d);
        store(dgamma + d, load(dgamma + d) + w * m);
        store(dbeta + d, load(dbeta + d) + w * db1[h]);
        Vec<C> dw = p_.norm_weight.data ? m * load(gamma + d) : m;
        if (p_.norm_bias.data) dw += db1[h] * load(beta + d);
        store(row + d, dw);
      }
      write_gradient(p_.w1, p_.dw1, h * p_.width + first, valid, row);
    }
    write_gradient(p_.norm_weight, p_.dnorm_weight, first, valid, dgamma);
    write_gradient(p_.norm_bias, p_.dnorm_bias, first, valid, dbeta);
    if (first == 0) finish_small(small);
  }

  void finish_small(const C* small) const {
    const C *db1 = small + hp_, *dw2 = db1 + hp_, *db2 = dw2 + p_.outputs * hp_;
    write_gradient(p_.b1, p_.db1, 0, p_.hidden, db1);
    write_gradient(p_.b2, p_.db2, 0, p_.outputs, db2);
    for (int64_t k = 0; k < p_.outputs; ++k) write_gradient(p_.w2, p_.dw2, k * p_.hidden, p_.hidden, dw2 + k * hp_);
  }

  static void add(C* to, const C* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<C>) store(to + i, load(to + i) + load(from + i));
  }

  const ScoreMlpParams& p_;
  int64_t threads_, dp_, hp_, m_size_, small_size_;
  C* all_;
};

}  // namespace JAIR_ISA
}  // namespace jair
