#pragma once

#include "cpu/row_shares.h"

namespace jair {

// Strides are in elements; the last axis of a and b is contiguous.
struct RowSumsParams {
  int64_t rows, width;
  const void *a, *b;
  int64_t a_row, b_row;
  void* out;  // in the type that sums are kept in
};

}  // namespace jair
