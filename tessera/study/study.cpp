#include "tessera/study/study.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <set>
#include <sstream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/resumable.h"
#include "tessera/eval/statistics.h"
#include "tessera/folder/manifest.h"
#include "tessera/ops/process.h"
#include "tessera/train/metrics_log.h"

namespace tessera {
namespace {

std::string shown(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 200);
}

/// The first key in which two identities differ, with both values; empty where none does. Keys of
/// objects in them are written behind a point.
std::string difference(const Json& there, const Json& here, const std::string& before = "") {
  for (const auto& [key, value] : here.items()) {
    if (!there.is_object() || !there.contains(key))
      return fmt::format("it has no {}{}", before, key);
    if (there[key] == value) continue;
    if (there[key].is_object() && value.is_object()) {
      return difference(there[key], value, before + key + ".");
    }
    return fmt::format("its {}{} are {}, this command's {}", before, printable(key),
                       shown(there[key]), shown(value));
  }
  if (!there.is_object()) return "it is of another version";
  for (const auto& [key, value] : there.items()) {
    if (!here.contains(key)) {
      return fmt::format("its {}{} are {}, this command has none", before, printable(key),
                         shown(value));
    }
  }
  return "";
}

/// Takes the keys that hash files out of an identity.
Json take_files(Json& identity) {
  Json out = Json::object();
  if (!identity.is_object()) return out;
  for (const char* key : {"datasets", "split_sha256", "features", "lists"}) {
    if (!identity.contains(key)) continue;
    out[key] = identity[key];
    identity.erase(key);
  }
  return out;
}

/// True where a folder holds nothing but what a study writes before its study.json.
bool only_begun(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name.rfind(".study.json.", 0) == 0 ||
                      (name == "runs" && entry.is_directory() && fs::is_empty(entry.path()));
    if (!ours) return false;
  }
  return !error;
}

/// Exit 3 unless the run in the child's folder, if there is one, is the planned one.
void check_child(const Child& child) {
  if (!fs::exists(child.folder / "config.resolved.json") && !child.finished()) return;
  const RunConfig run = read_run_config(child.folder);
  const auto same = [&](const char* what, const std::string& found, const std::string& wanted) {
    if (found == wanted) return;
    throw data_error(
        "{} holds a run of {} {}, the study's has {}: remove it or choose another folder",
        child.folder.string(), what, printable(found, 200), printable(wanted, 200));
  };
  same("model", run.model, find_model(child.model).name);
  same("dataset", run.dataset, fs::absolute(child.dataset).lexically_normal().string());
  for (const auto& setting : child.settings) {
    if (setting_name(setting.name) != "seed") continue;
    same("seed", settings_object(run.settings).value("seed", Json()).dump(), setting.value.dump());
  }
  const fs::path data = child.folder / "data.json";
  if (child.split_sha256.empty() || !fs::exists(data)) return;
  same("split_sha256", DataCard::read(read_json(data)).split_sha256, child.split_sha256);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// study.json of a folder, of the wanted kind or any.
Study study_in(const fs::path& folder) {
  const std::string what = (folder / "study.json").string();
  const Json found = read_json(what);
  return {json_get<std::string>(found, "kind", what),
          json_get<std::string>(found, "command", what, ""),
          json_get<Json>(found, "identity", what)};
}

}  // namespace

Study claim_study(const fs::path& folder, const Study& study) {
  std::error_code error;
  if (fs::exists(folder / "study.json", error)) {
    const Study found = study_in(folder);
    if (found.kind != study.kind) {
      throw usage_error("{} holds a study made by '{}', not by '{}': choose another folder",
                        folder.string(), printable(found.kind), study.kind);
    }
    Json there = found.identity, here = study.identity;
    const Json files_there = take_files(there), files_here = take_files(here);
    if (const auto other = difference(there, here); !other.empty()) {
      throw usage_error(
          "{} holds another study: {}; choose another folder, or go on with it: --resume {}",
          folder.string(), other, folder.string());
    }
    if (const auto other = difference(files_there, files_here); !other.empty()) {
      throw data_error("what {} was begun with has changed: {}; choose another folder",
                       folder.string(), other);
    }
    return found;
  }
  if (fs::exists(folder, error) && !fs::is_directory(folder, error)) {
    throw usage_error("{} is a file, wanted a folder: choose another folder", folder.string());
  }
  if (fs::exists(folder, error) && !only_begun(folder)) {
    throw usage_error("{} is not empty and holds no study: choose another folder", folder.string());
  }
  fs::create_directories(folder, error);
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
  // The mark first: a folder with runs and without it would belong to nobody.
  write_json(folder / "study.json", {{"format", 1},
                                     {"kind", study.kind},
                                     {"command", study.command},
                                     {"identity", study.identity}});
  fs::create_directories(folder / "runs", error);
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
  return study;
}

