#pragma once

#include <exception>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/base/fields.h"
#include "tessera/base/lock.h"
#include "tessera/base/log.h"
#include "tessera/train/results.h"

namespace tessera {

/// config.resolved.json: what a run was begun with, enough to repeat it.
struct RunConfig {
  std::string model, dataset;
  Settings
      settings;  ///< all, the model's own and the training's; origin "default" where none given
  bool looks_at_test = true;

  Settings given() const;  ///< those that are no defaults
  Json json() const;
};
/// Exit 3 where the folder holds no run, or a damaged one.
RunConfig read_run_config(const std::filesystem::path& folder);

/// status.json: how far a run is, or how it ended.
struct RunStatus {
  std::string state = "unknown";  ///< running, finished, interrupted or failed
  std::optional<Exit> exit_code;  ///< of one that is over
  int64_t epoch = -1;             ///< the last that is done
  std::string error;              ///< what ended a run that failed; older ones do not tell
};
/// Exit 3 where it is damaged; the defaults where there is none.
RunStatus read_run_status(const std::filesystem::path& folder);

/// True for a folder that holds a run.
bool is_run_folder(const std::filesystem::path& folder);
/// True where results.json is what the run ended with: status.json agrees with it.
bool run_finished(const std::filesystem::path& folder);

/// Counts one more look at test, in results.json or, where the run has not ended, in status.json;
/// the new count.
int64_t count_test_look(const std::filesystem::path& folder);

/// The folder of a run while it is being written. It owns the files that a run writes and nothing
/// else there: what it does not know is somebody's own and stays. Nobody else can write the run as
/// long as it lives.
class RunFolder {
 public:
  /// A new run at `path`: no folder, an empty one, or one that holds a run, whose files then go.
  /// Exit 2 with nothing touched for a file, a folder of something else, a place where nothing can
  /// be written, and a run that somebody writes.
  static RunFolder begin(const std::filesystem::path& path, const RunConfig& config,
                         const Log& log = {});
  /// The run at `path` goes on under `config`: what it ended with goes, checkpoints and logs stay.
  /// Exit 2 where somebody else writes it.
  static RunFolder resume(const std::filesystem::path& path, const RunConfig& config,
                          const Log& log = {});

  const std::filesystem::path& path() const { return path_; }
  /// The caller's log and the run's own, train.log.
  const Log& log() const { return log_; }
  /// Looks at test that earlier ends of this run and later evaluations have counted.
  int64_t test_looks() const { return status_.test_looks; }

  /// status.json says that the run is at work and `epoch` done.
  void running(int64_t epoch);
  /// Files of the model's own, contents by name; the next run in this folder takes them away.
  void write_report_files(const std::map<std::string, std::string>& files);
  /// Writes results.tsv and results.json, and says in metrics.jsonl and status.json that it is
  /// over.
  void finish(const RunResult& result);
  /// Says in train.log and status.json what ended the run.
  void failed(const std::exception_ptr& error) noexcept;

 private:
  struct Status {
    int64_t epoch = -1, test_looks = 0;
    std::vector<std::string> report_files;
  };
  RunFolder(const std::filesystem::path& path, const Log& log);
  void write_status(const std::string& state, Exit code, const std::string& error = "");

  std::filesystem::path path_;
  FolderLock lock_;
  Status status_;
  Log file_log_, log_;
};

}  // namespace tessera
