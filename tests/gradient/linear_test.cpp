// Products in bfloat16 against the same products of rounded values in double, and against float32.
#include "tessera/ops/linear.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

namespace tessera {
namespace {

torch::Tensor rounded(const torch::Tensor& x) {
  return x.detach().to(torch::kBFloat16).to(torch::kFloat64);
}

/// Largest difference over the largest entry of `wanted`.
double off(const torch::Tensor& got, const torch::Tensor& wanted) {
  return ((got.to(torch::kFloat64) - wanted).abs().max() / wanted.abs().max()).item<double>();
}

TEST(Linear, Bfloat16RoundsOperandsAndNothingElse) {
  torch::manual_seed(5);
  const auto x = torch::randn({37, 300}).requires_grad_(),
             w = torch::randn({64, 300}).requires_grad_(), b = torch::randn({64}).requires_grad_(),
             g = torch::randn({37, 64});
  const auto y = linear(x, w, b, true);
  const auto back = torch::autograd::grad({y}, {x, w, b}, {g});
  const double half_step = 1.0 / 256 + 1e-6;  // of a result rounded to 8 bits
  EXPECT_LT(off(y, at::mm(rounded(x), rounded(w).t()) + b.detach().to(torch::kFloat64)), half_step);
  EXPECT_LT(off(back[0], at::mm(rounded(g), rounded(w))), half_step);
  EXPECT_LT(off(back[1], at::mm(rounded(g).t(), rounded(x))), half_step);
  EXPECT_LT(off(back[2], g.sum(0).to(torch::kFloat64)), 1e-6);
  // Not the float32 product by another name, and near it.
  const double apart = off(y, linear(x, w, b, false).detach().to(torch::kFloat64));
  EXPECT_GT(apart, 1e-5);
  EXPECT_LT(apart, 2e-2);
}

TEST(Linear, Bfloat16IsExactWhereNothingIsRounded) {
  // Small whole numbers: products and sums below 256 have all their bits.
  const auto x = torch::tensor({{1.f, -2.f, 3.f}, {0.f, 4.f, -1.f}});
  const auto w = torch::tensor({{2.f, 1.f, 0.f}, {-1.f, 5.f, 2.f}}).requires_grad_();
  const auto b = torch::tensor({0.1f, -7.f});
  const auto y = linear(x, w, b, true);
  EXPECT_TRUE(torch::equal(y.detach(), torch::tensor({{0.1f, -12.f}, {4.1f, 11.f}})));
  EXPECT_TRUE(torch::equal(torch::autograd::grad({y.sum()}, {w})[0],
                           torch::tensor({{1.f, 2.f, 2.f}, {1.f, 2.f, 2.f}})));
}

}  // namespace
}  // namespace tessera
