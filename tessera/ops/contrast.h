#pragma once

#include <torch/types.h>

namespace tessera {

/// InfoNCE as a log-sum-exp: the mean over rows a of -log(p_a + eps),
///   p_a = exp(anchor_a . key_positive(a) / tau) / sum_k exp(anchor_a . key_k / tau),
/// the sum over all keys but key excluded(a) (int64 [n], below 0 or undefined: none). One pass in
/// blocks of anchors with its own gradient: no [n, n_keys] array. anchors [n, d], keys [n_keys, d]
/// (of length 1 where a cosine is meant), positive int64 [n]; float32 and float64.
torch::Tensor info_nce(const torch::Tensor& anchors, const torch::Tensor& keys,
                       const torch::Tensor& positive, const torch::Tensor& excluded, double tau,
                       double eps = 0);
torch::Tensor info_nce_composed(const torch::Tensor& anchors, const torch::Tensor& keys,
                                const torch::Tensor& positive, const torch::Tensor& excluded,
                                double tau, double eps = 0);

}  // namespace tessera
