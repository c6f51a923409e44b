// z = base + tanh(gate) update and y = LN(z) over rows, and the backward of LN. Included once per
// instruction set.
#include "cpu/vec.h"
#include "cpu/exp.h"
#include "cpu/pool.h"
#include "cpu/parameter_rows.h"
#include "cpu/rows.h"

namespace jair {
namespace JAIR_ISA {

// tanh to 2 ulp, also of the small gates that training begins with.
inline Vec<float> gate_factor(Vec<float> gate) {
  const Vec<float> square = gate * gate;
  Vec<float> p = square * -5.70498873e-3f + 2.06390888e-2f;
  p = p * square - 5.37397155e-2f;
  p = p * square + 1.33314422e-1f;
  p = p * square - 3.33332819e-1f;
  const Vec<float> size = absolute<float>(gate);
  const Vec<float> far = 1.0f - 2.0f * reciprocal(exp(2.0f * (size > 10.0f ? splat(10.0f) : size)) + 1.0f);
  return size < 0.625f ? gate + gate * square * p : gate < 0.0f ? -far : far;
}
inline Vec<double> gate_factor(Vec<double> gate) {
  for (int i = 0; i < kLanes<double>; ++i) gate[i] = std::tanh(gate[i]);
  return gate;
}

template <typename T>
class AddNorm {
  using C = compute_t<T>;

 public:
  AddNorm(const AddNormParams& p, Scratch::Frame& frame)
      : p_(p),
        x_weight_(whole_parameter<C>(p.x_weight, p.width, C(1), frame)),
        x_bias_(whole_parameter<C>(p.x_bias, p.width, C(0), frame)),
        factor_(make_factor(p, frame)),
        weight_(whole_parameter<C>(p.weight, p.width, C(1), frame)),
        bias_(whole_parameter<C>(p.bias, p.width, C(0), frame)) {}

  void run(int64_t first, int64_t last) const {
    if (p_.x_stats) {
      p_.update ? run_as<true, true>(first, last) : run_as<true, false>(first, last);
    } else {
      p_.update ? run_as<false, true>(first, last) : run_as<false, false>(first, last);
    }
  }

 private:
  static const C* make_factor(const AddNormParams& p, Scratch::Frame& frame) {
    C* factor = whole_parameter<C>({nullptr, Dtype::f32}, p.width, C(1), frame);
    if (!p.gate.data) return factor;
    read_parameter(p.gate, 0, p.gate_size, factor);
    if (p.gate_size == 1) std::fill(factor, factor + padded<C>(p.width), C(factor[0]));
    for (int64_t d = 0; d < p.width; d += kLanes<C>) store(factor + d, gate_factor(load(factor + d)));
    return factor;
  }

  // z of each group of rows is still in the cache when its statistics and y are made.
  template <bool kBaseNormed, bool kUpdated>
  void run_as(int64_t first, int64_t last) const {
    over_rows(first, last, [&](auto group, int64_t row) {
      const T* x = static_cast<const T*>(p_.x) + row * p_.x_row;
      if constexpr (kBaseNormed || kUpdated) {
        T* z = static_cast<T*>(p_.z) + row * p_.width;
        combine<kBaseNormed, kUpdated>(group, row, x, z);
        if (p_.norm) normalise(group, row, z, p_.width);
      } else if (p_.norm) {
        normalise(group, row, x, p_.x_row);
      }
    });
  }

  template <bool kBaseNormed, bool kUpdated, int N>
  void combine(RowGroup<N>, int64_t row, const T* x, T* z) const {
    const T* update = kUpdated ? static_cast<const T*>(p_.update) + row * p_.update_row : nullptr;
    const C* stats = kBaseNormed ? static_cast<const C*>(p_.x_stats) + 2 * row : nullptr;
    over_columns<C>(p_.width, [&](int64_t d, auto vector) {
      const Vec<C> weight = load(x_weight_ + d), bias = load(x_bias_ + d);
      const Vec<C> factor = load(factor_ + d);
      for (int i = 0; i < N; ++i) {
        Vec<C> v = vector.get(x + i * p_.x_row + d);
        if constexpr (kBaseNormed) v = (v - stats[2 * i]) * stats[2 * i + 1] * weight + bias;
        if constexpr (kUpdated) v += factor * vector.get(update + i * p_.update_row + d);
        vector.put(z + i * p_.width + d, v);
      }
    });
  }

  // The mean by way of the first element: the rounding of a plain sum would leave constant rows with a spread of their
  // own. What that mean still lacks, where the first element lies far from it, shows in the next pass.
  template <int N>
  void normalise(RowGroup<N>, int64_t row, const T* z, int64_t stride) const {
    C *stats = static_cast<C*>(p_.stats) + 2 * row, mean[N], rstd[N];
    Vec<C> total[N] = {}, rest[N] = {}, squares[N] = {};
    for (int i = 0; i < N; ++i) mean[i] = load_part(z + i * stride, 1)[0];
    over_columns<C>(p_.width, [&](int64_t d, auto vector) {
      for (int i = 0; i < N; ++i) total[i] += vector.valid(vector.get(z + i * stride + d) - mean[i]);
    });
    for (int i = 0; i < N; ++i) mean[i] += sum<C>(total[i]) / p_.width;
    over_columns<C>(p_.width, [&](int64_t d, auto vector) {
      for (int i = 0; i < N; ++i) {
        const Vec<C> centred = vector.valid(vector.get(z + i * stride + d) - mean[i]);
        rest[i] += centred;
        squares[i] += centred * centred;
      }
    });
    for (int i = 0; i < N; ++i) {
      mean[i] += sum<C>(rest[i]) / p_.width;
      rstd[i] = C(1) / std::sqrt(sum<C>(squares[i]) / p_.width + static_cast<C>(p_.eps));
      stats[2 * i] = mean[i], stats[2 * i + 1] = rstd[i];
    }
    T* y = static_cast<T*>(p_.y) + row * p_.width;
    over_columns<C>(p_.width, [&](int64_t d, auto vector) {
      const Vec<C> weight = load(weight_ + d), bias = load(bias_ + d);
      for (int i = 0; i < N; ++i) {
        const Vec<C> normal = (vector.get(z + i * stride + d) - mean[i]) * rstd[i];
        vector.put(y + i * p_.width + d, normal * weight + bias);
      }
    });
  }

