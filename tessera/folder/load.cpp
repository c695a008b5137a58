#include "tessera/folder/load.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/random.h"
#include "tessera/data/rows.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/manifest.h"

namespace tessera {
namespace {

/// Labels the rows of a k-fold split: test = fold, valid = fold + 1 (mod k), the rest train.
void apply_fold(FolderRows& rows, Json& about, const std::string& name, int64_t fold) {
  const Json& split = about["split"];
  if (!split.contains("folds")) {
    if (fold < 0) return;
    throw usage_error(
        "fold {}: dataset {} is split as {}, not into folds; make folds with "
        "'tessera import DIR -o OUT --split k-fold:5'",
        fold, name, printable(split["kind"].get<std::string>()));
  }
  const auto n_folds = split["folds"].get<int64_t>();
  if (fold < 0 || fold >= n_folds) {
    throw usage_error("dataset {} is split into {} folds: choose one with `fold` 0 to {}{}", name,
                      n_folds, n_folds - 1, fold < 0 ? "" : fmt::format(", not {}", fold));
  }
  for (size_t row = 0; row < rows.fold.size(); ++row) {
    if (rows.table.split[row] == Split::seen) continue;
    rows.table.split[row] = rows.fold[row] == fold                   ? Split::test
                            : rows.fold[row] == (fold + 1) % n_folds ? Split::valid
                                                                     : Split::train;
  }
  about["split"]["fold"] = fold;
}

void split_rows(const EventTable& table, Dataset& data) {
  const RowsByUser by_user = rows_by_user(data.n_users, table.user, table.time);
  const std::pair<Split, Interactions*> parts[] = {{Split::train, &data.train},
                                                   {Split::valid, &data.valid},
                                                   {Split::test, &data.test},
                                                   {Split::history, &data.history},
                                                   {Split::seen, &data.seen}};
  std::vector<int32_t> users, items;
  for (const auto& [label, part] : parts) {
    users.clear();
    items.clear();
    for (const int32_t row : by_user.rows) {
      if (table.split[row] != label) continue;
      users.push_back(table.user[row]);
      items.push_back(table.item[row]);
    }
    *part = make_interactions(data.n_users, users, items);
  }
  users.clear();
  items.clear();
  for (const int32_t row : by_user.rows) {
    if (table.split[row] == Split::test || table.split[row] == Split::none) continue;
    users.push_back(table.user[row]);
    items.push_back(table.item[row]);
  }
  data.known = make_interactions(data.n_users, users, items);
  data.train_distinct = sorted_distinct(data.train);
}

/// Exit 3 when the feature was made from other train rows than the dataset's.
void check_bound(const fs::path& folder, const std::string& name, const Json& entry,
                 const Json& about) {
  const auto bound = entry.find("valid_for");
  if (bound == entry.end() || bound->is_null()) return;
  if (bound->is_string() && *bound == about["train_sha256"]) return;
  std::string encoder = "NAME";
  if (entry.contains("encoder") && entry["encoder"].is_object() &&
      entry["encoder"].contains("name") && entry["encoder"]["name"].is_string()) {
    encoder = squeezed(entry["encoder"]["name"].get<std::string>());
  }
  throw data_error(
      "feature '{}' was made from other train rows than those of this split; make it "
      "again with 'tessera features {} --encoder {}', or leave it out with `modalities`",
      name, folder.string(), encoder);
}

void load_features(const fs::path& folder, const DatasetView& view, Dataset& data) {
  const Json manifest = read_manifest(folder);
  std::vector<std::string> known, chosen;
  for (const auto& [name, entry] : manifest.items()) {
    known.push_back(name);
    if (view.modalities.empty() && !made_by_model(entry)) chosen.push_back(name);
  }
  const bool none = view.modalities.size() == 1 && squeezed(view.modalities[0]) == "none";
  const auto find = [&](const std::string& typed) {
    const std::string name = canonical_modality(typed);
    if (!manifest.contains(name)) {
      throw usage_error(
          "dataset {} has no modality '{}'{}: {}", data.name, printable(typed),
          did_you_mean(name, known),
          known.empty() ? "it has no features" : fmt::format("it has {}", fmt::join(known, ", ")));
    }
    return name;
  };
  if (!none) {
    for (const std::string& typed : view.modalities) {
      const std::string name = find(typed);
      if (std::find(chosen.begin(), chosen.end(), name) != chosen.end()) {
        throw usage_error("modality '{}' is asked for twice", name);
      }
      chosen.push_back(name);
    }
  }
  for (const std::string& name : chosen) {
    check_bound(folder, name, manifest[name], data.about);
    data.features.push_back(
        open_feature(folder, name, manifest[name], data.item_ids, view.verify_hashes));
  }
  std::vector<std::string> permuted = view.permute;
  if (permuted.size() == 1 && squeezed(permuted[0]) == "all" && !manifest.contains("all")) {
    permuted = chosen;
  }
  for (const std::string& typed : permuted) {
    const std::string name = find(typed);
    const auto place = std::find_if(data.features.begin(), data.features.end(),
                                    [&](const Feature& each) { return each.name == name; });
    if (place == data.features.end()) {
      throw usage_error("cannot permute modality '{}': it is not among those chosen", name);
    }
    permute_feature(*place, Random(view.permute_seed));
  }
}

}  // namespace

Dataset load_dataset(const std::filesystem::path& folder, const DatasetView& view) {
  Dataset data;
  data.folder = folder;
  data.about = read_dataset_json(folder, true);
  data.name = data.about["name"].get<std::string>();
  data.n_users = data.about["n_users"].get<int64_t>();
  data.n_items = data.about["n_items"].get<int64_t>();
  FolderRows rows = read_folder(folder, data.about, false);
  data.has_order = !rows.table.time.empty();
  apply_fold(rows, data.about, data.name, view.fold);
  split_rows(rows.table, data);
  data.user_ids = std::move(rows.table.users);
  data.item_ids = std::move(rows.table.items);
  rows = {};
  if (view.fold >= 0) data.about["train_sha256"] = train_sha256(data.view());
  const fs::path items = folder / "items.tsv";
  if (fs::exists(items)) {
    std::ifstream in(items, std::ios::binary);
    data.item_columns = read_item_columns(in, items.string(), data.item_ids);
  }
  load_features(folder, view, data);
  return data;
}

}  // namespace tessera
