#pragma once

#include <torch/types.h>

namespace tessera {

/// nrm of mmssl: x / |x| by row; a row shorter than 1e-12 becomes 0, with gradient 0. x [n, d]
torch::Tensor unit_or_zero(const torch::Tensor& x);

}  // namespace tessera
