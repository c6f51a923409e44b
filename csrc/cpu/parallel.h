// The thread pool, without the headers that must not be compiled for one instruction set.
#pragma once

#include <cstdint>

namespace jair {

int64_t thread_count();
void run_parallel(int64_t tasks, void (*task)(const void* context, int64_t index), const void* context);

// Runs f(t) for t = 0 .. tasks-1, one each where the pool has as many threads.
template <typename F>
inline void parallel(int64_t tasks, const F& f) {
  if (tasks == 1) return f(0);
  run_parallel(tasks, [](const void* context, int64_t index) { (*static_cast<const F*>(context))(index); }, &f);
}

}  // namespace jair
