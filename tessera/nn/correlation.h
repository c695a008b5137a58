#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "tessera/base/random.h"

namespace tessera {

// Supervision of pairs of items by the likeness of their frozen codes (KDSR, Hu et al., ECIR 2024;
// kdsr sections 1 to 4). Nothing here holds [N, N] or [B, L, L, d].

/// What a modality's frozen codes say about any two items: r = cosine of the codes, rho [D] = the
/// cosines of their D sub-vectors, and the code, the nearest centroid to rho. Items without the
/// modality have zero codes, whose cosines are 0.
class Correlation {
 public:
  Correlation() = default;
  /// codes [N, d], present bool [N]; with `center` the mean code is taken off first. d must be a
  /// multiple of n_parts.
  Correlation(const torch::Tensor& codes, const torch::Tensor& present, int64_t n_parts,
              bool center);
  /// From what another one keeps of its codes: units [N, d], shares [N, D], not copied.
  Correlation(const torch::Tensor& units, const torch::Tensor& shares,
              const torch::Tensor& present);
  const torch::Tensor& units() const { return units_; }    ///< sub-vectors of norm 1 or 0
  const torch::Tensor& shares() const { return shares_; }  ///< |sub-vector| / |code|

  /// K centroids of the rho of `n_samples` pairs of present items (all pairs if there are fewer):
  /// k-means++, Lloyd to a relative change of 1e-4 or 100 rounds, sorted by mean coordinate. Fills
  /// the statistics. Equal for any number of threads.
  void fit(int64_t n_codes, int64_t n_samples, const Random& random);
  void set_centroids(const torch::Tensor& centroids);  ///< [K, D]
  const torch::Tensor& centroids() const { return centroids_; }

  /// Of the pairs (i, j), int64 [n]: r float32 [n], codes int64 [n].
  struct Signal {
    torch::Tensor r, codes;
  };
  Signal signal(const torch::Tensor& i, const torch::Tensor& j) const;
  torch::Tensor rho(const torch::Tensor& i, const torch::Tensor& j) const;  ///< [n, D]
  /// The code of an item with itself. int64 [N]
  const torch::Tensor& diagonal() const { return diagonal_; }

  /// Over the sample of fit(): mean and standard deviation of r, entropy of the codes in nats, the
  /// largest code's share.
  double mean = 0, spread = 1, entropy = 0, largest_share = 0;

 private:
  void pair(int64_t i, int64_t j, float* rho, float* r) const;
  torch::Tensor rho_composed(const torch::Tensor& i, const torch::Tensor& j) const;
  Signal signal_composed(const torch::Tensor& i, const torch::Tensor& j) const;
  std::vector<int64_t> nearest(const torch::Tensor& rho) const;

  int64_t n_parts_ = 0;
  torch::Tensor units_;      // [N, d]
  torch::Tensor shares_;     // [N, D]
  torch::Tensor present_;    // bool [N]
  torch::Tensor centroids_;  // [K, D]
  torch::Tensor columns_;    // [D, K]
  torch::Tensor diagonal_;
};

/// <u_i, u_j> of pairs: u [n, d], i and j int64 [P]. Own gradient. [P]
torch::Tensor pair_products(const torch::Tensor& u, const torch::Tensor& i, const torch::Tensor& j);

/// Pairs i < j of one modality in one step: places in the step's items, and the sequence row that
/// each came from.
struct ItemPairs {
  torch::Tensor i, j;      ///< int64 [P]
  torch::Tensor row;       ///< int64 [P]; unused in a batch-wide sample
  torch::Tensor sizes;     ///< float64 [B], distinct present items of each row; in main memory
  torch::Tensor diagonal;  ///< int64, their items again, row by row; unused in a batch-wide sample
  bool in_batch = false;
};

/// The student's r^ = <u_i, u_j>, u = z / |z| with |z| at least 1e-8, held to r [P].
struct SkdOptions {
  bool paper = false;  ///< squares of sigmoids over all ordered pairs; else norms of rows
  bool standardise = false;
  double tau = 1.5, mean = 0, spread = 1;  ///< of r, for standardise
};
torch::Tensor skd_loss(const torch::Tensor& z, const ItemPairs& pairs, const torch::Tensor& r,
                       const SkdOptions& options);

/// The head that tells a pair's code from |e_i - e_j|: logits = Wo ReLU(Wc delta + bc) + bo;
/// Wc [d, d], Wo [K, d].
struct CodeHead {
  torch::Tensor w_hidden, b_hidden, w_out, b_out;
};
/// Cross-entropy of the codes, weighted by sum n^2 over ordered pairs and the diagonal, or the mean
/// of a batch-wide sample. `codes` int64 [P], `diagonal_codes` of pairs.diagonal. Pairs go in
/// blocks, their gradients formed with the value.
torch::Tensor ckd_loss(const torch::Tensor& e, const ItemPairs& pairs, const torch::Tensor& codes,
                       const torch::Tensor& diagonal_codes, const CodeHead& head,
                       int64_t block = 8192);
torch::Tensor ckd_loss_composed(const torch::Tensor& e, const ItemPairs& pairs,
                                const torch::Tensor& codes, const torch::Tensor& diagonal_codes,
                                const CodeHead& head);

/// Inputs of an item mixed by one scorer w2 . ReLU(W1 x + b1) + b2: alpha = softmax over those
/// present, h = sum alpha x. b2 moves all energies alike and may be undefined. Inputs [n, d] each;
/// `present` bool [n] or undefined for all.
struct Mixed {
  torch::Tensor h;      ///< [n, d]
  torch::Tensor alpha;  ///< [n, inputs]
};
Mixed gate(const std::vector<torch::Tensor>& inputs, const std::vector<torch::Tensor>& present,
           const torch::Tensor& w1, const torch::Tensor& b1, const torch::Tensor& w2,
           const torch::Tensor& b2);

/// The items of each row as a graph whose nodes are its distinct items in order of appearance.
struct RowGraphs {
  /// int64 [rows, T, T], T the most nodes of a row: of node u to v, 1 where u = v, 2 where v
  /// follows u somewhere in the row, 3 where v precedes u, 4 both, 0 neither, -1 where v is no
  /// node.
  torch::Tensor relation;
  torch::Tensor padded;        ///< int64 [rows, T], the nodes' items; 0 where there is no node
  torch::Tensor nodes, kept;   ///< int64 [n], all nodes' items, row by row; their places in padded
  torch::Tensor last, before;  ///< int64 [rows], nodes of the last item and of the one before it;
                               ///< a row of one item has it twice
};
/// Of rows of items, int64 [P], packed by offsets int64 [rows + 1]; none is empty.
RowGraphs row_graphs(const torch::Tensor& items, const torch::Tensor& offsets);

/// Attention over the relations of padded graphs: h [B, T, d]; relation int64 [B, T, T] with -1 no
/// node, 0 no edge, else r; q [4, d], amp [4]. score_uv = amp_r LeakyReLU_.1(h_u . (q_r h_v)),
/// softmax over v. `drop` sees the weights [B, T, T], or with `drop_scores` the scores before the
/// softmax: one of a pair without an edge that is dropped counts as 0 (released KDSR code). Every
/// row needs an edge. [B, T, d]
torch::Tensor relational_attention(const torch::Tensor& h, const torch::Tensor& relation,
                                   const torch::Tensor& q, const torch::Tensor& amp,
                                   const std::function<torch::Tensor(const torch::Tensor&)>& drop,
                                   bool drop_scores = false);

/// Pearson's correlation of two series; 0 where one is constant.
double pearson(const torch::Tensor& a, const torch::Tensor& b);

}  // namespace tessera
