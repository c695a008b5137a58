#include "tessera/base/error.h"
#include "tessera/folder/manifest.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/item_graph.h"
#include "tessera/ops/thin.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

/// Of the published code, where pictures and words are all (baselines section 11).
const std::map<std::string, double> kUsualWeights = {{"image", 0.1}, {"text", 0.9}};

/// FREEDOM (Zhou & Shen, MM 2023): LightGCN on a user-item graph that loses most edges of popular
/// nodes anew every epoch, plus one step over a frozen graph of items that look or read alike. The
/// published code has no known deviation, so both variants are one.
class Freedom : public GraphModel {
 public:
  struct Config {
    std::string variant = "paper";
    int64_t embedding_size = 64;
    int64_t n_layers = 2;
    double dropout = 0.8;
    double reg_weight = 1e-3;
    int64_t k = 10;
    std::vector<double> modality_weights;
    bool freeze_features = false;
    std::string missing = "zero";
    int64_t n_negatives = 1;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's (the same)",
               {"paper", "released"});
      f.add("embedding_size", embedding_size, "width of the IDs and of the projections",
            at_least(1));
      f.add("n_layers", n_layers, "propagation steps over users and items", between(0, 8));
      f.add("dropout", dropout, "share of the edges dropped every epoch; search 0.8, 0.9",
            between(0, 1));
      f.add("reg_weight", reg_weight, "weight of ranking by each modality alone", at_least(0));
      f.add("k", k, "neighbours of an item, itself counted", at_least(1));
      f.list(
          "modality_weights", modality_weights,
          "of the item graphs, in the order of the modalities; empty: image 0.1 and text 0.9 (or "
          "what R2MR made of the two), else equal",
          at_least(0));
      f.add("freeze_features", freeze_features, "keep the feature tables as they are");
      f.choice("missing", missing, "rows of items without a modality (none of its graph's edges)",
               {"zero", "mean", "neighbours", "error"});
      f.add("n_negatives", n_negatives, "negatives per positive", at_least(1));
    }
  };

  Freedom(const Config& config, const Context& context)
      : GraphModel(context),
        config_(config),
        graph_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items),
        users_(parameter("user_embedding",
                         xavier_uniform(data_.n_users, config.embedding_size, init("user")))),
        items_(parameter("item_embedding",
                         xavier_uniform(data_.n_items, config.embedding_size, init("item")))) {
    if (data_.features.empty()) {
      throw data_error(
          "FREEDOM needs item features and '{}' has none selected; add some with 'tessera import "
          "--feature NAME=FILE'",
          data_.name);
    }
    std::vector<std::string> names;
    std::vector<NeighbourGraph> graphs;
    for (const auto& feature : data_.features) {
      names.push_back(shown_modality(feature));
      graphs.push_back(normalised(knn_graph(feature.all(), config.k, /*weighted=*/false)));
      if (config.reg_weight == 0) continue;
      Modality m;
      m.name = feature.name;
      const torch::Tensor rows = filled(data_, feature, config.missing);
      if (config.freeze_features) {
        m.frozen = rows;
      } else {
        m.table = &table(m.name + ".features", rows, Role::training);
      }
      const int64_t d = config.embedding_size, width = feature.width();
      m.weight =
          &parameter(m.name + ".projection.weight",
                     linear_default_weight(d, width, init(m.name + ".weight")), Role::training);
      m.bias = &parameter(m.name + ".projection.bias",
                          linear_default_bias(width, d, init(m.name + ".bias")), Role::training);
      modalities_.push_back(m);
    }
    similar_ = ItemGraph(weighted_sum(
        graphs, modality_weights(names, config.modality_weights, kUsualWeights, "FREEDOM")));
  }

  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true, .ranks_cold_items = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = config_.n_negatives};
  }

  void begin_epoch(int64_t epoch, const Watch&) override {
    thin_ = thinned(graph_, config_.dropout, random_.stream("drop.edges"), epoch);
  }

  Vectors propagate() override { return propagate_over(graph_); }

  Loss loss(const Batch& batch) override {
    const Vectors h = propagate_over(thin_.defined() ? thin_ : graph_);
    const auto bpr = bpr_loss(h.users, h.items, {batch.users, batch.positives, batch.negatives});
    Loss out{bpr, {{"bpr", bpr}}};
    for (auto& m : modalities_) {
      const auto rows = m.table != nullptr ? m.table->gather(batch.distinct_items)
                                           : m.frozen.index_select(0, batch.distinct_items);
      const auto projected = torch::addmm(*m.bias, rows, m.weight->t());
      const auto part = bpr_loss(h.users, projected,
                                 {batch.users, batch.positive_inverse, batch.negative_inverse});
      out.total = out.total + config_.reg_weight * part;
      out.parts.emplace_back("bpr_" + m.name, part);
    }
    return out;
  }

 private:
  struct Modality {
    std::string name;
    RowTable* table = nullptr;  // [n_items, width], trained
    torch::Tensor frozen;       // the same, not trained
    torch::Tensor *weight = nullptr, *bias = nullptr;
  };

  Random init(const std::string& name) const { return random_.stream("init." + name); }

  Vectors propagate_over(const BipartiteGraph& graph) const {
    const auto [users, items] = layer_mean(graph, users_, items_, config_.n_layers);
    return {users, items + tessera::propagate(similar_, items_)};
  }

  const Config config_;
  const BipartiteGraph graph_;
  BipartiteGraph thin_;  // of this epoch
  ItemGraph similar_;
  torch::Tensor& users_;
  torch::Tensor& items_;
  std::vector<Modality> modalities_;
};

const RegisterModel<Freedom> registered{"FREEDOM", "FREEDOM, Zhou & Shen 2023"};

}  // namespace
}  // namespace tessera
