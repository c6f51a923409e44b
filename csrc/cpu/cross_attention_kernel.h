// fused_cross_attention, forward and backward. Included once per instruction set.
//
// Per sample and head of the keys it is token pooling: the tokens are the keys, the K outputs are the queries of all
// heads that share these keys, scores are one product with the keys and the pooled rows are the values.
#include "cpu/engine.h"
#include "cpu/key_range.h"

namespace jair {
namespace JAIR_ISA {

template <typename T>
class CrossAttention {
  using E = Engine<T>;
  using C = compute_t<T>;
  using Layout = typename E::Layout;

 public:
  using State = PoolState<C, Layout>;

  // Queries that share a head of the keys; their scores and those of padding.
  static int64_t rows_of(const CrossAttentionParams& p) { return p.heads / p.kv_heads * p.queries; }
  static int64_t block_rows(const CrossAttentionParams& p) {
    constexpr int64_t kBudget = 320 << 10;  // bytes of keys, values and scores: within a second-level cache
    const int64_t row = (2 * E::pad_width(p.width) + E::pad_count(rows_of(p))) * static_cast<int64_t>(sizeof(C));
    return std::max(E::kStrip, std::min<int64_t>(kBudget / row, 1024) / E::kStrip * E::kStrip);
  }

  CrossAttention(const CrossAttentionParams& p, bool backward)
      : p_(p),
        m_(rows_of(p)),
        kp_(E::pad_count(m_)),
        dp_(E::pad_width(p.width)),
        engine_(frame_),
        block_(block_rows(p)),
        k_rows_(engine_.make_rows(frame_, p.width, block_)),
        v_rows_(engine_.make_rows(frame_, p.width, block_)),
        q_(frame_.take<C>(m_ * dp_)),
        q_columns_(engine_.make_columns(frame_, p.width, m_)),
        range_(p, kp_, frame_),
        row_(frame_.take<C>(dp_)) {
    if (!backward) {
      state_ = frame_.take<C>(State::size(m_, dp_)), weights_ = frame_.take<C>(block_ * kp_);
      return;
    }
    dout_ = frame_.take<C>(m_ * dp_), softmax_ = Softmax<T>(frame_, kp_);
    dout_columns_ = engine_.make_columns(frame_, p.width, m_);
    q_spread_ = engine_.make_spread(frame_, p.width, m_), dout_spread_ = engine_.make_spread(frame_, p.width, m_);
  }

  void forward(const Segment& s) {
    const int64_t size = State::size(m_, dp_);
    State state(s.partial < 0 ? state_ : static_cast<C*>(p_.partials) + s.partial * size, m_);
    state.clear(m_, dp_);
    begin_image(s.image);
    load_queries(p_.q, p_.scale, q_, nullptr);
    E::set_columns(q_columns_, q_, m_);
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n);
      if (range_.outside(n, n + rows)) continue;
      load_rows(n, rows);
      engine_.times(k_rows_, 0, rows, q_columns_, weights_);
      range_.exclude(n, rows, weights_);
      softmax_weights<T>(state, weights_, rows, range_.any() ? nullptr : keep(n), p_.mask_token, m_, dp_);
      engine_.gather(v_rows_, rows, weights_, kp_, m_, state.acc);
    }
    if (s.partial < 0) finish(s.image, state);
  }

  void finish(int64_t image, State& state) {
    begin_image(image);
    finish_softmax(state, static_cast<C*>(p_.stats) + 2 * image * m_, m_, dp_, C(1));
    write_queries(state.acc, C(1), p_.o);
  }

  // dP = V dO^T, dS = P (dP - delta), delta = sum_n P dP / sum_n P;  dV = P dO, dK = dS (scale q), dq = scale dS^T K.
  // dq [rows of the Layout] is summed here.
  void backward(const Segment& s) {
    Scratch::Frame frame;
    const int64_t tokens = s.end - s.begin;
    Kept<C> kept(frame.take<C>(Kept<C>::size(tokens, 0, kp_)), tokens, 0, kp_);
    C* dq = frame.take<C>(Layout::size(m_, dp_));
    backward_weights(s, kept);
    backward_scores(s, kept, dq);
    write_queries(dq, static_cast<C>(p_.scale), p_.dq);
  }

