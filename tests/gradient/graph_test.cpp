#include "tessera/ops/graph.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <functional>

#include "tessera/base/random.h"
#include "tessera/ops/fill.h"
#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

// About `share` of all pairs; the last user and the last item have no edge.
BipartiteGraph random_graph(int64_t n_users, int64_t n_items, double share) {
  const Random random(11, "graph");
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < n_users; ++u) {
    for (int64_t i = 0; i + 1 < n_items && u + 1 < n_users; ++i) {
      if (random.uniform(0, static_cast<uint64_t>(u), static_cast<uint32_t>(i)) < share) {
        items.push_back(static_cast<int32_t>(i));
      }
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return BipartiteGraph(torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32),
                        n_items);
}

torch::Tensor values(int64_t rows, int64_t cols, const char* stream, torch::Dtype type) {
  return normal(rows, cols, 0, 1, Random(2, stream)).to(type).requires_grad_();
}

class Graph : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(Graph, KernelEqualsComposedInValueAndGradient) {
  const auto [width, n_layers] = GetParam();
  for (const auto& [n_users, n_items, share] :
       {std::tuple{9, 7, 0.4}, std::tuple{1, 1, 1.0}, std::tuple{40, 3, 0.9}, std::tuple{5, 4, 0.0},
        std::tuple{130, 70, 0.3}}) {
    const BipartiteGraph graph = random_graph(n_users, n_items, share);
    for (const torch::Dtype type : {torch::kFloat64, torch::kFloat32}) {
      const double tolerance = type == torch::kFloat64 ? 1e-12 : 1e-5;
      std::vector<std::vector<torch::Tensor>> results;
      for (const bool kernel : {true, false}) {
        const torch::Tensor users = values(n_users, width, "u", type);
        const torch::Tensor items = values(n_items, width, "i", type);
        const auto [u, i] =
            n_layers < 0
                ? (kernel ? propagate : propagate_composed)(graph, users, items)
                : (kernel ? layer_mean : layer_mean_composed)(graph, users, items, n_layers);
        const torch::Tensor wu = values(n_users, width, "wu", type).detach();
        const torch::Tensor wi = values(n_items, width, "wi", type).detach();
        ((u * wu).sum() + (i * wi).sum() + (u * u).sum()).backward();
        results.push_back({u, i, users.grad(), items.grad()});
      }
      for (size_t k = 0; k < 4; ++k) {
        EXPECT_EQ(results[0][k].scalar_type(), type);
        EXPECT_TRUE(torch::allclose(results[0][k], results[1][k], tolerance, tolerance))
            << "users " << n_users << " width " << width << " result " << k;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Graph,
                         testing::Combine(testing::Values<int64_t>(0, 1, 5, 16, 64, 83),
                                          testing::Values<int64_t>(-1, 0, 1, 3)));

TEST(GraphOps, GradientsAgreeWithCentralDifferences) {
  const BipartiteGraph graph = random_graph(6, 5, 0.5);
  for (const int64_t n_layers : {-1, 0, 2}) {
    const auto loss = [&](const std::vector<torch::Tensor>& x) {
      const auto [u, i] =
          n_layers < 0 ? propagate(graph, x[0], x[1]) : layer_mean(graph, x[0], x[1], n_layers);
      return (u.tanh() * u).sum() + (i.sin() * 2).sum();
    };
    expect_gradients(loss,
                     {values(6, 3, "u", torch::kFloat64), values(5, 3, "i", torch::kFloat64)});
  }
}

TEST(GraphOps, OnlyOneSideMayWantAGradient) {
  const BipartiteGraph graph = random_graph(6, 5, 0.5);
  const torch::Tensor users = values(6, 3, "u", torch::kFloat64);
  const torch::Tensor items = values(5, 3, "i", torch::kFloat64).detach();
  layer_mean(graph, users, items, 1).second.sum().backward();
  EXPECT_TRUE(torch::allclose(users.grad(), graph.dense().sum(1, true).expand({6, 3}) / 2));
}

// The dense matrix by the formula of bm3 section 2.
TEST(GraphOps, ChosenRowsEqualThoseOfTheWholeMean) {
  torch::manual_seed(11);
  const BipartiteGraph graph = random_graph(9, 7, .4);
  const auto user_rows = torch::tensor({6, 0, 3}, torch::kInt64),
             item_rows = torch::tensor({1, 2, 5, 6}, torch::kInt64);
  for (const int64_t n_layers : {0, 1, 2, 3}) {
    const auto x = torch::randn({9, 5}, torch::kFloat64).requires_grad_(),
               y = torch::randn({7, 5}, torch::kFloat64).requires_grad_();
    const auto a = torch::randn({3, 5}, torch::kFloat64), b = torch::randn({4, 5}, torch::kFloat64);
    const auto [u, i] = layer_mean_rows(graph, x, y, n_layers, user_rows, item_rows);
    const auto [wu, wi] = layer_mean_composed(graph, x, y, n_layers);
    const auto su = wu.index_select(0, user_rows), si = wi.index_select(0, item_rows);
    EXPECT_TRUE(torch::allclose(u, su, 1e-12, 1e-14)) << n_layers;
    EXPECT_TRUE(torch::allclose(i, si, 1e-12, 1e-14)) << n_layers;
    const auto mine = torch::autograd::grad({(u * a).sum() + (i * b).sum()}, {x, y});
    const auto wanted = torch::autograd::grad({(su * a).sum() + (si * b).sum()}, {x, y});
    for (size_t k = 0; k < 2; ++k) {
      EXPECT_TRUE(torch::allclose(mine[k], wanted[k], 1e-12, 1e-14)) << n_layers << " " << k;
    }
  }
  const auto none = torch::empty({0}, torch::kInt64), x = torch::ones({9, 2}),
             y = torch::ones({7, 2});
  EXPECT_EQ(layer_mean_rows(graph, x, y, 2, none, item_rows).first.size(0), 0);
  EXPECT_THROW(layer_mean_rows(graph, x, y, 2, torch::tensor({3, 3}), none), c10::Error);
  EXPECT_THROW(layer_mean_rows(graph, x, y, 2, none, torch::tensor({7})), c10::Error);
}

TEST(GraphOps, WeightsAreThoseOfTheFormula) {
  const BipartiteGraph graph(torch::tensor({0, 2, 3, 3}, torch::kInt64),
                             torch::tensor({0, 2, 2}, torch::kInt32), 4);
  EXPECT_EQ(graph.n_users(), 3);
  EXPECT_EQ(graph.n_items(), 4);
  EXPECT_EQ(graph.n_edges(), 3);
  const torch::Tensor dense = graph.dense();
  EXPECT_NEAR(dense[0][0].item<double>(), 1 / std::sqrt(2 + 1e-7) / std::sqrt(1 + 1e-7), 1e-15);
  EXPECT_NEAR(dense[0][2].item<double>(), 1 / std::sqrt(2 + 1e-7) / std::sqrt(2 + 1e-7), 1e-15);
  EXPECT_NEAR(dense[1][2].item<double>(), 1 / std::sqrt(1 + 1e-7) / std::sqrt(2 + 1e-7), 1e-15);
  EXPECT_EQ((dense != 0).sum().item<int64_t>(), 3);
  const auto [users, items] = propagate(graph, torch::ones({3, 2}), torch::ones({4, 2}));
  EXPECT_TRUE(torch::equal(users[2], torch::zeros({2})));
  EXPECT_TRUE(torch::equal(items[1], torch::zeros({2})));
  EXPECT_TRUE(torch::allclose(users, dense.sum(1, true).expand({3, 2}).to(torch::kFloat32)));
}

// bm3 section 12, golden instance: H_u and H_i - E_i.
TEST(GraphOps, GoldenInstance) {
  const BipartiteGraph graph(torch::tensor({0, 2, 4}, torch::kInt64),
                             torch::tensor({0, 1, 1, 2}, torch::kInt32), 3);
  const torch::Tensor e_u = torch::tensor({{1.0, 0.0}, {0.0, 1.0}}, torch::kFloat64);
  const torch::Tensor e_i = torch::tensor({{1.0, 1.0}, {0.0, 1.0}, {1.0, -1.0}}, torch::kFloat64);
  const auto [users, items] = layer_mean(graph, e_u, e_i, 1);
  const torch::Tensor h_u =
      torch::tensor({{.853553, .603553}, {.353553, .396447}}, torch::kFloat64);
  const torch::Tensor h_i =
      torch::tensor({{1.853553, 1.5}, {.25, 1.75}, {1.5, -1.146447}}, torch::kFloat64);
  EXPECT_TRUE(torch::allclose(users, h_u, 0, 1e-6));
  EXPECT_TRUE(torch::allclose(items + e_i, h_i, 0, 1e-6));
}

TEST(GraphOps, ThreadsDoNotMatter) {
  const BipartiteGraph graph = random_graph(300, 200, 0.2);
  const torch::Tensor users = values(300, 70, "u", torch::kFloat32).detach();
  const torch::Tensor items = values(200, 70, "i", torch::kFloat32).detach();
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = layer_mean(graph, users, items, 3);
  at::set_num_threads(2);
  const auto two = layer_mean(graph, users, items, 3);
  at::set_num_threads(before);
  EXPECT_TRUE(torch::equal(one.first, two.first));
  EXPECT_TRUE(torch::equal(one.second, two.second));
}

TEST(GraphOps, BadEdgesAndShapesAreRefused) {
  const auto build = [](std::vector<int64_t> offsets, std::vector<int32_t> items) {
    return BipartiteGraph(torch::tensor(offsets, torch::kInt64),
                          torch::tensor(items, torch::kInt32), 3);
  };
  EXPECT_THROW(build({0, 2}, {0, 3}), c10::Error);
  EXPECT_THROW(build({0, 2}, {1, 1}), c10::Error);
  EXPECT_THROW(build({0, 2}, {1, 0}), c10::Error);
  EXPECT_THROW(build({0, 3, 2}, {0, 1}), c10::Error);
  EXPECT_THROW(build({0, 1}, {0, 1}), c10::Error);
  const BipartiteGraph graph = build({0, 1}, {0});
  EXPECT_THROW(propagate(graph, torch::ones({2, 2}), torch::ones({3, 2})), c10::Error);
  EXPECT_THROW(propagate(graph, torch::ones({1, 2}), torch::ones({3, 2}, torch::kFloat64)),
               c10::Error);
  EXPECT_THROW(layer_mean(graph, torch::ones({1, 2}), torch::ones({3, 2}), -1), c10::Error);
}

}  // namespace
}  // namespace tessera
