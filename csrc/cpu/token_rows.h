// A block of token rows with its mask and statistics, in the form an engine multiplies. Included once per instruction
// set.

namespace jair {
namespace JAIR_ISA {

template <typename T>
class TokenRows {
 public:
  using E = Engine<T>;
  using C = compute_t<T>;

  // Without p.stats rows are taken as they are, mean 0 and 1/std 1. `known`: p.stats are read, not written.
  TokenRows(const TokenRowsParams& p, Scratch::Frame& frame, bool known)
      : engine(frame),
        normed(p.stats != nullptr),
        block(E::block_rows(p.width)),
        rows(engine.make_rows(frame, p.width, block)),
        mean(frame.take<C>(block)),
        rstd(frame.take<C>(block)),
        p_(p),
        known_(known) {
    if (normed) return;
    for (int64_t n = 0; n < block; ++n) mean[n] = C(0), rstd[n] = C(1);
  }

  const uint8_t* keep(int64_t image, int64_t token) const {
    return p_.mask ? p_.mask + image * p_.mask_image + token * p_.mask_token : nullptr;
  }

  // Tokens `token`.. of the image become rows first.. of the block.
  void load_rows(int64_t image, int64_t token, int64_t first, int64_t count) {
    const T* x = static_cast<const T*>(p_.x) + image * p_.x_image + token * p_.x_token;
    const typename E::Source source{x, p_.x_token, keep(image, token), p_.mask_token};
    // Most likely the rows behind these are the next.
    if (p_.x_token == p_.width)
      ahead = {reinterpret_cast<const char*>(x + count * p_.width),
               reinterpret_cast<const char*>(x + 2 * count * p_.width)};
    if (!normed) return engine.load_rows(rows, first, count, p_.width, source, nullptr);
    C *stats = static_cast<C*>(p_.stats) + 2 * (image * p_.tokens + token), *m = mean + first, *r = rstd + first;
    if (known_) {
      for (int64_t n = 0; n < count; ++n) m[n] = stats[2 * n], r[n] = stats[2 * n + 1];
    }
    const typename E::Statistics statistics{m, r, static_cast<C>(p_.eps), known_};
    engine.load_rows(rows, first, count, p_.width, source, &statistics);
    if (known_) return;
    for (int64_t n = 0; n < count; ++n) stats[2 * n] = m[n], stats[2 * n + 1] = r[n];
  }

  // What the block's rows, held less their shift, still have to lose: xhat = rstd (row - offset).
  C offset(int64_t row) const { return mean[row] - rows.shift[row]; }

  E engine;
  const bool normed;
  const int64_t block;
  typename E::Rows rows;
  C *mean, *rstd;  // of the block's rows
  Ahead ahead;

 private:
  const TokenRowsParams& p_;
  const bool known_;
};

}  // namespace JAIR_ISA
}  // namespace jair
