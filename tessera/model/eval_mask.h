#pragma once

#include <string>
#include <vector>

namespace tessera {

/// A trained model that can leave parts out when it ranks, without being trained again; found by
/// dynamic_cast. Instant, and weaker evidence than training without the part.
class EvalMask {
 public:
  virtual ~EvalMask() = default;
  /// Exit 2 for a part that the model does not have.
  virtual void leave_out(const std::vector<std::string>& parts) = 0;
};

}  // namespace tessera
