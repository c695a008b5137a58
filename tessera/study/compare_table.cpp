#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/eval/metrics.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/study/compare.h"

namespace tessera {
namespace {

struct CostColumn {
  double Cost::* of;
  const char *head, *format;
};
constexpr CostColumn kCosts[] = {{&Cost::epoch_s, "s/epoch", "{:.2f}"},
                                 {&Cost::step_ms, "ms/step", "{:.2f}"},
                                 {&Cost::eval_s, "eval s", "{:.2f}"},
                                 {&Cost::best_s, "s to best", "{:.1f}"},
                                 {&Cost::peak_rss_mb, "peak MB", "{:.0f}"}};

template <typename List>
std::string joined(const List& list, const char* separator = ", ") {
  return fmt::format("{}", fmt::join(list, separator));
}

std::string joined(const std::vector<std::string>& list, const char* separator = ", ") {
  std::string out;
  for (const auto& one : list) out += (out.empty() ? "" : separator) + escaped(one);
  return out;
}

/// p in four decimals, small ones as a power of ten.
std::string p_cell(double p) {
  return p > 0 && p < 1e-4 ? fmt::format("{:.0e}", p) : number_cell(p, "{:.4f}");
}

/// The cells of a dataset's table; `strong` marks the best mean of a column.
std::vector<std::vector<std::string>> cells(
    const ComparedTable& table, const std::string& plus_minus,
    const std::function<std::string(const std::string&)>& strong) {
  const auto& rows = table.rows;
  const std::string label = table.reported == "test" ? "" : " (" + table.reported + ")";
  std::vector<std::vector<std::string>> out(rows.size() + 1);
  const auto put = [&](const std::string& head, const std::string& metric,
                       const std::function<Summary(const ComparedRow&)>& of) {
    const bool marks = rows.size() > 1 && parse_metric(metric).higher_is_better();
    double best = -1;
    for (const auto& row : rows) best = std::fmax(best, of(row).mean);
    out[0].push_back(head);
    for (size_t r = 0; r < rows.size(); ++r) {
      const Summary summary = of(rows[r]);
      const std::string cell = summary_cell(summary, plus_minus);
      out[r + 1].push_back(marks && summary.mean == best ? strong(cell) : cell);
    }
  };
  out[0].emplace_back("model");
  for (size_t r = 0; r < rows.size(); ++r) out[r + 1].push_back(escaped(rows[r].label));
  for (const auto& metric : table.metrics) {
    put(published_metric(metric) + label, metric,
        [&](const ComparedRow& row) { return row.of(table.reported, metric); });
  }
  for (const auto& [slice, head] :
       {std::pair<std::string, std::string>{"cold", "cold "}, {"cold_only", "cold-only "}}) {
    const auto of = [&, name = slice](const ComparedRow& row) { return row.in_slice(name); };
    const bool any = std::any_of(rows.begin(), rows.end(),
                                 [&](const auto& row) { return std::isfinite(of(row).mean); });
    if (table.cold_metric.empty() || (slice == "cold_only" && !any)) continue;
    put(head + published_metric(table.cold_metric) + label, table.cold_metric, of);
  }
  for (const auto& column : kCosts) {
    out[0].emplace_back(column.head);
    for (size_t r = 0; r < rows.size(); ++r) {
      out[r + 1].push_back(number_cell(rows[r].cost.*column.of, column.format));
    }
  }
  return out;
}

std::vector<std::vector<std::string>> comparison_cells(const CompareResult& result) {
  const bool several = result.tables.size() > 1;
  std::vector<std::vector<std::string>> out(1);
  out[0] = {several ? "dataset: A - B" : "A - B", "metric", "difference", "95 % interval", "users"};
  for (const auto& [test, n] : result.corrected_over) {
    out[0].push_back("p " + test);
    out[0].push_back("p " + test + ", " + escaped(result.correction));
  }
  for (const auto& one : result.comparisons) {
    std::vector<std::string> row;
    row.push_back((several ? escaped(one.dataset) + ": " : "") + escaped(one.a) + " - " +
                  escaped(one.b));
    row.push_back(published_metric(one.metric));
    row.push_back(number_cell(one.mean_difference, "{:+.4f}"));
    row.push_back(fmt::format("[{}, {}]", number_cell(one.bootstrap_95.low, "{:+.4f}"),
                              number_cell(one.bootstrap_95.high, "{:+.4f}")));
    row.push_back(std::to_string(one.n_users));
    for (const auto& [test, n] : result.corrected_over) {
      const auto found = std::find_if(one.p.begin(), one.p.end(),
                                      [&name = test](const PValue& p) { return p.test == name; });
      row.push_back(found == one.p.end() ? "-" : p_cell(found->p));
      row.push_back(found == one.p.end() ? "-" : p_cell(found->adjusted));
    }
    out.push_back(std::move(row));
  }
  return out;
}

std::string title(const ComparedTable& table, const std::string& protocol) {
  return fmt::format("{}: {}, {} users, protocol {}", escaped(table.dataset), table.reported,
                     joined(table.n_users, " or "), protocol_words(escaped(protocol)));
}

/// What made a table: one fact a line.
std::vector<std::string> provenance(const CompareResult& result) {
  std::vector<std::string> out = {"command: " + escaped(result.command),
                                  "tessera " + escaped(result.tessera) + ", protocol " +
                                      protocol_words(escaped(result.protocol))};
  if (!result.asked_by.empty()) out.push_back("tests asked for by: " + escaped(result.asked_by));
  size_t n_runs = 0;
  for (const auto& table : result.tables) {
    out.push_back(fmt::format("dataset {}: split {}, split_sha256 {}, epochs chosen by valid {}",
                              escaped(table.dataset), escaped(table.split),
                              escaped(table.split_sha256), escaped(table.valid_metric)));
    for (const auto& row : table.rows) n_runs += row.runs.size();
  }
  out.push_back("seeds: " + joined(result.seeds));
  if (!result.settings.empty()) {
    out.push_back("settings of all rows that know them: " + settings_words(result.settings));
  }
  out.push_back(fmt::format("looks at test: {} in {} runs", result.test_looks, n_runs));
  return out;
}

/// How many comparisons each test is corrected over: all that have a value of it.
std::string corrected_words(const CompareResult& result) {
  std::string out;
  bool fewer = false;
  for (const auto& [test, n] : result.corrected_over) {
    out += fmt::format("{}M = {} for {}", out.empty() ? "" : ", ", n, test);
    fewer = fewer || n != static_cast<int64_t>(result.comparisons.size());
  }
  return out + (fewer ? "; those left out have no value of the test" : "");
}

std::string same_for_all_seeds(const CompareResult& result) {
  std::vector<std::string> labels;
  for (const auto& one : result.comparisons) {
    for (const auto& label : one.same_for_all_seeds) {
      if (std::find(labels.begin(), labels.end(), label) == labels.end()) labels.push_back(label);
    }
  }
  return joined(labels);
}

std::vector<std::string> explanations(const CompareResult& result) {
  std::vector<std::string> out;
  const bool several = result.seeds.size() > 1;
  if (several) out.emplace_back("Mean and sample standard deviation over seeds.");
  if (result.comparisons.empty()) return out;
  out.push_back(fmt::format(
      "Tests are paired by user, two-sided, each user's value averaged over the seeds first; the "
      "interval is a percentile bootstrap of 10,000 resamples of users. They do not see the "
      "randomness of training{}.",
      result.seeds.size() >= 5 ? ", which the test over seeds does" : ""));
  out.push_back(
      fmt::format("Each test is corrected ({}) over the {} comparisons of this table: {}.",
                  escaped(result.correction), result.comparisons.size(), corrected_words(result)));
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

/// A double in full, nothing for NaN.
std::string tsv_value(double value) { return std::isnan(value) ? "" : Json(value).dump(); }

std::string tsv_head(const CompareResult& result) {
  std::string out;
  for (const auto& line : provenance(result)) out += "# " + line + "\n";
  return out;
}

}  // namespace

std::string table_markdown(const ComparedTable& table, const std::string& protocol) {
  return fmt::format("### {}\n\n", title(table, protocol)) +
         markdown_table(
             cells(table, " ± ", [](const std::string& cell) { return "**" + cell + "**"; })) +
         "\n";
}

std::string compare_markdown(const CompareResult& result) {
  std::string out;
  for (const auto& table : result.tables) {
    out += table_markdown(table, result.protocol);
    for (const auto& note : table.notes) out += "- note: " + escaped(note) + "\n";
    if (!table.notes.empty()) out += "\n";
  }
  if (!result.comparisons.empty()) {
    out += "### Comparisons\n\n" + markdown_table(comparison_cells(result)) + "\n";
  }
  for (const auto& line : explanations(result)) out += line + "\n";
  if (!explanations(result).empty()) out += "\n";
  for (const auto& line : provenance(result)) out += "- " + line + "\n";
  return out;
}

std::string compare_latex(const CompareResult& result) {
  std::string out;
  for (const auto& line : provenance(result)) out += "% " + line + "\n";
  out += "% needs \\usepackage{booktabs}\n";
  for (const auto& table : result.tables) {
    std::string notes;
    for (const auto& note : table.notes) notes += " " + escaped(note) + ".";
    out += "\\begin{table}\n\\centering\n\\caption{" + latex(title(table, result.protocol)) +
           ", seeds " + joined(result.seeds) + ", split \\texttt{" +
           escaped(table.split_sha256).substr(0, 12) +
           "}, looks at test: " + std::to_string(result.test_looks) + "." + latex(notes) + "}\n";
    out += latex_tabular(
        cells(table, " $\\pm$ ", [](const std::string& cell) { return "\\textbf{" + cell + "}"; }),
        false);
    out += "\\end{table}\n";
  }
  if (!result.comparisons.empty()) {
    std::string words;
    for (const auto& line : explanations(result)) words += (words.empty() ? "" : " ") + line;
    out += "\\begin{table}\n\\centering\n\\caption{" + latex("Comparisons. " + words) + "}\n" +
           latex_tabular(comparison_cells(result), true) + "\\end{table}\n";
  }
  return out;
}

std::string compare_tsv(const CompareResult& result) {
  std::vector<std::string> metrics;
  for (const auto& table : result.tables) {
    for (const auto& metric : table.metrics) {
      if (std::find(metrics.begin(), metrics.end(), metric) == metrics.end()) {
        metrics.push_back(metric);
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
  for (const auto& [name, of] : kCostNames) {
    if (of != &Cost::n_parameters && of != &Cost::train_s) out += fmt::format("\t{}", name);
  }
  out += "\n";
  for (const auto& table : result.tables) {
    for (const auto& row : table.rows) {
      out += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}", escaped(table.dataset),
                         escaped(table.split_sha256), escaped(result.protocol),
                         seen_words(result.protocol), table.reported, escaped(row.label),
                         row.lists.empty() ? escaped(row.model) : joined(row.lists, "+"),
                         joined(row.seeds, ","), row.test_looks);
      const auto put = [&](const Summary& one) {
        out += "\t" + tsv_value(one.mean) + "\t" + tsv_value(one.deviation);
      };
      for (const char* split : {"valid", "test"}) {
        for (const auto& metric : metrics) put(row.of(split, metric));
      }
      out += "\t" + escaped(table.cold_metric);
      for (const char* slice : {"cold", "cold_only"}) put(row.in_slice(slice));
      out += "\t" + tsv_value(row.cost.n_parameters) + "\t" + tsv_value(row.cost.train_s);
      for (const auto& column : kCosts) out += "\t" + tsv_value(row.cost.*column.of);
      out += "\n";
    }
  }
  return out;
}

std::string comparisons_tsv(const CompareResult& result) {
  std::string out = tsv_head(result);
  out += fmt::format("# {} comparisons, correction {}\n", result.comparisons.size(),
                     escaped(result.correction));
  for (const auto& [test, n] : result.corrected_over) {
    out += fmt::format("# {}: corrected over {} comparisons\n", test, n);
  }
  if (const auto same = same_for_all_seeds(result); !same.empty()) {
    out += "# the same for all seeds, no test over them: " + same + "\n";
  }
  out += "dataset\ta\tb\tmetric\tn_users\tmean_difference\tlow_95\thigh_95\ttest\tp\tp_adjusted\n";
  for (const auto& one : result.comparisons) {
    for (const auto& value : one.p) {
      out += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\n", escaped(one.dataset),
                         escaped(one.a), escaped(one.b), escaped(one.metric), one.n_users,
                         tsv_value(one.mean_difference), tsv_value(one.bootstrap_95.low),
                         tsv_value(one.bootstrap_95.high), value.test, tsv_value(value.p),
                         tsv_value(value.adjusted));
    }
  }
  return out;
}

}  // namespace tessera
