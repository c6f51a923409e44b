// Products of blocks of token rows on vector registers. Included once per instruction set.
//
// An engine offers three products over a block X of token rows, which are all that pooling needs:
//   times    X[rows,D] B^T         B [n,D] held as Columns    scores, dP
//   gather   W^T X                 W [rows,m] of floats       pooling, weight gradients
//   spread   W S                   S [m,D] held as Spread     input gradients, token mixing
// X is held as X - shift with one shift a row, so that rows far from zero lose no digits; callers add what is missing.

namespace jair {
namespace JAIR_ISA {

template <typename T>
class VectorEngine {
 public:
  using C = compute_t<T>;
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
  static C rounded_weight(C w) { return w; }

  // --- X

  struct Rows {
    C *data, *shift;
    int64_t dp;
  };
  Rows make_rows(Scratch::Frame& frame, int64_t width, int64_t capacity) const {
    const int64_t dp = pad_width(width);
    return {frame.take<C>(capacity * dp), frame.take<C>(capacity), dp};
  }

  // Row n = x - mean and its statistics, in two passes over a cached row. The shift is the mean.
  void load_centred(Rows& rows, int64_t n, const T* x, int64_t width, C eps, C* mean, C* rstd) const {
    C* row = rows.data + n * rows.dp;
    convert_row(x, row, width);
    const C first = row[0];
    Vec<C> total{};
    int64_t d = 0;
    for (; d + kLanes<C> <= width; d += kLanes<C>) total += load(row + d) - first;
    C rest = 0;
    for (; d < width; ++d) rest += row[d] - first;
    *mean = first + (sum<C>(total) + rest) / width;
    const C squares = subtract(rows, n, width, *mean);
    *rstd = C(1) / std::sqrt(squares / width + eps);
  }
  // The same row when its statistics are known.
  void load_known(Rows& rows, int64_t n, const T* x, int64_t width, C mean, C) const {
    convert_row(x, rows.data + n * rows.dp, width);
    subtract(rows, n, width, mean);
  }
  void load_plain(Rows& rows, int64_t n, const T* x, int64_t width) const {
    convert_row(x, rows.data + n * rows.dp, width);
    rows.shift[n] = 0;
  }
  void load_zero(Rows& rows, int64_t n) const {
    zero(rows.data + n * rows.dp, rows.dp);
    rows.shift[n] = 0;
  }
  void end_rows(Rows&, int64_t) const {}

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

  void times(const Rows& rows, int64_t first, int64_t count, const Columns& b, C* out) const {
    const Operand<C> left{rows.data + first * rows.dp, rows.dp, 1};
    gemm<C>(count, b.np, b.width, left, b.data, b.np, out, b.np, false, pack_);
  }

  // acc[m][dp] += weights^T X; row n of the weights at weights + n * ldw.
  void gather(const Rows& rows, int64_t count, const C* weights, int64_t ldw, int64_t m, C* acc) {
    const Operand<C> left{weights, 1, ldw};
    gemm<C>(m, rows.dp, count, left, rows.data, rows.dp, acc, rows.dp, true, m > 12 ? pack_ : nullptr);
  }
  // A row that gather summed, in the order of its columns.
  static void order(C*, int64_t) {}

  // out[n][d] = sum of weights S over up to two pairs, less (constant[n] + linear[n] X[n][d]) where X is given.
  struct Term {
    const C* weights;
    int64_t ldw;
    const Spread* s;
  };
  struct Correction {
    const Rows* rows;
    const C *constant, *linear;
  };
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
          const C* x = less.rows->data + (first + n) * dp + d0;
          for (int64_t d = 0; d < columns; d += kLanes<C>) {
            store(row + d, load(row + d) - (less.constant[n] + less.linear[n] * load(x + d)));
          }
        }
        convert_row_back(row, out + n * ldo + d0, std::min(columns, width - d0));
      }
    }
  }

 private:
  // Subtracts `mean` from the valid columns and returns the sum of squares.
  C subtract(Rows& rows, int64_t n, int64_t width, C mean) const {
    C* row = rows.data + n * rows.dp;
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
    rows.shift[n] = mean;
    return sum<C>(squares) + rest;
  }

  C* pack_;
};

}  // namespace JAIR_ISA
}  // namespace jair
