#pragma once

#include <string>
#include <vector>

#include "tessera/base/json.h"

namespace tessera {

/// Something that a machine has or lacks. `fit` false makes it unfit; a remedy beside `fit` is
/// advice.
struct Finding {
  std::string what, found;
  bool fit = true;
  std::string remedy = {};
};

/// What this machine has for Tessera: processor, memory, libtorch, disk, encoders, the server's
/// port.
std::vector<Finding> examine_machine();

/// {"fit", "checks": [{"what", "found", "fit", "remedy"}]}.
Json findings_json(const std::vector<Finding>& findings);

}  // namespace tessera
