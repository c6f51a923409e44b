// The products of vector_engine.h for bfloat16 on tile registers.

namespace jair {
namespace JAIR_ISA {

class AmxEngine {
 public:
  using C = float;
  static constexpr int64_t kStrip = 32;

  static int64_t pad_width(int64_t width) { return (width + 31) / 32 * 32; }
  static int64_t pad_count(int64_t count) { return padded<float>(count); }
  static int64_t block_rows(int64_t width) {
    constexpr int64_t kBudget = 512 << 10;  // bytes: within a second-level cache beside the weights
    return std::max(kStrip, std::min<int64_t>(kBudget / (2 * pad_width(width)) / kStrip * kStrip, 512));
  }
  static Vec<C> rounded(Vec<C> w) { return (Vec<C>)widen((__m256i)_mm512_cvtneps_pbh((__m512)w)); }
  static C rounded_weight(C w) { return rounded(splat(w))[0]; }

  explicit AmxEngine(Scratch::Frame&) {}

  // --- X: tiles [row / 16][column / 32], so that every tile is 1 KB in a row

  struct Rows {
    uint16_t* data;
    float* shift;
    int64_t dp;
    uint16_t* at(int64_t row) const { return data + row / 16 * 16 * dp + row % 16 * 32; }
  };
  Rows make_rows(Scratch::Frame& frame, int64_t width, int64_t capacity) const {
    const int64_t dp = pad_width(width);
    return {frame.take<uint16_t>(capacity * dp), frame.take<float>(capacity), dp};
  }

  // Sum and sum of squares ride on the copy. Rows far from zero are held less a bf16 value near their mean: the weight
  // gradients round what multiplies x, and would multiply that rounding by the mean.
  void load_centred(Rows& rows, int64_t n, const bf16* x, int64_t width, float eps, float* mean, float* rstd) const {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    copy(rows, n, x, width, [&](__m512i bits) {
      total = _mm512_dpbf16_ps(total, (__m512bh)bits, ones);
      squares = _mm512_dpbf16_ps(squares, (__m512bh)bits, (__m512bh)bits);
    });
    const float m = _mm512_reduce_add_ps(total) / width;
    float variance = _mm512_reduce_add_ps(squares) / width - m * m;
    if (!(variance > m * m / 64)) variance = centred_squares(rows, n, width, m) / width;  // digits were lost
    *mean = m;
    *rstd = 1.0f / std::sqrt(variance + eps);
    shift_far(rows, n, width, m, *rstd);
  }
  void load_known(Rows& rows, int64_t n, const bf16* x, int64_t width, float mean, float rstd) const {
    load_plain(rows, n, x, width);
    shift_far(rows, n, width, mean, rstd);
  }
  void load_plain(Rows& rows, int64_t n, const bf16* x, int64_t width) const {
    copy(rows, n, x, width, [](__m512i) {});
    rows.shift[n] = 0;
  }
  void load_zero(Rows& rows, int64_t n) const {
    for (int64_t d = 0; d < rows.dp; d += 32) _mm512_storeu_si512(rows.at(n) + d * 16, _mm512_setzero_si512());
    rows.shift[n] = 0;
  }
  // Rows up to a whole strip take part in products: they must hold numbers.
  void end_rows(Rows& rows, int64_t count) const {
    for (int64_t n = count; n % kStrip; ++n) load_zero(rows, n);
  }

  // --- The second operands

  struct Columns {
    uint16_t* data;  // tiles [np / 16][dp / 32]
    int64_t dp, np;
  };
  Columns make_columns(Scratch::Frame& frame, int64_t width, int64_t count) const {
    const int64_t dp = pad_width(width), np = pad_count(count);
    return {frame.take<uint16_t>(dp * np), dp, np};
  }
  static void set_columns(Columns& columns, const float* rows, int64_t count) {
    for (int64_t n0 = 0; n0 < columns.np; n0 += 16) {
      for (int64_t d = 0; d < columns.dp; d += 32) {
        __m512i tile[16];
        for (int64_t n = 0; n < 16; ++n) {
          const float* row = rows + (n0 + n) * columns.dp + d;
          tile[n] = n0 + n < count ? narrow(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16)) : _mm512_setzero_si512();
        }
        transpose16(tile);
        uint16_t* out = columns.data + n0 * columns.dp + d * 16;
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, tile[i]);
      }
    }
  }

