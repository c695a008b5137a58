#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tessera/model/registry.h"

namespace tessera {

/// What serve, recommend, similar and export load (conventions section 4).
struct Bundle {
  Json about;                     ///< model.json
  std::unique_ptr<Dataset> data;  ///< rebuilt from the bundle's maps, train and seen rows, features
  std::unique_ptr<Model> model;
  std::filesystem::path folder;
  std::vector<std::string> unchecked;  ///< files that are mapped but not hashed yet

  /// To be called before an unchecked file is read; exit 3 where it is damaged.
  void check(const std::string& file);
};

/// What a bundle is loaded for. `answers`: to rank and compare items; where the bundle holds the
/// vectors whose products are the scores, these are mapped in place of building the model, and the
/// features, which are then not read, are not hashed.
enum class BundleUse { all, answers };

/// Writes the bundle folder beside its place and renames it. `metrics` goes into model.json and
/// the card. Features are stored only where the score reads them or content neighbours need them.
void save_bundle(const std::filesystem::path& folder, Model& model, const Dataset& data,
                 const ModelInfo& info, const RunSettings& settings, const Json& metrics);

/// Checks format, shapes and hashes first; exit 3 naming what is damaged. Unknown extra fields and
/// files are ignored. Loading runs no code of the bundle.
Bundle load_bundle(const std::filesystem::path& folder, const Log& log = {},
                   BundleUse use = BundleUse::all);

}  // namespace tessera
