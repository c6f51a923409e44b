// Queries and output gradients as operands of an engine's products. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// K rows of D. For products with token rows they stand in chunks: one chunk stays in the second-level cache beside a
// block of tokens while all strips of the block are multiplied with it, however large K is.
template <typename T>
class OutputRows {
 public:
  using E = Engine<T>;
  using C = compute_t<T>;
  static constexpr int64_t kChunk = 64;

  OutputRows() = default;
  // `spread`: for E::spread too, which reads the rows as long as it runs.
  OutputRows(const E& engine, Scratch::Frame& frame, int64_t width, int64_t count, bool spread)
      : width_(width), count_(count), dp_(E::pad_width(width)), spreads_(spread) {
    for (int64_t k = 0; k < count; k += kChunk) {
      columns_.push_back(engine.make_columns(frame, width, std::min(kChunk, count - k)));
    }
    sums_ = frame.take<C>(E::pad_count(count));
    rows_ = frame.take<C>((spread ? count : std::min(kChunk, count)) * dp_);
    if (spread) spread_ = engine.make_spread(frame, width, count);
  }

  void set(const T* from) {
    zero(sums_, E::pad_count(count_));
    for (int64_t first = 0; first < count_; first += kChunk) {
      const int64_t count = outputs(first);
      C* rows = rows_ + (spreads_ ? first * dp_ : 0);
      for (int64_t k = 0; k < count; ++k) {
        C* row = rows + k * dp_;
        zero(row + padded<C>(width_), dp_ - padded<C>(width_));
        convert_row(from + (first + k) * width_, row, width_);
        Vec<C> total{};
        for (int64_t d = 0; d < dp_; d += kLanes<C>) total += load(row + d);
        sums_[first + k] = sum<C>(total);
      }
      E::set_columns(columns_[first / kChunk], rows, count);
    }
    if (spreads_) E::set_spread(spread_, rows_);
  }

  // Outputs of the chunk that begins at `first`.
  int64_t outputs(int64_t first) const { return std::min(kChunk, count_ - first); }
  const typename E::Spread& spread() const { return spread_; }
  const C* sums() const { return sums_; }  // of each row, [kp]

  // xhat rows^T of tokens i.. of the block, for the chunk that begins at `first`: the LayerNorm of the tokens folds in
  // as in ScoreMlp, with these rows' sums as c.
  void times(const TokenRows<T>& tokens, int64_t i, int64_t count, int64_t first, C* out) const {
    const int64_t ld = E::pad_count(outputs(first));
    tokens.engine.times(tokens.rows, i, count, columns_[first / kChunk], out);
    for (int64_t n = 0; tokens.normed && n < count; ++n, out += ld) {
      const C r = tokens.rstd[i + n], offset = tokens.offset(i + n);
      for (int64_t k = 0; k < ld; k += kLanes<C>) {
        store(out + k, r * (load(out + k) - offset * load(sums_ + first + k)));
      }
    }
  }

 private:
  int64_t width_ = 0, count_ = 0, dp_ = 0;
  bool spreads_ = false;
  std::vector<typename E::Columns> columns_;
  C *sums_ = nullptr, *rows_ = nullptr;
  typename E::Spread spread_{};
};

}  // namespace JAIR_ISA
}  // namespace jair
