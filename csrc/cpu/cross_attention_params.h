#pragma once

#include <cstdint>

#include "cpu/segments.h"

namespace jair {

// A token-major tensor [B,tokens,heads,d]: its strides in elements; the last axis is contiguous.
template <typename Pointer>
struct Heads {
  Pointer data;
  int64_t batch, token, head;
};

// The "images" of the plan are the B h_kv pairs of a sample and a head of the keys.
struct CrossAttentionParams {
  int64_t batch, heads, kv_heads, queries, keys, width;  // B, h, h_kv, L, N, d
  Heads<const void*> q, k, v;
  const uint8_t* mask;  // null: all keys are kept
  int64_t mask_batch, mask_token;
  const void* range;  // int32 or int64 [B,L,2]; null: all keys are in range
  bool range_is_32;
  int64_t range_batch, range_query, range_end;  // strides; the end of a range lies range_end behind its start
  double scale;
  Heads<void*> o;
  void* stats;     // [B,h,L,2]: largest score and 1 / sum of exponentials below it, -inf and 0 without keys; contiguous
  void* partials;  // forward: a pooling state for each partial segment of the plan
  Heads<const void*> dout;
  Heads<void*> dq, dk, dv;
  const Plan* plan;
};

}  // namespace jair
