#include "tests/planted.h"

#include <gtest/gtest.h>

#include <set>

namespace tessera {
namespace {

TEST(PlantedPairs, HaveTheSizesOfTheSpec) {  // r2mr section 11, "Data"
  const Dataset data = planted_pairs();
  EXPECT_EQ(data.n_users, 800);
  EXPECT_EQ(data.n_items, 500);
  ASSERT_EQ(data.features.size(), 2u);
  EXPECT_EQ(data.feature("image")->width(), 48);
  EXPECT_EQ(data.feature("text")->width(), 32);
  int64_t total = 0;
  for (int64_t u = 0; u < data.n_users; ++u) {
    std::set<int32_t> distinct;
    for (const auto* part : {&data.train, &data.valid, &data.test}) {
      for (const int32_t item : part->of(u)) distinct.insert(item);
    }
    const auto n = static_cast<int64_t>(distinct.size());
    ASSERT_GE(n, 3);
    const int64_t k = std::max<int64_t>(1, std::llround(0.1 * static_cast<double>(n)));
    EXPECT_EQ(static_cast<int64_t>(data.train.of(u).size()), n - 2 * k);
    EXPECT_EQ(static_cast<int64_t>(data.valid.of(u).size()), k);
    EXPECT_EQ(static_cast<int64_t>(data.test.of(u).size()), k);
    total += n;
  }
  EXPECT_NEAR(static_cast<double>(total) / 800, 20, 4 * std::sqrt(20.0 / 800));  // Poisson(20)
  // Var = |G column|^2/8 + .36 |G' column|^2/4 + .0225, 1.38 on average over columns.
  const auto image = data.feature("image")->all();
  EXPECT_NEAR(image.var(0).mean().item<double>(), 1.38, 0.35);
}

TEST(PlantedPairs, FeaturesExplainThePairs) {
  const Dataset data = planted_pairs({.n_users = 200, .n_items = 150, .n_modalities = 3});
  for (const Feature& feature : data.features) {
    auto rows = feature.all();
    rows = rows - rows.mean(0);
    rows = rows / rows.norm(2, 1, true).clamp_min(1e-12);
    // Mean cosine of a test item to the user's train items, against any item to the same.
    double taken = 0, any = 0;
    for (int64_t u = 0; u < data.n_users; ++u) {
      const auto train = data.train.of(u), test = data.test.of(u);
      const auto own =
          rows.index_select(0, torch::tensor(std::vector<int64_t>(train.begin(), train.end())))
              .mean(0);
      taken += rows[test[0]].dot(own).item<double>();
      any += rows.mv(own).mean().item<double>();
    }
    EXPECT_GT(taken / 200, any / 200 + 0.05) << feature.name;
  }
}

TEST(PlantedPairs, MissingAndColdItems) {
  const Dataset data =
      planted_pairs({.n_users = 120, .n_items = 100, .missing = 0.15, .n_cold = 10, .seed = 3});
  for (const Feature& feature : data.features) {
    EXPECT_EQ(feature.rows.n_rows(), 85);
    EXPECT_EQ(feature.present().sum().item<int64_t>(), 85);
  }
  EXPECT_FALSE(torch::equal(data.features[0].present(), data.features[1].present()));
  const auto train = item_counts(data.train, 100), valid = item_counts(data.valid, 100);
  const auto test = item_counts(data.test, 100);
  EXPECT_GE((train.add(valid).eq(0).logical_and(test.gt(0))).sum().item<int64_t>(), 8);
  const Dataset whole = planted_pairs({.n_users = 120, .n_items = 100, .seed = 3});
  EXPECT_EQ(whole.train.n_rows() + whole.valid.n_rows() + whole.test.n_rows(),
            data.train.n_rows() + data.valid.n_rows() + data.test.n_rows());
}

TEST(PlantedPairs, RepeatForASeed) {
  const PlantedOptions small = {.n_users = 30, .n_items = 40};
  PlantedOptions other = small;
  other.seed = 2;
  const Dataset a = planted_pairs(small), b = planted_pairs(small), c = planted_pairs(other);
  EXPECT_TRUE(torch::equal(a.train.items, b.train.items));
  EXPECT_TRUE(torch::equal(a.features[0].all(), b.features[0].all()));
  EXPECT_FALSE(torch::equal(a.features[0].all(), c.features[0].all()));
}

TEST(PlantedSequences, FollowTheGroupsNotTheFeatures) {  // kdsr section 7, "Test"
  const Dataset data = planted_sequences();
  EXPECT_EQ(data.n_users, 800);
  EXPECT_EQ(data.n_items, 300);
  EXPECT_TRUE(data.has_order);
  int64_t follows = 0, n = 0;
  for (int64_t u = 0; u < data.n_users; ++u) {
    std::vector<int32_t> row(data.train.of(u).begin(), data.train.of(u).end());
    ASSERT_EQ(row.size(), 12u);
    ASSERT_EQ(data.valid.of(u).size(), 1u);
    ASSERT_EQ(data.test.of(u).size(), 1u);
    row.push_back(data.valid.of(u)[0]);
    row.push_back(data.test.of(u)[0]);
    for (size_t t = 1; t < row.size(); ++t, ++n) follows += row[t] % 20 == (row[t - 1] + 1) % 20;
  }
  const double p = 0.8 + 0.2 / 20;  // a uniform item is of the next group one time in twenty
  EXPECT_NEAR(static_cast<double>(follows) / static_cast<double>(n), p,
              4 * std::sqrt(p * (1 - p) / static_cast<double>(n)));
  for (const Feature& feature : data.features) {
    EXPECT_EQ(feature.width(), 32);
    EXPECT_EQ(feature.rows.n_rows(), 285);  // 5 % of 300 missing
    // Ten clusters: the nearest other item is close (noise .5 twice), a random one is not.
    const auto rows = feature.gather(feature.present().nonzero().view({-1}));
    const auto distance = torch::cdist(rows, rows) + torch::eye(285) * 1e9;
    EXPECT_LT(std::get<0>(distance.min(1)).median().item<double>(), 5.0);
    EXPECT_GT(distance.median().item<double>(), 6.0);
  }
}

TEST(Corrupt, SwapsOrReplacesRows) {  // r2mr section 11, "Corruption"
  const PlantedOptions options = {.n_users = 30, .n_items = 200, .missing = 0.1};
  const Dataset clean = planted_pairs(options);
  const auto before = clean.features[0].all();
  Dataset swapped = planted_pairs(options);
  const auto items = corrupt(swapped, "image", "swap");
  ASSERT_EQ(items.size(), 36u);  // 20 % of 180
  const auto after = swapped.features[0].all();
  for (size_t j = 0; j < items.size(); ++j) {
    EXPECT_TRUE(torch::equal(after[items[j]], before[items[(j + 1) % items.size()]]));
  }
  EXPECT_EQ((after != before).any(1).sum().item<int64_t>(), 36);
  EXPECT_TRUE(torch::equal(swapped.features[0].present(), clean.features[0].present()));
  EXPECT_TRUE(torch::equal(swapped.features[1].all(), clean.features[1].all()));

  Dataset noisy = planted_pairs(options);
  EXPECT_EQ(corrupt(noisy, "image", "noise"), items);
  const auto noise = noisy.features[0].all();
  EXPECT_EQ((noise != before).any(1).sum().item<int64_t>(), 36);
  const auto had = before.index_select(0, clean.features[0].present().nonzero().view({-1}));
  const auto scaled =
      (noise.index_select(0, torch::tensor(items)) - had.mean(0)) / had.std(0, false);
  EXPECT_NEAR(scaled.mean().item<double>(), 0, 4 / std::sqrt(36.0 * 48));
  EXPECT_NEAR(scaled.std().item<double>(), 1, 0.1);
  EXPECT_NE(corrupt(swapped, "text", "swap", 0.2, 2), items);
}

}  // namespace
}  // namespace tessera
