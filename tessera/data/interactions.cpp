#include "tessera/data/interactions.h"

#include <algorithm>

namespace tessera {
namespace {

Interactions allocate(int64_t n_rows, const std::vector<int64_t>& offsets) {
  Interactions out;
  out.offsets = torch::tensor(offsets, torch::kInt64);
  out.items = torch::empty({n_rows}, torch::kInt32);
  return out;
}

}  // namespace

Interactions make_interactions(int64_t n_users, std::span<const int32_t> users,
                               std::span<const int32_t> items) {
  std::vector<int64_t> offsets(n_users + 1, 0);
  for (const int32_t user : users) ++offsets[user + 1];
  for (int64_t u = 0; u < n_users; ++u) offsets[u + 1] += offsets[u];
  Interactions out = allocate(static_cast<int64_t>(items.size()), offsets);
  auto* to = out.items.mutable_data_ptr<int32_t>();
  for (size_t i = 0; i < users.size(); ++i) to[offsets[users[i]]++] = items[i];
  return out;
}

Interactions sorted_distinct(const Interactions& rows) {
  std::vector<int32_t> items;
  items.reserve(rows.n_rows());
  std::vector<int64_t> offsets = {0};
  for (int64_t u = 0; u < rows.n_users(); ++u) {
    const auto row = rows.of(u);
    const auto begin = static_cast<int64_t>(items.size());
    items.insert(items.end(), row.begin(), row.end());
    std::sort(items.begin() + begin, items.end());
    items.erase(std::unique(items.begin() + begin, items.end()), items.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  Interactions out = allocate(static_cast<int64_t>(items.size()), offsets);
  std::copy(items.begin(), items.end(), out.items.mutable_data_ptr<int32_t>());
  return out;
}

torch::Tensor item_counts(const Interactions& rows, int64_t n_items) {
  torch::Tensor counts = torch::zeros({n_items}, torch::kInt64);
  auto* to = counts.mutable_data_ptr<int64_t>();
  const auto* items = rows.items.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < rows.n_rows(); ++i) ++to[items[i]];
  return counts;
}

Interactions transposed(const Interactions& rows, int64_t n_items) {
  std::vector<int32_t> users, items(rows.items.const_data_ptr<int32_t>(),
                                    rows.items.const_data_ptr<int32_t>() + rows.n_rows());
  users.reserve(items.size());
  for (int64_t u = 0; u < rows.n_users(); ++u) {
    users.insert(users.end(), rows.of(u).size(), static_cast<int32_t>(u));
  }
  return make_interactions(n_items, items, users);
}

bool contains(std::span<const int32_t> sorted, int32_t item) {
  return std::binary_search(sorted.begin(), sorted.end(), item);
}

}  // namespace tessera
