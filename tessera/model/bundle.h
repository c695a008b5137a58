#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "tessera/model/registry.h"

namespace tessera {

/// What serve, recommend, similar and export load (conventions section 4).
struct Bundle {
  Json about;                     ///< model.json
  std::unique_ptr<Dataset> data;  ///< rebuilt from the bundle's maps, train and seen rows, features
  std::unique_ptr<Model> model;
};

/// Writes the bundle folder beside its place and renames it. `metrics` goes into model.json and
/// the card. Features are stored only where the score reads them or content neighbours need them.
void save_bundle(const std::filesystem::path& folder, Model& model, const ModelInfo& info,
                 const RunSettings& settings, const Json& metrics);

/// Checks format, shapes and hashes first; exit 3 naming what is damaged. Unknown extra fields and
/// files are ignored. Loading runs no code of the bundle.
Bundle load_bundle(const std::filesystem::path& folder, const Log& log = {});

}  // namespace tessera
