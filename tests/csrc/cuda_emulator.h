// The warp's and the block's operations of csrc/cuda/tiles.cuh on a CPU. Every thread of a block is a fiber; one runs
// until it waits for others. Shared memory starts as NaN, copies arrive when they are waited for and not before, and
// mma and ldmatrix move elements as the PTX manual says. Included by tiles.cuh, inside its namespace.
#pragma once

#define JAIR_SHARED(name) unsigned char* name = ::emulator::block.shared.data()

// Where the hardware would report a misaligned address.
inline const void* aligned(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16) throw std::runtime_error("misaligned address");
  return address;
}

inline void copy16(void* to, const void* from, bool inside) {
  aligned(to), aligned(from);
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
  const auto rows = ::emulator::exchange(aligned(row));
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

inline float exponential(float x) { return std::exp(x); }
