#include "tessera/eval/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

using Pairs = std::vector<std::pair<int32_t, int32_t>>;

Interactions rows(int64_t n_users, const Pairs& pairs) {
  std::vector<int32_t> users, items;
  for (const auto& [user, item] : pairs) {
    users.push_back(user);
    items.push_back(item);
  }
  return make_interactions(n_users, users, items);
}

Context context_of(const Dataset& data) { return {data.view(), Random(1), {}, {}}; }

/// Scores from a fixed matrix [n_users, n_items]; keeps what it was asked.
class FixedModel : public Model {
 public:
  FixedModel(const Dataset& data, torch::Tensor scores, bool sequential = false)
      : Model(context_of(data)), scores_(std::move(scores)), sequential_(sequential) {}
  Abilities abilities() const override {
    Abilities abilities;
    abilities.takes_histories = sequential_;
    return abilities;
  }
  BatchSpec batch_spec() const override {
    BatchSpec spec;
    if (sequential_) spec.unit = BatchSpec::Unit::sequence_row;
    return spec;
  }
  mutable std::vector<Queries> asked;

 protected:
  torch::Tensor whole_scores(const Queries& queries) const override {
    asked.push_back(queries);
    return scores_.index_select(0, queries.users);
  }

 private:
  torch::Tensor scores_;
  bool sequential_;
};

/// The same scores as an inner product: users are the rows, items the unit vectors.
class FixedFactors : public FactorModel {
 public:
  FixedFactors(const Dataset& data, torch::Tensor scores)
      : FactorModel(context_of(data)), scores_(std::move(scores)) {}
  Abilities abilities() const override { return {}; }

 protected:
  Vectors vectors() override { return {scores_, torch::eye(scores_.size(1))}; }

 private:
  torch::Tensor scores_;
};

double at(const Evaluation& evaluation, const std::string& metric) {
  return evaluation.value(metric);
}

EvalOptions ask(std::vector<std::string> metrics) {
  EvalOptions options;
  options.metrics = std::move(metrics);
  return options;
}

/// specs: protocol section 5, "Mask test".
struct MaskTest {
  Dataset data = make_dataset(1, 6, rows(1, {{0, 0}}), rows(1, {{0, 3}}), rows(1, {{0, 1}}));
  torch::Tensor scores = torch::tensor({.9f, .5f, .5f, .7f, .1f, .5f}).view({1, 6});
};

TEST(Evaluate, FollowsTheSpecsMaskTest) {
  const MaskTest test;
  const EvalOptions options = ask({"ndcg@2", "ndcg@3", "mrr"});
  FixedModel model(test.data, test.scores);
  const Evaluation strict =
      evaluate(model, test.data, find_protocol("strict"), Split::test, options);
  EXPECT_DOUBLE_EQ(at(strict, "mrr"), 1);
  EXPECT_DOUBLE_EQ(at(strict, "ndcg@2"), 1);
  const Evaluation mmrec = evaluate(model, test.data, find_protocol("mmrec"), Split::test, options);
  EXPECT_DOUBLE_EQ(at(mmrec, "mrr"), 0.5);
  EXPECT_NEAR(at(mmrec, "ndcg@2"), .63093, 5e-6);
  const Evaluation recbole =
      evaluate(model, test.data, find_protocol("recbole-seq"), Split::test, options);
  EXPECT_NEAR(at(recbole, "mrr"), 1.0 / 3, 1e-12);
  EXPECT_DOUBLE_EQ(at(recbole, "ndcg@2"), 0);
  EXPECT_DOUBLE_EQ(at(recbole, "ndcg@3"), 0.5);
}

