#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tessera/data/dataset.h"

namespace tessera {

/// How a model sees a dataset folder.
struct DatasetView {
  std::vector<std::string> modalities;  ///< empty: all that no Tessera model made; {"none"}: none
  std::vector<std::string>
      permute;  ///< modalities whose rows are shuffled among items that have one
  uint64_t permute_seed = 999;
  int64_t fold = -1;  ///< of a k-fold split: test = fold, valid = fold + 1
  bool verify_hashes = false;
};

/// Reads a dataset folder. Exit 3 for what is missing, damaged or bound to another split; exit 2
/// for a modality that is not there (with the nearest name).
Dataset load_dataset(const std::filesystem::path& folder, const DatasetView& view = {});

}  // namespace tessera
