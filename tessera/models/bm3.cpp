#include "tessera/model/common_settings.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/losses.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

/// BM3 (Zhou et al., WWW 2023, arXiv:2207.05969): propagated IDs and projected features are pulled
/// towards dropped-out, gradient-stopped copies of each other; positive pairs only. The default is
/// the published code; variant = paper follows the summaries of the paper (paper body not checked).
/// Features are not read when ranking, so items without a train row get no meaningful score.
class Bm3 : public GraphModel {
 public:
  struct Config {
    std::string variant = "released", reg = "norm", projection = "linear", predictor = "linear";
    std::string missing = "mean", precision = "float32";
    int64_t embedding_size = 64, n_layers = 1;
    double dropout = 0.5, reg_weight = 0.1, rec_weight = 1, align_weight = 2, mask_weight = 2;
    bool freeze_features = false, stop_gradient = true;

    void describe(Fields& f) {
      f.choice("variant", variant,
               "the published code's form, or the paper's (from summaries, paper body not checked)",
               {"released", "paper"});
      common::embedding_size(f, embedding_size);
      common::n_layers(f, n_layers);
      f.add("dropout", dropout, "rate on the targets", between(0, 0.95));
      common::reg_weight(f, reg_weight, "the regulariser");
      f.add("rec_weight", rec_weight, "weight of the two user-item terms", at_least(0));
      f.add("align_weight", align_weight, "weight of modality to item", at_least(0));
      f.add("mask_weight", mask_weight, "weight of modality to its dropped-out copy", at_least(0));
      f.choice("reg", reg, "norm: norms of the whole tables / n_items; squared: batch rows / 2B",
               {"norm", "squared"});
      f.choice("projection", projection, "of each modality", {"linear", "mlp"});
      f.choice("predictor", predictor, "one for users, items and modalities", {"linear", "mlp"});
      common::freeze_features(f, freeze_features);
      f.add("stop_gradient", stop_gradient, "targets get no gradient; false only as an ablation");
      common::missing(f, missing);
      f.choice("precision", precision,
               "of the products that project features; bfloat16 rounds their operands and is "
               "faster only where the processor has such products (AVX-512 BF16)",
               {"float32", "bfloat16"});
      f.alias("cl_weight", {"align_weight", "mask_weight"});
      f.alias("d", {"embedding_size"});
      f.alias("l", {"n_layers"});
      f.preset("variant", "paper",
               {{"align_weight", 1.0},
                {"mask_weight", 1.0},
                {"reg", "squared"},
                {"projection", "mlp"},
                {"predictor", "mlp"},
                {"freeze_features", true}});
    }

    std::string label() const {
      return variant == "paper" ? "BM3 variant = paper: from summaries, paper body not checked"
                                : "";
    }

    static SearchSpace search() {
      return {{"n_layers", {1, 2}}, {"dropout", {0.3, 0.5}}, {"reg_weight", {0.1, 0.01}}};
    }

    static std::vector<Ablation> ablations(const std::vector<std::string>& modalities) {
      std::vector<Ablation> out = {{"full", {}},
                                   {"no user-item terms", {{"rec_weight", 0.0}}},
                                   {"no alignment", {{"align_weight", 0.0}}},
                                   {"no masking", {{"mask_weight", 0.0}}},
                                   {"no stop-gradient", {{"stop_gradient", false}}}};
      for (const auto& modality : modalities) {
        out.push_back({modality + " alone", {{"modalities", modality}}});
      }
      out.push_back({"features permuted", {{"permute", "all"}}});
      return out;
    }
  };

  Bm3(const Config& config, const Context& context)
      : GraphModel(context),
        config_(config),
        tables_(*this, random_, config.embedding_size),
        predictor_(mlp("predictor", config.predictor, config.embedding_size, Role::scoring)) {
    require_features(data_, "BM3");
    for (const auto& feature : data_.features) {
      modalities_.push_back(
          {{*this, feature, config.missing, config.freeze_features, TrainedRows::lazy,
            Role::training},
           mlp(feature.name + ".projection", config.projection, feature.width(), Role::training)});
    }
  }

