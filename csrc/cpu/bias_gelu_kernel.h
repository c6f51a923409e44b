// g = gelu(h + bias) over rows, and its backward. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/pool.h"
#include "cpu/parameter_rows.h"
#include "cpu/rows.h"

namespace jair {
namespace JAIR_ISA {

template <typename T, bool kTanh>
class BiasGelu {
  using C = compute_t<T>;

 public:
  BiasGelu(const BiasGeluParams& p, Scratch::Frame& frame)
      : p_(p), bias_(whole_parameter<C>(p.bias, p.width, C(0), frame)) {}

  void forward(int64_t first, int64_t last) const {
    over_rows(first, last, [&](auto group, int64_t row) {
      const T* h = static_cast<const T*>(p_.h) + row * p_.h_row;
      T* g = static_cast<T*>(p_.g) + row * p_.width;
      over_columns<C>(p_.width, [&](int64_t d, auto vector) {
        const Vec<C> bias = load(bias_ + d);
        for (int i = 0; i < group.kRows; ++i) {
          Vec<C> value, slope;
          gelu<C>(kTanh, vector.get(h + i * p_.h_row + d) + bias, &value, &slope);
          vector.put(g + i * p_.width + d, value);
        }
      });
    });
  }

  // Adds to sums [padded width] those of dh.
  void backward(int64_t first, int64_t last, C* sums) const {
    over_rows(first, last, [&](auto group, int64_t row) {
      const T* h = static_cast<const T*>(p_.h) + row * p_.h_row;
      const T* dg = static_cast<const T*>(p_.dg) + row * p_.dg_row;
      T *g = static_cast<T*>(p_.g) + row * p_.width, *dh = static_cast<T*>(p_.dh) + row * p_.width;
      over_columns<C>(p_.width, [&](int64_t d, auto vector) {
        const Vec<C> bias = load(bias_ + d);
        Vec<C> total{};
        for (int i = 0; i < group.kRows; ++i) {
          Vec<C> value, slope;
          gelu<C>(kTanh, vector.get(h + i * p_.h_row + d) + bias, &value, &slope);
          const Vec<C> gradient = vector.get(dg + i * p_.dg_row + d) * slope;
          vector.put(g + i * p_.width + d, value);
          vector.put(dh + i * p_.width + d, gradient);
          total += gradient;
        }
        store(sums + d, load(sums + d) + total);
      });
    });
  }

 private:
  const BiasGeluParams& p_;
  const C* bias_;
};

template <typename T, bool kTanh>
void bias_gelu_forward(const BiasGeluParams& p, const RowShares& shares) {
  Scratch::Frame frame;
  const BiasGelu<T, kTanh> kernel(p, frame);
  parallel(shares.count(), [&](int64_t i) { kernel.forward(shares.begin(i), shares.end(i)); });
}

template <typename T, bool kTanh>
void bias_gelu_backward(const BiasGeluParams& p, const RowShares& shares) {
  using C = compute_t<T>;
  Scratch::Frame frame;
  const BiasGelu<T, kTanh> kernel(p, frame);
  const RowSums<C> sums(padded<C>(p.width), shares.count(), frame);
  parallel(shares.count(), [&](int64_t i) {
    sums.collect(i, shares.begin(i), shares.end(i),
                 [&](int64_t first, int64_t last, C* block) { kernel.backward(first, last, block); });
  });
  write_gradient(p.bias, p.dbias, 0, p.width, sums.join());
}

// One instance each of the form with tanh and the exact one.
template <typename T>
void bias_gelu_forward(const BiasGeluParams& p, const RowShares& shares, bool tanh) {
  tanh ? bias_gelu_forward<T, true>(p, shares) : bias_gelu_forward<T, false>(p, shares);
}
template <typename T>
void bias_gelu_backward(const BiasGeluParams& p, const RowShares& shares, bool tanh) {
  tanh ? bias_gelu_backward<T, true>(p, shares) : bias_gelu_backward<T, false>(p, shares);
}

}  // namespace JAIR_ISA
}  // namespace jair
