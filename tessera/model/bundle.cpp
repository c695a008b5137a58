#include "tessera/model/bundle.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/base/version.h"
#include "tessera/data/npy.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/manifest.h"
#include "tessera/model/sequence_model.h"

namespace tessera {
namespace {

constexpr int64_t kFormat = 1;

// ---- writing ----

void write_items(const fs::path& path, const Dataset& data) {
  write_file_with(path, [&](std::ostream& out) {
    out << "item_id";
    for (const auto& name : data.item_columns.names) out << '\t' << tsv_cell(name);
    out << '\n';
    for (int64_t item = 0; item < data.n_items; ++item) {
      out << data.item_ids[item];
      for (const auto& column : data.item_columns.values) out << '\t' << tsv_cell(column[item]);
      out << '\n';
    }
  });
}

/// The rows that items have, in the order of the items, as found; returns how many.
int64_t write_feature(const fs::path& folder, const Feature& feature, const Vocabulary& ids) {
  const auto* row_of_item = feature.row_of_item.const_data_ptr<int32_t>();
  const int64_t n_rows = std::count_if(row_of_item, row_of_item + feature.n_items(),
                                       [](int32_t row) { return row >= 0; });
  const int64_t stride = feature.width() * feature.rows.item_size();
  write_file_with(folder / (feature.name + "_feat.npy"), [&](std::ostream& out) {
    out << npy_head(feature.rows.dtype(), {n_rows, feature.width()});
    for (int64_t item = 0; item < feature.n_items(); ++item) {
      if (row_of_item[item] < 0) continue;
      out.write(feature.rows.bytes().data() + row_of_item[item] * stride, stride);
    }
  });
  write_file_with(folder / (feature.name + "_feat.ids"), [&](std::ostream& out) {
    for (int64_t item = 0; item < feature.n_items(); ++item) {
      if (row_of_item[item] >= 0) out << ids[item] << '\n';
    }
  });
  return n_rows;
}

/// The feature's rows as a second name of the dataset folder's file, and their ids; false where
/// that cannot be.
bool link_feature(const fs::path& folder, const Feature& feature, const fs::path& rows,
                  const fs::path& ids) {
  const Json& entry = feature.manifest;
  if (folder.empty() || !entry.is_object() || !entry.contains("file")) return false;
  const fs::path source = folder / entry["file"].get<std::string>();
  std::error_code error;
  if (source.extension() != ".npy") return false;
  fs::create_hard_link(fs::canonical(source, error), rows, error);
  if (error) return false;
  if (entry.contains("ids") && entry["ids"].is_string()) {
    write_file(ids, read_file(folder / entry["ids"].get<std::string>()));
    return true;
  }
  write_file_with(ids, [&](std::ostream& out) {
    for (int64_t row = 0; row < feature.rows.n_rows(); ++row) out << row << '\n';
  });
  return true;
}

/// "test.recall@20" and the number, for every number below `value`.
void flatten(const Json& value, const std::string& name,
             std::vector<std::pair<std::string, std::string>>& out) {
  if (value.is_object()) {
    for (const auto& [key, inner] : value.items()) {
      flatten(inner, name.empty() ? key : name + " " + key, out);
    }
  } else if (value.is_number_float()) {
    out.emplace_back(name, fmt::format("{:.4f}", value.get<double>()));
  } else if (!value.is_null()) {
    out.emplace_back(name, value.is_string() ? value.get<std::string>() : value.dump());
  }
}

std::string model_card(Model& model, const Scorer& scorer, const ModelInfo& info,
                       const RunSettings& settings, const Json& about, const Json& metrics) {
  const TrainView& data = model.data();
  const Abilities can = model.abilities();
  std::string card = fmt::format("# {} on {}\n\n", info.name, data.name);
  card += fmt::format(
      "{}. A recommendation model written by Tessera {} on {}; `tessera recommend`, `similar` and "
      "`serve` load this folder.\n\n",
      info.title, kVersion, json_get<std::string>(about, "created", "model.json"));
  if (const std::string& label = settings.config.label; !label.empty()) card += label + ".\n\n";
  card += "## Data\n\n";
  card += fmt::format(
      "{} users, {} items, {} train rows of the data set {}. Trained on the train rows alone; "
      "test rows are not in this folder.\n\n",
      data.n_users, data.n_items, data.train.n_rows(), data.name);
  if (data.features.empty()) {
    card += "No item features.\n\n";
  } else {
    card += "| modality | width | items with it |\n|---|---|---|\n";
    for (const auto& feature : data.features) {
      card += fmt::format("| {} | {} | {} |\n", feature.name, feature.width(),
                          feature.present().sum().item<int64_t>());
    }
    card += "\n";
  }
  card += fmt::format("## Metrics (protocol {})\n\n", settings.train_settings.protocol);
  std::vector<std::pair<std::string, std::string>> numbers;
  flatten(metrics, "", numbers);
  if (numbers.empty()) {
    card += "None were taken.\n\n";
  } else {
    card += "| metric | value |\n|---|---|\n";
    for (const auto& [name, value] : numbers) card += fmt::format("| {} | {} |\n", name, value);
    card += "\n";
  }
  card += "## What it can do\n\n";
  card += fmt::format("- {}\n", can.uses_features ? "It learns from item features."
                                                  : "It does not learn from item features.");
  card +=
      fmt::format("- {}\n", can.score_reads_features ? "It reads features when ranking."
                                                     : "It does not read features when ranking.");
  card += fmt::format("- {}\n", can.takes_histories ? "It scores from any history of items."
                                : scorer.item_vectors().defined()
                                    ? "A user without train rows is answered by the mean of "
                                      "the history's item vectors, labelled `item mean`."
                                    : "It does not take histories.");
  card += "\n## Limits\n\n";
  card += fmt::format(
      "- {}\n",
      can.ranks_cold_items
          ? "Items without train rows are ranked by their content; judge them by the cold slice."
          : "Items without train rows (cold items) get no meaningful score.");
  card +=
      "- Users with neither train rows nor a history get the most popular items, labelled "
      "`popular`.\n";
  card +=
      "- Offline numbers say how well held-out rows of this data set are found, not what people "
      "will do.\n\n";
  card += "## Licence\n\nNot stated. The data it was trained on may bind its use.\n";
  return card;
}

// ---- reading ----

fs::path bundle_root(const fs::path& folder) {
  std::error_code ignored;
  if (!folder_exists(folder) && !fs::exists(folder, ignored))
    throw data_error("no folder {}", folder.string());
  if (fs::is_regular_file(folder / "model.json", ignored)) return folder;
  if (folder_exists(folder / "model") &&
      fs::is_regular_file(folder / "model" / "model.json", ignored)) {
    return folder / "model";
  }
  throw data_error(
      "{} is no bundle and no run with one: it has neither model.json nor "
      "model/model.json; 'tessera train' writes one",
      folder.string());
}

/// Runs `body`; whatever a stored value makes it throw becomes one line about the file.
template <typename Body>
auto as_damage(const std::string& what, Body body) {
  try {
    return body();
  } catch (const InputError& e) {
    throw data_error("{}: {}", what, e.what());
  } catch (const c10::Error& e) {
    const std::string text = e.what_without_backtrace();
    throw data_error("{}: the model cannot be built from it: {}", what,
                     printable(text.substr(0, text.find('\n')), 200));
  } catch (const std::bad_alloc&) {
    throw data_error("{}: the model that it describes does not fit into memory", what);
  } catch (const std::length_error&) {
    throw data_error("{}: the model that it describes does not fit into memory", what);
  }
}

void check_hash(const fs::path& path, const std::string& expected) {
  const std::string found = sha256_of_file(path);
  if (found != expected) {
    throw data_error("{} is damaged: its sha256 is {}.., model.json says {}; copy it again",
                     path.string(), found.substr(0, 12), printable(expected, 12));
  }
}

/// Every file that model.json names is there and, but for those of `later`, has the hash written
/// there.
void check_files(const fs::path& root, const Json& files, const std::vector<std::string>& wanted,
                 const std::vector<std::string>& later) {
  const std::string where = (root / "model.json").string();
  for (const auto& name : wanted) {
    if (!files.contains(name)) throw data_error("{}: 'files' does not name {}", where, name);
  }
  for (const auto& [name, hash] : files.items()) {
    if (name.empty() || name.find('/') != std::string::npos || name.front() == '.') {
      throw data_error("{}: 'files' names '{}', wanted a file of the bundle's own folder", where,
                       printable(name));
    }
    const auto expected = json_get<std::string>(files, name, where);
    std::error_code ignored;
    if (!fs::is_regular_file(root / name, ignored)) {
      throw data_error("{} is missing from the bundle; copy the whole folder again",
                       (root / name).string());
    }
    if (std::find(later.begin(), later.end(), name) == later.end()) {
      check_hash(root / name, expected);
    }
  }
}

Vocabulary read_map(const fs::path& path, int64_t n) {
  std::ifstream in(path, std::ios::binary);
  Vocabulary ids = read_id_map(in, path.string());
  if (ids.size() != n) {
    throw data_error("{} has {} ids, model.json says {}", path.string(), ids.size(), n);
  }
  return ids;
}

Interactions read_rows(const fs::path& root, const std::string& name, int64_t n_users,
                       int64_t n_items) {
  const fs::path offsets_path = root / (name + "_indptr.npy");
  const fs::path items_path = root / (name + "_items.npy");
  Interactions rows{read_npy(offsets_path), read_npy(items_path)};
  if (rows.offsets.dim() != 1 || rows.offsets.scalar_type() != torch::kInt64 ||
      rows.offsets.size(0) != n_users + 1) {
    throw data_error("{}: wanted int64 [{}], found {} {}", offsets_path.string(), n_users + 1,
                     toString(rows.offsets.scalar_type()), fmt::join(rows.offsets.sizes(), " x "));
  }
  if (rows.items.dim() != 1 || rows.items.scalar_type() != torch::kInt32) {
    throw data_error("{}: wanted int32 [rows], found {} {}", items_path.string(),
                     toString(rows.items.scalar_type()), fmt::join(rows.items.sizes(), " x "));
  }
  const auto* offsets = rows.offsets.const_data_ptr<int64_t>();
  if (offsets[0] != 0 || offsets[n_users] != rows.n_rows() ||
      !std::is_sorted(offsets, offsets + n_users + 1)) {
    throw data_error("{} does not describe the {} rows of {}", offsets_path.string(), rows.n_rows(),
                     items_path.filename().string());
  }
  const auto* items = rows.items.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < rows.n_rows(); ++i) {
    if (items[i] < 0 || items[i] >= n_items) {
      throw data_error("{}: row {} names item {}, there are {} items", items_path.string(), i,
                       items[i], n_items);
    }
  }
  return rows;
}

/// The stored settings that this version knows. Where to run is not the bundle's to say.
Settings known_settings(const ModelInfo& info, const Json& stored, const std::string& where,
                        const Log& log) {
  const auto own = info.fields();
  Fields training("training");
  TrainSettings train;
  train.describe(training);
  Settings out;
  for (const auto& [name, value] : stored.items()) {
    if (name == "device" || name == "threads") continue;
    if (own->knows(name) || training.knows(name)) {
      out.push_back({name, value, "model.json"});
    } else {
      log.warn("{}: setting '{}' is not known to this version of Tessera and is ignored", where,
               printable(name));
    }
  }
  return out;
}

/// Settings decide how much a model allocates before its weights are compared: refuses a width that
/// no weight has and that would take more than a gigabyte. A model's own defaults are no widths
/// that a damaged file could have made up.
void check_sizes(const std::vector<Resolved>& settings, const std::vector<Resolved>& defaults,
                 const TensorMap& weights, const TrainView& data) {
  int64_t widest = 0;
  for (const auto& [name, tensor] : weights) {
    for (const int64_t size : tensor.sizes()) widest = std::max(widest, size);
  }
  const double rows = static_cast<double>(data.n_users + data.n_items + 1024);
  auto check = [&](const std::string& name, const Json& value) {
    if (!value.is_number_integer() || value.get<double>() <= static_cast<double>(widest)) return;
    if (value.get<double>() * rows * sizeof(float) > 1e9) {
      throw data_error("setting {} is {}, but no weight of the bundle is that large", name,
                       value.dump());
    }
  };
  for (const auto& setting : settings) {
    const bool usual = std::any_of(defaults.begin(), defaults.end(), [&](const Resolved& other) {
      return other.name == setting.name && other.value == setting.value;
    });
    if (usual) continue;
    if (setting.value.is_array()) {
      for (const auto& element : setting.value) check(setting.name, element);
    } else {
      check(setting.name, setting.value);
    }
  }
}

/// float32 [n_rows, width] as it lies in the file. Nothing may write to it.
torch::Tensor map_vectors(const fs::path& path, int64_t n_rows) {
  const MappedArray rows = map_npy(path);
  if (rows.n_rows() != n_rows) {
    throw data_error("{} has {} rows, wanted {}", path.string(), rows.n_rows(), n_rows);
  }
  const char* at = rows.bytes().data();
  if (rows.dtype() != torch::kFloat || reinterpret_cast<uintptr_t>(at) % alignof(float) != 0) {
    throw data_error("{}: wanted aligned float32, found {}", path.string(),
                     dtype_name(rows.dtype()));
  }
  return torch::from_blob(
      const_cast<char*>(at), {n_rows, rows.width()}, [rows](void*) {}, torch::kFloat);
}

/// What model.json says of it; nothing where it does not say all.
std::optional<Abilities> read_abilities(const Json& about, const std::string& where) {
  const auto from = json_get<Json>(about, "abilities", where, Json::object());
  Abilities out;
  for (const auto& [name, flag] : flags_of(out)) {
    if (!from.contains(name)) return {};
    *flag = json_get<bool>(from, name, where + ": abilities");
  }
  return out;
}

}  // namespace

