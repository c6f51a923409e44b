// The warp's and the block's operations of csrc/cuda/tiles.cuh on a CPU. Every thread of a block is a fiber; one runs
// until it waits for others. Shared memory starts as NaN, copies arrive when they are waited for and not before, and
// mma and ldmatrix move elements as the PTX manual says. Included by tiles.cuh, inside its namespace.
#pragma once

#define JAIR_SHARED(name) unsigned char* name = ::emulator::block.shared.data()

inline void copy16(void* to, const void* from, bool inside) {
  ::emulator::self().pending.push_back({to, inside ? from : nullptr});
}

inline void commit_copies() {
  auto& fiber = ::emulator::self();
  fiber.groups.push_back(std::move(fiber.pending));
  fiber.pending.clear();
}

template <int Pending>
inline void wait_copies() {
  auto& groups = ::emulator::self().groups;
  while (groups.size() > Pending) {
    for (const auto& copy : groups.front()) {
      if (copy.from) {
        memcpy(copy.to, copy.from, 16);
      } else {
        memset(copy.to, 0, 16);
      }
    }
    groups.pop_front();
  }
}

inline Fragment load_matrices_as(const void* row, bool transposed) {
  const auto rows = ::emulator::exchange(row);
  const int g = ::emulator::lane() / 4, t = ::emulator::lane() % 4;
  Fragment f;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int r = transposed ? 2 * t + j : g, c = transposed ? g : 2 * t + j;
      pair[j] = static_cast<const uint16_t*>(rows[8 * i + r])[c];
    }
    memcpy(&f.r[i], pair, 4);
  }
  return f;
}

inline Fragment load_matrices(const void* row) { return load_matrices_as(row, false); }
inline Fragment load_transposed(const void* row) { return load_matrices_as(row, true); }

template <typename T>
inline float element(uint32_t bits, int i) {
  T pair[2];
  memcpy(static_cast<void*>(pair), &bits, 4);
  return to_float(pair[i]);
}

template <typename T>
inline void multiply_add(Accumulator& acc, const Fragment& a, uint32_t b0, uint32_t b1) {
  struct Operands {
    Fragment a;
    uint32_t b[2];
  };
  const auto all = ::emulator::exchange(Operands{a, {b0, b1}});
  const int g = ::emulator::lane() / 4, t = ::emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int source = k % 8 / 2;
      const float x = element<T>(all[row % 8 * 4 + source].a.r[row / 8 + k / 8 * 2], k % 2);
      acc[i] += x * element<T>(all[column * 4 + source].b[k / 8], k % 2);
    }
  }
}

// What warpgroup.cuh has of the hardware: products happen when they are waited for and not before.
struct Operand {
  const unsigned char* tiles;
  int summed_step, other_step;

  Operand(const void* tiles, int summed_step, int other_step)
      : tiles(static_cast<const unsigned char*>(tiles)), summed_step(summed_step), other_step(other_step) {}

  Operand operator+(int bytes) const { return {tiles + bytes, summed_step, other_step}; }

  // Of the matrix whose summed axis runs along the tiles' rows, or across them.
  template <typename T>
  float at(int summed, int other, bool along) const {
    const auto* tile = reinterpret_cast<const T*>(tiles + summed / 8 * summed_step + other / 8 * other_step);
    return to_float(along ? tile[other % 8 * 8 + summed % 8] : tile[summed % 8 * 8 + other % 8]);
  }
};

inline void begin_products() {}
inline void publish() {}

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
template <typename T, int kTiles, typename Left>
inline void multiply_later(Accumulator (&acc)[kTiles], const Left& left, Operand b, bool add) {
  const int g = ::emulator::lane() / 4, t = ::emulator::lane() % 4;
  ::emulator::self().products.push_back([=, &acc] {
    for (int j = 0; j < kTiles; ++j) {
      for (int i = 0; i < 4; ++i) {
        float sum = add ? acc[j][i] : 0.f;
        for (int k = 0; k < 16; ++k) sum += left(g + i / 2 * 8, k) * b.at<T>(k, j * 8 + 2 * t + i % 2, true);
        acc[j][i] = sum;
      }
    }
  });
}

template <typename T>
inline void multiply_group(Accumulator (&acc)[4], const Fragment& a, Operand b, bool add) {
  const auto all = ::emulator::exchange(a);
  const auto left = [all](int row, int k) {
    return element<T>(all[row % 8 * 4 + k % 8 / 2].r[row / 8 + k / 8 * 2], k % 2);
  };
  multiply_later<T>(acc, left, b, add);
}

template <typename T, int kTiles>
inline void multiply_group(Accumulator (&acc)[kTiles], Operand a, Operand b, bool add) {
  const int first = ::emulator::block.current / 32 % 4 * 16;
  multiply_later<T>(acc, [=](int row, int k) { return a.at<T>(k, first + row, false); }, b, add);
}

inline float exponential(float x) { return std::exp(x); }
