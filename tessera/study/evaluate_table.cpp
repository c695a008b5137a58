#include <algorithm>
#include <cmath>

#include "tessera/study/evaluate_run.h"

namespace tessera {
namespace {

std::string cell(double value) { return std::isnan(value) ? "-" : fmt::format("{:.4f}", value); }

/// Metrics down, slices across, the protocol beside every row.
std::string metrics_table(const EvaluateResult& result) {
  const Evaluation& found = result.evaluation;
  std::vector<std::vector<std::string>> rows = {
      {"protocol", "metric", "all"}, {result.protocol, "users", std::to_string(found.n_users)}};
  for (const auto& [name, value] : found.metrics) {
    rows.push_back({result.protocol, name, cell(value)});
  }
  for (const Slice& slice : found.slices) {
    rows[0].push_back(slice.name);
    rows[1].push_back(std::to_string(slice.n_users));
    for (size_t j = 0; j < slice.metrics.size(); ++j) {
      rows[j + 2].push_back(cell(slice.metrics[j].second));
    }
  }
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const auto& row : rows) {
    text += fmt::format("{:<{}}  {:<{}}", row[0], widths[0], row[1], widths[1]);
    for (size_t c = 2; c < row.size(); ++c) text += fmt::format("  {:>{}}", row[c], widths[c]);
    text += "\n";
  }
  return text;
}

/// The audit, a fact a line.
void add_facts(const Json& facts, const std::string& before, std::string& text) {
  for (const auto& [key, value] : facts.items()) {
    std::string name = before + (key == "notes" ? "note" : key);
    std::replace(name.begin(), name.end(), '_', ' ');
    if (value.is_object()) {
      add_facts(value, name + ": ", text);
    } else {
      for (const Json& one : key == "notes" ? value : Json::array({value})) {
        text +=
            fmt::format("  {}: {}\n", name, one.is_string() ? one.get<std::string>() : one.dump());
      }
    }
  }
}

}  // namespace

std::string evaluate_text(const EvaluateResult& result) {
  std::string text =
      fmt::format("{} on {}, {} split", result.name, result.data->name, result.evaluation.split);
  if (result.seed) text += fmt::format(", seed {}", *result.seed);
  text += "\n" + metrics_table(result) + "audit\n";
  add_facts(result.evaluation.audit, "", text);
  if (const auto& sampled = result.sampled) {
    text += fmt::format(
        "\n{}: among drawn candidates, another quantity than the full ranking above; {} users, "
        "ideal of ndcg {}\n",
        sampled->name(), sampled->n_users, sampled->ideal());
    for (const auto& [name, value] : sampled->metrics) {
      text += fmt::format("{} {}  {}\n", sampled->name(), name, cell(value));
    }
  }
  if (!result.shuffled.empty()) {
    text += "\nhistories in random order: does the model read the order?\n";
  }
  for (const auto& [metric, value, change] : result.shuffled) {
    text += fmt::format("{:<14} {}  {}\n", metric, cell(value),
                        std::isnan(change) ? "-" : fmt::format("{:+.1f} %", 100 * change));
  }
  return text;
}

}  // namespace tessera