  // First pass: P, dP, dV and this segment's part of delta.
  void backward_weights(const Segment& s, Kept<C>& kept) {
    begin_backward(s.image);
    kept.begin(kp_);
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n), first = n - s.begin;
      C *p = kept.p + first * kp_, *dp = kept.dp + first * kp_;
      if (range_.outside(n, n + rows)) {
        zero(p, rows * kp_), zero(dp, rows * kp_);
        write_zeros(p_.dv, n, rows);
        continue;
      }
      load_rows(n, rows);
      engine_.times(k_rows_, 0, rows, q_columns_, p);
      range_.exclude(n, rows, p);
      softmax_.weigh(p, rows, kp_, range_.any() ? nullptr : keep(n), p_.mask_token);
      engine_.times(v_rows_, 0, rows, dout_columns_, dp);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        const int64_t count = std::min(E::kStrip, rows - i);
        kept.add(p + i * kp_, dp + i * kp_, count, kp_);
        spread(p + i * kp_, dout_spread_, i, count, p_.dv, n + i);
      }
    }
  }

  // Second pass, with delta of all keys: dS, dK, and dq of this segment.
  void backward_scores(const Segment& s, const Kept<C>& kept, C* dq) {
    Scratch::Frame frame;
    C* delta = frame.take<C>(kp_);
    for (int64_t m = 0; m < kp_; m += kLanes<C>) store(delta + m, kept.mean(m));
    zero(dq, Layout::size(m_, dp_));
    begin_backward(s.image);
    for (int64_t n = s.begin; n < s.end; n += block_) {
      const int64_t rows = std::min(block_, s.end - n), first = n - s.begin;
      if (range_.outside(n, n + rows)) {
        write_zeros(p_.dk, n, rows);
        continue;
      }
      C *p = kept.p + first * kp_, *ds = kept.dp + first * kp_;
      for (int64_t i = 0; i < rows * kp_; i += kp_) {
        for (int64_t m = i; m < i + kp_; m += kLanes<C>) {
          const Vec<C> weight = load(p + m);
          store(ds + m, weight == C(0) ? Vec<C>{} : weight * (load(ds + m) - load(delta + m - i)));
        }
      }
      if (loaded_ != n) load_rows(n, rows);
      for (int64_t i = 0; i < rows; i += E::kStrip) {
        spread(ds + i * kp_, q_spread_, i, std::min(E::kStrip, rows - i), p_.dk, n + i);
      }
      engine_.gather(k_rows_, rows, ds, kp_, m_, dq);
    }
  }

  // Rows of the queries from sums in the Layout.
  void write_queries(const C* sums, C factor, const Heads<void*>& to) {
    for (int64_t m = 0; m < m_; ++m) {
      Layout::read(sums, dp_, m, 0, dp_, row_);
      if (factor != C(1)) {
        for (int64_t d = 0; d < dp_; d += kLanes<C>) store(row_ + d, load(row_ + d) * factor);
      }
      convert_row_back(row_, static_cast<T*>(to.data) + at_query(to, m), p_.width);
    }
  }

  void begin_image(int64_t image) {
    if (image == image_) return;
    image_ = image, sample_ = image / p_.kv_heads, group_ = image % p_.kv_heads, loaded_ = -1, backward_ = false;
    range_.begin(sample_, m_);
  }

 private:
  const uint8_t* keep(int64_t key) const {
    return p_.mask ? p_.mask + sample_ * p_.mask_batch + key * p_.mask_token : nullptr;
  }

  template <typename Pointer>
  int64_t at_query(const Heads<Pointer>& to, int64_t m) const {
    const int64_t head = group_ * (p_.heads / p_.kv_heads) + m / p_.queries;
    return sample_ * to.batch + m % p_.queries * to.token + head * to.head;
  }
  template <typename Pointer>
  int64_t at_key(const Heads<Pointer>& to, int64_t key) const {
    return sample_ * to.batch + key * to.token + group_ * to.head;
  }

  void begin_backward(int64_t image) {
    begin_image(image);
    if (backward_) return;
    backward_ = true;
    softmax_.read(p_.stats, image, m_, kp_);
    load_queries(p_.q, p_.scale, q_, softmax_.inverse);
    load_queries(p_.dout, 1, dout_, softmax_.inverse);
    E::set_columns(q_columns_, q_, m_), E::set_columns(dout_columns_, dout_, m_);
    E::set_spread(q_spread_, q_), E::set_spread(dout_spread_, dout_);
  }

  // Queries, or what has their shape, times a factor. With `inverse`, those without keys are 0: they may hold NaN.
  void load_queries(const Heads<const void*>& from, double factor, C* to, const C* inverse) const {
    for (int64_t m = 0; m < m_; m += p_.queries) {
      prefetch_rows(static_cast<const T*>(from.data) + at_query(from, m), from.token, p_.queries, p_.width);
    }
    for (int64_t m = 0; m < m_; ++m) {
      C* row = to + m * dp_;
      zero(row + padded<C>(p_.width), dp_ - padded<C>(p_.width));
      if (inverse && inverse[m] == C(0)) {
        zero(row, padded<C>(p_.width));
        continue;
      }
      convert_row(static_cast<const T*>(from.data) + at_query(from, m), row, p_.width);
      if (factor == 1) continue;
      for (int64_t d = 0; d < padded<C>(p_.width); d += kLanes<C>) store(row + d, load(row + d) * C(factor));
    }
  }

  void load_rows(int64_t n, int64_t rows) {
    const T* k = static_cast<const T*>(p_.k.data) + at_key(p_.k, n);
    const T* v = static_cast<const T*>(p_.v.data) + at_key(p_.v, n);
    prefetch_rows(k, p_.k.token, rows, p_.width), prefetch_rows(v, p_.v.token, rows, p_.width);
    const uint8_t* kept = keep(n);
    int64_t step = p_.mask_token;
    attended_ = kept;
    if (range_.any()) {
      kept = range_.find_kept(n, rows, k, p_.k.token, v, p_.v.token, p_.width, kept, step), step = 1;
      attended_ = range_.attended();
    }
    attended_step_ = step;
    engine_.load_rows(k_rows_, 0, rows, p_.width, {k, p_.k.token, kept, step}, nullptr);
    engine_.load_rows(v_rows_, 0, rows, p_.width, {v, p_.v.token, kept, step}, nullptr);
    loaded_ = n;
  }

  // Gradients of the block's keys `first`.. from weights and rows of the queries.
  void spread(const C* weights, const typename E::Spread& s, int64_t first, int64_t count, const Heads<void*>& to,
              int64_t key) const {
    T* rows = static_cast<T*>(to.data) + at_key(to, key);
    engine_.spread(first, count, p_.width, {weights, kp_, &s}, {nullptr, 0, nullptr}, {nullptr, nullptr, nullptr}, rows,
                   to.token);
    const uint8_t* attended = attended_ ? attended_ + first * attended_step_ : nullptr;
    zero_masked_rows(rows, to.token, p_.width, count, attended, attended_step_);
  }

  void write_zeros(const Heads<void*>& to, int64_t n, int64_t rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      std::memset(static_cast<T*>(to.data) + at_key(to, n + i), 0, p_.width * sizeof(T));
    }
  }

  const CrossAttentionParams& p_;
  Scratch::Frame frame_;
  const int64_t m_, kp_, dp_;
  E engine_;
  const int64_t block_;
  typename E::Rows k_rows_, v_rows_;
  C* q_;
  typename E::Columns q_columns_;
  KeyRange<C> range_;
  C *row_, *weights_ = nullptr, *state_ = nullptr, *dout_ = nullptr;
  Softmax<T> softmax_;
  typename E::Columns dout_columns_;
  typename E::Spread q_spread_, dout_spread_;
  const uint8_t* attended_ = nullptr;  // of the keys that the rows hold; null: all
  int64_t image_ = -1, sample_ = 0, group_ = 0, loaded_ = -1, attended_step_ = 0;
  bool backward_ = false;
};