  struct Spread {
    uint16_t* data;  // tiles [dp / 16][depth / 32]
    int64_t count, depth, dp;
  };
  Spread make_spread(Scratch::Frame& frame, int64_t width, int64_t count) const {
    const int64_t depth = pad_width(count);
    return {frame.take<uint16_t>(pad_width(width) * depth), count, depth, pad_width(width)};
  }
  static void set_spread(Spread& spread, const float* rows) {
    const int64_t dp = spread.dp;
    for (int64_t d = 0; d < dp; d += 16) {
      for (int64_t i = 0; i < spread.depth; i += 2) {
        __m512 a = _mm512_setzero_ps(), b = a;
        if (i < spread.count) a = _mm512_loadu_ps(rows + i * dp + d);
        if (i + 1 < spread.count) b = _mm512_loadu_ps(rows + (i + 1) * dp + d);
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b));
        _mm512_storeu_si512(spread.data + d * spread.depth + i * 16, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }

  // --- The products

  void times(const Rows& rows, int64_t first, int64_t count, const Columns& b, float* out) const {
    const int64_t depth = b.dp / 32;
    for (int64_t r = 0; r < count; r += 32) {
      const uint16_t* a = rows.at(first + r);
      for (int64_t c = 0; c < b.np; c += 32) {
        const int64_t valid = std::min<int64_t>(32, count - r);
        with_tiles(valid > 16, b.np - c > 16, [&](auto R, auto V) {
          tiles_zero<R, V>();
          tiles_multiply<R, V>(depth, a, 16 * b.dp, kTile, b.data + c * b.dp, 16 * b.dp, kTile);
          float* target = out + r * b.np + c;
          if (valid == R * 16) return tiles_store<R, V>(target, b.np);
          alignas(64) float whole[32 * 32];
          tiles_store<R, V>(whole, 32);
          for (int64_t n = 0; n < valid; ++n) std::memcpy(target + n * b.np, whole + n * 32, V * 64);
        });
      }
    }
  }

  // The pairs of rows that a B tile wants come from unpacking rows 2i and 2i+1, which leaves the columns of every 32 in
  // another order: columns 8l + j in the first tile, 8l + 4 + j in the second, l, j < 4. order() undoes it, once.
  void gather(const Rows& rows, int64_t count, const float* weights, int64_t ldw, int64_t m, float* acc) {
    const int64_t steps = (count + 31) / 32, tiles = (m + 15) / 16, dp = rows.dp;
    Scratch::Frame frame;
    uint16_t *left = frame.take<uint16_t>(tiles * steps * kTile), *right = frame.take<uint16_t>(2 * steps * kTile);
    for (int64_t t = 0; t < tiles; ++t) {
      for (int64_t s = 0; s < steps; ++s) transposed_weights(weights + 32 * s * ldw + 16 * t, ldw, count - 32 * s, left + (t * steps + s) * kTile);
    }
    for (int64_t d = 0; d < dp; d += 32) {
      for (int64_t s = 0; s < steps; ++s) interleave(rows.at(32 * s) + 16 * d, dp, right + s * kTile, right + (steps + s) * kTile);
      for (int64_t t = 0; t < tiles; t += 2) {
        const int64_t valid = std::min<int64_t>(32, m - 16 * t);
        float* target = acc + 16 * t * dp + d;
        with_tiles(valid > 16, true, [&](auto R, auto V) {
          const uint16_t* a = left + t * steps * kTile;
          if (valid == R * 16) {
            tiles_load<R, V>(target, dp);
            tiles_multiply<R, V>(steps, a, steps * kTile, kTile, right, steps * kTile, kTile);
            return tiles_store<R, V>(target, dp);
          }
          alignas(64) float whole[32 * 32];
          for (int64_t i = 0; i < valid; ++i) std::memcpy(whole + i * 32, target + i * dp, 128);
          tiles_load<R, V>(whole, 32);
          tiles_multiply<R, V>(steps, a, steps * kTile, kTile, right, steps * kTile, kTile);
          tiles_store<R, V>(whole, 32);
          for (int64_t i = 0; i < valid; ++i) std::memcpy(target + i * dp, whole + i * 32, 128);
        });
      }
    }
  }
  static void order(float* row, int64_t count) {
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int64_t d = 0; d < count; d += 32) {
      const __m512 low = _mm512_loadu_ps(row + d), high = _mm512_loadu_ps(row + d + 16);
      _mm512_storeu_ps(row + d, _mm512_permutex2var_ps(low, front, high));
      _mm512_storeu_ps(row + d + 16, _mm512_permutex2var_ps(low, back, high));
    }
  }

