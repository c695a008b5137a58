#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/model/sequence_model.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

/// BERT4Rec (Sun et al., CIKM 2019): attention in both directions, trained to restore masked items;
/// ranks by a mask after the history. MASK is a vector of its own, not an item. Wants 3 to 15 times
/// SASRec's epochs.
class Bert4Rec : public SequenceModel {
 public:
  struct Config {
    SequenceSettings sequence;
    int64_t embedding_size = 64, inner_size = 256, n_layers = 2, n_heads = 2;
    double hidden_dropout = 0.2, attention_dropout = 0.2, layer_norm_eps = 1e-12;
    double mask_ratio = 0.2, last_only = 0.5;
    std::string head = "full";

    void describe(Fields& f) {
      f.add("max_length", sequence.max_length, "items of a history that are read, the last ones",
            at_least(2));
      f.choice("rows", sequence.rows, "training rows: user (the last window), chunk (all windows)",
               {"user", "chunk"});
      f.add("embedding_size", embedding_size, "width of the embeddings", at_least(1));
      f.add("inner_size", inner_size, "width inside the feed-forward layers", at_least(1));
      f.add("n_layers", n_layers, "blocks", between(0, 64));
      f.add("n_heads", n_heads, "attention heads; a divisor of embedding_size", at_least(1));
      f.add("hidden_dropout", hidden_dropout, "rate on embeddings and layers", between(0, 0.95));
      f.add("attention_dropout", attention_dropout, "rate on attention weights", between(0, 0.95));
      f.add("layer_norm_eps", layer_norm_eps, "added to the variance", above(0));
      f.add("mask_ratio", mask_ratio, "probability that an item is masked", between(0, 1));
      f.add("last_only", last_only, "share of the rows in which only the last item is masked",
            between(0, 1));
      f.choice("head", head, "full: a layer before the scores and a bias an item",
               {"full", "plain"});
      f.global_default("train_batch_size", 128);
    }

    /// The paper's mask shares, and RecBole's rates.
    static SearchSpace search() {
      return {{"mask_ratio", {0.1, 0.2, 0.4, 0.6}},
              {"hidden_dropout", {0.2, 0.5}},
              {"attention_dropout", {0.2, 0.5}}};
    }
  };

  Bert4Rec(const Config& config, const Context& context)
      : SequenceModel(config.sequence, context),
        config_(config),
        items_(parameter("item_embedding", table_of("item", data_.n_items), Role::scoring,
                         Axis::by_item)),
        positions_(parameter("position_embedding", table_of("position", sequence_.max_length))),
        mask_(parameter("mask", table_of("mask", 1))) {
    const int64_t d = config.embedding_size;
    if (d % config.n_heads != 0) {
      throw usage_error("BERT4Rec.n_heads must divide embedding_size {}, got {}", d,
                        config.n_heads);
    }
    TransformerOptions options;
    options.norm = TransformerOptions::Norm::post;
    options.width = d;
    options.inner = config.inner_size;
    options.n_layers = config.n_layers;
    options.n_heads = config.n_heads;
    options.hidden_dropout = config.hidden_dropout;
    options.attention_dropout = config.attention_dropout;
    options.eps = config.layer_norm_eps;
    options.gelu = true;
    options.causal = false;
    input_norm_ = LayerNorm("input_norm", d, config.layer_norm_eps, maker());
    encoder_ = Transformer("encoder", options, maker(), random_);
    if (config.head == "full") {
      head_ = Linear("head", d, d, maker(), random_);
      head_norm_ = LayerNorm("head_norm", d, config.layer_norm_eps, maker());
      bias_ = &parameter("item_bias", torch::zeros({data_.n_items}), Role::scoring, Axis::by_item);
    }
  }

