#pragma once

#include <torch/types.h>

#include <functional>
#include <vector>

namespace tessera {

/// A model that fit() trains on batches of items, seen from outside, so that another program can
/// repeat the steps (bench/dump); found by dynamic_cast.
class ItemPretrainer {
 public:
  virtual ~ItemPretrainer() = default;
  /// What fit() learns from, one a modality: float32 [n_items, width], prepared.
  virtual const std::vector<torch::Tensor>& pretraining_rows() = 0;
  /// Called for each step with its items (int64 [B]) and its loss, before the weights change.
  std::function<void(const torch::Tensor&, double)> on_pretraining_step;
};

}  // namespace tessera
