#pragma once

#include <torch/types.h>

#include <vector>

namespace tessera {

/// A sparse matrix by rows; a row's columns are distinct.
struct SparseRows {
  torch::Tensor offsets;  ///< int64 [n_rows + 1]
  torch::Tensor columns;  ///< int32 [n_entries]
  torch::Tensor values;   ///< [n_entries]; may be undefined where only the places matter
  bool defined() const { return offsets.defined(); }
};

/// Rows of length 1 in R^n that are never formed: x_j = (P q_j + s_j) / n_j, P [n, d] shared, q
/// [n_rows, d], s sparse; a row shorter than 1e-12 is 0 (mmssl section 8).
struct FactoredRows {
  torch::Tensor p, q;
  SparseRows s;           ///< undefined: 0
  torch::Tensor inverse;  ///< 1 / n_j or 0. [n_rows]
};
/// Lengths through P^T P in float64.
FactoredRows factored_rows(const torch::Tensor& p, const torch::Tensor& q,
                           const SparseRows& s = {});
/// The rows themselves, for small examples. [n_rows, n]
torch::Tensor dense_rows(const FactoredRows& rows);
/// X W of the rows of all lists, list after list; the tables P meet W in one wide product, which is
/// faster than a thin one for each. w [n, h]; [rows of all lists, h]
torch::Tensor rows_product(const std::vector<FactoredRows>& lists, const torch::Tensor& w);
/// out += X^T delta, X the rows of all lists. delta [rows of all lists, h], out [n, h]
void add_rows_transposed(const std::vector<FactoredRows>& lists, const torch::Tensor& delta,
                         torch::Tensor& out);

/// X W with a gradient to P and q. Where `masked` is given, entries of y = P q at its places are 0
/// before the row is scaled. W is constant; no [n_rows, n] array. [n_rows, h]
torch::Tensor factored_product(const torch::Tensor& p, const torch::Tensor& q,
                               const SparseRows& masked, const torch::Tensor& w);
/// The same by dense rows, for autograd.
torch::Tensor factored_product_composed(const torch::Tensor& p, const torch::Tensor& q,
                                        const SparseRows& masked, const torch::Tensor& w);

/// P_i . q_j at the places (j, i). [n_entries]
torch::Tensor entry_products(const torch::Tensor& p, const torch::Tensor& q,
                             const SparseRows& places);
torch::Tensor entry_products_composed(const torch::Tensor& p, const torch::Tensor& q,
                                      const SparseRows& places);
/// exp(values / tau) divided by its sum over the row. [n_entries]
torch::Tensor entry_softmax(const SparseRows& rows, double tau);
torch::Tensor entry_softmax_composed(const SparseRows& rows, double tau);
/// s with -P_i . q_j at its places: P q + s is 0 there.
SparseRows masking(const torch::Tensor& p, const torch::Tensor& q, const SparseRows& places);

/// Observed rows of MMSSL's published code, dense and of length 1 (mmssl section 3, `real =
/// softmax_all`): softmax((a + 1e-5 g) / tau) + 100 nrm(y), y the scores with 0 where a is 1.
/// `noise_only`: softmax(a + 1e-5 g / tau). a 0 or 1 and g float64, scores of any type: [n_rows, n]
torch::Tensor observed_rows(const torch::Tensor& a, const torch::Tensor& g,
                            const torch::Tensor& scores, double tau, bool noise_only);

}  // namespace tessera
