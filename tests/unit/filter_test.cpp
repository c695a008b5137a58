#include "tessera/import/filter.h"

#include <gtest/gtest.h>

#include <tuple>

#include "tessera/base/error.h"
#include "tessera/read/readers.h"
#include "tests/unit/real_data.h"

namespace tessera {
namespace {

EventTable table_of(const std::vector<std::pair<const char*, const char*>>& pairs) {
  EventTable table;
  for (const auto& [user, item] : pairs) {
    table.user.push_back(table.users.add(user));
    table.item.push_back(table.items.add(item));
  }
  return table;
}

std::string rows_of(const EventTable& table) {
  std::string out;
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    out +=
        std::string(table.users[table.user[row]]) + std::string(table.items[table.item[row]]) + " ";
  }
  return out;
}

TEST(Filter, KeepsRatingsAtOrAboveTheThreshold) {
  EventTable table = table_of({{"a", "x"}, {"a", "y"}, {"b", "x"}});
  table.rating = {4, 3.5, 5};
  const auto steps = apply_filters(table, {.min_rating = 4.0});
  EXPECT_EQ(rows_of(table), "ax bx ");
  EXPECT_EQ(table.rating, (std::vector<float>{4, 5}));
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].before, (TableCounts{2, 2, 3}));
  EXPECT_EQ(steps[0].after, (TableCounts{2, 1, 2}));
}

TEST(Filter, RefusesAThresholdWithoutRatings) {
  EventTable table = table_of({{"a", "x"}});
  try {
    apply_filters(table, {.min_rating = 4.0});
    FAIL() << "no error";
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_STREQ(e.what(), "`min_rating` 4: the interactions have no ratings");
  }
}

TEST(Filter, KeepsTheEarliestOfRepeats) {
  EventTable table = table_of({{"a", "x"}, {"a", "y"}, {"a", "x"}, {"a", "y"}, {"b", "x"}});
  table.time = {5, 7, 3, 7, 1};
  table.time_unit = "s";
  const auto steps = apply_filters(table, {});
  // x at 3 is earlier than x at 5; y ties at 7, so the first file row stays.
  EXPECT_EQ(table.time, (std::vector<int64_t>{7, 3, 1}));
  EXPECT_EQ(rows_of(table), "ay ax bx ");
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0].n_repeats, 2);
}

TEST(Filter, KeepsAndCountsRepeatsWhenAsked) {
  EventTable table = table_of({{"a", "x"}, {"a", "x"}, {"a", "x"}});
  const auto steps = apply_filters(table, {.keep_repeats = true});
  EXPECT_EQ(table.n_rows(), 3);
  EXPECT_EQ(steps[0].n_repeats, 2);
}

TEST(Filter, ReadEventsAreNoRepeatOfAnEvent) {
  EventTable table = table_of({{"a", "x"}, {"a", "x"}, {"a", "x"}});
  table.split = {Split::seen, Split::none, Split::seen};
  const auto steps = apply_filters(table, {});
  EXPECT_EQ(table.split, (std::vector<Split>{Split::seen, Split::none}));
  EXPECT_EQ(steps[0].n_repeats, 0);
  EXPECT_EQ(steps[0].n_seen, 1);
}

TEST(Filter, CoreRepeatsUntilStable) {
  // By hand, k = 2: z has one user and leaves with c's second partner; then c has one item and
  // leaves; then y has one user (b); then b has one item; x, w keep users a and d.
  EventTable table = table_of({{"a", "x"},
                               {"a", "w"},
                               {"d", "x"},
                               {"d", "w"},
                               {"b", "x"},
                               {"b", "y"},
                               {"c", "y"},
                               {"c", "z"}});
  const auto steps = apply_filters(table, {.core_users = 2, .core_items = 2});
  EXPECT_EQ(rows_of(table), "ax aw dx dw ");
  EXPECT_EQ(steps[1].after, (TableCounts{2, 2, 4}));
}

TEST(Filter, CoreCountsDistinctPartners) {
  EventTable table = table_of(
      {{"a", "x"}, {"a", "x"}, {"a", "y"}, {"b", "x"}, {"b", "y"}, {"c", "x"}, {"c", "x"}});
  apply_filters(table, {.keep_repeats = true, .core_users = 2, .core_items = 2});
  EXPECT_EQ(rows_of(table), "ax ax ay bx by ");
}

TEST(Filter, ReadEventsDoNotHoldAnItemInTheCore) {
  EventTable table =
      table_of({{"a", "x"}, {"a", "y"}, {"b", "x"}, {"b", "y"}, {"a", "z"}, {"b", "z"}});
  table.split = {Split::none, Split::none, Split::none, Split::none, Split::seen, Split::seen};
  const auto steps = apply_filters(table, {.core_users = 2, .core_items = 2});
  EXPECT_EQ(rows_of(table), "ax ay bx by ");
  EXPECT_EQ(steps[1].n_seen, 2);
}

EventTable read_real(const std::string& file) {
  EventTable table;
  Json report;
  read_interactions(detect_sources({real_data(file)}), {}, table, report);
  return table;
}

// specs/protocol.md section 9: (k, users, items, interactions).
using CoreRow = std::tuple<int64_t, int64_t, int64_t, int64_t>;

void expect_cores(const EventTable& table, const std::vector<CoreRow>& rows) {
  for (const auto& [k, users, items, interactions] : rows) {
    EventTable copy = table;
    const auto steps =
        apply_filters(copy, {.keep_repeats = true, .core_users = k, .core_items = k});
    EXPECT_EQ(steps[1].after, (TableCounts{users, items, interactions})) << k << "-core";
  }
}

TEST(Filter, CoresOfMl100k) {
  if (!std::filesystem::exists(real_data("ml-100k"))) GTEST_SKIP() << why_without("ml-100k");
  EventTable table = read_real("ml-100k/u.data");
  EXPECT_EQ(count_table(table), (TableCounts{943, 1682, 100000}));
  expect_cores(table, {{5, 943, 1349, 99287}, {10, 943, 1152, 97953}});
  apply_filters(table, {.min_rating = 4.0});
  EXPECT_EQ(table.n_rows(), 55375);
}

TEST(Filter, CoresOfMl1m) {
  if (!std::filesystem::exists(real_data("ml-1m"))) GTEST_SKIP() << why_without("ml-1m");
  const EventTable table = read_real("ml-1m/interactions.tsv");
  EXPECT_EQ(count_table(table), (TableCounts{6040, 3706, 1000209}));
  expect_cores(table, {{5, 6040, 3416, 999611}, {10, 6040, 3260, 998539}});
}

}  // namespace
}  // namespace tessera
