// g = gelu(h) over rows, and its backward. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/exp.h"
#include "cpu/gelu.h"
#include "cpu/pool.h"
#include "cpu/rows.h"

namespace jair {
namespace JAIR_ISA {

template <typename T, bool kTanh>
class Gelu {
  using C = compute_t<T>;

 public:
  explicit Gelu(const GeluParams& p) : p_(p) {}

  void forward(int64_t first, int64_t last) const {
    const int64_t width = p_.width, h_row = p_.h_row;
    over_rows(first, last, [&](auto group, int64_t row) {
      const T* h = static_cast<const T*>(p_.h) + row * h_row;
      T* g = static_cast<T*>(p_.g) + row * width;
      over_columns<C>(width, [&](int64_t d, auto vector) {
        for (int i = 0; i < group.kRows; ++i) {
          Vec<C> value, slope;
          gelu<T>(kTanh, vector.get(h + i * h_row + d), &value, &slope);
          vector.put(g + i * width + d, value);
        }
      });
    });
  }

  // Adds to sums [padded width] those of dh.
  void backward(int64_t first, int64_t last, C* sums) const {
    const int64_t width = p_.width, h_row = p_.h_row, dg_row = p_.dg_row;
    over_rows(first, last, [&](auto group, int64_t row) {
      const T* h = static_cast<const T*>(p_.h) + row * h_row;
      const T* dg = static_cast<const T*>(p_.dg) + row * dg_row;
      T *g = static_cast<T*>(p_.g) + row * width, *dh = static_cast<T*>(p_.dh) + row * width;
      over_columns<C>(width, [&](int64_t d, auto vector) {
        Vec<C> total{};
        for (int i = 0; i < group.kRows; ++i) {
          Vec<C> value, slope;
          gelu<T>(kTanh, vector.get(h + i * h_row + d), &value, &slope);
          const Vec<C> gradient = vector.get(dg + i * dg_row + d) * slope;
          vector.put(g + i * width + d, value);
          vector.put(dh + i * width + d, gradient);
          total += gradient;
        }
        store(sums + d, load(sums + d) + total);
      });
    });
  }

 private:
  const GeluParams& p_;
};

template <typename T, bool kTanh>
void gelu_forward(const GeluParams& p, const RowShares& shares) {
  const Gelu<T, kTanh> kernel(p);
  parallel(shares.count(), [&](int64_t i) { kernel.forward(shares.begin(i), shares.end(i)); });
}

template <typename T, bool kTanh>
void gelu_backward(const GeluParams& p, const RowShares& shares) {
  using C = compute_t<T>;
  Scratch::Frame frame;
  const Gelu<T, kTanh> kernel(p);
  const RowSums<C> sums(padded<C>(p.width), shares.count(), frame);
  parallel(shares.count(), [&](int64_t i) {
    sums.collect(i, shares.begin(i), shares.end(i),
                 [&](int64_t first, int64_t last, C* block) { kernel.backward(first, last, block); });
  });
  if (p.sums) std::memcpy(p.sums, sums.join(), p.width * sizeof(C));
}

// One instance each of the form with tanh and the exact one.
template <typename T>
void gelu_forward(const GeluParams& p, const RowShares& shares, bool tanh) {
  tanh ? gelu_forward<T, true>(p, shares) : gelu_forward<T, false>(p, shares);
}
template <typename T>
void gelu_backward(const GeluParams& p, const RowShares& shares, bool tanh) {
  tanh ? gelu_backward<T, true>(p, shares) : gelu_backward<T, false>(p, shares);
}

}  // namespace JAIR_ISA
}  // namespace jair
