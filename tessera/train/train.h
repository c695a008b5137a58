#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tessera/eval/evaluate.h"
#include "tessera/model/model.h"

namespace tessera {

/// What surrounds a training: where it keeps its checkpoints, who listens, who may stop it.
struct TrainConfig {
  TrainSettings settings;
  Protocol protocol;
  /// Holds checkpoints/, metrics.jsonl and test_curve.jsonl; empty: nothing is written and the best
  /// weights stay in memory.
  std::filesystem::path folder;
  bool resume = false;     ///< go on from checkpoints/last where there is one
  int64_t test_looks = 0;  ///< that results of this run have counted before
  Log log;
  std::function<bool()> stop_requested = [] { return false; };
  std::function<Progress(std::string, int64_t)> progress = [](std::string, int64_t) {
    return Progress{};
  };
  std::function<void(int64_t epoch)> on_epoch = [](int64_t) {};
};

struct TrainResult {
  int64_t best_epoch = -1, n_epochs = 0, n_steps = 0;
  std::string stopped_by;  ///< "patience", "epochs", "time_limit", "closed form"
  double best_score = 0;
  std::string valid_metric;
  std::optional<Evaluation> valid, test;  ///< of the best epoch
  int64_t test_looks = 0;
  double train_s = 0, eval_s = 0;
  std::vector<double> epoch_s;  ///< training time of each epoch of this process
  double checkpoint_s = 0;  ///< spent on checkpoints in this process, in none of the times above
};

/// Trains to the protocol's stop rule, restores the best epoch by validation and ranks test once.
/// Afterwards the model holds the best weights and training() is off.
/// checkpoints/last is written before the first epoch, after the last and in between as the setting
/// `checkpoint` says: after every so many epochs, else as often as keeps it under 5 % of the time.
/// Throws RunError: interrupted (4 with a checkpoint, 130 without), diverged (5, naming epoch and
/// loss part), failed (1, disk).
TrainResult train_model(Model& model, const Dataset& data, const TrainConfig& config);

/// Refuses (exit 2) what the evaluations of a training would refuse later: metrics, cutoffs, a
/// split that the protocol cannot take.
void check_evaluations(const Dataset& data, const TrainSettings& settings,
                       const Protocol& protocol);
/// The same, and a training without validation rows whose number of epochs nobody chose.
void check_training(Model& model, const Dataset& data, const TrainSettings& settings,
                    const Protocol& protocol);

/// The options that evaluation takes from a run's settings.
EvalOptions eval_options(const TrainSettings& settings, const Protocol& protocol);

/// The cutoffs of `options`; a protocol's own are cut to the catalogue.
std::vector<int64_t> cut_topk(const EvalOptions& options, int64_t n_items);

/// The canonical name of the metric that selects: valid_metric, or the protocol's, its K cut.
std::string selecting_metric(const TrainSettings& settings, const Protocol& protocol,
                             int64_t n_items);

}  // namespace tessera
