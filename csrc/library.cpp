// Every operator's schema, once. Kernels register themselves per device in csrc/cpu and csrc/cuda; fake
// kernels, autograd and FLOP formulas live in jair_kernels/<op>/op.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(jair_kernels, m) {
  m.def(
      "token_pool_forward(Tensor x, Tensor scores, Tensor? mask, bool sigmoid, bool mean)"
      " -> (Tensor y, Tensor lse)");
  m.def(
      "token_pool_backward(Tensor dy, Tensor x, Tensor scores, Tensor? mask, Tensor y, Tensor lse,"
      " bool sigmoid, bool mean) -> (Tensor dx, Tensor dscores)");

  m.def(
      "tokenlearner_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? norm_weight,"
      " Tensor? norm_bias, Tensor? mask, float eps, bool tanh) -> (Tensor y, Tensor lse, Tensor stats)");
  m.def(
      "tokenlearner_backward(Tensor dy, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,"
      " Tensor? norm_weight, Tensor? norm_bias, Tensor? mask, Tensor y, Tensor lse, Tensor stats, bool tanh)"
      " -> (Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dnorm_weight,"
      " Tensor dnorm_bias)");

  m.def(
      "tokenfuser_forward(Tensor x, Tensor tokens, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, bool tanh) -> (Tensor y, Tensor stats)");
  m.def(
      "tokenfuser_backward(Tensor dy, Tensor x, Tensor tokens, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,"
      " Tensor? norm_weight, Tensor? norm_bias, Tensor stats, bool tanh)"
      " -> (Tensor dx, Tensor dtokens, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dnorm_weight,"
      " Tensor dnorm_bias)");

  // The instruction set of the CPU kernels: 0 portable, 1 avx2, 2 avx512, 3 amx (csrc/cpu/isa.h).
  m.def("cpu_isa_best() -> int");
  m.def("cpu_isa() -> int");
  m.def("set_cpu_isa(int isa) -> int");
}
