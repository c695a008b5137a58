#pragma once

#include <torch/types.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tessera/model/model.h"
#include "tessera/model/offers.h"
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

/// What a model with one graph of alike items weighs each feature of the data by, see
/// modality_weights(): where `weights` is empty pictures .1 and words .9 if they are all, as in the
/// published code of FREEDOM (baselines section 11).
std::vector<double> feature_weights(const TrainView& data, const std::vector<double>& weights,
                                    const std::string& owner);

/// What n items have of a feature.
struct FeatureRows {
  torch::Tensor rows;     ///< float32 [n, width], zero where missing
  torch::Tensor present;  ///< bool [n]
};
using RowsByFeature = std::map<std::string, FeatureRows>;  ///< by its name

/// A graph of items that look or read alike, fitted once and stored: S = sum_m w_m D_m^-1/2 K_m
/// D_m^-1/2, K_m = kNN(k) of the rows of feature m (ops/knn.h), weighted by the cosine or 1, D_m
/// its row sums. Made by AlikeModel.
class AlikeItems {
 public:
  /// S x. [n_items, d]
  torch::Tensor walk(const torch::Tensor& x) const;
  /// The same for n items that came after the graph was made. Item i has k - 1 neighbours, the
  /// nearest items j of the graph, and itself; nobody else's row changes:
  ///   y_i = sum_m w_m (sum_j K_ij x_j / sqrt(D_i D_j) + own_i / D_i), D_i = 1 + sum_j K_ij,
  /// D_j as in the graph. An item without direction in m has no part there. x [n_items, d], own
  /// [n, d] (undefined: 0). Exit 2 for k = 1. Returns [n, d].
  torch::Tensor walk_new(const RowsByFeature& rows, const torch::Tensor& x,
                         const torch::Tensor& own = {}) const;

 private:
  friend class AlikeModel;
  AlikeItems(std::span<const Feature> features, std::vector<double> weights, int64_t k,
             bool weighted)
      : features_(features), weights_(std::move(weights)), k_(k), weighted_(weighted) {}
  NeighbourGraph fit() const;
  torch::Tensor edges(const TopK& top) const;

  std::span<const Feature> features_;
  std::vector<double> weights_;
  int64_t k_;
  bool weighted_;
  const StoredGraph* graph_ = nullptr;
};

/// Learns from pairs, propagates users and items over their graph and, where it has one, over alike
/// items; ranks items that came after training.
class AlikeModel : public GraphModel, public ItemEncoder {
 public:
  AlikeModel(const Context& context, int64_t n_negatives)
      : GraphModel(context), n_negatives_(n_negatives) {}
  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true, .ranks_cold_items = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = n_negatives_};
  }
  Offers offers() override { return {.items = this}; }
  std::shared_ptr<const Scorer> with_items(const Scorer& scorer,
                                           const std::vector<Feature>& features, int64_t n) final;

 protected:
  /// Over `features` of the data, which weigh as many `weights`; k neighbours, the item itself
  /// counted. `name` is that of item_graph().
  AlikeItems alike_items(const std::string& name, std::span<const Feature> features,
                         std::vector<double> weights, int64_t k, bool weighted);
  /// Vectors [n, d] of items without users.
  virtual torch::Tensor new_items(const RowsByFeature& rows) = 0;

 private:
  const int64_t n_negatives_;
};

/// sum_m a_m e_m of tensors e_m [n, d], a = softmax over m of tanh(e_m W' + b) v': the tensors
/// "<name>.weight", "<name>.bias" and "<name>.out.weight".
struct Attention {
  Linear query;
  torch::Tensor* out = nullptr;  ///< v [1, d]
  Attention() = default;
  Attention(const std::string& name, int64_t width, const MakeParameter& make,
            const Random& random);
  torch::Tensor operator()(const std::vector<torch::Tensor>& from) const;
};

}  // namespace tessera
