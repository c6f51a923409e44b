#pragma once

#include "cpu/parameter.h"
#include "cpu/row_shares.h"

namespace jair {

// Strides are in elements; the last axis of rows is contiguous, statistics [R,2] and outputs are contiguous.
struct AddNormParams {
  int64_t rows, width;  // R, D
  const void* x;
  int64_t x_row;
  const void* x_stats;  // mean and 1/std in the compute type; null: base = x, else base = LN(x)
  Parameter x_weight, x_bias;
  const void* update;  // null: nothing is added
  int64_t update_row;
  Parameter gate;
  int64_t gate_size;  // 1 or D
  bool norm;
  Parameter weight, bias;
  double eps;
  void *z, *y, *stats;
};

struct AddNormGradParams {
  int64_t rows, width;
  const void *dy, *dz, *z;  // dz null: 0
  int64_t dy_row, dz_row, z_row;
  const void* stats;
  Parameter weight, bias;
  void *dx, *dweight, *dbias;  // dweight, dbias null = absent
};

}  // namespace jair
