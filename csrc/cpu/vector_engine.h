// Products of blocks of token rows on vector registers. Included once per instruction set.
//
// An engine offers three products over a block X of token rows, which are all that pooling needs:
//   times    X[rows,D] B^T         B [n,D] held as Columns    scores, dP
//   gather   W^T X                 W [rows,m] of floats       pooling, weight gradients
//   spread   W S                   S [m,D] held as Spread     input gradients, token mixing
// X is held as X - shift with one shift a row, so that rows far from zero lose no digits; callers add what is missing.

namespace jair {
namespace JAIR_ISA {

// Rows of a tensor, `stride` elements apart; keep null: none is masked.
template <typename T>
struct RowSource {
  const T* x;
  int64_t stride;
  const uint8_t* keep;
  int64_t keep_stride;
};

// Mean and 1/std of each row: computed and written here, or read where they are known.
template <typename C>
struct RowStatistics {
  C *mean, *rstd;
  C eps;
  bool known;
};

// weights S of spread(); s null: nothing.
template <typename C, typename S>
struct SpreadTerm {
  const C* weights;
  int64_t ldw;
  const S* s;
};

// What spread() subtracts from row n: constant[n] + linear[n] X[n]; rows null: nothing.
template <typename C, typename R>
struct RowCorrection {
  const R* rows;
  const C *constant, *linear;
};

template <typename T>
class VectorEngine {
 public:
  using C = compute_t<T>;
  using Layout = RowLayout<C>;           // of what gather() sums
  static constexpr int64_t kStrip = 48;  // rows worked on at a time

  static int64_t pad_width(int64_t width) { return padded<C>(width); }
  static int64_t pad_count(int64_t count) { return padded<C>(count); }
  static int64_t block_rows(int64_t width) {
    constexpr int64_t kBudget = 640 << 10;  // bytes: within a second-level cache, an image of 196 x 768 in one block
    const int64_t rows = kBudget / (pad_width(width) * static_cast<int64_t>(sizeof(C)));
    return std::max(kStrip, std::min<int64_t>(rows / 16 * 16, 1024));
  }

  explicit VectorEngine(Scratch::Frame& frame) : pack_(frame.take<C>(kPackDepth * kPackWidth<C>)) {}

  // A weight as the products see it.
  static Vec<C> rounded(Vec<C> w) { return w; }
  // v as x's type holds it.
  static Vec<C> in_type(Vec<C> v) {
    T narrow[kLanes<C>];
    store(narrow, v);
    return load(narrow);
  }
  static C rounded_weight(C w) { return w; }

  // --- X

  // Row n at from + n * stride: a copy, or the tensor itself.
  struct Rows {
    C *copies, *shift;
    int64_t dp;
    const C* from;
    int64_t stride;
  };
  Rows make_rows(Scratch::Frame& frame, int64_t width, int64_t capacity) const {
    const int64_t dp = pad_width(width);
    return {frame.take<C>(capacity * dp), frame.take<C>(capacity), dp, nullptr, 0};
  }

