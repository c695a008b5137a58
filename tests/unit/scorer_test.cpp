#include "tessera/model/scorer.h"

#include <gtest/gtest.h>

#include <concepts>
#include <type_traits>

#include "tessera/model/forwarding_model.h"
#include "tessera/model/model.h"

// Numbers by hand: items a (1, 0), b (0, 1), c (1, 1), d (2, 0) has no train row. Users: 0 (1, 0)
// has a, c; 1 (0, 1) has c; 2 has no train row. Train counts: a 1, b 0, c 2, d 0.
namespace tessera {
namespace {

template <typename T>
concept HasHeldOutRows = requires(const T& t) { t.test; } || requires(const T& t) { t.valid; } ||
                         requires(const T& t) { t.known; } || requires(const T& t) { t.history; };
template <typename To, typename From>
concept CanCast = requires(From from) { static_cast<To>(from); };

// A model sees the data as a TrainView, which names no held-out rows and leads back to no Dataset.
static_assert(HasHeldOutRows<Dataset>);
static_assert(!HasHeldOutRows<TrainView>);
static_assert(!CanCast<const Dataset&, const TrainView&>);
static_assert(!CanCast<const Dataset*, const TrainView*>);
static_assert(std::same_as<decltype(Context::data), const TrainView&>);
static_assert(std::same_as<decltype(std::declval<const Model&>().data()), const TrainView&>);

Dataset shop() {
  const std::vector<int32_t> users = {0, 0, 1}, items = {0, 2, 2};
  Feature feature;
  feature.name = "colour";
  feature.rows = MappedArray(torch::eye(1));
  feature.row_of_item = torch::tensor({-1, -1, -1, 0}, torch::kInt32);
  return make_dataset(3, 4, make_interactions(3, users, items), {}, {}, {feature});
}

std::shared_ptr<const TrainFacts> facts() {
  return std::make_shared<const TrainFacts>(shop().view());
}

VectorScorer vectors(const Abilities& abilities = {}) {
  return {facts(),
          abilities,
          {torch::tensor({{1.F, 0.F}, {0.F, 1.F}, {7.F, 7.F}}),
           torch::tensor({{1.F, 0.F}, {0.F, 1.F}, {1.F, 1.F}, {2.F, 0.F}})}};
}

/// One part an item, so that attention gives it all its weight: y = p.(e + r).
PartScorer parts() {
  return {facts(),
          {},
          {torch::tensor({{1.F, 0.F}, {0.F, 1.F}, {7.F, 7.F}}),
           torch::tensor({{1.F, 0.F}, {0.F, 0.F}, {0.F, 1.F}, {2.F, 0.F}}),
           torch::tensor({{{0.F, 0.F}}, {{0.F, 1.F}}, {{1.F, 0.F}}, {{0.F, 0.F}}}),
           {}}};
}

Queries three(bool histories) {
  Queries queries{torch::tensor({0, 1, 2}, torch::kInt64), {}};
  if (histories) queries.histories = packed(std::vector<std::vector<int32_t>>{{1}, {}, {0, 1}});
  return queries;
}

torch::Tensor rows(std::initializer_list<std::vector<float>> values) {
  std::vector<torch::Tensor> out;
  for (const auto& row : values) out.push_back(torch::tensor(row));
  return torch::stack(out);
}

TEST(Scorer, SaysWhatAnswersAndAnswersByIt) {
  const VectorScorer scorer = vectors();
  EXPECT_EQ(scorer.vias(three(false)), (std::vector{Via::user, Via::user, Via::popular}));
  EXPECT_EQ(scorer.vias(three(true)), (std::vector{Via::user, Via::user, Via::item_mean}));
  EXPECT_EQ(scorer.via(-1, false), Via::popular);
  EXPECT_EQ(scorer.via(99, true), Via::item_mean);
  EXPECT_TRUE(
      torch::equal(scorer.scores(three(false)), rows({{1, 0, 1, 2}, {0, 1, 1, 0}, {1, 0, 2, 0}})));
  EXPECT_TRUE(
      torch::equal(scorer.scores(three(true)), rows({{1, 0, 1, 2}, {0, 1, 1, 0}, {.5, .5, 1, 1}})));
  EXPECT_STREQ(via_word(Via::item_mean), "item mean");
  const PartScorer attention = parts();
  EXPECT_EQ(attention.vias(three(true)), (std::vector{Via::user, Via::user, Via::popular}));
  EXPECT_TRUE(torch::equal(attention.scores(three(true)),
                           rows({{1, 0, 1, 2}, {0, 1, 1, 0}, {1, 0, 2, 0}})));
}

TEST(Scorer, ListsAndPlacesFollowTheScores) {
  const auto check = [](const Scorer& scorer) {
    const Ragged mask = packed(std::vector<std::vector<int32_t>>{{3}, {}, {2}});
    const TopLists lists = scorer.top(three(false), mask, {}, 4);
    // Equal scores by the lower index; user 2 by the counts, without c.
    EXPECT_TRUE(torch::equal(
        lists.items, torch::tensor({{0, 2, 1, -1}, {1, 2, 0, 3}, {0, 1, 3, -1}}, torch::kInt32)));
    EXPECT_EQ(lists.scores[2][0].item<float>(), 1);
    torch::Tensor hidden = torch::zeros({4}, torch::kBool);
    hidden[1] = true;
    const Ragged held = packed(std::vector<std::vector<int32_t>>{{2}, {1, 2}, {0, 2, 3}});
    const Places places = scorer.rank(three(false)).places(mask, hidden, held);
    ASSERT_EQ(places.items.size(), 6U);
    std::vector<int64_t> ranks;
    for (const Place& place : places.items) ranks.push_back(place.rank);
    EXPECT_EQ(ranks, (std::vector<int64_t>{2, 0, 1, 1, 0, 2}));
    EXPECT_EQ(places.items[0].equal, 1);
    EXPECT_EQ(places.n_candidates, (std::vector<int64_t>{2, 3, 2}));
  };
  check(vectors());
  check(parts());
}

TEST(Scorer, KnowsWhichItemsHaveAVector) {
  const VectorScorer scorer = vectors();
  EXPECT_TRUE(scorer.has_vector(0));
  EXPECT_FALSE(scorer.has_vector(1));
  EXPECT_FALSE(scorer.has_vector(3));
  const VectorScorer content = vectors({.uses_features = true, .ranks_cold_items = true});
  EXPECT_FALSE(content.has_vector(1));  // no feature
  EXPECT_TRUE(content.has_vector(3));
}

TEST(Scorer, FoldsHistoriesInAndMeasuresItsSpread) {
  const VectorScorer scorer = vectors();
  const auto folded =
      scorer.fold_in(packed(std::vector<std::vector<int32_t>>{{0, 3}, {2}, {}}), FoldIn::mean);
  EXPECT_TRUE(torch::equal(folded, rows({{1.5, 0}, {1, 1}, {0, 0}})));
  EXPECT_FALSE(
      parts().fold_in(packed(std::vector<std::vector<int32_t>>{{0}}), FoldIn::mean).defined());
  // Trained users 0, 1 and trained items a, c: scores 1, 1, 0, 1.
  const auto spread = scorer.spread(Random(1));
  EXPECT_DOUBLE_EQ(spread.mean, .75);
  EXPECT_NEAR(spread.deviation, std::sqrt(3.0) / 4, 1e-12);
}

TEST(Scorer, TakesItemsAfterTraining) {
  const VectorScorer before = vectors({.ranks_cold_items = true});
  const auto after = before.with_items(torch::tensor({{3.F, 3.F}}));
  EXPECT_EQ(before.n_items(), 4);
  EXPECT_EQ(after->n_items(), 5);
  EXPECT_TRUE(after->has_vector(4));
  EXPECT_TRUE(torch::equal(after->scores(three(false)),
                           rows({{1, 0, 1, 2, 3}, {0, 1, 1, 0, 3}, {1, 0, 2, 0, 0}})));
  const auto attention =
      parts().with_items({{}, torch::tensor({{1.F, 1.F}}), torch::tensor({{{2.F, 2.F}}}), {}});
  EXPECT_TRUE(torch::equal(attention->scores(three(false)),
                           rows({{1, 0, 1, 2, 3}, {0, 1, 1, 0, 3}, {1, 0, 2, 0, 0}})));
}

}  // namespace
}  // namespace tessera
