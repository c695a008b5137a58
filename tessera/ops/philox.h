#pragma once

#include <torch/types.h>

#include <array>

#include "tessera/base/random.h"

namespace tessera {

/// Philox 4x32-10 of base/random.h in plain tensor operations: four words of counters, int64 of one
/// shape or such as broadcast, to four words of draws, int64 in [0, 2^32).
std::array<torch::Tensor, 4> philox_composed(std::array<torch::Tensor, 4> counter,
                                             std::array<uint32_t, 2> key);

}  // namespace tessera
