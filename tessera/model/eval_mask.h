#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

namespace tessera {

/// What every result of such a ranking says.
inline std::string eval_mask_note(const std::vector<std::string>& parts) {
  return fmt::format(
      "eval_mask = {}: parts are left out when ranking only, the model was trained with them",
      fmt::join(parts, ","));
}

/// A trained model that can leave parts out when it ranks, without being trained again; found by
/// dynamic_cast. Instant, and weaker evidence than training without the part.
class EvalMask {
 public:
  virtual ~EvalMask() = default;
  /// Exit 2 for a part that the model does not have.
  virtual void leave_out(const std::vector<std::string>& parts) = 0;
};

}  // namespace tessera
