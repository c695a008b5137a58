#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/model/sequence_model.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

/// SASRec (Kang & McAuley, ICDM 2018): causal self-attention over the history, scored against the
/// item embeddings. norm = original is the published form in the PyTorch ports' spelling, trained
/// here with the full softmax; pre and post are the layer orders of later code (RecBole: post).
class SasRec : public SequenceModel {
 public:
  struct Config {
    SequenceSettings sequence;
    std::string norm = "original", activation = "relu", positions = "from_end";
    int64_t embedding_size = 64, inner_size = 64, n_layers = 2, n_heads = 1;
    double hidden_dropout = 0.5, attention_dropout = 0.5, layer_norm_eps = 1e-8, beta2 = 0.98;
    bool scale_embedding = true, out_proj = true;

    void describe(Fields& f) {
      sequence.describe(f);
      f.choice("norm", norm, "order of layer norms and residuals", {"original", "pre", "post"});
      f.add("embedding_size", embedding_size, "width of the embeddings", at_least(1));
      f.add("inner_size", inner_size, "width inside the feed-forward layers", at_least(1));
      f.add("n_layers", n_layers, "blocks", between(0, 64));
      f.add("n_heads", n_heads, "attention heads; a divisor of embedding_size", at_least(1));
      f.add("hidden_dropout", hidden_dropout, "rate on embeddings and layers (ML-1M: 0.2)",
            between(0, 0.95));
      f.add("attention_dropout", attention_dropout, "rate on attention weights (ML-1M: 0.2)",
            between(0, 0.95));
      f.choice("activation", activation, "inside the feed-forward layers", {"relu", "gelu"});
      f.add("layer_norm_eps", layer_norm_eps, "added to the variance", above(0));
      f.choice("positions", positions,
               "the last item has the last position, or the first item the first",
               {"from_end", "from_start"});
      f.add("scale_embedding", scale_embedding, "item embeddings times the root of their width");
      f.add("out_proj", out_proj, "a linear map after attention; the TensorFlow original has none");
      f.add("beta2", beta2, "Adam's second decay", between(0, 0.999999));
      f.preset("norm", "post",
               {{"inner_size", 256},
                {"n_heads", 2},
                {"activation", "gelu"},
                {"layer_norm_eps", 1e-12},
                {"positions", "from_start"},
                {"scale_embedding", false},
                {"beta2", 0.999}});
    }

    /// The paper's rates for dense and sparse data, and RecBole's depths.
    static SearchSpace search() {
      return {{"n_layers", {1, 2, 3}},
              {"hidden_dropout", {0.2, 0.5}},
              {"attention_dropout", {0.2, 0.5}}};
    }
  };

  SasRec(const Config& config, const Context& context)
      : SequenceModel(config.sequence, context),
        config_(config),
        items_(item_rows(
            normal(data_.n_items, config.embedding_size, 0, 0.02, random_.stream("init.item")))),
        positions_(parameter("position_embedding",
                             normal(config.sequence.max_length, config.embedding_size, 0, 0.02,
                                    random_.stream("init.position")))) {
    if (config.embedding_size % config.n_heads != 0) {
      throw usage_error("SASRec.n_heads must divide embedding_size {}, got {}",
                        config.embedding_size, config.n_heads);
    }
    TransformerOptions options;
    using Norm = TransformerOptions::Norm;
    options.norm = config.norm == "post"  ? Norm::post
                   : config.norm == "pre" ? Norm::pre
                                          : Norm::original;
    options.width = config.embedding_size;
    options.inner = config.inner_size;
    options.n_layers = config.n_layers;
    options.n_heads = config.n_heads;
    options.hidden_dropout = config.hidden_dropout;
    options.attention_dropout = config.attention_dropout;
    options.eps = config.layer_norm_eps;
    options.gelu = config.activation == "gelu";
    options.out_proj = config.out_proj;
    if (config.norm == "post") {
      input_norm_ = LayerNorm("input_norm", config.embedding_size, config.layer_norm_eps, maker());
    }
    encoder_ = Transformer("encoder", options, maker(), random_);
  }

  std::vector<ParameterGroup> parameter_groups() override {
    auto groups = Model::parameter_groups();
    for (auto& group : groups) group.beta2 = config_.beta2;
    return groups;
  }

 protected:
  torch::Tensor encode(const torch::Tensor& items, const Pass& pass) override {
    auto x = items_.rows(items);
    if (config_.scale_embedding) x = x * std::sqrt(static_cast<double>(config_.embedding_size));
    x = x + gather_rows(positions_, position_index(pass.offsets, sequence_.max_length,
                                                   config_.positions == "from_end"));
    if (config_.norm == "post") x = input_norm_(x);
    return encoder_(dropout(x, config_.hidden_dropout, pass, "input"), pass);
  }
  torch::Tensor candidates() override { return items_.all(); }

 private:
  const Config config_;
  ItemRows& items_;           // [n_items, d]
  torch::Tensor& positions_;  // [max_length, d]
  LayerNorm input_norm_;
  Transformer encoder_;
};

const RegisterModel<SasRec> registered{"SASRec", "SASRec, Kang & McAuley 2018"};

}  // namespace
}  // namespace tessera
