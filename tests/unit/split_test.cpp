#include "tessera/import/split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tessera/read/readers.h"
#include "tests/unit/real_data.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

using Sizes = std::array<int64_t, 3>;
constexpr std::array<double, 3> kEight = {.8, .1, .1};

/// `n_rows[u]` rows of user u with items 0, 1, ..; times count up.
EventTable users_with(const std::vector<int64_t>& n_rows, const std::string& unit = "s") {
  EventTable table;
  table.time_unit = unit;
  for (size_t u = 0; u < n_rows.size(); ++u) {
    for (int64_t i = 0; i < n_rows[u]; ++i) {
      table.user.push_back(table.users.add(std::to_string(u)));
      table.item.push_back(table.items.add(std::to_string(i)));
      if (!unit.empty()) table.time.push_back(unit == "position" ? i : 1000 + i);
    }
  }
  return table;
}

Sizes counts(const EventTable& table) {
  Sizes out = {0, 0, 0};
  for (const Split split : table.split) {
    if (split <= Split::test) ++out[static_cast<int>(split)];
  }
  return out;
}

std::string labels(const EventTable& table) {
  std::string out;
  // t, v, h of train, valid, history; e of test.
  for (const Split split : table.split) out += split_name(split)[split == Split::test];
  return out;
}

// The table of specs/protocol.md section 3.
TEST(Split, RoundingTable) {
  const std::vector<int64_t> n = {1, 2, 3, 5, 9, 10, 14, 15, 19, 20, 25, 30, 35, 100};
  const std::vector<Sizes> mmrec = {{1, 0, 0},  {2, 0, 0},  {1, 1, 1},  {3, 1, 1},   {7, 1, 1},
                                    {8, 1, 1},  {12, 1, 1}, {12, 1, 2}, {16, 1, 2},  {16, 2, 2},
                                    {20, 2, 3}, {24, 3, 3}, {28, 3, 4}, {80, 10, 10}};
  const std::vector<Sizes> recbole = {{1, 0, 0},  {1, 0, 1},  {1, 1, 1},  {3, 1, 1},   {7, 1, 1},
                                      {8, 1, 1},  {12, 1, 1}, {13, 1, 1}, {17, 1, 1},  {16, 2, 2},
                                      {21, 2, 2}, {24, 3, 3}, {29, 3, 3}, {80, 10, 10}};
  for (size_t i = 0; i < n.size(); ++i) {
    EXPECT_EQ(held_out_sizes(n[i], Rounding::mmrec, kEight), mmrec[i]) << n[i];
    EXPECT_EQ(held_out_sizes(n[i], Rounding::recbole, kEight), recbole[i]) << n[i];
    const Sizes swapped = {mmrec[i][0], mmrec[i][2], mmrec[i][1]};
    EXPECT_EQ(held_out_sizes(n[i], Rounding::lattice, kEight), swapped) << n[i];
  }
}

TEST(Split, FloorRoundsDownTheTestRows) {
  EXPECT_EQ(held_out_sizes(4, Rounding::floor, {.8, 0, .2}), (Sizes{4, 0, 0}));
  EXPECT_EQ(held_out_sizes(14, Rounding::floor, {.8, 0, .2}), (Sizes{12, 0, 2}));
  // .29 * 100 is below 29 in doubles; the ratio is meant as a decimal.
  EXPECT_EQ(held_out_sizes(100, Rounding::floor, {.71, 0, .29}), (Sizes{71, 0, 29}));
}

TEST(Split, NamesAreReadWithDashOrUnderscore) {
  EXPECT_EQ(parse_split("leave_one_out").name(), "leave-one-out");
  EXPECT_EQ(parse_split("Leave-One-Out").kind, SplitKind::leave_one_out);
  EXPECT_EQ(parse_split("k_fold:7").folds, 7);
  EXPECT_EQ(parse_split("k-fold").folds, 5);
  EXPECT_EQ(parse_split("cold-user:3").history, 3);
  EXPECT_EQ(parse_split("random").rounding, Rounding::mmrec);
  EXPECT_EQ(parse_split("random:.8,.1,.1").rounding, Rounding::recbole);
  EXPECT_EQ(parse_split("random:.8,.1,.1", "mmrec").rounding, Rounding::mmrec);
  EXPECT_EQ(parse_split("temporal-user:.7,.3").ratios, (std::array<double, 3>{.7, 0, .3}));
}

