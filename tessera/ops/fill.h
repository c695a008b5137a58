#pragma once

#include <torch/types.h>

#include "tessera/base/random.h"

namespace tessera {

// Initial values and masks, float32. Initial values are drawn in main memory and moved by whoever
// wants them elsewhere; a mask lies where its rows do. Every entry is a function of the random
// family, step, row and column alone: equal for any number of threads, compiler and device.

/// U[low, high). [rows, cols]
torch::Tensor uniform(int64_t rows, int64_t cols, double low, double high, const Random& random);
/// N(mean, std). [rows, cols]
torch::Tensor normal(int64_t rows, int64_t cols, double mean, double std, const Random& random);

/// U(-b, b), b = sqrt(6 / (rows + cols)) (Glorot & Bengio 2010). [rows, cols]
torch::Tensor xavier_uniform(int64_t rows, int64_t cols, const Random& random);
/// N(0, sqrt(2 / (rows + cols))). [rows, cols]
torch::Tensor xavier_normal(int64_t rows, int64_t cols, const Random& random);
/// The usual initial weight and bias of a linear layer: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch::Tensor linear_default_weight(int64_t fan_out, int64_t fan_in, const Random& random);
torch::Tensor linear_default_bias(int64_t fan_in, int64_t n, const Random& random);

/// Inverted dropout: 0 with probability `rate` in [0, 1), else 1 / (1 - rate). Row i belongs to the
/// table row rows[i] (int64 [n]), so any choice of rows equals those rows of the whole table's
/// mask.
torch::Tensor dropout_mask(const torch::Tensor& rows, int64_t width, double rate,
                           const Random& random, int64_t step);
torch::Tensor dropout_mask_composed(const torch::Tensor& rows, int64_t width, double rate,
                                    const Random& random, int64_t step);

}  // namespace tessera