  const AddNormParams& p_;
  const C *x_weight_, *x_bias_, *factor_, *weight_, *bias_;
};

// dx = rstd (g - mean of g - zhat mean of g zhat) + dz, g = dy weight, zhat = (z - mean) rstd.
template <typename T>
class AddNormGrad {
  using C = compute_t<T>;

 public:
  AddNormGrad(const AddNormGradParams& p, Scratch::Frame& frame)
      : p_(p), dp_(padded<C>(p.width)), weight_(whole_parameter<C>(p.weight, p.width, C(1), frame)) {}

  // Adds to sums, each [padded width], those of dy zhat and behind them those of dy.
  void run(int64_t first, int64_t last, C* sums) const {
    Scratch::Frame frame;
    C* g = frame.take<C>(kGroupRows * dp_);
    over_rows(first, last, [&](auto group, int64_t row) {
      p_.dz ? run_group<true>(group, row, g, sums) : run_group<false>(group, row, g, sums);
    });
  }

 private:
  // g goes through memory: the product would else merge with the difference from its own mean, of which a row of one
  // column, or one that is constant, has to leave exactly nothing.
  template <bool kAdded, int N>
  void run_group(RowGroup<N>, int64_t row, C* g, C* sums) const {
    const T* dy = static_cast<const T*>(p_.dy) + row * p_.dy_row;
    const T* z = static_cast<const T*>(p_.z) + row * p_.z_row;
    const T* dz = kAdded ? static_cast<const T*>(p_.dz) + row * p_.dz_row : nullptr;
    const C* stats = static_cast<const C*>(p_.stats) + 2 * row;
    const auto normal = [&](int i, int64_t d, auto vector) {
      return (vector.get(z + i * p_.z_row + d) - stats[2 * i]) * stats[2 * i + 1];
    };
    Vec<C> constant[N] = {}, linear[N] = {};
    over_columns<C>(p_.width, [&](int64_t d, auto vector) {
      const Vec<C> weight = load(weight_ + d);
      Vec<C> dweight{}, dbias{};
      for (int i = 0; i < N; ++i) {
        const Vec<C> gradient = vector.get(dy + i * p_.dy_row + d), zhat = normal(i, d, vector);
        const Vec<C> weighted = gradient * weight;
        store(g + i * dp_ + d, weighted);
        dweight += gradient * zhat, dbias += gradient;
        linear[i] += weighted * zhat, constant[i] += weighted;
      }
      store(sums + d, load(sums + d) + dweight);
      store(sums + dp_ + d, load(sums + dp_ + d) + dbias);
    });
    C constants[N], factors[N];
    for (int i = 0; i < N; ++i) {
      constants[i] = sum<C>(constant[i]) / p_.width, factors[i] = sum<C>(linear[i]) / p_.width;
    }
    T* dx = static_cast<T*>(p_.dx) + row * p_.width;
    over_columns<C>(p_.width, [&](int64_t d, auto vector) {
      for (int i = 0; i < N; ++i) {
        const Vec<C> centred = load(g + i * dp_ + d) - constants[i];
        Vec<C> v = (centred - normal(i, d, vector) * factors[i]) * stats[2 * i + 1];
        if constexpr (kAdded) v += vector.get(dz + i * p_.dz_row + d);
        vector.put(dx + i * p_.width + d, v);
      }
    });
  }

  const AddNormGradParams& p_;
  const int64_t dp_;
  const C* weight_;
};

template <typename T>
void add_norm_forward(const AddNormParams& p, const RowShares& shares) {
  Scratch::Frame frame;
  const AddNorm<T> kernel(p, frame);
  parallel(shares.count(), [&](int64_t i) { kernel.run(shares.begin(i), shares.end(i)); });
}

template <typename T>
void add_norm_backward(const AddNormGradParams& p, const RowShares& shares) {
  using C = compute_t<T>;
  const int64_t dp = padded<C>(p.width);
  Scratch::Frame frame;
  const AddNormGrad<T> kernel(p, frame);
  const RowSums<C> sums(2 * dp, shares.count(), frame);
  parallel(shares.count(), [&](int64_t i) {
    sums.collect(i, shares.begin(i), shares.end(i),
                 [&](int64_t first, int64_t last, C* block) { kernel.run(first, last, block); });
  });
  const C* total = sums.join();
  write_gradient(p.weight, p.dweight, 0, p.width, total);
  write_gradient(p.bias, p.dbias, 0, p.width, total + dp);
}

}  // namespace JAIR_ISA
}  // namespace jair
