#pragma once

#include <torch/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tessera/ops/device.h"
#include "tessera/ops/knn.h"

namespace tessera {

/// A constant sparse matrix over the items beside its transpose, so that products have a gradient.
/// Immutable, cheap to copy.
class ItemGraph {
 public:
  ItemGraph() = default;
  explicit ItemGraph(const NeighbourGraph& graph);

  bool defined() const { return parts_ != nullptr; }
  int64_t n_items() const;
  int64_t n_edges() const;

  struct Parts {
    NeighbourGraph rows, columns;  ///< S and its transpose
  };
  const Parts& parts() const { return *parts_; }

  /// The non-zeros one by one, for plain tensor operations on that device.
  struct Edges {
    torch::Tensor rows, columns;  ///< int64 [n_edges]
    torch::Tensor weights;        ///< float32
  };
  Edges edges(torch::Device device) const;

 private:
  std::shared_ptr<const Parts> parts_;
  std::shared_ptr<OncePerDevice<Edges>> edges_;
};

/// sum_m weights[m] graphs[m], all of one size: at most the sum of their non-zeros a row, columns
/// ascending.
NeighbourGraph weighted_sum(const std::vector<NeighbourGraph>& graphs,
                            const std::vector<double>& weights);

/// What `weights` says of each modality, else what `usual` says by name where it names these and no
/// other, else equal shares. Exit 2 unless there is one weight a modality.
std::vector<double> modality_weights(const std::vector<std::string>& modalities,
                                     const std::vector<double>& weights,
                                     const std::map<std::string, double>& usual,
                                     const std::string& owner);

/// S x, float32 or float64. A row is summed by one thread in the order of its columns: equal for
/// any number of threads. x [n_items, d]
torch::Tensor propagate(const ItemGraph& graph, const torch::Tensor& x);
/// The same in plain tensor operations over the edges.
torch::Tensor propagate_composed(const ItemGraph& graph, const torch::Tensor& x);

}  // namespace tessera