TEST(TopLists, FollowTheSpecsMaskTest) {
  const MaskTest test;
  FixedModel model(test.data, test.scores);
  FixedFactors factors(test.data, test.scores);
  Queries queries;
  queries.users = torch::zeros({1}, torch::kInt64);
  const auto mask = [](const std::vector<int32_t>& items) {
    return Ragged{torch::tensor(items, torch::kInt32),
                  torch::tensor({int64_t{0}, static_cast<int64_t>(items.size())}, torch::kInt64)};
  };
  for (Model* each : {static_cast<Model*>(&model), static_cast<Model*>(&factors)}) {
    const auto list = [&](const Ragged& masked, const torch::Tensor& hidden) {
      const TopLists lists = each->freeze()->top(queries, masked, hidden, 6);
      EXPECT_EQ(lists.items.scalar_type(), torch::kInt32);
      EXPECT_EQ(lists.scores.scalar_type(), torch::kFloat);
      const auto* items = lists.items.const_data_ptr<int32_t>();
      return std::vector<int32_t>(items, items + 6);
    };
    EXPECT_EQ(list(mask({0, 3}), {}), (std::vector<int32_t>{1, 2, 5, 4, -1, -1}));
    EXPECT_EQ(list(mask({0}), {}), (std::vector<int32_t>{3, 1, 2, 5, 4, -1}));
    EXPECT_EQ(list({}, {}), (std::vector<int32_t>{0, 3, 1, 2, 5, 4}));
    torch::Tensor hidden = torch::zeros({6}, torch::kBool);
    hidden[1] = true;
    EXPECT_EQ(list(mask({0, 3}), hidden), (std::vector<int32_t>{2, 5, 4, -1, -1, -1}));
  }
}

TEST(Evaluate, ValidationMasksTrainOnly) {
  const MaskTest test;
  FixedModel model(test.data, test.scores);
  const Evaluation valid =
      evaluate(model, test.data, find_protocol("strict"), Split::valid, ask({"mrr"}));
  EXPECT_DOUBLE_EQ(at(valid, "mrr"), 1);
  EXPECT_EQ(valid.audit["mask"], "train");
  EXPECT_EQ(valid.split, "valid");
}

/// Users: 0 plain, 1 cold, 2 with a test row already in train and one in valid, 3 without test
/// rows, 4 whose only test row repeats. Item 4 has no train row.
Dataset audited() {
  return make_dataset(5, 6, rows(5, {{0, 0}, {2, 0}, {2, 1}, {3, 2}, {3, 5}, {4, 3}}),
                      rows(5, {{0, 2}, {2, 3}}),
                      rows(5, {{0, 1}, {0, 4}, {1, 5}, {2, 1}, {2, 3}, {2, 2}, {2, 2}, {4, 3}}));
}

TEST(Evaluate, AuditOfStrictCountsExactly) {
  const Dataset data = audited();
  FixedModel model(data, torch::rand({5, 6}));
  const Json audit =
      evaluate(model, data, find_protocol("strict"), Split::test, ask({"recall@2"})).audit;
  EXPECT_EQ(audit["protocol"], "strict");
  EXPECT_EQ(audit["split"], "test");
  EXPECT_EQ(audit["mask"], "train + valid");
  EXPECT_EQ(audit["users_averaged"], 3);                // 0, 1, 2
  EXPECT_EQ(audit["users_without_held_out_items"], 2);  // 3, 4
  EXPECT_EQ(audit["cold_users"], 1);
  EXPECT_EQ(audit["users_dropped"], 0);
  EXPECT_EQ(audit["held_out_pairs"], 4);            // 0: 1 4, 1: 5, 2: 2
  EXPECT_EQ(audit["pairs_dropped_as_repeats"], 4);  // 2: 1 3 and the second 2, 4: 3
  EXPECT_EQ(audit["pairs_with_untrained_item"], 1);
  EXPECT_EQ(audit["n_items"], 6);
  EXPECT_EQ(audit["K"], Json::array({6}));
}

TEST(Evaluate, MmrecDropsColdUsersAndKeepsRepeats) {
  const Dataset data = audited();
  // User 2's best unmasked item is 2, held out twice among 4 rows; 1 is masked by train.
  torch::Tensor scores = torch::zeros({5, 6});
  scores[2][2] = 1;
  FixedModel model(data, scores);
  EvalOptions options = ask({"recall@1", "precision@1", "map@1"});
  options.per_user = true;
  const Evaluation result = evaluate(model, data, find_protocol("mmrec"), Split::test, options);
  EXPECT_EQ(result.audit["users_averaged"], 3);  // 0, 2, 4
  EXPECT_EQ(result.audit["cold_users"], 1);
  EXPECT_EQ(result.audit["users_dropped"], 1);
  EXPECT_EQ(result.audit["users_without_held_out_items"], 1);
  EXPECT_EQ(result.audit["held_out_pairs"], 7);
  EXPECT_EQ(result.audit["pairs_dropped_as_repeats"], 0);
  EXPECT_EQ(result.audit["pairs_masked_as_repeats"], 2);  // 2: 1, 4: 3
  ASSERT_EQ(result.per_user_users, (std::vector<int64_t>{0, 2, 4}));
  EXPECT_EQ(result.per_user_columns,
            (std::vector<std::string>{"n_test", "recall@1", "precision@1", "map@1"}));
  EXPECT_EQ(result.per_user[1], (std::vector<double>{4, 0.25, 1, 1}));
  EXPECT_EQ(result.per_user[2], (std::vector<double>{1, 0, 0, 0}));
  EXPECT_FALSE(result.audit["notes"].empty());
  EXPECT_EQ(per_user_tsv(result, data).substr(0, 41),
            "user\tn_test\trecall@1\tprecision@1\tmap@1\n0\t");
}

