// Small matrix products out of registers, for operands that lie in cache. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// A register tile has kTileVecs vectors and as many rows as fill the accumulators: 24-28 of 32 registers, 12 of 16.
constexpr int kTileVecs = JAIR_VECTOR == 64 ? 4 : 2;
constexpr int tile_rows(int vecs) { return JAIR_VECTOR == 64 ? (vecs == 1 ? 14 : 24 / vecs) : 12 / vecs; }

// Memory that will be read next, asked into the second-level cache in steps while a product runs: it comes from further
// away than the processor's own prefetching looks ahead.
struct Ahead {
  const char *next = nullptr, *end = nullptr;
  int64_t lines = 0;  // per step

  void share(int64_t steps) { lines = ((end - next) / 64 + steps - 1) / steps; }
  void step() {
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// Asks for rows that are read soon into the second-level cache: where they lie apart, the processor does not see which
// is next.
template <typename T>
inline void prefetch_rows(const T* rows, int64_t stride, int64_t count, int64_t width) {
  for (int64_t n = 0; n < count; ++n) {
    const char *first = reinterpret_cast<const char*>(rows + n * stride), *last = first + width * sizeof(T) - 1;
    for (const char* p = first; p < last; p += 64) __builtin_prefetch(p, 0, 2);
    __builtin_prefetch(last, 0, 2);
  }
}

// A product goes in pieces of this depth.
constexpr int64_t kDepth = 64;

// A[m,k] at a[m * row + k * step]: rows of a matrix (step 1) or its columns (row 1). The columns of a piece may lie
// `panel` from those of the piece before.
template <typename C>
struct Operand {
  const C* data;
  int64_t row, step, panel;
  Operand(const C* data, int64_t row, int64_t step) : Operand(data, row, step, kDepth * step) {}
  Operand(const C* data, int64_t row, int64_t step, int64_t panel) : data(data), row(row), step(step), panel(panel) {}
};

template <typename C, int R, int V>
inline void gemm_tile(int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add) {
  Vec<C> acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) acc[r][v] = Vec<C>{};
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
    for (int v = 0; v < V; ++v) {
      C* to = c + r * ldc + v * kLanes<C>;
      store(to, add ? load(to) + acc[r][v] : acc[r][v]);
    }
  }
}

// `rows` <= R rows.
template <typename C, int V, int R>
inline void gemm_rows(int rows, int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add) {
  if (rows == R) {
    gemm_tile<C, R, V>(depth, a, b, ldb, c, ldc, add);
  } else if constexpr (R > 1) {
    gemm_rows<C, V, R - 1>(rows, depth, a, b, ldb, c, ldc, add);
  }
}

template <typename C, int V>
inline void gemm_panel(int64_t m, int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc, bool add,
                       Ahead& ahead) {
  constexpr int kRows = tile_rows(V);
  const int64_t blocks = (m + kRows - 1) / kRows;
  for (int64_t i = 0; i < blocks; ++i) {  // rows shared evenly: 8 as 4 + 4, not 6 + 2
    const int64_t first = m * i / blocks, last = m * (i + 1) / blocks;
    const Operand<C> rows{a.data + first * a.row, a.row, a.step};
    ahead.step();
    gemm_rows<C, V, kRows>(last - first, depth, rows, b, ldb, c + first * ldc, ldc, add);
  }
}

// C[m,n] = (add ? C : 0) + A[m,depth] B[depth,n]; n is a multiple of the vector length.
// Where many rows of C share a panel of B, `pack` (kDepth * kPackWidth) is given: pieces of B whose rows lie so far
// apart that they push each other out of the first-level cache are copied there.
template <typename C>
constexpr int kPackWidth = kTileVecs * kLanes<C>;

template <typename C>
inline void gemm(int64_t m, int64_t n, int64_t depth, Operand<C> a, const C* b, int64_t ldb, C* c, int64_t ldc,
                 bool add, C* pack, Ahead ahead = {}) {
  constexpr int kWidth = kPackWidth<C>;
  ahead.share((m * n * depth) / (tile_rows(kTileVecs) * kWidth * kDepth) + 1);
  for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
    const int64_t count = depth - k0 > kDepth ? kDepth : depth - k0;
    const Operand<C> left{a.data + k0 / kDepth * a.panel, a.row, a.step};
    const bool accumulate = add || k0 > 0;
    for (int64_t j = 0; j < n; j += kWidth) {
      const int vecs = (n - j < kWidth ? n - j : kWidth) / kLanes<C>;
      const C* panel = b + k0 * ldb + j;
      int64_t stride = ldb;
      if (pack && ldb > kDepth) {
        for (int64_t k = 0; k < count; ++k) {
          for (int v = 0; v < vecs; ++v)
            store(pack + k * kWidth + v * kLanes<C>, load(panel + k * ldb + v * kLanes<C>));
        }
        panel = pack;
        stride = kWidth;
      }
      switch (vecs) {
        case 1: gemm_panel<C, 1>(m, count, left, panel, stride, c + j, ldc, accumulate, ahead); break;
        case 2: gemm_panel<C, 2>(m, count, left, panel, stride, c + j, ldc, accumulate, ahead); break;
#if JAIR_VECTOR == 64
        case 3: gemm_panel<C, 3>(m, count, left, panel, stride, c + j, ldc, accumulate, ahead); break;
        default: gemm_panel<C, 4>(m, count, left, panel, stride, c + j, ldc, accumulate, ahead); break;
#endif
      }
    }
  }
}

// to[c][r] = from[r][c]; 4 x 4 at a time.
inline void transpose(const float* from, int64_t ld_from, int64_t rows, int64_t columns, float* to, int64_t ld_to) {
  typedef float Quad __attribute__((vector_size(16)));
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Quad q[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&q[i], from + (r + i) * ld_from + c, sizeof(Quad));
      const Quad ab = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5),
                 cd = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5);
      const Quad ef = __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7),
                 gh = __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
      const Quad out[4] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                           __builtin_shufflevector(ef, gh, 0, 1, 4, 5), __builtin_shufflevector(ef, gh, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i) std::memcpy(to + (c + i) * ld_to + r, &out[i], sizeof(Quad));
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) to[c * ld_to + r + i] = from[(r + i) * ld_from + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * ld_to + r] = from[r * ld_from + c];
  }
}
inline void transpose(const double* from, int64_t ld_from, int64_t rows, int64_t columns, double* to, int64_t ld_to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * ld_to + r] = from[r * ld_from + c];
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
