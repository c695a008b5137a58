#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tessera/data/events.h"
#include "tessera/data/vocabulary.h"

namespace tessera {

/// Row numbers grouped by user. A user's rows stand in time order, ties by file row, where times
/// are known, else in file order.
struct RowsByUser {
  std::vector<int64_t> offsets;  ///< [n_users + 1]
  std::vector<int32_t> rows;
  std::span<const int32_t> of(int64_t user) const {
    return std::span(rows).subspan(offsets[user], offsets[user + 1] - offsets[user]);
  }
};
RowsByUser rows_by_user(int64_t n_users, std::span<const int32_t> user,
                        std::span<const int64_t> time);

/// SHA-256 over the lines "user<TAB>item" (`with_split`: "user<TAB>item<TAB>split") of raw ids,
/// sorted bytewise, each ended by a line feed. `pairs_of` appends the rows of one user, so that
/// no list of all rows is ever made.
using UserPairs = std::vector<std::pair<int32_t, Split>>;
std::string pairs_sha256(const Vocabulary& users, const Vocabulary& items, bool with_split,
                         const std::function<void(int32_t user, UserPairs&)>& pairs_of);

}  // namespace tessera
