#include "tessera/eval/metrics.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "tessera/base/error.h"

namespace tessera {
namespace {

double at(const std::string& metric, const std::vector<int64_t>& hits, int64_t m,
          bool relevant = false) {
  return accuracy(parse_metric(metric), hits, m, relevant);
}

struct User {
  std::vector<int64_t> hits;
  int64_t m;
};
const User kA = {{2, 5, 9}, 3}, kB = {{1, 3, 4}, 7}, kC = {{}, 1};

Dataset items_only(int64_t n_items) { return make_dataset(1, n_items, {}); }

double value(const MetricValues& values, const std::string& name) {
  for (const auto& [key, number] : values) {
    if (key == name) return number;
  }
  ADD_FAILURE() << "no " << name;
  return 0;
}

// specs: protocol section 6, "Example": rows A, B, C and the mean, as printed.
TEST(Accuracy, FollowsTheSpecsExample) {
  const std::vector<std::string> names = {"recall@5",     "ndcg@5", "precision@5", "map@5",
                                          "mrr@5",        "hit@5",  "recall@10",   "ndcg@10",
                                          "precision@10", "map@10"};
  const std::vector<std::vector<double>> expected = {
      {.66667, .47762, .40000, .30000, .50000, 1, 1, .61889, .30000, .41111},
      {.42857, .65481, .60000, .48333, 1, 1, .42857, .53070, .30000, .34524},
      {0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
      {.36508, .37748, .33333, .26111, .50000, .66667, .47619, .38320, .20000, .25212}};
  const std::vector<User> users = {kA, kB, kC};
  for (size_t u = 0; u < users.size(); ++u) {
    for (size_t j = 0; j < names.size(); ++j) {
      EXPECT_NEAR(at(names[j], users[u].hits, users[u].m), expected[u][j], 5.1e-6)
          << names[j] << " user " << u;
    }
  }
  const Dataset data = items_only(20);
  const ItemStatistics statistics(data, 0.1);
  std::vector<std::string> asked = names;
  asked.push_back("recall_pooled@5");
  MetricSums sums(expand_metrics(asked, {}), statistics, false);
  for (const User& user : users) sums.add({.items = {}, .hits = user.hits, .m = user.m, .ild = {}});
  const MetricValues mean = sums.values();
  for (size_t j = 0; j < names.size(); ++j) {
    EXPECT_NEAR(value(mean, names[j]), expected[3][j], 5.1e-6) << names[j];
  }
  EXPECT_NEAR(value(mean, "recall_pooled@5"), 5.0 / 11, 1e-12);
  EXPECT_EQ(sums.n_users(), 3);
  EXPECT_EQ(sums.n_pairs(), 11);
}

// specs: mmssl section 10, G7: three held-out items, hits at ranks 2 and 31. The published code's
// NDCG, ndcg_retrieved, takes the hits of the top 50 for the held-out items.
TEST(Accuracy, ThreeHeldOutItemsOfMmssl) {
  EXPECT_NEAR(at("recall@20", {2, 31}, 3), .333333, 5e-7);
  EXPECT_NEAR(at("precision@20", {2, 31}, 3), .05, 5e-7);
  EXPECT_NEAR(at("ndcg@20", {2, 31}, 3), .296082, 5e-7);
  EXPECT_NEAR(at("ndcg_retrieved@20", {2, 31}, 3), .386853, 5e-7);
  EXPECT_NEAR(at("ndcg_retrieved@20", {2, 51}, 3), .630930, 5e-7);
  EXPECT_EQ(at("ndcg_retrieved@20", {51}, 3), 0);
  EXPECT_EQ(parse_metric("ndcg_retrieved_ideal@20").name(), "ndcg_retrieved@20");
  EXPECT_EQ(parse_metric("ndcg_retrieved@20").depth(), 50);
  EXPECT_EQ(parse_metric("ndcg@20").depth(), 20);
}

// By hand: p = 2/5 and r = 2/3 give 2 * (4/15) / (16/15) = 1/2.
TEST(Accuracy, F1IsTheHarmonicMeanOfTheUser) {
  EXPECT_DOUBLE_EQ(at("f1@5", kA.hits, kA.m), 0.5);
  EXPECT_DOUBLE_EQ(at("f1@5", kC.hits, kC.m), 0);
}

// By hand: A's whole list (1/2 + 2/5 + 3/9) / 3; first hit at 2.
TEST(Accuracy, MrrAndMapWithoutKReadTheWholeList) {
  EXPECT_NEAR(at("map", kA.hits, 3), (0.5 + 0.4 + 1.0 / 3) / 3, 1e-12);
  EXPECT_DOUBLE_EQ(at("mrr", {5000}, 1), 1.0 / 5000);
  EXPECT_DOUBLE_EQ(at("mrr@10", {5000}, 1), 0);
  EXPECT_TRUE(parse_metric("mrr").whole_list());
  EXPECT_FALSE(parse_metric("mrr@10").whole_list());
}

// By hand: B@5 has 29/12 of precision sums; min(7, 5) = 5 against 7 relevant.
TEST(Accuracy, MapNorm) {
  EXPECT_NEAR(at("map@5", kB.hits, kB.m, false), 29.0 / 12 / 5, 1e-12);
  EXPECT_NEAR(at("map@5", kB.hits, kB.m, true), 29.0 / 12 / 7, 1e-12);
}

// specs: protocol section 6: with one held-out item hit = recall, map = mrr, ndcg = 1/log2(rank+1).
TEST(Accuracy, OneHeldOutItem) {
  for (const int64_t rank : {1, 2, 7, 10, 11}) {
    const std::vector<int64_t> hits = {rank};
    EXPECT_DOUBLE_EQ(at("hit@10", hits, 1), at("recall@10", hits, 1));
    EXPECT_DOUBLE_EQ(at("map@10", hits, 1), at("mrr@10", hits, 1));
    EXPECT_DOUBLE_EQ(at("ndcg@10", hits, 1),
                     rank <= 10 ? 1 / std::log2(static_cast<double>(rank) + 1) : 0);
  }
}

// specs: protocol section 7, "Example".
class BeyondAccuracy : public testing::Test {
 protected:
  static Dataset make(bool with_f1) {
    // Item counts 10, 6, 2, 1, 1 over ten users.
    std::vector<int32_t> users, items;
    const std::vector<int> counts = {10, 6, 2, 1, 1};
    for (int item = 0; item < 5; ++item) {
      for (int user = 0; user < counts[item]; ++user) {
        users.push_back(user);
        items.push_back(item);
      }
    }
    Feature feature;
    feature.name = "image";
    feature.rows = MappedArray(torch::tensor({1.f, 0.f, 0.f, 1.f, 1.f, 1.f}).view({3, 2}));
    feature.row_of_item =
        torch::tensor(std::vector<int32_t>{0, with_f1 ? 1 : -1, 2, -1, -1}, torch::kInt32);
    return make_dataset(10, 5, make_interactions(10, users, items), {}, {}, {feature});
  }
  MetricValues run(const Dataset& data, double tail_ratio, const std::vector<std::string>& names,
                   int64_t* without_pair = nullptr) {
    const ItemStatistics statistics(data, tail_ratio);
    const std::vector<Metric> metrics = expand_metrics(names, {2});
    MetricSums sums(metrics, statistics, false);
    const std::vector<std::vector<int32_t>> lists = {{0, 1}, {0, 2}, {0, 1}};
    const std::vector<std::vector<int64_t>> hits = {{2}, {1}, {}};
    for (size_t u = 0; u < lists.size(); ++u) {
      std::vector<double> ild(metrics.size(), 0.0);
      for (size_t j = 0; j < metrics.size(); ++j) {
        if (metrics[j].kind == Metric::Kind::ild) {
          ild[j] = intra_list_distances(data.features[0], lists[u], {metrics[j].k})[0];
        }
      }
      sums.add({.items = lists[u], .hits = hits[u], .m = 1, .auc = 0, .ild = ild});
    }
    if (without_pair != nullptr) *without_pair = sums.users_without_pair()[0].second;
    return sums.values();
  }
};

TEST_F(BeyondAccuracy, FollowsTheSpecsExample) {
  const Dataset data = make(true);
  const MetricValues values =
      run(data, 0.6,
          {"item_coverage", "item_count", "user_coverage", "gini", "shannon_entropy",
           "average_popularity", "aplt", "tail_percentage", "epc", "novelty", "ild_image"});
  EXPECT_NEAR(value(values, "item_coverage@2"), 3.0 / 5, 1e-12);
  EXPECT_NEAR(value(values, "item_count@2"), 3, 1e-12);
  EXPECT_NEAR(value(values, "user_coverage@2"), 2.0 / 3, 1e-12);
  EXPECT_NEAR(value(values, "gini@2"), 16.0 / 30, 1e-12);
  EXPECT_NEAR(value(values, "shannon_entropy@2"), 1.01140, 5e-6);
  EXPECT_NEAR(value(values, "average_popularity@2"), 22.0 / 3, 1e-12);
  EXPECT_NEAR(value(values, "aplt@2"), 1.0 / 6, 1e-12);
  EXPECT_NEAR(value(values, "tail_percentage@2"), 1.0 / 6, 1e-12);
  EXPECT_NEAR(value(values, "epc@2"), .05158, 5e-6);
  EXPECT_NEAR(value(values, "novelty@2"), .20632, 5e-6);
  EXPECT_NEAR(value(values, "ild_image@2"), .76430, 5e-6);
}

TEST_F(BeyondAccuracy, PairsWithAMissingRowAreLeftOut) {
  int64_t without_pair = 0;
  const MetricValues values = run(make(false), 0.1, {"ild_image@2"}, &without_pair);
  EXPECT_NEAR(value(values, "ild_image@2"), .29289, 5e-6);
  EXPECT_EQ(without_pair, 2);
}

TEST_F(BeyondAccuracy, TailsOfTheExample) {
  const Dataset data = make(true);
  const ItemStatistics at_six_tenths(data, 0.6);
  EXPECT_EQ(at_six_tenths.tail, (std::vector<bool>{false, false, true, true, true}));
  EXPECT_EQ(at_six_tenths.ratio_tail, (std::vector<bool>{false, false, true, true, true}));
  EXPECT_EQ(at_six_tenths.n_train_users, 10);
  // max(1, floor(.1 * 5)) = 1: of the two least popular items the lower index.
  EXPECT_EQ(ItemStatistics(data, 0.1).ratio_tail,
            (std::vector<bool>{false, false, false, true, false}));
  // Above 1 it is a count.
  EXPECT_EQ(ItemStatistics(data, 6).ratio_tail, (std::vector<bool>{false, true, true, true, true}));
}

// By hand: rows (1,0), (0,2), (3,3), (0,0): pairs 1, 1 - 1/sqrt 2 twice; the zero row has none.
TEST(IntraListDistance, MeanOverPairsAtSeveralK) {
  Feature feature;
  feature.name = "image";
  feature.rows = MappedArray(torch::tensor({1.f, 0.f, 0.f, 2.f, 3.f, 3.f, 0.f, 0.f}).view({4, 2}));
  feature.row_of_item = torch::tensor(std::vector<int32_t>{0, 1, 2, 3}, torch::kInt32);
  const std::vector<int32_t> list = {3, 0, 1, 2};
  const std::vector<double> values = intra_list_distances(feature, list, {2, 3, 10});
  EXPECT_TRUE(std::isnan(values[0]));
  EXPECT_NEAR(values[1], 1, 1e-12);
  EXPECT_NEAR(values[2], (1 + 2 * (1 - 1 / std::sqrt(2.0))) / 3, 1e-12);
}

// By hand: one of four items takes all: (2*4 - 4 - 1) * 8 / (4 * 8).
TEST(Gini, Ends) {
  EXPECT_DOUBLE_EQ(gini({2, 2, 2, 2}), 0);
  EXPECT_DOUBLE_EQ(gini({0, 8, 0, 0}), 0.75);
}

TEST(MetricNames, EverySpellingOfTheConventions) {
  const std::vector<std::pair<std::string, std::string>> spellings = {
      {"Recall@20", "recall@20"},
      {"NDCG@5", "ndcg@5"},
      {"nDCG@5", "ndcg@5"},
      {"HitRate@10", "hit@10"},
      {"hit_ratio@10", "hit@10"},
      {"HR@10", "hit@10"},
      {"hr@10", "hit@10"},
      {"FMeasure@10", "f1@10"},
      {"F1@10", "f1@10"},
      {"micro_recall@10", "recall_pooled@10"},
      {"Recall2@10", "recall_pooled@10"},
      {"rr@10", "mrr@10"},
      {"MRR", "mrr"},
      {"MAP", "map"},
      {"GAUC", "auc"},
      {"AUC", "auc"},
      {"ItemCoverage@10", "item_coverage@10"},
      {"GiniIndex@10", "gini@10"},
      {"entropy@10", "shannon_entropy@10"},
      {"ShannonEntropy@10", "shannon_entropy@10"},
      {"ARP@10", "average_popularity@10"},
      {"APLT@10", "aplt@10"},
      {"TailPercentage@10", "tail_percentage@10"},
      {"UserCoverage@10", "user_coverage@10"},
      {"item_count@10", "item_count@10"},
      {"EPC@10", "epc@10"},
      {"Novelty@10", "novelty@10"},
      {"ILD_image@20", "ild_image@20"},
      {"ild_image_big@20", "ild_image_big@20"},
      {"precision", "precision"}};
  for (const auto& [typed, canonical] : spellings) {
    EXPECT_EQ(parse_metric(typed).name(), canonical) << typed;
  }
}

std::string refusal(const std::string& typed) {
  try {
    parse_metric(typed);
  } catch (const InputError& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    return error.what();
  }
  return "";
}

TEST(MetricNames, Refusals) {
  EXPECT_NE(refusal("recal@20").find("did you mean 'recall'"), std::string::npos);
  EXPECT_NE(refusal("ndgc").find("did you mean 'ndcg'"), std::string::npos);
  EXPECT_NE(refusal("recall@0").find("at least 1"), std::string::npos);
  EXPECT_NE(refusal("recall@"), "");
  EXPECT_NE(refusal("recall@1e9"), "");
  EXPECT_NE(refusal("recall@99999999999999999999"), "");
  EXPECT_NE(refusal("auc@10"), "");
  EXPECT_NE(refusal(""), "");
  EXPECT_NE(refusal("@"), "");
  EXPECT_NE(refusal("ild@10"), "");
  EXPECT_NE(refusal("ild_@10"), "");
}

TEST(MetricNames, DefaultsAndLists) {
  std::vector<std::string> names;
  for (const Metric& metric : expand_metrics({}, {10, 20})) names.push_back(metric.name());
  EXPECT_EQ(names, (std::vector<std::string>{"recall@10", "recall@20", "ndcg@10", "ndcg@20",
                                             "precision@10", "precision@20", "hit@10", "hit@20",
                                             "map@10", "map@20", "mrr@10", "mrr@20"}));
  names.clear();
  for (const Metric& metric : expand_metrics({"recall", "Recall@10", "mrr", "auc", "hr@3"}, {10})) {
    names.push_back(metric.name());
  }
  EXPECT_EQ(names, (std::vector<std::string>{"recall@10", "mrr", "auc", "hit@3"}));
}

}  // namespace
}  // namespace tessera
