#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/eval/metrics.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/study/compare.h"

namespace tessera {
namespace {

struct CostColumn {
  const char *key, *head, *format;
};
constexpr CostColumn kCosts[] = {{"epoch_s", "s/epoch", "{:.2f}"},
                                 {"step_ms", "ms/step", "{:.2f}"},
                                 {"eval_s", "eval s", "{:.2f}"},
                                 {"best_s", "s to best", "{:.1f}"},
                                 {"peak_rss_mb", "peak MB", "{:.0f}"}};

std::string text(const Json& value) {
  return value.is_string() ? escaped(value.get<std::string>()) : value.dump();
}

std::string joined(const Json& list, const char* separator = ", ") {
  std::string out;
  for (const auto& one : list) out += (out.empty() ? "" : separator) + text(one);
  return out;
}

bool any_number(const Json& rows, const std::string& slice) {
  return std::any_of(rows.begin(), rows.end(), [&](const Json& row) {
    return row.contains(slice) && row[slice]["mean"].is_number();
  });
}

/// p in four decimals, small ones as a power of ten.
std::string p_cell(const Json& p) {
  if (!p.is_number()) return "-";
  const auto value = p.get<double>();
  return value > 0 && value < 1e-4 ? fmt::format("{:.0e}", value) : fmt::format("{:.4f}", value);
}

/// The cells of a dataset's table; `strong` marks the best mean of a column.
std::vector<std::vector<std::string>> cells(
    const Json& table, const std::string& plus_minus,
    const std::function<std::string(const std::string&)>& strong) {
  const Json& rows = table["rows"];
  const auto reported = table["reported"].get<std::string>();
  const std::string label = reported == "test" ? "" : " (" + reported + ")";
  std::vector<std::vector<std::string>> out(rows.size() + 1);
  const auto put = [&](const std::string& head, const std::string& metric,
                       const std::function<const Json*(const Json&)>& of) {
    const bool marks = rows.size() > 1 && parse_metric(metric).higher_is_better();
    double best = -1;
    for (const auto& row : rows) {
      const Json* summary = of(row);
      if (summary && (*summary)["mean"].is_number()) {
        best = std::max(best, (*summary)["mean"].get<double>());
      }
    }
    out[0].push_back(head);
    for (size_t r = 0; r < rows.size(); ++r) {
      const Json* summary = of(rows[r]);
      std::string cell = summary ? summary_cell(*summary, plus_minus) : "-";
      if (summary && marks && (*summary)["mean"].is_number() &&
          (*summary)["mean"].get<double>() == best) {
        cell = strong(cell);
      }
      out[r + 1].push_back(cell);
    }
  };
  out[0].emplace_back("model");
  for (size_t r = 0; r < rows.size(); ++r) out[r + 1].push_back(text(rows[r]["label"]));
  for (const auto& metric : table["metrics"]) {
    put(published_metric(text(metric)) + label, text(metric),
        [&](const Json& row) { return &row[reported][text(metric)]; });
  }
  const std::string cold = text(table["cold_metric"]);
  for (const auto& [slice, head] : {std::pair{"cold", "cold "}, {"cold_only", "cold-only "}}) {
    if (cold.empty() || (std::string(slice) == "cold_only" && !any_number(rows, slice))) continue;
    put(head + published_metric(cold) + label, cold,
        [&, slice = slice](const Json& row) -> const Json* {
          return row.contains(slice) ? &row[slice] : nullptr;
        });
  }
  for (const auto& column : kCosts) {
    out[0].emplace_back(column.head);
    for (size_t r = 0; r < rows.size(); ++r) {
      out[r + 1].push_back(number_cell(rows[r]["cost"][column.key], column.format));
    }
  }
  return out;
}

std::vector<std::vector<std::string>> comparison_cells(const Json& result) {
  const Json& all = result["comparisons"];
  std::vector<std::string> tests;
  for (const auto& one : all) {
    for (const auto& [test, p] : one["p"].items()) {
      if (std::find(tests.begin(), tests.end(), test) == tests.end()) tests.push_back(test);
    }
  }
  const bool several = result["tables"].size() > 1;
  std::vector<std::vector<std::string>> out(1);
  out[0] = {several ? "dataset: A - B" : "A - B", "metric", "difference", "95 % interval", "users"};
  for (const auto& test : tests) {
    out[0].push_back("p " + test);
    out[0].push_back("p " + test + ", " + text(result["correction"]));
  }
  for (const auto& one : all) {
    std::vector<std::string> row;
    row.push_back((several ? text(one["dataset"]) + ": " : "") + text(one["a"]) + " - " +
                  text(one["b"]));
    row.push_back(published_metric(text(one["metric"])));
    row.push_back(number_cell(one["mean_difference"], "{:+.4f}"));
    row.push_back(fmt::format("[{}, {}]", number_cell(one["bootstrap_95"][0], "{:+.4f}"),
                              number_cell(one["bootstrap_95"][1], "{:+.4f}")));
    row.push_back(one["n_users"].dump());
    for (const auto& test : tests) {
      row.push_back(one["p"].contains(test) ? p_cell(one["p"][test]) : "-");
      row.push_back(one.contains("p_adjusted") && one["p_adjusted"].contains(test)
                        ? p_cell(one["p_adjusted"][test])
                        : "-");
    }
    out.push_back(std::move(row));
  }
  return out;
}

std::string title(const Json& table, const Json& result) {
  return fmt::format("{}: {}, {} users, protocol {}", text(table["dataset"]),
                     text(table["reported"]), joined(table["n_users"], " or "),
                     protocol_words(text(result["protocol"])));
}

/// What made a table: one fact a line.
std::vector<std::string> provenance(const Json& result) {
  std::vector<std::string> out = {"command: " + text(result["command"]),
                                  "tessera " + text(result["tessera"]) + ", protocol " +
                                      protocol_words(text(result["protocol"]))};
  if (result.contains("asked_by")) out.push_back("tests asked for by: " + text(result["asked_by"]));
  for (const auto& table : result["tables"]) {
    out.push_back(fmt::format("dataset {}: split {}, split_sha256 {}, epochs chosen by valid {}",
                              text(table["dataset"]), text(table["split"]),
                              text(table["split_sha256"]), text(table["valid_metric"])));
  }
  out.push_back("seeds: " + joined(result["seeds"]));
  if (!result["settings"].empty()) {
    std::string all;
    for (const auto& [name, value] : result["settings"].items()) {
      all += (all.empty() ? "" : ", ") + name + "=" + text(value);
    }
    out.push_back("settings of all rows that know them: " + all);
  }
  int64_t n_runs = 0;
  for (const auto& table : result["tables"]) {
    for (const auto& row : table["rows"]) n_runs += static_cast<int64_t>(row["runs"].size());
  }
  out.push_back(fmt::format("looks at test: {} in {} runs", result["test_looks"].dump(), n_runs));
  return out;
}

/// How many comparisons each test is corrected over: all that have a value of it.
std::string corrected_words(const Json& result) {
  std::string out;
  bool fewer = false;
  for (const auto& [test, n] : result["corrected_over"].items()) {
    out += fmt::format("{}M = {} for {}", out.empty() ? "" : ", ", n.dump(), test);
    fewer = fewer || n != result["n_comparisons"];
  }
  return out + (fewer ? "; those left out have no value of the test" : "");
}

std::string same_for_all_seeds(const Json& result) {
  std::vector<std::string> labels;
  for (const auto& one : result["comparisons"]) {
    if (!one.contains("same_for_all_seeds")) continue;
    for (const auto& label : one["same_for_all_seeds"]) {
      if (std::find(labels.begin(), labels.end(), text(label)) == labels.end()) {
        labels.push_back(text(label));
      }
    }
  }
  return fmt::format("{}", fmt::join(labels, ", "));
}

std::vector<std::string> explanations(const Json& result) {
  std::vector<std::string> out;
  const bool several = result["seeds"].size() > 1;
  if (several) out.emplace_back("Mean and sample standard deviation over seeds.");
  if (result["comparisons"].empty()) return out;
  out.push_back(fmt::format(
      "Tests are paired by user, two-sided, each user's value averaged over the seeds first; the "
      "interval is a percentile bootstrap of 10,000 resamples of users. They do not see the "
      "randomness of training{}.",
      result["seeds"].size() >= 5 ? ", which the test over seeds does" : ""));
  out.push_back(fmt::format(
      "Each test is corrected ({}) over the {} comparisons of this table: {}.",
      text(result["correction"]), result["n_comparisons"].dump(), corrected_words(result)));
  if (const auto same = same_for_all_seeds(result); !same.empty()) {
    out.push_back(fmt::format(
        "No test over the seeds against a row whose value is the same for all of them: {}.", same));
  }
  return out;
}

std::string latex(const std::string& plain) {
  std::string out;
  for (const char c : plain) {
    if (c == '\\') {
      out += "\\textbackslash{}";
    } else if (c == '~' || c == '^') {
      out += fmt::format("\\{}{{}}", c);
    } else {
      if (std::string_view("&%$#_{}").find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
  }
  return out;
}

std::string latex_tabular(const std::vector<std::vector<std::string>>& rows, bool heads_plain) {
  std::string out = "\\begin{tabular}{l" + std::string(rows[0].size() - 1, 'r') + "}\n\\toprule\n";
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const bool plain = heads_plain || r == 0 || c == 0;
      line += (c == 0 ? "" : " & ") + (plain ? latex(rows[r][c]) : rows[r][c]);
    }
    out += line + " \\\\\n";
    if (r == 0) out += "\\midrule\n";
  }
  return out + "\\bottomrule\n\\end{tabular}\n";
}

std::string tsv_value(const Json& value) { return value.is_null() ? "" : text(value); }

std::string tsv_head(const Json& result) {
  std::string out;
  for (const auto& line : provenance(result)) out += "# " + line + "\n";
  return out;
}

}  // namespace

std::string compare_markdown(const Json& result) {
  std::string out;
  for (const auto& table : result["tables"]) {
    out += fmt::format("### {}\n\n", title(table, result));
    out += markdown_table(
        cells(table, " ± ", [](const std::string& cell) { return "**" + cell + "**"; }));
    out += "\n";
    for (const auto& note : table["notes"]) out += "- note: " + text(note) + "\n";
    if (!table["notes"].empty()) out += "\n";
  }
  if (!result["comparisons"].empty()) {
    out += "### Comparisons\n\n" + markdown_table(comparison_cells(result)) + "\n";
  }
  for (const auto& line : explanations(result)) out += line + "\n";
  if (!explanations(result).empty()) out += "\n";
  for (const auto& line : provenance(result)) out += "- " + line + "\n";
  return out;
}

std::string compare_latex(const Json& result) {
  std::string out;
  for (const auto& line : provenance(result)) out += "% " + line + "\n";
  out += "% needs \\usepackage{booktabs}\n";
  for (const auto& table : result["tables"]) {
    std::string notes;
    for (const auto& note : table["notes"]) notes += " " + text(note) + ".";
    out += "\\begin{table}\n\\centering\n\\caption{" + latex(title(table, result)) + ", seeds " +
           joined(result["seeds"]) + ", split \\texttt{" +
           text(table["split_sha256"]).substr(0, 12) +
           "}, looks at test: " + result["test_looks"].dump() + "." + latex(notes) + "}\n";
    out += latex_tabular(
        cells(table, " $\\pm$ ", [](const std::string& cell) { return "\\textbf{" + cell + "}"; }),
        false);
    out += "\\end{table}\n";
  }
  if (!result["comparisons"].empty()) {
    std::string words;
    for (const auto& line : explanations(result)) words += (words.empty() ? "" : " ") + line;
    out += "\\begin{table}\n\\centering\n\\caption{" + latex("Comparisons. " + words) + "}\n" +
           latex_tabular(comparison_cells(result), true) + "\\end{table}\n";
  }
  return out;
}

std::string compare_tsv(const Json& result) {
  std::vector<std::string> metrics;
  for (const auto& table : result["tables"]) {
    for (const auto& metric : table["metrics"]) {
      if (std::find(metrics.begin(), metrics.end(), text(metric)) == metrics.end()) {
        metrics.push_back(text(metric));
      }
    }
  }
  std::string out = tsv_head(result);
  out += "dataset\tsplit_sha256\tprotocol\tseen\treported\trow\tmodel\tseeds\ttest_looks";
  for (const char* split : {"valid", "test"}) {
    for (const auto& metric : metrics) {
      out += fmt::format("\t{0}_{1}_mean\t{0}_{1}_sd", split, metric);
    }
  }
  out += "\tcold_metric\tcold_mean\tcold_sd\tcold_only_mean\tcold_only_sd\tn_parameters";
  out += "\ttrain_s";
  for (const auto& column : kCosts) out += fmt::format("\t{}", column.key);
  out += "\n";
  for (const auto& table : result["tables"]) {
    for (const auto& row : table["rows"]) {
      out += fmt::format(
          "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}", text(table["dataset"]), text(table["split_sha256"]),
          text(result["protocol"]), seen_words(text(result["protocol"])), text(table["reported"]),
          text(row["label"]), row.contains("model") ? text(row["model"]) : joined(row["recs"], "+"),
          joined(row["seeds"], ","), row["test_looks"].dump());
      for (const char* split : {"valid", "test"}) {
        for (const auto& metric : metrics) {
          const bool has = row[split].contains(metric);
          out += "\t" + (has ? tsv_value(row[split][metric]["mean"]) : "") + "\t" +
                 (has ? tsv_value(row[split][metric]["sd"]) : "");
        }
      }
      out += "\t" + text(table["cold_metric"]);
      for (const char* slice : {"cold", "cold_only"}) {
        for (const char* key : {"mean", "sd"}) {
          out += "\t" + (row.contains(slice) ? tsv_value(row[slice][key]) : "");
        }
      }
      out += "\t" + tsv_value(row["cost"]["n_parameters"]);
      out += "\t" + tsv_value(row["cost"]["train_s"]);
      for (const auto& column : kCosts) out += "\t" + tsv_value(row["cost"][column.key]);
      out += "\n";
    }
  }
  return out;
}

std::string comparisons_tsv(const Json& result) {
  std::string out = tsv_head(result);
  out += fmt::format("# {} comparisons, correction {}\n", result["n_comparisons"].dump(),
                     text(result["correction"]));
  for (const auto& [test, n] : result["corrected_over"].items()) {
    out += fmt::format("# {}: corrected over {} comparisons\n", test, n.dump());
  }
  if (const auto same = same_for_all_seeds(result); !same.empty()) {
    out += "# the same for all seeds, no test over them: " + same + "\n";
  }
  out += "dataset\ta\tb\tmetric\tn_users\tmean_difference\tlow_95\thigh_95\ttest\tp\tp_adjusted\n";
  for (const auto& one : result["comparisons"]) {
    for (const auto& [test, p] : one["p"].items()) {
      out += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n", text(one["dataset"]),
                         text(one["a"]), text(one["b"]), text(one["metric"]), one["n_users"].dump(),
                         tsv_value(one["mean_difference"]), tsv_value(one["bootstrap_95"][0]),
                         tsv_value(one["bootstrap_95"][1]), test, tsv_value(p),
                         one.contains("p_adjusted") && one["p_adjusted"].contains(test)
                             ? tsv_value(one["p_adjusted"][test])
                             : "");
    }
  }
  return out;
}

}  // namespace tessera
