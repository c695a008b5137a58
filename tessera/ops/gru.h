#pragma once

#include <torch/types.h>

namespace tessera {

/// The states of a GRU from h = 0 (sequential section 4): in [P, 3h] = x W_i', stacked r, z, n;
/// w_hidden [3h, h]; no biases. Sequences are
/// packed as in attention.h and go side by side, one product a time step. [P, h]
torch::Tensor gru(const torch::Tensor& in, const torch::Tensor& w_hidden,
                  const torch::Tensor& offsets);
torch::Tensor gru_composed(const torch::Tensor& in, const torch::Tensor& w_hidden,
                           const torch::Tensor& offsets);

}  // namespace tessera
