#pragma once

#include <torch/types.h>

#include <vector>

namespace tessera {

/// Where the rows of B pairs and of their K negatives stand in a table of users and one of items.
struct Triples {
  torch::Tensor users, positives;  ///< int64 [B]
  torch::Tensor negatives;         ///< int64 [B, K]
};

/// BPR (baselines section 0), -mean logsigmoid(s_up - s_un) over the B x K margins of the rows that
/// `at` names, which are never set side by side: users [U, d], items [I, d]; `offsets` [I], where
/// given, are added to the scores. Backward each row of a gradient is summed by one thread in the
/// order of the pairs: equal for any number of threads. float32, float64
torch::Tensor bpr_loss(const torch::Tensor& users, const torch::Tensor& items, const Triples& at,
                       const torch::Tensor& offsets = {});
torch::Tensor bpr_loss_composed(const torch::Tensor& users, const torch::Tensor& items,
                                const Triples& at, const torch::Tensor& offsets = {});

/// a[a_at[r]] . b[b_at[r]] for each r, the rows never set side by side; a [A, d], b [B, d], indices
/// int64 [n]. The gradients' sums as those of bpr_loss. [n]
torch::Tensor row_dots(const torch::Tensor& a, const torch::Tensor& b, const torch::Tensor& a_at,
                       const torch::Tensor& b_at);
torch::Tensor row_dots_composed(const torch::Tensor& a, const torch::Tensor& b,
                                const torch::Tensor& a_at, const torch::Tensor& b_at);

/// l2_rows of the rows of `table` [N, d] that the lists name, a row as often as it is named.
torch::Tensor l2_rows(const torch::Tensor& table, const std::vector<torch::Tensor>& rows,
                      int64_t batch_size);
torch::Tensor l2_rows_composed(const torch::Tensor& table, const std::vector<torch::Tensor>& rows,
                               int64_t batch_size);

/// l2_rows of the users, positives and negatives.
inline torch::Tensor l2_rows(const torch::Tensor& users, const torch::Tensor& items,
                             const Triples& at, int64_t batch_size) {
  return l2_rows(users, {at.users}, batch_size) +
         l2_rows(items, {at.positives, at.negatives}, batch_size);
}
/// norm_rows of the users, positives and negatives.
torch::Tensor norm_rows(const torch::Tensor& users, const torch::Tensor& items, const Triples& at,
                        int64_t batch_size);

}  // namespace tessera
