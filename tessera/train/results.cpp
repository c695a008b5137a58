#include "tessera/train/results.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

template <typename T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

template <typename T>
std::optional<T> optional_of(const Json& json, const char* key, const std::string& where) {
  if (!json.contains(key) || json[key].is_null()) return {};
  return json_get<T>(json, key, where);
}

std::vector<std::string> texts_of(const Json& json, const char* key, const std::string& where) {
  std::vector<std::string> out;
  if (!json.contains(key) || json[key].is_null()) return out;
  if (!json[key].is_array()) throw data_error("{}: '{}' must be a list of texts", where, key);
  for (const Json& text : json[key]) {
    if (!text.is_string()) throw data_error("{}: '{}' must be a list of texts", where, key);
    out.push_back(text.get<std::string>());
  }
  return out;
}

std::optional<MetricValues> split_of(const Json& json, const char* key, const std::string& where) {
  if (!json.contains(key) || json[key].is_null()) return {};
  return metrics_from(json_get<Json>(json, key, where), where);
}

std::vector<Slice> slices_from(const Json& json, const std::string& where) {
  std::vector<Slice> out;
  const Json slices = json_get<Json>(json, "slices", where, Json::object());
  for (const auto& [name, entry] : slices.items()) {
    const std::string here = fmt::format("{}: slice '{}'", where, printable(name));
    Slice slice;
    slice.name = name;
    slice.n_users = json_get<int64_t>(entry, "n_users", here, 0);
    slice.n_pairs = json_get<int64_t>(entry, "n_pairs", here, 0);
    slice.metrics = metrics_from(json_get<Json>(entry, "metrics", here), here);
    out.push_back(std::move(slice));
  }
  return out;
}

RunResult::Selection selection_from(const Json& json, const std::string& where) {
  RunResult::Selection out;
  if (!json.contains("selection") || json["selection"].is_null()) return out;
  const Json from = json_get<Json>(json, "selection", where);
  out.split = json_get<std::string>(from, "split", where, out.split);
  out.metric = json_get<std::string>(from, "metric", where, "");
  out.epoch = json_get<int64_t>(from, "epoch", where, -1);
  out.value = optional_of<double>(from, "value", where);
  return out;
}

RunResult::Times times_from(const Json& json, const std::string& where) {
  RunResult::Times out;
  const Json from = json_get<Json>(json, "time_s", where, Json::object());
  out.train = optional_of<double>(from, "train", where);
  out.eval = json_get<double>(from, "eval", where, 0);
  out.epoch_median = optional_of<double>(from, "epoch_median", where);
  out.rank_test = optional_of<double>(from, "rank_test", where);
  out.checkpoint = optional_of<double>(from, "checkpoint", where);
  return out;
}

}  // namespace

Json metrics_json(const MetricValues& metrics) {
  Json out = Json::object();
  for (const auto& [name, value] : metrics) out[name] = std::isfinite(value) ? Json(value) : Json();
  return out;
}

MetricValues metrics_from(const Json& json, const std::string& where) {
  MetricValues out;
  for (const auto& [name, value] : json.items()) {
    out.emplace_back(name, value.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                           : json_get<double>(json, name, where));
  }
  return out;
}

Json slices_json(const std::vector<Slice>& slices) {
  Json out = Json::object();
  for (const Slice& slice : slices) {
    out[slice.name] = {{"n_users", slice.n_users},
                       {"n_pairs", slice.n_pairs},
                       {"metrics", metrics_json(slice.metrics)}};
  }
  return out;
}

std::vector<std::string> audit_notes(const Json& audit) {
  const auto notes = audit.find("notes");
  return notes != audit.end() && notes->is_array() ? notes->get<std::vector<std::string>>()
                                                   : std::vector<std::string>();
}

std::string RunResult::reported() const { return test ? "test" : valid ? "valid" : ""; }

const MetricValues* RunResult::metrics(const std::string& split) const {
  if (split == "test" && test) return &*test;
  if (split == "valid" && valid) return &*valid;
  return nullptr;
}

double RunResult::value(const std::string& split, const std::string& metric) const {
  const MetricValues* all = metrics(split);
  return value_of(all != nullptr ? *all : MetricValues(), metric);
}

const Slice* RunResult::slice(const std::string& name) const {
  const auto at = std::find_if(slices.begin(), slices.end(),
                               [&](const Slice& one) { return one.name == name; });
  return at == slices.end() ? nullptr : &*at;
}

