#pragma once

#include <vector>

#include "tessera/eval/evaluate.h"

namespace tessera {

/// Where a held-out item stands among a user's candidates.
struct Place {
  int64_t rank = 0;   ///< from 1; 0: masked or hidden
  int64_t above = 0;  ///< candidates with a higher score
  int64_t equal = 0;  ///< other candidates with the same score
};

struct RankedBlock {
  TopLists lists;
  std::vector<Place> places;  ///< parallel to the items of `held`; empty without it
};

/// Users that are ranked at once: at most `wanted`, and 256 MB of scores for a model that gives
/// them whole.
int64_t ranking_block(Model& model, int64_t wanted);

/// Ranks one block of queries; `mask`, `hidden` and `held` (sorted, distinct) may be undefined.
/// A NaN score ends with RunError (exit 5).
RankedBlock rank_block(Model& model, const Queries& queries, const Ragged& mask,
                       const torch::Tensor& hidden, const Ragged& held, int64_t k);

}  // namespace tessera
