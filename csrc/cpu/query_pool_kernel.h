// query_pool, forward and backward (docs/derivations.md, section 9). Included once per instruction set.
// The LayerNorm folds into the products: with a token's mean m, r = 1/std and its row held as x - shift,
//   xhat . q = r ((x - shift) . q - (m - shift) c),  c the sum of q's elements, and so for dP = xhat . dY
//   sum of w xhat = sum of (w r) (x - shift) - (sum of w r (m - shift)) 1
// Backward, with dS = P (dP - delta):   dqueries = dS^T xhat,   dxhat = P dY + dS queries,
//   dx = r (dxhat - mean(dxhat) - xhat mean(dxhat . xhat)),   both means over D being sums over K:
//   D mean(dxhat) = P . rowsum(dY) + dS . rowsum(queries),   D mean(dxhat . xhat) = P . dP + dS . S.
#include "cpu/engine.h"
#include "cpu/token_rows.h"
#include "cpu/output_rows.h"
#include "cpu/query_sums.h"

namespace jair {
namespace JAIR_ISA {

// Numbers that a backward keeps of a segment at most: P, dP and scores of further tokens are computed twice.
constexpr int64_t kKept = 1 << 22;

template <typename T>
class QueryPool {
  using E = Engine<T>;
  using C = compute_t<T>;
  using Layout = typename E::Layout;
  static constexpr int64_t kChunk = OutputRows<T>::kChunk;

 public:
  using State = PoolState<C, Layout>;

  // Tokens of a segment that there is room for: those that are held, and a block for one after the other of the rest.
  static int64_t room(const QueryPoolParams& p) {
    const int64_t block = E::block_rows(p.width), numbers = E::pad_count(p.outputs) * (p.stats ? 3 : 2);
    return kKept / numbers / block * block + block;
  }
  static int64_t kept_scores(const QueryPoolParams& p) { return p.stats ? E::pad_count(p.outputs) : 0; }

  QueryPool(const QueryPoolParams& p, bool backward)
      : p_(p),
        k_(p.outputs),
        kp_(E::pad_count(k_)),
        dp_(E::pad_width(p.width)),
        tokens_(p, frame_, backward),
        block_(tokens_.block) {
    if (!p.shared) own_ = OutputRows<T>(tokens_.engine, frame_, p.width, k_, backward);
    if (!backward) {
      state_ = frame_.take<C>(State::size(k_, dp_)), weights_ = frame_.take<C>(block_ * kChunk);
      return;
    }
    dy_ = OutputRows<T>(tokens_.engine, frame_, p.width, k_, true);
    scores_ = frame_.take<C>(E::kStrip * kChunk), dweights_ = frame_.take<C>(E::kStrip * kChunk);
    softmax_ = Softmax<T>(frame_, kp_), constant_ = frame_.take<C>(block_), linear_ = frame_.take<C>(block_);
    if (!p.shared) sums_ = frame_.take<C>(QuerySums<T>::size(p));
  }

  void forward(const Segment& s) {
    State state(s.partial < 0 ? state_ : static_cast<C*>(p_.partials) + s.partial * State::size(k_, dp_), k_);
    state.clear(k_, dp_);
    load_image(s.image);
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n);
      load_block(s.image, n, rows);
      for (int64_t first = 0; first < k_; first += kChunk) {
        const int64_t outputs = queries().outputs(first), ld = E::pad_count(outputs);
        for (int64_t i = 0; i < rows; i += E::kStrip) {
          queries().times(tokens_, i, std::min(E::kStrip, rows - i), first, weights_ + i * ld);
        }
        State part = state.from(first, dp_);
        softmax_weights<T>(part, weights_, rows, tokens_.keep(s.image, n), p_.mask_token, outputs, dp_);
        pool(rows, outputs, part.acc);
      }
    }
    if (s.partial < 0) finish(s.image, state);
  }

  void finish(int64_t image, State& state) {
    finish_softmax(state, static_cast<C*>(p_.softmax) + 2 * image * k_, k_, dp_, C(1));
    Scratch::Frame frame;
    C* row = frame.take<C>(dp_);
    T* y = static_cast<T*>(p_.y) + image * k_ * p_.width;
    for (int64_t k = 0; k < k_; ++k) {
      Layout::read(state.acc, dp_, k, 0, dp_, row);
      convert_row_back(row, y + k * p_.width, p_.width);
    }
  }

  // `sums` null: the image has queries of its own, and so a sum that is complete with it.
  void backward(const Segment& s, C* sums) {
    Scratch::Frame frame;
    const int64_t tokens = std::min(s.end - s.begin, room(p_)), scores = kept_scores(p_);
    Kept<C> kept(frame.take<C>(Kept<C>::size(tokens, scores, kp_)), tokens, scores, kp_);
    backward_weights(s, kept);
    if (sums) return backward_gradients(s, kept, sums);
    zero(sums_, QuerySums<T>::size(p_));
    backward_gradients(s, kept, sums_);
    QuerySums<T>::write(p_, sums_, 1, s.image, 0, k_);
  }

