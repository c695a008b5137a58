#pragma once

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <functional>
#include <vector>

namespace tessera {

/// Central differences of `loss` in every entry of every input (float64) against autograd.
inline void expect_gradients(
    const std::function<torch::Tensor(const std::vector<torch::Tensor>&)>& loss,
    const std::vector<torch::Tensor>& inputs, double tolerance = 1e-7, double step = 1e-5) {
  std::vector<torch::Tensor> leaves;
  for (const torch::Tensor& input : inputs) {
    leaves.push_back(input.detach().clone().requires_grad_());
  }
  loss(leaves).backward();
  const torch::NoGradGuard no_grad;
  for (size_t k = 0; k < leaves.size(); ++k) {
    ASSERT_TRUE(leaves[k].grad().defined()) << "input " << k;
    torch::Tensor flat = leaves[k].view({-1});
    const torch::Tensor gradient = leaves[k].grad().reshape({-1});
    for (int64_t j = 0; j < flat.size(0); ++j) {
      const double start = flat[j].item<double>();
      flat[j] = start + step;
      const double up = loss(leaves).item<double>();
      flat[j] = start - step;
      const double down = loss(leaves).item<double>();
      flat[j] = start;
      const double numeric = (up - down) / (2 * step);
      EXPECT_NEAR(gradient[j].item<double>(), numeric, tolerance * std::max(1.0, std::abs(numeric)))
          << "input " << k << " entry " << j;
    }
  }
}

}  // namespace tessera
