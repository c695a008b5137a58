#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/base/log.h"
#include "tessera/data/events.h"
#include "tessera/data/feature.h"
#include "tessera/data/interactions.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// The columns of items.tsv, by item index; an item without a row has empty values.
struct ItemColumns {
  std::vector<std::string> names;
  std::vector<std::vector<std::string>> values;  ///< values[column][item]
  /// The column of that name, or null.
  const std::vector<std::string>* find(const std::string& name) const;
  /// The item's title, or an empty string.
  std::string title(int64_t item) const;
  bool hidden(int64_t item) const;
};

/// Everything a model may learn from. Immutable once built.
struct Dataset {
  std::string name;
  int64_t n_users = 0, n_items = 0;
  Interactions train, valid, test;  ///< by user, in time order where time or position is known
  Interactions history;             ///< given rows of cold-user splits
  Interactions seen;                ///< read events: never train, masked by recommend only
  Interactions known;               ///< train, valid, history and seen rows together, oldest first
  Interactions train_distinct;      ///< sorted_distinct(train)
  std::vector<Feature> features;    ///< in the order asked for, else of features.json
  Vocabulary user_ids, item_ids;
  ItemColumns item_columns;
  Json about;                    ///< dataset.json: split, counts, hashes
  bool has_order = false;        ///< rows carry times or positions
  std::filesystem::path folder;  ///< read from it; empty for a dataset made in memory

  const Feature* feature(const std::string& modality) const;  ///< null when there is none
};

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

/// A dataset from pairs in memory, for tests and planted data: ids are the decimal indices.
Dataset make_dataset(int64_t n_users, int64_t n_items, Interactions train, Interactions valid = {},
                     Interactions test = {}, std::vector<Feature> features = {});

/// SHA-256 over the lines "user<TAB>item" of the train rows, raw ids, sorted bytewise: what
/// `valid_for` of a feature names.
std::string train_sha256(const Dataset& data);

/// The features with `rows` given for items that lack one, float32 [n_items, width].
/// `policy` is zero | mean | neighbours | error: see conventions; `error` ends with exit 3 and the
/// count. neighbours: mean of present rows weighted by train co-occurrence, none: mean.
torch::Tensor filled(const Dataset& data, const Feature& feature, const std::string& policy);

}  // namespace tessera
