// What pooling kernels share: rows in the compute type, layouts of sums, what a backward keeps. Included once per
// instruction set.

namespace jair {
namespace JAIR_ISA {

template <typename C>
constexpr int64_t padded(int64_t n) {
  return (n + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// One row of T as compute type, the padding 0.
template <typename T>
inline void convert_row(const T* from, compute_t<T>* to, int64_t count) {
  using C = compute_t<T>;
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) store(to + i, load(from + i));
  if (i < count) store(to + i, load_part(from + i, count - i));
}

// And back.
template <typename T>
inline void convert_row_back(const compute_t<T>* from, T* to, int64_t count) {
  using C = compute_t<T>;
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) store(to + i, load(from + i));
  if (i < count) store_part(to + i, load(from + i), count - i);
}

template <typename C>
inline void zero(C* p, int64_t count) {
  std::memset(p, 0, count * sizeof(C));
}

// Gradients of masked tokens: a weight of 0 times a gradient or query that is not finite is not 0.
template <typename T>
inline void zero_masked_rows(T* rows, int64_t ld, int64_t width, int64_t count, const uint8_t* mask, int64_t step) {
  for (int64_t n = 0; mask && n < count; ++n) {
    if (!mask[n * step]) std::memset(static_cast<void*>(rows + n * ld), 0, width * sizeof(T));
  }
}

// Sums of rows [m,dp] as plain rows; engines that sum in another order have a layout of their own with these functions.
template <typename C>
struct RowLayout {
  static int64_t size(int64_t m, int64_t dp) { return m * dp; }
  static void scale(C* sums, int64_t dp, int64_t row, C factor) {
    C* p = sums + row * dp;
    for (int64_t d = 0; d < dp; d += kLanes<C>) store(p + d, load(p + d) * factor);
  }
  static void add(C* sums, int64_t dp, int64_t row, C value) {
    C* p = sums + row * dp;
    for (int64_t d = 0; d < dp; d += kLanes<C>) store(p + d, load(p + d) + value);
  }
  // out = columns [first, first + count) of a row; both are multiples of the padding.
  static void read(const C* sums, int64_t dp, int64_t row, int64_t first, int64_t count, C* out) {
    std::memcpy(out, sums + row * dp + first, count * sizeof(C));
  }
};

// What a backward keeps of a segment's tokens between its two passes, row by row: weights, their gradients, and h - e
// of the score MLP where there is one (hp > 0). delta [kp] sums P dP and total [kp] sums P: their quotient is free of
// the rounding of 1/sum, which is the same for all tokens of an image and would add up in the gradients of weights. So
// would that of long sums: both are compensated, with their `excess` [2,kp].
template <typename C>
struct Kept {
  C *centred, *p, *dp, *delta, *total, *excess;
  static int64_t size(int64_t tokens, int64_t hp, int64_t kp) { return tokens * (hp + 2 * kp) + sums(kp); }
  static int64_t sums(int64_t kp) { return 4 * kp; }
  Kept(C* memory, int64_t tokens, int64_t hp, int64_t kp)
      : centred(memory),
        p(centred + tokens * hp),
        dp(p + tokens * kp),
        delta(dp + tokens * kp),
        total(delta + kp),
        excess(total + kp) {}

  void begin(int64_t kp) { zero(delta, sums(kp)); }

  // Adds `rows` rows of weights and their gradients, few enough for plain sums of every fourth.
  void add(const C* weights, const C* dweights, int64_t rows, int64_t kp) {
    for (int64_t k = 0; k < kp; k += kLanes<C>) {
      Vec<C> products[4] = {}, sums[4] = {};
      const auto take = [&](int64_t n, int to) {
        const Vec<C> weight = load(weights + n * kp + k);
        products[to] += weight * load(dweights + n * kp + k);
        sums[to] += weight;
      };
      int64_t n = 0;
      for (; n + 4 <= rows; n += 4) take(n, 0), take(n + 1, 1), take(n + 2, 2), take(n + 3, 3);
      for (; n < rows; ++n) take(n, 0);
      accumulate(k, kp, (products[0] + products[1]) + (products[2] + products[3]),
                 (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  }

  // Adds the sums of other tokens.
  void join(const Kept& other, int64_t kp) {
    for (int64_t k = 0; k < kp; k += kLanes<C>) accumulate(k, kp, load(other.delta + k), load(other.total + k));
  }

  // delta of the whole image, 0 where nothing was kept.
  Vec<C> mean(int64_t k) const {
    const Vec<C> sums = load(total + k);
    return sums > C(0) ? load(delta + k) / sums : Vec<C>{};
  }

 private:
  void accumulate(int64_t k, int64_t kp, Vec<C> products, Vec<C> sums) {
    add_compensated(delta + k, excess + k, products);
    add_compensated(total + k, excess + kp + k, sums);
  }
};

// Room for the segments of split images, for `most` tokens of each.
template <typename C>
inline std::vector<Kept<C>> keep_split(const Plan& plan, Scratch::Frame& frame, int64_t hp, int64_t kp,
                                       int64_t most = std::numeric_limits<int64_t>::max()) {
  std::vector<Kept<C>> kept;
  for (const Segment& s : plan.split()) {
    const int64_t tokens = std::min(s.end - s.begin, most);
    kept.emplace_back(frame.take<C>(Kept<C>::size(tokens, hp, kp)), tokens, hp, kp);
  }
  return kept;
}

// Every segment of an image gets the sums of all its segments.
template <typename C>
inline void join_deltas(const std::vector<Segment>& split, std::vector<Kept<C>>& kept, int64_t kp) {
  for (size_t i = 0; i < split.size();) {
    size_t j = i + 1;
    for (; j < split.size() && split[j].image == split[i].image; ++j) {
      kept[i].join(kept[j], kp);
    }
    for (size_t other = i + 1; other < j; ++other)
      std::memcpy(kept[other].delta, kept[i].delta, Kept<C>::sums(kp) * sizeof(C));
    i = j;
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
