#include "tessera/nn/sequence_encoder.h"

#include <torch/autograd.h>
#include <torch/utils.h>

#include "tessera/ops/attention.h"
#include "tessera/ops/dropout.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gru.h"

namespace tessera {
namespace {

DropKey key_of(double rate, const Pass& pass, const std::string& name) {
  if (!pass.training || rate <= 0) return {};
  return drop_key(rate, pass.random.stream("drop." + name), pass.step);
}

}  // namespace

torch::Tensor dropout(const torch::Tensor& x, double rate, const Pass& pass,
                      const std::string& name) {
  return dropout(x, key_of(rate, pass, name));
}

LayerNorm::LayerNorm(const std::string& name, int64_t width, double eps, const MakeParameter& make)
    : weight(&make(name + ".weight", torch::ones({width}))),
      bias(&make(name + ".bias", torch::zeros({width}))),
      eps(eps) {}

torch::Tensor LayerNorm::operator()(const torch::Tensor& x) const {
  return torch::layer_norm(x, {x.size(-1)}, *weight, *bias, eps);
}

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        int64_t n_heads, bool causal, double rate, const Pass& pass,
                        const std::string& name) {
  return attention(q, k, v, pass.offsets, n_heads, causal, key_of(rate, pass, name));
}

Transformer::Transformer(const std::string& name, const TransformerOptions& options,
                         const MakeParameter& make, const Random& init)
    : options_(options), name_(name) {
  const int64_t d = options.width;
  for (int64_t i = 0; i < options.n_layers; ++i) {
    const std::string at = name + "." + std::to_string(i);
    Block block;
    block.name = at;
    block.norm1 = LayerNorm(at + ".norm1", d, options.eps, make);
    block.norm2 = LayerNorm(at + ".norm2", d, options.eps, make);
    block.query = Linear(at + ".query", d, d, make, init);
    block.key = Linear(at + ".key", d, d, make, init);
    block.value = Linear(at + ".value", d, d, make, init);
    if (options.out_proj) block.out = Linear(at + ".out", d, d, make, init);
    block.inner = Linear(at + ".inner", options.inner, d, make, init);
    block.outer = Linear(at + ".outer", d, options.inner, make, init);
    blocks_.push_back(block);
  }
  if (options.norm != TransformerOptions::Norm::post) {
    last_ = LayerNorm(name + ".norm", d, options.eps, make);
  }
}

torch::Tensor Transformer::attend(const Block& block, const torch::Tensor& q,
                                  const torch::Tensor& x, const Pass& pass) const {
  const auto y =
      attention(block.query(q), block.key(x), block.value(x), options_.n_heads, options_.causal,
                options_.attention_dropout, pass, block.name + ".attention");
  return options_.out_proj ? block.out(y) : y;
}

torch::Tensor Transformer::feed(const Block& block, const torch::Tensor& z,
                                const Pass& pass) const {
  auto y = block.inner(z);
  y = options_.gelu ? torch::gelu(y) : torch::relu(y);
  if (options_.norm != TransformerOptions::Norm::post) {
    y = dropout(y, options_.hidden_dropout, pass, block.name + ".inner");
  }
  return dropout(block.outer(y), options_.hidden_dropout, pass, block.name + ".outer");
}

torch::Tensor Transformer::operator()(const torch::Tensor& x, const Pass& pass) const {
  const auto y = blocks(x, pass);
  return options_.norm == TransformerOptions::Norm::post ? y : last_(y);
}

torch::Tensor Transformer::blocks(torch::Tensor x, const Pass& pass) const {
  for (const Block& block : blocks_) {
    switch (options_.norm) {
      case TransformerOptions::Norm::original: {
        const auto q = block.norm1(x);
        const auto z = block.norm2(q + attend(block, q, x, pass));
        x = z + feed(block, z, pass);
        break;
      }
      case TransformerOptions::Norm::pre: {
        const auto q = block.norm1(x);
        const auto y = x + attend(block, q, q, pass);
        x = y + feed(block, block.norm2(y), pass);
        break;
      }
      case TransformerOptions::Norm::post: {
        const auto y = block.norm1(x + dropout(attend(block, x, x, pass), options_.hidden_dropout,
                                               pass, block.name + ".attended"));
        x = block.norm2(y + feed(block, y, pass));
        break;
      }
    }
  }
  return x;
}

GruEncoder::GruEncoder(const std::string& name, int64_t width, int64_t hidden,
                       const MakeParameter& make, const Random& init) {
  const auto family = [&](const char* part) { return init.stream("init." + name + "." + part); };
  w_in_ = &make(name + ".w_in", xavier_uniform(3 * hidden, width, family("w_in")));
  w_hidden_ = &make(name + ".w_hidden", xavier_uniform(3 * hidden, hidden, family("w_hidden")));
  w_out_ = &make(name + ".w_out", linear_default_weight(width, hidden, family("w_out")));
  b_out_ = &make(name + ".b_out", linear_default_bias(hidden, width, family("b_out")));
}

torch::Tensor GruEncoder::operator()(const torch::Tensor& x, const Pass& pass) const {
  const auto states = gru(torch::mm(x, w_in_->t()), *w_hidden_, pass.offsets);
  return torch::addmm(*b_out_, states, w_out_->t());
}

torch::Tensor position_index(const torch::Tensor& offsets, int64_t max_length, bool from_end) {
  const int64_t n_rows = offsets.size(0) - 1;
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  torch::Tensor out = torch::empty({n_rows > 0 ? offset[n_rows] : 0}, torch::kInt64);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < n_rows; ++row) {
    const int64_t shift = from_end ? max_length - (offset[row + 1] - offset[row]) : 0;
    for (int64_t p = offset[row]; p < offset[row + 1]; ++p) to[p] = p - offset[row] + shift;
  }
  return out;
}

torch::Tensor last_slots(const torch::Tensor& offsets) {
  return offsets.narrow(0, 1, offsets.size(0) - 1) - 1;
}

}  // namespace tessera
