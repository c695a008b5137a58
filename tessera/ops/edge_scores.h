#pragma once

#include <torch/types.h>

#include "tessera/ops/graph.h"

namespace tessera {

/// For each item the sum over its users j of mean over k of sigmoid(y_i . p_j^k / scale) (r2mr
/// section 2), edge by edge: no matrix of users and items is formed, nothing is kept for backward,
/// which computes the products anew. y [n, w], p [n_users, n_tastes * w], float32 or float64; row r
/// of y stands for item r, or for items[r] (int64 [n]; then there is no gradient). An item without
/// users: 0. Equal for any number of threads. [n]
torch::Tensor edge_sums(const BipartiteGraph& edges, const torch::Tensor& y, const torch::Tensor& p,
                        int64_t n_tastes, double scale, const torch::Tensor& items = {});

/// The same over an array of edges in plain tensor operations; `items` are read in main memory.
torch::Tensor edge_sums_composed(const BipartiteGraph& edges, const torch::Tensor& y,
                                 const torch::Tensor& p, int64_t n_tastes, double scale,
                                 const torch::Tensor& items = {});

}  // namespace tessera
