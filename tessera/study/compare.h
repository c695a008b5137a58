#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

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

/// Trains what is missing and compares: per dataset a table of means and deviations over seeds,
/// costs, and paired tests, on test where the dataset has test rows, else on valid. Writes
/// table.md, table.tex, table.tsv and comparisons.tsv into the study folder. A diverged run leaves
/// its row with fewer seeds and is named in "failures".
Json compare(const CompareRequest& request);

std::string compare_markdown(const Json& result);
std::string compare_latex(const Json& result);
std::string compare_tsv(const Json& result);
std::string comparisons_tsv(const Json& result);

}  // namespace tessera
