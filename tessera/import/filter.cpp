#include "tessera/import/filter.h"

#include <algorithm>

#include "tessera/base/error.h"
#include "tessera/base/stop.h"
#include "tessera/data/rows.h"

namespace tessera {
namespace {

bool is_seen(const EventTable& table, int64_t row) {
  return !table.split.empty() && table.split[row] == Split::seen;
}

template <typename T>
void keep_values(std::vector<T>& values, const std::vector<uint8_t>& keep) {
  if (values.empty()) return;
  size_t to = 0;
  for (size_t row = 0; row < values.size(); ++row) {
    if (keep[row]) values[to++] = values[row];
  }
  values.resize(to);
}

FilterStep filter_rating(EventTable& table, double threshold) {
  FilterStep step{.name = "min_rating", .value = threshold, .before = count_table(table)};
  if (table.rating.empty()) {
    throw usage_error("`min_rating` {}: the interactions have no ratings", threshold);
  }
  std::vector<uint8_t> keep(table.n_rows());
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    keep[row] = is_seen(table, row) || table.rating[row] >= threshold;
  }
  keep_rows(table, keep);
  step.after = count_table(table);
  return step;
}

FilterStep filter_repeats(EventTable& table, bool keep_repeats) {
  FilterStep step{
      .name = "repeats", .value = keep_repeats ? "kept" : "earliest", .before = count_table(table)};
  std::vector<uint8_t> keep(table.n_rows(), 1);
  {
    const RowsByUser by_user = rows_by_user(table.users.size(), table.user, table.time);
    // The last user in whose rows the item was met, as event and as read event.
    std::vector<int32_t> met(table.items.size(), -1), met_seen(table.items.size(), -1);
    for (int32_t user = 0; user < table.users.size(); ++user) {
      for (const int32_t row : by_user.of(user)) {
        const bool seen = is_seen(table, row);
        int32_t& last = (seen ? met_seen : met)[table.item[row]];
        if (last == user) {
          keep[row] = 0;
          ++(seen ? step.n_seen : step.n_repeats);
        }
        last = user;
      }
    }
  }
  if (!keep_repeats && step.n_repeats + step.n_seen > 0) keep_rows(table, keep);
  if (keep_repeats) step.n_seen = 0;
  step.after = count_table(table);
  return step;
}

/// One user's or item's distinct partners are counted once and lowered as partners leave.
FilterStep filter_core(EventTable& table, int64_t k_user, int64_t k_item,
                       const std::function<bool()>& stop_requested) {
  FilterStep step{.name = "core", .value = {k_user, k_item}, .before = count_table(table)};
  const int64_t n_users = table.users.size(), n_items = table.items.size();
  std::vector<uint8_t> user_stays(n_users, 1), item_stays(n_items, 1);
  {
    const RowsByUser by_user = rows_by_user(n_users, table.user, {});
    const RowsByUser by_item = rows_by_user(n_items, table.item, {});
    std::vector<int32_t> user_degree(n_users, 0), item_degree(n_items, 0);
    std::vector<uint8_t> first(table.n_rows(), 0);  // the first row of each distinct pair
    std::vector<int32_t> met(n_items, -1);
    for (int32_t user = 0; user < n_users; ++user) {
      for (const int32_t row : by_user.of(user)) {
        if (is_seen(table, row) || met[table.item[row]] == user) continue;
        met[table.item[row]] = user;
        first[row] = 1;
        ++user_degree[user];
        ++item_degree[table.item[row]];
      }
    }
    std::vector<int32_t> users_out, items_out;
    const auto collect = [](const std::vector<int32_t>& degree, int64_t k,
                            std::vector<uint8_t>& stays, std::vector<int32_t>& out) {
      out.clear();
      for (size_t i = 0; i < stays.size(); ++i) {
        if (stays[i] && degree[i] < k) out.push_back(static_cast<int32_t>(i));
      }
      for (const int32_t i : out) stays[i] = 0;
    };
    for (;;) {
      end_if_stopped(stop_requested);
      collect(user_degree, k_user, user_stays, users_out);
      collect(item_degree, k_item, item_stays, items_out);
      if (users_out.empty() && items_out.empty()) break;
      for (const int32_t user : users_out) {
        for (const int32_t row : by_user.of(user)) item_degree[table.item[row]] -= first[row];
      }
      for (const int32_t item : items_out) {
        for (const int32_t row : by_item.of(item)) user_degree[table.user[row]] -= first[row];
      }
    }
  }
  std::vector<uint8_t> keep(table.n_rows());
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    keep[row] = user_stays[table.user[row]] && item_stays[table.item[row]];
    step.n_seen += !keep[row] && is_seen(table, row);
  }
  keep_rows(table, keep);
  step.after = count_table(table);
  return step;
}

}  // namespace

TableCounts count_table(const EventTable& table) {
  std::vector<bool> users(table.users.size()), items(table.items.size());
  TableCounts counts;
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    if (is_seen(table, row)) continue;
    users[table.user[row]] = true;
    items[table.item[row]] = true;
    ++counts.interactions;
  }
  counts.users = std::count(users.begin(), users.end(), true);
  counts.items = std::count(items.begin(), items.end(), true);
  return counts;
}

void keep_rows(EventTable& table, const std::vector<uint8_t>& keep) {
  keep_values(table.user, keep);
  keep_values(table.item, keep);
  keep_values(table.rating, keep);
  keep_values(table.time, keep);
  keep_values(table.event, keep);
  keep_values(table.split, keep);
}

std::vector<FilterStep> apply_filters(EventTable& table, const FilterOptions& options) {
  std::vector<FilterStep> steps;
  if (options.min_rating) steps.push_back(filter_rating(table, *options.min_rating));
  end_if_stopped(options.stop_requested);
  steps.push_back(filter_repeats(table, options.keep_repeats));
  end_if_stopped(options.stop_requested);
  if (options.core_users > 1 || options.core_items > 1) {
    steps.push_back(
        filter_core(table, options.core_users, options.core_items, options.stop_requested));
  }
  return steps;
}

}  // namespace tessera