TEST(Evaluate, FactorsAndScoresAgree) {
  torch::manual_seed(7);
  const int64_t n_users = 50, n_items = 40;
  Pairs train, valid, test;
  for (int32_t u = 0; u < n_users; ++u) {
    for (int32_t j = 0; j < 6; ++j) train.emplace_back(u, (u * 7 + j * 5) % n_items);
    valid.emplace_back(u, (u * 3 + 1) % n_items);
    for (int32_t j = 0; j < 3; ++j) test.emplace_back(u, (u * 11 + j * 13 + 2) % n_items);
  }
  const Dataset data = make_dataset(n_users, n_items, rows(n_users, train), rows(n_users, valid),
                                    rows(n_users, test));
  // Few distinct scores, so that there are ties.
  const torch::Tensor scores = torch::randint(0, 8, {n_users, n_items}).to(torch::kFloat);
  FixedModel model(data, scores);
  FixedFactors factors(data, scores);
  EvalOptions options = ask({"recall", "ndcg", "precision", "hit", "map", "mrr", "mrr@5", "auc",
                             "f1", "recall_pooled", "item_coverage", "gini", "shannon_entropy",
                             "average_popularity", "aplt", "tail_percentage", "epc", "novelty"});
  options.topk = {5, 10};
  options.slices = options.per_user = true;
  const Evaluation a = evaluate(model, data, find_protocol("strict"), Split::test, options);
  options.eval_batch_size = 7;
  const Evaluation b = evaluate(factors, data, find_protocol("strict"), Split::test, options);
  ASSERT_EQ(a.metrics.size(), b.metrics.size());
  for (size_t j = 0; j < a.metrics.size(); ++j) {
    EXPECT_EQ(a.metrics[j].second, b.metrics[j].second) << a.metrics[j].first;
    EXPECT_TRUE(std::isfinite(a.metrics[j].second)) << a.metrics[j].first;
  }
  EXPECT_EQ(a.per_user, b.per_user);
  ASSERT_EQ(a.slices.size(), 3);
  EXPECT_EQ(a.slices[1].name, "tail");
  EXPECT_GT(a.slices[1].n_users, 0);

  // An oracle by the definition: rank and auc of every held-out item, counted one by one.
  const Interactions valid_rows = sorted_distinct(data.valid),
                     test_rows = sorted_distinct(data.test);
  double mrr = 0, auc = 0;
  for (int64_t u = 0; u < n_users; ++u) {
    const auto masked = [&](int32_t item) {
      return contains(data.train_distinct.of(u), item) || contains(valid_rows.of(u), item);
    };
    std::vector<int32_t> held;
    for (const int32_t item : test_rows.of(u)) {
      if (!masked(item)) held.push_back(item);
    }
    int64_t best = 1000;
    double right = 0, pairs = 0;
    for (const int32_t item : held) {
      int64_t rank = 1;
      const float own = scores[u][item].item<float>();
      for (int32_t other = 0; other < n_items; ++other) {
        if (other == item || masked(other)) continue;
        const float score = scores[u][other].item<float>();
        if (score > own || (score == own && other < item)) ++rank;
        if (contains(held, other)) continue;
        ++pairs;
        right += own > score ? 1 : own == score ? 0.5 : 0;
      }
      best = std::min(best, rank);
    }
    ASSERT_FALSE(held.empty());
    mrr += 1.0 / static_cast<double>(best);
    auc += right / pairs;
  }
  EXPECT_NEAR(at(a, "mrr"), mrr / n_users, 1e-12);
  EXPECT_NEAR(at(a, "auc"), auc / n_users, 1e-12);
}