Study read_study(const fs::path& folder, const std::string& kind) {
  if (!fs::exists(folder / "study.json"))
    throw data_error("{} is no study folder", folder.string());
  Study found = study_in(folder);
  if (found.kind != kind) {
    throw usage_error("{} holds a study made by '{}': go on with tessera {} --resume {}",
                      folder.string(), printable(found.kind), printable(found.kind),
                      folder.string());
  }
  return found;
}

std::string file_name(const std::string& text) {
  std::string out;
  for (const unsigned char c : text) {
    const bool plain = std::isalnum(c) != 0 || c == '.' || c == '_' || c == '+' || c == '=';
    if (plain) {
      out += static_cast<char>(c);
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  if (out.empty() || out.front() == '.') out.insert(0, "_");
  return out.substr(0, 120);
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

DataCard DataCard::read(const Json& about) {
  DataCard out;
  if (!about.is_object()) return out;
  const auto at = [](const Json& object, const char* key) {
    const auto found = object.find(key);
    return found == object.end() ? Json() : *found;
  };
  const auto text = [](const Json& value) {
    return value.is_string() ? value.get<std::string>() : std::string();
  };
  out.name = text(at(about, "name"));
  out.split_sha256 = text(at(about, "split_sha256"));
  const Json split = at(about, "split"), seed = at(about, "seed");
  if (!split.is_object()) return out;
  out.split = text(at(split, "kind"));
  if (const auto rounding = text(at(split, "rounding")); !rounding.empty()) {
    out.split += " (" + rounding + ")";
  }
  if (const Json fold = at(split, "fold"); !fold.is_null()) {
    if (fold.is_number_integer()) out.fold = fold.get<int64_t>();
    out.split += ", fold " + fold.dump();
  }
  if (out.split.rfind("given", 0) != 0 && !seed.is_null()) out.split += ", seed " + seed.dump();
  return out;
}

Json feature_hashes(const fs::path& dataset, const std::vector<std::vector<std::string>>& asked) {
  Json out = Json::object();
  if (asked.empty()) return out;
  const Json manifest = read_manifest(dataset);
  for (const auto& modalities : std::set<std::vector<std::string>>(asked.begin(), asked.end())) {
    for (const auto& [name, entry] : manifest.items()) {
      const bool read =
          modalities.empty()
              ? !made_by_model(entry)
              : std::any_of(modalities.begin(), modalities.end(), [&](const auto& one) {
                  return squeezed(one) != "none" && canonical_modality(one) == name;
                });
      if (!read) continue;
      for (const char* key : {"sha256", "ids_sha256"}) {
        if (entry.contains(key)) out[name][key] = entry[key];
      }
    }
  }
  return out;
}

bool Child::finished() const { return run_finished(folder); }

ChildResult run_child(const Child& child, const fs::path& study, const Surroundings& around) {
  check_child(child);
  if (child.finished()) return {read_results(child.folder), ""};
  if (const RunStatus status = read_run_status(child.folder); status.exit_code == Exit::diverged) {
    return {{}, status.error.empty() ? "diverged" : status.error};
  }
  RunRequest request;
  request.model = child.model;
  request.dataset = child.dataset;
  request.look_at_test = child.look_at_test;
  request.command = around.command;
  request.log = around.log;
  request.stop_requested = around.stop_requested;
  request.progress = around.progress;
  if (folder_exists(child.folder / "checkpoints" / "last")) {
    request.resume = child.folder;
  } else {
    request.output = child.folder;
    request.settings = child.settings;
  }
  reset_peak_memory();
  try {
    return {run(request).result, ""};
  } catch (const RunError& e) {
    if (e.code() == Exit::diverged) return {{}, e.what()};
    if (e.code() == Exit::interrupted || e.code() == Exit::interrupted_without_checkpoint) {
      throw ResumableError(Exit::interrupted, "interrupted", study.string());
    }
    // What can go on is the study, not its run.
    if (dynamic_cast<const ResumableError*>(&e) != nullptr) {
      throw ResumableError(e.code(), e.what(), study.string());
    }
    throw;
  }
}

Cost run_cost(const fs::path& folder, const RunResult& result) {
  Cost out;
  std::vector<double> train, valid;
  double until_best = 0, sum = 0, trained = 0;
  for (const MetricsLine& line : read_metrics_log(folder / "metrics.jsonl")) {
    if (const double n = line.value("n_parameters"); std::isfinite(n)) out.n_parameters = n;
    const double seconds = line.value("time_s");
    if (line.event != "epoch" || !std::isfinite(seconds)) continue;
    sum += seconds;
    if (line.trains()) {
      train.push_back(seconds);
      trained += seconds;
    } else {
      valid.push_back(seconds);
      if (line.best) until_best = sum;
    }
  }
  out.train_s = result.time_s.train.value_or(Cost::kUnknown);
  // What no epoch accounts for: preparation, and all of a closed form.
  const double prepared = std::max(0.0, result.time_s.train.value_or(0) - trained);
  out.epoch_s = train.empty() ? out.train_s : median(train);
  if (!train.empty() && result.n_steps.value_or(0) > 0 && result.n_epochs) {
    out.step_ms = 1000 * out.epoch_s * static_cast<double>(*result.n_epochs) /
                  static_cast<double>(*result.n_steps);
  }
  out.eval_s = valid.empty() ? result.time_s.eval : median(valid);
  if (!valid.empty()) out.best_s = prepared + until_best;
  if (result.peak_rss_mb) out.peak_rss_mb = static_cast<double>(*result.peak_rss_mb);
  return out;
}

std::map<std::string, double> per_user_values(const fs::path& folder, const std::string& metric) {
  const fs::path path = folder / "per_user.tsv";
  std::istringstream in(read_file(path));
  std::string line, cell;
  std::getline(in, line);
  std::vector<std::string> columns;
  for (std::istringstream head(line); std::getline(head, cell, '\t');) columns.push_back(cell);
  const auto place = std::find(columns.begin(), columns.end(), metric);
  if (place == columns.end() || place == columns.begin()) {
    throw data_error("{}: no column '{}'{}; it has {}", path.string(), printable(metric),
                     did_you_mean(metric, columns), fmt::join(columns, ", "));
  }
  const auto column = place - columns.begin();
  std::map<std::string, double> out;
  for (int64_t number = 2; std::getline(in, line); ++number) {
    const std::string user = line.substr(0, line.find('\t'));
    size_t at = 0;
    for (std::ptrdiff_t c = 0; c < column && at != std::string::npos; ++c) {
      at = line.find('\t', at);
      if (at != std::string::npos) ++at;
    }
    double value = 0;
    const char* end = line.data() + line.size();
    if (at == std::string::npos ||
        std::from_chars(line.data() + at, end, value).ec != std::errc()) {
      throw data_error("{}:{}: no number in column '{}'", path.string(), number, metric);
    }
    out[user] = value;
  }
  return out;
}

std::string settings_words(const Settings& settings) {
  std::string out;
  const Json values = settings_object(settings);  // a setting given twice counts once
  for (const auto& [name, value] : values.items()) {
    out += fmt::format("{}{}={}", out.empty() ? "" : ", ", name, line_text(value));
  }
  return out;
}

std::string line_text(const Json& value) {
  return escaped(value.is_string() ? value.get<std::string>()
                                   : value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string published_metric(const std::string& name) {
  static const std::vector<std::string> kCapitals = {"ndcg", "map", "mrr", "auc", "epc", "aplt"};
  const size_t at = name.find('@');
  std::string word = name.substr(0, at);
  if (std::find(kCapitals.begin(), kCapitals.end(), word) != kCapitals.end()) {
    for (char& c : word) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  } else if (!word.empty()) {
    word[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(word[0])));
    std::replace(word.begin(), word.end(), '_', ' ');
  }
  return at == std::string::npos ? word : word + name.substr(at);
}

std::string markdown_table(const std::vector<std::vector<std::string>>& typed) {
  // Width in characters: the cells are UTF-8.
  const auto width = [](const std::string& text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    }));
  };
  std::vector<std::vector<std::string>> rows = typed;
  for (auto& row : rows) {
    for (auto& cell : row) {
      for (size_t at = 0; (at = cell.find('|', at)) != std::string::npos; at += 2) {
        cell.insert(at, 1, '\\');
      }
    }
  }
  std::vector<size_t> widths(rows.at(0).size(), 3);
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width(row[c]));
  }
  std::string out;
  for (size_t r = 0; r < rows.size(); ++r) {
    out += "|";
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const std::string fill(widths[c] - width(rows[r][c]), ' ');
      out += c == 0 ? " " + rows[r][c] + fill + " |" : " " + fill + rows[r][c] + " |";
    }
    out += "\n";
    if (r > 0) continue;
    out += "|";
    for (size_t c = 0; c < widths.size(); ++c) {
      out +=
          c == 0 ? std::string(widths[c] + 2, '-') + "|" : std::string(widths[c] + 1, '-') + ":|";
    }
    out += "\n";
  }
  return out;
}