  // `count` rows of x, `stride` apart, become rows first.. of the block, less a shift where statistics are given:
  // computed and written there, or read. A masked row is 0, with statistics 0.
  using Source = RowSource<T>;
  using Statistics = RowStatistics<C>;
  void load_rows(Rows& rows, int64_t first, int64_t count, int64_t width, Source from, const Statistics* to) const {
    rows.from = rows.copies, rows.stride = rows.dp;
    if constexpr (std::is_same<T, C>::value) {
      if (!from.keep && !to && width == rows.dp) {  // nothing to change: the tensor's own rows
        rows.from = from.x - first * from.stride, rows.stride = from.stride;
        zero(rows.shift + first, count);
        return;
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      C* row = rows.copies + (first + n) * rows.dp;
      rows.shift[first + n] = 0;
      if (from.keep && !from.keep[n * from.keep_stride]) {
        zero(row, rows.dp);
        if (to) to->mean[n] = to->rstd[n] = 0;
        continue;
      }
      convert_row(from.x + n * from.stride, row, width);
      if (!to) continue;
      if (!to->known) to->mean[n] = mean(row, width);
      rows.shift[first + n] = to->mean[n];
      const C squares = subtract(row, width, to->mean[n]);
      if (!to->known) to->rstd[n] = C(1) / std::sqrt(squares / width + to->eps);
    }
  }

  // --- The second operands, from rows of the compute type padded to dp

  struct Columns {
    C* data;  // [width][np]
    int64_t width, np;
  };
  Columns make_columns(Scratch::Frame& frame, int64_t width, int64_t count) const {
    return {frame.take<C>(pad_width(width) * pad_count(count)), width, pad_count(count)};
  }
  static void set_columns(Columns& columns, const C* rows, int64_t count) {
    const int64_t dp = pad_width(columns.width);
    zero(columns.data, dp * columns.np);
    transpose(rows, dp, count, dp, columns.data, columns.np);
  }

  struct Spread {
    const C* data;  // [count][dp]
    int64_t count;
  };
  Spread make_spread(Scratch::Frame&, int64_t, int64_t count) const { return {nullptr, count}; }
  static void set_spread(Spread& spread, const C* rows) { spread.data = rows; }

  // --- The products

  void times(const Rows& rows, int64_t first, int64_t count, const Columns& b, C* out, Ahead ahead = {}) const {
    const Operand<C> left{rows.from + first * rows.stride, rows.stride, 1};
    gemm<C>(count, b.np, b.width, left, b.data, b.np, out, b.np, false, pack_, ahead);
  }

  // The same for rows of the compute type.
  void times_plain(const C* rows, int64_t count, int64_t ld, const Columns& b, C* out) const {
    gemm<C>(count, b.np, b.width, {rows, ld, 1}, b.data, b.np, out, b.np, false, nullptr);
  }

  // sums[m,dp] += weights^T X in the Layout; row n of the weights at weights + n * ldw.
  void gather(const Rows& rows, int64_t count, const C* weights, int64_t ldw, int64_t m, C* sums) {
    const Operand<C> left{weights, 1, ldw};
    gemm<C>(m, rows.dp, count, left, rows.from, rows.stride, sums, rows.dp, true, m > 12 ? pack_ : nullptr);
  }

  // out[n][d] = sum of weights S over up to two pairs, less (constant[n] + linear[n] X[n][d]) where X is given.
  using Term = SpreadTerm<C, Spread>;
  using Correction = RowCorrection<C, Rows>;
  void spread(int64_t first, int64_t count, int64_t width, Term a, Term b, Correction less, T* out, int64_t ldo) const {
    const int64_t dp = pad_width(width);
    constexpr int64_t kPanel = kPackWidth<C>;
    C panel[kStrip * kPanel];
    for (int64_t d0 = 0; d0 < dp; d0 += kPanel) {
      const int64_t columns = std::min(kPanel, dp - d0);
      bool add = false;
      for (const Term& term : {a, b}) {
        if (!term.s) continue;
        const Operand<C> left{term.weights, term.ldw, 1};
        gemm<C>(count, columns, term.s->count, left, term.s->data + d0, dp, panel, kPanel, add, nullptr);
        add = true;
      }
      for (int64_t n = 0; n < count; ++n) {
        C* row = panel + n * kPanel;
        if (less.rows) {
          const C* x = less.rows->from + (first + n) * less.rows->stride + d0;
          for (int64_t d = 0; d < columns; d += kLanes<C>) {
            store(row + d, load(row + d) - (less.constant[n] + less.linear[n] * load(x + d)));
          }
        }
        convert_row_back(row, out + n * ldo + d0, std::min(columns, width - d0));
      }
    }
  }

 private:
  // By way of the first element: the rounding of a plain sum would leave constant rows with a spread of their own.
  static C mean(const C* row, int64_t width) {
    const C first = row[0];
    Vec<C> total{};
    C rest = 0;
    int64_t d = 0;
    for (; d + kLanes<C> <= width; d += kLanes<C>) total += load(row + d) - first;
    for (; d < width; ++d) rest += row[d] - first;
    return first + (sum<C>(total) + rest) / width;
  }

  // Subtracts from the valid columns and returns the sum of squares.
  static C subtract(C* row, int64_t width, C mean) {
    Vec<C> squares{};
    int64_t d = 0;
    for (; d + kLanes<C> <= width; d += kLanes<C>) {
      const Vec<C> v = load(row + d) - mean;
      store(row + d, v);
      squares += v * v;
    }
    C rest = 0;
    for (; d < width; ++d) {
      row[d] -= mean;
      rest += row[d] * row[d];
    }
    return sum<C>(squares) + rest;
  }

  C* pack_;
};

}  // namespace JAIR_ISA
}  // namespace jair
