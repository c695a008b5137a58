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
  std::unique_ptr<Model> model;   ///< null where stored vectors answer
  std::shared_ptr<const Scorer> scorer;
  std::filesystem::path folder;
  std::vector<std::string> unread;  ///< modalities whose rows were not hashed and may not be read
};

/// What a bundle is loaded for. To answer, the stored vectors whose products are the scores are
/// mapped in place of building the model, and of the features only those of `compare_by` are read.
struct BundleUse {
  bool answers = false;
  std::vector<std::string> compare_by = {};
};

/// Writes the bundle folder beside its place and renames it. `metrics` goes into model.json and
/// the card. Feature files of the dataset's folder are linked where the file system can.
void save_bundle(const std::filesystem::path& folder, Model& model, const Dataset& data,
                 const ModelInfo& info, const RunSettings& settings, const Json& metrics);

/// Checks format, shapes and hashes first; exit 3 naming what is damaged. Unknown extra fields and
/// files are ignored. Loading runs no code of the bundle.
Bundle load_bundle(const std::filesystem::path& folder, const Log& log = {},
                   const BundleUse& use = {});

}  // namespace tessera
