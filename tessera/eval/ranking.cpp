#include "tessera/eval/ranking.h"

#include <algorithm>

#include "tessera/base/error.h"

namespace tessera {

const Interactions& rows_of(const Dataset& data, Split split) {
  if (split == Split::valid) return data.valid;
  if (split == Split::test) return data.test;
  throw usage_error("split '{}' holds nothing out: choose valid or test", split_name(split));
}

std::span<const int32_t> row_of(const Interactions& rows, int64_t user) {
  return rows.n_rows() > 0 ? rows.of(user) : std::span<const int32_t>();
}

Queries make_queries(const Scorer& scorer, const Dataset& data, const Protocol& protocol,
                     Split split, std::span<const int64_t> users,
                     std::span<const int64_t> held_before, std::optional<uint64_t> shuffle) {
  Queries queries;
  queries.users = torch::tensor(std::vector<int64_t>(users.begin(), users.end()), torch::kInt64);
  const bool sequential = scorer.reads_order();
  if (!sequential && data.history.n_rows() == 0) return queries;
  const bool with_valid = sequential && split == Split::test && protocol.sequential_sees_valid;
  std::vector<int32_t> items;
  std::vector<int64_t> offsets = {0};
  for (size_t index = 0; index < users.size(); ++index) {
    const int64_t user = users[index];
    for (const Interactions* rows : {&data.history, &data.train, &data.valid}) {
      if (rows == &data.valid && !with_valid) continue;
      const std::span<const int32_t> row = row_of(*rows, user);
      items.insert(items.end(), row.begin(), row.end());
    }
    if (sequential && !held_before.empty()) {
      const auto held = row_of(rows_of(data, split), user);
      items.insert(items.end(), held.begin(), held.begin() + held_before[index]);
    }
    if (sequential && shuffle) {
      const auto begin = items.begin() + offsets.back();
      std::vector<int32_t> history(begin, items.end());
      Random(*shuffle, "evaluate/shuffle").shuffle(history, 0, static_cast<uint64_t>(user));
      std::copy(history.begin(), history.end(), begin);
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  queries.histories = packed(items, offsets);
  return queries;
}

}  // namespace tessera
