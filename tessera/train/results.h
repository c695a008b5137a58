#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tessera/eval/evaluate.h"

namespace tessera {

/// Metric values as JSON, undefined ones as null, and back. Exit 3 naming `where` and the metric
/// for a value that is no number.
Json metrics_json(const MetricValues& metrics);
MetricValues metrics_from(const Json& json, const std::string& where);
Json slices_json(const std::vector<Slice>& slices);
/// What tables must say of an evaluation.
std::vector<std::string> audit_notes(const Json& audit);

/// What a run ended with: results.json as a value. Also the numbers of somebody's lists, which have
/// `recs` in place of a model and no training.
struct RunResult {
  /// How the epoch was chosen.
  struct Selection {
    std::string split = "valid", metric;
    int64_t epoch = -1;
    std::optional<double> value;  ///< none where there was no validation
  };
  /// Seconds.
  struct Times {
    std::optional<double> train;
    double eval = 0;
    std::optional<double> epoch_median;  ///< none where no epoch ran in the last process
    std::optional<double> rank_test;
    std::optional<double> checkpoint;  ///< spent on checkpoints; older results do not tell
  };

  std::string model;         ///< as its paper spells it; empty for lists
  std::string recs, sha256;  ///< the file of the lists and its hash; empty for a model
  std::string dataset;
  int64_t seed = 0;
  std::string protocol;
  std::string seen;  ///< what becomes of a user's history in the ranking of test
  std::vector<std::string> modalities, permute;
  Selection selection;
  std::optional<MetricValues> valid, test;  ///< of the best epoch; undefined metrics are NaN
  std::vector<Slice> slices;                ///< of the reported split
  int64_t n_users = 0;                      ///< averaged in the reported split
  int64_t test_looks = 0;
  Json audit = Json::object();  ///< free form: mask, users averaged, "notes" that tables must say
  std::optional<int64_t> n_parameters, n_epochs, n_steps;
  std::string stopped_by;  ///< "patience", "epochs", "time_limit", "closed form"
  Times time_s;
  std::optional<int64_t> peak_rss_mb, peak_gpu_mb;

  /// The split that is reported: test, else valid; empty where neither was ranked.
  std::string reported() const;
  /// The metrics of "valid" or "test"; null where it was not ranked.
  const MetricValues* metrics(const std::string& split) const;
  /// A metric of a split by its canonical name; NaN where there is none.
  double value(const std::string& split, const std::string& metric) const;
  const Slice* slice(const std::string& name) const;  ///< null where there is none of that name
  std::vector<std::string> notes() const { return audit_notes(audit); }

  Json json() const;
  /// A result that json() made, of this version or an older one: what older ones lack keeps its
  /// default. Exit 3 naming `where` and the key that is damaged.
  static RunResult read(const Json& json, const std::string& where);
};

/// results.json of a run folder; exit 3 where it is missing or damaged.
RunResult read_results(const std::filesystem::path& folder);

/// results.tsv: a header, then one line a ranked split.
std::string results_tsv(const RunResult& result);

}  // namespace tessera
