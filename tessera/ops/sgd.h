#pragma once

#include <torch/types.h>

namespace tessera {

struct BprSgdOptions {
  double learning_rate = 0;
  double reg = 0;  ///< weight of |u|^2 / 2, |p|^2 / 2 and |n|^2 / 2 of each triple
};
struct BprSgdLoss {
  torch::Tensor bpr;      ///< mean of -logsigmoid(s_up - s_un), float64 []
  torch::Tensor squares;  ///< mean of (|u|^2 + |p|^2 + |n|^2) / 2, float64 []
};

/// Stochastic gradient descent on BPR, one triple after another (LearnBPR of Rendle et al., UAI
/// 2009): users [U, d] and items [N, d], float32 or float64 and contiguous, change in place. u and
/// p int64 [B], n int64 [B, K]; a pair meets its K negatives in turn. Triples follow each other in
/// order on the calling thread, so the result does not depend on threads. The losses are those met
/// on the way, each before its own step.
BprSgdLoss bpr_sgd(torch::Tensor& users, torch::Tensor& items, const torch::Tensor& u,
                   const torch::Tensor& p, const torch::Tensor& n, const BprSgdOptions& options);
BprSgdLoss bpr_sgd_composed(torch::Tensor& users, torch::Tensor& items, const torch::Tensor& u,
                            const torch::Tensor& p, const torch::Tensor& n,
                            const BprSgdOptions& options);

}  // namespace tessera
