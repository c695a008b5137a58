#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tessera/model/model.h"
#include "tessera/nn/quality.h"

// What a model may offer beyond training and ranking. It is found through Model::offers() alone.

namespace tessera {

/// Rows of a feature that a model made for others.
struct NamedRows {
  std::string modality;
  torch::Tensor rows;   ///< float32 [n, width]
  torch::Tensor items;  ///< int64 [n]
  Json card;            ///< encoder entry of the manifest
};

/// A model whose product is features for others (PAMD, R2MR).
class FeatureSupplier {
 public:
  virtual ~FeatureSupplier() = default;
  virtual void fit(const Watch& watch) = 0;
  virtual std::vector<NamedRows> export_features(const Json& options) = 0;
  /// True where the features need the whole training and not only fit().
  virtual bool needs_training() const { return false; }
};

/// A trained model that maps the raw rows of other items, for example new ones, to what it exports,
/// without training.
class RowEncoder {
 public:
  virtual ~RowEncoder() = default;
  /// The model as it stands after its training; cards say whether interactions changed it.
  /// `features` hold rows of `n_items` items and go by name; a modality of the model that is not
  /// among them is missing everywhere. Exit 3 where none is there or a width differs.
  virtual std::vector<NamedRows> encode(const std::vector<Feature>& features, int64_t n_items) = 0;
};

/// Which of n items have a modality, bool [n]: none where `given` lacks it.
inline torch::Tensor present_in(const std::vector<Feature>& given, const std::string& modality,
                                int64_t n) {
  for (const Feature& feature : given) {
    if (feature.name == modality) return feature.present();
  }
  return torch::zeros({n}, torch::kBool);
}

/// A trained model that can rank items that came after its training, by their features.
class ItemEncoder {
 public:
  virtual ~ItemEncoder() = default;
  /// `scorer`, made by this model, with n items more, numbered from its n_items() on; they have no
  /// train row. `features` as for RowEncoder. Exit 3 where none is there or a width differs.
  virtual std::shared_ptr<const Scorer> with_items(const Scorer& scorer,
                                                   const std::vector<Feature>& features,
                                                   int64_t n) = 0;
};

/// A model that fit() trains on batches of items, seen from outside, so that another program can
/// repeat the steps (bench/dump).
class ItemPretrainer {
 public:
  virtual ~ItemPretrainer() = default;
  /// What fit() learns from, one a modality: float32 [n_items, width], prepared.
  virtual const std::vector<torch::Tensor>& pretraining_rows() = 0;
  /// Called for each step with its items (int64 [B]) and its loss, before the weights change.
  std::function<void(const torch::Tensor&, double)> on_pretraining_step;
};

/// What a model tells of itself, in numbers: study/ makes words, tables and charts of them.
class Reporter {
 public:
  virtual ~Reporter() = default;
  /// Beside the metrics; null where quality() tells all. `held` are the held-out rows by user, of
  /// which a report may tell what became of them; nothing learns from them.
  virtual Json report(const Interactions& /*held*/ = {}) { return nullptr; }
  /// What a reviewer of features finds in the rows as they stand, exit 2 before it has reviewed
  /// any; nothing of another model.
  virtual std::optional<Quality> quality() { return std::nullopt; }
};

/// A model that changes its parameters itself in place of a backward pass and a step of the
/// trainer's optimiser. Its batches have no distinct rows unless batch_spec() wants them.
class OwnStep {
 public:
  virtual ~OwnStep() = default;
  /// One step at the setting `learning_rate`. Returns what loss() would have said of the batch,
  /// without gradients.
  virtual Loss step(const Batch& batch) = 0;
};

/// What every result of a ranking without some parts says.
inline std::string eval_mask_note(const std::vector<std::string>& parts) {
  return fmt::format(
      "eval_mask = {}: parts are left out when ranking only, the model was trained with them",
      fmt::join(parts, ","));
}

/// A trained model that can leave parts out when it ranks, without being trained again. Instant,
/// and weaker evidence than training without the part.
class EvalMask {
 public:
  virtual ~EvalMask() = default;
  /// Exit 2 for a part that the model does not have.
  virtual void leave_out(const std::vector<std::string>& parts) = 0;
};

}  // namespace tessera
