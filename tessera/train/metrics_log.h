#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tessera/eval/metrics.h"

namespace tessera {

// metrics.jsonl: one JSON object a line, each with an "event". A run writes "run", "epoch" and
// "end"; models log events of their own (Watch::log).

/// What the run is; written before the training.
struct RunLine {
  std::string run, model, dataset;
  int64_t seed = 0;
  std::string protocol, seen;
  int64_t n_parameters = 0;
  std::string time;  ///< RFC 3339
};
struct TrainLine {
  int64_t epoch = 0;
  MetricValues losses;  ///< means over the steps, "total" first
  double learning_rate = 0, time_s = 0, samples_per_s = 0;
  int64_t rss_mb = 0;
};
struct ValidLine {
  int64_t epoch = 0;
  MetricValues metrics;  ///< undefined ones are NaN here and null there
  double score = 0;      ///< of the metric that selects
  bool best = false;
  int64_t bad_rounds = 0;
  double time_s = 0;
};
struct EndLine {
  std::string state;
  int64_t best_epoch = 0;
  std::optional<MetricValues> test;
  double time_s = 0;
};
Json line_json(const RunLine& line);
Json line_json(const TrainLine& line);
Json line_json(const ValidLine& line);
Json line_json(const EndLine& line);

/// A line read back, of whatever event.
struct MetricsLine {
  std::string event, phase;      ///< phase of an "epoch": train or valid
  std::optional<int64_t> epoch;  ///< -1: before training
  MetricValues losses;           ///< the numbers under "loss"
  MetricValues values;           ///< all other numbers but the epoch, in the order of the line
  bool best = false;
  Json json;  ///< the line itself: what models log has forms of its own

  bool trains() const { return event == "epoch" && phase == "train"; }
  bool validates() const { return event == "epoch" && phase == "valid"; }
  /// A number by its name; NaN where there is none.
  double value(const std::string& name) const { return value_of(values, name); }
};

/// The whole lines of a metrics.jsonl from byte `from` on, which moves behind them; none where
/// there is no file. Lines that are no JSON objects, as a killed run may leave one, are left out.
std::vector<MetricsLine> read_metrics_log(const std::filesystem::path& path, int64_t& from);
std::vector<MetricsLine> read_metrics_log(const std::filesystem::path& path);

}  // namespace tessera
