#pragma once

#include <torch/types.h>

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

/// Items by user, compressed rows. Rows keep the order in which they were given (time order where
/// time or position is known) and may repeat an item.
struct Interactions {
  torch::Tensor offsets;  ///< int64 [n_users + 1]
  torch::Tensor items;    ///< int32 [n_rows]

  int64_t n_users() const { return offsets.defined() ? offsets.size(0) - 1 : 0; }
  int64_t n_rows() const { return items.defined() ? items.size(0) : 0; }
  std::span<const int32_t> of(int64_t user) const {
    const auto* offset = offsets.const_data_ptr<int64_t>();
    return {items.const_data_ptr<int32_t>() + offset[user],
            static_cast<size_t>(offset[user + 1] - offset[user])};
  }
};

/// Groups pairs by user; a user's pairs keep their order.
Interactions make_interactions(int64_t n_users, std::span<const int32_t> users,
                               std::span<const int32_t> items);

/// Rows sorted by item, each item once: what masks, samplers and graphs read.
Interactions sorted_distinct(const Interactions& rows);

/// Number of rows of each item, int64 [n_items].
torch::Tensor item_counts(const Interactions& rows, int64_t n_items);

/// Users by item from items by user (offsets [n_items + 1], `items` holds user indices).
Interactions transposed(const Interactions& rows, int64_t n_items);

/// True when the sorted row holds `item`.
bool contains(std::span<const int32_t> sorted, int32_t item);

}  // namespace tessera
