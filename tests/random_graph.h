#pragma once

#include <torch/types.h>

#include <functional>
#include <set>
#include <vector>

#include "tessera/base/random.h"
#include "tessera/ops/graph.h"

namespace tessera::planted {

/// A graph whose user u has degree(u) distinct items, all items alike.
inline BipartiteGraph random_graph(int64_t n_users, int64_t n_items,
                                   const std::function<size_t(int64_t)>& degree) {
  const Random random(7, "edges");
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < n_users; ++u) {
    std::set<int32_t> row;
    uint32_t draw = 0;
    while (row.size() < degree(u)) {
      row.insert(static_cast<int32_t>(
          random.below(static_cast<uint32_t>(n_items), 0, static_cast<uint64_t>(u), draw)));
    }
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32), n_items};
}

}  // namespace tessera::planted