void save_bundle(const fs::path& folder, Model& model, const Dataset& data, const ModelInfo& info,
                 const RunSettings& settings, const Json& metrics) {
  const torch::NoGradGuard no_grad;
  State state;
  model.state(state);
  const State::Saved saved = state.save(true);
  write_folder(folder, [&](const fs::path& to) {
    std::vector<std::string> files;
    std::map<std::string, std::string> hashes;  // those that are known already
    auto file = [&](const std::string& name) {
      files.push_back(name);
      return to / name;
    };
    write_safetensors(file("weights.safetensors"), saved.weights);
    const auto scorer = model.freeze();
    if (const auto* factors = dynamic_cast<const VectorScorer*>(scorer.get())) {
      write_npy(file("user_emb.npy"), factors->vectors().users.to(torch::kFloat).contiguous());
      write_npy(file("item_emb.npy"), factors->vectors().items.to(torch::kFloat).contiguous());
    }
    write_id_map(file("user_map.tsv"), data.user_ids);
    write_id_map(file("item_map.tsv"), data.item_ids);
    write_items(file("items.tsv"), data);
    const Interactions seen = known_rows(data);
    write_npy(file("train_indptr.npy"), data.train.offsets);
    write_npy(file("train_items.npy"), data.train.items);
    write_npy(file("seen_indptr.npy"), seen.offsets);
    write_npy(file("seen_items.npy"), seen.items);

    Json modalities = Json::object();
    for (const Feature& feature : data.features) {
      Json manifest = feature.manifest.is_object() ? feature.manifest : Json::object();
      const fs::path rows_path = file(feature.name + "_feat.npy");
      const fs::path ids_path = file(feature.name + "_feat.ids");
      // Rows that were given to other items stand in no file.
      const bool linked = settings.train_settings.permute.empty() &&
                          link_feature(data.folder, feature, rows_path, ids_path);
      const int64_t n_rows =
          linked ? feature.rows.n_rows() : write_feature(to, feature, data.item_ids);
      const std::string rows_hash = sha256_of_file(rows_path);
      hashes[rows_path.filename().string()] = rows_hash;
      const std::string manifest_hash = sha256(manifest.dump());
      manifest["file"] = feature.name + "_feat.npy";
      manifest["ids"] = feature.name + "_feat.ids";
      manifest["rows"] = n_rows;
      manifest["width"] = feature.width();
      manifest["dtype"] = dtype_name(feature.rows.dtype());
      manifest["sha256"] = rows_hash;
      Json entry = {{"width", feature.width()}, {"manifest_sha256", manifest_hash}};
      entry["manifest"] = std::move(manifest);
      modalities[feature.name] = std::move(entry);
    }

    const std::string train_hash = train_sha256(data.view());
    const Json& source = data.about;
    Json about;
    about["format"] = kFormat;
    about["tessera"] = kVersion;
    about["model"] = info.name;
    about["settings"] = Json::object();
    for (const auto* group : {&settings.model, &settings.train}) {
      for (const auto& setting : *group) about["settings"][setting.name] = setting.value;
    }
    Abilities can = model.abilities();
    for (const auto& [name, flag] : flags_of(can)) about["abilities"][name] = *flag;
    about["n_users"] = data.n_users;
    about["n_items"] = data.n_items;
    about["modalities"] = std::move(modalities);
    about["dataset"] = {
        {"name", data.name},
        {"sha256", source.is_object() && source.contains("split_sha256") ? source["split_sha256"]
                                                                         : Json(train_hash)},
        {"train_sha256", train_hash}};
    for (const char* key : {"columns", "events"}) {
      about[key] = source.is_object() && source.contains(key) ? source[key] : Json(nullptr);
    }
    about["has_order"] = data.has_order;
    about["trained_on"] = {"train"};
    about["metrics"] = metrics;
    about["created"] = now_rfc3339();
    about["licence"] = nullptr;
    if (!saved.values.empty()) about["state"] = saved.values;
    about["files"] = Json::object();
    for (const auto& name : files) {
      const auto known = hashes.find(name);
      about["files"][name] = known != hashes.end() ? known->second : sha256_of_file(to / name);
    }
    write_file(to / "MODEL_CARD.md", model_card(model, *scorer, info, settings, about, metrics));
    write_json(to / "model.json", about);
  });
}

