// Operands of tile products, and the vectors that make them. Included once per instruction set.
//
// A tile holds 16 rows of 64 bytes. C[16,16] += A[16,32] B[32,16] takes A as 16 rows of 32 bf16 and B as 16 rows of
// 16 pairs: row i holds rows 2i and 2i+1 of the matrix, interleaved. kTile bf16 lie in one tile.
//
// A TileUnit adds products to up to 2 x 2 tiles of C between open() and close(): on tile registers (amx_tiles.h) or on
// vectors (vector_tiles.h).

namespace jair {
namespace JAIR_ISA {

constexpr int64_t kTile = 512, kSumTile = 256;

// Tiles of an operand: tile (i, k) at data + i * outer + k * step, its rows `stride` elements apart.
struct Tiles {
  const uint16_t* data;
  int64_t outer, step, stride;
  Tiles from(int64_t k) const { return {data + k * step, outer, step, stride}; }
};

// Tiles of C: tile (r, v) at data + r * row + v * column, its rows `stride` floats apart.
struct SumTiles {
  float* data;
  int64_t row, column, stride;
};

// Calls f(R, V) as compile-time constants for 1 or 2 of each.
template <typename F>
inline void with_tiles(bool two_rows, bool two_columns, F f) {
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  if (two_rows) {
    two_columns ? f(Two{}, Two{}) : f(Two{}, One{});
  } else {
    two_columns ? f(One{}, Two{}) : f(One{}, One{});
  }
}

// 16 x 16 words: row i becomes column i.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Two vectors of floats as 32 bf16, `low` first.
inline __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
// The same as 16 pairs.
inline __m512i narrow_pairs(__m512 first, __m512 second) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

inline __m512 widen(__m256i bits) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16); }
inline __m512 widen_low(__m512i bits) { return widen(_mm512_castsi512_si256(bits)); }
inline __m512 widen_high(__m512i bits) { return widen(_mm512_extracti64x4_epi64(bits, 1)); }

// The first `count` of 32 bf16, of 16 floats.
inline __mmask32 first_halves(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }
inline __mmask16 first_words(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << (count > 0 ? count : 0)) - 1);
}

// A row of an A tile for each 32 of `count` weights, 0 behind them; row null: all 0.
inline void narrow_weights(const float* row, int64_t count, int64_t tiles, uint16_t* out) {
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t left = row ? count - 32 * t : 0;
    const __m512 low = _mm512_maskz_loadu_ps(first_words(left), row + 32 * t);
    const __m512 high = _mm512_maskz_loadu_ps(first_words(left - 16), row + 32 * t + 16);
    _mm512_storeu_si512(out + t * kTile, narrow(low, high));
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
