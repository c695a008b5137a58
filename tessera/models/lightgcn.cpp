#include "tessera/model/common_settings.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

/// LightGCN (He et al., SIGIR 2020, arXiv:2002.02126): the mean over layers of linear propagation
/// on the normalised user-item graph, trained with BPR; the penalty is on the layer-0 rows.
/// variant = released is MMRec's form: norms instead of squares.
class LightGcn : public GraphModel {
 public:
  struct Config {
    std::string variant = "paper";
    int64_t embedding_size = 64;
    int64_t n_layers = 3;
    double reg_weight = 1e-4;
    std::string reg = "squared";
    int64_t n_negatives = 1;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's",
               {"paper", "released"});
      common::embedding_size(f, embedding_size);
      common::n_layers(f, n_layers);
      common::reg_weight(f, reg_weight, "the penalty on the layer-0 rows of the batch");
      f.choice("reg", reg, "squared: sum of squares / 2B; norm: sum of Frobenius norms / B",
               {"squared", "norm"});
      common::n_negatives(f, n_negatives);
      f.alias("d", {"embedding_size"});
      f.alias("l", {"n_layers"});
      f.preset("variant", "released", {{"reg", "norm"}});
    }

    static SearchSpace search() {
      return {{"n_layers", {1, 2, 3, 4}}, {"reg_weight", {1e-2, 1e-3, 1e-4, 1e-5, 1e-6}}};
    }
  };

  LightGcn(const Config& config, const Context& context)
      : GraphModel(context),
        config_(config),
        tables_(*this, random_, config.embedding_size, "user_embedding", "item_embedding") {}

  Abilities abilities() const override { return {}; }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = config_.n_negatives};
  }

  Vectors propagate() override { return tables_.layer_mean(config_.n_layers); }

  Loss loss(const Batch& batch) override {
    const Vectors h = tables_.layer_mean(config_.n_layers, batch);
    const auto bpr = bpr_loss(h.users, h.items,
                              {batch.user_inverse, batch.positive_inverse, batch.negative_inverse});
    const Triples at{batch.users, batch.positives, batch.negatives};
    const auto reg = config_.reg == "squared"
                         ? l2_rows(tables_.users, tables_.items, at, batch.size())
                         : norm_rows(tables_.users, tables_.items, at, batch.size());
    return {bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
  }

 private:
  const Config config_;
  const GraphTables tables_;
};

const RegisterModel<LightGcn> registered{"LightGCN", "LightGCN, He et al. 2020"};

}  // namespace
}  // namespace tessera
