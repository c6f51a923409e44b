// GELU and its derivative. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// P(X <= x) of a standard normal X and its density, of e = exp(-x^2/2) and the share P(X <= -|x|) / e.
inline void of_tail(Vec<float> x, Vec<float> e, Vec<float> share, Vec<float>* cdf, Vec<float>* density) {
  const Vec<float> tail = e * share;
  *cdf = x < 0.0f ? tail : 1.0f - tail;
  *density = e * 0.398942280f;
}

// The same of x alone.
inline void normal(Vec<float> x, Vec<float>* cdf, Vec<float>* density) {
  // P(X <= -t) = exp(-t^2/2) R(t), t >= 0, with R a polynomial in (t-3)/(t+3), relative error 1e-8.
  const Vec<float> t = at_most(absolute<float>(x), 14.5f);
  const Vec<float> e = exp(-0.5f * t * t);
  const Vec<float> z = (t - 3.0f) * reciprocal(t + 3.0f);
  Vec<float> r = z * 5.31622791e-5f + 1.15013994e-4f;
  r = r * z - 3.39013204e-4f;
  r = r * z - 9.83288512e-4f;
  r = r * z + 2.90438742e-3f;
  r = r * z + 6.13194238e-3f;
  r = r * z - 4.62132618e-2f;
  r = r * z + 1.23225041e-1f;
  r = r * z - 2.06402615e-1f;
  r = r * z + 1.21513948e-1f;
  of_tail(x, e, r, cdf, density);
}
inline void normal(Vec<double> x, Vec<double>* cdf, Vec<double>* density) {
  for (int i = 0; i < kLanes<double>; ++i) {
    (*cdf)[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
    (*density)[i] = 0.39894228040143267794 * std::exp(-0.5 * x[i] * x[i]);
  }
}

// --- For results in 16 bits and sums of them: relative errors of 1e-6.

// As above, with R a polynomial in 1/(1 + 0.265 t).
inline void short_normal(Vec<float> x, Vec<float>* cdf, Vec<float>* density) {
  const Vec<float> t = at_most(absolute<float>(x), 14.5f);
  const Vec<float> e = short_exp2(t * t * -0.721347520f);
  const Vec<float> w = reciprocal(t * 0.265f + 1.0f);
  Vec<float> r = w * -6.78357258e-2f + 1.95446700e-1f;
  r = r * w - 6.66110143e-2f;
  r = r * w + 1.42674789e-1f;
  r = r * w + 8.28751922e-2f;
  r = r * w + 1.07851043e-1f;
  r = r * w + 1.05598710e-1f;
  of_tail(x, e, r * w, cdf, density);
}

// The logistic function and 1 less it, |x| <= 87.
inline Vec<float> short_sigmoid(Vec<float> x, Vec<float>* rest) {
  const Vec<float> e = short_exp2(x * -1.44269504f), s = reciprocal(e + 1.0f);
  *rest = e * s;
  return s;
}

// --- GELU, of values that are held as T.

// Tanh form: x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
template <typename T, typename C = compute_t<T>>
inline void gelu_tanh(Vec<C> x, Vec<C>* value, Vec<C>* slope) {
  constexpr C kLinear = 1.5957691216057307117597842397375, kCubic = kLinear * 0.044715;
  // Beyond the limit the value is x or 0; the polynomials must not overflow into infinity * 0.
  constexpr C kLimit = kShort<T> ? 9.9 : 15;
  const Vec<C> c = at_least(at_most(x, kLimit), -kLimit);
  const Vec<C> square = c * c, twice_u = c * (square * kCubic + kLinear);
  Vec<C> s, rest;
  if constexpr (kShort<T>) {
    s = short_sigmoid(twice_u, &rest);
  } else {
    s = sigmoid<C>(twice_u, &rest);
  }
  *value = x > C(0) ? x * s : c * s;
  *slope = s + c * s * rest * (square * (3 * kCubic) + kLinear);
}

// The same, exact form: x P(X <= x).
template <typename T, typename C = compute_t<T>>
inline void gelu_erf(Vec<C> x, Vec<C>* value, Vec<C>* slope) {
  Vec<C> cdf, density;
  if constexpr (kShort<T>) {
    short_normal(x, &cdf, &density);
  } else {
    normal(x, &cdf, &density);
  }
  *value = x * cdf;
  *slope = cdf + at_least(at_most(x, C(40)), C(-40)) * density;
}

template <typename T, typename C = compute_t<T>>
inline void gelu(bool tanh, Vec<C> x, Vec<C>* value, Vec<C>* slope) {
  tanh ? gelu_tanh<T>(x, value, slope) : gelu_erf<T>(x, value, slope);
}

}  // namespace JAIR_ISA
}  // namespace jair
