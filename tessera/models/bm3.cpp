#include <optional>

#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/linear.h"
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
    std::string variant = "released";
    int64_t embedding_size = 64;
    int64_t n_layers = 1;
    double dropout = 0.5;
    double reg_weight = 0.1;
    double rec_weight = 1;
    double align_weight = 2, mask_weight = 2;
    std::string reg = "norm";
    std::string projection = "linear", predictor = "linear";
    bool freeze_features = false;
    bool stop_gradient = true;
    std::string missing = "mean";
    std::string precision = "float32";

    void describe(Fields& f) {
      f.choice("variant", variant,
               "the published code's form, or the paper's (from summaries, paper body not checked)",
               {"released", "paper"});
      f.add("embedding_size", embedding_size, "width of the IDs and of the projections",
            at_least(1));
      f.add("n_layers", n_layers, "propagation steps; search 1, 2", between(0, 8));
      f.add("dropout", dropout, "rate on the targets; search 0.3, 0.5", between(0, 0.95));
      f.add("reg_weight", reg_weight, "weight of the regulariser; search 0.1, 0.01 (Sports 0.01)",
            at_least(0));
      f.add("rec_weight", rec_weight, "weight of the two user-item terms", at_least(0));
      f.add("align_weight", align_weight, "weight of modality to item", at_least(0));
      f.add("mask_weight", mask_weight, "weight of modality to its dropped-out copy", at_least(0));
      f.choice("reg", reg, "norm: norms of the whole tables / n_items; squared: batch rows / 2B",
               {"norm", "squared"});
      f.choice("projection", projection, "of each modality", {"linear", "mlp"});
      f.choice("predictor", predictor, "one for users, items and modalities", {"linear", "mlp"});
      f.add("freeze_features", freeze_features, "keep the feature tables as they are");
      f.add("stop_gradient", stop_gradient, "targets get no gradient; false only as an ablation");
      f.choice("missing", missing, "rows of items without a modality",
               {"mean", "zero", "neighbours", "error"});
      f.choice(
          "precision", precision,
          "of the products that project features; bfloat16 rounds their operands and is faster "
          "only where the processor has such products (AVX-512 BF16)",
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
        graph_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items),
        users_(parameter("user_embedding",
                         xavier_uniform(data_.n_users, config.embedding_size, init("user")))),
        items_(parameter("item_embedding",
                         xavier_uniform(data_.n_items, config.embedding_size, init("item")))),
        predictor_(make_layer("predictor", config.embedding_size, config.predictor == "mlp",
                              Role::scoring)) {
    if (data_.features.empty()) {
      throw data_error(
          "BM3 needs item features and '{}' has none selected; add some with 'tessera import "
          "--feature NAME=FILE'",
          data_.name);
    }
    for (const auto& feature : data_.features) {
      Modality m;
      m.name = feature.name;
      torch::Tensor rows = filled(data_, feature, config.missing);
      if (config.freeze_features) {
        m.frozen = rows;
      } else {
        m.table = &table(feature.name + ".features", rows, Role::training);
      }
      m.projection = make_layer(feature.name + ".projection", feature.width(),
                                config.projection == "mlp", Role::training);
      modalities_.push_back(m);
    }
  }

  Abilities abilities() const override { return {.uses_features = true}; }
  BatchSpec batch_spec() const override { return {.unit = BatchSpec::Unit::pair}; }

  /// H_u and H_i: the layer mean, and for items the layer-0 row once more.
  Vectors propagate() override {
    auto [users, items] = layer_mean(graph_, users_, items_, config_.n_layers);
    return {users, items + items_};
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
          cosine_loss(gather_rows(predict(hu), batch.user_inverse),
                      gather_rows(target_i, batch.positive_inverse), each));
      add("item_to_user", config_.rec_weight,
          cosine_loss(gather_rows(predict(hi), batch.positive_inverse),
                      gather_rows(target_u, batch.user_inverse), each));
    }
    // A term of an item alone is computed once, weighted by how often the item occurs.
    const auto share = torch::bincount(batch.positive_inverse, {}, batch.distinct_items.size(0))
                           .to(torch::kFloat) /
                       static_cast<double>(batch.size());
    for (auto& m : modalities_) {
      if (config_.align_weight == 0 && config_.mask_weight == 0) break;
      const auto rows = m.table != nullptr ? m.table->gather(batch.distinct_items)
                                           : m.frozen.index_select(0, batch.distinct_items);
      const auto projected = apply(m.projection, rows, config_.precision == "bfloat16");
      const auto online = predict(projected);
      if (config_.align_weight > 0) {
        add("align_" + m.name, config_.align_weight, cosine_loss(online, target_i, share));
      }
      if (config_.mask_weight > 0) {
        add("mask_" + m.name, config_.mask_weight,
            cosine_loss(online,
                        target(projected, "modality." + m.name, batch.distinct_items, batch.step),
                        share));
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
    return {predict(h.users), predict(h.items)};
  }

 private:
  /// One linear layer, or two with a ReLU between. weight [out, in]
  struct Layer {
    torch::Tensor *weight = nullptr, *bias = nullptr;
    torch::Tensor *weight2 = nullptr, *bias2 = nullptr;
  };
  struct Modality {
    std::string name;
    RowTable* table = nullptr;  // [n_items, width], trained
    torch::Tensor frozen;       // the same, not trained
    Layer projection;
  };

  Random init(const std::string& name) const { return random_.stream("init." + name); }

  Layer make_layer(const std::string& name, int64_t width, bool mlp, Role role) {
    const int64_t d = config_.embedding_size;
    Layer layer;
    layer.weight =
        &parameter(name + ".weight", xavier_normal(d, width, init(name + ".weight")), role);
    layer.bias =
        &parameter(name + ".bias", linear_default_bias(width, d, init(name + ".bias")), role);
    if (mlp) {
      layer.weight2 =
          &parameter(name + ".weight2", xavier_normal(d, d, init(name + ".weight2")), role);
      layer.bias2 =
          &parameter(name + ".bias2", linear_default_bias(d, d, init(name + ".bias2")), role);
    }
    return layer;
  }

  static torch::Tensor apply(const Layer& layer, const torch::Tensor& x, bool bfloat16) {
    const auto y = linear(x, *layer.weight, *layer.bias, bfloat16);
    if (layer.weight2 == nullptr) return y;
    return linear(y.relu(), *layer.weight2, *layer.bias2, bfloat16);
  }
  torch::Tensor predict(const torch::Tensor& x) const { return apply(predictor_, x, false); }

  /// drop(x) without gradient; one mask for the whole table of that name and step.
  torch::Tensor target(const torch::Tensor& x, const std::string& name, const torch::Tensor& rows,
                       int64_t step) const {
    const torch::Tensor from = config_.stop_gradient ? x.detach() : x;
    if (config_.dropout == 0) return from;
    return from *
           dropout_mask(rows, x.size(1), config_.dropout, random_.stream("drop." + name), step);
  }

  const Config config_;
  const BipartiteGraph graph_;
  torch::Tensor& users_;
  torch::Tensor& items_;
  const Layer predictor_;
  std::vector<Modality> modalities_;
};

const RegisterModel<Bm3> registered{"BM3", "BM3, Zhou et al. 2023"};

}  // namespace
}  // namespace tessera
