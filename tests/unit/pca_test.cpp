#include "tessera/ops/pca.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/ops/fill.h"

namespace tessera {
namespace {

// By hand: (3, 4) t for t = -2, 0, 2 about (1, 1): one axis (.6, .8), deviations -10, 0, 10.
TEST(Pca, ByHand) {
  const torch::Tensor rows = torch::tensor({{-5.0f, -7.0f}, {1.0f, 1.0f}, {7.0f, 9.0f}});
  const Pca pca = fit_pca(rows, 1, Random(1));
  EXPECT_TRUE(torch::allclose(pca.mean, torch::ones({2}, torch::kFloat64)));
  EXPECT_TRUE(torch::allclose(pca.axes, torch::tensor({{0.6, 0.8}}, torch::kFloat64)));
  EXPECT_NEAR(pca.scale, std::sqrt(200.0 / 3), 1e-9);
  EXPECT_NEAR(pca.explained[0].item<double>(), 1, 1e-12);
  const torch::Tensor y = pca.transform(rows);
  EXPECT_NEAR(y[2][0].item<double>(), 10 / std::sqrt(200.0 / 3), 1e-9);
  EXPECT_TRUE(torch::allclose(pca.inverse(y), rows.to(torch::kFloat64)));
}

TEST(Pca, AxesAreThoseOfTheSingularVectors) {
  const torch::Tensor rows =
      normal(60, 9, 2, 1, Random(4)).to(torch::kFloat64) * torch::arange(1, 10).to(torch::kFloat64);
  const Pca pca = fit_pca(rows, 5, Random(1));
  const torch::Tensor centred = rows - rows.mean(0);
  const auto svd = torch::linalg_svd(centred, false);
  const torch::Tensor vh = std::get<2>(svd).slice(0, 0, 5);
  EXPECT_TRUE(torch::allclose((pca.axes * vh).sum(1).abs(), torch::ones({5}, torch::kFloat64)));
  const torch::Tensor squares = std::get<1>(svd).square();
  EXPECT_TRUE(torch::allclose(pca.explained, squares.slice(0, 0, 5) / squares.sum()));
  // One scalar: all kept coordinates together have deviation 1.
  EXPECT_NEAR(pca.transform(rows).square().mean().item<double>(), 1, 1e-9);
  for (int64_t a = 0; a < 5; ++a) {
    EXPECT_EQ(pca.axes[a].abs().max().item<double>(), pca.axes[a].max().item<double>());
  }
}

TEST(Pca, OnlyPresentRowsCount) {
  torch::Tensor rows = normal(40, 6, 0, 1, Random(4));
  const torch::Tensor present = torch::arange(40) % 4 != 0;
  const Pca expected = fit_pca(rows.index({present}), 3, Random(1));
  rows.index_put_({~present}, 1000.0);
  const Pca pca = fit_pca(rows, 3, Random(1), present);
  EXPECT_TRUE(torch::equal(pca.axes, expected.axes));
  EXPECT_TRUE(torch::equal(pca.mean, expected.mean));
  EXPECT_EQ(pca.scale, expected.scale);
}

TEST(Pca, FewRowsGiveFewAxes) {
  EXPECT_EQ(fit_pca(normal(4, 9, 0, 1, Random(1)), 128, Random(1)).axes.size(0), 3);
  EXPECT_EQ(fit_pca(normal(40, 9, 0, 1, Random(1)), 128, Random(1)).axes.size(0), 9);
  for (const int64_t n : {0, 1}) {
    const Pca pca = fit_pca(torch::ones({n, 9}), 128, Random(1));
    EXPECT_EQ(pca.axes.size(0), 0);
    EXPECT_EQ(pca.transform(torch::ones({2, 9})).size(1), 0);
    EXPECT_EQ(pca.scale, 1);
  }
  for (const double value : {1.0, 0.1}) {
    const Pca constant = fit_pca(torch::full({7, 3}, value, torch::kFloat64), 2, Random(1));
    EXPECT_EQ(constant.scale, 1);
  }
}

// Wider than 2048: planted axes of falling strength, found by the randomised solver.
TEST(Pca, WideTablesBySubspaceIteration) {
  const torch::Tensor factors =
      normal(60, 6, 0, 1, Random(1, "f")) * torch::tensor({9.0f, 7.0f, 5.0f, 4.0f, 3.0f, 2.0f});
  const torch::Tensor rows = factors.matmul(normal(6, 2100, 0, 1, Random(1, "m"))) +
                             normal(60, 2100, 0, 0.5, Random(1, "e"));
  const Pca pca = fit_pca(rows, 6, Random(1));
  const torch::Tensor exact = rows.to(torch::kFloat64) - rows.to(torch::kFloat64).mean(0);
  const auto svd = torch::linalg_svd(exact, false);
  const torch::Tensor match = (pca.axes * std::get<2>(svd).slice(0, 0, 6)).sum(1).abs();
  EXPECT_TRUE(torch::allclose(match, torch::ones({6}, torch::kFloat64), 0, 1e-8));
  EXPECT_TRUE(
      torch::allclose(pca.axes.matmul(pca.axes.t()), torch::eye(6, torch::kFloat64), 0, 1e-10));
  EXPECT_TRUE(torch::equal(pca.axes, fit_pca(rows, 6, Random(1)).axes));
  const Pca other = fit_pca(rows, 6, Random(2));
  EXPECT_TRUE(torch::allclose(pca.axes, other.axes, 0, 1e-6));
}

TEST(Pca, BadRowsAreRefused) {
  torch::Tensor rows = torch::ones({4, 3});
  rows[1][1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(fit_pca(rows, 2, Random(1)), InputError);
  const Pca pca = fit_pca(torch::ones({4, 3}), 2, Random(1));
  EXPECT_THROW(pca.transform(torch::ones({4, 2})), c10::Error);
  EXPECT_THROW(pca.inverse(torch::ones({4, 3})), c10::Error);
}

}  // namespace
}  // namespace tessera
