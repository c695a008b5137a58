#include <cmath>

#include "tessera/base/error.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/study/tune.h"

namespace tessera {
namespace {

constexpr const char* kFinished = "finished";  // the state of a trial that came to an end

Json or_null(const std::optional<int64_t>& value) { return value ? Json(*value) : Json(); }

std::optional<int64_t> optional_from(const Json& json, const char* key, const std::string& where) {
  if (!json.contains(key) || json[key].is_null()) return {};
  return json_get<int64_t>(json, key, where);
}

std::vector<std::string> facts(const TuneResult& result) {
  std::string space;
  for (const auto& [name, values] : result.search) {
    space += fmt::format("{}{} in {}", space.empty() ? "" : ", ", name, escaped(values));
  }
  std::vector<std::string> out = {
      "command: " + escaped(result.command),
      fmt::format("tessera {}, protocol {}", escaped(result.tessera),
                  protocol_words(escaped(result.protocol))),
      fmt::format("dataset {}: split {}, split_sha256 {}", escaped(result.dataset),
                  escaped(result.split), escaped(result.split_sha256)),
      fmt::format("search: {} ({}, {} trials, seed {}), chosen by valid {} alone", space,
                  result.sampler, result.trials.size(), result.trial_seed, result.valid_metric)};
  if (!result.settings.empty()) {
    out.push_back("settings of every run: " + settings_words(result.settings));
  }
  out.push_back("looks at test in the trials: 0");
  const std::string seeds = fmt::format("{}", fmt::join(result.seeds, ", "));
  out.push_back(fmt::format("seeds of the winner: {}; looks at test: {}, one a run",
                            seeds.empty() ? "none" : seeds, result.test_looks));
  for (const auto& failure : result.failures) {
    out.push_back(fmt::format("note: the winner's seed {} is left out: {}", failure.seed,
                              escaped(failure.what)));
  }
  return out;
}

std::string tsv_head(const TuneResult& result) {
  std::string out;
  for (const auto& line : facts(result)) out += "# " + line + "\n";
  return out;
}

std::string cell(const Json& value) { return value.is_null() ? "" : line_text(value); }

Json trial_json(const TrialResult& trial, size_t number) {
  return {{"trial", number},
          {"settings", settings_object(trial.settings)},
          {"score", number_json(trial.score)},
          {"best_epoch", or_null(trial.best_epoch)},
          {"n_epochs", or_null(trial.n_epochs)},
          {"train_s", number_json(trial.train_s)},
          {"state", trial.failure.empty() ? kFinished : trial.failure}};
}

TrialResult trial_from(const Json& json, const std::string& where) {
  TrialResult out;
  out.settings = settings_from(json, "settings", where);
  out.score = json_get<double>(json, "score", where, Cost::kUnknown);
  out.best_epoch = optional_from(json, "best_epoch", where);
  out.n_epochs = optional_from(json, "n_epochs", where);
  out.train_s = json_get<double>(json, "train_s", where, Cost::kUnknown);
  const auto state = json_get<std::string>(json, "state", where);
  if (state != kFinished) out.failure = state;
  return out;
}

}  // namespace

Json TuneResult::json() const {
  Json space = Json::object();
  for (const auto& [name, values] : search) space[name] = values;
  Json out = {{"kind", "tune"},
              {"tessera", tessera},
              {"command", command},
              {"folder", folder},
              {"model", model},
              {"dataset", dataset},
              {"split", split},
              {"split_sha256", split_sha256},
              {"protocol", protocol},
              {"valid_metric", valid_metric},
              {"settings", settings_object(settings)},
              {"search", space},
              {"sampler", sampler},
              {"trial_seed", trial_seed},
              {"seeds", seeds},
              {"trials", Json::array()},
              {"sensitivity", Json::array()},
              {"winner", Json::object()}};
  for (const auto& trial : trials) out["trials"].push_back(trial_json(trial, out["trials"].size()));
  for (const auto& row : sensitivity) {
    out["sensitivity"].push_back({{"setting", row.setting},
                                  {"value", row.value},
                                  {"n", row.n},
                                  {"mean", number_json(row.mean)},
                                  {"sd", number_json(row.deviation)}});
  }
  if (winner) {
    out["winner"] = {{"trial", *winner},
                     {"settings", settings_object(trials.at(*winner).settings)},
                     {"score", number_json(trials.at(*winner).score)},
                     {"failures", failures_json(failures)}};
    if (compare) out["winner"]["compare"] = compare->json();
  }
  out["test_looks"] = test_looks;
  return out;
}

TuneResult TuneResult::read(const Json& json, const std::string& where) {
  TuneResult out;
  for (const auto& [key, text] : {std::pair{"tessera", &out.tessera},
                                  {"command", &out.command},
                                  {"folder", &out.folder},
                                  {"model", &out.model},
                                  {"dataset", &out.dataset},
                                  {"split", &out.split},
                                  {"split_sha256", &out.split_sha256},
                                  {"protocol", &out.protocol},
                                  {"valid_metric", &out.valid_metric},
                                  {"sampler", &out.sampler}}) {
    *text = json_get<std::string>(json, key, where);
  }
  out.settings = settings_from(json, "settings", where);
  const Json space = json_get<Json>(json, "search", where);
  for (const auto& [name, values] : space.items()) {
    out.search.emplace_back(name, json_get<std::string>(space, name, where));
  }
  out.trial_seed = json_get<int64_t>(json, "trial_seed", where);
  out.seeds = list_from<int64_t>(json, "seeds", where);
  for (const Json& trial : list_from<Json>(json, "trials", where)) {
    out.trials.push_back(trial_from(trial, fmt::format("{}: trial {}", where, out.trials.size())));
  }
  for (const Json& row : list_from<Json>(json, "sensitivity", where)) {
    out.sensitivity.push_back(
        {json_get<std::string>(row, "setting", where), json_get<std::string>(row, "value", where),
         json_get<int64_t>(row, "n", where), json_get<double>(row, "mean", where, Cost::kUnknown),
         json_get<double>(row, "sd", where, Cost::kUnknown)});
  }
  const Json winner = json_get<Json>(json, "winner", where);
  if (!winner.empty()) {
    const auto trial = json_get<int64_t>(winner, "trial", where);
    if (trial < 0 || static_cast<size_t>(trial) >= out.trials.size()) {
      throw data_error("{}: its winner is trial {} of {}", where, trial, out.trials.size());
    }
    out.winner = static_cast<size_t>(trial);
    out.failures = failures_from(winner, where);
    if (winner.contains("compare")) {
      out.compare = CompareResult::read(json_get<Json>(winner, "compare", where), where);
    }
  }
  out.test_looks = json_get<int64_t>(json, "test_looks", where);
  return out;
}

std::string trials_tsv(const TuneResult& result) {
  std::string out = tsv_head(result) + "trial";
  for (const auto& [name, values] : result.search) out += "\t" + name;
  out += fmt::format("\tvalid_{}\tbest_epoch\tn_epochs\ttrain_s\tstate\n", result.valid_metric);
  for (size_t t = 0; t < result.trials.size(); ++t) {
    const TrialResult& trial = result.trials[t];
    out += std::to_string(t);
    for (const auto& setting : trial.settings) out += "\t" + cell(setting.value);
    for (const Json& value : {number_json(trial.score), or_null(trial.best_epoch),
                              or_null(trial.n_epochs), number_json(trial.train_s)}) {
      out += "\t" + cell(value);
    }
    out += "\t" + (trial.failure.empty() ? kFinished : escaped(trial.failure)) + "\n";
  }
  return out;
}

std::string sensitivity_tsv(const TuneResult& result) {
  std::string out = tsv_head(result) + "setting\tvalue\tmean\tdeviation\ttrials\n";
  for (const auto& row : result.sensitivity) {
    out += fmt::format("{}\t{}\t{}\t{}\t{}\n", escaped(row.setting), escaped(row.value),
                       cell(number_json(row.mean)), cell(number_json(row.deviation)), row.n);
  }
  return out;
}

std::string tune_markdown(const TuneResult& result) {
  const std::string metric = published_metric(result.valid_metric);
  std::vector<std::vector<std::string>> rows(1);
  rows[0].emplace_back("trial");
  for (const auto& [name, values] : result.search) rows[0].push_back(name);
  for (const auto& head :
       {metric + " (valid)", std::string("best epoch"), std::string("train s")}) {
    rows[0].push_back(head);
  }
  for (size_t t = 0; t < result.trials.size(); ++t) {
    const TrialResult& trial = result.trials[t];
    std::vector<std::string> row = {std::to_string(t)};
    for (const auto& setting : trial.settings) row.push_back(line_text(setting.value));
    const std::string score =
        std::isnan(trial.score) ? "diverged" : number_cell(trial.score, "{:.4f}");
    row.push_back(result.winner == t ? "**" + score + "**" : score);
    row.push_back(trial.best_epoch ? std::to_string(*trial.best_epoch) : "-");
    row.push_back(number_cell(trial.train_s, "{:.1f}"));
    rows.push_back(std::move(row));
  }
  std::string out =
      fmt::format("### {} on {}: {} trials, protocol {}\n\n{}\n", escaped(result.model),
                  escaped(result.dataset), result.trials.size(), protocol_words(result.protocol),
                  markdown_table(rows));
  std::vector<std::vector<std::string>> effects = {
      {"setting", "value", metric + " (valid)", "trials"}};
  for (const auto& row : result.sensitivity) {
    effects.push_back({escaped(row.setting), escaped(row.value),
                       summary_cell({row.mean, row.deviation, {}}), std::to_string(row.n)});
  }
  out += "### Sensitivity: mean and deviation over the trials with a value\n\n" +
         markdown_table(effects) + "\n";
  if (result.winner && (result.compare || !result.failures.empty())) {
    out += fmt::format("### The winner: trial {}\n\n", *result.winner);
  }
  if (result.compare) {
    // The tables alone: what made them is told below for the whole search.
    for (const auto& table : result.compare->tables) {
      out += "#" + table_markdown(table, result.compare->protocol);
    }
  }
  for (const auto& line : facts(result)) out += "- " + line + "\n";
  return out;
}

}  // namespace tessera
