#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/parallel.h"

namespace jair {

// Rows in contiguous equal shares, one a thread, and so few that each has `least` elements or more. They depend on the
// arguments and the number of threads alone.
class RowShares {
 public:
  RowShares(int64_t rows, int64_t width, int64_t least)
      : rows_(rows), count_(std::max<int64_t>(1, std::min({thread_count(), rows, rows * width / least}))) {}

  int64_t count() const { return count_; }
  int64_t begin(int64_t share) const { return rows_ * share / count_; }
  int64_t end(int64_t share) const { return begin(share + 1); }

 private:
  int64_t rows_, count_;
};

}  // namespace jair
