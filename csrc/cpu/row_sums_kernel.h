// Sums over rows and along them, in the compute type. Included once per instruction set.
#include "cpu/vec.h"
#include "cpu/pool.h"
#include "cpu/rows.h"

namespace jair {
namespace JAIR_ISA {

// out[d] = sum_r a[r][d]
template <typename T>
void column_sum(const RowSumsParams& p, const RowShares& shares) {
  using C = compute_t<T>;
  Scratch::Frame frame;
  const RowSums<C> sums(padded<C>(p.width), shares.count(), frame);
  parallel(shares.count(), [&](int64_t i) {
    sums.collect(i, shares.begin(i), shares.end(i), [&](int64_t first, int64_t last, C* block) {
      over_rows(first, last, [&](auto group, int64_t row) {
        const T* a = static_cast<const T*>(p.a) + row * p.a_row;
        over_columns<C>(p.width, [&](int64_t d, auto vector) {
          Vec<C> total = vector.get(a + d);
          for (int n = 1; n < group.kRows; ++n) total += vector.get(a + n * p.a_row + d);
          store(block + d, load(block + d) + total);
        });
      });
    });
  });
  const C* total = sums.join();
  std::copy(total, total + p.width, static_cast<C*>(p.out));
}

// out[r] = sum_d a[r][d] b[r][d]
template <typename T>
void row_dot(const RowSumsParams& p, const RowShares& shares) {
  using C = compute_t<T>;
  parallel(shares.count(), [&](int64_t i) {
    for (int64_t row = shares.begin(i); row < shares.end(i); ++row) {
      const T *a = static_cast<const T*>(p.a) + row * p.a_row, *b = static_cast<const T*>(p.b) + row * p.b_row;
      Vec<C> sums[4] = {};
      over_columns<C>(
          p.width, [&](int64_t d, auto vector) { sums[d / kLanes<C> % 4] += vector.get(a + d) * vector.get(b + d); });
      static_cast<C*>(p.out)[row] = sum<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  });
}

}  // namespace JAIR_ISA
}  // namespace jair