Json RunResult::json() const {
  const bool lists = !recs.empty();
  Json out;
  if (lists) {
    out["recs"] = recs;
    out["sha256"] = sha256;
  } else {
    out["model"] = model;
  }
  out["dataset"] = dataset;
  out["seed"] = seed;
  out["protocol"] = protocol;
  if (!lists) {
    out["seen"] = seen;
    out["modalities"] = modalities;
    out["permute"] = permute;
    out["selection"] = {{"split", selection.split},
                        {"metric", selection.metric},
                        {"epoch", selection.epoch},
                        {"value", or_null(selection.value)}};
  }
  out["valid"] = valid ? metrics_json(*valid) : Json();
  out["test"] = test ? metrics_json(*test) : Json();
  out["slices"] = slices_json(slices);
  out["n_users"] = n_users;
  out["test_looks"] = test_looks;
  out["audit"] = audit;
  if (lists) {
    out["time_s"] = {{"eval", time_s.eval}};
    return out;
  }
  out["n_parameters"] = or_null(n_parameters);
  out["n_epochs"] = or_null(n_epochs);
  out["n_steps"] = or_null(n_steps);
  out["stopped_by"] = stopped_by;
  out["time_s"] = {{"train", or_null(time_s.train)},
                   {"eval", time_s.eval},
                   {"epoch_median", or_null(time_s.epoch_median)},
                   {"rank_test", or_null(time_s.rank_test)},
                   {"checkpoint", or_null(time_s.checkpoint)}};
  out["peak_rss_mb"] = or_null(peak_rss_mb);
  out["peak_gpu_mb"] = or_null(peak_gpu_mb);
  return out;
}

RunResult RunResult::read(const Json& json, const std::string& where) {
  RunResult out;
  out.recs = json_get<std::string>(json, "recs", where, "");
  if (out.recs.empty()) {
    out.model = json_get<std::string>(json, "model", where);
  } else {
    out.sha256 = json_get<std::string>(json, "sha256", where);
  }
  out.dataset = json_get<std::string>(json, "dataset", where);
  out.seed = json_get<int64_t>(json, "seed", where);
  out.protocol = json_get<std::string>(json, "protocol", where);
  out.seen = json_get<std::string>(json, "seen", where, "");
  out.modalities = texts_of(json, "modalities", where);
  out.permute = texts_of(json, "permute", where);
  out.selection = selection_from(json, where);
  out.valid = split_of(json, "valid", where);
  out.test = split_of(json, "test", where);
  out.slices = slices_from(json, where);
  out.n_users = json_get<int64_t>(json, "n_users", where, 0);
  out.test_looks = json_get<int64_t>(json, "test_looks", where, 0);
  out.audit = json_get<Json>(json, "audit", where, Json::object());
  texts_of(out.audit, "notes", where + ": audit");  // notes() reads them without asking
  out.n_parameters = optional_of<int64_t>(json, "n_parameters", where);
  out.n_epochs = optional_of<int64_t>(json, "n_epochs", where);
  out.n_steps = optional_of<int64_t>(json, "n_steps", where);
  out.stopped_by = json_get<std::string>(json, "stopped_by", where, "");
  out.time_s = times_from(json, where);
  out.peak_rss_mb = optional_of<int64_t>(json, "peak_rss_mb", where);
  out.peak_gpu_mb = optional_of<int64_t>(json, "peak_gpu_mb", where);
  return out;
}

RunResult read_results(const fs::path& folder) {
  const fs::path path = folder / "results.json";
  return RunResult::read(read_json(path), path.string());
}

std::string results_tsv(const RunResult& result) {
  std::string head = "model\tdataset\tseed\tprotocol\tseen\tsplit", rows;
  for (const char* split : {"valid", "test"}) {
    const MetricValues* metrics = result.metrics(split);
    if (metrics == nullptr) continue;
    const bool first = rows.empty();
    rows += fmt::format("{}\t{}\t{}\t{}\t{}\t{}", result.model, result.dataset, result.seed,
                        result.protocol, result.seen, split);
    const Json values = metrics_json(*metrics);
    for (const auto& [name, value] : values.items()) {
      if (first) head += "\t" + name;
      rows += "\t" + value.dump();
    }
    rows += "\n";
  }
  return head + "\n" + rows;
}

}  // namespace tessera
