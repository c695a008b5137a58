#include "tessera/model/sampler.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tessera/base/error.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

Dataset pairs_data() {
  std::vector<int32_t> users, items;
  for (int32_t u = 0; u < 50; ++u) {
    for (int32_t j = 0; j < 4; ++j) {
      users.push_back(u);
      items.push_back((u * 7 + j * 5) % 40);
    }
  }
  return make_dataset(50, 45, make_interactions(50, users, items));
}

TEST(DistinctRows, RiseAndAreFoundAgain) {
  const auto a = torch::tensor({130, 5, 64, 5}, torch::kInt64), b = torch::tensor({0, 130, 63});
  DistinctRows rows(131);
  rows.mark(a);
  rows.mark(b);
  EXPECT_TRUE(torch::equal(rows.list(), torch::tensor({0, 5, 63, 64, 130})));
  EXPECT_TRUE(torch::equal(rows.inverse(a), torch::tensor({4, 1, 3, 1})));
  EXPECT_TRUE(torch::equal(rows.inverse(b), torch::tensor({0, 4, 2})));
  EXPECT_EQ(DistinctRows(7).list().numel(), 0);
}

TEST(Sampler, EveryPairOnceAndNegativesOutsideTrain) {
  const Dataset data = pairs_data();
  const BatchSpec spec{.unit = BatchSpec::Unit::pair, .n_negatives = 3};
  Sampler sampler(data.view(), spec, 64, Random(999));
  sampler.begin_epoch(2);
  std::map<std::pair<int64_t, int64_t>, int> seen;
  int64_t n = 0;
  ASSERT_EQ(sampler.n_batches(), 4);
  for (int64_t b = 0; b < sampler.n_batches(); ++b) {
    const Batch batch = sampler.batch(b, b + 1);
    n += batch.size();
    for (int64_t i = 0; i < batch.size(); ++i) {
      const auto user = batch.users[i].item<int64_t>();
      seen[{user, batch.positives[i].item<int64_t>()}]++;
      EXPECT_EQ(batch.distinct_users[batch.user_inverse[i].item<int64_t>()].item<int64_t>(), user);
      for (int64_t k = 0; k < 3; ++k) {
        const auto negative = batch.negatives[i][k].item<int64_t>();
        EXPECT_FALSE(contains(data.train_distinct.of(user), static_cast<int32_t>(negative)));
        EXPECT_LT(negative, 40) << "items 40..44 have no train row";
        EXPECT_EQ(
            batch.distinct_items[batch.negative_inverse[i][k].item<int64_t>()].item<int64_t>(),
            negative);
      }
    }
  }
  EXPECT_EQ(n, 200);
  for (const auto& [pair, count] : seen) EXPECT_EQ(count, 1);
  EXPECT_EQ(seen.size(), 200U);
}

TEST(Sampler, BatchesDependOnKeysOnly) {
  const Dataset data = pairs_data();
  const BatchSpec spec{.unit = BatchSpec::Unit::pair, .n_negatives = 1};
  Sampler a(data.view(), spec, 64, Random(5)), b(data.view(), spec, 64, Random(5)),
      c(data.view(), spec, 64, Random(6));
  a.begin_epoch(0);
  a.begin_epoch(1);
  b.begin_epoch(1);
  c.begin_epoch(1);
  a.batch(0, 5);
  EXPECT_TRUE(torch::equal(a.batch(2, 7).negatives, b.batch(2, 7).negatives));
  EXPECT_TRUE(torch::equal(a.batch(2, 7).users, b.batch(2, 7).users));
  EXPECT_FALSE(torch::equal(a.batch(2, 7).users, c.batch(2, 7).users));
}

TEST(Sampler, UserWithEveryItemIsLeftOut) {
  const std::vector<int32_t> users = {0, 0, 1}, items = {0, 1, 0};
  const Dataset data = make_dataset(2, 3, make_interactions(2, users, items));
  const BatchSpec spec{.unit = BatchSpec::Unit::pair, .n_negatives = 1};
  Sampler sampler(data.view(), spec, 10, Random(1));
  EXPECT_EQ(sampler.n_left_out(), 2);
  sampler.begin_epoch(0);
  const Batch batch = sampler.batch(0, 1);
  ASSERT_EQ(batch.size(), 1);
  EXPECT_EQ(batch.negatives[0][0].item<int64_t>(), 1);
  const Dataset full =
      make_dataset(1, 1, make_interactions(1, std::vector<int32_t>{0}, std::vector<int32_t>{0}));
  EXPECT_THROW(Sampler(full.view(), spec, 10, Random(1)), InputError);
}

TEST(Sampler, NegativesOfAHeavyUserAreUniform) {
  // 1,000 trained items of which the user lacks two.
  std::vector<int32_t> users, items;
  for (int32_t i = 0; i < 998; ++i) {
    users.push_back(0);
    items.push_back(i);
  }
  for (const int32_t i : {998, 999}) {
    users.push_back(1);
    items.push_back(i);
  }
  const Dataset data = make_dataset(2, 1000, make_interactions(2, users, items));
  Sampler sampler(data.view(), {.unit = BatchSpec::Unit::pair, .n_negatives = 1}, 2000, Random(4));
  sampler.begin_epoch(0);
  std::map<int64_t, int> counts;
  const Batch batch = sampler.batch(0, 1);
  for (int64_t i = 0; i < batch.size(); ++i) {
    if (batch.users[i].item<int64_t>() == 0) ++counts[batch.negatives[i][0].item<int64_t>()];
  }
  ASSERT_EQ(counts.size(), 2U);
  EXPECT_NEAR(counts[998], 499, 80);
}