  // First pass: P, dP, the scores if there is a LayerNorm, and this segment's part of delta.
  void backward_weights(const Segment& s, Kept<C>& kept) {
    load_image(s.image);
    kept.begin(kp_);
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n), at = std::min(n - s.begin, held(s));
      load_block(s.image, n, rows);
      weights(s.image, n, rows, kept, at);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        kept.add(kept.p + (at + i) * kp_, kept.dp + (at + i) * kp_, std::min(E::kStrip, rows - i), kp_);
      }
    }
  }

  // Second pass, with the whole image's delta; adds to a sum of dqueries.
  void backward_gradients(const Segment& s, const Kept<C>& kept, C* sums) {
    load_image(s.image);
    Scratch::Frame frame;
    C* delta = frame.take<C>(kp_);
    for (int64_t k = 0; k < kp_; k += kLanes<C>) store(delta + k, kept.mean(k));
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n), at = std::min(n - s.begin, held(s));
      load_block(s.image, n, rows);
      if (n - s.begin >= held(s)) weights(s.image, n, rows, kept, at);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i), row = at + i;
        C *p = kept.p + row * kp_, *ds = kept.dp + row * kp_;
        score_gradients(i, count, p, ds, kept.centred + row * kept_scores(p_), delta, sums + Layout::size(k_, dp_));
        const typename E::Correction less{p_.stats ? &tokens_.rows : nullptr, constant_ + i, linear_ + i};
        T* dx = static_cast<T*>(p_.dx) + (s.image * p_.tokens + n + i) * p_.width;
        tokens_.engine.spread(i, count, p_.width, {p, kp_, &dy_.spread()}, {ds, kp_, &queries().spread()}, less, dx,
                              p_.width);
        zero_masked_rows(dx, p_.width, p_.width, count, tokens_.keep(s.image, n + i), p_.mask_token);
      }
      tokens_.engine.gather(tokens_.rows, rows, kept.dp + at * kp_, kp_, k_, sums);
    }
  }

 private:
  const OutputRows<T>& queries() const { return p_.shared ? *static_cast<const OutputRows<T>*>(p_.prepared) : own_; }

  int64_t held(const Segment& s) const {
    const int64_t tokens = s.end - s.begin, most = room(p_);
    return tokens <= most ? tokens : most - block_;
  }

  void load_image(int64_t image) {
    if (image == image_) return;
    image_ = image, loaded_ = -1;
    const int64_t first = image * k_ * p_.width;
    if (!p_.shared) own_.set(static_cast<const T*>(p_.queries) + first);
    if (!p_.dy) return;
    dy_.set(static_cast<const T*>(p_.dy) + first);
    softmax_.read(p_.softmax, image, k_, kp_);
  }

  void load_block(int64_t image, int64_t token, int64_t count) {
    if (token == loaded_) return;
    tokens_.load_rows(image, token, 0, count);
    loaded_ = token;
  }

  // acc += weights^T xhat over the block, for a chunk of outputs.
  void pool(int64_t rows, int64_t outputs, C* acc) {
    const int64_t ld = E::pad_count(outputs);
    C less[kChunk] = {};
    for (int64_t n = 0; p_.stats && n < rows; ++n) scale_weights(n, ld, weights_ + n * ld, less);
    tokens_.engine.gather(tokens_.rows, rows, weights_, ld, outputs, acc);
    for (int64_t k = 0; k < outputs; ++k) {
      if (less[k] != C(0)) Layout::add(acc, dp_, k, -less[k]);
    }
  }

  // Weights of row n are multiplied by its 1/std; `less` gets what the row's offset adds to their products.
  void scale_weights(int64_t n, int64_t count, C* weights, C* less) const {
    const C r = tokens_.rstd[n], offset = tokens_.offset(n);
    for (int64_t k = 0; k < count; k += kLanes<C>) {
      const Vec<C> w = r * load(weights + k);
      store(weights + k, w);
      store(less + k, load(less + k) + E::rounded(w) * offset);
    }
  }

  // P, dP and the scores of a block into rows `at`.. of what is kept.
  void weights(int64_t image, int64_t token, int64_t rows, const Kept<C>& kept, int64_t at) {
    const uint8_t* mask = tokens_.keep(image, token);
    for (int64_t first = 0; first < k_; first += kChunk) {
      const int64_t ld = E::pad_count(dy_.outputs(first));
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i);
        queries().times(tokens_, i, count, first, scores_);
        dy_.times(tokens_, i, count, first, dweights_);
        for (int64_t n = 0; n < count; ++n) {
          const bool keep = !mask || mask[(i + n) * p_.mask_token];
          const int64_t to = (at + i + n) * kp_ + first;
          for (int64_t k = 0; k < ld; k += kLanes<C>) {
            const Vec<C> s = load(scores_ + n * ld + k);
            store(kept.p + to + k, keep ? softmax_.weights(s, first + k) : Vec<C>{});
            store(kept.dp + to + k, load(dweights_ + n * ld + k));
            if (p_.stats) store(kept.centred + to + k, s);
          }
        }
      }
    }
  }

  // Of rows i.. of the block: P and dP become r P and r dS, and both means of the LayerNorm are taken.
  void score_gradients(int64_t i, int64_t count, C* p, C* ds, const C* s, const C* delta, C* less) {
    const C *dy_sums = dy_.sums(), *sums = queries().sums();
    for (int64_t n = 0; n < count; ++n, p += kp_, ds += kp_, s += kept_scores(p_)) {
      Vec<C> mean{}, along{};
      for (int64_t k = 0; k < kp_; k += kLanes<C>) {
        const Vec<C> weight = load(p + k), dweight = load(ds + k), dscore = weight * (dweight - load(delta + k));
        store(ds + k, dscore);
        if (!p_.stats) continue;
        mean += weight * load(dy_sums + k) + dscore * load(sums + k);
        along += weight * dweight + dscore * load(s + k);
      }
      if (!p_.stats) continue;
      const C r = tokens_.rstd[i + n], offset = tokens_.offset(i + n);
      linear_[i + n] = r * r * sum<C>(along) / p_.width;
      constant_[i + n] = r * sum<C>(mean) / p_.width - linear_[i + n] * offset;
      for (int64_t k = 0; k < kp_; k += kLanes<C>) store(p + k, r * load(p + k));
      scale_weights(i + n, kp_, ds, less);
    }
  }

  Scratch::Frame frame_;
  const QueryPoolParams& p_;
  const int64_t k_, kp_, dp_;
  TokenRows<T> tokens_;
  const int64_t block_;
  OutputRows<T> own_, dy_;
  int64_t image_ = -1, loaded_ = -1;  // the image of own_ and dy_; the first token of the block that the rows hold
  C *weights_ = nullptr, *state_ = nullptr, *scores_ = nullptr, *dweights_ = nullptr;
  Softmax<T> softmax_;
  C *constant_ = nullptr, *linear_ = nullptr, *sums_ = nullptr;
};

