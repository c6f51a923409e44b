// Small matrix products out of registers, for operands that lie in cache. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// Rows and vectors of a register tile: 24 accumulators of 32 registers, 12 of 16.
constexpr int kTileRows = 6, kTileVecs = JAIR_VECTOR == 64 ? 4 : 2;

// A[m,k] at a[m * row + k * step]: rows of a matrix (step 1) or its columns (row 1).
template <typename C>
struct Operand {
  const C* data;
  int64_t row, step;
};

template <typename C, int R, int V>
inline void gemm_tile(int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add) {
  Vec<C> acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = add ? load(c + r * ldc + v * kLanes<C>) : Vec<C>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<C> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * ldb + v * kLanes<C>);
    for (int r = 0; r < R; ++r) {
      const Vec<C> scale = splat(a.data[r * a.row + k * a.step]);
      for (int v = 0; v < V; ++v) acc[r][v] += scale * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes<C>, acc[r][v]);
  }
}

template <typename C, int V>
inline void gemm_rows(int rows, int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add) {
  switch (rows) {
    case 1: return gemm_tile<C, 1, V>(depth, a, b, ldb, c, ldc, add);
    case 2: return gemm_tile<C, 2, V>(depth, a, b, ldb, c, ldc, add);
    case 3: return gemm_tile<C, 3, V>(depth, a, b, ldb, c, ldc, add);
    case 4: return gemm_tile<C, 4, V>(depth, a, b, ldb, c, ldc, add);
    case 5: return gemm_tile<C, 5, V>(depth, a, b, ldb, c, ldc, add);
    default: return gemm_tile<C, 6, V>(depth, a, b, ldb, c, ldc, add);
  }
}

template <typename C, int V>
inline void gemm_panel(int64_t m, int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add) {
  const int64_t blocks = (m + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < blocks; ++i) {  // rows shared evenly: 8 as 4 + 4, not 6 + 2
    const int64_t first = m * i / blocks, last = m * (i + 1) / blocks;
    gemm_rows<C, V>(last - first, depth, {a.data + first * a.row, a.row, a.step}, b, ldb, c + first * ldc, ldc, add);
  }
}

// C[m,n] = (add ? C : 0) + A[m,depth] B[depth,n]; n is a multiple of the vector length.
// Where many rows of C share a strided panel of B, the panel is first copied to `pack` (kPackDepth * kPackWidth).
constexpr int kPackDepth = 128;
template <typename C>
constexpr int kPackWidth = kTileVecs * kLanes<C>;

template <typename C>
inline void gemm(int64_t m, int64_t n, int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add,
                 C* pack) {
  constexpr int kWidth = kPackWidth<C>;
  for (int64_t k0 = 0; k0 < depth; k0 += pack ? kPackDepth : depth) {
    const int64_t count = pack && depth - k0 > kPackDepth ? kPackDepth : depth - k0;
    const Operand<C> left{a.data + k0 * a.step, a.row, a.step};
    const bool accumulate = add || k0 > 0;
    for (int64_t j = 0; j < n; j += kWidth) {
      const int vecs = (n - j < kWidth ? n - j : kWidth) / kLanes<C>;
      const C* panel = b + k0 * ldb + j;
      int64_t stride = ldb;
      if (pack) {
        for (int64_t k = 0; k < count; ++k) {
          for (int v = 0; v < vecs; ++v) store(pack + k * kWidth + v * kLanes<C>, load(panel + k * ldb + v * kLanes<C>));
        }
        panel = pack;
        stride = kWidth;
      }
      switch (vecs) {
        case 1: gemm_panel<C, 1>(m, count, left, panel, stride, c + j, ldc, accumulate); break;
        case 2: gemm_panel<C, 2>(m, count, left, panel, stride, c + j, ldc, accumulate); break;
#if JAIR_VECTOR == 64
        case 3: gemm_panel<C, 3>(m, count, left, panel, stride, c + j, ldc, accumulate); break;
        default: gemm_panel<C, 4>(m, count, left, panel, stride, c + j, ldc, accumulate); break;
#endif
      }
    }
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
