#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tessera/study/run.h"

namespace tessera {

/// What surrounds the runs of a study (compare, tune): who is told, who may stop it.
struct Surroundings {
  std::string command;  ///< as typed
  Log log;
  std::function<bool()> stop_requested = [] { return false; };
  std::function<Progress(std::string, int64_t)> progress = [](std::string, int64_t) {
    return Progress{};
  };
};

/// Makes `folder` the place of this study, or finds it there from before: study.json holds `kind`,
/// `command` and `identity` (all that decides the numbers). The command that began it is returned.
/// Exit 2 where the folder holds another study, naming what differs, or anything else; exit 3 where
/// the files that the study was made from (identity "datasets", "features", "lists") have changed.
std::string claim_study(const std::filesystem::path& folder, const std::string& kind,
                        const std::string& command, const Json& identity);
/// The identity in a folder's study.json; exit 3 where there is none of that kind.
Json study_identity(const std::filesystem::path& folder, const std::string& kind);

/// `text` as part of a file name.
std::string file_name(const std::string& text);

/// `text` on one line: control characters as \t, \n or \x1b.
std::string escaped(const std::string& text);

/// "leave-one-out, seed 999", "k-fold, fold 2, seed 999": the split of a dataset.json.
std::string split_words(const Json& about);

/// Hashes of the features that runs read, {modality: {sha256, ids_sha256}}; `asked` are their
/// settings `modalities`, empty for what the folder gives by itself.
Json feature_hashes(const std::filesystem::path& dataset,
                    const std::vector<std::vector<std::string>>& asked);

/// One run of a study: an ordinary run folder.
struct Child {
  std::filesystem::path folder;
  std::string model;
  std::filesystem::path dataset;
  Settings settings;
  std::string split_sha256;  ///< of the dataset; empty: not checked
  bool look_at_test = true;
  bool finished() const;
};

struct ChildResult {
  Json results;         ///< results.json; null where the run failed
  std::string failure;  ///< why, for a run that diverged: it would again
};

/// The run's results: read where it is finished, else made, going on from its last checkpoint. A
/// stop ends with exit 4, the study being what can be resumed. Exit 3 where the folder holds
/// a run of another model, dataset, split or seed.
ChildResult run_child(const Child& child, const std::filesystem::path& study,
                      const Surroundings& around);

/// What the run cost, from its metrics.jsonl and results: parameters, epoch_s and eval_s (medians),
/// step_ms, best_s (preparation, training and validation up to the best epoch), train_s,
/// peak_rss_mb; null where unknown.
Json run_cost(const std::filesystem::path& folder, const Json& results);

/// One column of a run's per_user.tsv, by raw user id; exit 3 naming the columns when it has none
/// of that name.
std::map<std::string, double> per_user_values(const std::filesystem::path& folder,
                                              const std::string& metric);

/// Settings as {name: value}, the winning value of each.
Json settings_object(const Settings& settings);

/// Words for a table, "Recall@20" for "recall@20".
std::string published_metric(const std::string& name);

/// A Markdown table, columns padded: the first to the left, the others to the right; `|` escaped.
std::string markdown_table(const std::vector<std::vector<std::string>>& rows);

/// "recall@20": mean and sample deviation over the runs, with the values themselves.
Json summary_of(const std::vector<double>& values);
/// Four decimals, "0.0564 ± 0.0006" where there is a deviation, "-" for null.
std::string summary_cell(const Json& summary, const std::string& plus_minus = " ± ");
/// A number in `format`, or "-".
std::string number_cell(const Json& value, const char* format);

}  // namespace tessera
