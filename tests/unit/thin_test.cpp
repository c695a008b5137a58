// FREEDOM's thinning of the user-item graph (baselines section 11).
#include "tessera/ops/thin.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

namespace tessera {
namespace {

BipartiteGraph graph_of(const std::vector<std::pair<int64_t, int32_t>>& edges, int64_t n_users,
                        int64_t n_items) {
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < n_users; ++u) {
    for (const auto& [user, item] : edges) {
      if (user == u) items.push_back(item);
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return BipartiteGraph(torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32),
                        n_items);
}

/// User 0 and item 0 have most of the edges: weights 1/sqrt(d_u d_i) from .25 to 1.
const std::vector<std::pair<int64_t, int32_t>> kSkewed = {{0, 0}, {0, 1}, {0, 2}, {0, 3},
                                                          {1, 0}, {2, 0}, {3, 0}, {4, 4}};

BipartiteGraph skewed() { return graph_of(kSkewed, 5, 5); }

std::vector<double> weights() {
  const std::vector<double> user = {4, 1, 1, 1, 1}, item = {4, 1, 1, 1, 1};
  std::vector<double> out;
  for (const auto& [u, i] : kSkewed) {
    out.push_back(1 / std::sqrt(user[static_cast<size_t>(u)] * item[static_cast<size_t>(i)]));
  }
  return out;
}

/// Share of 20,000 steps in which each edge of the skewed graph is kept.
std::vector<double> frequencies(double dropout) {
  constexpr int64_t kSteps = 20'000;
  const BipartiteGraph graph = skewed();
  std::vector<double> out(kSkewed.size(), 0);
  for (int64_t step = 0; step < kSteps; ++step) {
    const BipartiteGraph thin = thinned(graph, dropout, Random(7, "drop.edges"), step);
    const int64_t* offset = thin.parts().user_offsets.const_data_ptr<int64_t>();
    const int32_t* item = thin.parts().user_items.const_data_ptr<int32_t>();
    for (size_t e = 0; e < kSkewed.size(); ++e) {
      const auto [u, i] = kSkewed[e];
      for (int64_t at = offset[u]; at < offset[u + 1]; ++at) out[e] += item[at] == i ? 1 : 0;
    }
  }
  for (double& n : out) n /= kSteps;
  return out;
}

TEST(Thinned, KeepsTheFloorOfTheShareInDouble) {
  for (const auto& [n_edges, dropout, kept] :
       {std::tuple{8, .5, 4}, std::tuple{7, .5, 3}, std::tuple{10, .8, 1}, std::tuple{20, .8, 3},
        std::tuple{10, .9, 0}, std::tuple{5, 1., 0}, std::tuple{5, 0., 5}}) {
    // 1 - .8 and 1 - .9 lie below .2 and .1 in double.
    std::vector<std::pair<int64_t, int32_t>> edges;
    for (int e = 0; e < n_edges; ++e) edges.emplace_back(e % 3, e / 3);
    const BipartiteGraph graph = graph_of(edges, 3, 7);
    for (int64_t step = 0; step < 3; ++step) {
      EXPECT_EQ(thinned(graph, dropout, Random(1), step).n_edges(), kept) << n_edges << dropout;
    }
  }
}

TEST(Thinned, NormalisesByTheDegreesThatAreLeft) {
  const auto whole = skewed().dense() > 0;
  for (int64_t step = 0; step < 20; ++step) {
    const auto dense = thinned(skewed(), .5, Random(3), step).dense();
    const auto edge = dense > 0;
    EXPECT_FALSE(edge.logical_and(whole.logical_not()).any().item<bool>());
    const auto degree = edge.sum(1, true) * edge.sum(0, true);
    const auto wanted = edge.to(torch::kFloat64) / degree.clamp_min(1).to(torch::kFloat64).sqrt();
    EXPECT_TRUE(torch::allclose(dense, wanted, 1e-6, 1e-6));
  }
}

// One edge of eight: kept as often as 1 / sqrt(d_u d_i) says.
TEST(Thinned, KeepsAnEdgeInProportionToItsWeight) {
  const auto w = weights(), found = frequencies(.875);
  double sum = 0;
  for (const double weight : w) sum += weight;
  for (size_t e = 0; e < w.size(); ++e) {
    const double wanted = w[e] / sum;
    EXPECT_NEAR(found[e], wanted, 5 * std::sqrt(wanted * (1 - wanted) / 20'000)) << "edge " << e;
  }
}

// Three of eight: the law of one draw after another without putting back, summed over all orders.
TEST(Thinned, DrawsWithoutPuttingBack) {
  const auto w = weights(), found = frequencies(.625);
  double all = 0;
  for (const double weight : w) all += weight;
  std::vector<double> wanted(w.size(), 0);
  for (size_t a = 0; a < w.size(); ++a) {
    for (size_t b = 0; b < w.size(); ++b) {
      for (size_t c = 0; c < w.size(); ++c) {
        if (a == b || b == c || a == c) continue;
        const double p = w[a] / all * w[b] / (all - w[a]) * w[c] / (all - w[a] - w[b]);
        for (const size_t e : {a, b, c}) wanted[e] += p;
      }
    }
  }
  for (size_t e = 0; e < w.size(); ++e) {
    EXPECT_NEAR(found[e], wanted[e], 5 * std::sqrt(wanted[e] * (1 - wanted[e]) / 20'000))
        << "edge " << e;
  }
}

}  // namespace
}  // namespace tessera
