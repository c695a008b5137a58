#pragma once

#include <torch/types.h>

#include "tessera/ops/graph.h"

namespace tessera {

/// What an edge weighs in one direction: both, 1/sqrt(deg_u deg_i); receiver, 1/sqrt(deg) of the
/// row that sums (mmssl section 1.1).
enum class EdgeWeight { both, receiver };

/// A user's row from those of its items: items [I, d] to [U, d], float32 or float64. Rows without
/// edges are 0. A row is summed by one thread in the order of its edges, in backward too: equal for
/// any number of threads.
torch::Tensor to_users(const BipartiteGraph& graph, const torch::Tensor& items, EdgeWeight weight);
/// An item's row from those of its users: users [U, d] to [I, d].
torch::Tensor to_items(const BipartiteGraph& graph, const torch::Tensor& users, EdgeWeight weight);

/// The graph of a table of neighbours, int32 [n_users, k]: row u holds the items of user u,
/// distinct, in any order; entries below 0 are none. Degrees are exact (eps = 0).
BipartiteGraph neighbour_graph(const torch::Tensor& items, int64_t n_items);

}  // namespace tessera
