#pragma once

#include <torch/types.h>

namespace tessera {

struct PartFactors;

// Ranking of all items (protocol section 4): score descending, equal scores by lower item index.
// Scores of a product are made block by block and never stored whole. No result depends on the
// number of threads or on which other users are ranked in the same call. Masks and results lie in
// main memory wherever the scores do.

/// What is no candidate: one sorted row of items a user, and items excluded for everybody. Any part
/// may be undefined.
struct RankMask {
  torch::Tensor offsets;   ///< int64 [n + 1]
  torch::Tensor items;     ///< int32, sorted within a user
  torch::Tensor excluded;  ///< bool [n_items]
};

/// The best k candidates of each user, best first.
struct TopK {
  torch::Tensor items;   ///< int32 [n, k], -1 after the end of a short list
  torch::Tensor scores;  ///< float32 [n, k], -infinity after the end
};

/// By inner product in float32: users [n, d], items [n_items, d]. A NaN score, also of a masked
/// item, ends with RunError (exit 5) naming its row and item; so for all functions here.
TopK top_k_product(const torch::Tensor& users, const torch::Tensor& items, const RankMask& mask,
                   int64_t k);
/// From scores [n, n_items].
TopK top_k_scores(const torch::Tensor& scores, const RankMask& mask, int64_t k);
TopK top_k_scores_composed(const torch::Tensor& scores, const RankMask& mask, int64_t k);
/// By attention over parts (ops/parts.h), the numbers of part_scores() bit for bit: a tile of items
/// whose upper bounds p.e + max(a) all stay below a user's k-th best so far is left out before its
/// softmax. Users without a bound yet pay for all.
TopK top_k_parts(const PartFactors& factors, const RankMask& mask, int64_t k);

/// Where held-out items stand among the candidates: `n_greater` candidates score higher,
/// `n_equal_other` other candidates score the same, `n_equal_lower` of them with a lower index. The
/// position in the list, from 0, is n_greater + n_equal_lower.
struct Ranks {
  torch::Tensor scores;                                   ///< float32 [m]
  torch::Tensor n_greater, n_equal_lower, n_equal_other;  ///< int64 [m]
  torch::Tensor n_candidates;                             ///< int64 [n]
};

/// `held_offsets` int64 [n + 1], `held_items` int32 [m].
Ranks count_above_product(const torch::Tensor& users, const torch::Tensor& items,
                          const RankMask& mask, const torch::Tensor& held_offsets,
                          const torch::Tensor& held_items);
Ranks count_above_scores(const torch::Tensor& scores, const RankMask& mask,
                         const torch::Tensor& held_offsets, const torch::Tensor& held_items);
Ranks count_above_scores_composed(const torch::Tensor& scores, const RankMask& mask,
                                  const torch::Tensor& held_offsets,
                                  const torch::Tensor& held_items);

}  // namespace tessera
