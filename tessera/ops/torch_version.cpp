#include "tessera/ops/torch_version.h"

#include <torch/version.h>

namespace tessera {

const char* torch_version() { return TORCH_VERSION; }

}  // namespace tessera
