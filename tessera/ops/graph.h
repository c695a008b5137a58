#pragma once

#include <torch/types.h>

#include <memory>
#include <utility>

#include "tessera/ops/device.h"

namespace tessera {

/// The normalised user-item graph A_hat of bm3 section 2: entry (u, i) of an edge is
/// (deg_u + eps)^-1/2 (deg_i + eps)^-1/2; symmetric, no self loops, empty rows where a node has no
/// edge. Both directions lie as CSR. Immutable, cheap to copy.
class BipartiteGraph {
 public:
  BipartiteGraph() = default;
  /// `offsets` int64 [n_users + 1]; `items` int32, sorted and distinct within a user.
  BipartiteGraph(const torch::Tensor& offsets, const torch::Tensor& items, int64_t n_items,
                 double eps = 1e-7);

  bool defined() const { return parts_ != nullptr; }
  int64_t n_users() const;
  int64_t n_items() const;
  int64_t n_edges() const;
  /// A_hat's upper right block as a dense matrix, for tests and small examples. float64 [U, I]
  torch::Tensor dense() const;

  /// CSR of both directions and the inverse roots of the degrees.
  struct Parts {
    torch::Tensor user_offsets, user_items;  ///< int64 [U + 1], int32 [E]
    torch::Tensor item_offsets, item_users;  ///< int64 [I + 1], int32 [E], users ascending
    torch::Tensor user_root, item_root;      ///< float64 [U], [I]
    torch::Tensor ones;                      ///< float64 [max(U, I)]
  };
  const Parts& parts() const { return *parts_; }

  /// The edges one by one, for plain tensor operations on that device.
  struct Edges {
    torch::Tensor users, items;          ///< int64 [E]
    torch::Tensor user_root, item_root;  ///< of their ends, float64 [E]
  };
  Edges edges(torch::Device device) const;

 private:
  std::shared_ptr<const Parts> parts_;
  std::shared_ptr<OncePerDevice<Edges>> edges_;
};

/// A_hat X for X = [users; items], float32 or float64: {A users' rows from items, and items' from
/// users}. The matrix is symmetric, so backward is the same product. A row is summed by one thread
/// in the order of its edges: equal for any number of threads. users [U, d], items [I, d]
std::pair<torch::Tensor, torch::Tensor> propagate(const BipartiteGraph& graph,
                                                  const torch::Tensor& users,
                                                  const torch::Tensor& items);

/// LGCN(n_layers) of baselines section 0: the mean of A_hat^l X over l = 0..n_layers, computed as
/// Y <- X + A_hat Y, n_layers times, divided at the end. Its own adjoint: backward is the same.
std::pair<torch::Tensor, torch::Tensor> layer_mean(const BipartiteGraph& graph,
                                                   const torch::Tensor& users,
                                                   const torch::Tensor& items, int64_t n_layers);

/// The rows of layer_mean that the lists name, int64, distinct; [n, d] each. The last product makes
/// these rows alone, and the first one backward reads no others.
std::pair<torch::Tensor, torch::Tensor> layer_mean_rows(
    const BipartiteGraph& graph, const torch::Tensor& users, const torch::Tensor& items,
    int64_t n_layers, const torch::Tensor& user_rows, const torch::Tensor& item_rows);

/// What an edge weighs in one direction: both, 1/sqrt(deg_u deg_i); receiver, 1/sqrt(deg) of the
/// row that sums (mmssl section 1.1).
enum class EdgeWeight { both, receiver };

/// A user's row from those of its items: items [I, d] to [U, d]. Rows without edges are 0; sums and
/// backward as above.
torch::Tensor to_users(const BipartiteGraph& graph, const torch::Tensor& items,
                       EdgeWeight weight = EdgeWeight::both);
/// An item's row from those of its users: users [U, d] to [I, d].
torch::Tensor to_items(const BipartiteGraph& graph, const torch::Tensor& users,
                       EdgeWeight weight = EdgeWeight::both);

/// The graph of a table of neighbours, int32 [n_users, k]: row u holds the items of user u,
/// distinct, in any order; entries below 0 are none. Degrees are exact (eps = 0).
BipartiteGraph neighbour_graph(const torch::Tensor& items, int64_t n_items);

/// All of them in plain tensor operations over the edges.
std::pair<torch::Tensor, torch::Tensor> propagate_composed(const BipartiteGraph& graph,
                                                           const torch::Tensor& users,
                                                           const torch::Tensor& items);
std::pair<torch::Tensor, torch::Tensor> layer_mean_composed(const BipartiteGraph& graph,
                                                            const torch::Tensor& users,
                                                            const torch::Tensor& items,
                                                            int64_t n_layers);
std::pair<torch::Tensor, torch::Tensor> layer_mean_rows_composed(
    const BipartiteGraph& graph, const torch::Tensor& users, const torch::Tensor& items,
    int64_t n_layers, const torch::Tensor& user_rows, const torch::Tensor& item_rows);
torch::Tensor to_users_composed(const BipartiteGraph& graph, const torch::Tensor& items,
                                EdgeWeight weight = EdgeWeight::both);
torch::Tensor to_items_composed(const BipartiteGraph& graph, const torch::Tensor& users,
                                EdgeWeight weight = EdgeWeight::both);

}  // namespace tessera
