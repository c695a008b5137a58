#pragma once

#include <torch/types.h>

#include <vector>

namespace tessera {

/// Attention of a row over its own vectors, one a modality, and the mean over the modalities (mmssl
/// section 1.6): head h compares the slices h of e^m query and e^m' key and sums the slices h of
/// e^m'. One modality: e itself. e: M tensors [n, d]; query, key [d, d]; d a multiple of n_heads.
torch::Tensor modal_attention(const std::vector<torch::Tensor>& e, const torch::Tensor& query,
                              const torch::Tensor& key, int64_t n_heads);
/// The same by stock operators.
torch::Tensor modal_attention_composed(const std::vector<torch::Tensor>& e,
                                       const torch::Tensor& query, const torch::Tensor& key,
                                       int64_t n_heads);

}  // namespace tessera