TEST(Sampler, NegativesMayComeFromAllItems) {
  const Dataset data = pairs_data();
  const BatchSpec spec{.unit = BatchSpec::Unit::distinct_user, .n_negatives = 1};
  BatchSpec all = spec;
  all.pool = BatchSpec::Pool::all;
  Sampler sampler(data.view(), all, 50, Random(3));
  sampler.begin_epoch(0);
  std::map<int64_t, int> counts;
  const int64_t n_batches = 200;
  for (int64_t step = 1; step <= n_batches; ++step) {
    const Batch batch = sampler.batch(0, step);
    for (int64_t i = 0; i < batch.size(); ++i) {
      const auto negative = batch.negatives[i][0].item<int64_t>();
      EXPECT_FALSE(contains(data.train_distinct.of(batch.users[i].item<int64_t>()),
                            static_cast<int32_t>(negative)));
      ++counts[negative];
    }
  }
  // Each of the 50 users draws one of the 41 items that it lacks; 40..44 have no train row.
  ASSERT_EQ(counts.size(), 45U);
  for (int64_t item = 40; item < 45; ++item) EXPECT_NEAR(counts[item], 50 * n_batches / 41, 80);

  // A user whose train row holds every trained item still has a negative.
  const std::vector<int32_t> users = {0, 0, 1}, items = {0, 1, 0};
  const Dataset small = make_dataset(2, 3, make_interactions(2, users, items));
  EXPECT_EQ(Sampler(small.view(), spec, 2, Random(1)).n_left_out(), 2);
  EXPECT_EQ(Sampler(small.view(), all, 2, Random(1)).n_left_out(), 0);
}

TEST(Sampler, TakesEachUserOnceAnEpoch) {
  const Dataset data = pairs_data();
  Sampler sampler(data.view(), {.unit = BatchSpec::Unit::user}, 16, Random(2));
  ASSERT_EQ(sampler.n_batches(), 4);  // 50 users
  std::vector<int64_t> orders[2];
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    sampler.begin_epoch(epoch);
    std::set<int64_t> users;
    for (int64_t index = 0; index < 4; ++index) {
      const Batch batch = sampler.batch(index, 4 * epoch + index + 1);
      EXPECT_EQ(batch.size(), index < 3 ? 16 : 2);
      EXPECT_FALSE(batch.positives.defined());
      EXPECT_TRUE(
          torch::equal(batch.distinct_users.index_select(0, batch.user_inverse), batch.users));
      for (int64_t i = 0; i < batch.size(); ++i) {
        users.insert(batch.users[i].item<int64_t>());
        orders[epoch].push_back(batch.users[i].item<int64_t>());
      }
    }
    EXPECT_EQ(users.size(), 50U);
  }
  EXPECT_NE(orders[0], orders[1]);
}

TEST(Sampler, DistinctUsers) {
  const Dataset data = pairs_data();
  Sampler sampler(data.view(), {.unit = BatchSpec::Unit::distinct_user, .n_negatives = 1}, 20,
                  Random(2));
  EXPECT_EQ(sampler.n_batches(), 200 / 20 + 1);  // floor(n_train / B) + 1, mmssl section 1.10
  sampler.begin_epoch(0);
  const Batch batch = sampler.batch(0, 1);
  EXPECT_EQ(batch.size(), 20);
  EXPECT_EQ(batch.distinct_users.size(0), 20);
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_TRUE(contains(data.train_distinct.of(batch.users[i].item<int64_t>()),
                         static_cast<int32_t>(batch.positives[i].item<int64_t>())));
  }
}

std::set<std::string> rows_of(BatchSpec::Rows rows, const std::vector<int32_t>& items) {
  const Dataset data =
      make_dataset(1, 8, make_interactions(1, std::vector<int32_t>(items.size(), 0), items));
  const BatchSpec spec{.unit = BatchSpec::Unit::sequence_row, .rows = rows, .max_length = 3};
  Sampler sampler(data.view(), spec, 10, Random(1));
  sampler.begin_epoch(0);
  const Batch batch = sampler.batch(0, 1);
  std::set<std::string> out;
  const std::string names = "abcdefg";
  for (int64_t r = 0; r < batch.rows.n_rows(); ++r) {
    std::string text;
    for (int64_t i = batch.rows.offsets[r].item<int64_t>();
         i < batch.rows.offsets[r + 1].item<int64_t>(); ++i) {
      text += names[batch.rows.items[i].item<int32_t>()];
    }
    text += "->";
    for (int64_t i = batch.target_offsets[r].item<int64_t>();
         i < batch.target_offsets[r + 1].item<int64_t>(); ++i) {
      text += names[batch.targets[i].item<int64_t>()];
    }
    out.insert(text);
  }
  return out;
}

// The example of sequential section 1: L = 3, train part a..e.
TEST(Sampler, SequenceRows) {
  const std::vector<int32_t> history = {0, 1, 2, 3, 4};
  EXPECT_EQ(rows_of(BatchSpec::Rows::user, history), (std::set<std::string>{"bcd->cde"}));
  EXPECT_EQ(rows_of(BatchSpec::Rows::chunk, history), (std::set<std::string>{"bcd->cde", "a->b"}));
  EXPECT_EQ(rows_of(BatchSpec::Rows::prefix, history),
            (std::set<std::string>{"a->b", "ab->c", "abc->d", "bcd->e"}));
  EXPECT_EQ(rows_of(BatchSpec::Rows::user, {0, 1}), (std::set<std::string>{"a->b"}));
}

}  // namespace
}  // namespace tessera
