#pragma once

#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
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

/// study.json: what a folder is the study of.
struct Study {
  std::string kind;     ///< the verb that makes it
  std::string command;  ///< that began it
  Json identity;        ///< all that decides the numbers, by name
};
/// Makes `folder` the place of this study, or finds it there from before; returns it as it was
/// begun. Exit 2 where the folder holds another study, naming what differs, or anything else; exit
/// 3 where the files that the study was made from (identity "datasets", "features", "lists") have
/// changed.
Study claim_study(const std::filesystem::path& folder, const Study& study);
/// The study in a folder; exit 2 where it is of another kind, exit 3 where there is none.
Study read_study(const std::filesystem::path& folder, const std::string& kind);

/// `text` as part of a file name.
std::string file_name(const std::string& text);

/// `text` on one line: control characters as \t, \n or \x1b.
std::string escaped(const std::string& text);

/// What tables say of a dataset, from its dataset.json, which a run folder has as data.json.
struct DataCard {
  std::string name, split_sha256;
  std::string split;  ///< in words: "leave-one-out, seed 999", "k-fold, fold 2, seed 999"
  int64_t fold = -1;  ///< of a k-fold split

  /// What tables call it: another fold is another set of rows.
  std::string shown() const { return fold < 0 ? name : fmt::format("{}, fold {}", name, fold); }
  static DataCard read(const Json& about);
};

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
  std::optional<RunResult> result;  ///< none where the run failed
  std::string failure;              ///< why, for a run that diverged: it would again
};

/// The run's results: read where it is finished, else made, going on from its last checkpoint. A
/// stop ends with exit 4, the study being what can be resumed. Exit 3 where the folder holds
/// a run of another model, dataset, split or seed.
ChildResult run_child(const Child& child, const std::filesystem::path& study,
                      const Surroundings& around);

/// What a run cost, or a row of runs on average; NaN where unknown.
struct Cost {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  double n_parameters = kUnknown;
  double epoch_s = kUnknown, step_ms = kUnknown, eval_s = kUnknown;  ///< medians
  double best_s = kUnknown;  ///< preparation, training and validation up to the best epoch
  double train_s = kUnknown, peak_rss_mb = kUnknown;
};
/// The names of Cost's members in files, in their order there.
inline constexpr std::pair<const char*, double Cost::*> kCostNames[] = {
    {"n_parameters", &Cost::n_parameters},
    {"epoch_s", &Cost::epoch_s},
    {"step_ms", &Cost::step_ms},
    {"eval_s", &Cost::eval_s},
    {"best_s", &Cost::best_s},
    {"train_s", &Cost::train_s},
    {"peak_rss_mb", &Cost::peak_rss_mb}};

/// From the run's metrics.jsonl and result.
Cost run_cost(const std::filesystem::path& folder, const RunResult& result);

/// One column of a run's per_user.tsv, by raw user id; exit 3 naming the columns when it has none
/// of that name.
std::map<std::string, double> per_user_values(const std::filesystem::path& folder,
                                              const std::string& metric);

/// A value on one line, texts without quotes.
std::string line_text(const Json& value);
/// "name=value, other=value" on one line.
std::string settings_words(const Settings& settings);

/// Words for a table, "Recall@20" for "recall@20".
std::string published_metric(const std::string& name);

/// A Markdown table, columns padded: the first to the left, the others to the right; `|` escaped.
std::string markdown_table(const std::vector<std::vector<std::string>>& rows);

/// Mean and sample deviation over runs, with the values themselves; NaN where one is not known.
struct Summary {
  double mean = std::numeric_limits<double>::quiet_NaN();
  double deviation = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> values;
};
Summary summary_of(const std::vector<double>& values);
/// Four decimals, "0.0564 ± 0.0006" where there is a deviation, "-" for none.
std::string summary_cell(const Summary& summary, const std::string& plus_minus = " ± ");
/// A number in `format`, or "-" for NaN.
std::string number_cell(double value, const char* format);

/// A run of a study that came to nothing.
struct Failure {
  int64_t seed = 0;
  std::string what;
};

// ---- JSON of studies, out and in; what is damaged is exit 3 naming `where` and the key ----------

Json number_json(double value);  ///< null for NaN
/// The numbers, texts or objects of a list; a null among numbers is NaN. T: double, int64_t,
/// std::string, Json.
template <typename T>
std::vector<T> list_from(const Json& object, const std::string& key, const std::string& where);
/// Settings as {name: value}, the winning value of each, and back.
Json settings_object(const Settings& settings);
Settings settings_from(const Json& object, const std::string& key, const std::string& where);
Json summary_json(const Summary& summary);
Summary summary_from(const Json& json, const std::string& where);
Json failures_json(const std::vector<Failure>& failures);
std::vector<Failure> failures_from(const Json& object, const std::string& where);

}  // namespace tessera
