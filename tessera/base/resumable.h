#pragma once

#include <string>
#include <utility>

#include "tessera/base/error.h"

namespace tessera {

/// The end of a run or study that can go on from what it has on disk: a request to stop, a full
/// disk.
class ResumableError : public RunError {
 public:
  ResumableError(Exit code, const std::string& message, std::string folder)
      : RunError(code, message), folder_(std::move(folder)) {}
  const std::string& folder() const { return folder_; }  ///< what to resume

 private:
  std::string folder_;
};

}  // namespace tessera
