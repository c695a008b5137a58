#pragma once

#include <torch/types.h>

namespace tessera {

/// y + LayerNorm(y) with y = x W + b, as one node: x [n, in], weight [in, out], bias, gain, shift
/// [out]; float32 or float64, any of them with or without a gradient. `eps` is added to a row's
/// variance. Sums over rows for bias, gain and shift are taken in an order that depends on n alone.
torch::Tensor residual_norm(const torch::Tensor& x, const torch::Tensor& weight,
                            const torch::Tensor& bias, const torch::Tensor& gain,
                            const torch::Tensor& shift, double eps);
/// The same in operations of torch.
torch::Tensor residual_norm_composed(const torch::Tensor& x, const torch::Tensor& weight,
                                     const torch::Tensor& bias, const torch::Tensor& gain,
                                     const torch::Tensor& shift, double eps);

}  // namespace tessera
