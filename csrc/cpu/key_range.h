// The keys that each query may attend, as ranges. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// Exact also where keys are not finite: a product with a weight of 0 would carry their NaN to queries that do not
// attend them. Such keys are loaded as 0, and the queries that do attend them get the score NaN.
template <typename C>
class KeyRange {
  using Int = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;

 public:
  KeyRange(const CrossAttentionParams& p, int64_t padded_rows, Scratch::Frame& frame) : p_(p), rows_(padded_rows) {
    if (!p.range) return;
    start_ = frame.take<Int>(rows_), end_ = frame.take<Int>(rows_);
    kept_ = frame.take<uint8_t>(kMostRows), state_ = frame.take<uint8_t>(kMostRows);
  }

  bool any() const { return p_.range; }

  // The ranges of a sample's queries; row m of a head group belongs to query m modulo L. Padding attends nothing.
  void begin(int64_t sample, int64_t count) {
    if (!p_.range) return;
    lowest_ = p_.keys, highest_ = 0;
    for (int64_t m = 0; m < rows_; ++m) {
      start_[m] = end_[m] = 0;
      if (m >= count) continue;
      const int64_t query = sample * p_.range_batch + m % p_.queries * p_.range_query;
      const int64_t first = std::max<int64_t>(bound(query), 0);
      const int64_t last = std::min(bound(query + p_.range_end), p_.keys);
      if (first >= last) continue;
      start_[m] = static_cast<Int>(first), end_[m] = static_cast<Int>(last);
      lowest_ = std::min(lowest_, first), highest_ = std::max(highest_, last);
    }
  }

  // Whether no query attends any of the keys [first, last).
  bool outside(int64_t first, int64_t last) const { return p_.range && (last <= lowest_ || first >= highest_); }

  // Which of `rows` keys are to be loaded: kept by the mask, in some range, and finite.
  template <typename T>
  const uint8_t* find_kept(int64_t n, int64_t rows, const T* k, int64_t ldk, const T* v, int64_t ldv, int64_t width,
                           const uint8_t* mask, int64_t mask_step) {
    for (int64_t i = 0; i < rows; ++i) {
      const bool masked = (mask && !mask[i * mask_step]) || n + i < lowest_ || n + i >= highest_;
      state_[i] = masked ? kMasked : finite(k + i * ldk, width) && finite(v + i * ldv, width) ? kFinite : kBroken;
      kept_[i] = state_[i] == kFinite;
    }
    return kept_;
  }

  // Which of the rows that find_kept saw last some query may attend, broken ones too.
  const uint8_t* attended() const { return state_; }

  // Scores of keys that are masked or out of a query's range become -inf, of broken ones in range NaN.
  void exclude(int64_t n, int64_t rows, C* scores) const {
    if (!p_.range) return;
    constexpr C kNone = -std::numeric_limits<C>::infinity();
    for (int64_t i = 0; i < rows; ++i) {
      const Bits<C> key = static_cast<Int>(n + i) - Bits<C>{};
      for (int64_t m = 0; m < rows_; m += kLanes<C>) {
        Bits<C> start, end;
        std::memcpy(&start, start_ + m, sizeof start), std::memcpy(&end, end_ + m, sizeof end);
        C* at = scores + i * rows_ + m;
        const Vec<C> s = state_[i] == kBroken ? splat(std::numeric_limits<C>::quiet_NaN()) : load(at);
        const Bits<C> inside = (start <= key) & (key < end);
        store(at, state_[i] != kMasked ? (inside ? s : splat(kNone)) : splat(kNone));
      }
    }
  }

 private:
  static constexpr int64_t kMostRows = 1024;
  enum : uint8_t { kMasked = 0, kFinite, kBroken };

  int64_t bound(int64_t at) const {
    return p_.range_is_32 ? static_cast<const int32_t*>(p_.range)[at] : static_cast<const int64_t*>(p_.range)[at];
  }

  template <typename T>
  static bool finite(const T* row, int64_t width) {
    Vec<C> total{};
    int64_t d = 0;
    for (; d + kLanes<C> <= width; d += kLanes<C>) total += load(row + d) * C(0);
    if (d < width) total += load_part(row + d, width - d) * C(0);
    return sum<C>(total) == C(0);  // 0 times NaN or infinity is NaN
  }

  const CrossAttentionParams& p_;
  const int64_t rows_;
  int64_t lowest_ = 0, highest_ = 0;
  Int *start_ = nullptr, *end_ = nullptr;
  uint8_t *kept_ = nullptr, *state_ = nullptr;
};

}  // namespace JAIR_ISA
}  // namespace jair
