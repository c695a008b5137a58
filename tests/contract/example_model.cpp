#include "tessera/model/common_settings.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

/// ContentGCN: LightGCN (He et al., SIGIR 2020) over items that are an ID plus projections of their
/// features, so that an item nobody has taken yet is ranked by what it looks like and says.
class ContentGcn : public GraphModel {
 public:
  struct Config {
    int64_t embedding_size = 64, n_layers = 2, n_negatives = 1;
    double reg_weight = 1e-4;
    std::string missing = "zero";

    void describe(Fields& f) {
      common::embedding_size(f, embedding_size);
      common::n_layers(f, n_layers);
      common::reg_weight(f, reg_weight, "the penalty on the IDs of the batch");
      common::missing(f, missing);
      common::n_negatives(f, n_negatives);
    }
    static SearchSpace search() { return {{"n_layers", {1, 2, 3}}, {"reg_weight", {1e-3, 1e-4}}}; }
  };

  ContentGcn(const Config& config, const Context& context)
      : GraphModel(context), config_(config), tables_(*this, random_, config.embedding_size) {
    require_features(data_, "ContentGCN");
    for (const auto& feature : data_.features) {
      features_.emplace_back(*this, feature, config.missing, /*frozen=*/true, TrainedRows::whole);
      projections_.emplace_back(feature.name + ".projection", config.embedding_size,
                                feature.width(), maker(), random_, Start::xavier);
    }
  }

  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true, .ranks_cold_items = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = config_.n_negatives};
  }

  Vectors propagate() override {
    torch::Tensor items = tables_.items;
    for (size_t m = 0; m < features_.size(); ++m)
      items = items + projections_[m](features_[m].all());
    const auto [u, i] = layer_mean(tables_.graph, tables_.users, items, config_.n_layers);
    return {u, i};
  }

  Loss loss(const Batch& batch) override {
    const Vectors h = propagate();
    const Triples at{batch.users, batch.positives, batch.negatives};
    const auto bpr = bpr_loss(h.users, h.items, at);
    const auto reg = l2_rows(tables_.users, tables_.items, at, batch.size());
    return {bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
  }

 private:
  const Config config_;
  const GraphTables tables_;
  std::vector<ModalityTable> features_;
  std::vector<Linear> projections_;
};

const RegisterModel<ContentGcn> registered{"ContentGCN", "ContentGCN, an example"};

}  // namespace
}  // namespace tessera
