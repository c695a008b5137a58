#pragma once

#include <optional>
#include <span>
#include <vector>

#include "tessera/eval/evaluate.h"

namespace tessera {

/// The held-out rows of a split; usage_error for the train split.
const Interactions& rows_of(const Dataset& data, Split split);
/// A user's items; none where the rows are absent.
std::span<const int32_t> row_of(const Interactions& rows, int64_t user);

/// What a scorer is asked about some users at the evaluation of a split: one that reads order
/// always gets histories. `held_before`, where it is not empty, is how many of a user's held-out
/// rows also belong to the history; `shuffle` is the seed of a random order of histories.
Queries make_queries(const Scorer& scorer, const Dataset& data, const Protocol& protocol,
                     Split split, std::span<const int64_t> users,
                     std::span<const int64_t> held_before = {},
                     std::optional<uint64_t> shuffle = std::nullopt);

}  // namespace tessera