// Queries that all images share, once for all threads.
template <typename T>
void prepare(QueryPoolParams& p, Scratch::Frame& frame, OutputRows<T>& shared, bool backward) {
  if (!p.shared) return;
  shared = OutputRows<T>(Engine<T>(frame), frame, p.width, p.outputs, backward);
  shared.set(static_cast<const T*>(p.queries));
  p.prepared = &shared;
}

template <typename T>
void query_pool_forward(QueryPoolParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  using State = typename QueryPool<T>::State;
  const int64_t dp = E::pad_width(p.width), size = State::size(p.outputs, dp);
  Scratch::Frame frame;
  OutputRows<T> shared;
  prepare(p, frame, shared, false);
  C* partials = frame.take<C>(p.plan->partials() * size);
  p.partials = partials;
  parallel(p.plan->threads(), [&](int64_t thread) {
    QueryPool<T> kernel(p, false);
    for (const Segment& s : p.plan->of(thread)) kernel.forward(s);
  });
  merge_partials<typename E::Layout>(*p.plan, partials, size, p.outputs, dp,
                                     [&](int64_t image, State& state) { QueryPool<T>(p, false).finish(image, state); });
}

template <typename T>
void query_pool_backward(QueryPoolParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  using Pool = QueryPool<T>;
  const int64_t kp = E::pad_count(p.outputs), threads = p.plan->threads();
  Scratch::Frame frame;
  OutputRows<T> shared;
  prepare(p, frame, shared, true);
  std::vector<Kept<C>> kept = keep_split<C>(*p.plan, frame, Pool::kept_scores(p), kp, Pool::room(p));
  QuerySums<T> sums(p, frame);
  if (!kept.empty()) {
    parallel(threads, [&](int64_t thread) {
      Pool kernel(p, true);
      for (const Segment& s : p.plan->of(thread)) {
        if (s.partial >= 0) kernel.backward_weights(s, kept[s.partial]);
      }
    });
    join_deltas(p.plan->split(), kept, kp);
  }
  parallel(threads, [&](int64_t thread) {
    Pool kernel(p, true);
    if (p.shared) sums.clear(thread);
    for (const Segment& s : p.plan->of(thread)) {
      if (s.partial < 0) {
        kernel.backward(s, p.shared ? sums.of(thread) : nullptr);
        continue;
      }
      if (!p.shared) sums.clear(s.partial);
      kernel.backward_gradients(s, kept[s.partial], sums.of(p.shared ? thread : s.partial));
    }
  });
  sums.finish();
}

}  // namespace JAIR_ISA
}  // namespace jair
