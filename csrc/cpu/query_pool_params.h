#pragma once

#include "cpu/segments.h"
#include "cpu/token_rows_params.h"

namespace jair {

// Queries, y, softmax, dy, dx and dqueries are contiguous.
struct QueryPoolParams : TokenRowsParams {  // stats null: no LayerNorm
  int64_t outputs;                          // K
  bool shared;                              // one set of queries for all images
  const void* queries;                      // [1,K,D] or [B,K,D]
  void* y;                                  // [B,K,D]
  void* softmax;                            // max and 1/sum, [B,K,2]
  const void* dy;                           // [B,K,D]
  void* dx;                                 // [B,N,D]
  void* dqueries;                           // like queries
  void* partials;                           // forward: a pooling state for each partial segment of the plan
  const void* prepared;                     // shared queries as the products want them
  const Plan* plan;
};

}  // namespace jair
