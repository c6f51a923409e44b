// Optional tensors as kernels take parameters.
#pragma once

#include "checks.h"
#include "cpu/parameter.h"

namespace jair {

inline Parameter parameter(const OptionalTensor& tensor) {
  if (!tensor) return {nullptr, Dtype::f32};
  switch (tensor->scalar_type()) {
    case ScalarType::Float: return {tensor->data_ptr(), Dtype::f32};
    case ScalarType::Double: return {tensor->data_ptr(), Dtype::f64};
    case ScalarType::BFloat16: return {tensor->data_ptr(), Dtype::bf16};
    case ScalarType::Half: return {tensor->data_ptr(), Dtype::f16};
    default: STD_TORCH_CHECK(false, "a parameter has an unexpected dtype");
  }
}

inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(torch::stable::contiguous(*tensor)) : tensor;
}

// A parameter [width] of rows x; float64 comes only beside float64.
inline void check_parameter(const OptionalTensor& parameter, int64_t width, const Tensor& x, const char* name) {
  check_shape(parameter, {width}, name);
  const bool fits =
      !parameter || (parameter->scalar_type() == ScalarType::Double) == (x.scalar_type() == ScalarType::Double);
  STD_TORCH_CHECK(fits, name, ": unexpected dtype");
}

// Memory for a parameter's gradient, in the parameter's type; that of an absent one is empty.
inline Tensor gradient_of(const OptionalTensor& parameter, const Tensor& x) {
  return parameter ? torch::stable::empty_like(*parameter) : empty(x, {0}, accumulate_type(x.scalar_type()));
}

}  // namespace jair
