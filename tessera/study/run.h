#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "tessera/model/registry.h"
#include "tessera/train/results.h"
#include "tessera/train/run_folder.h"
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

/// Builds the model of a run and drops it: what run() would refuse is refused, nothing is written.
void check_run(const RunRequest& request);

/// A run folder opened again, its best weights loaded.
struct OpenRun {
  std::string model;
  RunSettings settings;
  std::unique_ptr<Dataset> data;
  std::unique_ptr<Model> learned;
};
OpenRun open_run(const std::filesystem::path& folder, const Log& log = {});

/// True for a folder that holds a bundle.
bool is_bundle_folder(const std::filesystem::path& folder);

}  // namespace tessera
