#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/graph.h"
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
      f.add("embedding_size", embedding_size, "width of the embeddings", at_least(1));
      f.add("n_layers", n_layers, "propagation steps", between(0, 8));
      f.add("reg_weight", reg_weight, "weight of the penalty on the layer-0 rows of the batch",
            at_least(0));
      f.choice("reg", reg, "squared: sum of squares / 2B; norm: sum of Frobenius norms / B",
               {"squared", "norm"});
      f.add("n_negatives", n_negatives, "negatives per positive", at_least(1));
      f.alias("d", {"embedding_size"});
      f.alias("l", {"n_layers"});
      f.preset("variant", "released", {{"reg", "norm"}});
    }
  };

  LightGcn(const Config& config, const Context& context)
      : GraphModel(context),
        config_(config),
        graph_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items),
        users_(parameter("user_embedding", xavier_uniform(data_.n_users, config.embedding_size,
                                                          random_.stream("init.user_embedding")))),
        items_(parameter("item_embedding", xavier_uniform(data_.n_items, config.embedding_size,
                                                          random_.stream("init.item_embedding")))) {
  }

  Abilities abilities() const override { return {}; }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = config_.n_negatives};
  }

  Vectors propagate() override {
    auto [users, items] = layer_mean(graph_, users_, items_, config_.n_layers);
    return {users, items};
  }

  Loss loss(const Batch& batch) override {
    const auto [users, items] = layer_mean_rows(graph_, users_, items_, config_.n_layers,
                                                batch.distinct_users, batch.distinct_items);
    const auto bpr = bpr_loss(users, items,
                              {batch.user_inverse, batch.positive_inverse, batch.negative_inverse});
    const Triples at{batch.users, batch.positives, batch.negatives};
    const auto reg = config_.reg == "squared" ? l2_rows(users_, items_, at, batch.size())
                                              : norm_rows(users_, items_, at, batch.size());
    return {bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
  }

 private:
  const Config config_;
  const BipartiteGraph graph_;
  torch::Tensor& users_;
  torch::Tensor& items_;
};

const RegisterModel<LightGcn> registered{"LightGCN", "LightGCN, He et al. 2020"};

}  // namespace
}  // namespace tessera
