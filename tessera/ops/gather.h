#pragma once

#include <torch/types.h>

namespace tessera {

/// Rows of `table` [N, d] by `index` int64 [n], repeats allowed; float32 or float64. [n, d]
/// Backward sums a row's gradients in the order of `index`, each row by one thread: equal for any
/// number of threads.
torch::Tensor gather_rows(const torch::Tensor& table, const torch::Tensor& index);

}  // namespace tessera