  Abilities abilities() const override { return {.uses_features = true}; }
  BatchSpec batch_spec() const override { return {.unit = BatchSpec::Unit::pair}; }

  /// H_u and H_i: the layer mean, and for items the layer-0 row once more.
  Vectors propagate() override {
    const Vectors h = tables_.layer_mean(config_.n_layers);
    return {h.users, h.items + tables_.items};
  }

  Loss loss(const Batch& batch) override {
    const Vectors h = propagate();
    const auto hu = gather_rows(h.users, batch.distinct_users);
    const auto hi = gather_rows(h.items, batch.distinct_items);
    const auto target_u = target(hu, "user", batch.distinct_users, batch.step);
    const auto target_i = target(hi, "item", batch.distinct_items, batch.step);
    Loss out;
    out.total = torch::zeros({});
    const auto add = [&](const std::string& name, double weight, const torch::Tensor& part) {
      out.total = out.total + weight * part;
      out.parts.emplace_back(name, part);
    };
    if (config_.rec_weight > 0) {
      const auto each = torch::full({batch.size()}, 1.0 / static_cast<double>(batch.size()));
      add("user_to_item", config_.rec_weight,
          cosine_loss(gather_rows(predictor_(hu), batch.user_inverse),
                      gather_rows(target_i, batch.positive_inverse), each));
      add("item_to_user", config_.rec_weight,
          cosine_loss(gather_rows(predictor_(hi), batch.positive_inverse),
                      gather_rows(target_u, batch.user_inverse), each));
    }
    // A term of an item alone is computed once, weighted by how often the item occurs.
    const auto share = torch::bincount(batch.positive_inverse, {}, batch.distinct_items.size(0))
                           .to(torch::kFloat) /
                       static_cast<double>(batch.size());
    for (auto& m : modalities_) {
      if (config_.align_weight == 0 && config_.mask_weight == 0) break;
      const auto projected =
          m.projection(m.features.gather(batch.distinct_items), config_.precision == "bfloat16");
      const auto online = predictor_(projected);
      const std::string& name = m.features.name();
      if (config_.align_weight > 0) {
        add("align_" + name, config_.align_weight, cosine_loss(online, target_i, share));
      }
      if (config_.mask_weight > 0) {
        const auto dropped =
            target(projected, "modality." + name, batch.distinct_items, batch.step);
        add("mask_" + name, config_.mask_weight, cosine_loss(online, dropped, share));
      }
    }
    if (config_.reg_weight > 0) {
      const auto reg = config_.reg == "norm"
                           ? (frobenius_norm(h.users) + frobenius_norm(h.items)) /
                                 static_cast<double>(data_.n_items)
                           : l2_rows(hu, {batch.user_inverse}, batch.size()) +
                                 l2_rows(hi, {batch.positive_inverse}, batch.size());
      add("reg", config_.reg_weight, reg);
    }
    return out;
  }

 protected:
  Vectors vectors() override {
    const Vectors h = propagate();
    return {predictor_(h.users), predictor_(h.items)};
  }

 private:
  struct Modality {
    ModalityTable features;
    Mlp projection;
  };

  Mlp mlp(const std::string& name, const std::string& form, int64_t in, Role role) {
    return {name, config_.embedding_size, in, form == "mlp" ? 2 : 1, maker(role), random_};
  }

  /// drop(x) without gradient; one mask for the whole table of that name and step.
  torch::Tensor target(const torch::Tensor& x, const std::string& name, const torch::Tensor& rows,
                       int64_t step) const {
    const torch::Tensor from = config_.stop_gradient ? x.detach() : x;
    if (config_.dropout == 0) return from;
    return from *
           dropout_mask(rows, x.size(1), config_.dropout, random_.stream("drop." + name), step);
  }

  const Config config_;
  const GraphTables tables_;
  const Mlp predictor_;
  std::vector<Modality> modalities_;
};

const RegisterModel<Bm3> registered{"BM3", "BM3, Zhou et al. 2023"};

}  // namespace
}  // namespace tessera
