#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tessera/data/events.h"

namespace tessera {

/// What counts before and after a filter: rows that train or are held out, never read events.
struct TableCounts {
  int64_t users = 0, items = 0, interactions = 0;
  bool operator==(const TableCounts&) const = default;
};
TableCounts count_table(const EventTable& table);

struct FilterStep {
  std::string name;  ///< "min_rating", "repeats", "core"
  Json value;        ///< the threshold, "earliest" | "kept", [k of users, k of items]
  TableCounts before = {}, after = {};
  int64_t n_repeats = 0;  ///< rows that repeat an earlier (user, item), dropped or not
  int64_t n_seen = 0;     ///< read events that left with their user or item, or repeat one
};

struct FilterOptions {
  std::optional<double> min_rating = {};  ///< keep rating >= this
  bool keep_repeats = false;
  /// Users and items with fewer distinct partners leave, until stable.
  int64_t core_users = 0, core_items = 0;
  std::function<bool()> stop_requested = {};  ///< asked between steps; then exit 130
};

/// The filters of specs/protocol.md section 2, in its order. Rows of the table are removed, ids
/// stay. Rows labelled `seen` take no part in counts, have repeats dropped among themselves and
/// leave with their user or item. Exit 2 for a rating threshold on data without ratings.
std::vector<FilterStep> apply_filters(EventTable& table, const FilterOptions& options);

/// Removes the rows whose `keep` is 0; `keep` [n_rows].
void keep_rows(EventTable& table, const std::vector<uint8_t>& keep);

}  // namespace tessera
