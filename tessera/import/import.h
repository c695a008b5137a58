#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/base/log.h"
#include "tessera/read/readers.h"

namespace tessera {

struct ImportOptions {
  std::vector<std::filesystem::path> paths;  ///< raw files and folders, or one dataset folder
  std::filesystem::path output;
  std::string split, rounding;  ///< as typed; empty: given where labels exist, else random
  std::string ids;              ///< dense, sparse or empty: as the files ask
  std::vector<std::string> positive, read;  ///< event types
  bool keep_repeats = false;
  uint64_t seed = 999;  ///< of the split
  std::optional<double> min_rating;
  int64_t core_users = 0, core_items = 0;  ///< see FilterOptions
  std::vector<std::string> features;       ///< "image=FILE[,IDS]"
  bool no_features = false;                ///< take none that merely lie beside the interactions
  std::filesystem::path items;             ///< catalogue besides those among `paths`
  ReadOptions reading;  ///< its `stop_requested` ends the whole import, with nothing written
};

/// Raw files to a dataset folder (conventions section 2), or a dataset folder to another split of
/// it. The folder is written beside its place and renamed. Returns {"folder", "counts", "filters",
/// "split", "features", "drops", "notes"}, all of which also stand in import_report.json.
Json import_dataset(const ImportOptions& options, const Log& log);

}  // namespace tessera
