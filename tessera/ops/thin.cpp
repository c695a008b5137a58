#include "tessera/ops/thin.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace tessera {

BipartiteGraph thinned(const BipartiteGraph& graph, double dropout, const Random& random,
                       int64_t step) {
  if (dropout == 0) return graph;
  const auto& parts = graph.parts();
  const int64_t n_edges = graph.n_edges();
  const auto kept =
      static_cast<int64_t>(std::floor(static_cast<double>(n_edges) * (1.0 - dropout)));
  const int64_t* from = parts.user_offsets.const_data_ptr<int64_t>();
  const int32_t* item = parts.user_items.const_data_ptr<int32_t>();
  const double* user_root = parts.user_root.const_data_ptr<double>();
  const double* item_root = parts.item_root.const_data_ptr<double>();
  // The largest of log weight + Gumbel noise: the same law as one draw after another.
  std::vector<double> keys(static_cast<size_t>(n_edges));
  std::vector<int64_t> order(keys.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t u = 0; u < graph.n_users(); ++u) {
    for (int64_t e = from[u]; e < from[u + 1]; ++e) {
      const double uniform =
          (random.bits(static_cast<uint64_t>(step), static_cast<uint64_t>(e), 0) + 0.5) * 0x1p-32;
      keys[static_cast<size_t>(e)] =
          std::log(user_root[u] * item_root[item[e]]) - std::log(-std::log(uniform));
    }
  }
  const auto first = [&](int64_t a, int64_t b) {
    const double x = keys[static_cast<size_t>(a)], y = keys[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::nth_element(order.begin(), order.begin() + kept, order.end(), first);
  std::vector<char> keep(keys.size(), 0);
  for (int64_t j = 0; j < kept; ++j) keep[static_cast<size_t>(order[static_cast<size_t>(j)])] = 1;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < graph.n_users(); ++u) {
    for (int64_t e = from[u]; e < from[u + 1]; ++e) {
      if (keep[static_cast<size_t>(e)] != 0) items.push_back(item[e]);
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32),
          graph.n_items()};
}

}  // namespace tessera
