#include "tessera/import/import.h"

#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/stop.h"
#include "tessera/base/text.h"
#include "tessera/data/rows.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/manifest.h"
#include "tessera/import/filter.h"
#include "tessera/import/split.h"
#include "tessera/read/known_sets.h"

namespace tessera {
namespace {

/// What one import gathers before it writes.
struct Work {
  Work(const ImportOptions& o, const Log& l) : options(o), log(l) {}
  const ImportOptions& options;
  const Log& log;
  EventTable table;
  ItemTable items;
  SplitSpec split;
  SplitResult drawn;
  std::vector<FilterStep> filters;
  std::vector<FeatureSource> features;
  std::vector<FeatureInfo> feature_infos;
  bool dense = false, dense_users = false;
  Json sources = Json::array();
  Json events = nullptr;         ///< {"positive", "read", "left_out"} of dataset.json
  Json drops = Json::object();   ///< reason -> count
  Json report = Json::object();  ///< import_report.json
  Json notes = Json::array();
  // Of a dataset folder that is split again:
  fs::path from;
  Json from_about, from_manifest = Json::object();
};

template <typename... Args>
void note(Work& work, fmt::format_string<Args...> text, Args&&... args) {
  const std::string line = fmt::format(text, std::forward<Args>(args)...);
  work.log.info("{}", line);
  work.notes.push_back(line);
}

// ---------------------------------------------------------------- decimal ids

bool is_decimal(std::string_view id) {
  if (id.starts_with('-')) id.remove_prefix(1);
  return !id.empty() &&
         std::all_of(id.begin(), id.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// Order of decimal integers of any length.
bool number_before(std::string_view a, std::string_view b) {
  const bool minus_a = a.starts_with('-'), minus_b = b.starts_with('-');
  if (minus_a != minus_b) return minus_a;
  const auto digits = [](std::string_view text) {
    if (text.starts_with('-')) text.remove_prefix(1);
    while (text.size() > 1 && text.front() == '0') text.remove_prefix(1);
    return text;
  };
  std::string_view x = digits(a), y = digits(b);
  if (minus_a) std::swap(x, y);
  return x.size() != y.size() ? x.size() < y.size() : x < y;
}

/// The row number that an id is under --ids dense (no sign, no leading zeros), or -1.
int64_t row_number(std::string_view id) {
  const bool plain = is_decimal(id) && id.front() != '-' && (id.size() == 1 || id.front() != '0');
  if (!plain || id.size() > 10) return -1;
  const int64_t value = std::stoll(std::string(id));
  return value < std::numeric_limits<int32_t>::max() ? value : -1;
}

/// Row numbers so far apart that most of their rows would be gaps.
bool too_sparse(int64_t n, int64_t n_used) { return n > 1000000 + 64 * n_used; }

int64_t dense_index(std::string_view id, const char* what) {
  const int64_t value = row_number(id);
  if (value >= 0) return value;
  throw data_error(
      "`ids` dense: {} id '{}' is no row number (0, 1, 2, ..); choose `ids` sparse, "
      "and give features their .ids",
      what, printable(id));
}

bool fits_dense(const Vocabulary& ids) {
  int64_t n = 0;
  for (int64_t i = 0; i < ids.size(); ++i) {
    const int64_t value = row_number(ids[i]);
    if (value < 0) return false;
    n = std::max(n, value + 1);
  }
  return !too_sparse(n, ids.size());
}

// ---------------------------------------------------------------- checks before anything is read

void check_output(const ImportOptions& options) {
  if (options.output.empty()) throw usage_error("import needs an output folder: -o DIR");
  std::error_code error;
  const fs::path output = fs::absolute(options.output).lexically_normal();
  if (fs::exists(output, error)) {
    if (!fs::is_directory(output, error)) {
      throw usage_error("cannot write {}: a file is there; choose another -o",
                        options.output.string());
    }
    if (!is_dataset_folder(output) && !fs::is_empty(output, error)) {
      throw usage_error(
          "{} is not empty and no dataset folder: it is left alone; choose another -o",
          options.output.string());
    }
  }
  check_writable(output);
}

std::string dataset_name(const ImportOptions& options) {
  const fs::path output = fs::absolute(options.output).lexically_normal();
  return (output.has_filename() ? output : output.parent_path()).filename().string();
}

// ---------------------------------------------------------------- sources

void look(const Work& work) { end_if_stopped(work.options.reading.stop_requested); }

void add_source(Work& work, const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return;
  for (const Json& each : work.sources) {
    if (each["path"] == printable(path.string(), 4096)) return;
  }
  work.sources.push_back({{"path", printable(path.string(), 4096)},
                          {"bytes", static_cast<int64_t>(fs::file_size(path))},
                          {"sha256", sha256_of_file(path, work.options.reading.stop_requested)}});
}

FeatureSource feature_of_path(const fs::path& path) {
  const fs::path clean = path.has_filename() ? path : path.parent_path();
  const fs::path folder = clean.has_parent_path() ? clean.parent_path() : fs::path(".");
  for (FeatureSource& source : find_features(folder)) {
    if (source.path.filename() == clean.filename()) return std::move(source);
  }
  throw usage_error("{}: which modality is it? give it as `feature` NAME={}", path.string(),
                    path.string());
}

void gather_features(Work& work, const std::vector<Detected>& sources) {
  const ImportOptions& options = work.options;
  const auto taken = [&](const std::string& modality) {
    return std::any_of(work.features.begin(), work.features.end(),
                       [&](const FeatureSource& each) { return each.modality == modality; });
  };
  const auto take = [&](FeatureSource source) {
    if (taken(source.modality)) {
      throw usage_error("two feature files for '{}': {} is the second", source.modality,
                        source.path.string());
    }
    work.features.push_back(std::move(source));
  };
  for (const std::string& text : options.features) take(parse_feature_argument(text));
  for (const Detected& source : sources) {
    if (source.use == Use::feature) take(feature_of_path(source.path));
  }
  if (!options.no_features) {
    std::set<fs::path> folders;
    for (const Detected& source : sources) {
      if (source.use != Use::interactions) continue;
      const fs::path folder = source.path.parent_path();
      folders.insert(folder.empty() ? fs::path(".") : folder);
    }
    for (const fs::path& folder : folders) {
      for (FeatureSource& source : find_features(folder)) {
        if (!taken(source.modality)) work.features.push_back(std::move(source));
      }
    }
  }
  for (const FeatureSource& source : work.features) {
    work.feature_infos.push_back(describe_feature(source));
    const FeatureInfo& info = work.feature_infos.back();
    note(work, "feature {}: {} ({} x {} {}){}", source.modality, source.path.string(), info.n_rows,
         info.width, info.dtype, info.has_ids ? "" : ", row r is item id r");
  }
}

/// Train on positive types, keep read types as `seen`, leave out the others.
void apply_roles(Work& work, const EventRoles& config) {
  EventTable& table = work.table;
  const auto& types = table.event_types;
  const ImportOptions& options = work.options;
  const bool chosen = !options.positive.empty() || !options.read.empty();
  if (types.empty()) {
    if (!chosen) return;
    throw usage_error(
        "`positive` and `read` choose among event types, and the interactions have "
        "none; name their column with `event_col`");
  }
  std::vector<int64_t> counts(types.size(), 0);
  for (const uint8_t event : table.event) ++counts[event];
  std::string listing;
  for (size_t t = 0; t < types.size(); ++t) {
    listing += fmt::format("{}{} ({} rows)", t ? ", " : "", printable(types[t]), counts[t]);
  }
  std::vector<std::string> positive = options.positive, read = options.read;
  const auto known = [&](const std::string& type) {
    return std::find(types.begin(), types.end(), type) != types.end();
  };
  for (const auto* list : {&positive, &read}) {
    for (const std::string& type : *list) {
      if (known(type)) continue;
      throw usage_error("no event type '{}'{}: there are {}", printable(type),
                        did_you_mean(type, types), listing);
    }
  }
  if (!chosen) {
    // A configuration file may name types that this data does not have.
    std::copy_if(config.positive.begin(), config.positive.end(), std::back_inserter(positive),
                 known);
    std::copy_if(config.read.begin(), config.read.end(), std::back_inserter(read), known);
    if (positive.empty() && read.empty() && types.size() == 1) positive = types;
  }
  if (positive.empty()) {
    throw usage_error(
        "which event types train? choose with `positive` (and `read` for those that "
        "only count as seen): there are {}",
        listing);
  }
  enum Role : uint8_t { kOut, kPositive, kRead };
  std::vector<Role> role(types.size(), kOut);
  for (size_t t = 0; t < types.size(); ++t) {
    const bool trains = std::count(positive.begin(), positive.end(), types[t]) > 0;
    const bool reads = std::count(read.begin(), read.end(), types[t]) > 0;
    if (trains && reads) {
      throw usage_error("event type '{}' is both positive and read", printable(types[t]));
    }
    role[t] = trains ? kPositive : reads ? kRead : kOut;
  }
  if (table.split.empty() && !read.empty()) table.split.assign(table.n_rows(), Split::none);
  std::vector<uint8_t> keep(table.n_rows());
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    keep[row] = role[table.event[row]] != kOut;
    if (role[table.event[row]] == kRead) table.split[row] = Split::seen;
  }
  Json left_out = Json::object();
  int64_t n_left_out = 0;
  for (size_t t = 0; t < types.size(); ++t) {
    if (role[t] != kOut) continue;
    left_out[printable(types[t])] = counts[t];
    n_left_out += counts[t];
  }
  if (n_left_out > 0) {
    keep_rows(table, keep);
    work.drops["event_types_left_out"] = n_left_out;
  }
  work.events = {{"positive", positive}, {"read", read}, {"left_out", left_out}};
}

void read_sources(Work& work) {
  const ImportOptions& options = work.options;
  std::vector<Detected> sources = detect_sources(options.paths, options.reading);
  if (!options.items.empty()) {
    ReadOptions plain;  // column flags speak of interactions
    plain.item_id_col = options.reading.item_id_col;
    plain.rows = options.reading.rows;
    Detected items = detect(options.items, plain);
    if (items.use == Use::refused) {
      throw data_error("{}: {}: {}", options.items.string(), items.kind,
                       items.notes.empty() ? "not read" : items.notes.front());
    }
    items.use = Use::items;
    sources.push_back(std::move(items));
  }
  std::vector<Detected> interactions;
  for (const Detected& source : sources) {
    switch (source.use) {
      case Use::interactions:
        interactions.push_back(source);
        break;
      case Use::items:
      case Use::users:
      case Use::settings:
      case Use::feature:
        break;
      case Use::dataset:
        throw usage_error("{} is a dataset folder: split it again alone, without other files",
                          source.path.string());
      default:
        throw usage_error("{} is a {}: import wants raw files or one dataset folder",
                          source.path.string(), source.kind);
    }
  }
  if (interactions.empty()) {
    throw data_error("no interactions in {}{}: wanted a file of users and items",
                     options.paths.front().string(),
                     options.paths.size() > 1 ? " and the other files" : "");
  }
  gather_features(work, sources);
  Json& reading = work.report["interactions"];
  read_interactions(interactions, options.reading, work.table, reading);
  if (work.table.n_rows() > std::numeric_limits<int32_t>::max() - 1) {
    throw data_error("more than 2,147,483,646 interactions");
  }
  if (reading.value("bad_lines", int64_t{0}) > 0) work.drops["bad_lines"] = reading["bad_lines"];
  EventRoles roles;
  bool has_items = false;
  for (const Detected& source : sources) {
    if (source.use == Use::items) {
      Json report;
      read_items(source, options.reading, work.items, report);
      work.report["items"].push_back(report);
      has_items = true;
    } else if (source.use == Use::users) {
      Json report;
      count_users(source, options.reading, report);
      work.report["users"].push_back(report);
    } else if (source.use == Use::settings) {
      roles = read_gorse_config(source.path);
    }
    add_source(work, source.path);
  }
  if (!has_items && (!options.reading.images.empty() || !options.reading.text.empty() ||
                     !options.reading.item_id_col.empty())) {
    throw usage_error("`images`, `text` and `item_id` speak of a catalogue: give it with `items`");
  }
  for (const FeatureSource& source : work.features) {
    add_source(work, source.path);
    add_source(work, source.ids_path);
  }
  apply_roles(work, roles);
  const bool row_features = std::any_of(work.feature_infos.begin(), work.feature_infos.end(),
                                        [](const FeatureInfo& each) { return !each.has_ids; });
  const bool dense_format =
      std::any_of(interactions.begin(), interactions.end(), [](const Detected& each) {
        return each.kind == "MMRec .inter" || each.kind == "JSON user -> items";
      });
  if (options.ids.empty()) {
    work.dense = row_features || dense_format;
    // Users are no rows of a feature file: their ids are row numbers only where they can be.
    work.dense_users = dense_format || (row_features && fits_dense(work.table.users));
  } else if (squeezed(options.ids) == "dense") {
    work.dense = work.dense_users = true;
  } else if (squeezed(options.ids) != "sparse") {
    throw usage_error("`ids` '{}'{}: wanted dense or sparse", printable(options.ids),
                      did_you_mean(options.ids, {"dense", "sparse"}));
  }
}

/// A dataset folder as sources: its rows, catalogue and unbound features.
void read_dataset_folder(Work& work) {
  const ImportOptions& options = work.options;
  if (options.paths.size() != 1 || !options.items.empty() || !options.features.empty()) {
    throw usage_error("{} is a dataset folder: split it again alone, without other files",
                      options.paths.front().string());
  }
  if (!options.ids.empty() || !options.positive.empty() || !options.read.empty()) {
    throw usage_error(
        "`ids`, `positive` and `read` are settled in the dataset folder {}: import "
        "its source files again to change them",
        options.paths.front().string());
  }
  work.from = options.paths.front();
  work.from_about = read_dataset_json(work.from, true);
  FolderRows rows = read_folder(work.from, work.from_about, true);
  work.table = std::move(rows.table);
  work.table.keep_repeats = true;
  // Rows given to the model under cold-user are held out or train like any other in a new split.
  if (work.from_about.contains("sources")) work.sources = work.from_about["sources"];
  if (work.from_about.contains("events")) work.events = work.from_about["events"];
  work.from_manifest = read_manifest(work.from);
  const ItemColumns columns = [&] {
    const fs::path path = work.from / "items.tsv";
    if (!fs::exists(path)) return ItemColumns{};
    std::ifstream in(path, std::ios::binary);
    return read_item_columns(in, path.string(), work.table.items);
  }();
  work.items.columns = columns.names;
  for (int64_t i = 0; i < work.table.items.size(); ++i) work.items.ids.add(work.table.items[i]);
  work.items.values = columns.values;
  read_media(work.from, [&](const MediaRow& row) {
    const int32_t item = work.items.ids.find(row.item);
    if (item >= 0) {
      work.items.media.push_back({item, std::string(row.modality), std::string(row.path)});
    }
    return item >= 0;
  });
}

// ---------------------------------------------------------------- ids

/// The final ids of one column and where each old index goes, -1 for those that leave.
struct Renumbered {
  Vocabulary ids;
  std::vector<int32_t> index_of;
  std::string order;  ///< "numeric", "first appearance", "dense", as in the folder
};

/// `stays[i]` of the event ids: 1 kept, 0 not in kept rows, -1 taken away by a filter. `more` are
/// ids of the catalogue; `n_rows` of feature rows without ids, under dense.
Renumbered renumber(const Vocabulary& old, const std::vector<int8_t>& stays, const Vocabulary* more,
                    bool dense, int64_t n_rows, bool keep_order, const char* what) {
  Renumbered out;
  std::vector<std::string_view> ids;
  for (int64_t i = 0; i < old.size(); ++i) {
    const bool listed = more && more->find(old[i]) >= 0;
    if (stays[i] > 0 || (stays[i] == 0 && listed)) ids.push_back(old[i]);
  }
  if (more) {
    for (int64_t i = 0; i < more->size(); ++i) {
      if (old.find((*more)[i]) < 0) ids.push_back((*more)[i]);
    }
  }
  if (dense) {
    out.order = "dense";
    int64_t n = n_rows;
    for (const std::string_view id : ids) n = std::max(n, dense_index(id, what) + 1);
    if (n > n_rows && too_sparse(n, static_cast<int64_t>(ids.size()))) {
      throw data_error("`ids` dense: {} ids reach {} with only {} in use; choose `ids` sparse",
                       what, n - 1, ids.size());
    }
    for (int64_t i = 0; i < n; ++i) {
      const std::string id = std::to_string(i);
      const int32_t index = old.find(id);
      if (index < 0 || stays[index] >= 0) out.ids.add(id);
    }
  } else {
    out.order = "first appearance";
    if (keep_order) {
      out.order = "as in the folder";
    } else if (std::all_of(ids.begin(), ids.end(), is_decimal)) {
      out.order = "numeric";
      std::stable_sort(ids.begin(), ids.end(), number_before);
    }
    for (const std::string_view id : ids) out.ids.add(id);
  }
  out.index_of.resize(old.size());
  for (int64_t i = 0; i < old.size(); ++i) out.index_of[i] = out.ids.find(old[i]);
  return out;
}

/// Ids are written as cells of lines.
void check_ids(const Vocabulary& ids, const char* what) {
  for (int64_t i = 0; i < ids.size(); ++i) {
    const std::string_view id = ids[i];
    if (id.empty()) throw data_error("empty {} id: wanted text without tab or line end", what);
    if (id.find_first_of("\t\n\r") != std::string_view::npos) {
      throw data_error(
          "{} id '{}': wanted text without tab or line end; replace them in the source", what,
          printable(id));
    }
  }
}

std::vector<uint8_t> used(const std::vector<int32_t>& column, int64_t n) {
  std::vector<uint8_t> out(n, 0);
  for (const int32_t index : column) out[index] = 1;
  return out;
}

void filter_and_renumber(Work& work) {
  EventTable& table = work.table;
  const ImportOptions& options = work.options;
  const TableCounts read = count_table(table);
  const auto had_user = used(table.user, table.users.size());
  const auto had_item = used(table.item, table.items.size());
  FilterOptions filters;
  filters.min_rating = options.min_rating;
  filters.core_users = options.core_users;
  filters.core_items = options.core_items;
  filters.stop_requested = options.reading.stop_requested;
  filters.keep_repeats =
      options.keep_repeats ||
      (table.keep_repeats &&
       (table.split.empty() || work.split.kind == SplitKind::given || !work.from.empty()));
  work.filters = apply_filters(table, filters);
  if (count_table(table).interactions == 0) {
    if (read.interactions == 0)
      throw data_error("no interactions in the files: nothing to train on");
    std::vector<std::string> flags;
    if (options.min_rating) flags.push_back(fmt::format("`min_rating` {}", *options.min_rating));
    if (options.core_users > 1 || options.core_items > 1) {
      flags.push_back(fmt::format("`core` {},{}", options.core_users, options.core_items));
    }
    throw data_error(
        "the filters ({}) leave none of {} users, {} items, {} interactions; lower them",
        fmt::join(flags, ", "), read.users, read.items, read.interactions);
  }
  for (const FilterStep& step : work.filters) {
    const int64_t n = step.before.interactions - step.after.interactions;
    if (n > 0) work.drops[step.name] = n;
    if (step.n_seen > 0) work.drops["seen_" + step.name] = step.n_seen;
  }
  const auto has_user = used(table.user, table.users.size());
  const auto has_item = used(table.item, table.items.size());
  const auto fate = [](const std::vector<uint8_t>& had, const std::vector<uint8_t>& has) {
    std::vector<int8_t> stays(had.size());
    for (size_t i = 0; i < had.size(); ++i) stays[i] = has[i] ? 1 : had[i] ? -1 : 0;
    return stays;
  };
  int64_t n_rows = 0;
  for (const FeatureInfo& info : work.feature_infos) {
    if (!info.has_ids) n_rows = std::max(n_rows, info.n_rows);
  }
  auto user_stays = fate(had_user, has_user), item_stays = fate(had_item, has_item);
  const bool again = !work.from.empty();
  if (again) {
    // Every id of the folder was settled there: only a filter takes one away.
    for (auto* stays : {&user_stays, &item_stays}) {
      for (int8_t& each : *stays) each = each == 0 ? 1 : each;
    }
  }
  Renumbered users = renumber(table.users, user_stays, nullptr, work.dense_users, 0, again, "user");
  Renumbered items =
      renumber(table.items, item_stays, &work.items.ids, work.dense, n_rows, again, "item");
  for (size_t f = 0; f < work.features.size() && work.dense; ++f) {
    const FeatureInfo& info = work.feature_infos[f];
    if (info.has_ids) continue;
    const auto refuse = [&](std::string_view id) {
      if (dense_index(id, "item") < info.n_rows) return;
      throw data_error(
          "feature '{}' has {} rows and no ids, so row r is item id r, but item id {} "
          "occurs; give {} with one id a line",
          work.features[f].modality, info.n_rows, printable(id),
          fs::path(work.features[f].path).replace_extension(".ids").string());
    };
    for (int64_t i = 0; i < table.items.size(); ++i) {
      if (item_stays[i] > 0) refuse(table.items[i]);
    }
    for (int64_t i = 0; i < work.items.ids.size(); ++i) refuse(work.items.ids[i]);
  }
  check_ids(users.ids, "user");
  check_ids(items.ids, "item");
  const auto count_gone = [&](const std::vector<int8_t>& stays, const char* reason) {
    const auto n = std::count(stays.begin(), stays.end(), int8_t{-1});
    if (n > 0) work.drops[reason] = n;
  };
  count_gone(user_stays, "users_filtered");
  count_gone(item_stays, "items_filtered");
  int64_t only_left_out = 0, users_left_out = 0;
  for (size_t i = 0; i < item_stays.size(); ++i) {
    only_left_out += item_stays[i] == 0 && items.index_of[i] < 0;
  }
  for (size_t i = 0; i < user_stays.size(); ++i) {
    users_left_out += user_stays[i] == 0 && users.index_of[i] < 0;
  }
  if (only_left_out > 0) work.drops["items_only_in_left_out_events"] = only_left_out;
  if (users_left_out > 0) work.drops["users_only_in_left_out_events"] = users_left_out;
  work.report["ids"] = {{"users", users.order}, {"items", items.order}};
  for (int32_t& user : table.user) user = users.index_of[user];
  for (int32_t& item : table.item) item = items.index_of[item];
  table.users = std::move(users.ids);
  table.items = std::move(items.ids);
}

// ---------------------------------------------------------------- split and counts

void choose_split(Work& work) {
  const ImportOptions& options = work.options;
  const EventTable& table = work.table;
  const bool labelled = std::any_of(table.split.begin(), table.split.end(), [](Split split) {
    return split != Split::none && split != Split::seen;
  });
  if (options.split.empty() && labelled && !options.rounding.empty()) {
    throw usage_error("`rounding` {} needs a `split`: the files' own labels are taken without one",
                      printable(options.rounding));
  }
  if (options.split.empty() && labelled && !work.from.empty() &&
      work.from_about["split"].contains("folds")) {
    throw usage_error("{} is split into folds: choose another split with `split`",
                      work.from.string());
  }
  work.split = parse_split(!options.split.empty() ? options.split
                           : labelled             ? "given"
                                                  : "random",
                           options.rounding, options.seed);
  if (labelled && work.split.kind != SplitKind::given && work.from.empty()) {
    note(work, "the files' own split labels are not used: --split {}", work.split.name());
  }
}

Json count_rows(const EventTable& table) {
  int64_t n_of[6] = {};
  for (const Split split : table.split) ++n_of[static_cast<int>(split)];
  const auto n = [&](Split split) { return n_of[static_cast<int>(split)]; };
  // Bits: 1 has train rows, 2 has held-out rows, 4 has any row.
  std::vector<uint8_t> user_has(table.users.size(), 0), item_has(table.items.size(), 0);
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    const Split split = table.split[row];
    const uint8_t bits = split == Split::train                           ? 5
                         : split == Split::valid || split == Split::test ? 6
                                                                         : 4;
    user_has[table.user[row]] |= bits;
    item_has[table.item[row]] |= bits;
  }
  const auto with = [](const std::vector<uint8_t>& has, uint8_t mask, uint8_t wanted) {
    return std::count_if(has.begin(), has.end(),
                         [&](uint8_t bits) { return (bits & mask) == wanted; });
  };
  const int64_t n_interactions = table.n_rows() - n(Split::seen);
  const double cells =
      static_cast<double>(table.users.size()) * static_cast<double>(table.items.size());
  return {{"n_users", table.users.size()},
          {"n_items", table.items.size()},
          {"n_interactions", n_interactions},
          {"n_train", n(Split::train)},
          {"n_valid", n(Split::valid)},
          {"n_test", n(Split::test)},
          {"n_history", n(Split::history)},
          {"n_seen", n(Split::seen)},
          {"sparsity", cells > 0 ? 1.0 - static_cast<double>(n_interactions) / cells : 0.0},
          {"users_in_train", with(user_has, 1, 1)},
          {"items_in_train", with(item_has, 1, 1)},
          {"users_only_held_out", with(user_has, 3, 2)},
          {"items_only_held_out", with(item_has, 3, 2)},
          {"users_without_rows", with(user_has, 4, 0)},
          {"items_without_rows", with(item_has, 4, 0)}};
}

Json json_of(const TableCounts& counts) {
  return {{"users", counts.users}, {"items", counts.items}, {"interactions", counts.interactions}};
}

Json json_of(const std::vector<FilterStep>& steps) {
  Json out = Json::array();
  for (const FilterStep& step : steps) {
    Json entry = {{"name", step.name}, {"value", step.value}};
    if (step.name == "repeats") entry["repeats"] = step.n_repeats;
    entry["before"] = json_of(step.before);
    entry["after"] = json_of(step.after);
    out.push_back(entry);
  }
  return out;
}

// ---------------------------------------------------------------- the folder

void write_items(Work& work, const fs::path& folder) {
  const ItemTable& items = work.items;
  const Vocabulary& ids = work.table.items;
  std::vector<int64_t> row_of(ids.size(), -1);
  int64_t gone = 0;
  for (int64_t row = 0; row < items.ids.size(); ++row) {
    const int32_t item = ids.find(items.ids[row]);
    if (item >= 0) {
      row_of[item] = row;
    } else {
      ++gone;
    }
  }
  if (gone > 0 && !items.columns.empty()) work.drops["catalogue_rows_of_filtered_items"] = gone;
  write_file_with(folder / "items.tsv", [&](std::ostream& out) {
    out << "item_id";
    // The first column is ours; one of the same name in the catalogue gets another.
    for (const auto& name : items.columns) {
      out << '\t' << (name == "item_id" ? "catalogue_item_id" : tsv_cell(name));
    }
    out << '\n';
    for (int64_t item = 0; item < ids.size(); ++item) {
      if (row_of[item] < 0 || items.columns.empty()) continue;
      out << ids[item];
      for (const auto& values : items.values) out << '\t' << tsv_cell(values[row_of[item]]);
      out << '\n';
    }
  });
  int64_t unreadable = 0;
  write_file_with(folder / "media.tsv", [&](std::ostream& out) {
    out << "item_id\tmodality\tpath\tsha256\n";
    for (const auto& each : items.media) {
      if (ids.find(items.ids[each.row]) < 0) continue;
      look(work);
      std::error_code error;
      const fs::path path = fs::absolute(each.path, error).lexically_normal();
      if (!fs::is_regular_file(path, error) ||
          path.string().find_first_of("\t\n\r") != std::string::npos) {
        ++unreadable;
        continue;
      }
      out << items.ids[each.row] << '\t' << each.modality << '\t' << path.string() << '\t'
          << sha256_of_file(path) << '\n';
    }
  });
  if (unreadable > 0) work.drops["media_files_unreadable"] = unreadable;
}

/// Features of files and of numeric columns; returns features.json.
Json write_features(Work& work, const fs::path& folder) {
  Json manifest = Json::object();
  Json& report = work.report["features"];
  report = Json::object();
  for (const FeatureSource& source : work.features) {
    Json about;
    manifest[source.modality] = import_feature(source, folder, work.table.items, work.dense, about,
                                               work.options.reading.stop_requested);
    report[source.modality] = about;
  }
  for (const auto& vectors : work.items.vectors) {
    const std::string modality = canonical_modality(vectors.modality);
    if (manifest.contains(modality)) {
      note(work, "feature {}: numbers of the catalogue are left out, the file goes first",
           modality);
      continue;
    }
    Vocabulary row_ids;
    for (const int64_t row : vectors.item_rows) row_ids.add(work.items.ids[row]);
    const auto n = static_cast<int64_t>(vectors.item_rows.size());
    const torch::Tensor rows =
        torch::from_blob(const_cast<float*>(vectors.rows.data()), {n, vectors.width}, torch::kFloat)
            .clone();
    Json about;
    manifest[modality] = import_rows(modality, rows, row_ids, {{"kind", "catalogue"}, {"read", n}},
                                     folder, work.table.items, about);
    report[modality] = about;
  }
  return manifest;
}

/// Copies the features of a folder that is split again, but those made from another split.
Json copy_features(Work& work, const fs::path& folder, const std::string& train_sha256) {
  Json manifest = Json::object();
  Json left_out = Json::array();
  for (const auto& [name, entry] : work.from_manifest.items()) {
    const auto bound = entry.find("valid_for");
    if (bound != entry.end() && !bound->is_null() && *bound != train_sha256) {
      left_out.push_back(name);
      continue;
    }
    const Feature feature = open_feature(work.from, name, entry, work.table.items, true);
    for (const char* key : {"file", "ids"}) {
      if (!entry.contains(key) || !entry[key].is_string()) continue;
      const std::string file = entry[key].get<std::string>();
      std::error_code error;
      if (!fs::copy_file(work.from / file, folder / file, error)) {
        throw RunError(Exit::failed, fmt::format("cannot copy {}: {}", (work.from / file).string(),
                                                 error.message()));
      }
    }
    manifest[name] = entry;
    const auto matched = feature.present().sum().item<int64_t>();
    work.report["features"][name] = {{"rows", feature.rows.n_rows()},
                                     {"width", feature.width()},
                                     {"matched", matched},
                                     {"missing", feature.n_items() - matched}};
  }
  if (!left_out.empty()) {
    work.drops["features_bound_to_another_split"] = left_out.size();
    work.report["features_left_out"] = left_out;
    note(work, "features made from another split's train rows are left out: {}",
         fmt::join(left_out.get<std::vector<std::string>>(), ", "));
  }
  return manifest;
}

std::string rows_sha256(const EventTable& table, const RowsByUser& by_user, bool train_only) {
  return pairs_sha256(table.users, table.items, !train_only, [&](int32_t user, UserPairs& pairs) {
    for (const int32_t row : by_user.of(user)) {
      if (train_only && table.split[row] != Split::train) continue;
      pairs.emplace_back(table.item[row], table.split[row]);
    }
  });
}

Json columns_of(const Work& work) {
  const EventTable& table = work.table;
  Json columns = {"user_id", "item_id"};
  if (!table.rating.empty()) columns.push_back("rating");
  if (!table.time.empty()) {
    columns.push_back(table.time_unit == "position" ? "position" : "timestamp");
  }
  if (!table.event.empty()) columns.push_back("event");
  columns.push_back("split");
  if (!work.drawn.fold.empty()) columns.push_back("fold");
  return columns;
}

/// Which public data set this is, by its counts and the widths of its features.
std::string known_set(const Work& work, const Json& counts) {
  SetCounts found;
  found.n_users = counts["n_users"];
  found.n_items = counts["n_items"];
  found.n_interactions = counts["n_interactions"];
  found.train = counts["n_train"];
  found.valid = counts["n_valid"];
  found.test = counts["n_test"];
  if (work.report.contains("features")) {
    for (const auto& [name, feature] : work.report["features"].items()) {
      found.widths[name] = feature["width"].get<int64_t>();
    }
  }
  return known_set_words(found);
}

Json write_dataset(Work& work, const fs::path& folder, const Json& counts) {
  const EventTable& table = work.table;
  Json about = {{"format", 1}, {"name", dataset_name(work.options)}};
  for (const auto& [key, value] : counts.items()) about[key] = value;
  about["columns"] = columns_of(work);
  if (!table.time.empty()) about["time_unit"] = table.time_unit;
  about["ids"] = work.report["ids"];
  Json filters = json_of(work.filters);
  if (!work.from.empty() && work.from_about.contains("filters") &&
      work.from_about["filters"].is_array()) {
    Json all = work.from_about["filters"];
    for (const Json& each : filters) {
      if (each["name"] != "repeats") all.push_back(each);
    }
    filters = all;
  }
  about["filters"] = filters;
  about["split"] = work.split.json();
  for (const auto& [key, value] : work.drawn.drawn.items()) about["split"][key] = value;
  if (!work.from.empty() && work.split.kind == SplitKind::given) {
    about["split"] = work.from_about["split"];
    about["seed"] = work.from_about["seed"];
  } else {
    about["seed"] = work.options.seed;
  }
  about["events"] = work.events;
  if (!work.options.reading.text.empty()) {
    about["text"] = work.options.reading.text;
  } else if (work.from_about.contains("text")) {
    about["text"] = work.from_about["text"];
  }
  about["sources"] = work.sources;
  if (!work.from.empty()) {
    about["split_from"] = {{"path", printable(work.from.string(), 4096)},
                           {"dataset_sha256", sha256_of_file(work.from / "dataset.json")}};
  }
  {
    look(work);
    const RowsByUser by_user = rows_by_user(table.users.size(), table.user, {});
    about["train_sha256"] = rows_sha256(table, by_user, true);
    look(work);
    about["split_sha256"] = rows_sha256(table, by_user, false);
  }
  write_interactions(folder / "interactions.tsv", table, work.drawn.fold,
                     work.options.reading.stop_requested);
  write_id_map(folder / "user_map.tsv", table.users);
  write_id_map(folder / "item_map.tsv", table.items);
  write_items(work, folder);
  const Json manifest = work.from.empty()
                            ? write_features(work, folder)
                            : copy_features(work, folder, about["train_sha256"].get<std::string>());
  write_json(folder / "features.json", manifest);
  if (const std::string words = known_set(work, counts); !words.empty()) note(work, "{}", words);
  work.report["drops"] = work.drops;
  work.report["counts"] = counts;
  work.report["notes"] = work.notes;
  write_json(folder / "import_report.json", work.report);
  for (const char* file : {"interactions.tsv", "user_map.tsv", "item_map.tsv", "items.tsv",
                           "media.tsv", "features.json", "import_report.json"}) {
    about["files"][file] = sha256_of_file(folder / file, work.options.reading.stop_requested);
  }
  look(work);
  write_json(folder / "dataset.json", about);
  return about;
}

}  // namespace

Json import_dataset(const ImportOptions& options, const Log& log) {
  if (options.paths.empty()) throw usage_error("import needs a file or folder to read");
  for (const int64_t core : {options.core_users, options.core_items}) {
    if (core < 0) throw usage_error("`core` must be at least 0, got {}", core);
  }
  check_output(options);
  // A wrong name of a split is said before a large file is read.
  if (!options.split.empty()) parse_split(options.split, options.rounding, options.seed);
  Work work(options, log);
  const bool again = std::any_of(options.paths.begin(), options.paths.end(), is_dataset_folder);
  if (again) {
    read_dataset_folder(work);
  } else {
    read_sources(work);
  }
  look(work);
  choose_split(work);
  filter_and_renumber(work);
  look(work);
  work.drawn = assign_split(work.table, work.split);
  look(work);
  const Json counts = count_rows(work.table);
  if (counts["n_train"] == 0) {
    throw data_error("split {} leaves no train rows: {} valid, {} test of {} interactions",
                     work.split.name(), counts["n_valid"].get<int64_t>(),
                     counts["n_test"].get<int64_t>(), counts["n_interactions"].get<int64_t>());
  }
  warn_of_leftovers(options.output, log);
  Json about;
  write_folder(options.output,
               [&](const fs::path& folder) { about = write_dataset(work, folder, counts); });
  return {{"folder", options.output.string()},
          {"name", about["name"]},
          {"counts", counts},
          {"filters", json_of(work.filters)},
          {"split", about["split"]},
          {"features", work.report["features"]},
          {"drops", work.drops},
          {"notes", work.notes},
          {"train_sha256", about["train_sha256"]},
          {"split_sha256", about["split_sha256"]}};
}

}  // namespace tessera
