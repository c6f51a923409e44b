// Exponentials and the logistic function. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer n in the low bits

// p 2^n, `shifted` = n + kRound.
inline Vec<float> times_power(Vec<float> p, Vec<float> shifted) {
#if JAIR_VECTOR == 64
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)(shifted - kRound));
#else
  const Bits<float> n = bit_cast<Bits<float>>(shifted) - bit_cast<int32_t>(kRound);
  const Bits<float> half = n >> 1, rest = n - half;  // two steps: 2^n itself may not be a normal number
  return p * bit_cast<Vec<float>>((half + 127) << 23) * bit_cast<Vec<float>>((rest + 127) << 23);
#endif
}

// e^x to 1 ulp on the whole range: 0 below the subnormals, infinity above, NaN kept.
// x = n ln 2 + r with ln 2 in two terms, |r| <= ln(2)/2; e^r by a minimax polynomial of degree 6.
inline Vec<float> exp(Vec<float> x) {
  x = at_least(at_most(x, 89.0f), -104.0f);
  const Vec<float> shifted = x * 1.44269504f + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec<float> p = r * 1.38145930e-3f + 8.36870819e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * (r * r) + r + 1.0f;
  return times_power(p, shifted);
}
inline Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// The logistic function; *rest = 1 less it. The difference has the rounding of s alone, which s (1 - s) forgives near
// 1/2; close to 1 it cancels, and e s keeps the digits.
template <typename C>
inline Vec<C> sigmoid(Vec<C> x, Vec<C>* rest) {
  constexpr C kLargest = sizeof(C) == 4 ? 87 : 700;
  const Vec<C> e = exp(-x > kLargest ? splat(kLargest) : -x);
  const Vec<C> s = -x > kLargest ? Vec<C>{} : reciprocal(C(1) + e);  // from there on too small for a normal number
  *rest = s < C(0.95) ? C(1) - s : e * s;
  return s;
}
template <typename C>
inline Vec<C> sigmoid(Vec<C> x) {
  Vec<C> rest;
  return sigmoid<C>(x, &rest);
}

// --- For results in 16 bits and sums of them: relative errors of 1e-6.

template <typename T>
constexpr bool kShort = sizeof(T) == 2;

// 2^x, -250 <= x <= 126.
inline Vec<float> short_exp2(Vec<float> x) {
  const Vec<float> shifted = x + kRound, f = x - (shifted - kRound);
  Vec<float> p = f * 1.33275078e-3f + 9.67751071e-3f;
  p = p * f + 5.55053055e-2f;
  p = p * f + 2.40220755e-1f;
  p = p * f + 6.93147123e-1f;
  p = p * f + 1.0f;
  return times_power(p, shifted);
}

// e^x as weight of a softmax over values held as T, x <= 0 but for rounding. In 16 bits the relative error is 5e-7 down
// to e^-10 and grows to 4e-6 at e^-80, as the product with log2(e) is rounded.
template <typename T, typename C = compute_t<T>>
inline Vec<C> exp_of_score(Vec<C> x) {
  if constexpr (kShort<T>) {
    return short_exp2(at_least(x, -120.0f) * 1.44269504f);
  } else {
    return exp(x);
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
