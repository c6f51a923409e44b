// Working memory of one thread, kept between calls so that a call does not pay for page faults.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace jair {

// A stack of 64-byte aligned arrays: take() within a Frame, given back at the Frame's end.
class Scratch {
 public:
  class Frame {
   public:
    Frame() : scratch_(mine()), chunk_(scratch_.chunk_), used_(scratch_.used_) { ++scratch_.depth_; }
    ~Frame() {
      scratch_.chunk_ = chunk_, scratch_.used_ = used_;
      if (--scratch_.depth_ == 0) scratch_.settle();
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

    template <typename T>
    T* take(size_t count) {
      return static_cast<T*>(scratch_.allocate(count * sizeof(T)));
    }

   private:
    Scratch& scratch_;
    size_t chunk_, used_;
  };

  ~Scratch() { release(0); }

 private:
  static constexpr size_t kAlign = 64, kSmallest = size_t{1} << 18, kKeep = size_t{64} << 20;
  struct Chunk {
    void* memory;
    size_t size;
  };

  static Scratch& mine() {
    thread_local Scratch scratch;
    return scratch;
  }

  void* allocate(size_t bytes) {
    bytes = (bytes + kAlign - 1) / kAlign * kAlign;
    if (chunks_.empty() || used_ + bytes > chunks_[chunk_].size) next_chunk(bytes);
    void* result = static_cast<char*>(chunks_[chunk_].memory) + used_;
    used_ += bytes;
    return result;
  }

  // Chunks behind the current one hold nothing: one is taken if it is large enough, else they make room for one.
  void next_chunk(size_t bytes) {
    const size_t next = chunks_.empty() ? 0 : chunk_ + 1;
    if (next == chunks_.size() || chunks_[next].size < bytes) {
      release(next);
      const size_t size = bytes > kSmallest ? bytes : kSmallest;
      void* memory = std::aligned_alloc(kAlign, size);
      if (!memory) throw std::bad_alloc();
      chunks_.push_back({memory, size});
    }
    chunk_ = next, used_ = 0;
  }

  // One chunk of what the last call needed serves the next call whole; a large one is not kept.
  void settle() {
    chunk_ = used_ = 0;
    size_t total = 0;
    for (const Chunk& chunk : chunks_) total += chunk.size;
    if (chunks_.size() <= 1 && total <= kKeep) return;
    release(0);
    if (total > kKeep) return;
    if (void* memory = std::aligned_alloc(kAlign, total)) chunks_.push_back({memory, total});
  }

  void release(size_t from) {
    for (size_t i = from; i < chunks_.size(); ++i) std::free(chunks_[i].memory);
    chunks_.resize(from < chunks_.size() ? from : chunks_.size());
  }

  std::vector<Chunk> chunks_;
  size_t chunk_ = 0, used_ = 0;
  int depth_ = 0;
};

}  // namespace jair
