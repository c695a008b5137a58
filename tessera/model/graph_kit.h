#pragma once

#include <torch/types.h>

#include <string>

#include "tessera/model/model.h"
#include "tessera/ops/graph.h"

// What models over the user-item graph and item features are built of.
namespace tessera {

/// Exit 3 unless the data have a feature for `model` to learn from.
void require_features(const TrainView& data, const std::string& model);

/// Embeddings of users and items beside the graph of their train pairs.
class GraphTables {
 public:
  /// "user_embedding" [n_users, width] and "item_embedding" [n_items, width], trained whole, from
  /// xavier_uniform of the streams init.<user> and init.<item>.
  GraphTables(Model& model, const Random& random, int64_t width, const std::string& user = "user",
              const std::string& item = "item");

  /// LGCN of ops/graph.h over `graph`, which is made of the same users and items; its own without.
  Vectors layer_mean(int64_t n_layers, const BipartiteGraph& over) const;
  Vectors layer_mean(int64_t n_layers) const { return layer_mean(n_layers, graph); }
  /// Its rows for the distinct users and items of the batch alone.
  Vectors layer_mean(int64_t n_layers, const Batch& batch) const;

  const BipartiteGraph graph;
  torch::Tensor &users, &items;
};

/// How a table of trained rows is kept: whole, a tensor, for models that read every row in a step,
/// or lazy, a RowTable, for those that read few. Both give the same bits.
enum class TrainedRows { whole, lazy };

/// The rows of one modality, an item each, items without it filled by the setting `missing`.
class ModalityTable {
 public:
  /// Unless they are `frozen`, the rows are trained as "<modality>.features".
  ModalityTable(Model& model, const Feature& feature, const std::string& missing, bool frozen,
                TrainedRows as, Role role = Role::scoring);

  const std::string& name() const { return name_; }
  int64_t width() const;
  /// Rows of distinct items int64 [n], with their gradient if they are trained; once a step. [n,
  /// width]
  torch::Tensor gather(const torch::Tensor& items) const;
  /// Every row; with a gradient if they are trained whole. [n_items, width]
  torch::Tensor all() const;

 private:
  std::string name_;
  torch::Tensor frozen_;
  torch::Tensor* whole_ = nullptr;
  RowTable* lazy_ = nullptr;
};

}  // namespace tessera
