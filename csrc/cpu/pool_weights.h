// Softmax or sigmoid weights of a block of tokens, the state of a softmax over blocks, and its weights in a backward.
// Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// The running state of a softmax over tokens: max and compensated sum with its excess [Kp], unnormalised output acc
// [K,dp] in some layout. Its memory is one array, so that partial states can be handed from thread to thread.
template <typename C, typename Layout = RowLayout<C>>
struct PoolState {
  C *max, *sum, *excess, *acc;
  static int64_t size(int64_t outputs, int64_t dp) { return 3 * padded<C>(outputs) + Layout::size(outputs, dp); }
  PoolState(C* memory, int64_t outputs)
      : max(memory),
        sum(max + padded<C>(outputs)),
        excess(sum + padded<C>(outputs)),
        acc(excess + padded<C>(outputs)) {}

  // The state of outputs first.., a multiple of 16: layouts keep no more outputs together.
  PoolState from(int64_t first, int64_t dp) const {
    PoolState part = *this;
    part.max += first, part.sum += first, part.excess += first, part.acc += Layout::size(first, dp);
    return part;
  }

  void clear(int64_t outputs, int64_t dp) {
    for (int64_t k = 0; k < padded<C>(outputs); ++k) max[k] = -std::numeric_limits<C>::infinity();
    zero(sum, 2 * padded<C>(outputs));
    zero(acc, Layout::size(outputs, dp));
  }
};

// Multiplies the state by exp(max - larger) and makes `larger` its max.
template <typename C, typename Layout>
inline void raise_max(PoolState<C, Layout>& state, const C* larger, int64_t outputs, int64_t dp) {
  for (int64_t k0 = 0; k0 < padded<C>(outputs); k0 += kLanes<C>) {
    const Vec<C> next = load(larger + k0), now = load(state.max + k0);
    const Vec<C> scale = now == next ? splat(C(1)) : exp(now - next);
    store(state.max + k0, next);
    const Vec<C> sum = load(state.sum + k0);
    store(state.sum + k0, sum * scale), store(state.excess + k0, load(state.excess + k0) * scale);
    for (int i = 0; i < kLanes<C> && k0 + i < outputs; ++i) {
      if (scale[i] != C(1) && sum[i] != C(0)) Layout::scale(state.acc, dp, k0 + i, scale[i]);
    }
  }
}