// By hand: user 0 holds out 1 (trained by others) and 4 (untrained), ranked 4 3 2 1 after the mask.
TEST(Evaluate, SlicesKeepTheirPairsAndTheCandidates) {
  Feature image;
  image.name = "image";
  image.rows = MappedArray(torch::ones({2, 3}));
  image.row_of_item = torch::tensor(std::vector<int32_t>{0, -1, 1, -1, -1}, torch::kInt32);
  const Dataset data =
      make_dataset(3, 5, rows(3, {{0, 0}, {1, 0}, {1, 1}, {1, 2}, {1, 3}, {2, 0}, {2, 1}}), {},
                   rows(3, {{0, 1}, {0, 4}, {1, 4}, {2, 2}}), {image});
  const torch::Tensor scores = torch::tensor({0.f, 1.f, 2.f, 3.f, 4.f}).view({1, 5}).repeat({3, 1});
  FixedModel model(data, scores);
  EvalOptions options = ask({"recall@1", "mrr"});
  options.slices = true;
  const Evaluation result = evaluate(model, data, find_protocol("strict"), Split::test, options);
  ASSERT_EQ(result.slices.size(), 4);
  const auto& [cold, tail, sparse, missing] =
      std::tie(result.slices[0], result.slices[1], result.slices[2], result.slices[3]);
  EXPECT_EQ(cold.name, "cold");
  EXPECT_EQ(cold.n_users, 2);
  EXPECT_EQ(cold.n_pairs, 2);
  EXPECT_DOUBLE_EQ(cold.metrics[0].second, 1);
  EXPECT_DOUBLE_EQ(cold.metrics[1].second, 1);
  // Counts 3 2 1 1 0: head {0, 1, 2} holds 6 of 7 (0 and 1 only 5 = 71 %).
  EXPECT_EQ(tail.name, "tail");
  EXPECT_EQ(tail.n_users, 2);
  EXPECT_EQ(sparse.name, "sparse");
  EXPECT_EQ(sparse.n_users, 2);  // user 1 has four train rows
  EXPECT_EQ(sparse.n_pairs, 3);
  EXPECT_EQ(missing.name, "missing_image");
  EXPECT_EQ(missing.n_users, 2);  // user 0: 1 and 4, user 1: 4
  EXPECT_EQ(missing.n_pairs, 3);
  EXPECT_DOUBLE_EQ(missing.metrics[0].second, 0.75);  // (1/2 + 1) / 2
  EXPECT_DOUBLE_EQ(at(result, "recall@1"), (0.5 + 1 + 0) / 3);
  EXPECT_NEAR(at(result, "mrr"), (1 + 1 + 1.0 / 3) / 3, 1e-12);
}

TEST(Evaluate, ColdItemSplitsAreReportedWithBothCandidateSets) {
  const Dataset data =
      make_dataset(2, 5, rows(2, {{0, 0}, {1, 1}}), rows(2, {{0, 4}}), rows(2, {{0, 2}, {1, 3}}));
  // User 0: 1 above 2; user 1: 2 above 0 above 3.
  const torch::Tensor scores =
      torch::tensor({9.f, 5.f, 4.f, 1.f, 8.f, 2.f, 9.f, 3.f, 1.f, 0.f}).view({2, 5});
  FixedModel model(data, scores);
  const Evaluation result =
      evaluate(model, data, find_protocol("strict"), Split::test, ask({"mrr", "recall@1", "auc"}));
  EXPECT_NEAR(at(result, "mrr"), (0.5 + 1.0 / 3) / 2, 1e-12);
  ASSERT_EQ(result.slices.size(), 1);
  EXPECT_EQ(result.slices[0].name, "cold_only");
  EXPECT_EQ(result.slices[0].n_users, 2);
  EXPECT_NEAR(result.slices[0].metrics[0].second, 0.75, 1e-12);
  EXPECT_DOUBLE_EQ(result.slices[0].metrics[1].second, 0.5);
  EXPECT_DOUBLE_EQ(result.slices[0].metrics[2].second, 0.75);  // user 0: 1 of 1, user 1: 1 of 2
}

