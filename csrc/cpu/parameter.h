#pragma once

namespace jair {

enum class Dtype : int { f32, f64, bf16, f16 };

// A contiguous parameter of any floating type; data null = absent.
struct Parameter {
  const void* data;
  Dtype dtype;
};

}  // namespace jair
