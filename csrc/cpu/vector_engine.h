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

  explicit VectorEngine(Scratch::Frame& frame) : pack_(frame.take<C>(kDepth * kPackWidth<C>)) {}

  // A weight as the products see it.
  static Vec<C> rounded(Vec<C> w) { return w; }
  // v as x's type holds it.
  static Vec<C> in_type(Vec<C> v) {
    T narrow[kLanes<C>];
    store(narrow, v);
    return load(narrow);
  }
  static C rounded_weight(C w) { return w; }

  // --- Matrices as panels of kDepth columns: rows as wide as x, of which a product takes a piece at a time, would push
  // each other out of the first-level cache.

  struct Panels {
    int64_t dp, stride, size;  // columns; elements from row to row of a panel; from panel to panel
    static Panels of(int64_t dp, int64_t rows) { return {dp, std::min(dp, kDepth), rows * std::min(dp, kDepth)}; }
    int64_t elements() const { return (dp + kDepth - 1) / kDepth * size; }
    int64_t at(int64_t d) const { return d / kDepth * size + d % kDepth; }
  };

  // --- X

  // Column d of row n at from + n * in.stride + in.at(d): copies in panels, or the tensor itself.
  struct Rows {
    C *copies, *shift;
    Panels copied;
    const C* from;
    Panels in;
  };
  Rows make_rows(Scratch::Frame& frame, int64_t width, int64_t capacity) const {
    const Panels panels = Panels::of(pad_width(width), capacity);
    return {frame.take<C>(panels.elements()), frame.take<C>(capacity), panels, nullptr, panels};
  }

  // `count` rows of x, `stride` apart, become rows first.. of the block, less a shift where statistics are given:
  // computed and written there, or read. A masked row is 0, with statistics 0.
  using Source = RowSource<T>;
  using Statistics = RowStatistics<C>;
  void load_rows(Rows& rows, int64_t first, int64_t count, int64_t width, Source from, const Statistics* to) const {
    rows.from = rows.copies, rows.in = rows.copied;
    if constexpr (std::is_same<T, C>::value) {
      if (!from.keep && !to && width == rows.copied.dp) {  // nothing to change: the tensor's own rows
        rows.from = from.x - first * from.stride, rows.in = {width, from.stride, kDepth};
        zero(rows.shift + first, count);
        return;
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      const T* x = from.x + n * from.stride;
      C *row = rows.copies + (first + n) * rows.copied.stride, mean = 0;
      const auto put = [&](int64_t d, Vec<C> v) { store(row + rows.copied.at(d), v); };
      if (from.keep && !from.keep[n * from.keep_stride]) {
        over_columns<C>(rows.copied.dp, [&](int64_t d, auto) { put(d, Vec<C>{}); });
        rows.shift[first + n] = 0;
        if (to) to->mean[n] = to->rstd[n] = 0;
        continue;
      }
      if (to) mean = to->known ? to->mean[n] : row_mean(x, width);
      rows.shift[first + n] = mean;
      const C squares = sum_columns<C>(width, [&](int64_t d, auto vector) {
        const Vec<C> v = vector.valid(vector.get(x + d) - mean);
        put(d, v);
        return v * v;
      });
      if (!to || to->known) continue;
      to->mean[n] = mean;
      to->rstd[n] = width == 1 ? C(0) : C(1) / std::sqrt(squares / width + to->eps);  // one column is its mean
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
    C* data;
    int64_t count;
    Panels in;
  };
  Spread make_spread(Scratch::Frame& frame, int64_t width, int64_t count) const {
    const Panels panels = Panels::of(pad_width(width), count);
    return {frame.take<C>(panels.elements()), count, panels};
  }
  static void set_spread(Spread& spread, const C* rows) {
    for (int64_t i = 0; i < spread.count; ++i) {
      C* to = spread.data + i * spread.in.stride;
      for (int64_t d = 0; d < spread.in.dp; d += kLanes<C>)
        store(to + spread.in.at(d), load(rows + i * spread.in.dp + d));
    }
  }

  // --- The products

  void times(const Rows& rows, int64_t first, int64_t count, const Columns& b, C* out, Ahead ahead = {}) const {
    const Operand<C> left{rows.from + first * rows.in.stride, rows.in.stride, 1, rows.in.size};
    gemm<C>(count, b.np, b.width, left, b.data, b.np, out, b.np, false, pack_, ahead);
  }

  // The same for rows of the compute type.
  void times_plain(const C* rows, int64_t count, int64_t ld, const Columns& b, C* out) const {
    gemm<C>(count, b.np, b.width, {rows, ld, 1}, b.data, b.np, out, b.np, false, nullptr);
  }

  // sums[m,dp] += weights^T X in the Layout; row n of the weights at weights + n * ldw.
  void gather(const Rows& rows, int64_t count, const C* weights, int64_t ldw, int64_t m, C* sums) {
    const int64_t dp = rows.in.dp;
    for (int64_t n = 0; n < count; n += kDepth) {
      const Operand<C> left{weights + n * ldw, 1, ldw};
      const C* from = rows.from + n * rows.in.stride;
      for (int64_t d = 0; d < dp; d += kDepth) {
        gemm<C>(m, std::min(kDepth, dp - d), std::min(kDepth, count - n), left, from + rows.in.at(d), rows.in.stride,
                sums + d, dp, true, m > 12 ? pack_ : nullptr);
      }
    }
  }

  // out[n][d] = sum of weights S over up to two pairs, less (constant[n] + linear[n] X[n][d]) where X is given.
  using Term = SpreadTerm<C, Spread>;
  using Correction = RowCorrection<C, Rows>;
  void spread(int64_t first, int64_t count, int64_t width, Term a, Term b, Correction less, T* out, int64_t ldo) const {
    const int64_t dp = pad_width(width);
    C panel[kStrip * kDepth];
    for (int64_t d0 = 0; d0 < dp; d0 += kDepth) {
      const int64_t columns = std::min(kDepth, dp - d0);
      bool add = false;
      for (const Term& term : {a, b}) {
        if (!term.s) continue;
        const Operand<C> left{term.weights, term.ldw, 1};
        gemm<C>(count, columns, term.s->count, left, term.s->data + term.s->in.at(d0), term.s->in.stride, panel, kDepth,
                add, nullptr);
        add = true;
      }
      for (int64_t n = 0; n < count; ++n) {
        const C *row = panel + n * kDepth, *x = less.rows ? at(*less.rows, first + n, d0) : nullptr;
        over_columns<C>(std::min(columns, width - d0), [&](int64_t d, auto vector) {
          const Vec<C> v = load(row + d);
          vector.put(out + n * ldo + d0 + d, x ? v - (less.constant[n] + less.linear[n] * load(x + d)) : v);
        });
      }
    }
  }

 private:
  static const C* at(const Rows& rows, int64_t n, int64_t d) { return rows.from + n * rows.in.stride + rows.in.at(d); }

  // By way of the first element: the rounding of a plain sum would leave constant rows with a spread of their own.
  // What that mean still lacks, where the first element lies far from it, shows in a second pass. It is taken to be
  // exact: a backward that reads it finds the very rows of the forward.
  static C row_mean(const T* x, int64_t width) {
    C mean = load_part(x, 1)[0];
    for (int pass = 0; pass < 2; ++pass) {
      const C rest =
          sum_columns<C>(width, [&](int64_t d, auto vector) { return vector.valid(vector.get(x + d) - mean); });
      mean += rest / width;
    }
    return mean;
  }

  C* pack_;
};

}  // namespace JAIR_ISA
}  // namespace jair
