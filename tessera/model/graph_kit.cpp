#include "tessera/model/graph_kit.h"

#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/folder/manifest.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/item_graph.h"

namespace tessera {

void require_features(const TrainView& data, const std::string& model) {
  if (!data.features.empty()) return;
  throw data_error(
      "{} needs item features and '{}' has none selected; add some with 'tessera import "
      "--feature NAME=FILE'",
      model, data.name);
}

GraphTables::GraphTables(Model& model, const Random& random, int64_t width, const std::string& user,
                         const std::string& item)
    : graph(model.data().train_distinct.offsets, model.data().train_distinct.items,
            model.data().n_items),
      users(model.parameter(
          "user_embedding",
          xavier_uniform(model.data().n_users, width, random.stream("init." + user)), Role::scoring,
          Axis::by_user)),
      items(model.parameter(
          "item_embedding",
          xavier_uniform(model.data().n_items, width, random.stream("init." + item)), Role::scoring,
          Axis::by_item)) {}

Vectors GraphTables::layer_mean(int64_t n_layers, const BipartiteGraph& over) const {
  const auto [u, i] = tessera::layer_mean(over, users, items, n_layers);
  return {u, i};
}

Vectors GraphTables::layer_mean(int64_t n_layers, const Batch& batch) const {
  const auto [u, i] =
      layer_mean_rows(graph, users, items, n_layers, batch.distinct_users, batch.distinct_items);
  return {u, i};
}

ModalityTable::ModalityTable(Model& model, const Feature& feature, const std::string& missing,
                             bool frozen, TrainedRows as, Role role)
    : name_(feature.name) {
  const auto rows = filled(model.data(), feature, missing);
  if (frozen) {
    frozen_ = rows;
  } else if (as == TrainedRows::whole) {
    whole_ = &model.parameter(name_ + ".features", rows, role, Axis::by_item);
  } else {
    lazy_ = &model.table(name_ + ".features", rows, role, Axis::by_item);
  }
}

int64_t ModalityTable::width() const {
  return lazy_ != nullptr ? lazy_->width() : whole_ != nullptr ? whole_->size(1) : frozen_.size(1);
}

torch::Tensor ModalityTable::gather(const torch::Tensor& items) const {
  if (lazy_ != nullptr) return lazy_->gather(items);
  return whole_ != nullptr ? gather_rows(*whole_, items) : frozen_.index_select(0, items);
}

torch::Tensor ModalityTable::all() const {
  return lazy_ != nullptr ? lazy_->value() : whole_ != nullptr ? *whole_ : frozen_;
}

std::vector<double> feature_weights(const TrainView& data, const std::vector<double>& weights,
                                    const std::string& owner) {
  static const std::map<std::string, double> usual = {{"image", 0.1}, {"text", 0.9}};
  std::vector<std::string> shown;
  for (const auto& feature : data.features) shown.push_back(shown_modality(feature));
  return modality_weights(shown, weights, usual, owner);
}

torch::Tensor AlikeItems::walk(const torch::Tensor& x) const { return propagate(graph_->get(), x); }

NeighbourGraph AlikeItems::fit() const {
  std::vector<NeighbourGraph> graphs;
  for (const auto& feature : features_) {
    graphs.push_back(normalised(knn_graph(feature.all(), k_, weighted_)));
  }
  return weighted_sum(graphs, weights_);
}

/// What the edges to the neighbours found weigh, 0 where there is none. float32 [n, k]
torch::Tensor AlikeItems::edges(const TopK& top) const {
  return torch::where(top.items >= 0, weighted_ ? top.scores : torch::ones_like(top.scores), 0.0);
}

torch::Tensor AlikeItems::walk_new(const RowsByFeature& rows, const torch::Tensor& x,
                                   const torch::Tensor& own) const {
  if (k_ < 2) {
    throw usage_error("k = {}: a new item has no neighbour but itself, wanted 2 or more", k_);
  }
  const torch::NoGradGuard no_grad;
  const auto inverse_root = [](const torch::Tensor& sums) {
    return torch::where(sums > 0, sums.rsqrt(), 0.0);
  };
  torch::Tensor out;
  for (size_t m = 0; m < features_.size(); ++m) {
    const auto trained = features_[m].all(), &more = rows.at(features_[m].name).rows;
    const int64_t n = more.size(0), k = std::min(k_, trained.size(0));
    const auto near = nearest_rows(more, trained, std::min(k_ - 1, k));
    const auto at = near.items.clamp_min(0).to(torch::kInt64).flatten();
    // Of the graph's row sums those that are read, once each.
    const auto [read, place] = at::_unique(at, /*sorted=*/true, /*return_inverse=*/true);
    const auto sums = edges(nearest_rows(trained.index_select(0, read), trained, k)).sum(1);
    const auto near_root = inverse_root(sums).index_select(0, place).view({n, -1});
    const auto weight = edges(near);
    const auto directed = more.abs().amax(1) > 0;
    const auto root = inverse_root(torch::where(directed, 1 + weight.sum(1), 0.0)).unsqueeze(1);
    auto y = torch::bmm((weight * root * near_root).unsqueeze(1),
                        x.index_select(0, at).view({n, -1, x.size(1)}))
                 .squeeze(1);
    if (own.defined()) y = y + root.square() * own;
    out = out.defined() ? out + weights_[m] * y : weights_[m] * y;
  }
  return out;
}

std::shared_ptr<const Scorer> AlikeModel::with_items(const Scorer& scorer,
                                                     const std::vector<Feature>& features,
                                                     int64_t n) {
  const torch::NoGradGuard no_grad;
  const auto rows = rows_of_new_items(data_, features, n, "zero");
  RowsByFeature by_name;
  for (size_t m = 0; m < rows.size(); ++m) {
    const auto& name = data_.features[m].name;
    by_name[name] = {rows[m], present_in(features, name, n)};
  }
  return dynamic_cast<const VectorScorer&>(scorer).with_items(new_items(by_name));
}

AlikeItems AlikeModel::alike_items(const std::string& name, std::span<const Feature> features,
                                   std::vector<double> weights, int64_t k, bool weighted) {
  AlikeItems out(features, std::move(weights), k, weighted);
  out.graph_ = &item_graph(name, [out] { return out.fit(); });
  return out;
}

Attention::Attention(const std::string& name, int64_t width, const MakeParameter& make,
                     const Random& random)
    : query(name, width, width, make, random, Start::uniform),
      out(&make(name + ".out.weight",
                linear_default_weight(1, width, random.stream("init." + name + ".out.weight")))) {}

torch::Tensor Attention::operator()(const std::vector<torch::Tensor>& from) const {
  std::vector<torch::Tensor> scores;
  for (const auto& e : from) scores.push_back(query(e).tanh().matmul(out->t()));
  const auto share = torch::softmax(torch::cat(scores, 1), 1).unbind(1);
  torch::Tensor sum = from[0] * share[0].unsqueeze(1);
  for (size_t m = 1; m < from.size(); ++m) sum = sum + from[m] * share[m].unsqueeze(1);
  return sum;
}

}  // namespace tessera
