#include "tessera/model/common_settings.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/ops/contrast.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

/// MGCN (Yu et al., MM 2023): item IDs gated by each modality's projection walk over that
/// modality's item graph and to the users; what the modalities share and what is their own is added
/// to a LightGCN of the IDs, and contrasted with it. variant = released divides the penalty by the
/// full batch size even for the last, shorter batch.
class Mgcn : public AlikeModel {
 public:
  struct Config {
    std::string variant = "paper", reg_batch = "rows", missing = "zero";
    int64_t embedding_size = 64, n_layers = 2, k = 10, n_negatives = 1;
    double reg_weight = 1e-4, cl_loss = 1e-2, temperature = 0.2;
    bool freeze_features = false;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's",
               {"paper", "released"});
      common::embedding_size(f, embedding_size);
      common::n_layers(f, n_layers);
      f.add("k", k, "neighbours of an item, itself counted", at_least(1));
      common::reg_weight(f, reg_weight, "the penalty on the batch's final rows");
      f.add("cl_loss", cl_loss, "weight of the contrast", at_least(0));
      f.add("temperature", temperature, "of the contrast", above(0));
      f.choice("reg_batch", reg_batch, "divisor of the penalty: the batch's rows or the full batch",
               {"rows", "full"});
      common::freeze_features(f, freeze_features);
      common::missing(f, missing);
      common::n_negatives(f, n_negatives);
      f.preset("variant", "released", {{"reg_batch", "full"}});
      f.global_default("learning_rate_scheduler", {0.96, 50});
    }

    static SearchSpace search() { return {{"cl_loss", {1e-3, 1e-2, 1e-1}}}; }
  };

  Mgcn(const Config& config, const Context& context)
      : AlikeModel(context, config.n_negatives),
        config_(config),
        tables_(*this, random_, config.embedding_size) {
    require_features(data_, "MGCN");
    const int64_t d = config.embedding_size;
    const auto layer = [&](const std::string& name, int64_t in) {
      return Linear(name, d, in, maker(), random_, Start::uniform);
    };
    for (const auto& feature : data_.features) {
      const auto& name = feature.name;
      modalities_.push_back(
          {{*this, feature, config.missing, config.freeze_features, TrainedRows::whole},
           alike_items(name + ".similar", {&feature, 1}, {1}, config.k, /*weighted=*/true),
           layer(name + ".projection", feature.width()),
           layer(name + ".gate", d),
           layer(name + ".own", d)});
    }
    attention_ = Attention("query", d, maker(), random_);
  }

  Vectors propagate() override {
    const auto [content, side] = parts(tables_.layer_mean(config_.n_layers), nullptr);
    return split(content + side, data_.n_users);
  }

  Loss loss(const Batch& batch) override {
    const auto [content, side] = parts(tables_.layer_mean(config_.n_layers, batch), &batch);
    const int64_t n_users = batch.distinct_users.size(0), n_items = batch.distinct_items.size(0);
    const Vectors all = split(content + side, n_users);
    const Triples at{batch.user_inverse, batch.positive_inverse, batch.negative_inverse};
    const auto bpr = bpr_loss(all.users, all.items, at);
    const auto reg = l2_rows(all.users, all.items, at,
                             config_.reg_batch == "full" ? train_.train_batch_size : batch.size());
    Loss out{bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
    if (config_.cl_loss > 0) {
      const Vectors from = split(unit_rows(side), n_users), to = split(unit_rows(content), n_users);
      const auto contrast =
          batch_info_nce(from.items, to.items, torch::bincount(batch.positive_inverse, {}, n_items),
                         config_.temperature) +
          batch_info_nce(from.users, to.users, torch::bincount(batch.user_inverse, {}, n_users),
                         config_.temperature);
      out.total = out.total + config_.cl_loss * contrast;
      out.parts.emplace_back("cl", contrast);
    }
    return out;
  }

 protected:
  /// They walk from their neighbours; content they have none.
  torch::Tensor new_items(const RowsByFeature& rows) override {
    std::vector<torch::Tensor> walked;
    for (const auto& m : modalities_) walked.push_back(m.alike.walk_new(rows, gated(m)));
    return side(walked, torch::zeros_like(walked[0]));
  }

 private:
  struct Modality {
    ModalityTable features;
    AlikeItems alike;
    Linear projection, gate, own;
  };

  static Vectors split(const torch::Tensor& all, int64_t n_users) {
    return {all.narrow(0, 0, n_users), all.narrow(0, n_users, all.size(0) - n_users)};
  }

  /// {content, side} of every user and item, or of those in the batch, users above items [n, d];
  /// `ids` are their LightGCN rows. All items walk, for the users and the neighbours.
  std::pair<torch::Tensor, torch::Tensor> parts(const Vectors& ids, const Batch* batch) const {
    std::vector<torch::Tensor> walked;  // e_m [n, d]
    for (const auto& m : modalities_) {
      const auto items = m.alike.walk(gated(m)), users = to_users(tables_.graph, items);
      walked.push_back(batch == nullptr ? torch::cat({users, items})
                                        : torch::cat({gather_rows(users, batch->distinct_users),
                                                      gather_rows(items, batch->distinct_items)}));
    }
    const auto content = torch::cat({ids.users, ids.items});
    return {content, side(walked, content)};
  }

  torch::Tensor gated(const Modality& m) const {
    return tables_.items * torch::sigmoid(m.gate(m.projection(m.features.all())));
  }

  /// What the modalities share, by attention, and what is their own, as far as content lets it.
  torch::Tensor side(const std::vector<torch::Tensor>& walked, const torch::Tensor& content) const {
    const auto common = attention_(walked);
    torch::Tensor sum = common;
    for (size_t m = 0; m < walked.size(); ++m) {
      sum = sum + (walked[m] - common) * torch::sigmoid(modalities_[m].own(content));
    }
    return sum / static_cast<double>(walked.size() + 1);
  }

  const Config config_;
  const GraphTables tables_;
  std::vector<Modality> modalities_;
  Attention attention_;
};

const RegisterModel<Mgcn> registered{"MGCN", "MGCN, Yu et al. 2023"};

}  // namespace
}  // namespace tessera
