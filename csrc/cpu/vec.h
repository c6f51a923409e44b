// Vectors of one instruction set on the compiler's vector extension: loads with conversion, reductions, functions.
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
// 16 bits of each lane, to 32 and back. (gcc makes five instructions of __builtin_convertvector for a wide vector.)
inline Word32 widened(const void* p) {
#if JAIR_VECTOR == 64
  return (Word32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif JAIR_VECTOR == 32
  return (Word32)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#else
  Half16 half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, Word32);
#endif
}
inline void store_low(void* p, Word32 v) {
#if JAIR_VECTOR == 64
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)v));
#else
  const Half16 half = __builtin_convertvector(v, Half16);
  std::memcpy(p, &half, sizeof half);
#endif
}

inline Vec<float> load(const bf16* p) { return bit_cast<Vec<float>>(widened(p) << 16); }
inline Vec<float> load(const f16* p) {
#if JAIR_VECTOR == 64
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif JAIR_VECTOR == 32
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Shift exponent and mantissa into place, then let a multiplication renormalise subnormals and rebias.
  const Word32 h = widened(p);
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
#if defined(JAIR_TILES)
  constexpr int kSubnormal = 0x20;  // which the conversion would take for zeros
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kSubnormal) == 0, 1)) {
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &half, sizeof half);
    return;
  }
#endif
  const Word32 bits = bit_cast<Word32>(v);
  const Word32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Word32 nan = (Word32)(v != v);
  store_low(p, (rounded & ~nan) | (nan & 0x7fc0));
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
  store_low(p, half);
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

// --- Reductions.

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

// The smaller, or the larger, of each lane and a limit; NaN kept.
template <typename C>
inline Vec<C> at_most(Vec<C> v, C limit) {
  return v > limit ? splat(limit) : v;
}
template <typename C>
inline Vec<C> at_least(Vec<C> v, C limit) {
  return v < limit ? splat(limit) : v;
}
#if JAIR_VECTOR == 64
template <>
inline Vec<float> at_most(Vec<float> v, float limit) {
  return (Vec<float>)_mm512_min_ps(_mm512_set1_ps(limit), (__m512)v);
}
template <>
inline Vec<float> at_least(Vec<float> v, float limit) {
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(limit), (__m512)v);
}
#endif

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
