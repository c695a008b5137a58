#pragma once

#include <cstdint>
#include <filesystem>

namespace tessera {

/// Copies the numbers of a run's metrics.jsonl to <run>/tb/ as TensorBoard reads them: losses as
/// "loss/NAME", learning rate and memory as "train/NAME", metrics as "valid/NAME", by epoch.
class TensorboardFiles {
 public:
  /// Drops the run's tb/: a resumed run writes it anew from its metrics.jsonl.
  explicit TensorboardFiles(const std::filesystem::path& run);

  /// Appends what metrics.jsonl has gained since the last call.
  void update();

 private:
  std::filesystem::path metrics_, events_;
  int64_t read_ = 0;  ///< bytes of metrics.jsonl
};

}  // namespace tessera
