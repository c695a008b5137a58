#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tessera/eval/statistics.h"
#include "tessera/study/study.h"

namespace tessera {

/// A line of a comparison: a model with settings of its own, or lists that anyone made, a file a
/// seed.
struct CompareRow {
  std::string label, model;
  Settings settings;
  std::vector<std::string> lists;
  bool bare = false;  ///< nothing but a model's name was typed
};

/// Reads "BM3,mine=BM3[dropout=0.3,modalities=image+audio],theirs=recs:a.tsv+b.tsv". Labels are
/// distinct. Exit 2 for what is not of that form, and for unknown models.
std::vector<CompareRow> parse_rows(const std::string& text);

/// `row`, and one more for each further member of its model's ablation set.
std::vector<CompareRow> with_ablations(const CompareRow& row,
                                       const std::vector<std::string>& modalities);

struct CompareRequest {
  std::string rows;               ///< as typed
  bool ablations = false;         ///< bare models bring their ablation set
  std::vector<std::string> runs;  ///< instead: [label=]run folders that are there already
  std::vector<std::string> datasets;
  std::vector<int64_t> seeds = {999, 1000, 1001};
  Settings settings;             ///< of all rows whose model knows them
  std::filesystem::path output;  ///< empty: runs/<time>_compare; with `runs`: nothing is written
  std::filesystem::path resume;  ///< a study to go on with: everything above comes from it
  std::vector<std::string> tests = {"t", "wilcoxon"};
  std::string correct = "holm";
  std::string test_metric;  ///< empty: the metric that selects
  std::string against;      ///< label of the row that the others are tested against; empty: the
                            ///< first; "all": every pair
  Surroundings around;
};

/// A row of a table: a model's runs, or somebody's lists, over the seeds.
struct ComparedRow {
  std::string label, model;
  Settings settings;               ///< the row's own
  std::vector<std::string> lists;  ///< files, in place of a model
  std::vector<int64_t> seeds;      ///< of the runs that came to an end
  std::map<std::string, std::vector<std::pair<std::string, Summary>>> metrics;  ///< by split
  std::string selecting;                    ///< metric of valid that chose the epochs
  Summary selection;                        ///< its values
  std::vector<double> best_epochs;          ///< one a seed
  std::map<std::string, Summary> by_slice;  ///< the cold metric in "cold" and "cold_only"
  Cost cost;                                ///< mean over the runs; of memory the largest
  int64_t test_looks = 0;
  std::vector<Failure> failures;
  std::vector<std::string> runs;  ///< folders

  /// Of a metric on "valid" or "test", and of the cold metric in a slice; NaN where there is none.
  Summary of(const std::string& split, const std::string& metric) const;
  Summary in_slice(const std::string& name) const;
};

/// The rows of one dataset.
struct ComparedTable {
  std::string dataset, split, split_sha256;
  std::string reported;  ///< "test" or "valid"
  std::vector<std::string> metrics;
  std::string cold_metric;  ///< empty where no cold slice was measured
  std::string test_metric, valid_metric;
  std::vector<ComparedRow> rows;
  std::set<int64_t> n_users;
  std::set<std::string> notes;
};

/// One paired test; NaN where it has no value.
struct PValue {
  std::string test;
  double p = 0, adjusted = 0;
};

/// Row `a` less row `b`, paired by user, on the dataset's test metric.
struct Comparison {
  std::string dataset, a, b, metric;
  int64_t n_users = 0;
  double mean_difference = 0;
  Interval bootstrap_95;
  std::vector<PValue> p;
  std::vector<std::string> same_for_all_seeds;  ///< rows, where a test over seeds says nothing
  int64_t n_seeds = 0;                          ///< of the test over seeds; 0: too few for one
};

struct CompareResult {
  std::string tessera, command, folder, protocol;
  std::vector<int64_t> seeds;
  Settings settings;  ///< of all rows that know them
  std::vector<std::string> tests;
  std::string correction;
  std::vector<ComparedTable> tables;
  std::vector<std::pair<std::string, int64_t>> corrected_over;  ///< by test: comparisons with a p
  std::vector<Comparison> comparisons;
  int64_t test_looks = 0;
  std::string asked_by;  ///< the command that asked for other tests than the study's; else empty

  Json json() const;
  /// What json() made; exit 3 naming `where` and what is damaged.
  static CompareResult read(const Json& json, const std::string& where);
};

/// Trains what is missing and compares: per dataset a table of means and deviations over seeds,
/// costs, and paired tests, on test where the dataset has test rows, else on valid. Writes
/// table.md, table.tex, table.tsv and comparisons.tsv into the study folder. A diverged run leaves
/// its row with fewer seeds and is named in its failures.
CompareResult compare(const CompareRequest& request);

std::string compare_markdown(const CompareResult& result);
/// One table of it with its heading.
std::string table_markdown(const ComparedTable& table, const std::string& protocol);
std::string compare_latex(const CompareResult& result);
std::string compare_tsv(const CompareResult& result);
std::string comparisons_tsv(const CompareResult& result);

}  // namespace tessera
