#pragma once

#include <string>
#include <vector>

#include "tessera/model/registry.h"

namespace tessera {

/// What a registered model says of itself at its default settings.
struct ModelDescription {
  std::string name, title;
  std::vector<std::string> aliases;  ///< "ItemKNNCBF (similarity = content)"
  Abilities abilities;
  std::vector<Fields::Row> settings;  ///< its own
  std::vector<Fields::Row> training;  ///< the training's, with the model's own defaults of them
  std::vector<std::pair<std::string, Json>> own_defaults;  ///< of training settings
  std::vector<Ablation> ablations;                         ///< for data with pictures and words
  SearchSpace search;

  /// `settings`: with these, the training's, the ablation set and what is searched.
  Json json(bool settings) const;
};
ModelDescription describe(const ModelInfo& info);

/// Rows of cells, the first of them the head.
using TextTable = std::vector<std::vector<std::string>>;
TextTable models_table(const std::vector<ModelDescription>& models);
TextTable settings_table(const std::vector<Fields::Row>& rows);
TextTable ablations_table(const std::vector<Ablation>& ablations);
/// Values as `search:` in a settings file writes them.
TextTable search_table(const SearchSpace& search);

/// docs/models.md as it must be.
std::string models_page();

}  // namespace tessera
