// What csrc/cuda/warpgroup.cuh has of the hardware, on a CPU: products happen when they are waited for and not before.
// Included by it, inside its namespace.
#pragma once

struct Operand {
  const unsigned char* tiles;
  int summed_step, other_step;

  Operand(const void* tiles, int summed_step, int other_step)
      : tiles(static_cast<const unsigned char*>(aligned(tiles))), summed_step(summed_step), other_step(other_step) {}

  Operand operator+(int bytes) const { return {tiles + bytes, summed_step, other_step}; }

  // Of the matrix whose summed axis runs along the tiles' rows, or across them.
  template <typename T>
  float at(int summed, int other, bool along) const {
    const auto* tile = reinterpret_cast<const T*>(tiles + summed / 8 * summed_step + other / 8 * other_step);
    return to_float(along ? tile[other % 8 * 8 + summed % 8] : tile[summed % 8 * 8 + other % 8]);
  }
};

inline void store_transposed(void* row, const Fragment& f) {
  aligned(row);
  const auto rows = ::emulator::exchange(row);
  const int g = ::emulator::lane() / 4, t = ::emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    memcpy(pair, &f.r[i], 4);
    for (int j = 0; j < 2; ++j) static_cast<uint16_t*>(rows[8 * i + 2 * t + j])[g] = pair[j];
  }
  ::emulator::sync_warp();
}

inline void begin_products() {}

inline void commit_products() {
  auto& fiber = ::emulator::self();
  fiber.product_groups.push_back(std::move(fiber.products));
  fiber.products.clear();
}

template <int Pending>
inline void wait_products() {
  auto& groups = ::emulator::self().product_groups;
  while (groups.size() > Pending) {
    for (const auto& product : groups.front()) product();
    groups.pop_front();
  }
}

// left(row, k) is A's element of one of the 16 rows of this warp.
template <typename T, Layout kB, int kTiles, typename Left>
inline void multiply_later(Accumulator (&acc)[kTiles], const Left& left, Operand b, bool add) {
  const int g = ::emulator::lane() / 4, t = ::emulator::lane() % 4;
  ::emulator::self().products.push_back([=, &acc] {
    for (int j = 0; j < kTiles; ++j) {
      for (int i = 0; i < 4; ++i) {
        float sum = add ? acc[j][i] : 0.f;
        for (int k = 0; k < 16; ++k) sum += left(g + i / 2 * 8, k) * b.at<T>(k, j * 8 + 2 * t + i % 2, kB == kAlong);
        acc[j][i] = sum;
      }
    }
  });
}

template <typename T, Layout kB = kAlong>
inline void multiply_group(Accumulator (&acc)[4], const Fragment& a, Operand b, bool add) {
  const auto all = ::emulator::exchange(a);
  const auto left = [all](int row, int k) {
    return element<T>(all[row % 8 * 4 + k % 8 / 2].r[row / 8 + k / 8 * 2], k % 2);
  };
  multiply_later<T, kB>(acc, left, b, add);
}

template <typename T, Layout kB = kAlong, int kTiles>
inline void multiply_group(Accumulator (&acc)[kTiles], Operand a, Operand b, bool add) {
  const int first = ::emulator::block.current / 32 % 4 * 16;
  multiply_later<T, kB>(acc, [=](int row, int k) { return a.at<T>(k, first + row, false); }, b, add);
}
