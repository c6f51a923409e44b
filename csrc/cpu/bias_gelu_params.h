#pragma once

#include "cpu/parameter.h"
#include "cpu/row_shares.h"

namespace jair {

// Strides are in elements; the last axis of h and dg is contiguous, g and dh are contiguous.
struct BiasGeluParams {
  int64_t rows, width;  // R, M
  const void* h;
  int64_t h_row;
  Parameter bias;
  void* g;
  const void* dg;
  int64_t dg_row;
  void *dh, *dbias;  // dbias null = absent
};

}  // namespace jair
