// fused_cross_attention on the CPU: checks, outputs, threads; the arithmetic is in cross_attention_kernel.h.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/cross_attention_params.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

#define JAIR_KERNEL "cpu/cross_attention_kernel.h"
#include "cpu/foreach_isa.h"

#include "cpu/dispatch.h"
#include "cpu/result.h"

namespace jair {
namespace {

constexpr int64_t kGrain = 64;

Heads<const void*> heads_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

// One of `parts` tensors [B,tokens,heads,d] packed in [B,tokens,parts,heads,d].
Heads<void*> part_of(const Tensor& t, int64_t part, int64_t parts, int64_t heads, int64_t width, int64_t itemsize) {
  char* data = static_cast<char*>(t.data_ptr()) + part * heads * width * itemsize;
  return {data, t.size(1) * parts * heads * width, parts * heads * width, width};
}

CrossAttentionParams make_params(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
                                 const OptionalTensor& range, double scale, const Plan& plan) {
  CrossAttentionParams p{};
  p.batch = q.size(0), p.queries = q.size(1), p.heads = q.size(2), p.width = q.size(3);
  p.keys = k.size(1), p.kv_heads = k.size(2);
  check_not_empty({p.queries, p.heads, p.width}, "q");
  check_not_empty({p.keys, p.kv_heads}, "k");
  check_shape(k, {p.batch, p.keys, p.kv_heads, p.width}, "k");
  check_shape(v, {p.batch, p.keys, p.kv_heads, p.width}, "v");
  check_shape(mask, {p.batch, p.keys}, "mask");
  check_shape(range, {p.batch, p.queries, 2}, "kv_range");
  check_dtype(k, q.scalar_type(), "k");
  check_dtype(v, q.scalar_type(), "v");
  STD_TORCH_CHECK(p.heads % p.kv_heads == 0, "k: unexpected number of heads");
  p.q = heads_of(q), p.k = heads_of(k), p.v = heads_of(v);
  if (mask) {
    check_dtype(*mask, ScalarType::Bool, "mask");
    p.mask = static_cast<const uint8_t*>(mask->data_ptr());
    p.mask_batch = mask->stride(0), p.mask_token = mask->stride(1);
  }
  if (range) {
    p.range_is_32 = range->scalar_type() == ScalarType::Int;
    STD_TORCH_CHECK(p.range_is_32 || range->scalar_type() == ScalarType::Long, "kv_range: unexpected dtype");
    STD_TORCH_CHECK(p.keys <= std::numeric_limits<int32_t>::max(), "k: too many keys for kv_range");
    p.range = range->data_ptr();
    p.range_batch = range->stride(0), p.range_query = range->stride(1), p.range_end = range->stride(2);
  }
  p.scale = scale, p.plan = &plan;
  return p;
}

std::tuple<Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, OptionalTensor mask, OptionalTensor range,
                                   double scale) {
  const Tensor dense_q = with_dense_rows(q), dense_k = with_dense_rows(k), dense_v = with_dense_rows(v);
  const Plan plan(k.size(0) * k.size(2), k.size(1), thread_count(), kGrain);
  CrossAttentionParams p = make_params(dense_q, dense_k, dense_v, mask, range, scale, plan);
  const ScalarType dtype = q.scalar_type();
  Tensor o = result(q, {p.batch, p.queries, p.heads, p.width}, dtype);
  Tensor stats = result(q, {p.batch, p.heads, p.queries, 2}, accumulate_type(dtype));
  p.o = part_of(o, 0, 1, p.heads, p.width, 0), p.stats = stats.data_ptr();
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    JAIR_CALL_ISA(cross_attention_forward, T, p);
  });
  return {o, stats};
}

std::tuple<Tensor, Tensor> backward(Tensor dout, Tensor q, Tensor k, Tensor v, OptionalTensor mask,
                                    OptionalTensor range, OptionalTensor, Tensor stats, double scale, bool packed) {
  const Tensor dense_q = with_dense_rows(q), dense_k = with_dense_rows(k), dense_v = with_dense_rows(v);
  const Tensor dense_dout = with_dense_rows(dout), dense_stats = torch::stable::contiguous(stats);
  const Plan plan(k.size(0) * k.size(2), k.size(1), thread_count(), kGrain);
  CrossAttentionParams p = make_params(dense_q, dense_k, dense_v, mask, range, scale, plan);
  const ScalarType dtype = q.scalar_type();
  check_shape(dout, {p.batch, p.queries, p.heads, p.width}, "dout");
  check_dtype(dout, dtype, "dout");
  check_kept(stats, {p.batch, p.heads, p.queries, 2}, q, "stats");
  STD_TORCH_CHECK(!packed || (p.queries == p.keys && p.heads == p.kv_heads), "packed: q and k differ in shape");
  p.dout = heads_of(dense_dout), p.stats = dense_stats.data_ptr();
  Tensor dq = packed ? result(q, {p.batch, p.keys, 3, p.heads, p.width}, dtype)
                     : result(q, {p.batch, p.queries, p.heads, p.width}, dtype);
  Tensor dkv = packed ? result(q, {0}, dtype) : result(q, {p.batch, p.keys, 2, p.kv_heads, p.width}, dtype);
  dispatch_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t parts = packed ? 3 : 2;
    const Tensor& keys = packed ? dq : dkv;
    p.dq = part_of(dq, 0, packed ? 3 : 1, p.heads, p.width, sizeof(T));
    p.dk = part_of(keys, parts - 2, parts, p.kv_heads, p.width, sizeof(T));
    p.dv = part_of(keys, parts - 1, parts, p.kv_heads, p.width, sizeof(T));
    JAIR_CALL_ISA(cross_attention_backward, T, p);
  });
  return {dq, dkv};
}

}  // namespace
}  // namespace jair

STABLE_TORCH_LIBRARY_IMPL(jair_kernels, CPU, m) {
  m.impl("cross_attention_forward", TORCH_BOX(&jair::forward));
  m.impl("cross_attention_backward", TORCH_BOX(&jair::backward));
}
