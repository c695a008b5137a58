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

/// InfoNCE within a batch of pairs, each pair against the keys of all: the mean over the batch of
/// -log(exp(anchor_r . key_r / tau) / sum_k exp(anchor_r . key_k / tau)), where row r stands
/// counts(r) times in it, 0 or more. A row is read once however often it stands there; one pass as
/// above. anchors, keys [n, d], counts int64 [n]; float32 and float64.
torch::Tensor batch_info_nce(const torch::Tensor& anchors, const torch::Tensor& keys,
                             const torch::Tensor& counts, double tau);
torch::Tensor batch_info_nce_composed(const torch::Tensor& anchors, const torch::Tensor& keys,
                                      const torch::Tensor& counts, double tau);

}  // namespace tessera