Summary summary_of(const std::vector<double>& values) {
  return {mean_of(values), deviation_of(values), values};
}

std::string number_cell(double value, const char* format) {
  return std::isnan(value) ? "-" : fmt::format(fmt::runtime(format), value);
}

std::string summary_cell(const Summary& summary, const std::string& plus_minus) {
  const std::string mean = number_cell(summary.mean, "{:.4f}");
  return std::isnan(summary.mean) || std::isnan(summary.deviation)
             ? mean
             : mean + plus_minus + number_cell(summary.deviation, "{:.4f}");
}

Json number_json(double value) { return std::isfinite(value) ? Json(value) : Json(); }

template <typename T>
std::vector<T> list_from(const Json& object, const std::string& key, const std::string& where) {
  std::vector<T> out;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) {
    throw data_error("{}: '{}' must be a list", where, key);
  }
  for (const Json& each : *found) {
    const Json one = {{key, each}};
    if constexpr (std::is_same_v<T, double>) {
      out.push_back(json_get<double>(one, key, where, Cost::kUnknown));
    } else {
      out.push_back(json_get<T>(one, key, where));
    }
  }
  return out;
}
template std::vector<double> list_from(const Json&, const std::string&, const std::string&);
template std::vector<int64_t> list_from(const Json&, const std::string&, const std::string&);
template std::vector<std::string> list_from(const Json&, const std::string&, const std::string&);
template std::vector<Json> list_from(const Json&, const std::string&, const std::string&);

