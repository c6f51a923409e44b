// Last line of defence behind the checks in Python: a kernel never reads outside its tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace jair {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline void check_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes, const char* name) {
  bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t axis = 0;
  for (int64_t size : sizes) same = same && tensor.size(axis++) == size;
  STD_TORCH_CHECK(same, name, ": unexpected shape");
}

inline void check_shape(const OptionalTensor& tensor, std::initializer_list<int64_t> sizes, const char* name) {
  if (tensor) check_shape(*tensor, sizes, name);
}

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": unexpected dtype");
}

// Kernels divide by these, and read the first of each.
inline void check_not_empty(std::initializer_list<int64_t> sizes, const char* name) {
  for (int64_t size : sizes) STD_TORCH_CHECK(size > 0, name, ": unexpected size 0");
}

// Rows of a tensor can be read in place when the last axis is contiguous; else a contiguous copy is.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.size(last) <= 1 || tensor.stride(last) == 1 ? tensor : torch::stable::contiguous(tensor);
}

inline OptionalTensor with_dense_rows(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(with_dense_rows(*tensor)) : tensor;
}

// Statistics and parameter gradients are kept in float32, for float64 inputs in float64.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What the forward kept, of this shape and in the type of sums.
inline void check_kept(const Tensor& tensor, std::initializer_list<int64_t> sizes, const Tensor& x, const char* name) {
  check_shape(tensor, sizes, name);
  check_dtype(tensor, accumulate_type(x.scalar_type()), name);
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), dtype);
}

}  // namespace jair
