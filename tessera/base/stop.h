#pragma once

#include <functional>

#include "tessera/base/error.h"

namespace tessera {

/// Ends what writes nothing before its end, once `stop_requested` (which may be empty) says so.
inline void end_if_stopped(const std::function<bool()>& stop_requested,
                           const char* words = "interrupted: nothing was written") {
  if (stop_requested && stop_requested()) {
    throw RunError(Exit::interrupted_without_checkpoint, words);
  }
}

}  // namespace tessera