Json settings_object(const Settings& settings) {
  Json out = Json::object();
  for (const auto& setting : settings) out[setting_name(setting.name)] = setting.value;
  return out;
}

Settings settings_from(const Json& object, const std::string& key, const std::string& where) {
  Settings out;
  const Json settings = json_get<Json>(object, key, where);
  for (const auto& [name, value] : settings.items()) out.push_back({name, value, "study.json"});
  return out;
}

Json summary_json(const Summary& summary) {
  Json values = Json::array();
  for (const double value : summary.values) values.push_back(number_json(value));
  return {{"mean", number_json(summary.mean)},
          {"sd", number_json(summary.deviation)},
          {"values", values}};
}

Summary summary_from(const Json& json, const std::string& where) {
  return {json_get<double>(json, "mean", where, Cost::kUnknown),
          json_get<double>(json, "sd", where, Cost::kUnknown),
          list_from<double>(json, "values", where)};
}

Json failures_json(const std::vector<Failure>& failures) {
  Json out = Json::array();
  for (const auto& one : failures) out.push_back({{"seed", one.seed}, {"what", one.what}});
  return out;
}

std::vector<Failure> failures_from(const Json& object, const std::string& where) {
  std::vector<Failure> out;
  for (const Json& one : list_from<Json>(object, "failures", where)) {
    out.push_back(
        {json_get<int64_t>(one, "seed", where), json_get<std::string>(one, "what", where)});
  }
  return out;
}

}  // namespace tessera
