#pragma once

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/nn/linear.h"

namespace tessera {

// Encoders of sequences (sequential section 4): functions of embeddings and lengths, not of ids.
// Rows of different lengths stand packed, one after another: x [P, d] with offsets int64 [rows +
// 1]. There is no padding: what stands in one row never reaches another.

/// The rows of one call, and what its dropout is keyed by. Every row has at least one position.
struct Pass {
  torch::Tensor offsets;  ///< int64 [rows + 1], in main memory as sizes are
  bool training = false;
  Random random{0};
  int64_t step = 0;
};

/// Inverted dropout of x [n, width], keyed by (random, name, step, row of x, column); x itself
/// outside training.
torch::Tensor dropout(const torch::Tensor& x, double rate, const Pass& pass,
                      const std::string& name);

/// Layer norm over the last dimension, biased variance.
struct LayerNorm {
  torch::Tensor *weight = nullptr, *bias = nullptr;
  double eps = 1e-12;
  LayerNorm() = default;
  LayerNorm(const std::string& name, int64_t width, double eps, const MakeParameter& make);
  torch::Tensor operator()(const torch::Tensor& x) const;
};

/// Attention of ops/attention.h within the rows of the pass, its dropout keyed as above.
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        int64_t n_heads, bool causal, double rate, const Pass& pass,
                        const std::string& name);

/// Blocks of attention and a two-layer network in one of three forms:
///   original: q = LN1(x); y = q + MHA(q; keys and values from x); z = LN2(y); x' = z + FFN(z)
///   pre:      q = LN1(x); y = x + MHA(q; from q);                 z = LN2(y); x' = y + FFN(z)
///   post:     y = LN1(x + Drop(MHA(x)));                          x' = LN2(y + FFN(y))
/// FFN(z) = Drop(W2 Drop(act(W1 z + b1)) + b2), the inner Drop in the first two forms only; these
/// end with one more LN.
struct TransformerOptions {
  enum class Norm { original, pre, post } norm = Norm::original;
  int64_t width = 64, inner = 64, n_layers = 2, n_heads = 1;
  double hidden_dropout = 0.5, attention_dropout = 0.5, eps = 1e-8;
  bool gelu = false;  ///< exact, by erf; else ReLU
  bool causal = true, out_proj = true;
};

class Transformer {
 public:
  Transformer() = default;
  Transformer(const std::string& name, const TransformerOptions& options, const MakeParameter& make,
              const Random& init);
  /// x [P, width], already normalised, dropped out and with positions as the form wants. [P, width]
  torch::Tensor operator()(const torch::Tensor& x, const Pass& pass) const;
  /// The same before the closing norm, which `post` has none of.
  torch::Tensor blocks(torch::Tensor x, const Pass& pass) const;

 private:
  struct Block {
    std::string name;
    LayerNorm norm1, norm2;
    Linear query, key, value, out, inner, outer;
  };
  torch::Tensor attend(const Block& block, const torch::Tensor& q, const torch::Tensor& x,
                       const Pass& pass) const;
  torch::Tensor feed(const Block& block, const torch::Tensor& z, const Pass& pass) const;

  TransformerOptions options_;
  std::string name_;
  std::vector<Block> blocks_;
  LayerNorm last_;
};

/// GRU of `hidden` units and an output map to `width` (sequential section 4, GRU4Rec).
class GruEncoder {
 public:
  GruEncoder() = default;
  GruEncoder(const std::string& name, int64_t width, int64_t hidden, const MakeParameter& make,
             const Random& init);
  torch::Tensor operator()(const torch::Tensor& x, const Pass& pass) const;

 private:
  torch::Tensor *w_in_ = nullptr, *w_hidden_ = nullptr, *w_out_ = nullptr, *b_out_ = nullptr;
};

/// Row of the position table for each slot: from_end: the last slot of a row has max_length - 1;
/// else the first has 0. int64 [P]
torch::Tensor position_index(const torch::Tensor& offsets, int64_t max_length, bool from_end);

/// Index of the last slot of each row. int64 [rows]
torch::Tensor last_slots(const torch::Tensor& offsets);

}  // namespace tessera
