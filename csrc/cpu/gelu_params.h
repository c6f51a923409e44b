#pragma once

#include "cpu/row_shares.h"

namespace jair {

// Strides are in elements; the last axis of h and dg is contiguous, g and dh are contiguous.
struct GeluParams {
  int64_t rows, width;  // R, M
  const void* h;
  int64_t h_row;
  void* g;
  const void* dg;
  int64_t dg_row;
  void* dh;
  void* sums;  // of dh over rows, [M] in the compute type; null: not wanted
};

}  // namespace jair
