#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/data/feature.h"
#include "tessera/read/known_sets.h"
#include "tessera/read/read_rows.h"

namespace tessera {
namespace {

/// The JSON of a file of our own folders, or null when it is not there.
Json optional_json(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) ? read_json(path) : Json();
}

/// Copies the keys of `from` that are there.
void copy(const Json& from, std::initializer_list<const char*> keys, Json& to) {
  if (!from.is_object()) return;
  for (const char* key : keys) {
    if (from.contains(key)) to[key] = from.at(key);
  }
}

void inspect_dataset(const fs::path& folder, Json& report) {
  const Json dataset = read_json(folder / "dataset.json");
  if (!dataset.is_object()) {
    throw data_error("{}: wanted an object", (folder / "dataset.json").string());
  }
  Json about = dataset;
  about.erase("files");
  about.erase("sources");
  report["dataset"] = about;
  const Json features = optional_json(folder / "features.json");
  Json shown = Json::object();
  for (auto it = features.begin(); features.is_object() && it != features.end(); ++it) {
    Json entry = Json::object();
    copy(it.value(), {"rows", "width", "dtype", "file", "valid_for"}, entry);
    shown[it.key()] = std::move(entry);
  }
  SetCounts counts;
  const auto count = [&](const char* key) {
    return dataset.contains(key) && dataset[key].is_number_integer() ? dataset[key].get<int64_t>()
                                                                     : 0;
  };
  counts.n_users = count("n_users");
  counts.n_items = count("n_items");
  counts.n_interactions = count("n_interactions");
  counts.train = count("n_train");
  counts.valid = count("n_valid");
  counts.test = count("n_test");
  for (const auto& [name, entry] : shown.items()) {
    if (entry.contains("width") && entry["width"].is_number_integer()) {
      counts.widths[name] = entry["width"].get<int64_t>();
    }
  }
  if (const auto words = known_set_words(counts); !words.empty()) report["notes"].push_back(words);
  report["features"] = std::move(shown);
  std::error_code error;
  if (fs::is_regular_file(folder / "interactions.tsv", error)) {
    const Detected rows = detect(folder / "interactions.tsv");
    const Json found = rows.json();
    copy(found, {"columns", "meaning", "time_unit", "rows"}, report);
  }
}

void inspect_run(const fs::path& folder, Json& report) {
  copy(optional_json(folder / "status.json"), {"state", "epoch", "exit_code"}, report);
  const Json results = optional_json(folder / "results.json");
  copy(results, {"model", "dataset", "seed", "protocol", "selection", "valid", "test", "audit"},
       report);
  if (results.is_null()) report["notes"].push_back("no results.json: the run has not ended");
}

void inspect_bundle(const fs::path& folder, Json& report) {
  const Json model = read_json(folder / "model.json");
  copy(model,
       {"model", "format", "tessera", "n_users", "n_items", "modalities", "dataset", "trained_on",
        "settings", "metrics", "created", "licence"},
       report);
}

void inspect_study(const fs::path& folder, Json& report) {
  const Json study = read_json(folder / "study.json");
  if (study.is_object()) report["study"] = study;
}

void inspect_feature(const fs::path& path, Json& report) {
  if (report.at("kind") != "npy" && report.at("kind") != "safetensors") return;
  const MappedArray rows = report.at("kind") == "npy" ? map_npy(path) : map_safetensors(path);
  report["shape"] = {rows.n_rows(), rows.width()};
  report["dtype"] = rows.dtype() == torch::kHalf     ? "float16"
                    : rows.dtype() == torch::kDouble ? "float64"
                                                     : "float32";
  fs::path ids = path;
  ids.replace_extension(".ids");
  std::error_code error;
  report["notes"].push_back(fs::is_regular_file(ids, error)
                                ? fmt::format("ids: {}", shown_text(ids.filename().string()))
                                : "no .ids beside it: row r is item id r");
}

std::string short_cell(const Json& cell) {
  const std::string text = tsv_cell(cell.is_string() ? cell.get<std::string>() : cell.dump());
  if (text.size() <= 60) return text;
  size_t end = 57;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

std::string delimiter_name(const std::string& delimiter) {
  if (delimiter == "\t") return "tab";
  if (delimiter == ",") return "comma";
  if (delimiter == ";") return "semicolon";
  if (delimiter == "|") return "pipe";
  if (delimiter == " ") return "space";
  return delimiter;
}

/// One key of our own JSON files: scalars on one line, objects and lists as JSON.
void add_value(std::string& text, const std::string& key, const Json& value,
               const std::string& indent) {
  text +=
      fmt::format("{}{}: {}\n", indent, key,
                  value.is_string() ? value.get<std::string>()
                                    : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void add_file(std::string& text, const Json& file, const std::string& indent) {
  text += fmt::format("{}{}: {}\n", indent, file.at("path").get<std::string>(),
                      file.at("kind").get<std::string>());
  const std::string in = indent + "  ";
  if (file.contains("delimiter")) {
    text += fmt::format("{}delimiter: {}\n", in, delimiter_name(file.at("delimiter")));
  }
  if (file.contains("header") && file.contains("delimiter")) {
    text += fmt::format("{}header: {}\n", in, file.at("header").get<bool>() ? "yes" : "no");
  }
  if (file.value("use", "") == "items" && file.contains("columns")) {
    std::string columns;
    for (const auto& name : file.at("columns")) {
      columns += (columns.empty() ? "" : ", ") + name.get<std::string>();
    }
    text += fmt::format("{}columns: {}\n", in, columns);
  }
  if (file.contains("meaning") && !file.at("meaning").empty()) {
    std::string meanings;
    for (const auto& [meaning, column] : file.at("meaning").items()) {
      if (!meanings.empty()) meanings += ", ";
      const std::string name = column.get<std::string>();
      const bool number =
          std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
      meanings += fmt::format("{} = {}{}", meaning, number ? "column " : "", name);
    }
    text += fmt::format("{}meaning: {}\n", in, meanings);
  }
  if (file.contains("time_unit")) {
    const std::string unit = file.at("time_unit");
    text += fmt::format("{}time unit: {}\n", in,
                        unit == "s"          ? "seconds"
                        : unit == "ms"       ? "milliseconds"
                        : unit == "position" ? "none, rows carry their position"
                                             : unit);
  }
  if (file.contains("split")) add_value(text, "split by its name", file.at("split"), in);
  if (file.contains("images")) add_value(text, "pictures", file.at("images"), in);
  if (file.contains("rows") && file.at("rows").is_array()) {
    text += fmt::format("{}first rows:\n", in);
    for (const auto& row : file.at("rows")) {
      std::string line;
      for (const auto& cell : row) {
        if (!line.empty()) line += " | ";
        line += short_cell(cell);
      }
      text += fmt::format("{}  {}\n", in, line);
    }
  }
  if (file.contains("notes")) {
    for (const auto& note : file.at("notes")) {
      text += fmt::format("{}note: {}\n", in, note.get<std::string>());
    }
  }
  if (file.contains("files")) {
    for (const auto& part : file.at("files")) add_file(text, part, in);
  }
}

}  // namespace

Json inspect(const std::filesystem::path& path, const ReadOptions& options) {
  const Detected found = detect_source(path, options);
  if (found.use == Use::refused && found.rows.empty()) {  // a table is worth showing all the same
    throw data_error("{}: {}: {}", path.string(), found.kind,
                     found.notes.empty() ? "not read" : found.notes.front());
  }
  Json report = found.json();
  if (!report.contains("notes")) report["notes"] = Json::array();
  switch (found.use) {
    case Use::dataset:
      inspect_dataset(path, report);
      break;
    case Use::run:
      inspect_run(path, report);
      break;
    case Use::bundle:
      inspect_bundle(path, report);
      break;
    case Use::study:
      inspect_study(path, report);
      break;
    case Use::feature:
      inspect_feature(path, report);
      break;
    default:
      break;
  }
  if (report.at("notes").empty()) report.erase("notes");
  return report;
}

std::string inspect_text(const Json& report) {
  std::string text;
  add_file(text, report, "");
  for (const char* key : {"dataset", "study"}) {
    if (!report.contains(key)) continue;
    if (!report.at(key).is_object()) {
      add_value(text, key, report.at(key), "  ");
      continue;
    }
    for (const auto& [name, value] : report.at(key).items()) add_value(text, name, value, "  ");
  }
  if (report.contains("features")) {
    for (const auto& [name, entry] : report.at("features").items()) {
      add_value(text, "feature " + name, entry, "  ");
    }
  }
  for (const char* key :
       {"state",     "epoch",   "exit_code",  "model",      "seed",     "protocol",
        "selection", "valid",   "test",       "audit",      "format",   "tessera",
        "n_users",   "n_items", "modalities", "trained_on", "settings", "metrics",
        "created",   "licence", "shape",      "dtype"}) {
    if (report.contains(key)) add_value(text, key, report.at(key), "  ");
  }
  return text;
}

}  // namespace tessera
