#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/study/compare.h"

namespace tessera {

/// What a setting is searched over: a list of values, or a range to draw from.
struct Dimension {
  enum class Kind { list, uniform, loguniform, whole } kind = Kind::list;
  std::string name;
  std::vector<Json> values;  ///< of a list
  double low = 0, high = 0;  ///< of a range; whole numbers: both ends count
};

/// "1,2", "[1, 2]", a JSON list, "uniform(0, .5)", "loguniform(1e-5, 1e-2)", "int(1, 4)". Exit 2
/// naming the forms for anything else.
Dimension parse_dimension(const std::string& name, const Json& value);

/// The dimension as text that parse_dimension reads back to the last bit.
std::string dimension_text(const Dimension& one);

struct TuneRequest {
  std::string model, dataset;
  Settings settings;                ///< of every run; "search.x" entries and, where
                                    ///< `hyper_parameters` names them (MMRec), lists are searched
  std::vector<std::string> search;  ///< more of it, "name=values"
  std::string sampler;              ///< grid or random; empty: grid where all is listed
  int64_t trials = 0;               ///< of random (default 20); of a grid, its size
  std::vector<int64_t> seeds = {999, 1000, 1001};  ///< of the winner's runs; may be empty
  int64_t trial_seed = 999;
  std::filesystem::path output, resume;
  Surroundings around;
};

/// One trial's settings.
struct Trial {
  Settings settings;
};
/// The trials of a space: all of a grid, the last setting fastest; or `n` draws keyed by `seed`,
/// each point of a space of lists at most once.
std::vector<Trial> make_trials(const std::vector<Dimension>& space, const std::string& sampler,
                               int64_t n, uint64_t seed);

/// What became of a trial; NaN or none where it diverged.
struct TrialResult {
  Settings settings;              ///< those searched over
  double score = Cost::kUnknown;  ///< of the metric that selects
  std::optional<int64_t> best_epoch, n_epochs;
  double train_s = Cost::kUnknown;
  std::string failure;
};

/// The trials with one value, or one quarter of a range, of one setting.
struct Effect {
  std::string setting, value;
  int64_t n = 0;
  double mean = 0, deviation = 0;  ///< of their scores
};

struct TuneResult {
  std::string tessera, command, folder, model, dataset, split, split_sha256, protocol, valid_metric;
  Settings settings;                                        ///< of every run
  std::vector<std::pair<std::string, std::string>> search;  ///< setting: dimension_text()
  std::string sampler;
  int64_t trial_seed = 0;
  std::vector<int64_t> seeds;  ///< of the winner's runs
  std::vector<TrialResult> trials;
  std::vector<Effect> sensitivity;
  std::optional<size_t> winner;          ///< index of the best trial; none where all diverged
  std::vector<Failure> failures;         ///< of the winner's runs
  std::optional<CompareResult> compare;  ///< of the winner's runs that came to an end
  int64_t test_looks = 0;

  Json json() const;
  /// What json() made; exit 3 naming `where` and what is damaged.
  static TuneResult read(const Json& json, const std::string& where);
};

/// Runs the trials without their test rows, picks the best by the valid metric alone, under the
/// protocol's own rule for "better", then runs the winner for each of the seeds and ranks test once
/// in each; a seed that diverges is named in `failures`. Writes trials.tsv and sensitivity.tsv
/// before the winner's runs, then table.{md,tsv,tex}.
TuneResult tune(const TuneRequest& request);

std::string tune_markdown(const TuneResult& result);
std::string trials_tsv(const TuneResult& result);
std::string sensitivity_tsv(const TuneResult& result);

}  // namespace tessera
