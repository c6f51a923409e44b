// Loops over rows, their columns in vectors, and sums over rows. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// One vector of a row as a loop over columns sees it: whole, or the last one, whose lanes beyond the row are 0 when
// read and are not written.
struct WholeVector {
  template <typename T>
  Vec<compute_t<T>> get(const T* p) const {
    return load(p);
  }
  template <typename T>
  void put(T* p, Vec<compute_t<T>> v) const {
    store(p, v);
  }
  template <typename V>
  V valid(V v) const {
    return v;
  }
};

struct PartOfVector {
  int count;
  template <typename T>
  Vec<compute_t<T>> get(const T* p) const {
    return load_part(p, count);
  }
  template <typename T>
  void put(T* p, Vec<compute_t<T>> v) const {
    store_part(p, v, count);
  }
  template <typename V>
  V valid(V v) const {
    V result{};
    std::memcpy(&result, &v, count * sizeof(v[0]));
    return result;
  }
};

// Calls f(d, vector) for the vectors of a row that begin at the columns d.
template <typename C, typename F>
inline void over_columns(int64_t width, F f) {
  int64_t d = 0;
  for (; d + kLanes<C> <= width; d += kLanes<C>) f(d, WholeVector{});
  if (d < width) f(d, PartOfVector{static_cast<int>(width - d)});
}

// The sum over a row of f(d, vector), in four sums that do not wait for one another.
template <typename C, typename F>
inline C sum_columns(int64_t width, F f) {
  Vec<C> sums[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes<C> <= width; d += 4 * kLanes<C>) {
    for (int i = 0; i < 4; ++i) sums[i] += f(d + i * kLanes<C>, WholeVector{});
  }
  over_columns<C>(width - d, [&](int64_t e, auto vector) { sums[0] += f(d + e, vector); });
  return sum<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Rows worked on together: they share the reading of parameters, and their sums do not wait for one another.
template <int N>
struct RowGroup {
  static constexpr int kRows = N;
};
constexpr int kGroupRows = 4;

// Calls f(group, row) for the groups of rows that begin at the rows `row` of [first, last).
template <typename F>
inline void over_rows(int64_t first, int64_t last, F f) {
  int64_t row = first;
  for (; row + kGroupRows <= last; row += kGroupRows) f(RowGroup<kGroupRows>{}, row);
  for (; row < last; ++row) f(RowGroup<1>{}, row);
}

// Sums over rows in a fixed order: those of each thread, then those of all threads. `size` is a multiple of a vector.
// Blocks of rows are added with compensation.
template <typename C>
class RowSums {
 public:
  RowSums(int64_t size, int64_t threads, Scratch::Frame& frame)
      : size_(size), threads_(threads), all_(frame.take<C>(3 * size * threads)) {}

  // Adds the rows [first, last) of one thread: add(first, last, sums) does it for one block of rows.
  template <typename F>
  void collect(int64_t thread, int64_t first, int64_t last, F add) const {
    constexpr int64_t kBlock = 32;
    C *total = all_ + 3 * thread * size_, *excess = total + size_, *block = excess + size_;
    zero(total, 2 * size_);
    for (int64_t row = first; row < last; row += kBlock) {
      zero(block, size_);
      add(row, std::min(last, row + kBlock), block);
      for (int64_t i = 0; i < size_; i += kLanes<C>) {
        add_compensated(total + i, excess + i, load(block + i));
      }
    }
  }

  const C* join() const {
    for (int64_t t = 1; t < threads_; ++t) {
      const C* from = all_ + 3 * t * size_;
      for (int64_t i = 0; i < size_; i += kLanes<C>) store(all_ + i, load(all_ + i) + load(from + i));
    }
    return all_;
  }

 private:
  int64_t size_, threads_;
  C* all_;
};

}  // namespace JAIR_ISA
}  // namespace jair
