// learn_tokens on the emulator against sums in double.
#include "cuda_fibers.h"

#include "cuda/tokenlearner_kernel.cuh"

#include <cstdio>
#include <random>

using namespace jair::cuda;

template <typename T>
struct Host {
  std::vector<T> data;
  Host(size_t n, std::mt19937& random, float scale, float mean = 0.f) : data(n) {
    std::normal_distribution<float> normal;
    for (auto& value : data) value = from_float<T>(mean + scale * normal(random));
  }
  double at(size_t i) const { return to_float(data[i]); }
};

template <typename T, int kWidth, int kRows, int kOutputs>
double learn(int batch, int tokens, int hidden, int outputs, int shares, bool masked, bool tanh, float shift, int blocks) {
  std::mt19937 random(7);
  const int D = kWidth;
  Host<T> x(static_cast<size_t>(batch) * tokens * D, random, 1.f, shift), wg(hidden * D, random, 1.f / std::sqrt(D));
  Host<T> w2(outputs * hidden, random, .5f);
  Host<float> e(hidden, random, .5f), b2(outputs, random, 1.f);
  std::vector<float> c(hidden);
  for (int h = 0; h < hidden; ++h) {
    for (int d = 0; d < D; ++d) c[h] += wg.at(h * D + d);
  }
  std::vector<uint8_t> mask(batch * tokens, 1);
  if (masked) {
    for (auto& m : mask) m = random() % 3 > 0;
    for (int n = 0; n < tokens; ++n) mask[n] = 0;  // an image without tokens
    for (int i = 0; i < batch * tokens; ++i) {
      if (!mask[i]) x.data[static_cast<size_t>(i) * D] = from_float<T>(NAN);
    }
  }
  Learner<T> in{};
  in.x = x.data.data(), in.x_image = static_cast<int64_t>(tokens) * D, in.x_token = D;
  if (masked) in.mask = mask.data(), in.mask_image = tokens, in.mask_token = 1;
  in.wg = wg.data.data(), in.c = c.data(), in.e = e.data.data(), in.w2 = w2.data.data(), in.b2 = b2.data.data();
  in.batch = batch, in.tokens = tokens, in.hidden = hidden, in.outputs = outputs;
  in.shares = shares, in.share_tokens = (tokens + shares * kRows - 1) / (shares * kRows) * kRows;
  in.eps = 1e-6f, in.tanh = tanh;
  std::vector<float> y(static_cast<size_t>(batch) * shares * outputs * D, NAN);
  std::vector<float2> pairs(batch * shares * outputs, make_float2(NAN, NAN)), stats(batch * tokens, make_float2(NAN, NAN));
  using Shared = LearnerShared<T, kWidth, kRows, kOutputs>;
  if (!emulator::run([&] { learn_tokens<T, kWidth, kRows, kOutputs>(in, nullptr, y.data(), pairs.data(), stats.data()); },
                     dim3(blocks), kLearnerThreads, sizeof(Shared)))
    return INFINITY;
  double worst = 0;
  for (int b = 0; b < batch; ++b) {
    std::vector<double> scores(tokens * outputs);
    for (int n = 0; n < tokens; ++n) {
      if (!mask[b * tokens + n]) continue;
      const size_t at = (static_cast<size_t>(b) * tokens + n) * D;
      double mean = 0, var = 0;
      for (int d = 0; d < D; ++d) mean += x.at(at + d) / D;
      for (int d = 0; d < D; ++d) var += (x.at(at + d) - mean) * (x.at(at + d) - mean) / D;
      const double rstd = 1 / std::sqrt(var + 1e-6);
      worst = std::max(worst, std::abs(stats[b * tokens + n].x - mean) / (std::abs(mean) + 1e-3) * 100);
      worst = std::max(worst, std::abs(stats[b * tokens + n].y / rstd - 1) * 100);
      std::vector<double> g(hidden);
      for (int h = 0; h < hidden; ++h) {
        double sum = 0;
        for (int d = 0; d < D; ++d) sum += (x.at(at + d) - mean) * wg.at(h * D + d);
        const double v = sum * rstd + e.at(h);
        g[h] = tanh ? 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)))
                    : 0.5 * v * (1 + std::erf(v / std::sqrt(2.)));
      }
      for (int k = 0; k < outputs; ++k) {
        double s = b2.at(k);
        for (int h = 0; h < hidden; ++h) s += g[h] * w2.at(k * hidden + h);
        scores[n * outputs + k] = s;
      }
    }
    for (int share = 0; share < shares; ++share) {
      const int begin = share * in.share_tokens, end = std::min<int>(begin + in.share_tokens, tokens);
      for (int k = 0; k < outputs; ++k) {
        double top = -INFINITY, total = 0;
        for (int n = begin; n < end; ++n) {
          if (mask[b * tokens + n]) top = std::max(top, scores[n * outputs + k]);
        }
        for (int n = begin; n < end; ++n) {
          if (mask[b * tokens + n]) total += std::exp(scores[n * outputs + k] - top);
        }
        const size_t item = (static_cast<size_t>(b) * shares + share) * outputs + k;
        const double inverse = total == 0 ? 0 : 1 / total;
        // 16-bit scores are rounded hidden units times w2: their sum is off by some 1e-2
        worst = std::max(worst, std::abs(pairs[item].x - (total == 0 ? 0 : top)) / 3);
        worst = std::max(worst, std::abs(pairs[item].y - inverse));
        double error = 0, size = 0;
        for (int d = 0; d < D; ++d) {
          double sum = 0;
          for (int n = begin; n < end; ++n) {
            if (!mask[b * tokens + n]) continue;
            sum += std::exp(scores[n * outputs + k] - top) * inverse * x.at((static_cast<size_t>(b) * tokens + n) * D + d);
          }
          const double off = y[item * D + d] - sum;
          error += off * off, size += sum * sum;
        }
        const double relative = size == 0 ? std::sqrt(error) : std::sqrt(error / size);
        worst = relative <= worst ? worst : relative;  // NaN stays
      }
    }
  }
  return worst;
}

int main() {
  using B = __nv_bfloat16;
  const double errors[] = {
      learn<B, 128, 32, 16>(3, 70, 64, 8, 1, false, false, 0.f, 2),
      learn<B, 128, 32, 16>(3, 70, 40, 5, 2, true, true, 0.f, 2),
      learn<__half, 256, 16, 32>(2, 33, 64, 20, 1, true, false, 0.f, 1),
      learn<B, 768, 32, 16>(1, 40, 64, 16, 1, false, false, 0.f, 3),
      learn<__half, 128, 32, 32>(2, 50, 64, 32, 1, false, false, 30.f, 1),
  };
  bool good = true;
  for (double error : errors) {
    printf("%.2e\n", error);
    good = good && error < 1.5e-2;
  }
  printf("shared memory: 768 %zu, 768 K 32 %zu, 1024 %zu, 512 K 32 %zu\n", sizeof(LearnerShared<B, 768, 32, 16>),
         sizeof(LearnerShared<B, 768, 32, 32>), sizeof(LearnerShared<B, 1024, 16, 32>),
         sizeof(LearnerShared<B, 512, 32, 32>));
  return good ? 0 : 1;
}