TEST(Evaluate, ShortListsKeepTheDivisorK) {
  const Dataset data = make_dataset(1, 4, rows(1, {{0, 0}, {0, 1}}), {}, rows(1, {{0, 2}}));
  FixedModel model(data, torch::zeros({1, 4}));
  const Evaluation result =
      evaluate(model, data, find_protocol("strict"), Split::test, ask({"precision@4", "recall@4"}));
  EXPECT_DOUBLE_EQ(at(result, "precision@4"), 0.25);
  EXPECT_DOUBLE_EQ(at(result, "recall@4"), 1);
}

TEST(Evaluate, KAboveTheCatalogue) {
  const MaskTest test;
  FixedModel model(test.data, test.scores);
  const Protocol& strict = find_protocol("strict");
  // The protocol's default is cut, with a note; its valid metric is still found.
  const Evaluation cut = evaluate(model, test.data, strict, Split::valid, {});
  EXPECT_EQ(cut.audit["K"], Json::array({6}));
  EXPECT_EQ(cut.audit["notes"].size(), 2);
  EXPECT_DOUBLE_EQ(at(cut, "recall@20"), 1);
  EXPECT_DOUBLE_EQ(at(cut, "recall@6"), 1);
  EXPECT_DOUBLE_EQ(
      at(evaluate(model, test.data, strict, Split::valid, ask({"recall@20"})), "recall@20"), 1);

  EvalOptions given;
  given.topk = {7};
  given.topk_given = true;
  for (const EvalOptions& options : {given, ask({"ndcg@7"})}) {
    try {
      evaluate(model, test.data, strict, Split::test, options);
      FAIL() << "no error";
    } catch (const InputError& error) {
      EXPECT_EQ(error.code(), Exit::usage);
      EXPECT_NE(std::string(error.what()).find("6 items"), std::string::npos) << error.what();
    }
  }
}

TEST(Evaluate, NanIsAnError) {
  const MaskTest test;
  torch::Tensor scores = test.scores.clone();
  scores[0][4] = std::numeric_limits<float>::quiet_NaN();
  FixedModel model(test.data, scores);
  try {
    evaluate(model, test.data, find_protocol("strict"), Split::test, {});
    FAIL() << "no error";
  } catch (const RunError& error) {
    EXPECT_EQ(error.code(), Exit::diverged);
  }
}

// Protocol section 5, ratio20: every test row with the true history before it.
TEST(Evaluate, EveryPositionIsAQueryOfItsOwn) {
  const std::vector<int32_t> users = {0, 1, 1}, items = {0, 3, 2};
  const std::vector<int32_t> test_users = {0, 0, 1}, test_items = {1, 2, 0};
  const Dataset data = make_dataset(2, 4, make_interactions(2, users, items), {},
                                    make_interactions(2, test_users, test_items));
  FixedModel model(data, torch::tensor({{.1F, .4F, .3F, .2F}, {.4F, .3F, .2F, .1F}}), true);
  const Evaluation result =
      evaluate(model, data, find_protocol("ratio20"), Split::test, ask({"hit@1"}));
  EXPECT_EQ(result.n_users, 3);
  EXPECT_NEAR(result.value("hit@1"), 2.0 / 3, 1e-12);
  EXPECT_EQ(result.audit["users_without_held_out_items"], 0);
  const Ragged& rows = model.asked.at(0).histories;
  EXPECT_TRUE(torch::equal(rows.items, torch::tensor({0, 0, 1, 3, 2}, torch::kInt32)));
  EXPECT_TRUE(torch::equal(rows.offsets, torch::tensor({0, 1, 3, 5}, torch::kInt64)));
}

// kdsr section 8: no valid set.
TEST(Evaluate, EveryPositionRefusesValidRows) {
  const MaskTest test;
  FixedModel model(test.data, test.scores, true);
  for (const Split split : {Split::valid, Split::test}) {
    try {
      evaluate(model, test.data, find_protocol("ratio20"), split, ask({"hit@1"}));
      ADD_FAILURE() << "taken";
    } catch (const InputError& error) {
      EXPECT_EQ(error.code(), Exit::usage);
      EXPECT_NE(std::string(error.what()).find("temporal-user `rounding` floor"), std::string::npos)
          << error.what();
    }
  }
}

