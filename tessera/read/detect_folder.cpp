#include <algorithm>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

/// Names in a folder, sorted; hidden ones left out.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(".") && it->is_regular_file(error)) names.push_back(name);
  }
  if (error) throw data_error("cannot read the folder {}: {}", folder.string(), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> tails) {
  return std::any_of(tails.begin(), tails.end(), [&](auto tail) { return name.ends_with(tail); });
}

/// Files of one stem per split ("train.json", "val.json", "X.test.inter"), in that order.
std::vector<std::string> split_files(const std::vector<std::string>& names,
                                     std::string_view extension) {
  std::vector<std::string> found;
  for (const Split wanted : {Split::train, Split::valid, Split::test}) {
    for (const auto& name : names) {
      if (!name.ends_with(extension)) continue;
      std::string stem = name.substr(0, name.size() - extension.size());
      const size_t dot = stem.find_last_of("._-");
      if (dot != std::string::npos) stem = stem.substr(dot + 1);
      if (stem.empty() || (stem.front() >= '0' && stem.front() <= '9')) continue;
      if (parse_split(stem) == wanted) found.push_back(name);
    }
  }
  return found.size() >= 2 ? found : std::vector<std::string>{};
}

/// The files of interactions in a folder, by the customs of those who publish such folders.
std::vector<std::string> interaction_files(const fs::path& folder,
                                           const std::vector<std::string>& names) {
  auto found = split_files(names, ".inter");
  if (!found.empty()) return found;
  found.clear();
  for (const auto& name : names) {
    if (name.ends_with(".inter")) found.push_back(name);
  }
  if (found.size() > 1) {
    throw data_error("{} holds several interaction files ({}); name the one to read",
                     folder.string(), fmt::join(found, ", "));
  }
  if (!found.empty()) return found;
  const auto has = [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const char* stem : {"interactions", "events", "feedback", "ratings", "u", "sequences"}) {
    for (const char* extension : {".tsv", ".csv", ".jsonl", ".parquet", ".dat", ".data", ".txt"}) {
      if (has(std::string(stem) + extension)) return {std::string(stem) + extension};
    }
  }
  for (const char* extension : {".json", ".tsv", ".csv", ".txt", ".parquet"}) {
    found = split_files(names, extension);
    if (!found.empty()) return found;
  }
  if (has("train.json")) return {"train.json"};
  return {};
}

}  // namespace

Detected detect_folder(Detected found, const ReadOptions& options) {
  const fs::path& folder = found.path;
  if (is_file(folder / "dataset.json")) {
    found.kind = "dataset folder";
    found.use = Use::dataset;
    return found;
  }
  if (is_file(folder / "study.json")) {
    found.kind = "study folder";
    found.use = Use::study;
    return found;
  }
  if (is_file(folder / "config.resolved.json") || is_file(folder / "status.json")) {
    found.kind = "run folder";
    found.use = Use::run;
    return found;
  }
  if (is_file(folder / "model.json") && is_file(folder / "weights.safetensors")) {
    found.kind = "bundle";
    found.use = Use::bundle;
    return found;
  }
  found.kind = "folder of raw files";
  found.use = Use::folder;
  const auto names = names_in(folder);
  if (names.empty()) throw data_error("{}: empty folder", folder.string());
  std::set<std::string> used;
  const auto take = [&](const std::string& name) {
    found.parts.push_back(detect(folder / name, options));
    used.insert(name);
  };
  for (const auto& name : interaction_files(folder, names)) take(name);
  if (found.parts.empty()) {
    if (std::all_of(names.begin(), names.end(), [](const std::string& name) {
          return ends_with_any(name, {".npy", ".jpg", ".jpeg", ".png"});
        })) {
      found.kind = names.front().ends_with(".npy") ? "folder of .npy" : "folder of pictures";
      found.use = Use::feature;
      found.notes.push_back(fmt::format("{} files", names.size()));
      return found;
    }
    throw data_error("{}: no interactions recognised among its {} files; name the files to read",
                     folder.string(), names.size());
  }
  ReadOptions plain;  // column flags speak of interactions
  plain.rows = options.rows;
  plain.item_id_col = options.item_id_col;
  std::string items;
  for (const auto& name : names) {
    const bool catalogue = name.ends_with(".item") ||
                           ((name.starts_with("items.") || name.starts_with("catalogue.") ||
                             name.starts_with("catalog.") || name == "movies.csv") &&
                            ends_with_any(name, {".jsonl", ".tsv", ".csv", ".parquet", ".json"}));
    if (items.empty() && catalogue) items = name;
  }
  if (!items.empty()) {
    Detected catalogue = detect(folder / items, plain);
    used.insert(items);
    for (const char* images : {"images", "posters", "pictures"}) {
      std::error_code error;
      if (catalogue.use == Use::items && fs::is_directory(folder / images, error)) {
        catalogue.images = folder / images;
        break;
      }
    }
    found.parts.push_back(std::move(catalogue));
  }
  for (const auto& name : names) {
    if (name.ends_with(".user") || name == "users.jsonl" || name == "users.json" ||
        name == "config.toml") {
      found.parts.push_back(detect(folder / name, plain));
      used.insert(name);
    }
  }
  std::vector<std::string> left;
  for (const auto& name : names) {
    const bool feature = ends_with_any(name, {".npy", ".safetensors", ".ids"});
    if (!used.count(name) && !feature) left.push_back(printable(name));
  }
  if (!left.empty()) {
    const size_t n = left.size();
    if (n > 10) left.resize(10);
    found.notes.push_back(fmt::format("not read: {}{}", fmt::join(left, ", "),
                                      n > 10 ? fmt::format(" and {} more", n - 10) : ""));
  }
  return found;
}

Detected detect_source(const std::filesystem::path& path, const ReadOptions& options) {
  try {
    return detect(path, options);
  } catch (const InputError& e) {
    if (e.code() != Exit::usage) throw;
    ReadOptions plain = options;
    plain.user_col = plain.item_col = plain.rating_col = {};
    plain.time_col = plain.split_col = plain.event_col = {};
    Detected found = detect(path, plain);
    if (found.use != Use::items && found.use != Use::users) throw;
    return found;
  }
}

std::vector<Detected> detect_sources(const std::vector<std::filesystem::path>& paths,
                                     const ReadOptions& options) {
  std::vector<Detected> all;
  for (const auto& path : paths) {
    Detected found = detect_source(path, options);
    if (found.use == Use::folder) {
      for (auto& part : found.parts) all.push_back(std::move(part));
    } else {
      all.push_back(std::move(found));
    }
  }
  for (const auto& found : all) {
    if (found.use != Use::refused) continue;
    throw data_error("{}: {}: {}", found.path.string(), found.kind,
                     found.notes.empty() ? "not read" : found.notes.front());
  }
  const bool any = std::any_of(all.begin(), all.end(),
                               [](const Detected& d) { return d.use == Use::interactions; });
  if (!any && !paths.empty()) detect(paths.front(), options);  // a flag may be what is wrong
  std::stable_sort(all.begin(), all.end(), [](const Detected& a, const Detected& b) {
    return static_cast<int>(a.use) < static_cast<int>(b.use);
  });
  return all;
}

}  // namespace tessera
