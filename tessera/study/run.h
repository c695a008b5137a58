#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "tessera/model/registry.h"
#include "tessera/train/results.h"
#include "tessera/train/train.h"

namespace tessera {

/// One run: a model, a dataset folder, settings, and the folder where everything ends up.
struct RunRequest {
  std::string model;
  std::filesystem::path dataset;
  std::filesystem::path output;  ///< empty: runs/<time>_<model>_<dataset>_s<seed>
  std::filesystem::path resume;  ///< a run folder to go on with; model and dataset come from it
  Settings settings;             ///< in rising precedence
  bool look_at_test = true;      ///< false: the run never sees the test rows, nor when resumed
  std::string command;
  Log log;
  std::function<bool()> stop_requested = [] { return false; };
  std::function<Progress(std::string, int64_t)> progress = [](std::string, int64_t) {
    return Progress{};
  };
};

struct RunOutcome {
  std::filesystem::path folder;
  RunResult result;
};

/// Trains, evaluates and writes the run folder of conventions section 3. Inputs are checked before
/// anything is replaced; a failure leaves status.json with its exit code.
RunOutcome run(const RunRequest& request);

/// Sets the number of threads, 0: all cores; exit 2 for a device that this build has not.
void use_device_and_threads(const TrainSettings& settings);
/// Before training: arrays that are freed stay with the process. Faster steps, a few MB more.
void keep_freed_memory();

/// Builds the model of a run and drops it: what run() would refuse is refused, nothing is written.
void check_run(const RunRequest& request);

/// A run folder opened again, its best weights loaded.
struct OpenRun {
  std::string model;
  RunSettings settings;
  std::unique_ptr<Dataset> data;
  std::unique_ptr<Model> learned;
  Json results;
};
OpenRun open_run(const std::filesystem::path& folder, const Log& log = {});

/// Counts one more look at test in the run's results.json.
void count_test_look(const std::filesystem::path& folder);

/// True for a folder that holds a run, and for one that holds a bundle.
bool is_run_folder(const std::filesystem::path& folder);
bool is_bundle_folder(const std::filesystem::path& folder);

/// The largest resident size of this process so far, MiB.
int64_t peak_rss_mb();
/// Gives unused memory back and asks the kernel to forget the largest resident size so far, so that
/// each of several runs in one process reports its own. Where the kernel refuses, a later run
/// reports at least what an earlier one used.
void reset_peak_memory();

}  // namespace tessera
