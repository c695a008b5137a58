#include "tessera/ops/knn.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <limits>

#include "tessera/base/random.h"
#include "tessera/ops/fill.h"

namespace tessera {
namespace {

std::vector<int32_t> row_of(const NeighbourGraph& graph, int64_t row) {
  std::vector<int32_t> items;
  for (int64_t e = graph.offsets[row].item<int64_t>(); e < graph.offsets[row + 1].item<int64_t>();
       ++e) {
    items.push_back(graph.items[e].item<int32_t>());
  }
  return items;
}

torch::Tensor dense(const NeighbourGraph& graph) {
  const int64_t n = graph.offsets.size(0) - 1;
  torch::Tensor matrix = torch::zeros({n, n});
  matrix.index_put_({torch::repeat_interleave(graph.offsets.diff()), graph.items.to(torch::kInt64)},
                    graph.weights);
  return matrix;
}

// By hand: rows 0 and 1 point the same way, row 2 at 45 degrees, row 3 is zero, row 4 opposite.
const torch::Tensor& small() {
  static const torch::Tensor rows =
      torch::tensor({{1.0f, 0.0f}, {3.0f, 0.0f}, {1.0f, 1.0f}, {0.0f, 0.0f}, {-2.0f, 0.0f}});
  return rows;
}

TEST(Knn, ByHand) {
  const NeighbourGraph graph = knn_graph(small(), 2);
  EXPECT_EQ(row_of(graph, 0), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(row_of(graph, 1), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(row_of(graph, 2), (std::vector<int32_t>{0, 2}));  // 0 and 1 tie: the lower index
  EXPECT_TRUE(row_of(graph, 3).empty());
  EXPECT_EQ(row_of(graph, 4), (std::vector<int32_t>{2, 4}));
  const torch::Tensor weights = dense(graph);
  EXPECT_NEAR(weights[2][0].item<double>(), std::sqrt(0.5), 1e-6);
  EXPECT_NEAR(weights[4][2].item<double>(), -std::sqrt(0.5), 1e-6);
  EXPECT_NEAR(weights[0][1].item<double>(), 1, 1e-6);
  EXPECT_EQ(dense(knn_graph(small(), 2, false)).sum().item<double>(), 8);
}

TEST(Knn, WithoutSelf) {
  const NeighbourGraph graph = knn_graph(small(), 1, true, false);
  EXPECT_EQ(row_of(graph, 0), (std::vector<int32_t>{1}));
  EXPECT_EQ(row_of(graph, 1), (std::vector<int32_t>{0}));
  EXPECT_EQ(row_of(graph, 2), (std::vector<int32_t>{0}));
  EXPECT_EQ(row_of(graph, 4), (std::vector<int32_t>{2}));
}

TEST(Knn, KMayExceedTheRows) {
  const NeighbourGraph graph = knn_graph(small(), 1000000000);
  EXPECT_EQ(graph.items.size(0), 16);
  EXPECT_EQ(knn_graph(torch::zeros({0, 4}), 3).items.size(0), 0);
  EXPECT_EQ(knn_graph(torch::zeros({4, 0}), 3).items.size(0), 0);
}

TEST(Knn, EqualsTheDenseMatrix) {
  const torch::Tensor rows = normal(700, 33, 0, 1, Random(1));
  const torch::Tensor unit = rows / rows.norm(2, 1, true);
  const auto [values, items] = unit.matmul(unit.t()).topk(11, 1);
  // Rows whose 10th and 11th neighbour are equal but for rounding may keep either.
  const torch::Tensor clear = values.select(1, 9) - values.select(1, 10) > 1e-6;
  EXPECT_GT(clear.sum().item<int64_t>(), 690);
  const torch::Tensor expected =
      torch::zeros({700, 700}).scatter_(1, items.narrow(1, 0, 10), values.narrow(1, 0, 10));
  const auto same = [&](const torch::Tensor& found) {
    return torch::allclose(found.index({clear}), expected.index({clear}), 1e-5, 1e-6);
  };
  EXPECT_TRUE(same(dense(knn_graph(rows, 10))));
  // Scale does not matter, not even where squares leave float32.
  EXPECT_TRUE(same(dense(knn_graph(rows * 1e-30, 10))));
}

TEST(Knn, NormalisedByRowSums) {
  const NeighbourGraph graph = knn_graph(small().slice(0, 0, 4), 2);
  const torch::Tensor s = dense(graph);
  const torch::Tensor sums = s.sum(1);
  const torch::Tensor root = torch::where(sums > 0, sums.rsqrt(), torch::zeros_like(sums));
  EXPECT_TRUE(torch::allclose(dense(normalised(graph)), root.unsqueeze(1) * s * root));
  // Row 0 sums to 2: 1 / sqrt(2 * 2).
  EXPECT_NEAR(dense(normalised(graph))[0][1].item<double>(), 0.5, 1e-6);
}

TEST(Knn, NearestRowsOfQueries) {
  const torch::Tensor queries = torch::tensor({{0.0f, 2.0f}, {0.0f, 0.0f}, {1.0f, 0.0f}});
  const TopK top = nearest_rows(queries, small(), 2, torch::tensor({-1, 0, 0}, torch::kInt64));
  EXPECT_TRUE(torch::equal(top.items, torch::tensor({{2, 0}, {-1, -1}, {1, 2}}, torch::kInt32)));
  EXPECT_NEAR(top.scores[0][0].item<double>(), std::sqrt(0.5), 1e-6);
  EXPECT_EQ(top.scores[1][0].item<float>(), -std::numeric_limits<float>::infinity());
  EXPECT_THROW(nearest_rows(queries, small(), 2, torch::tensor({9, 0, 0}, torch::kInt64)),
               c10::Error);
}

}  // namespace
}  // namespace tessera