// Scores [rows,Kp] become exp(score - max), after the state's max has been raised to theirs; keep may be null.
template <typename T, typename Layout, typename C = compute_t<T>>
inline void softmax_weights(PoolState<C, Layout>& state, C* scores, int64_t rows, const uint8_t* keep,
                            int64_t keep_stride, int64_t outputs, int64_t dp) {
  constexpr C kNone = -std::numeric_limits<C>::infinity();
  const int64_t stride = padded<C>(outputs);
  C larger[kLanes<C>];
  Scratch::Frame frame;
  C* all = stride > kLanes<C> ? frame.take<C>(stride) : larger;
  for (int64_t k = 0; k < stride; k += kLanes<C>) {
    Vec<C> top = load(state.max + k);
    for (int64_t n = 0; n < rows; ++n) {
      if (keep && !keep[n * keep_stride]) store(scores + n * stride + k, splat(kNone));
      top = vmax(load(scores + n * stride + k), top);
    }
    store(all + k, top);
  }
  raise_max(state, all, outputs, dp);
  for (int64_t k = 0; k < stride; k += kLanes<C>) {
    const Vec<C> top = load(state.max + k);
    const Vec<C> shift = top == kNone ? Vec<C>{} : top;  // nothing kept so far: every weight is exp(-inf) = 0
    const auto weigh = [&](int64_t n) {
      const Vec<C> p = exp_of_score<T>(load(scores + n * stride + k) - shift);
      store(scores + n * stride + k, p);
      return p;
    };
    constexpr int64_t kPlain = 64;  // weights of which every fourth is summed plainly
    for (int64_t first = 0; first < rows; first += kPlain) {
      const int64_t last = std::min(rows, first + kPlain);
      Vec<C> sums[4] = {};
      int64_t n = first;
      for (; n + 4 <= last; n += 4) {
        for (int i = 0; i < 4; ++i) sums[i] += weigh(n + i);
      }
      for (; n < last; ++n) sums[0] += weigh(n);
      add_compensated(state.sum + k, state.excess + k, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
  }
}

template <typename C>
inline void sigmoid_weights(C* scores, int64_t rows, const uint8_t* keep, int64_t keep_stride, int64_t outputs) {
  const int64_t stride = padded<C>(outputs);
  for (int64_t n = 0; n < rows; ++n) {
    const bool kept = !keep || keep[n * keep_stride];
    for (int64_t k = 0; k < stride; k += kLanes<C>) {
      store(scores + n * stride + k, kept ? sigmoid<C>(load(scores + n * stride + k)) : Vec<C>{});
    }
  }
}

// Joins the state of later tokens to that of earlier ones.
template <typename C, typename Layout>
inline void merge(PoolState<C, Layout>& into, PoolState<C, Layout>& from, int64_t outputs, int64_t dp) {
  const int64_t stride = padded<C>(outputs), size = Layout::size(outputs, dp);
  Scratch::Frame frame;
  C* larger = frame.take<C>(stride);
  for (int64_t k = 0; k < stride; k += kLanes<C>) store(larger + k, vmax(load(into.max + k), load(from.max + k)));
  raise_max(into, larger, outputs, dp);
  raise_max(from, larger, outputs, dp);
  for (int64_t k = 0; k < stride; k += kLanes<C>) add_compensated(into.sum + k, into.excess + k, load(from.sum + k));
  for (int64_t i = 0; i < size; i += kLanes<C>) store(into.acc + i, load(into.acc + i) + load(from.acc + i));
}

// acc / sum * factor in place, and the pairs [K,2] that a backward reads: max and 1/sum. Both are 0, as is the output,
// where nothing was kept, or nothing but scores of -inf. (One number, the log-sum-exp, would round what exp is taken
// of: scores near 1e4 leave it, and so the weights, three digits.)
template <typename C, typename Layout>
inline void finish_softmax(PoolState<C, Layout>& state, C* pairs, int64_t outputs, int64_t dp, C factor) {
  for (int64_t k = 0; k < outputs; ++k) {
    const bool none = state.sum[k] == C(0);
    pairs[2 * k] = none ? C(0) : state.max[k], pairs[2 * k + 1] = none ? C(0) : C(1) / state.sum[k];
    Layout::scale(state.acc, dp, k, none ? C(0) : factor / state.sum[k]);
  }
}

// A softmax over values held as T, as its backward reads it: max and 1/sum of every output, [Kp] each.
template <typename T>
struct Softmax {
  using C = compute_t<T>;
  C *max = nullptr, *inverse = nullptr;

  Softmax() = default;
  Softmax(Scratch::Frame& frame, int64_t kp) : max(frame.take<C>(kp)), inverse(frame.take<C>(kp)) {}

  void read(const void* pairs, int64_t image, int64_t outputs, int64_t kp) {
    const C* from = static_cast<const C*>(pairs) + 2 * image * outputs;
    zero(max, kp), zero(inverse, kp);
    for (int64_t k = 0; k < outputs; ++k) max[k] = from[2 * k], inverse[k] = from[2 * k + 1];
  }

  // Scores of -inf have no weight, not even where the others' sum is NaN.
  Vec<C> weights(Vec<C> scores, int64_t k) const {
    constexpr C kNone = -std::numeric_limits<C>::infinity();
    return scores == kNone ? Vec<C>{} : exp_of_score<T>(scores - load(max + k)) * load(inverse + k);
  }

  // Scores [rows,Kp] become weights, those of masked tokens 0; keep may be null.
  void weigh(C* scores, int64_t rows, int64_t kp, const uint8_t* keep, int64_t keep_stride) const {
    for (int64_t n = 0; n < rows; ++n) {
      const bool kept = !keep || keep[n * keep_stride];
      for (int64_t k = 0; k < kp; k += kLanes<C>) {
        C* at = scores + n * kp + k;
        store(at, kept ? weights(load(at), k) : Vec<C>{});
      }
    }
  }
};

// Joins the states of images that were split between threads, in the order of their tokens, and hands each to
// finish(image, state).
template <typename Layout, typename C, typename F>
inline void merge_partials(const Plan& plan, C* partials, int64_t size, int64_t outputs, int64_t dp, F finish) {
  const auto split = plan.split();
  for (size_t i = 0; i < split.size();) {
    PoolState<C, Layout> state(partials + i * size, outputs);
    size_t j = i + 1;
    for (; j < split.size() && split[j].image == split[i].image; ++j) {
      PoolState<C, Layout> later(partials + j * size, outputs);
      merge(state, later, outputs, dp);
    }
    finish(split[i].image, state);
    i = j;
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
