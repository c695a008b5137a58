#include <cmath>

#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/item_graph.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

/// MGCN (Yu et al., MM 2023): item IDs gated by each modality's projection walk over that
/// modality's item graph and to the users; what the modalities share and what is their own is added
/// to a LightGCN of the IDs, and contrasted with it. variant = released divides the penalty by the
/// full batch size even for the last, shorter batch.
class Mgcn : public GraphModel {
 public:
  struct Config {
    std::string variant = "paper";
    int64_t embedding_size = 64;
    int64_t n_layers = 2;
    int64_t k = 10;
    double reg_weight = 1e-4;
    double cl_loss = 1e-2;
    double temperature = 0.2;
    std::string reg_batch = "rows";
    bool freeze_features = false;
    std::string missing = "zero";
    int64_t n_negatives = 1;

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's form, or the published code's",
               {"paper", "released"});
      f.add("embedding_size", embedding_size, "width of the IDs and of the projections",
            at_least(1));
      f.add("n_layers", n_layers, "propagation steps over users and items", between(0, 8));
      f.add("k", k, "neighbours of an item, itself counted", at_least(1));
      f.add("reg_weight", reg_weight, "weight of the penalty on the batch's final rows",
            at_least(0));
      f.add("cl_loss", cl_loss, "weight of the contrast; search 0.001, 0.01, 0.1", at_least(0));
      f.add("temperature", temperature, "of the contrast", above(0));
      f.choice("reg_batch", reg_batch, "divisor of the penalty: the batch's rows or the full batch",
               {"rows", "full"});
      f.add("freeze_features", freeze_features, "keep the feature tables as they are");
      f.choice("missing", missing, "rows of items without a modality (none of its graph's edges)",
               {"zero", "mean", "neighbours", "error"});
      f.add("n_negatives", n_negatives, "negatives per positive", at_least(1));
      f.preset("variant", "released", {{"reg_batch", "full"}});
    }
  };

  Mgcn(const Config& config, const Context& context)
      : GraphModel(context),
        config_(config),
        graph_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items),
        users_(parameter("user_embedding",
                         xavier_uniform(data_.n_users, config.embedding_size, init("user")))),
        items_(parameter("item_embedding",
                         xavier_uniform(data_.n_items, config.embedding_size, init("item")))) {
    if (data_.features.empty()) {
      throw data_error(
          "MGCN needs item features and '{}' has none selected; add some with 'tessera import "
          "--feature NAME=FILE'",
          data_.name);
    }
    const int64_t d = config.embedding_size;
    for (const auto& feature : data_.features) {
      Modality m;
      m.name = feature.name;
      m.similar = ItemGraph(normalised(knn_graph(feature.all(), config.k)));
      const torch::Tensor rows = filled(data_, feature, config.missing);
      if (config.freeze_features) {
        m.frozen = rows;
      } else {
        m.features = &parameter(m.name + ".features", rows);  // read whole: every item walks
      }
      m.projection = linear(m.name + ".projection", d, feature.width());
      m.gate = linear(m.name + ".gate", d, d);
      m.own = linear(m.name + ".own", d, d);
      modalities_.push_back(m);
    }
    query_ = linear("query", d, d);
    query_out_ =
        &parameter("query.out.weight", linear_default_weight(1, d, init("query.out.weight")));
  }

  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true, .ranks_cold_items = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = config_.n_negatives};
  }

  void begin_epoch(int64_t epoch, const Watch&) override { epoch_ = epoch; }

  std::vector<ParameterGroup> parameter_groups() override {
    auto groups = GraphModel::parameter_groups();
    groups[0].learning_rate = [this](int64_t) {
      return train_.learning_rate * std::pow(0.96, static_cast<double>(epoch_) / 50);
    };
    return groups;
  }

  Vectors propagate() override {
    const Parts h = parts();
    return split(h.content + h.side);
  }

  Loss loss(const Batch& batch) override {
    const Parts h = parts();
    const Vectors content = split(h.content), side = split(h.side);
    const Triples at{batch.users, batch.positives, batch.negatives};
    const Vectors all = split(h.content + h.side);
    const auto bpr = bpr_loss(all.users, all.items, at);
    const auto reg = l2_rows(all.users, all.items, at,
                             config_.reg_batch == "full" ? train_.train_batch_size : batch.size());
    Loss out{bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
    if (config_.cl_loss > 0) {
      const auto contrast =
          info_nce(gather_rows(side.items, batch.positives),
                   gather_rows(content.items, batch.positives)) +
          info_nce(gather_rows(side.users, batch.users), gather_rows(content.users, batch.users));
      out.total = out.total + config_.cl_loss * contrast;
      out.parts.emplace_back("cl", contrast);
    }
    return out;
  }

 private:
  struct Layer {
    torch::Tensor *weight = nullptr, *bias = nullptr;  // [out, in], [out]
    torch::Tensor operator()(const torch::Tensor& x) const {
      return torch::addmm(*bias, x, weight->t());
    }
  };
  struct Modality {
    std::string name;
    torch::Tensor* features = nullptr;  // [n_items, width], trained
    torch::Tensor frozen;               // the same, not trained
    ItemGraph similar;
    Layer projection, gate, own;
  };
  struct Parts {
    torch::Tensor content, side;  // [n_users + n_items, d]
  };

  Random init(const std::string& name) const { return random_.stream("init." + name); }

  Layer linear(const std::string& name, int64_t out, int64_t in) {
    return {&parameter(name + ".weight", linear_default_weight(out, in, init(name + ".weight"))),
            &parameter(name + ".bias", linear_default_bias(in, out, init(name + ".bias")))};
  }

  Vectors split(const torch::Tensor& all) const {
    return {all.narrow(0, 0, data_.n_users), all.narrow(0, data_.n_users, data_.n_items)};
  }

  Parts parts() const {
    const auto [users, items] = layer_mean(graph_, users_, items_, config_.n_layers);
    const auto content = torch::cat({users, items});
    std::vector<torch::Tensor> walked, attention;  // e_m [N, d] and q(e_m) [N, 1]
    for (const auto& m : modalities_) {
      const auto projected = m.projection(m.features != nullptr ? *m.features : m.frozen);
      const auto x = tessera::propagate(m.similar, items_ * torch::sigmoid(m.gate(projected)));
      walked.push_back(torch::cat({to_users(graph_, x), x}));
      attention.push_back(query_(walked.back()).tanh().matmul(query_out_->t()));
    }
    const auto share = torch::softmax(torch::cat(attention, 1), 1);
    torch::Tensor common = walked[0] * share.narrow(1, 0, 1);
    for (size_t m = 1; m < walked.size(); ++m) {
      common = common + walked[m] * share.narrow(1, static_cast<int64_t>(m), 1);
    }
    torch::Tensor sum = common;
    for (size_t m = 0; m < walked.size(); ++m) {
      sum = sum + (walked[m] - common) * torch::sigmoid(modalities_[m].own(content));
    }
    return {content, sum / static_cast<double>(walked.size() + 1)};
  }

  /// -mean log softmax over the batch of cos(a_k, b_l) / temperature at l = k. a, b [B, d]
  torch::Tensor info_nce(const torch::Tensor& a, const torch::Tensor& b) const {
    const auto logits = unit_rows(a).matmul(unit_rows(b).t()) / config_.temperature;
    return (logits.logsumexp(1) - logits.diagonal()).mean();
  }

  const Config config_;
  const BipartiteGraph graph_;
  torch::Tensor& users_;
  torch::Tensor& items_;
  std::vector<Modality> modalities_;
  Layer query_;
  torch::Tensor* query_out_ = nullptr;
  int64_t epoch_ = 0;
};

const RegisterModel<Mgcn> registered{"MGCN", "MGCN, Yu et al. 2023"};

}  // namespace
}  // namespace tessera
