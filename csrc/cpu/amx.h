// Tile registers (AMX): configuration and the small kernels that all products are made of.
//
// A tile holds 16 rows of 64 bytes. C[16,16] += A[16,32] B[32,16] takes A as 16 rows of 32 bf16 and B as 16 rows of
// 16 pairs: row i holds rows 2i and 2i+1 of the matrix, interleaved. kTile bf16 lie in one tile.

namespace jair {
namespace JAIR_ISA {

constexpr int64_t kTile = 512, kSumTile = 256;

// All eight tiles as 16 rows of 64 bytes, for the life of the object, on this thread.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    // The intrinsic claims to read 8 bytes, so that the compiler may drop the rest of the structure.
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Tiles of an operand: tile (i, k) at data + i * outer + k * step, its rows `stride` elements apart.
struct Tiles {
  const uint16_t* data;
  int64_t outer, step, stride;
};

// C tiles 0 = (0,0), 1 = (0,1), 2 = (1,0), 3 = (1,1); A tiles 4, 5; B tiles 6, 7. R x V of them are in use.
template <int R, int V>
inline void tiles_zero() {
  _tile_zero(0);
  if constexpr (V == 2) _tile_zero(1);
  if constexpr (R == 2) _tile_zero(2);
  if constexpr (R == 2 && V == 2) _tile_zero(3);
}

// C += A B over `depth` tiles; i counts row tiles of A and column tiles of B.
template <int R, int V>
inline void tiles_multiply(int64_t depth, Tiles a, Tiles b, Ahead* ahead = nullptr) {
  for (int64_t k = 0; k < depth; ++k) {
    if (ahead) ahead->step();
    _tile_loadd(4, a.data + k * a.step, a.stride * 2);
    _tile_loadd(6, b.data + k * b.step, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (V == 2) {
      _tile_loadd(7, b.data + b.outer + k * b.step, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a.data + a.outer + k * a.step, a.stride * 2);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (R == 2 && V == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

// C tiles to or from memory: tile (r, v) at c + r * row + v * column, its rows `stride` floats apart.
template <int R, int V>
inline void tiles_store(float* c, int64_t row, int64_t column, int64_t stride) {
  _tile_stored(0, c, stride * 4);
  if constexpr (V == 2) _tile_stored(1, c + column, stride * 4);
  if constexpr (R == 2) _tile_stored(2, c + row, stride * 4);
  if constexpr (R == 2 && V == 2) _tile_stored(3, c + row + column, stride * 4);
}

template <int R, int V>
inline void tiles_load(const float* c, int64_t row, int64_t column, int64_t stride) {
  _tile_loadd(0, c, stride * 4);
  if constexpr (V == 2) _tile_loadd(1, c + column, stride * 4);
  if constexpr (R == 2) _tile_loadd(2, c + row, stride * 4);
  if constexpr (R == 2 && V == 2) _tile_loadd(3, c + row + column, stride * 4);
}

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

inline __m512 widen(__m256i bits) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16); }
inline __m512 widen_low(__m512i bits) { return widen(_mm512_castsi512_si256(bits)); }
inline __m512 widen_high(__m512i bits) { return widen(_mm512_extracti64x4_epi64(bits, 1)); }

// The first `count` of 32 bf16, of 16 floats.
inline __mmask32 first_halves(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }
inline __mmask16 first_words(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << (count > 0 ? count : 0)) - 1);
}

// A tile of W^T: 16 columns of 32 rows of weights, rows from `count` on being 0.
inline void transpose_weights(const float* weights, int64_t ldw, int64_t count, uint16_t* out) {
  __m512i half[2][16];
  for (int64_t n = 0; n < 32; ++n) {
    half[n / 16][n % 16] = n < count ? _mm512_loadu_si512(weights + n * ldw) : _mm512_setzero_si512();
  }
  transpose16(half[0]);
  transpose16(half[1]);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, narrow((__m512)half[0][i], (__m512)half[1][i]));
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
