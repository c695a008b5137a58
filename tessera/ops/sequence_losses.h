#pragma once

#include <torch/types.h>

namespace tessera {

// Losses over items at the positions of sequences (sequential section 3): h [P, d], items [N, d],
// targets int64 [P]; score s_pj = h_p . items_j. Every loss is the mean over the P positions, has
// its own gradient to h and items, and stands beside its composed twin, which holds [P, N] or
// [P, k, d]. float32 and float64; sums of losses in double. Indices in main memory are moved to h.

/// How softmax_loss cuts its work: tiles of `positions` x `items` scores. While those of
/// `positions` and all items take at most `bytes`, they wait there for the gradient of the items (6
/// P N d); else they are made twice (8 P N d). Both gradients are formed with the value. The bits
/// depend on the first two numbers and on whether a row of tiles fits, never on the threads.
struct SoftmaxBlocks {
  int64_t positions = 60, items = 480, bytes = int64_t{32} << 20;
};

/// log sum_j exp(s_pj) - s_py with bias [N] added to the scores where it is defined. [P, N] is
/// never stored.
torch::Tensor softmax_loss(const torch::Tensor& h, const torch::Tensor& items,
                           const torch::Tensor& targets, const torch::Tensor& bias = {},
                           const SoftmaxBlocks& blocks = {});
torch::Tensor softmax_loss_composed(const torch::Tensor& h, const torch::Tensor& items,
                                    const torch::Tensor& targets, const torch::Tensor& bias = {});

/// Losses on the target and k negatives. Negatives int64 [groups, k]; group_of int64 [P], rising:
/// whose negatives a position uses (its own, its row's, one set for all). A negative equal to the
/// position's own target counts nothing.
struct SampledLoss {
  enum class Kind {
    softmax,  ///< -s_y + log(e^s_y + sum_j e^(s_j - correction))
    binary,   ///< target_weight softplus(-s_y) + sum_j softplus(s_j)
  } kind = Kind::softmax;
  double correction = 0;     ///< c_j = log(k q_j), equal for all j under uniform draws
  double target_weight = 1;  ///< beta of gbce, 1 of bce
  bool mean = false;         ///< divide by k + 1
};
torch::Tensor sampled_loss(const torch::Tensor& h, const torch::Tensor& items,
                           const torch::Tensor& targets, const torch::Tensor& negatives,
                           const torch::Tensor& group_of, const SampledLoss& loss);
torch::Tensor sampled_loss_composed(const torch::Tensor& h, const torch::Tensor& items,
                                    const torch::Tensor& targets, const torch::Tensor& negatives,
                                    const torch::Tensor& group_of, const SampledLoss& loss);

/// beta of gbce: 1 - t (1 - alpha), alpha = k / (N - 1).
double gbce_weight(int64_t n_negatives, int64_t n_items, double t);

}  // namespace tessera
