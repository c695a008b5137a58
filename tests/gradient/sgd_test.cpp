// LearnBPR against automatic differentiation of the loss that the other optimisers descend.
#include "tessera/ops/sgd.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "tessera/ops/losses.h"

namespace tessera {
namespace {

TEST(BprSgd, OneTripleIsAStepAgainstTheGradient) {
  torch::manual_seed(4);
  for (const int64_t d : {1, 5, 16, 37}) {
    auto users = torch::randn({3, d}, torch::kFloat64),
         items = torch::randn({4, d}, torch::kFloat64);
    const auto u = torch::tensor({2}), p = torch::tensor({1}), n = torch::tensor({{3}});
    const auto from_users = users.clone().requires_grad_(),
               from_items = items.clone().requires_grad_();
    const auto rows = [](const torch::Tensor& table, int64_t row) {
      return table.narrow(0, row, 1);
    };
    const auto a = rows(from_users, 2), b = rows(from_items, 1), c = rows(from_items, 3);
    const auto bpr = bpr_loss_composed(a, b, c), squares = l2_rows({a, b, c}, 1);
    const auto gradients = torch::autograd::grad({bpr + 0.3 * squares}, {from_users, from_items});
    const BprSgdLoss loss = bpr_sgd(users, items, u, p, n, {0.7, 0.3});
    EXPECT_NEAR(loss.bpr.item<double>(), bpr.item<double>(), 1e-12);
    EXPECT_NEAR(loss.squares.item<double>(), squares.item<double>(), 1e-12);
    EXPECT_TRUE(torch::allclose(users, from_users - 0.7 * gradients[0], 1e-12, 1e-12)) << d;
    EXPECT_TRUE(torch::allclose(items, from_items - 0.7 * gradients[1], 1e-12, 1e-12)) << d;
  }
}

TEST(BprSgd, TriplesFollowEachOtherAndNegativesShareTheirPair) {
  torch::manual_seed(5);
  auto users = torch::randn({3, 8}), items = torch::randn({6, 8});
  auto one_users = users.clone(), one_items = items.clone();
  const auto u = torch::tensor({0, 2, 0}), p = torch::tensor({1, 1, 4});
  const auto n = torch::tensor({{2, 5}, {0, 3}, {5, 1}});
  const BprSgdLoss whole = bpr_sgd(users, items, u, p, n, {0.1, 0.01});
  double bpr = 0;
  for (int64_t t = 0; t < 6; ++t) {
    bpr += bpr_sgd(one_users, one_items, u.narrow(0, t / 2, 1), p.narrow(0, t / 2, 1),
                   n.narrow(0, t / 2, 1).narrow(1, t % 2, 1).contiguous(), {0.1, 0.01})
               .bpr.item<double>();
  }
  EXPECT_TRUE(torch::equal(users, one_users) && torch::equal(items, one_items));
  EXPECT_NEAR(whole.bpr.item<double>(), bpr / 6, 1e-12);
}

TEST(BprSgd, FarMarginsStayFinite) {
  auto users = torch::full({1, 1}, 1e3F), items = torch::tensor({{1e3F}, {-1e3F}});
  const auto zero = torch::tensor({0});
  EXPECT_EQ(bpr_sgd(users, items, zero, zero, torch::tensor({{1}}), {0.1, 0}).bpr.item<double>(),
            0);
  const auto far = bpr_sgd(users, items, zero, torch::tensor({1}), torch::tensor({{0}}), {0, 0});
  EXPECT_NEAR(far.bpr.item<double>(), 2e6, 1);
}

}  // namespace
}  // namespace tessera
