#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/study/compare.h"

namespace tessera {
namespace {

constexpr const char* kSplits[] = {"valid", "test"};
constexpr const char* kSlices[] = {"cold", "cold_only"};

Json row_json(const ComparedRow& row) {
  Json out = {{"label", row.label}};
  if (row.lists.empty()) {
    out["model"] = row.model;
    out["settings"] = settings_object(row.settings);
  } else {
    out["recs"] = row.lists;
  }
  out["seeds"] = row.seeds;
  for (const char* split : kSplits) {
    out[split] = Json::object();
    const auto found = row.metrics.find(split);
    if (found == row.metrics.end()) continue;
    for (const auto& [metric, summary] : found->second) out[split][metric] = summary_json(summary);
  }
  out["selection"] = {{"metric", row.selecting}};
  out["selection"].update(summary_json(row.selection));
  out["best_epochs"] = Json::array();
  for (const double epoch : row.best_epochs) out["best_epochs"].push_back(number_json(epoch));
  for (const auto& [slice, summary] : row.by_slice) out[slice] = summary_json(summary);
  out["cost"] = Json::object();
  for (const auto& [name, of] : kCostNames) out["cost"][name] = number_json(row.cost.*of);
  out["test_looks"] = row.test_looks;
  out["failures"] = failures_json(row.failures);
  out["runs"] = row.runs;
  return out;
}

ComparedRow row_from(const Json& json, const std::string& where) {
  ComparedRow out;
  out.label = json_get<std::string>(json, "label", where);
  const std::string here = where + ": row '" + out.label + "'";
  out.model = json_get<std::string>(json, "model", here, "");
  if (out.model.empty()) {
    out.lists = list_from<std::string>(json, "recs", here);
  } else if (json.contains("settings")) {
    out.settings = settings_from(json, "settings", here);
  }
  out.seeds = list_from<int64_t>(json, "seeds", here);
  for (const char* split : kSplits) {
    const Json metrics = json_get<Json>(json, split, here);
    for (const auto& [metric, summary] : metrics.items()) {
      out.metrics[split].emplace_back(metric, summary_from(summary, here + ": " + metric));
    }
  }
  if (json.contains("selection")) {
    const Json selection = json_get<Json>(json, "selection", here);
    out.selecting = json_get<std::string>(selection, "metric", here);
    out.selection = summary_from(selection, here);
    out.best_epochs = list_from<double>(json, "best_epochs", here);
  }
  for (const char* slice : kSlices) {
    if (json.contains(slice)) out.by_slice[slice] = summary_from(json[slice], here);
  }
  const Json cost = json_get<Json>(json, "cost", here);
  for (const auto& [name, of] : kCostNames) {
    out.cost.*of = json_get<double>(cost, name, here, Cost::kUnknown);
  }
  out.test_looks = json_get<int64_t>(json, "test_looks", here);
  out.failures = failures_from(json, here);
  out.runs = list_from<std::string>(json, "runs", here);
  return out;
}

Json table_json(const ComparedTable& table) {
  Json out = {{"dataset", table.dataset},
              {"split", table.split},
              {"split_sha256", table.split_sha256},
              {"reported", table.reported},
              {"metrics", table.metrics},
              {"cold_metric", table.cold_metric},
              {"test_metric", table.test_metric},
              {"valid_metric", table.valid_metric},
              {"rows", Json::array()}};
  for (const auto& row : table.rows) out["rows"].push_back(row_json(row));
  out["n_users"] = table.n_users;
  out["notes"] = table.notes;
  return out;
}

ComparedTable table_from(const Json& json, const std::string& where) {
  ComparedTable out;
  for (const auto& [key, text] : {std::pair{"dataset", &out.dataset},
                                  {"split", &out.split},
                                  {"split_sha256", &out.split_sha256},
                                  {"reported", &out.reported},
                                  {"cold_metric", &out.cold_metric},
                                  {"test_metric", &out.test_metric},
                                  {"valid_metric", &out.valid_metric}}) {
    *text = json_get<std::string>(json, key, where);
  }
  out.metrics = list_from<std::string>(json, "metrics", where);
  for (const Json& row : list_from<Json>(json, "rows", where)) {
    out.rows.push_back(row_from(row, where + ": " + out.dataset));
  }
  for (const int64_t n : list_from<int64_t>(json, "n_users", where)) out.n_users.insert(n);
  for (const auto& note : list_from<std::string>(json, "notes", where)) out.notes.insert(note);
  return out;
}

Json comparison_json(const Comparison& one) {
  Json out = {
      {"dataset", one.dataset},
      {"a", one.a},
      {"b", one.b},
      {"metric", one.metric},
      {"n_users", one.n_users},
      {"mean_difference", number_json(one.mean_difference)},
      {"bootstrap_95", {number_json(one.bootstrap_95.low), number_json(one.bootstrap_95.high)}},
      {"p", Json::object()}};
  for (const auto& value : one.p) out["p"][value.test] = number_json(value.p);
  if (!one.same_for_all_seeds.empty()) out["same_for_all_seeds"] = one.same_for_all_seeds;
  if (one.n_seeds > 0) out["n_seeds"] = one.n_seeds;
  for (const auto& value : one.p) out["p_adjusted"][value.test] = number_json(value.adjusted);
  return out;
}

Comparison comparison_from(const Json& json, const std::string& where) {
  Comparison out;
  out.dataset = json_get<std::string>(json, "dataset", where);
  out.a = json_get<std::string>(json, "a", where);
  out.b = json_get<std::string>(json, "b", where);
  out.metric = json_get<std::string>(json, "metric", where);
  out.n_users = json_get<int64_t>(json, "n_users", where);
  out.mean_difference = json_get<double>(json, "mean_difference", where, Cost::kUnknown);
  const auto ends = list_from<double>(json, "bootstrap_95", where);
  if (ends.size() != 2) throw data_error("{}: 'bootstrap_95' must be two numbers", where);
  out.bootstrap_95 = {ends[0], ends[1]};
  const Json p = json_get<Json>(json, "p", where);
  const Json adjusted = json_get<Json>(json, "p_adjusted", where, Json::object());
  for (const auto& [test, value] : p.items()) {
    out.p.push_back({test, json_get<double>(p, test, where, Cost::kUnknown),
                     json_get<double>(adjusted, test, where, Cost::kUnknown)});
  }
  if (json.contains("same_for_all_seeds")) {
    out.same_for_all_seeds = list_from<std::string>(json, "same_for_all_seeds", where);
  }
  out.n_seeds = json_get<int64_t>(json, "n_seeds", where, 0);
  return out;
}

}  // namespace

Summary ComparedRow::of(const std::string& split, const std::string& metric) const {
  const auto found = metrics.find(split);
  if (found == metrics.end()) return {};
  const auto at = std::find_if(found->second.begin(), found->second.end(),
                               [&](const auto& one) { return one.first == metric; });
  return at == found->second.end() ? Summary() : at->second;
}

Summary ComparedRow::in_slice(const std::string& name) const {
  const auto found = by_slice.find(name);
  return found == by_slice.end() ? Summary() : found->second;
}

Json CompareResult::json() const {
  Json out = {{"kind", "compare"},
              {"tessera", tessera},
              {"command", command},
              {"folder", folder},
              {"protocol", protocol},
              {"seeds", seeds},
              {"settings", settings_object(settings)},
              {"tests", tests},
              {"correction", correction},
              {"tables", Json::array()}};
  for (const auto& table : tables) out["tables"].push_back(table_json(table));
  out["n_comparisons"] = comparisons.size();
  out["corrected_over"] = Json::object();
  for (const auto& [test, n] : corrected_over) out["corrected_over"][test] = n;
  out["comparisons"] = Json::array();
  for (const auto& one : comparisons) out["comparisons"].push_back(comparison_json(one));
  out["test_looks"] = test_looks;
  if (!asked_by.empty()) out["asked_by"] = asked_by;
  return out;
}

CompareResult CompareResult::read(const Json& json, const std::string& where) {
  CompareResult out;
  for (const auto& [key, text] : {std::pair{"tessera", &out.tessera},
                                  {"command", &out.command},
                                  {"folder", &out.folder},
                                  {"protocol", &out.protocol},
                                  {"correction", &out.correction}}) {
    *text = json_get<std::string>(json, key, where);
  }
  out.seeds = list_from<int64_t>(json, "seeds", where);
  out.settings = settings_from(json, "settings", where);
  out.tests = list_from<std::string>(json, "tests", where);
  for (const Json& table : list_from<Json>(json, "tables", where)) {
    out.tables.push_back(table_from(table, where));
  }
  const Json over = json_get<Json>(json, "corrected_over", where);
  for (const auto& [test, n] : over.items()) {
    out.corrected_over.emplace_back(test, json_get<int64_t>(over, test, where));
  }
  for (const Json& one : list_from<Json>(json, "comparisons", where)) {
    out.comparisons.push_back(comparison_from(one, where));
  }
  out.test_looks = json_get<int64_t>(json, "test_looks", where);
  out.asked_by = json_get<std::string>(json, "asked_by", where, "");
  return out;
}

}  // namespace tessera
