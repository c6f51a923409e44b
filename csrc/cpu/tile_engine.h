// The products of vector_engine.h for bfloat16 on tiles. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

class TileEngine {
 public:
  using C = float;
  using Layout = TileLayout;
  static constexpr int64_t kStrip = 32;

  static int64_t pad_width(int64_t width) { return (width + 31) / 32 * 32; }
  static int64_t pad_count(int64_t count) { return padded<float>(count); }
  static int64_t block_rows(int64_t width) {
    constexpr int64_t kBudget = 768 << 10;  // bytes: within a second-level cache beside the weights
    return std::max(kStrip, std::min<int64_t>(kBudget / (2 * pad_width(width)) / kStrip * kStrip, 512));
  }
  static Vec<C> rounded(Vec<C> w) { return (Vec<C>)widen((__m256i)_mm512_cvtneps_pbh((__m512)w)); }
  static Vec<C> in_type(Vec<C> v) { return rounded(v); }
  static C rounded_weight(C w) { return rounded(splat(w))[0]; }

  explicit TileEngine(Scratch::Frame& frame) : unit_(frame) {}

  // --- X: strips of 32 rows, read in place. A strip that is cut off, has a masked row, a row far from zero or columns
  // that do not fill 64 bytes is copied, with zeros for what is missing.

  struct Rows {
    uint16_t* copies;
    const uint16_t** strips;
    int64_t* strides;
    float* shift;
    int64_t dp;
    const uint16_t* at(int64_t row) const { return strips[row / kStrip] + row % kStrip * strides[row / kStrip]; }
    Tiles tiles(int64_t row) const {
      const int64_t stride = strides[row / kStrip];
      return {at(row), 16 * stride, 32, stride};
    }
  };
  Rows make_rows(Scratch::Frame& frame, int64_t width, int64_t capacity) const {
    const int64_t dp = pad_width(width), strips = capacity / kStrip;
    return {frame.take<uint16_t>(capacity * dp), frame.take<const uint16_t*>(strips), frame.take<int64_t>(strips),
            frame.take<float>(capacity), dp};
  }

  using Source = RowSource<bf16>;
  using Statistics = RowStatistics<float>;
  void load_rows(Rows& rows, int64_t first, int64_t count, int64_t width, Source from, const Statistics* to) const {
    for (int64_t n = 0; n < count; n += kStrip) {
      const int64_t some = std::min(kStrip, count - n);
      Source strip = from;
      strip.x += n * from.stride;
      if (from.keep) strip.keep += n * from.keep_stride;
      Statistics statistics;
      if (to) statistics = {to->mean + n, to->rstd + n, to->eps, to->known};
      load_strip(rows, first + n, some, width, strip, to ? &statistics : nullptr);
    }
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
    const int64_t depth = pad_width(count), dp = pad_width(width);
    return {frame.take<uint16_t>(dp * depth), count, depth, dp};
  }
  static void set_spread(Spread& spread, const float* rows) {
    for (int64_t d = 0; d < spread.dp; d += 16) {
      for (int64_t i = 0; i < spread.depth; i += 2) {
        __m512 a = _mm512_setzero_ps(), b = a;
        if (i < spread.count) a = _mm512_loadu_ps(rows + i * spread.dp + d);
        if (i + 1 < spread.count) b = _mm512_loadu_ps(rows + (i + 1) * spread.dp + d);
        _mm512_storeu_si512(spread.data + d * spread.depth + i * 16, narrow_pairs(a, b));
      }
    }
  }

  // --- The products