// sequential section 2: under a mask a target that repeats an item of the history is a miss, and
// counted; everyone with a target is averaged.
TEST(Evaluate, RepeatedTargetsAreMissesOfSeqMask) {
  // User 0 repeats a train item, user 1 its valid item, user 2 nothing.
  const Dataset data =
      make_dataset(3, 4, rows(3, {{0, 0}, {0, 1}, {1, 1}, {2, 2}}),
                   rows(3, {{0, 2}, {1, 3}, {2, 0}}), rows(3, {{0, 1}, {1, 3}, {2, 3}}));
  FixedModel model(
      data, torch::tensor({{0.F, 9.F, 0.F, 0.F}, {0.F, 0.F, 0.F, 9.F}, {0.F, 0.F, 0.F, 9.F}}));
  EvalOptions options = ask({"hit@1", "hit@4", "mrr"});
  options.per_user = true;
  const Evaluation masked = evaluate(model, data, find_protocol("seq-mask"), Split::test, options);
  EXPECT_EQ(masked.n_users, 3);
  EXPECT_NEAR(at(masked, "hit@4"), 1.0 / 3, 1e-12);
  EXPECT_NEAR(at(masked, "mrr"), 1.0 / 3, 1e-12);
  EXPECT_EQ(masked.audit["users_averaged"], 3);
  EXPECT_EQ(masked.audit["held_out_pairs"], 3);
  EXPECT_EQ(masked.audit["pairs_dropped_as_repeats"], 0);
  EXPECT_EQ(masked.audit["pairs_masked_as_repeats"], 2);
  EXPECT_EQ(masked.audit["seen"], "mask");
  ASSERT_EQ(masked.per_user.size(), 3);
  EXPECT_EQ(masked.per_user[0], (std::vector<double>{1, 0, 0, 0}));
  // While validating only train rows are masked, and valid items do not repeat.
  const Evaluation valid = evaluate(model, data, find_protocol("seq-mask"), Split::valid, options);
  EXPECT_EQ(valid.audit["pairs_masked_as_repeats"], 0);
  for (const char* name : {"seq-none", "recbole-seq"}) {
    const Evaluation open = evaluate(model, data, find_protocol(name), Split::test, options);
    EXPECT_EQ(open.n_users, 3);
    EXPECT_DOUBLE_EQ(at(open, "hit@1"), 1);
    EXPECT_EQ(open.audit["pairs_masked_as_repeats"], 0);
  }
  const Evaluation strict = evaluate(model, data, find_protocol("strict"), Split::test, options);
  EXPECT_EQ(strict.n_users, 1);
  EXPECT_EQ(strict.audit["pairs_dropped_as_repeats"], 2);
  EXPECT_EQ(strict.audit["pairs_masked_as_repeats"], 0);
}

TEST(Evaluate, OnlySequentialModelsSeeValidRowsAtTest) {
  const MaskTest test;
  const auto history = [&](const std::string& protocol, Split split, bool sequential) {
    FixedModel model(test.data, test.scores, sequential);
    evaluate(model, test.data, find_protocol(protocol), split, ask({"hit@1"}));
    const Ragged& rows = model.asked.at(0).histories;
    if (!rows.defined()) return std::vector<int32_t>{-1};
    const auto* items = rows.items.const_data_ptr<int32_t>();
    return std::vector<int32_t>(items, items + rows.items.size(0));
  };
  using List = std::vector<int32_t>;
  EXPECT_EQ(history("strict", Split::test, true), (List{0, 3}));
  EXPECT_EQ(history("strict", Split::valid, true), (List{0}));
  EXPECT_EQ(history("mmrec", Split::test, true), (List{0}));
  EXPECT_EQ(history("recbole-seq", Split::test, true), (List{0, 3}));
  EXPECT_EQ(history("seq-none", Split::test, true), (List{0, 3}));
  EXPECT_EQ(history("strict", Split::test, false), (List{-1}));
}

