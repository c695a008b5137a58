#include "tessera/base/error.h"
#include "tessera/model/common_settings.h"
#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/losses.h"
#include "tessera/ops/sgd.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

/// BPR-MF (Rendle et al., UAI 2009): matrix factorisation trained on pairs of a positive and a
/// negative. variant = released is MMRec's form: norms instead of squares, log(sigmoid + 1e-10).
/// optimizer = sgd is the paper's LearnBPR, one triple after another: an epoch in a fraction of the
/// time, and more epochs.
class Bpr : public FactorModel, public OwnStep {
 public:
  struct Config {
    std::string variant = "paper", optimizer = "adam";
    int64_t embedding_size = 64;
    double reg_weight = 1e-4;
    std::string reg = "squared";
    std::string log_sigmoid = "exact";
    int64_t n_negatives = 1;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's",
               {"paper", "released"});
      f.choice("optimizer", optimizer,
               "adam, or sgd: triple by triple, learning_rate 0.05 unless given", {"adam", "sgd"});
      common::embedding_size(f, embedding_size);
      common::reg_weight(f, reg_weight, "the penalty on the batch's rows");
      f.choice("reg", reg, "squared: sum of squares / 2B; norm: sum of Frobenius norms / B",
               {"squared", "norm"});
      f.choice("log_sigmoid", log_sigmoid, "exact, or with 1e-10 inside the logarithm",
               {"exact", "eps"});
      common::n_negatives(f, n_negatives);
      f.alias("d", {"embedding_size"});
      f.preset("variant", "released", {{"reg", "norm"}, {"log_sigmoid", "eps"}});
      f.preset("optimizer", "sgd", {{"learning_rate", 0.05}});
    }

    static SearchSpace search() { return {{"reg_weight", {1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6}}}; }
  };

  Bpr(const Config& config, const Context& context)
      : FactorModel(context),
        config_(config),
        users_(table("user_embedding",
                     xavier_normal(data_.n_users, config.embedding_size,
                                   random_.stream("init.user_embedding")),
                     Role::scoring, Axis::by_user)),
        items_(table("item_embedding",
                     xavier_normal(data_.n_items, config.embedding_size,
                                   random_.stream("init.item_embedding")),
                     Role::scoring, Axis::by_item)) {
    if (config.optimizer != "sgd") return;
    if (config.reg != "squared" || config.log_sigmoid != "exact") {
      throw usage_error(
          "BPR.optimizer=sgd descends the paper's form: wanted reg=squared and "
          "log_sigmoid=exact, got {} and {}",
          config.reg, config.log_sigmoid);
    }
    if (train_.weight_decay > 0 || train_.clip_grad_norm > 0) {
      throw usage_error("BPR.optimizer=sgd knows no {}; reg_weight shrinks rows",
                        train_.weight_decay > 0 ? "weight_decay" : "clip_grad_norm");
    }
  }

  Abilities abilities() const override { return {}; }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair,
            .n_negatives = config_.n_negatives,
            .distinct = config_.optimizer != "sgd"};
  }

  Loss loss(const Batch& batch) override {
    const torch::Tensor user_rows = users_.gather(batch.distinct_users);
    const torch::Tensor item_rows = items_.gather(batch.distinct_items);
    const Triples at{batch.user_inverse, batch.positive_inverse, batch.negative_inverse};
    const auto bpr =
        config_.log_sigmoid == "exact"
            ? bpr_loss(user_rows, item_rows, at)
            : -(bpr_margins(gather_rows(user_rows, at.users), gather_rows(item_rows, at.positives),
                            gather_rows(item_rows, at.negatives.flatten()))
                    .sigmoid() +
                1e-10)
                   .log()
                   .mean();
    const auto reg = config_.reg == "squared" ? l2_rows(user_rows, item_rows, at, batch.size())
                                              : norm_rows(user_rows, item_rows, at, batch.size());
    return {bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
  }

  Offers offers() override { return {.step = config_.optimizer == "sgd" ? this : nullptr}; }
  Loss step(const Batch& batch) override {
    // The trainer never steps these tables, so their values are always up to date.
    torch::Tensor users = users_.value(), items = items_.value();
    const BprSgdLoss at =
        bpr_sgd(users, items, batch.users, batch.positives, batch.negatives,
                {train_.learning_rate * train_.rate_factor(batch.epoch), config_.reg_weight});
    const auto bpr = at.bpr.to(torch::kFloat), reg = at.squares.to(torch::kFloat);
    return {bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
  }

 protected:
  Vectors vectors() override { return {users_.value(), items_.value()}; }

 private:
  const Config config_;
  RowTable& users_;
  RowTable& items_;
};

const RegisterModel<Bpr> registered{
    "BPR", "BPR-MF, Rendle et al. 2009", {{"BPR-MF", {}}, {"BPRMF", {}}}};

}  // namespace
}  // namespace tessera