TEST(Split, DatesAreUnixSeconds) {
  const SplitSpec spec = parse_split("temporal-global:2000-03-01,2020-01-01T12:30:05");
  // date -u -d 2000-03-01 +%s; date -u -d 2020-01-01T12:30:05 +%s
  EXPECT_EQ(spec.cuts, (std::array<int64_t, 2>{951868800, 1577881805}));
  EXPECT_TRUE(spec.has_cuts);
  EXPECT_FALSE(parse_split("temporal-global:.8,.1,.1").has_cuts);
}

TEST(Split, WrongSpecificationsAreUsageErrors) {
  EXPECT_EQ(error_of([] { parse_split("leave-one-uot"); }),
            "2: no split 'leave-one-uot' (did you mean 'leave-one-out'?): there are given, random, "
            "leave-one-out, temporal-user, temporal-global, cold-item, cold-user, k-fold");
  EXPECT_EQ(error_of([] { parse_split("random", "recbol"); }),
            "2: no rounding 'recbol' (did you mean 'recbole'?): there are mmrec, lattice, recbole, "
            "floor");
  for (const char* wrong :
       {"", ":", "random:", "random:.8", "random:.8,.1,.2", "random:0,.5,.5", "random:a,b",
        "random:.8,.1,.1,0", "random:nan,0,1", "given:1", "k-fold:1", "k-fold:256", "k-fold:x",
        "cold-user:-1", "temporal-global:2020-01-01", "temporal-global:2020-13-01,2021-01-01",
        "temporal-global:2021-01-01,2020-01-01", "temporal-global:2021-02-29,2021-03-01",
        "leave-one-out:2"}) {
    EXPECT_EQ(error_of([&] { parse_split(wrong); }).substr(0, 2), "2:") << wrong;
  }
  EXPECT_EQ(error_of([] { parse_split("leave-one-out", "mmrec"); }).substr(0, 2), "2:");
  EXPECT_EQ(error_of([] { parse_split("random:.7,.1,.2", "mmrec"); }).substr(0, 2), "2:");
}

TEST(Split, RandomKeepsSizesAndDependsOnSeedAndUserOnly) {
  EventTable table = users_with({20, 7, 2}, "");
  assign_split(table, parse_split("random"));
  EXPECT_EQ(counts(table), (Sizes{16 + 5 + 2, 2 + 1, 2 + 1}));
  EventTable other = users_with({20, 3}, "");
  assign_split(other, parse_split("random"));
  EXPECT_EQ(labels(table).substr(0, 20), labels(other).substr(0, 20));
  assign_split(other, parse_split("random", "", 1000));
  EXPECT_NE(labels(table).substr(0, 20), labels(other).substr(0, 20));
}

TEST(Split, LeaveOneOutTakesTheLastRows) {
  EventTable table = users_with({4, 3, 2, 1});
  assign_split(table, parse_split("leave-one-out"));
  // Users of 4, 3, 2 and 1 rows: ttve tve te t.
  EXPECT_EQ(labels(table), "ttvetvetet");
  EXPECT_EQ(counts(table), (Sizes{2 + 1 + 1 + 1, 2, 3}));
}

TEST(Split, TiesOfTimeStayInFileOrder) {
  EventTable table = users_with({4});
  table.time = {9, 5, 5, 5};
  assign_split(table, parse_split("leave-one-out"));
  // In time order: rows 1, 2, 3, 0.
  EXPECT_EQ(table.split,
            (std::vector<Split>{Split::test, Split::train, Split::train, Split::valid}));
}

TEST(Split, TemporalUserCutsInTimeOrder) {
  EventTable table = users_with({10});
  std::reverse(table.time.begin(), table.time.end());
  assign_split(table, parse_split("temporal-user"));
  EXPECT_EQ(table.split[0], Split::test);
  EXPECT_EQ(table.split[1], Split::valid);
  EXPECT_EQ(table.split[2], Split::train);
  EXPECT_EQ(counts(table), (Sizes{8, 1, 1}));
}

