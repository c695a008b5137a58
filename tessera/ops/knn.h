#pragma once

#include <torch/types.h>

#include "tessera/ops/topk.h"

namespace tessera {

/// A sparse square matrix by rows: at most k non-zeros each, columns ascending.
struct NeighbourGraph {
  torch::Tensor offsets;  ///< int64 [n + 1]
  torch::Tensor items;    ///< int32
  torch::Tensor weights;  ///< float32
};

/// kNN(F, k) of baselines section 0: by row the k largest cosines, ties to the lower index;
/// weighted by the cosine, or 1. A row of zeros has no neighbours and is nobody's. The row itself
/// counts unless `include_self` is false. Never [n, n]. features [n, d]
NeighbourGraph knn_graph(const torch::Tensor& features, int64_t k, bool weighted = true,
                         bool include_self = true);

/// D^-1/2 S D^-1/2, D the row sums; rows whose sum is not positive become 0.
NeighbourGraph normalised(const NeighbourGraph& graph);

/// The k rows nearest to each query by cosine, best first; query i leaves out the row exclude[i]
/// (int64 [n], below 0: none; undefined: none at all). queries [n, d], rows [n_rows, d]
TopK nearest_rows(const torch::Tensor& queries, const torch::Tensor& rows, int64_t k,
                  const torch::Tensor& exclude = {});

}  // namespace tessera
