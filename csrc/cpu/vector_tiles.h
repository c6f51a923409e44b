// Tile products on vectors, where the processor multiplies pairs of bfloat16 but has no tile registers.

namespace jair {
namespace JAIR_ISA {

// As in amx_tiles.h. C stays in memory, a few of its rows at a time in registers.
class TileUnit {
 public:
  explicit TileUnit(Scratch::Frame&) {}

  static constexpr bool kApart = false;

  template <int R, int V>
  void open(SumTiles c, bool add) {
    c_ = c, add_ = add;
  }
  template <int R, int V>
  void close(SumTiles) {}

  // Rows of C from `rows` on may be left as they are, those that fill up the depth are not multiplied.
  template <int R, int V>
  void multiply(int64_t rows, int64_t depth, Tiles a, Tiles b, Ahead* ahead = nullptr) {
    multiply_groups<R, V, false>(rows, depth, a, b, ahead);
  }
  template <int R, int V>
  void multiply_turned(int64_t rows, int64_t depth, Tiles a, Tiles b) {
    multiply_groups<R, V, true>(rows, depth, a, b, nullptr);
  }

  // 16 columns of 32 rows of weights, rows from `count` on being 0, not turned but interleaved as for B: broadcasts
  // find a pair anywhere.
  static void turn(const float* weights, int64_t ldw, int64_t count, uint16_t* out) {
    for (int64_t n = 0; n < 32; n += 2) {
      const __m512 zero = _mm512_setzero_ps();
      const __m512 a = n < count ? _mm512_loadu_ps(weights + n * ldw) : zero;
      const __m512 b = n + 1 < count ? _mm512_loadu_ps(weights + (n + 1) * ldw) : zero;
      _mm512_storeu_si512(out + n * 16, narrow_pairs(a, b));
    }
  }

 private:
  template <int R, int V, bool kTurned>
  void multiply_groups(int64_t rows, int64_t depth, Tiles a, Tiles b, Ahead* ahead) {
    constexpr int kRows = 16 / V;  // 16 sums in registers hide the time that one product takes
    for (int64_t r = 0; r < 16 * R && r < rows; r += kRows) {
      Tiles some = a;
      some.data += r / 16 * a.outer + r % 16 * (kTurned ? 2 : a.stride);
      multiply_rows<kRows, V, kTurned>(depth, some, b, c_.data + r / 16 * c_.row + r % 16 * c_.stride,
                                       r ? nullptr : ahead);
    }
    add_ = true;
  }

  // kRows rows of C, in one tile or in two that lie side by side.
  template <int kRows, int V, bool kTurned>
  void multiply_rows(int64_t depth, Tiles a, Tiles b, float* c, Ahead* ahead) const {
    const int64_t stride = kTurned ? 2 : a.stride, pairs = kTurned ? 32 : 2;
    __m512 sums[kRows][V];
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < V; ++v) {
        sums[i][v] = add_ ? _mm512_loadu_ps(c + v * c_.column + i * c_.stride) : _mm512_setzero_ps();
      }
    }
    for (int64_t k = 0; k < depth; k += 32) {
      if (ahead) ahead->step();
      const uint16_t *left = a.data + k / 32 * a.step, *right = b.data + k / 32 * b.step;
      const int64_t some = depth - k < 32 ? depth - k : 32;
      for (int64_t j = 0; j < some; j += 8, left += 4 * pairs, right += 4 * 32) {
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair) {
          __m512i columns[V];
          for (int v = 0; v < V; ++v) columns[v] = _mm512_loadu_si512(right + v * b.outer + pair * 32);
#pragma GCC unroll 16
          for (int i = 0; i < kRows; ++i) {
            int32_t two;
            std::memcpy(&two, left + i * stride + pair * pairs, sizeof two);
            const __m512i row = _mm512_set1_epi32(two);
            for (int v = 0; v < V; ++v) {
              sums[i][v] = _mm512_dpbf16_ps(sums[i][v], (__m512bh)row, (__m512bh)columns[v]);
            }
          }
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + v * c_.column + i * c_.stride, sums[i][v]);
    }
  }

  SumTiles c_{};
  bool add_ = false;
};

}  // namespace JAIR_ISA
}  // namespace jair