TEST(Split, TemporalGlobalQuantilesAreLinear) {
  EventTable table = users_with({10});
  for (int64_t i = 0; i < 10; ++i) table.time[i] = i + 1;
  // By hand: 1 + .8 * 9 = 8.2 and 1 + .9 * 9 = 9.1.
  const SplitResult result = assign_split(table, parse_split("temporal-global"));
  EXPECT_NEAR(result.drawn["cut_times"][0].get<double>(), 8.2, 1e-9);
  EXPECT_NEAR(result.drawn["cut_times"][1].get<double>(), 9.1, 1e-9);
  EXPECT_EQ(counts(table), (Sizes{8, 1, 1}));
  EXPECT_EQ(table.split[8], Split::valid);
  EXPECT_EQ(table.split[9], Split::test);
}

TEST(Split, TemporalGlobalByDatesIncludesTheCut) {
  EventTable table = users_with({4}, "ms");
  const int64_t day = 86400000;
  table.time = {10 * day - 1, 10 * day, 12 * day - 1, 12 * day};
  assign_split(table, parse_split("temporal-global:1970-01-11,1970-01-13"));
  EXPECT_EQ(table.split,
            (std::vector<Split>{Split::train, Split::valid, Split::valid, Split::test}));
}

TEST(Split, OrderAndTimesAreAskedFor) {
  EventTable none = users_with({3}, ""), order = users_with({3}, "position");
  EXPECT_EQ(
      error_of([&] { assign_split(none, parse_split("leave-one-out")); }),
      "3: split leave-one-out needs the order of a user's rows: the interactions have neither "
      "times nor positions; name the column with `time_col`, or choose `split` random");
  EXPECT_EQ(error_of([&] { assign_split(none, parse_split("temporal-user")); }).substr(0, 2), "3:");
  EXPECT_EQ(error_of([&] { assign_split(order, parse_split("temporal-global")); }),
            "3: split temporal-global needs times: the interactions have an order only; choose "
            "leave-one-out or temporal-user, or name the column with `time_col`");
  EXPECT_EQ(error_of([&] { assign_split(none, parse_split("given")); }).substr(0, 2), "3:");
  assign_split(order, parse_split("leave-one-out"));
  EXPECT_EQ(counts(order), (Sizes{1, 1, 1}));
}

TEST(Split, ColdItemsLeaveTrainingAltogether) {
  EventTable table = users_with({15, 15, 15, 9});
  const SplitResult result = assign_split(table, parse_split("cold-item"));
  // floor(.2 * 15) = 3 items: 1 test, 2 valid.
  EXPECT_EQ(result.drawn["n_test_items"], 1);
  EXPECT_EQ(result.drawn["n_valid_items"], 2);
  std::array<std::set<int32_t>, 3> items;
  for (int64_t row = 0; row < table.n_rows(); ++row) {
    items[static_cast<int>(table.split[row])].insert(table.item[row]);
  }
  EXPECT_EQ(items[0].size(), 12u);
  EXPECT_EQ(items[1].size(), 2u);
  EXPECT_EQ(items[2].size(), 1u);
}

TEST(Split, ColdUsersGiveTheFirstHalfAsHistory) {
  EventTable table = users_with(std::vector<int64_t>(10, 5));
  assign_split(table, parse_split("cold-user"));
  std::multiset<std::string> seen;
  for (int64_t u = 0; u < 10; ++u) seen.insert(labels(table).substr(u * 5, 5));
  // floor(.2 * 10) = 2 users, one test and one valid; 5 rows: 3 given, 2 held out.
  EXPECT_EQ(seen.count("ttttt"), 8u);
  EXPECT_EQ(seen.count("hhhvv"), 1u);
  EXPECT_EQ(seen.count("hhhee"), 1u);
  table = users_with(std::vector<int64_t>(10, 5));
  assign_split(table, parse_split("cold-user:1"));
  EXPECT_NE(labels(table).find("hvvvv"), std::string::npos);
}

