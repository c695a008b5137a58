#include "tessera/model/common_settings.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/ops/thin.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

/// FREEDOM (Zhou & Shen, MM 2023): LightGCN on a user-item graph that loses most edges of popular
/// nodes anew every epoch, plus one step over a frozen graph of items that look or read alike. The
/// published code has no known deviation, so both variants are one.
class Freedom : public AlikeModel {
 public:
  struct Config {
    std::string variant = "paper", missing = "zero";
    int64_t embedding_size = 64, n_layers = 2, k = 10, n_negatives = 1;
    double dropout = 0.8, reg_weight = 1e-3;
    std::vector<double> modality_weights;
    bool freeze_features = false;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's (the same)",
               {"paper", "released"});
      common::embedding_size(f, embedding_size);
      common::n_layers(f, n_layers);
      f.add("dropout", dropout, "share of the edges dropped every epoch", between(0, 1));
      common::reg_weight(f, reg_weight, "ranking by each modality alone");
      f.add("k", k, "neighbours of an item, itself counted", at_least(1));
      f.list("modality_weights", modality_weights,
             "of the item graphs; empty: image 0.1, text 0.9 (also R2MR's), or equal", at_least(0));
      common::freeze_features(f, freeze_features);
      common::missing(f, missing);
      common::n_negatives(f, n_negatives);
    }

    static SearchSpace search() {
      return {{"dropout", {0.8, 0.9}}, {"reg_weight", {0, 1e-5, 1e-4, 1e-3}}};
    }
  };

  Freedom(const Config& config, const Context& context)
      : AlikeModel(context, config.n_negatives),
        config_(config),
        tables_(*this, random_, config.embedding_size),
        alike_(alike_items("similar", data_.features,
                           feature_weights(data_, config.modality_weights, "FREEDOM"), config.k,
                           /*weighted=*/false)) {
    require_features(data_, "FREEDOM");
    if (config.reg_weight == 0) return;
    for (const auto& feature : data_.features) {
      const auto& name = feature.name;
      modalities_.push_back({{*this, feature, config.missing, config.freeze_features,
                              TrainedRows::lazy, Role::training},
                             {name + ".projection", config.embedding_size, feature.width(),
                              maker(Role::training), random_, Start::uniform, name}});
    }
  }

  void begin_epoch(int64_t epoch, const Watch&) override {
    thin_ = thinned(tables_.graph, config_.dropout, random_.stream("drop.edges"), epoch);
  }

  Vectors propagate() override { return propagate_over(tables_.graph); }
  Loss loss(const Batch& batch) override {
    const Vectors h = propagate_over(thin_);
    const auto bpr = bpr_loss(h.users, h.items, {batch.users, batch.positives, batch.negatives});
    Loss out{bpr, {{"bpr", bpr}}};
    for (const auto& m : modalities_) {
      const auto part = bpr_loss(h.users, m.projection(m.features.gather(batch.distinct_items)),
                                 {batch.users, batch.positive_inverse, batch.negative_inverse});
      out.total = out.total + config_.reg_weight * part;
      out.parts.emplace_back("bpr_" + m.features.name(), part);
    }
    return out;
  }

 protected:
  /// One step over the alike, and no ID row and no users of its own.
  torch::Tensor new_items(const RowsByFeature& rows) override {
    return alike_.walk_new(rows, tables_.items);
  }

 private:
  struct Modality {
    ModalityTable features;
    Linear projection;
  };

  Vectors propagate_over(const BipartiteGraph& graph) const {
    const Vectors h = tables_.layer_mean(config_.n_layers, graph);
    return {h.users, h.items + alike_.walk(tables_.items)};
  }

  const Config config_;
  const GraphTables tables_;
  BipartiteGraph thin_ = tables_.graph;  // of this epoch
  const AlikeItems alike_;
  std::vector<Modality> modalities_;
};

const RegisterModel<Freedom> registered{"FREEDOM", "FREEDOM, Zhou & Shen 2023"};

}  // namespace
}  // namespace tessera
