#include "cpu/parallel.h"

#include <torch/csrc/stable/ops.h>

namespace jair {

int64_t thread_count() { return torch::stable::get_num_threads(); }

void run_parallel(int64_t tasks, void (*task)(const void*, int64_t), const void* context) {
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) task(context, t);
  });
}

}  // namespace jair