  /// Rows are the last max_length items, the sampler's last target included; the loss falls on
  /// masked slots.
  Loss loss(const Batch& batch) override {
    const Random random = random_.stream("masks");
    const auto* offset = batch.rows.offsets.const_data_ptr<int64_t>();
    const auto* item = batch.rows.items.const_data_ptr<int32_t>();
    const auto* target = batch.targets.const_data_ptr<int64_t>();
    const auto* target_end = batch.target_offsets.const_data_ptr<int64_t>() + 1;
    const auto step = static_cast<uint64_t>(batch.step);
    std::vector<int64_t> items, offsets = {0}, slots, wanted;
    for (int64_t row = 0; row < batch.rows.n_rows(); ++row) {
      const int64_t end = offset[row + 1];
      const int64_t begin = std::max(offset[row], end - (sequence_.max_length - 1));
      const auto first = static_cast<int64_t>(items.size());
      items.insert(items.end(), item + begin, item + end);
      items.push_back(target[target_end[row] - 1]);
      const auto n = static_cast<int64_t>(items.size()) - first;
      const auto at = static_cast<uint64_t>(row);
      const bool only_last = random.uniform(step, at, 0) < config_.last_only;
      const size_t before = slots.size();
      for (int64_t t = 0; t < n; ++t) {
        const bool last = t + 1 == n;
        const bool drawn = !only_last && random.uniform(step, at, static_cast<uint32_t>(t + 1)) <
                                             config_.mask_ratio;
        if (!drawn && !(last && slots.size() == before)) continue;
        slots.push_back(first + t);
        wanted.push_back(items[static_cast<size_t>(first + t)]);
        items[static_cast<size_t>(first + t)] = data_.n_items;
      }
      offsets.push_back(static_cast<int64_t>(items.size()));
    }
    Pass pass = pass_of(batch);
    pass.offsets = torch::tensor(offsets, torch::kInt64);
    const auto h = encode(torch::tensor(items, torch::kInt64), pass);
    Loss out;
    out.total = softmax_loss(read(gather_rows(h, torch::tensor(slots, torch::kInt64))), items_,
                             torch::tensor(wanted, torch::kInt64), candidate_bias());
    out.parts.emplace_back("ce", out.total);
    return out;
  }

 protected:
  /// Items below n_items are themselves, n_items is the mask.
  torch::Tensor encode(const torch::Tensor& items, const Pass& pass) override {
    auto x = gather_rows(torch::cat({items_, mask_}, 0), items) +
             gather_rows(positions_, position_index(pass.offsets, sequence_.max_length, false));
    x = dropout(input_norm_(x), config_.hidden_dropout, pass, "input");
    return encoder_(x, pass);
  }

  torch::Tensor row_vectors(const torch::Tensor& items, const Pass& pass) override {
    const auto* offset = pass.offsets.const_data_ptr<int64_t>();
    const auto* item = items.const_data_ptr<int64_t>();
    std::vector<int64_t> masked, offsets = {0};
    for (int64_t row = 0; row + 1 < pass.offsets.size(0); ++row) {
      const int64_t end = offset[row + 1];
      const int64_t begin = std::max(offset[row], end - (sequence_.max_length - 1));
      masked.insert(masked.end(), item + begin, item + end);
      masked.push_back(data_.n_items);
      offsets.push_back(static_cast<int64_t>(masked.size()));
    }
    Pass with_mask = pass;
    with_mask.offsets = torch::tensor(offsets, torch::kInt64);
    const auto h = encode(torch::tensor(masked, torch::kInt64), with_mask);
    return read(gather_rows(h, last_slots(with_mask.offsets)));
  }

  torch::Tensor candidates() override { return items_; }
  torch::Tensor candidate_bias() override { return bias_ != nullptr ? *bias_ : torch::Tensor(); }

 private:
  torch::Tensor table_of(const std::string& name, int64_t rows) const {
    return normal(rows, config_.embedding_size, 0, 0.02, random_.stream("init." + name));
  }
  torch::Tensor read(const torch::Tensor& h) const {
    return bias_ != nullptr ? head_norm_(torch::gelu(head_(h))) : h;
  }

  const Config config_;
  torch::Tensor& items_;      // [n_items, d]
  torch::Tensor& positions_;  // [max_length, d]
  torch::Tensor& mask_;       // [1, d]
  torch::Tensor* bias_ = nullptr;
  LayerNorm input_norm_, head_norm_;
  Linear head_;
  Transformer encoder_;
};

const RegisterModel<Bert4Rec> registered{"BERT4Rec", "BERT4Rec, Sun et al. 2019"};

}  // namespace
}  // namespace tessera