  struct Term {
    const float* weights;
    int64_t ldw;
    const Spread* s;
  };
  struct Correction {
    const Rows* rows;
    const float *constant, *linear;
  };
  void spread(int64_t first, int64_t count, int64_t width, Term a, Term b, Correction less, bf16* out, int64_t ldo) const {
    const int64_t depth_a = a.s->depth / 32, depth_b = b.s ? b.s->depth / 32 : 0, depth = depth_a + depth_b;
    Scratch::Frame frame;
    uint16_t* left = frame.take<uint16_t>(2 * depth * kTile);
    for (int64_t n = 0; n < 32; ++n) {
      uint16_t* row = left + n / 16 * depth * kTile + n % 16 * 32;
      narrow_weights(n < count ? a.weights + n * a.ldw : nullptr, a.s->count, depth_a, row);
      if (b.s) narrow_weights(n < count ? b.weights + n * b.ldw : nullptr, b.s->count, depth_b, row + depth_a * kTile);
    }
    alignas(64) float panel[32 * 32];
    for (int64_t d = 0; d < pad_width(width); d += 32) {
      with_tiles(count > 16, true, [&](auto R, auto V) {
        tiles_zero<R, V>();
        tiles_multiply<R, V>(depth_a, left, depth * kTile, kTile, a.s->data + d * a.s->depth, 16 * a.s->depth, kTile);
        if (b.s) {
          tiles_multiply<R, V>(depth_b, left + depth_a * kTile, depth * kTile, kTile, b.s->data + d * b.s->depth,
                               16 * b.s->depth, kTile);
        }
        tiles_store<R, V>(panel, 32);
      });
      const __mmask32 valid = width - d >= 32 ? ~0u : (1u << (width - d)) - 1;
      for (int64_t n = 0; n < count; ++n) {
        __m512 low = _mm512_load_ps(panel + n * 32), high = _mm512_load_ps(panel + n * 32 + 16);
        if (less.rows) {
          const __m512i x = _mm512_loadu_si512(less.rows->at(first + n) + 16 * d);
          const __m512 constant = _mm512_set1_ps(less.constant[n]), linear = _mm512_set1_ps(less.linear[n]);
          low = _mm512_sub_ps(low, _mm512_fmadd_ps(linear, widen_low(x), constant));
          high = _mm512_sub_ps(high, _mm512_fmadd_ps(linear, widen_high(x), constant));
        }
        _mm512_mask_storeu_epi16(out + n * ldo + d, valid, narrow(low, high));
      }
    }
  }

 private:
  // Row n of the tiles from x, the padding 0; each vector of 32 is shown to `visit`.
  template <typename F>
  void copy(Rows& rows, int64_t n, const bf16* x, int64_t width, F visit) const {
    uint16_t* out = rows.at(n);
    int64_t d = 0;
    for (; d + 32 <= width; d += 32) {
      const __m512i bits = _mm512_loadu_si512(x + d);
      visit(bits);
      _mm512_storeu_si512(out + d * 16, bits);
    }
    if (d < width) {
      const __m512i bits = _mm512_maskz_loadu_epi16((1u << (width - d)) - 1, x + d);
      visit(bits);
      _mm512_storeu_si512(out + d * 16, bits);
    }
  }

