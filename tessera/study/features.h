#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tessera/model/registry.h"

namespace tessera {

struct FeaturesRequest {
  std::filesystem::path dataset;
  /// tfidf or exec:COMMAND (encode/content.h); or a registered model that is a FeatureSupplier; or
  /// a run or bundle of one: a RowEncoder encodes the items of `dataset` without training, any
  /// other gives what it holds for the items that it was trained on.
  std::string encoder;
  std::string dtype = "float32";  ///< of the files, or float16
  std::filesystem::path output;   ///< run folder, where the features need a whole training
  Settings settings;              ///< of the model and of training, in rising precedence
  Log log;
  std::function<bool()> stop_requested = [] { return false; };
  std::function<Progress(std::string, int64_t)> progress = [](std::string, int64_t) {
    return Progress{};
  };
};

/// A modality that was made.
struct MadeFeature {
  std::string modality;
  int64_t rows = 0, width = 0;
  std::optional<int64_t> missing, failed;  ///< items without a row; none where it is not known
  bool bound = false;                      ///< good for this split only
};

struct FeaturesResult {
  std::filesystem::path folder;
  Json entries;                    ///< of features.json, by modality
  std::vector<std::string> files;  ///< what else a model wrote there

  std::vector<MadeFeature> features() const;
  /// {"folder", "features", "files"}.
  Json json() const;
};

/// Makes features from the features of a dataset folder and puts them into it. Rows made with the
/// help of interactions are bound to the split (`valid_for`): a model says so in its card by
/// "uses_interactions", and what is made from bound features is bound.
FeaturesResult make_features(const FeaturesRequest& request);

}  // namespace tessera
