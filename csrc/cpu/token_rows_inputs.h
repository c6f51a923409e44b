// The tensors of token rows as their kernels take them.
#pragma once

#include "checks.h"
#include "cpu/token_rows_params.h"

namespace jair {

inline void set_token_rows(TokenRowsParams& p, const Tensor& x, const OptionalTensor& mask) {
  p.batch = x.size(0), p.tokens = x.size(1), p.width = x.size(2);
  check_not_empty({p.tokens, p.width}, "x");
  p.x = x.data_ptr(), p.x_image = x.stride(0), p.x_token = x.stride(1);
  if (!mask) return;
  check_shape(mask, {p.batch, p.tokens}, "mask");
  check_dtype(*mask, ScalarType::Bool, "mask");
  p.mask = static_cast<const uint8_t*>(mask->data_ptr());
  p.mask_image = mask->stride(0), p.mask_token = mask->stride(1);
}

}  // namespace jair