TEST(Evaluate, HistoriesOfColdUsersAreGivenAndMasked) {
  Dataset data = make_dataset(2, 4, rows(2, {{0, 0}, {0, 1}}), {}, rows(2, {{1, 3}}));
  data.history = rows(2, {{1, 1}, {1, 0}});
  FixedModel model(data, torch::tensor({0.f, 0.f, 0.f, 0.f, 9.f, 8.f, 7.f, 6.f}).view({2, 4}));
  const Evaluation result =
      evaluate(model, data, find_protocol("strict"), Split::test, ask({"mrr"}));
  EXPECT_DOUBLE_EQ(at(result, "mrr"), 0.5);
  ASSERT_EQ(model.asked.size(), 1);
  ASSERT_TRUE(model.asked[0].histories.defined());
  EXPECT_EQ(model.asked[0].histories.items[0].item<int>(), 1);
  EXPECT_EQ(result.audit["cold_users"], 1);
}

TEST(Evaluate, SeenRowsAreNotMasked) {
  MaskTest test;
  test.data.seen = rows(1, {{0, 1}});
  FixedModel model(test.data, test.scores);
  EXPECT_DOUBLE_EQ(
      at(evaluate(model, test.data, find_protocol("strict"), Split::test, ask({"mrr"})), "mrr"), 1);
}

TEST(Evaluate, ProtocolsForOneTargetRefuseOtherSplits) {
  const Dataset data = audited();
  FixedModel model(data, torch::zeros({5, 6}));
  EXPECT_THROW(evaluate(model, data, find_protocol("recbole-seq"), Split::test, ask({"mrr@5"})),
               InputError);
}

TEST(Evaluate, UnknownModalityOfIldNamesTheNearest) {
  Feature image;
  image.name = "image";
  image.rows = MappedArray(torch::ones({1, 3}));
  image.row_of_item = torch::tensor(std::vector<int32_t>{0, -1}, torch::kInt32);
  const Dataset data = make_dataset(1, 2, rows(1, {{0, 0}}), {}, rows(1, {{0, 1}}), {image});
  FixedModel model(data, torch::zeros({1, 2}));
  try {
    evaluate(model, data, find_protocol("strict"), Split::test, ask({"ild_imge@2"}));
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("'image'"), std::string::npos) << error.what();
  }
}

TEST(Evaluate, NobodyToAverageGivesNan) {
  const Dataset data = make_dataset(1, 2, rows(1, {{0, 0}}));
  FixedModel model(data, torch::zeros({1, 2}));
  EXPECT_FALSE(has_rows(data, Split::test));
  const Evaluation result = evaluate(model, data, find_protocol("strict"), Split::test, {});
  EXPECT_EQ(result.n_users, 0);
  EXPECT_TRUE(std::isnan(at(result, "recall@20")));
}

// Lists.

Dataset people() {
  return make_dataset(3, 6, rows(3, {{0, 0}, {1, 0}, {2, 0}}), rows(3, {{0, 3}}),
                      rows(3, {{0, 1}, {1, 2}, {2, 5}}));
}

TEST(Recommendations, ScoresOfSomebodyElse) {
  const Dataset data = people();
  // User 0 as in the mask test; user 1 misses; user 2 has no list.
  const RecommendationLists lists = parse_recommendations(
      "0 0 .9\n0 1 .5\n0 2 .5\n0 3 .7\n0 4 .1\n0 5 .5\n1 4 2\n1 1 1\n9 1 1\n1 99 5\n1 4 -1\n",
      "recs", data);
  EXPECT_EQ(lists.items[0], (std::vector<int32_t>{0, 3, 1, 2, 5, 4}));
  EXPECT_EQ(lists.items[1], (std::vector<int32_t>{4, 1}));
  EXPECT_EQ(lists.audit["rows"], 11);
  EXPECT_EQ(lists.audit["rows_of_unknown_users"], 1);
  EXPECT_EQ(lists.audit["rows_of_unknown_items"], 1);
  EXPECT_EQ(lists.audit["repeated_rows"], 1);

  const Evaluation strict =
      evaluate_lists(lists, data, find_protocol("strict"), Split::test, ask({"ndcg@2", "mrr@6"}));
  EXPECT_EQ(strict.n_users, 3);
  EXPECT_NEAR(at(strict, "ndcg@2"), 1.0 / 3, 1e-12);
  EXPECT_EQ(strict.audit["lists"]["masked_items_removed"], 2);
  EXPECT_EQ(strict.audit["lists"]["averaged_users_without_a_list"], 1);
  const Evaluation mmrec =
      evaluate_lists(lists, data, find_protocol("mmrec"), Split::test, ask({"ndcg@2", "mrr@6"}));
  EXPECT_NEAR(at(mmrec, "mrr@6"), 0.5 / 3, 1e-12);
  // What needs the ranking of all items cannot be read off lists.
  for (const char* whole : {"auc", "mrr", "map"}) {
    EXPECT_THROW(evaluate_lists(lists, data, find_protocol("strict"), Split::test, ask({whole})),
                 InputError)
        << whole;
  }
  // User 1 has two of five candidates; user 0 all four that are left.
  EXPECT_EQ(strict.audit["lists"]["averaged_users_with_a_short_list"], 1);
  const Evaluation shorter =
      evaluate_lists(lists, data, find_protocol("strict"), Split::test, ask({"ndcg@2"}));
  EXPECT_EQ(shorter.audit["lists"]["averaged_users_with_a_short_list"], 0);
}

