// Blocks of CUDA threads as fibers of one CPU thread, for tests of kernels on machines without a GPU.
#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __launch_bounds__(...)

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Copy {
  void* to;
  const void* from;
};

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  std::vector<Copy> pending;
  std::deque<std::vector<Copy>> groups;
};

struct Block {
  std::vector<unsigned char> shared;
  std::vector<Fiber> fibers;
  std::vector<std::array<std::array<unsigned char, 64>, 32>> slots;  // of every warp
  std::vector<Barrier> warps;
  Barrier whole;
  ucontext_t scheduler;
  int current = 0;
  std::function<void()> body;
};

inline Block block;

inline Fiber& self() { return block.fibers[block.current]; }
inline int lane() { return block.current % 32; }

inline void yield() {
  const int mine = block.current;
  swapcontext(&block.fibers[mine].context, &block.scheduler);
}

inline void wait(Barrier& barrier, int count) {
  const int generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) yield();
}

inline void sync_warp() { wait(block.warps[block.current / 32], 32); }

// What every lane of the warp has given.
template <typename V>
std::array<V, 32> exchange(const V& value) {
  static_assert(sizeof(V) <= 64);
  auto& slots = block.slots[block.current / 32];
  memcpy(slots[lane()].data(), &value, sizeof(V));
  sync_warp();
  std::array<V, 32> all;
  for (int i = 0; i < 32; ++i) memcpy(&all[i], slots[i].data(), sizeof(V));
  sync_warp();
  return all;
}

inline void enter() {
  block.body();
  block.fibers[block.current].done = true;
  yield();
}

// Runs a kernel, its threads in either order, in which a missing barrier shows; false if threads wait for others that
// have ended.
inline bool run(const std::function<void()>& body, dim3 grid, int threads, size_t shared_bytes,
                bool backwards = false) {
  constexpr size_t kStack = 1 << 17;
  gridDim = grid, blockDim = dim3(threads);
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = dim3(b);
    block.shared.assign(shared_bytes, 0xff);
    block.fibers = std::vector<Fiber>(threads);
    block.slots.resize(threads / 32);
    block.warps.assign(threads / 32, {});
    block.whole = {};
    block.body = body;
    for (auto& fiber : block.fibers) {
      getcontext(&fiber.context);
      fiber.stack.reset(new char[kStack]);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
    for (int left = threads, idle = 0; left > 0;) {
      left = 0;
      for (int turn = 0; turn < threads; ++turn) {
        const int i = backwards ? threads - 1 - turn : turn;
        if (block.fibers[i].done) continue;
        block.current = i, threadIdx = dim3(i);
        swapcontext(&block.scheduler, &block.fibers[i].context);
        left += !block.fibers[i].done;
      }
      if (++idle > 10'000'000) return false;
    }
  }
  return true;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block.whole, blockDim.x); }
inline void __syncwarp() { emulator::sync_warp(); }

template <typename V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  return emulator::exchange(value)[emulator::lane() ^ mask];
}

template <typename V>
V __shfl_sync(unsigned, V value, int source) {
  return emulator::exchange(value)[source];
}
