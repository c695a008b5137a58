#pragma once

#include <optional>
#include <span>
#include <vector>

#include "tessera/eval/evaluate.h"
#include "tessera/ops/parts.h"

namespace tessera {

/// Where a held-out item stands among a user's candidates.
struct Place {
  int64_t rank = 0;   ///< from 1; 0: masked or hidden
  int64_t above = 0;  ///< candidates with a higher score
  int64_t equal = 0;  ///< other candidates with the same score
};

struct Places {
  std::vector<Place> items;           ///< parallel to the held-out items
  std::vector<int64_t> n_candidates;  ///< by row
};

/// The held-out rows of a split; usage_error for the train split.
const Interactions& rows_of(const Dataset& data, Split split);
/// A user's items; none where the rows are absent.
std::span<const int32_t> row_of(const Interactions& rows, int64_t user);
Ragged packed(const std::vector<int32_t>& items, const std::vector<int64_t>& offsets);
/// A model that scores from the order of a history and was trained on rows of such.
bool is_sequential(const Model& model);

/// What the model is asked about some users at the evaluation of a split: a sequence model always
/// gets histories. `held_before`, where it is not empty, is how many of a user's held-out rows also
/// belong to the history; `shuffle` is the seed of a random order of histories.
Queries make_queries(const Model& model, const Dataset& data, const Protocol& protocol, Split split,
                     std::span<const int64_t> users, std::span<const int64_t> held_before = {},
                     std::optional<uint64_t> shuffle = std::nullopt);

/// Users that are ranked at once: at most `wanted`, and 256 MB of scores for a model that gives
/// them whole.
int64_t ranking_block(Model& model, int64_t wanted);

/// The scores of one block of queries: whole, or as factors or parts whose scores are made and
/// ranked piece by piece. The model outlives it. A NaN score ends with RunError (exit 5). `mask`
/// (rows sorted) and `hidden` may be undefined.
class BlockScores {
 public:
  BlockScores(Model& model, const Queries& queries);
  TopLists top(const Ragged& mask, const torch::Tensor& hidden, int64_t k) const;
  /// `held`: sorted distinct items by row.
  Places places(const Ragged& mask, const torch::Tensor& hidden, const Ragged& held) const;

 private:
  const torch::Tensor& scores() const;
  Model& model_;
  const Queries queries_;
  torch::Tensor users_, items_;       // [n, dim], [n_items, dim], or
  std::optional<PartFactors> parts_;  // for lists, or
  mutable torch::Tensor scores_;      // [n, n_items], once asked for
};

}  // namespace tessera