  float centred_squares(const Rows& rows, int64_t n, int64_t width, float mean) const {
    const __m512 centre = _mm512_set1_ps(mean);
    __m512 squares = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += 32) {
      const __m512i bits = _mm512_loadu_si512(rows.at(n) + d * 16);
      const uint32_t valid = width - d >= 32 ? ~0u : (1u << (width - d)) - 1;
      const __m512 low = _mm512_maskz_sub_ps(valid & 0xffff, widen_low(bits), centre);
      const __m512 high = _mm512_maskz_sub_ps(valid >> 16, widen_high(bits), centre);
      squares = _mm512_fmadd_ps(low, low, _mm512_fmadd_ps(high, high, squares));
    }
    return _mm512_reduce_add_ps(squares);
  }

  void shift_far(Rows& rows, int64_t n, int64_t width, float mean, float rstd) const {
    rows.shift[n] = 0;
    if (!(std::fabs(mean) * rstd > 2.0f)) return;
    rows.shift[n] = rounded_weight(mean);
    const __m512 shift = _mm512_set1_ps(rows.shift[n]);
    for (int64_t d = 0; d < width; d += 32) {
      uint16_t* p = rows.at(n) + d * 16;
      const __m512i bits = _mm512_loadu_si512(p);
      const __mmask32 valid = width - d >= 32 ? ~0u : (1u << (width - d)) - 1;
      const __m512i moved = narrow(_mm512_sub_ps(widen_low(bits), shift), _mm512_sub_ps(widen_high(bits), shift));
      _mm512_storeu_si512(p, _mm512_maskz_mov_epi16(valid, moved));
    }
  }

  // A tile of W^T: 16 columns of 32 rows of weights, rows from `count` on being 0.
  static void transposed_weights(const float* weights, int64_t ldw, int64_t count, uint16_t* out) {
    __m512i half[2][16];
    for (int64_t n = 0; n < 32; ++n) {
      half[n / 16][n % 16] = n < count ? _mm512_loadu_si512(weights + n * ldw) : _mm512_setzero_si512();
    }
    transpose16(half[0]);
    transpose16(half[1]);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 32, narrow((__m512)half[0][i], (__m512)half[1][i]));
  }

  // 32 rows by 32 columns, the second 16 rows dp * 16 behind the first, into two B tiles.
  static void interleave(const uint16_t* rows, int64_t dp, uint16_t* low, uint16_t* high) {
    for (int i = 0; i < 16; ++i) {
      const uint16_t* pair = rows + i / 8 * 16 * dp + i % 8 * 64;
      const __m512i a = _mm512_loadu_si512(pair), b = _mm512_loadu_si512(pair + 32);
      _mm512_storeu_si512(low + i * 32, _mm512_unpacklo_epi16(a, b));
      _mm512_storeu_si512(high + i * 32, _mm512_unpackhi_epi16(a, b));
    }
  }

  // A row of an A tile for each 32 of `count` weights, 0 behind them; row null: all 0.
  static void narrow_weights(const float* row, int64_t count, int64_t tiles, uint16_t* out) {
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t left = row ? std::max<int64_t>(0, count - 32 * t) : 0;
      const uint32_t valid = left >= 32 ? ~0u : (1u << left) - 1;
      const float* from = row + (left ? 32 * t : 0);
      const __m512 low = _mm512_maskz_loadu_ps(valid & 0xffff, from);
      const __m512 high = _mm512_maskz_loadu_ps(valid >> 16, from + (left > 16 ? 16 : 0));
      _mm512_storeu_si512(out + t * kTile, narrow(low, high));
    }
  }

  TileScope scope_;
};

}  // namespace JAIR_ISA
}  // namespace jair