Bundle load_bundle(const fs::path& folder, const Log& log, const BundleUse& use) {
  const fs::path root = bundle_root(folder);
  const std::string where = (root / "model.json").string();
  Bundle bundle;
  bundle.folder = root;
  bundle.about = read_json(root / "model.json");
  const Json& about = bundle.about;
  const auto format = json_get<int64_t>(about, "format", where);
  if (format != kFormat) {
    throw data_error(
        "{}: format {}, this Tessera {} reads format {}; load it with the version "
        "that wrote it",
        where, format, kVersion, kFormat);
  }
  const auto n_users = json_get<int64_t>(about, "n_users", where);
  const auto n_items = json_get<int64_t>(about, "n_items", where);
  for (const int64_t n : {n_users, n_items}) {
    if (n < 0 || n >= std::numeric_limits<int32_t>::max()) {
      throw data_error("{}: n_users and n_items must be from 0 to 2147483646, found {}", where, n);
    }
  }
  const auto name = json_get<std::string>(about, "model", where);
  const auto stored = json_get<Json>(about, "settings", where);
  const auto modalities = json_get<Json>(about, "modalities", where, Json::object());
  const auto dataset = json_get<Json>(about, "dataset", where, Json::object());
  const auto values = json_get<Json>(about, "state", where, Json::object());
  std::vector<std::string> wanted = {"weights.safetensors", "user_map.tsv",     "item_map.tsv",
                                     "items.tsv",           "train_indptr.npy", "train_items.npy",
                                     "seen_indptr.npy",     "seen_items.npy"};
  for (const auto& [modality, entry] : modalities.items()) {
    as_damage(where, [&, &modality = modality] {
      if (canonical_modality(modality) != modality) {
        throw data_error("no modality '{}'", printable(modality));
      }
    });
    wanted.push_back(modality + "_feat.npy");
    wanted.push_back(modality + "_feat.ids");
  }
  const auto files = json_get<Json>(about, "files", where);
  const bool has_vectors = files.contains("user_emb.npy") && files.contains("item_emb.npy");
  std::optional<Abilities> abilities;
  if (use.answers && has_vectors) abilities = read_abilities(about, where);
  const bool by_vectors = abilities && !abilities->takes_histories;
  std::vector<std::string> unread_files;
  for (const auto& [modality, entry] : modalities.items()) {
    const auto& by = use.compare_by;
    if (!by_vectors || std::find(by.begin(), by.end(), modality) != by.end()) continue;
    bundle.unread.push_back(modality);
    unread_files.push_back(modality + "_feat.npy");
  }
  check_files(root, files, wanted, unread_files);
  const ModelInfo& info = as_damage(where, [&]() -> std::reference_wrapper<const ModelInfo> {
                            return find_model(name);
                          }).get();

  bundle.data = std::make_unique<Dataset>();
  Dataset& data = *bundle.data;
  data.name = json_get<std::string>(dataset, "name", where, std::string("bundle"));
  data.n_users = n_users;
  data.n_items = n_items;
  data.user_ids = read_map(root / "user_map.tsv", n_users);
  data.item_ids = read_map(root / "item_map.tsv", n_items);
  std::ifstream items(root / "items.tsv", std::ios::binary);
  data.item_columns = read_item_columns(items, (root / "items.tsv").string(), data.item_ids);
  data.train = read_rows(root, "train", n_users, n_items);
  data.known = read_rows(root, "seen", n_users, n_items);
  data.valid = data.test = data.history = data.seen = make_interactions(n_users, {}, {});
  data.train_distinct = sorted_distinct(data.train);
  data.has_order = json_get<bool>(about, "has_order", where, false);
  data.about = dataset;
  for (const char* key : {"columns", "events"}) {
    if (about.contains(key)) data.about[key] = about[key];
  }
  for (const auto& [modality, entry] : modalities.items()) {
    const std::string what = fmt::format("{}: modality {}", where, modality);
    const auto manifest = json_get<Json>(entry, "manifest", what);
    for (const char* end : {"file", "ids"}) {
      const std::string expected = modality + (end[0] == 'f' ? "_feat.npy" : "_feat.ids");
      if (json_get<std::string>(manifest, end, what) != expected) {
        throw data_error("{}: '{}' must be {}", what, end, expected);
      }
    }
    const MappedArray rows = map_npy(root / (modality + "_feat.npy"));
    const auto n_rows = json_get<int64_t>(manifest, "rows", what);
    const auto width = json_get<int64_t>(entry, "width", what);
    if (rows.n_rows() != n_rows || rows.width() != width) {
      throw data_error("{}_feat.npy is {} x {}, {} says {} x {}", (root / modality).string(),
                       rows.n_rows(), rows.width(), where, n_rows, width);
    }
    data.features.push_back(open_feature(root, modality, manifest, data.item_ids, false));
  }

  Vectors vectors;
  if (has_vectors) {
    vectors = {map_vectors(root / "user_emb.npy", n_users),
               map_vectors(root / "item_emb.npy", n_items)};
    if (vectors.users.size(1) != vectors.items.size(1)) {
      throw data_error("{}: user_emb.npy has width {}, item_emb.npy {}", root.string(),
                       vectors.users.size(1), vectors.items.size(1));
    }
  }
  const Settings known = as_damage(where, [&] { return known_settings(info, stored, where, log); });
  if (by_vectors) {
    bundle.scorer = std::make_shared<VectorScorer>(std::make_shared<const TrainFacts>(data.view()),
                                                   *abilities, std::move(vectors));
    return bundle;
  }
  State::Saved saved;
  saved.weights = read_safetensors(root / "weights.safetensors");
  saved.values = values;
  as_damage(where, [&] {
    const RunSettings settings = resolve_settings(info, known);
    check_sizes(settings.model, info.fields()->resolved(), saved.weights, data.view());
    const Context context{data.view(), Random(static_cast<uint64_t>(settings.train_settings.seed)),
                          settings.train_settings, log};
    bundle.model = settings.config.make(context);
  });
  as_damage((root / "weights.safetensors").string(), [&] {
    State state;
    bundle.model->state(state);
    state.load(saved, true);
    bundle.scorer = bundle.model->freeze();
  });
  return bundle;
}

}  // namespace tessera
