#include "tessera/model/graph_kit.h"

#include "tessera/base/error.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"

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

}  // namespace tessera
