// Working memory of one thread, kept between calls so that a call does not pay for page faults.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace jair {

// A stack of 64-byte aligned arrays: take() within a Frame, everything returned at its end.
class Scratch {
 public:
  class Frame {
   public:
    Frame() : scratch_(mine()) { ++scratch_.depth_; }
    ~Frame() {
      if (--scratch_.depth_ == 0) scratch_.reset();
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

    template <typename T>
    T* take(size_t count) {
      return static_cast<T*>(scratch_.allocate(count * sizeof(T)));
    }

   private:
    Scratch& scratch_;
  };

  ~Scratch() { release(); }

 private:
  static constexpr size_t kAlign = 64, kKeep = size_t{64} << 20;

  static Scratch& mine() {
    thread_local Scratch scratch;
    return scratch;
  }

  void* allocate(size_t bytes) {
    bytes = (bytes + kAlign - 1) / kAlign * kAlign;
    if (chunks_.empty() || used_ + bytes > chunks_.back().size) {
      const size_t size = bytes > kSmallest ? bytes : kSmallest;
      void* memory = std::aligned_alloc(kAlign, size);
      if (!memory) throw std::bad_alloc();
      chunks_.push_back({memory, size});
      used_ = 0;
    }
    void* result = static_cast<char*>(chunks_.back().memory) + used_;
    used_ += bytes;
    return result;
  }

  // One chunk of the size that the last call needed serves the next one whole.
  void reset() {
    used_ = 0;
    if (chunks_.size() <= 1 && (chunks_.empty() || chunks_[0].size <= kKeep)) return;
    size_t total = 0;
    for (const Chunk& chunk : chunks_) total += chunk.size;
    release();
    if (total > kKeep) return;
    if (void* memory = std::aligned_alloc(kAlign, total)) chunks_.push_back({memory, total});
  }

  void release() {
    for (Chunk& chunk : chunks_) std::free(chunk.memory);
    chunks_.clear();
    used_ = 0;
  }

  static constexpr size_t kSmallest = size_t{1} << 18;
  struct Chunk {
    void* memory;
    size_t size;
  };
  std::vector<Chunk> chunks_;
  size_t used_ = 0;
  int depth_ = 0;
};

}  // namespace jair