TEST(Split, FoldsAreDealtEvenly) {
  EventTable table = users_with({10, 7});
  const SplitResult result = assign_split(table, parse_split("k-fold:5"));
  std::array<int, 5> first = {}, second = {};
  for (int i = 0; i < 10; ++i) ++first[result.fold[i]];
  for (int i = 10; i < 17; ++i) ++second[result.fold[i]];
  EXPECT_EQ(first, (std::array<int, 5>{2, 2, 2, 2, 2}));
  EXPECT_EQ(*std::min_element(second.begin(), second.end()), 1);
  EXPECT_EQ(*std::max_element(second.begin(), second.end()), 2);
  EXPECT_EQ(counts(table), (Sizes{17, 0, 0}));
}

TEST(Split, ReadEventsStaySeen) {
  EventTable table = users_with({5, 5});
  table.split.assign(10, Split::none);
  table.split[4] = table.split[0] = Split::seen;
  for (const char* spec : {"random", "leave-one-out", "temporal-global", "cold-item", "k-fold"}) {
    assign_split(table, parse_split(spec));
    EXPECT_EQ(table.split[4], Split::seen) << spec;
    EXPECT_EQ(std::count(table.split.begin(), table.split.end(), Split::seen), 2) << spec;
    EXPECT_EQ(std::count(table.split.begin(), table.split.end(), Split::none), 0) << spec;
  }
}

Sizes split_real(const std::string& file, const std::string& split, const std::string& rounding) {
  EventTable table;
  Json report;
  read_interactions(detect_sources({real_data(file)}), {}, table, report);
  assign_split(table, parse_split(split, rounding));
  return counts(table);
}

// Counts of specs/protocol.md sections 3 and 9.
TEST(Split, CountsOfMl100k) {
  if (!std::filesystem::exists(real_data("ml-100k"))) GTEST_SKIP() << why_without("ml-100k");
  EXPECT_EQ(split_real("ml-100k/u.data", "leave-one-out", ""), (Sizes{98114, 943, 943}));
}

TEST(Split, CountsOfMl1m) {
  if (!std::filesystem::exists(real_data("ml-1m"))) GTEST_SKIP() << why_without("ml-1m");
  EXPECT_EQ(split_real("ml-1m/interactions.tsv", "leave-one-out", ""), (Sizes{988129, 6040, 6040}));
}

TEST(Split, CountsOfBaby) {
  if (!std::filesystem::exists(real_data("amazon-baby")))
    GTEST_SKIP() << why_without("amazon-baby");
  const std::string file = "amazon-baby/interactions.tsv";
  EXPECT_EQ(split_real(file, "random", "mmrec"), (Sizes{118551, 20559, 21682}));
  EXPECT_EQ(split_real(file, "random", "lattice"), (Sizes{118551, 21682, 20559}));
  EXPECT_EQ(split_real(file, "given", ""), (Sizes{118551, 21682, 20559}));
}

TEST(Split, CountsOfToys) {
  if (!std::filesystem::exists(real_data("amazon-toys")))
    GTEST_SKIP() << why_without("amazon-toys");
  const std::string file = "amazon-toys/sequences.txt";
  EXPECT_EQ(split_real(file, "leave-one-out", ""), (Sizes{128773, 19412, 19412}));
  EXPECT_EQ(split_real(file, "temporal-user", "floor")[2], 28761);
}

TEST(Split, CountsOfSports) {
  if (!std::filesystem::exists(real_data("amazon-sports")))
    GTEST_SKIP() << why_without("amazon-sports");
  const std::string file = "amazon-sports/sequences.txt";
  EXPECT_EQ(split_real(file, "random", "mmrec"), (Sizes{218409, 37899, 40029}));
  EXPECT_EQ(split_real(file, "random", "lattice"), (Sizes{218409, 40029, 37899}));
  EXPECT_EQ(split_real(file, "leave-one-out", ""), (Sizes{225141, 35598, 35598}));
  EXPECT_EQ(split_real(file, "temporal-user", "floor")[2], 50188);
}

}  // namespace
}  // namespace tessera
