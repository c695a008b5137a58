#include "tessera/study/study.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <set>
#include <sstream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/eval/statistics.h"
#include "tessera/folder/manifest.h"

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

/// The last error in a run's log, without time and level.
std::string last_error(const fs::path& folder) {
  std::ifstream in(folder / "train.log");
  std::string found;
  for (std::string line; std::getline(in, line);) {
    if (const size_t at = line.find(" ERROR "); at != std::string::npos)
      found = line.substr(at + 7);
  }
  return found.empty() ? "diverged" : found;
}

/// Exit 3 unless the run in the child's folder, if there is one, is the planned one.
void check_child(const Child& child) {
  const fs::path path = child.folder / "config.resolved.json";
  if (!fs::exists(path) && !child.finished()) return;
  const Json config = read_json(path);
  const auto differs = [&](const char* what, const std::string& found, const std::string& wanted) {
    return data_error("{} holds a run of {} {}, the study's has {}: remove it or choose another -o",
                      child.folder.string(), what, printable(found, 200), printable(wanted, 200));
  };
  const auto text = [&](const char* key) {
    return json_get<std::string>(config, key, path.string());
  };
  const std::string model = find_model(child.model).name;
  if (text("model") != model) throw differs("model", text("model"), model);
  const std::string dataset = fs::absolute(child.dataset).lexically_normal().string();
  if (text("dataset") != dataset) throw differs("dataset", text("dataset"), dataset);
  for (const auto& setting : child.settings) {
    if (setting_name(setting.name) != "seed") continue;
    const Json all = json_get<Json>(config, "settings", path.string());
    const Json seed = json_get<Json>(all, "seed", path.string());
    const std::string wanted = setting.value.dump();
    if (!seed.contains("value") || seed["value"].dump() != wanted) {
      throw differs("seed", seed.contains("value") ? seed["value"].dump() : "none", wanted);
    }
  }
  const fs::path data = child.folder / "data.json";
  if (child.split_sha256.empty() || !fs::exists(data)) return;
  const auto split = json_get<std::string>(read_json(data), "split_sha256", data.string(), "");
  if (split != child.split_sha256) throw differs("split_sha256", split, child.split_sha256);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Json number_at(const Json& object, std::initializer_list<const char*> keys) {
  const Json* at = &object;
  for (const char* key : keys) {
    if (!at->is_object() || !at->contains(key)) return {};
    at = &(*at)[key];
  }
  return at->is_number() ? *at : Json();
}

}  // namespace

std::string claim_study(const fs::path& folder, const std::string& kind, const std::string& command,
                        const Json& identity) {
  const fs::path mark = folder / "study.json";
  std::error_code error;
  if (fs::exists(mark, error)) {
    const Json found = read_json(mark);
    const Json of = json_get<std::string>(found, "kind", mark.string());
    if (of != kind) {
      throw usage_error("{} holds a study made by '{}', not by '{}': choose another -o",
                        folder.string(), of.get<std::string>(), kind);
    }
    const auto began_by = json_get<std::string>(found, "command", mark.string(), "");
    Json there = json_get<Json>(found, "identity", mark.string()), here = identity;
    if (there == here) return began_by;
    const Json files_there = take_files(there), files_here = take_files(here);
    if (const auto other = difference(there, here); !other.empty()) {
      throw usage_error(
          "{} holds another study: {}; choose another -o, or go on with it: --resume {}",
          folder.string(), other, folder.string());
    }
    if (const auto other = difference(files_there, files_here); !other.empty()) {
      throw data_error("what {} was begun with has changed: {}; choose another -o", folder.string(),
                       other);
    }
    return began_by;  // the order of keys alone differs
  }
  if (fs::exists(folder, error) && !fs::is_directory(folder, error)) {
    throw usage_error("{} is a file, wanted a folder: choose another -o", folder.string());
  }
  if (fs::exists(folder, error) && !only_begun(folder)) {
    throw usage_error("{} is not empty and holds no study: choose another -o", folder.string());
  }
  fs::create_directories(folder, error);
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
  // The mark first: a folder with runs and without it would belong to nobody.
  write_json(mark, {{"format", 1}, {"kind", kind}, {"command", command}, {"identity", identity}});
  fs::create_directories(folder / "runs", error);
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
  return command;
}

