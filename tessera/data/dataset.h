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
  /// The column of titles ("title", else "name", in any spelling), or null.
  const std::vector<std::string>* titles() const;
  /// The item's title, or an empty string.
  std::string title(int64_t item) const;
  bool hidden(int64_t item) const;
};

/// What a model is built from and may learn from: train rows, features, ids. Held-out rows are not
/// reachable from here, by type.
struct TrainView {
  std::string name;
  int64_t n_users = 0, n_items = 0;
  Interactions train;             ///< by user, in time order where time or position is known
  Interactions train_distinct;    ///< sorted_distinct(train)
  std::vector<Feature> features;  ///< in the order asked for, else of features.json
  Vocabulary user_ids, item_ids;
  ItemColumns item_columns;
  Json about;                    ///< dataset.json: split, counts, hashes
  bool has_order = false;        ///< rows carry times or positions
  std::filesystem::path folder;  ///< read from it; empty for a dataset made in memory

  const Feature* feature(const std::string& modality) const;  ///< null when there is none
};

/// A dataset with its held-out rows; models get view(). Immutable once built. The base is private:
/// nobody who holds a TrainView can cast it back.
struct Dataset : private TrainView {
  using TrainView::about, TrainView::feature, TrainView::features, TrainView::folder,
      TrainView::has_order, TrainView::item_columns, TrainView::item_ids, TrainView::n_items,
      TrainView::n_users, TrainView::name, TrainView::train, TrainView::train_distinct,
      TrainView::user_ids;
  Interactions valid, test;  ///< as train
  Interactions history;      ///< given rows of cold-user splits
  Interactions seen;         ///< read events: never train, masked by recommend only
  Interactions known;        ///< train, valid, history and seen rows together, oldest first

  const TrainView& view() const { return *this; }
};

/// The valid and test rows together, by user.
Interactions held_out(const Dataset& data);

/// Dataset::known, made from the parts where the dataset does not hold it.
Interactions known_rows(const Dataset& data);

/// A dataset from pairs in memory, for tests and planted data: ids are the decimal indices.
Dataset make_dataset(int64_t n_users, int64_t n_items, Interactions train, Interactions valid = {},
                     Interactions test = {}, std::vector<Feature> features = {});

/// SHA-256 over the lines "user<TAB>item" of the train rows, raw ids, sorted bytewise: what
/// `valid_for` of a feature names.
std::string train_sha256(const TrainView& data);

/// The features with `rows` given for items that lack one, float32 [n_items, width].
/// `policy` is zero | mean | neighbours | error: see conventions; `error` ends with exit 3 and the
/// count. neighbours: mean of present rows weighted by train co-occurrence, none: mean.
torch::Tensor filled(const TrainView& data, const Feature& feature, const std::string& policy);

/// The rows of `n` items that came after training, one tensor [n, width] a modality of `data` and
/// in its order; `given` go by name. What is missing is filled by the policy as for an item without
/// a train row. Exit 3 where no modality of `data` is given, or one of another width.
std::vector<torch::Tensor> rows_of_new_items(const TrainView& data,
                                             const std::vector<Feature>& given, int64_t n,
                                             const std::string& policy);

}  // namespace tessera