  void times(const Rows& rows, int64_t first, int64_t count, const Columns& b, float* out, Ahead ahead = {}) const {
    // A part of a strip stays in the first-level cache while all columns are multiplied with it.
    constexpr int64_t kPart = 12;
    const int64_t depth = b.dp / 32, parts = (depth + kPart - 1) / kPart;
    ahead.share((count + kStrip - 1) / kStrip * depth * ((b.np + 31) / 32));
    Scratch::Frame frame;
    float* whole = count % kStrip ? frame.take<float>(kStrip * b.np) : nullptr;
    for (int64_t r = 0; r < count; r += kStrip) {
      const int64_t valid = std::min(kStrip, count - r);
      float* strip = valid < kStrip ? whole : out + r * b.np;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t k = depth * part / parts, steps = depth * (part + 1) / parts - k;
        const Tiles a = rows.tiles(first + r).from(k);
        for (int64_t c = 0; c < b.np; c += 32) {
          with_tiles(valid > 16, b.np - c > 16, [&](auto R, auto V) {
            const SumTiles sums{strip + c, 16 * b.np, 16, b.np};
            unit_.open<R, V>(sums, part > 0);
            unit_.multiply<R, V>(valid, 32 * steps, a, {b.data + c * b.dp + k * kTile, 16 * b.dp, kTile, 32}, &ahead);
            unit_.close<R, V>(sums);
          });
        }
      }
      if (valid < kStrip) std::memcpy(out + r * b.np, whole, valid * b.np * sizeof(float));
    }
  }

  void times_plain(const float* rows, int64_t count, int64_t ld, const Columns& b, float* out) const {
    const int64_t depth = b.dp / 32;
    Scratch::Frame frame;
    uint16_t* left = frame.take<uint16_t>(2 * depth * kTile);
    float* whole = count < kStrip ? frame.take<float>(kStrip * b.np) : out;
    for (int64_t n = 0; n < kStrip; ++n) {
      narrow_weights(n < count ? rows + n * ld : nullptr, ld, depth, left + n / 16 * depth * kTile + n % 16 * 32);
    }
    for (int64_t c = 0; c < b.np; c += 32) {
      with_tiles(count > 16, b.np - c > 16, [&](auto R, auto V) {
        const SumTiles sums{whole + c, 16 * b.np, 16, b.np};
        unit_.open<R, V>(sums, false);
        unit_.multiply<R, V>(count, 32 * depth, {left, depth * kTile, kTile, 32},
                             {b.data + c * b.dp, 16 * b.dp, kTile, 32});
        unit_.close<R, V>(sums);
      });
    }
    if (count < kStrip) std::memcpy(out, whole, count * b.np * sizeof(float));
  }

  void gather(const Rows& rows, int64_t count, const float* weights, int64_t ldw, int64_t m, float* sums) {
    for (int64_t n = 0; n < count; n += kGatherRows) {
      gather_some(rows, n, std::min(kGatherRows, count - n), weights + n * ldw, ldw, m, sums);
    }
  }

  using Term = SpreadTerm<float, Spread>;
  using Correction = RowCorrection<float, Rows>;
  void spread(int64_t first, int64_t count, int64_t width, Term a, Term b, Correction less, bf16* out,
              int64_t ldo) const {
    const int64_t depth_a = a.s->depth / 32, depth_b = b.s ? b.s->depth / 32 : 0, row = (depth_a + depth_b) * kTile;
    Scratch::Frame frame;
    uint16_t* left = frame.take<uint16_t>(2 * row);
    for (int64_t n = 0; n < 32; ++n) {
      uint16_t* to = left + n / 16 * row + n % 16 * 32;
      narrow_weights(n < count ? a.weights + n * a.ldw : nullptr, a.s->count, depth_a, to);
      if (b.s) narrow_weights(n < count ? b.weights + n * b.ldw : nullptr, b.s->count, depth_b, to + depth_a * kTile);
    }
    // Where tiles work apart, vectors finish one panel of 32 columns while the next is multiplied.
    alignas(64) float panels[4][32 * 32];
    const int64_t dp = pad_width(width);
    with_tiles(count > 16, true, [&](auto R, auto V) {
      for (int64_t d = 0; d <= dp + 32; d += 32) {
        const SumTiles panel{panels[d / 32 % 4], 16 * 32, 16, 32};
        if (d < dp) {
          unit_.open<R, V>(panel, false);
          unit_.multiply<R, V>(count, a.s->count, {left, row, kTile, 32},
                               {a.s->data + d * a.s->depth, 16 * a.s->depth, kTile, 32});
          if (b.s) {
            unit_.multiply<R, V>(count, b.s->count, {left + depth_a * kTile, row, kTile, 32},
                                 {b.s->data + d * b.s->depth, 16 * b.s->depth, kTile, 32});
          }
        }
        if (d > 32) finish_panel(panels[d / 32 % 4 ^ 2], first, count, d - 64, width, less, out, ldo);
        if (d < dp) unit_.close<R, V>(panel);
      }
    });
  }

 private:
  // Rows whose B tiles stay in the first-level cache while they are multiplied.
  static constexpr int64_t kGatherRows = 256;

  void gather_some(const Rows& rows, int64_t first, int64_t count, const float* weights, int64_t ldw, int64_t m,
                   float* sums) const {
    const int64_t steps = (count + 31) / 32, tiles = (m + 15) / 16, dp = rows.dp;
    Scratch::Frame frame;
    uint16_t *left = frame.take<uint16_t>(tiles * steps * kTile), *right = frame.take<uint16_t>(2 * steps * kTile);
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t t = 0; t < tiles; ++t) {
        TileUnit::turn(weights + 32 * s * ldw + 16 * t, ldw, count - 32 * s, left + (s * tiles + t) * kTile);
      }
    }
    for (int64_t d = 0; d < dp; d += 32) {
      // Where tiles work apart, vectors make the B tiles of a step while those of the step before are multiplied.
      for (int64_t s = 0; s < (TileUnit::kApart ? 1 : steps); ++s) interleave(rows, first, s, d, right);
      for (int64_t t = 0; t < tiles; t += 2) {
        const SumTiles target{sums + 16 * t * dp + d * 16, 16 * dp, kSumTile, 16};
        const Tiles a{left + t * kTile, kTile, tiles * kTile, 32}, b{right, kTile, 2 * kTile, 32};
        with_tiles(tiles - t > 1, true, [&](auto R, auto V) {
          unit_.open<R, V>(target, true);
          if (TileUnit::kApart && t == 0) {
            for (int64_t s = 0; s < steps; ++s) {
              if (s + 1 < steps) interleave(rows, first, s + 1, d, right);
              unit_.multiply_turned<R, V>(m, 32, a.from(s), b.from(s));
            }
          } else {
            unit_.multiply_turned<R, V>(m - 16 * t, count, a, b);
          }
          unit_.close<R, V>(target);
        });
      }
    }
  }

  void load_strip(Rows& rows, int64_t first, int64_t count, int64_t width, Source from, const Statistics* to) const {
    bool in_place = width % 32 == 0 && count == kStrip;
    for (int64_t n = 0; n < count; ++n) {
      float& shift = rows.shift[first + n];
      shift = 0;
      if (from.keep && !from.keep[n * from.keep_stride]) {
        in_place = false;
        if (to) to->mean[n] = to->rstd[n] = 0;
        continue;
      }
      if (!to) continue;
      if (!to->known) row_statistics(from.x + n * from.stride, width, to->eps, &to->mean[n], &to->rstd[n]);
      // The weight gradients round what multiplies x: far from zero, that rounding would be multiplied by the mean.
      if (!(std::fabs(to->mean[n]) * to->rstd[n] > 2.0f)) continue;
      shift = rounded_weight(to->mean[n]);
      in_place = false;
    }
    const int64_t s = first / kStrip;
    rows.strips[s] = reinterpret_cast<const uint16_t*>(from.x), rows.strides[s] = from.stride;
    if (in_place) return;
    uint16_t* copies = rows.copies + first * rows.dp;
    for (int64_t n = 0; n < kStrip; ++n) {
      const bool kept = n < count && (!from.keep || from.keep[n * from.keep_stride]);
      copy_row(kept ? from.x + n * from.stride : nullptr, width, kept ? rows.shift[first + n] : 0.0f,
               copies + n * rows.dp);
    }
    rows.strips[s] = copies, rows.strides[s] = rows.dp;
  }

  // Strip s after row `first`, 32 columns of it, into two B tiles: the pairs of rows come from unpacking, which moves
  // columns (TileLayout).
  static void interleave(const Rows& rows, int64_t first, int64_t s, int64_t d, uint16_t* out) {
    first += kStrip * s, out += 2 * kTile * s;
    const uint16_t* from = rows.at(first) + d;
    const int64_t stride = rows.strides[first / kStrip];
    for (int i = 0; i < 16; ++i) {
      const __m512i a = _mm512_loadu_si512(from + 2 * i * stride), b = _mm512_loadu_si512(from + (2 * i + 1) * stride);
      _mm512_storeu_si512(out + i * 32, _mm512_unpacklo_epi16(a, b));
      _mm512_storeu_si512(out + kTile + i * 32, _mm512_unpackhi_epi16(a, b));
    }
  }

  // 32 columns of the result from d on: the panel less its correction, as bf16.
  static void finish_panel(const float* panel, int64_t first, int64_t count, int64_t d, int64_t width, Correction less,
                           bf16* out, int64_t ldo) {
    const __mmask32 valid = first_halves(width - d);
    const uint16_t* x = less.rows ? less.rows->at(first) + d : nullptr;
    const int64_t stride = less.rows ? less.rows->strides[first / kStrip] : 0;
    out += d;
    for (int64_t n = 0; n < count; ++n) {
      __m512 low = _mm512_load_ps(panel + n * 32), high = _mm512_load_ps(panel + n * 32 + 16);
      if (x) {
        const __m512i bits = _mm512_loadu_si512(x + n * stride);
        const __m512 constant = _mm512_set1_ps(less.constant[n]), linear = _mm512_set1_ps(less.linear[n]);
        low = _mm512_sub_ps(_mm512_fnmadd_ps(linear, widen_low(bits), low), constant);
        high = _mm512_sub_ps(_mm512_fnmadd_ps(linear, widen_high(bits), high), constant);
      }
      _mm512_mask_storeu_epi16(out + n * ldo, valid, narrow(low, high));
    }
  }

  mutable TileUnit unit_;
};

}  // namespace JAIR_ISA
}  // namespace jair