Json study_identity(const fs::path& folder, const std::string& kind) {
  const fs::path mark = folder / "study.json";
  if (!fs::exists(mark)) throw data_error("{} is no study folder", folder.string());
  const Json found = read_json(mark);
  const auto of = json_get<std::string>(found, "kind", mark.string());
  if (of != kind) {
    throw usage_error("{} holds a study made by '{}': go on with tessera {} --resume {}",
                      folder.string(), printable(of), printable(of), folder.string());
  }
  return json_get<Json>(found, "identity", mark.string());
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

std::string split_words(const Json& about) {
  if (!about.is_object() || !about.contains("split") || !about["split"].is_object()) return "";
  const Json& split = about["split"];
  const auto word = [&](const char* key) {
    return split.contains(key) && split[key].is_string() ? split[key].get<std::string>() : "";
  };
  std::string out = word("kind");
  if (const auto rounding = word("rounding"); !rounding.empty()) out += " (" + rounding + ")";
  if (split.contains("fold")) out += ", fold " + split["fold"].dump();
  if (out.rfind("given", 0) != 0 && about.contains("seed")) out += ", seed " + about["seed"].dump();
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

bool Child::finished() const { return fs::exists(folder / "results.json"); }

ChildResult run_child(const Child& child, const fs::path& study, const std::string& verb,
                      const Surroundings& around) {
  check_child(child);
  if (child.finished()) return {read_json(child.folder / "results.json"), ""};
  const fs::path status = child.folder / "status.json";
  if (fs::exists(status)) {
    const Json code = number_at(read_json(status), {"exit_code"});
    if (code == static_cast<int>(Exit::diverged)) return {Json(), last_error(child.folder)};
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
    // Whatever a killed process left of a run that had not begun.
    std::error_code error;
    fs::remove_all(child.folder, error);
    request.output = child.folder;
    request.settings = child.settings;
  }
  reset_peak_memory();
  try {
    return {run(request).results, ""};
  } catch (const RunError& e) {
    if (e.code() == Exit::diverged) return {Json(), e.what()};
    if (e.code() == Exit::interrupted || e.code() == Exit::interrupted_without_checkpoint) {
      throw RunError(
          Exit::interrupted,
          fmt::format("interrupted; go on with: tessera {} --resume {}", verb, study.string()));
    }
    throw;
  }
}

Json run_cost(const fs::path& folder, const Json& results) {
  std::vector<double> train, valid;
  Json parameters;
  double until_best = 0, sum = 0, trained = 0;
  std::ifstream in(folder / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const Json event = Json::parse(line, nullptr, false);
    if (!event.is_object()) continue;
    if (const Json n = number_at(event, {"n_parameters"}); !n.is_null()) parameters = n;
    const Json time = number_at(event, {"time_s"});
    if (event.value("event", "") != "epoch" || time.is_null()) continue;
    const auto seconds = time.get<double>();
    sum += seconds;
    if (event.value("phase", "") == "train") {
      train.push_back(seconds);
      trained += seconds;
    } else {
      valid.push_back(seconds);
      if (event.value("best", false)) until_best = sum;
    }
  }
  const Json train_s = number_at(results, {"time_s", "train"});
  // What no epoch accounts for: preparation, and all of a closed form.
  const double prepared = train_s.is_null() ? 0 : std::max(0.0, train_s.get<double>() - trained);
  Json out = {{"n_parameters", parameters}, {"epoch_s", nullptr}, {"step_ms", nullptr},
              {"eval_s", nullptr},          {"best_s", nullptr},  {"train_s", train_s}};
  if (!train.empty()) {
    out["epoch_s"] = median(train);
    const Json steps = number_at(results, {"n_steps"}), epochs = number_at(results, {"n_epochs"});
    if (!steps.is_null() && steps.get<double>() > 0 && !epochs.is_null()) {
      out["step_ms"] = 1000 * median(train) * epochs.get<double>() / steps.get<double>();
    }
  } else {
    out["epoch_s"] = train_s;
  }
  if (!valid.empty()) {
    out["eval_s"] = median(valid);
    out["best_s"] = prepared + until_best;
  } else {
    out["eval_s"] = number_at(results, {"time_s", "eval"});
  }
  out["peak_rss_mb"] = number_at(results, {"peak_rss_mb"});
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

Json settings_object(const Settings& settings) {
  Json out = Json::object();
  for (const auto& setting : settings) out[setting_name(setting.name)] = setting.value;
  return out;
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

Json summary_of(const std::vector<double>& values) {
  const auto or_null = [](double x) { return std::isfinite(x) ? Json(x) : Json(); };
  Json each = Json::array();
  for (const double value : values) each.push_back(or_null(value));
  return {
      {"mean", or_null(mean_of(values))}, {"sd", or_null(deviation_of(values))}, {"values", each}};
}

std::string number_cell(const Json& value, const char* format) {
  return value.is_number() ? fmt::format(fmt::runtime(format), value.get<double>()) : "-";
}

std::string summary_cell(const Json& summary, const std::string& plus_minus) {
  if (!summary.is_object() || !summary["mean"].is_number()) return "-";
  const std::string mean = number_cell(summary["mean"], "{:.4f}");
  return summary["sd"].is_number() ? mean + plus_minus + number_cell(summary["sd"], "{:.4f}")
                                   : mean;
}

}  // namespace tessera
