// Gradients of the queries from the sums of threads or of parts of an image. Included once per instruction set.

namespace jair {
namespace JAIR_ISA {

// A sum is dS^T xhat as it is gathered, [K,dp] in the engine's layout, and what each of its rows has to lose, [kp].
// Of queries that all images share, every thread has one; else every part of an image that was split.
template <typename T>
class QuerySums {
  using E = Engine<T>;
  using C = compute_t<T>;

 public:
  static int64_t size(const QueryPoolParams& p) { return products(p) + E::pad_count(p.outputs); }

  QuerySums(const QueryPoolParams& p, Scratch::Frame& frame)
      : p_(p),
        count_(p.shared ? p.plan->threads() : p.plan->partials()),
        size_(size(p)),
        all_(frame.take<C>(count_ * size_)) {}

  C* of(int64_t i) const { return all_ + i * size_; }
  void clear(int64_t i) const { zero(of(i), size_); }

  void finish() const {
    if (p_.shared) return finish_image(0, 0, count_);
    const std::vector<Segment> split = p_.plan->split();
    for (size_t i = 0; i < split.size();) {
      size_t j = i + 1;
      while (j < split.size() && split[j].image == split[i].image) ++j;
      finish_image(split[i].image, i, j);
      i = j;
    }
  }

  // Outputs first..last of an image's dqueries, from `count` sums in their order.
  static void write(const QueryPoolParams& p, const C* sums, int64_t count, int64_t image, int64_t first,
                    int64_t last) {
    const int64_t dp = E::pad_width(p.width);
    Scratch::Frame frame;
    C *row = frame.take<C>(dp), *part = frame.take<C>(dp);
    for (int64_t k = first; k < last; ++k) {
      zero(row, dp);
      C less = 0;
      for (int64_t i = 0; i < count; ++i) {
        E::Layout::read(sums + i * size(p), dp, k, 0, dp, part);
        for (int64_t d = 0; d < dp; d += kLanes<C>) store(row + d, load(row + d) + load(part + d));
        less += sums[i * size(p) + products(p) + k];
      }
      for (int64_t d = 0; d < dp; d += kLanes<C>) store(row + d, load(row + d) - less);
      convert_row_back(row, static_cast<T*>(p.dqueries) + (image * p.outputs + k) * p.width, p.width);
    }
  }

 private:
  static int64_t products(const QueryPoolParams& p) { return E::Layout::size(p.outputs, E::pad_width(p.width)); }

  void finish_image(int64_t image, int64_t begin, int64_t end) const {
    const int64_t shares = std::min(p_.plan->threads(), p_.outputs);
    parallel(shares, [&](int64_t i) {
      write(p_, of(begin), end - begin, image, p_.outputs * i / shares, p_.outputs * (i + 1) / shares);
    });
  }

  const QueryPoolParams& p_;
  const int64_t count_, size_;
  C* all_;
};

}  // namespace JAIR_ISA
}  // namespace jair
