// Rows of bfloat16 for the tile engine: the layout of its sums, statistics, copies. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// Sums [m,dp] as tiles [m / 16][dp / 16] of 16 x 16 floats, 1 KB each in a row. The columns of every 32 stand in the
// order that interleave() leaves them in: columns 8l + j in the first tile, 8l + 4 + j in the second, l, j < 4.
struct TileLayout {
  static int64_t size(int64_t m, int64_t dp) { return (m + 15) / 16 * 16 * dp; }
  template <typename F>
  static void each(float* sums, int64_t dp, int64_t row, F f) {
    float* p = sums + row / 16 * 16 * dp + row % 16 * 16;
    for (int64_t d = 0; d < dp; d += 16) _mm512_storeu_ps(p + d * 16, f(_mm512_loadu_ps(p + d * 16)));
  }
  static void scale(float* sums, int64_t dp, int64_t row, float factor) {
    each(sums, dp, row, [factor](__m512 v) { return _mm512_mul_ps(v, _mm512_set1_ps(factor)); });
  }
  static void add(float* sums, int64_t dp, int64_t row, float value) {
    each(sums, dp, row, [value](__m512 v) { return _mm512_add_ps(v, _mm512_set1_ps(value)); });
  }
  static void read(const float* sums, int64_t dp, int64_t row, int64_t first, int64_t count, float* out) {
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const float* p = sums + row / 16 * 16 * dp + row % 16 * 16 + first * 16;
    for (int64_t d = 0; d < count; d += 32) {
      const __m512 low = _mm512_loadu_ps(p + d * 16), high = _mm512_loadu_ps(p + d * 16 + kSumTile);
      _mm512_storeu_ps(out + d, _mm512_permutex2var_ps(low, front, high));
      _mm512_storeu_ps(out + d + 16, _mm512_permutex2var_ps(low, back, high));
    }
  }
};

inline float centred_squares(const bf16* x, int64_t width, float mean) {
  const __m512 centre = _mm512_set1_ps(mean);
  __m512 squares = _mm512_setzero_ps();
  for (int64_t d = 0; d < width; d += 32) {
    const __mmask32 valid = first_halves(width - d);
    const __m512i bits = _mm512_maskz_loadu_epi16(valid, x + d);
    const __m512 low = _mm512_maskz_sub_ps(static_cast<__mmask16>(valid), widen_low(bits), centre);
    const __m512 high = _mm512_maskz_sub_ps(static_cast<__mmask16>(valid >> 16), widen_high(bits), centre);
    squares = _mm512_fmadd_ps(low, low, _mm512_fmadd_ps(high, high, squares));
  }
  return _mm512_reduce_add_ps(squares);
}

// Mean and 1/std by sum and sum of squares, and by a second pass where those lose digits.
inline void row_statistics(const bf16* x, int64_t width, float eps, float* mean, float* rstd) {
  const __m512i odd = _mm512_set1_epi32(0xffff0000);
  __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0, square0 = sum0, square1 = sum0;
  for (int64_t d = 0; d < width; d += 32) {
    const __m512i bits = _mm512_maskz_loadu_epi16(first_halves(width - d), x + d);
    const __m512 a = (__m512)_mm512_slli_epi32(bits, 16), b = (__m512)_mm512_and_si512(bits, odd);
    sum0 = _mm512_add_ps(sum0, a), sum1 = _mm512_add_ps(sum1, b);
    square0 = _mm512_fmadd_ps(a, a, square0), square1 = _mm512_fmadd_ps(b, b, square1);
  }
  const float m = _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)) / width;
  float variance = _mm512_reduce_add_ps(_mm512_add_ps(square0, square1)) / width - m * m;
  if (!(variance > m * m / 64)) variance = centred_squares(x, width, m) / width;  // digits were lost
  *mean = m;
  *rstd = width == 1 ? 0.0f : 1.0f / std::sqrt(variance + eps);  // one column is its mean
}

// A row less its shift, zeros behind its columns; x null: all zeros.
inline void copy_row(const bf16* x, int64_t width, float shift, uint16_t* out) {
  const __m512 far = _mm512_set1_ps(shift);
  for (int64_t d = 0; d < (width + 31) / 32 * 32; d += 32) {
    const __mmask32 valid = x ? first_halves(width - d) : 0;
    __m512i bits = _mm512_maskz_loadu_epi16(valid, x + d);
    if (shift != 0.0f) {
      bits = narrow(_mm512_sub_ps(widen_low(bits), far), _mm512_sub_ps(widen_high(bits), far));
      bits = _mm512_maskz_mov_epi16(valid, bits);
    }
    _mm512_storeu_si512(out + d, bits);
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
