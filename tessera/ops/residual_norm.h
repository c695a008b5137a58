#pragma once

#include <torch/types.h>

namespace tessera {

/// y + LayerNorm(y) with y = x W + b, as one node: x [n, in], weight [in, out], bias, gain, shift
/// [out]; float32 or float64, any of them with or without a gradient. `eps` is added to a row's
/// variance. Sums over rows for bias, gain and shift are taken in an order that depends on n alone.
torch::Tensor residual_norm(const torch::Tensor& x, const torch::Tensor& weight,
                            const torch::Tensor& bias, const torch::Tensor& gain,
                            const torch::Tensor& shift, double eps);

/// The same without a graph, for a step that writes its gradients out itself.
struct ResidualNorm {
  torch::Tensor x, y, norms;  ///< what the gradient needs
  torch::Tensor out;          ///< [n, out]
};
ResidualNorm residual_norm_forward(const torch::Tensor& x, const torch::Tensor& weight,
                                   const torch::Tensor& bias, const torch::Tensor& gain,
                                   const torch::Tensor& shift, double eps);
/// Where the gradients of the parameters go; what was there is lost. Undefined: nowhere.
struct ResidualNormGradients {
  torch::Tensor weight;  ///< [in, out]
  torch::Tensor sums;    ///< [3, out]: of bias, gain and shift
};
/// The gradient of y = x W + b [n, out] from that of `out`; x's is y's times W^T.
torch::Tensor residual_norm_backward(const ResidualNorm& kept, const torch::Tensor& gain,
                                     const torch::Tensor& upstream,
                                     const ResidualNormGradients& to);

/// The same in operations of torch.
torch::Tensor residual_norm_composed(const torch::Tensor& x, const torch::Tensor& weight,
                                     const torch::Tensor& bias, const torch::Tensor& gain,
                                     const torch::Tensor& shift, double eps);

}  // namespace tessera