template <typename T>
void cross_attention_forward(CrossAttentionParams p) {
  using C = compute_t<T>;
  using Kernel = CrossAttention<T>;
  using State = typename Kernel::State;
  const int64_t m = Kernel::rows_of(p), dp = Engine<T>::pad_width(p.width), size = State::size(m, dp);
  Scratch::Frame frame;
  C* partials = frame.take<C>(p.plan->partials() * size);
  p.partials = partials;
  parallel(p.plan->threads(), [&](int64_t thread) {
    Kernel kernel(p, false);
    for (const Segment& s : p.plan->of(thread)) kernel.forward(s);
  });
  merge_partials<typename Engine<T>::Layout>(
      *p.plan, partials, size, m, dp, [&](int64_t image, State& state) { Kernel(p, false).finish(image, state); });
}

template <typename T>
void cross_attention_backward(CrossAttentionParams p) {
  using C = compute_t<T>;
  using E = Engine<T>;
  using Kernel = CrossAttention<T>;
  const int64_t m = Kernel::rows_of(p), kp = E::pad_count(m), size = E::Layout::size(m, E::pad_width(p.width));
  Scratch::Frame frame;
  std::vector<Kept<C>> kept = keep_split<C>(*p.plan, frame, 0, kp);
  parallel(p.plan->threads(), [&](int64_t thread) {
    Kernel kernel(p, true);
    for (const Segment& s : p.plan->of(thread)) {
      s.partial < 0 ? kernel.backward(s) : kernel.backward_weights(s, kept[s.partial]);
    }
  });
  if (kept.empty()) return;
  const std::vector<Segment> split = p.plan->split();
  join_deltas(split, kept, kp);
  C* dq = frame.take<C>(split.size() * size);
  parallel(static_cast<int64_t>(split.size()),
           [&](int64_t i) { Kernel(p, true).backward_scores(split[i], kept[i], dq + i * size); });
  Kernel kernel(p, true);
  for (size_t i = 0; i < split.size();) {  // the parts of an image in the order of its keys
    size_t j = i + 1;
    for (; j < split.size() && split[j].image == split[i].image; ++j) {
      for (int64_t d = 0; d < size; ++d) dq[i * size + d] += dq[j * size + d];
    }
    kernel.begin_image(split[i].image);
    kernel.write_queries(dq + i * size, static_cast<C>(p.scale), p.dq);
    i = j;
  }
}

}  // namespace JAIR_ISA
}  // namespace jair
