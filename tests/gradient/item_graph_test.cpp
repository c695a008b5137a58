#include "tessera/ops/item_graph.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "tessera/base/error.h"
#include "tessera/base/random.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/graph.h"
#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

torch::Tensor values(int64_t rows, int64_t cols, const char* stream, torch::Dtype type) {
  return normal(rows, cols, 0, 1, Random(2, stream)).to(type).requires_grad_();
}

torch::Tensor dense(const NeighbourGraph& graph) {
  const int64_t n = graph.offsets.size(0) - 1;
  torch::Tensor matrix = torch::zeros({n, n});
  matrix.index_put_({torch::repeat_interleave(graph.offsets.diff()), graph.items.to(torch::kInt64)},
                    graph.weights);
  return matrix;
}

// Two modalities of n items; every fifth item lacks the second.
NeighbourGraph mixed(int64_t n, int64_t k) {
  torch::Tensor second = normal(n, 3, 0, 1, Random(5));
  for (int64_t i = 0; i < n; i += 5) second[i].zero_();
  return weighted_sum({normalised(knn_graph(normal(n, 4, 0, 1, Random(4)), k, false)),
                       normalised(knn_graph(second, k))},
                      {0.1, 0.9});
}

TEST(ItemGraph, KernelEqualsComposedInValueAndGradient) {
  for (const int64_t n : {1, 7, 130}) {
    const ItemGraph graph(mixed(n, 5));
    EXPECT_LE(graph.n_edges(), 10 * n);
    for (const int64_t width : {0, 1, 5, 64, 83}) {
      for (const torch::Dtype type : {torch::kFloat64, torch::kFloat32}) {
        const double tolerance = type == torch::kFloat64 ? 1e-12 : 1e-5;
        std::vector<torch::Tensor> results;
        for (const bool kernel : {true, false}) {
          const torch::Tensor x = values(n, width, "x", type);
          const torch::Tensor y = kernel ? propagate(graph, x) : propagate_composed(graph, x);
          (y * values(n, width, "w", type).detach() + y * y).sum().backward();
          results.push_back(y);
          results.push_back(x.grad());
        }
        EXPECT_TRUE(torch::allclose(results[0], results[2], tolerance, tolerance));
        EXPECT_TRUE(torch::allclose(results[1], results[3], tolerance, tolerance));
      }
    }
  }
}

TEST(ItemGraph, GradientsAgreeWithCentralDifferences) {
  const ItemGraph graph(mixed(6, 2));
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        const auto y = propagate(graph, x[0]);
        return (y.tanh() * y).sum();
      },
      {values(6, 3, "x", torch::kFloat64)});
}

TEST(ItemGraph, WeightedSumIsThatOfTheMatrices) {
  const auto a = normalised(knn_graph(normal(40, 4, 0, 1, Random(4)), 5, false));
  const auto b = normalised(knn_graph(normal(40, 3, 0, 1, Random(5)), 5));
  const auto sum = weighted_sum({a, b}, {0.1, 0.9});
  EXPECT_TRUE(torch::allclose(dense(sum), 0.1 * dense(a) + 0.9 * dense(b), 1e-6, 1e-7));
  for (int64_t i = 0; i < 40; ++i) {
    const auto row =
        sum.items.slice(0, sum.offsets[i].item<int64_t>(), sum.offsets[i + 1].item<int64_t>());
    EXPECT_TRUE(row.diff().gt(0).all().item<bool>());
  }
}

TEST(ItemGraph, ModalityWeights) {
  const auto of = [](const std::vector<std::string>& names, const std::vector<double>& weights) {
    return modality_weights(names, weights, {{"image", .1}, {"text", .9}}, "FREEDOM");
  };
  EXPECT_EQ(of({"text", "image"}, {}), (std::vector<double>{.9, .1}));
  EXPECT_EQ(of({"image", "text"}, {}), (std::vector<double>{.1, .9}));
  EXPECT_EQ(of({"image", "image"}, {}), (std::vector<double>{.5, .5}));  // one made of the other
  EXPECT_EQ(of({"image", "text", "text"}, {}), (std::vector<double>(3, 1.0 / 3)));
  EXPECT_EQ(of({"image"}, {}), (std::vector<double>{1}));
  EXPECT_EQ(of({"a", "b"}, {}), (std::vector<double>{.5, .5}));
  EXPECT_EQ(of({"a"}, {2}), (std::vector<double>{2}));
  EXPECT_THROW(of({"a", "b"}, {1}), InputError);
}

TEST(GraphSides, AreTheBlocksOfThePropagation) {
  const BipartiteGraph graph(torch::tensor({0, 2, 2, 3}, torch::kInt64),
                             torch::tensor({0, 2, 1}, torch::kInt32), 4);
  for (const torch::Dtype type : {torch::kFloat64, torch::kFloat32}) {
    const auto users = values(3, 17, "u", type), items = values(4, 17, "i", type);
    const auto [u, i] = propagate_composed(graph, users, items);
    const auto from_items = to_users(graph, items), from_users = to_items(graph, users);
    EXPECT_TRUE(torch::allclose(from_items, u, 1e-5, 1e-6));
    EXPECT_TRUE(torch::allclose(from_users, i, 1e-5, 1e-6));
  }
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        return (to_users(graph, x[1]).tanh() * 2).sum() + to_items(graph, x[0]).square().sum();
      },
      {values(3, 2, "u", torch::kFloat64), values(4, 2, "i", torch::kFloat64)});
}

}  // namespace
}  // namespace tessera
