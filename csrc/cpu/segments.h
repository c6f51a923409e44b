// How the tokens of a batch are shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace jair {

// Tokens [begin, end) of one image, done by one thread. A segment that is a whole image has partial = -1, else
// partial is its place among the partial results of the call, in the order of (image, begin).
struct Segment {
  int64_t image, begin, end;
  int partial;
};

// Contiguous shares of B * N tokens in units of `grain`, so that a small batch is split over tokens. The plan
// depends on the arguments alone: results are equal from run to run.
class Plan {
 public:
  Plan(int64_t batch, int64_t tokens, int64_t threads, int64_t grain) {
    const int64_t units = (tokens + grain - 1) / grain, total = batch * units;
    threads = std::max<int64_t>(1, std::min(threads, total));
    work_.resize(threads);
    for (int64_t t = 0; t < threads; ++t) {
      const int64_t last = total * (t + 1) / threads;
      for (int64_t unit = total * t / threads; unit < last;) {
        const int64_t image = unit / units, first = unit - image * units;
        const int64_t count = std::min(units - first, last - unit);
        const bool whole = count == units;
        work_[t].push_back({image, first * grain, std::min(tokens, (first + count) * grain), whole ? -1 : partials_++});
        unit += count;
      }
    }
  }

  int64_t threads() const { return static_cast<int64_t>(work_.size()); }
  int partials() const { return partials_; }
  const std::vector<Segment>& of(int64_t thread) const { return work_[thread]; }

  // The partial segments in the order of their numbers.
  std::vector<Segment> split() const {
    std::vector<Segment> result;
    for (const auto& share : work_) {
      for (const Segment& s : share) {
        if (s.partial >= 0) result.push_back(s);
      }
    }
    return result;
  }

 private:
  std::vector<std::vector<Segment>> work_;
  int partials_ = 0;
};

}  // namespace jair
