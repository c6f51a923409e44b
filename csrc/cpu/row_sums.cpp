// Sums over rows and along them on the CPU: checks, outputs, threads; the arithmetic is in row_sums_kernel.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/row_sums_params.h"
#include "cpu/parameter.h"
#include "cpu/scratch.h"
#include "cpu/segments.h"

#define JAIR_KERNEL "cpu/row_sums_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"

namespace jair {
namespace {

constexpr int64_t kLeast = 65536;  // elements of a thread: some 10 us

Tensor column_sum(Tensor rows) {
  STD_TORCH_CHECK(rows.dim() == 2, "rows: unexpected shape");
  const Tensor dense = with_dense_rows(rows);
  Tensor out = empty(rows, {rows.size(1)}, accumulate_type(rows.scalar_type()));
  const RowSumsParams p{rows.size(0), rows.size(1), dense.data_ptr(), nullptr, dense.stride(0), 0, out.data_ptr()};
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(rows.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(column_sum, T, p, shares);
  });
  return out;
}

Tensor row_dot(Tensor a, Tensor b) {
  STD_TORCH_CHECK(a.dim() == 2, "a: unexpected shape");
  check_shape(b, {a.size(0), a.size(1)}, "b");
  check_dtype(b, a.scalar_type(), "b");
  const Tensor dense_a = with_dense_rows(a), dense_b = with_dense_rows(b);
  Tensor out = empty(a, {a.size(0)}, accumulate_type(a.scalar_type()));
  const RowSumsParams p{a.size(0),         a.size(1),         dense_a.data_ptr(), dense_b.data_ptr(),
                        dense_a.stride(0), dense_b.stride(0), out.data_ptr()};
  const RowShares shares(p.rows, p.width, kLeast);
  dispatch_dtype(a.scalar_type(), [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(row_dot, T, p, shares);
  });
  return out;
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("column_sum", TORCH_BOX(&jair::column_sum));
  m.impl("row_dot", TORCH_BOX(&jair::row_dot));
}
