// Every operator's schema, once. Kernels register themselves per device in csrc/cpu and csrc/cuda; fake
// kernels, autograd and FLOP formulas live in jair_kernels/<op>/op.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(jair_kernels, m) {
  // A backward's y or o is the forward's result; kernels that sum what it stands for themselves do without. Of a
  // softmax its largest score and the inverse of its sum are kept, [B,K,2] or [B,h,L,2]: a log-sum-exp would carry a
  // rounding error common to all tokens. Both are 0 for the softmax of nothing.
  m.def(
      "token_pool_forward(Tensor x, Tensor scores, Tensor? mask, bool sigmoid, bool mean)"
      " -> (Tensor y, Tensor softmax)");
  m.def(
      "token_pool_backward(Tensor dy, Tensor x, Tensor scores, Tensor? mask, Tensor? y, Tensor softmax,"
      " bool sigmoid, bool mean) -> (Tensor dx, Tensor dscores)");

  // `keep`: h = w1 LN(x) + b1 is returned too, [B,N,H], for a backward that then does not make it again; else [B,N,0].
  m.def(
      "tokenlearner_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? norm_weight,"
      " Tensor? norm_bias, Tensor? mask, float eps, bool tanh, bool keep)"
      " -> (Tensor y, Tensor softmax, Tensor stats, Tensor hidden)");
  m.def(
      "tokenlearner_backward(Tensor dy, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,"
      " Tensor? norm_weight, Tensor? norm_bias, Tensor? mask, Tensor? y, Tensor softmax, Tensor stats, Tensor hidden,"
      " bool tanh)"
      " -> (Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dnorm_weight,"
      " Tensor dnorm_bias)");

  // The passes over x on CUDA, with the LayerNorm folded into wg, c and e; images are cut into shares of tokens. The
  // first returns y, or what the shares pool [B,shares,K,D] in float32, and their softmaxes [B,shares,K,2].
  m.def(
      "tokenlearner_pool(Tensor x, Tensor wg, Tensor c, Tensor e, Tensor w2, Tensor? b2, Tensor? mask, float eps,"
      " bool tanh, int shares, int share_tokens) -> (Tensor y, Tensor softmax, Tensor stats)");
  m.def(
      "tokenlearner_inputs(Tensor dy, Tensor x, Tensor wg, Tensor c, Tensor e, Tensor w2, Tensor? b2, Tensor? mask,"
      " Tensor softmax, Tensor stats, Tensor delta, bool tanh, int shares, int share_tokens)"
      " -> (Tensor dx, Tensor dh, Tensor g, Tensor ds)");
  m.def(
      "tokenlearner_sums(Tensor x, Tensor? mask, Tensor stats, Tensor dh, Tensor g, Tensor ds, int hidden,"
      " int outputs, int share_tokens) -> Tensor parts");

  m.def(
      "tokenfuser_forward(Tensor x, Tensor tokens, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,"
      " Tensor? norm_weight, Tensor? norm_bias, float eps, bool tanh, bool keep)"
      " -> (Tensor y, Tensor stats, Tensor hidden)");
  m.def(
      "tokenfuser_backward(Tensor dy, Tensor x, Tensor tokens, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2,"
      " Tensor? norm_weight, Tensor? norm_bias, Tensor stats, Tensor hidden, bool tanh)"
      " -> (Tensor dx, Tensor dtokens, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2, Tensor dnorm_weight,"
      " Tensor dnorm_bias)");

  // Token-major: q [B,L,h,d], k and v [B,N,h_kv,d]. The backward returns dk and dv in one tensor [B,N,2,h_kv,d]; with
  // `packed` (self-attention) all three in the first, [B,N,3,h,d].
  m.def(
      "cross_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? kv_range, float scale)"
      " -> (Tensor o, Tensor stats)");
  m.def(
      "cross_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? kv_range, Tensor? o,"
      " Tensor stats, float scale, bool packed) -> (Tensor dq, Tensor dkv)");

  // Pooling with scores x queries^T, over LN(x) without scale and shift if `norm`: absorbed latent resampling.
  m.def(
      "query_pool_forward(Tensor x, Tensor queries, Tensor? mask, bool norm, float eps)"
      " -> (Tensor y, Tensor softmax, Tensor stats)");
  m.def(
      "query_pool_backward(Tensor dy, Tensor x, Tensor queries, Tensor? mask, Tensor y, Tensor softmax, Tensor stats,"
      " bool norm) -> (Tensor dx, Tensor dqueries)");

  // What surrounds the matrix products of a layer, over rows [R,D]:
  //   z = base + tanh(gate) update, base = x or LN(x; x_stats), then y = LN(z) if `norm`.
  m.def(
      "add_norm_forward(Tensor x, Tensor? x_stats, Tensor? x_weight, Tensor? x_bias, Tensor? update,"
      " Tensor? gate, bool norm, Tensor? weight, Tensor? bias, float eps)"
      " -> (Tensor z, Tensor y, Tensor stats)");
  m.def(
      "add_norm_backward(Tensor dy, Tensor? dz, Tensor z, Tensor stats, Tensor? weight, Tensor? bias)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias)");
  // The backward computes g again, which the next product's needs; its sums are those of dh over rows.
  m.def("gelu_forward(Tensor h, bool tanh) -> Tensor g");
  m.def("gelu_backward(Tensor dg, Tensor h, bool tanh, bool sums) -> (Tensor dh, Tensor g, Tensor total)");

  // Over rows and along them, in float32, of float64 in float64: what the gradients of biases and gates are made of.
  m.def("column_sum(Tensor rows) -> Tensor");
  m.def("row_dot(Tensor a, Tensor b) -> Tensor");

  // The instruction set of the CPU kernels: 0 portable, 1 avx2, 2 avx512, 3 avx512_bf16, 4 amx
  // (csrc/cpu/isa.h).
  m.def("cpu_is_not_intel() -> bool");
  m.def("cpu_isa_best() -> int");
  m.def("cpu_isa() -> int");
  m.def("set_cpu_isa(int isa) -> int");
}