TEST(Recommendations, ItsOwnListsGiveTheModelsNumbers) {
  torch::manual_seed(3);
  const Dataset data = audited();
  FixedModel model(data, torch::rand({5, 6}));
  EvalOptions options = ask({"recall@3", "ndcg@3", "gini@3", "mrr@6"});
  const Evaluation whole = evaluate(model, data, find_protocol("strict"), Split::test, options);
  Queries queries;
  queries.users = torch::arange(5);
  const TopLists lists = model.freeze()->top(queries, {}, {}, 6);
  std::string text = "user\titem\trank\tscore\n";
  for (int64_t u = 0; u < 5; ++u) {
    for (int64_t r = 5; r >= 0; --r) {
      text += fmt::format("{}\t{}\t{}\t{}\n", u, lists.items[u][r].item<int>(), r + 1,
                          lists.scores[u][r].item<float>());
    }
  }
  const Evaluation read = evaluate_lists(parse_recommendations(text, "recs", data), data,
                                         find_protocol("strict"), Split::test, options);
  for (size_t j = 0; j < whole.metrics.size(); ++j) {
    EXPECT_EQ(whole.metrics[j].second, read.metrics[j].second) << whole.metrics[j].first;
  }
}

TEST(Recommendations, LayoutsThatPeopleHave) {
  const Dataset data = people();
  const std::vector<std::string> files = {
      "0\t4\t2.5\n0\t1\t7\n",
      "0,4,2.5\r\n0,1,7\r\n",
      "\xef\xbb\xbfuser_id:token\titem_id:token\tscore:float\n0\t4\t2.5\n0\t1\t7",
      "score user item\n2.5 0 4\n7 0 1\n",
      "userID,itemID,rank,prediction\n0,1,1,0\n0,4,2,9\n",
      "\n  0   1\n0\t4\n"};
  for (const std::string& text : files) {
    EXPECT_EQ(parse_recommendations(text, "recs", data).items[0], (std::vector<int32_t>{1, 4}))
        << text;
  }
}

TEST(Recommendations, BadFilesNameTheLine) {
  const Dataset data = people();
  const auto refusal = [&](const std::string& text) -> std::string {
    try {
      parse_recommendations(text, "recs.tsv", data);
    } catch (const InputError& error) {
      EXPECT_EQ(error.code(), Exit::data);
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal("").find("no row"), std::string::npos);
  EXPECT_NE(refusal("user\titem\n").find("no row"), std::string::npos);
  EXPECT_NE(refusal("0 1 2\n0 1\n").find("recs.tsv:2"), std::string::npos);
  EXPECT_NE(refusal("0 1 2\n0 2 nan\n").find("recs.tsv:2: column 3"), std::string::npos);
  EXPECT_NE(refusal("0 1 2\n0 2 inf\n").find("column 3"), std::string::npos);
  EXPECT_NE(refusal("0 1 high\n").find("recs.tsv:1"), std::string::npos);
  EXPECT_NE(refusal("0 1 1 1\n").find("header"), std::string::npos);
  EXPECT_NE(refusal("0\t\t1\n").find("column 2"), std::string::npos);
  EXPECT_NE(refusal(std::string("0 1\0 2", 6)).find("binary"), std::string::npos);
  EXPECT_NE(refusal("a b 1\nc d 2\n").find("user 'a'"), std::string::npos);
  EXPECT_THROW(read_recommendations("no/such/file.tsv", data), InputError);
}

}  // namespace
}  // namespace tessera
