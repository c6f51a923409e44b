// Vectors of one instruction set on the compiler's vector extension: loads with conversion, exp, GELU, sigmoid.
// Included once per instruction set (foreach_isa.h); no include guard against the others.
#if !defined(JAIR_SHARED_VEC)
#define JAIR_SHARED_VEC
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace jair {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// The dtype a kernel computes in when its tensors hold T.
template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename T>
using compute_t = typename ComputeOf<T>::type;

}  // namespace jair
#endif

namespace jair {
namespace JAIR_ISA {

template <typename C>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(JAIR_VECTOR)));
  typedef int32_t bits __attribute__((vector_size(JAIR_VECTOR)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(JAIR_VECTOR)));
  typedef int64_t bits __attribute__((vector_size(JAIR_VECTOR)));
};
template <typename C>
using Vec = typename VecOf<C>::type;
template <typename C>
using Bits = typename VecOf<C>::bits;
template <typename C>
constexpr int kLanes = JAIR_VECTOR / sizeof(C);

typedef uint16_t Half16 __attribute__((vector_size(JAIR_VECTOR / 2)));
typedef uint32_t Word32 __attribute__((vector_size(JAIR_VECTOR)));

template <typename C>
inline Vec<C> splat(C value) {
  return value - Vec<C>{};
}

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// --- Loads and stores: memory holds T, vectors hold compute_t<T>.

inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<float> load(const bf16* p) {
  Half16 half;
  std::memcpy(&half, p, sizeof half);
  return bit_cast<Vec<float>>(__builtin_convertvector(half, Word32) << 16);
}
inline Vec<float> load(const f16* p) {
#if JAIR_VECTOR == 64
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif JAIR_VECTOR == 32
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Shift exponent and mantissa into place, then let a multiplication renormalise subnormals and rebias.
  Half16 half;
  std::memcpy(&half, p, sizeof half);
  const Word32 h = __builtin_convertvector(half, Word32);
  const Word32 magnitude = (h & 0x7fff) << 13;
  const Vec<float> scaled = bit_cast<Vec<float>>(magnitude) * 0x1p112f;
  const Word32 special = (Word32)(magnitude >= (Word32{} + 0x0f800000));  // infinity and NaN keep a full exponent
  const Word32 bits = bit_cast<Word32>(scaled) | (special & 0x7f800000) | (h & 0x8000) << 16;
  return bit_cast<Vec<float>>(bits);
#endif
}

inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
inline void store(bf16* p, Vec<float> v) {
  const Word32 bits = bit_cast<Word32>(v);
  const Word32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Word32 nan = (Word32)(v != v);
  const Half16 half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Half16);
  std::memcpy(p, &half, sizeof half);
}
inline void store(f16* p, Vec<float> v) {
#if JAIR_VECTOR == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif JAIR_VECTOR == 32
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const Word32 bits = bit_cast<Word32>(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  // Normal numbers: rebias, round to nearest even. Subnormals: adding 0.5 aligns the mantissa and rounds it.
  const Word32 normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const Word32 subnormal = bit_cast<Word32>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  const Word32 small = (Word32)(magnitude < (Word32{} + (113u << 23)));
  const Word32 large = (Word32)(magnitude >= (Word32{} + 0x477ff000u));  // rounds to infinity
  const Word32 nan = (Word32)(magnitude > (Word32{} + 0x7f800000u));
  Word32 half = (small & subnormal) | (~small & normal);
  half = (large & 0x7c00) | (~large & half);
  half = (nan & 0x7e00) | (~nan & half) | sign;
  const Half16 narrow = __builtin_convertvector(half, Half16);
  std::memcpy(p, &narrow, sizeof narrow);
#endif
}

// The first `count` lanes only, the others 0; nothing beyond them is read or written.
template <typename T>
inline Vec<compute_t<T>> load_part(const T* p, int count) {
  T lanes[kLanes<compute_t<T>>] = {};
  std::memcpy(lanes, p, count * sizeof(T));
  return load(lanes);
}
template <typename T>
inline void store_part(T* p, Vec<compute_t<T>> v, int count) {
  T lanes[kLanes<compute_t<T>>];
  store(lanes, v);
  std::memcpy(p, lanes, count * sizeof(T));
}

// --- Reductions and functions.

template <typename C>
inline C sum(Vec<C> v) {
  C lanes[kLanes<C>];
  store(lanes, v);
  for (int width = kLanes<C> / 2; width; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <typename V>
inline V vmax(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
inline V vmin(V a, V b) {
  return a < b ? a : b;
}

template <typename C>
inline Vec<C> absolute(Vec<C> v) {
  return bit_cast<Vec<C>>(bit_cast<Bits<C>>(v) & std::numeric_limits<decltype(Bits<C>{}[0] + Bits<C>{}[0])>::max());
}

inline Vec<float> reciprocal(Vec<float> v) {
#if JAIR_VECTOR == 64
  // One Newton step on 14 bits: 1.5 ulp, a third of a division's time. The caller keeps v finite.
  const Vec<float> r = (Vec<float>)_mm512_rcp14_ps((__m512)v);
  return r * (2.0f - v * r);
#else
  return 1.0f / v;
#endif
}
inline Vec<double> reciprocal(Vec<double> v) { return 1.0 / v; }

// e^x to 1 ulp on the whole range: 0 below the subnormals, infinity above, NaN kept.
// x = n ln 2 + r with ln 2 in two terms, |r| <= ln(2)/2; e^r by a minimax polynomial of degree 6.
inline Vec<float> exp(Vec<float> x) {
  x = x > 89.0f ? splat(89.0f) : x;
  x = x < -104.0f ? splat(-104.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vec<float> shifted = x * 1.44269504f + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec<float> p = r * 1.38145930e-3f + 8.36870819e-3f;
  p = p * r + 4.16683890e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * (r * r) + r + 1.0f;
#if JAIR_VECTOR == 64
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Bits<float> k = bit_cast<Bits<float>>(shifted) - bit_cast<int32_t>(kRound);
  const Bits<float> half = k >> 1, rest = k - half;  // two steps: 2^k itself may not be a normal number
  return p * bit_cast<Vec<float>>((half + 127) << 23) * bit_cast<Vec<float>>((rest + 127) << 23);
#endif
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

// The standard normal distribution: P(X <= x) and its density.
inline void normal(Vec<float> x, Vec<float>* cdf, Vec<float>* density) {
  // P(X <= -t) = exp(-t^2/2) R(t), t >= 0, with R a polynomial in (t-3)/(t+3), relative error 1e-8.
  Vec<float> t = absolute<float>(x);
  t = t > 14.5f ? splat(14.5f) : t;
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
  const Vec<float> tail = e * r;
  *cdf = x < 0.0f ? tail : 1.0f - tail;
  *density = e * 0.398942280f;
}
inline void normal(Vec<double> x, Vec<double>* cdf, Vec<double>* density) {
  for (int i = 0; i < kLanes<double>; ++i) {
    (*cdf)[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
    (*density)[i] = 0.39894228040143267794 * std::exp(-0.5 * x[i] * x[i]);
  }
}

// GELU and its derivative, tanh form: x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
template <typename C>
inline void gelu_tanh(Vec<C> x, Vec<C>* value, Vec<C>* slope) {
  constexpr C kLinear = 1.5957691216057307117597842397375, kCubic = kLinear * 0.044715;
  // Beyond 15 the value is x or 0; the polynomials must not overflow into infinity * 0.
  Vec<C> c = x > C(15) ? splat(C(15)) : x;
  c = c < C(-15) ? splat(C(-15)) : c;
  const Vec<C> square = c * c;
  Vec<C> rest;
  const Vec<C> s = sigmoid<C>(c * (square * kCubic + kLinear), &rest);
  *value = x > C(0) ? x * s : c * s;
  *slope = s + c * s * rest * (square * (3 * kCubic) + kLinear);
}

// The same, exact form: x P(X <= x).
template <typename C>
inline void gelu_erf(Vec<C> x, Vec<C>* value, Vec<C>* slope) {
  Vec<C> cdf, density;
  normal(x, &cdf, &density);
  const Vec<C> c = x > C(40) ? splat(C(40)) : x < C(-40) ? splat(C(-40)) : x;
  *value = x * cdf;
  *slope = cdf + c * density;
}

template <typename C>
inline void gelu(bool tanh, Vec<C> x, Vec<C>* value, Vec<C>* slope) {
  tanh ? gelu_tanh<C>(x, value, slope) : gelu_erf<C>(x, value, slope);
}

// sum += value, with the rounding of the sums so far carried along in `excess` (Kahan), so that many terms lose no
// digits.
template <typename C>
inline void add_compensated(C* sum, C* excess, Vec<C> value) {
  const Vec<C> before = load(sum), added = value - load(excess), after = before + added;
  store(excess, (after - before) - added);
  store(sum, after);
}

}  // namespace JAIR_ISA
}  // namespace jair
