// Fused losses against their composed twins and central differences, in double.
#include "tessera/ops/losses.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <array>

#include "tessera/ops/gather.h"
#include "tessera/ops/triples.h"

namespace tessera {
namespace {

TEST(Losses, MeansOfWhatLiesBetween) {
  const auto x = torch::tensor({{1.0, -2.0, 0.5}, {4.0, 0.0, 3.0}}, torch::kFloat64);
  const auto y = torch::tensor({{0.0, -2.0, 1.0}, {1.0, 2.0, 3.5}}, torch::kFloat64);
  for (const bool squared : {true, false}) {
    auto a = x.clone().requires_grad_(), b = x.clone().requires_grad_();
    const auto loss = squared ? mean_square(a, y) : mean_distance(a, y);
    const auto plain = squared ? (b - y).square().mean() : (b - y).abs().mean();
    EXPECT_NEAR(loss.item<double>(), plain.item<double>(), 1e-15);
    EXPECT_NEAR(loss.item<double>(), (squared ? 14.5 : 7.0) / 6, 1e-15);
    (3 * loss).backward();
    (3 * plain).backward();
    EXPECT_TRUE(torch::allclose(a.grad(), b.grad(), 0, 1e-15));
  }
}

using Loss = std::function<torch::Tensor(const std::vector<torch::Tensor>&)>;

torch::Tensor leaf(int64_t rows, int64_t cols) {
  return torch::randn({rows, cols}, torch::kFloat64).requires_grad_();
}

void expect_gradients(const Loss& fused, const Loss& composed, std::vector<torch::Tensor> inputs) {
  const auto value = fused(inputs), wanted = composed(inputs);
  EXPECT_NEAR(value.item<double>(), wanted.item<double>(), 1e-12);
  const auto mine = torch::autograd::grad({value * 1.7}, inputs);
  const auto theirs = torch::autograd::grad({wanted * 1.7}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(torch::allclose(mine[i], theirs[i], 1e-9, 1e-12)) << "input " << i;
    // Central differences at a few entries.
    const torch::NoGradGuard no_grad;
    auto flat = inputs[i].view(-1);
    for (int64_t e = 0; e < flat.numel(); e += 7) {
      const double x = flat[e].item<double>(), h = 1e-6;
      flat[e] = x + h;
      const double above = fused(inputs).item<double>();
      flat[e] = x - h;
      const double below = fused(inputs).item<double>();
      flat[e] = x;
      EXPECT_NEAR(mine[i].view(-1)[e].item<double>(), 1.7 * (above - below) / (2 * h), 1e-7);
    }
  }
}

/// One user, its item in row 0 and its negative in row 1.
torch::Tensor one_pair(const torch::Tensor& u, const torch::Tensor& p, const torch::Tensor& n) {
  const auto first = torch::zeros({1}, torch::kInt64);
  return bpr_loss(u, torch::cat({p, n}), {first, first, torch::ones({1, 1}, torch::kInt64)});
}

/// 13 pairs over 6 users and 9 items with repeats, an item that is positive and negative at once,
/// and rows that no pair names.
Triples some_triples(int64_t k) {
  return {torch::randint(5, {13}, torch::kInt64), torch::randint(8, {13}, torch::kInt64),
          torch::randint(8, {13, k}, torch::kInt64)};
}

TEST(Losses, Bpr) {
  torch::manual_seed(1);
  for (const int64_t k : {1, 3}) {
    const Triples at = some_triples(k);
    const auto rows = [&](const torch::Tensor& users, const torch::Tensor& items) {
      return std::array{gather_rows(users, at.users), gather_rows(items, at.positives),
                        gather_rows(items, at.negatives.flatten())};
    };
    expect_gradients([&](const auto& x) { return bpr_loss(x[0], x[1], at); },
                     [&](const auto& x) {
                       const auto [u, p, n] = rows(x[0], x[1]);
                       return bpr_loss_composed(u, p, n);
                     },
                     {leaf(6, 5), leaf(9, 5)});
    // An offset is a column beside ones.
    const auto one = torch::ones({6, 1}, torch::kFloat64);
    expect_gradients([&](const auto& x) { return bpr_loss(x[0], x[1], at, x[2].flatten()); },
                     [&](const auto& x) {
                       const auto [u, p, n] =
                           rows(torch::cat({x[0], one}, 1), torch::cat({x[1], x[2]}, 1));
                       return bpr_loss_composed(u, p, n);
                     },
                     {leaf(6, 5), leaf(9, 5), leaf(9, 1)});
    expect_gradients([&](const auto& x) { return l2_rows(x[0], x[1], at, 13); },
                     [&](const auto& x) {
                       const auto [u, p, n] = rows(x[0], x[1]);
                       return l2_rows({u, p, n}, 13);
                     },
                     {leaf(6, 5), leaf(9, 5)});
  }
  // One pair by hand: s_up = 2, s_un = -1, -log sigmoid(3).
  EXPECT_NEAR(
      one_pair(torch::tensor({{1., 1.}}), torch::tensor({{1., 1.}}), torch::tensor({{0., -1.}}))
          .item<double>(),
      0.04858735, 1e-7);
  EXPECT_TRUE(one_pair(torch::full({1, 1}, 1e4), torch::full({1, 1}, -1e4), torch::zeros({1, 1}))
                  .isfinite()
                  .item<bool>());
  EXPECT_THROW(bpr_loss(torch::zeros({1, 2}), torch::zeros({1, 2}),
                        {torch::tensor({0}), torch::tensor({1}), torch::tensor({{0}})}),
               c10::Error);
}

TEST(Losses, BprIsTheSameForAnyNumberOfThreads) {
  torch::manual_seed(3);
  const auto users = torch::randn({700, 64}).requires_grad_(),
             items = torch::randn({900, 64}).requires_grad_();
  const Triples at = {torch::randint(700, {2048}, torch::kInt64),
                      torch::randint(900, {2048}, torch::kInt64),
                      torch::randint(900, {2048, 2}, torch::kInt64)};
  const auto results = [&](int threads) {
    at::set_num_threads(threads);
    const auto loss = bpr_loss(users, items, at) + l2_rows(users, items, at, 2048);
    auto out = torch::autograd::grad({loss}, {users, items});
    out.push_back(loss.detach());
    return out;
  };
  const int before = at::get_num_threads();
  const auto one = results(1), two = results(2);
  at::set_num_threads(before);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(torch::equal(one[i], two[i])) << i;
}

TEST(Losses, Cosine) {
  torch::manual_seed(2);
  const auto w = torch::rand({11}, torch::kFloat64);
  expect_gradients([&](const auto& x) { return cosine_loss(x[0], x[1], w); },
                   [&](const auto& x) { return cosine_loss_composed(x[0], x[1], w); },
                   {leaf(11, 6), leaf(11, 6)});
  // Scaling a target row changes nothing; a constant target gets no gradient.
  const auto a = leaf(11, 6);
  const auto b = torch::randn({11, 6}, torch::kFloat64);
  EXPECT_NEAR(cosine_loss(a, b, w).item<double>(), cosine_loss(a, b * 3, w).item<double>(), 1e-12);
  cosine_loss(a, b, w).backward();
  EXPECT_FALSE(b.grad().defined());
  // Zero rows: cosine 0 and finite gradients.
  const auto zero = torch::zeros({2, 3}, torch::kFloat64).requires_grad_();
  const auto loss =
      cosine_loss(zero, torch::ones({2, 3}, torch::kFloat64), torch::ones({2}, torch::kFloat64));
  EXPECT_EQ(loss.item<double>(), 2);
  loss.backward();
  EXPECT_TRUE(zero.grad().isfinite().all().item<bool>());
}

TEST(Losses, NormsAndSquares) {
  torch::manual_seed(3);
  expect_gradients([](const auto& x) { return frobenius_norm(x[0]); },
                   [](const auto& x) { return x[0].norm(); }, {leaf(9, 4)});
  const auto zero = torch::zeros({3, 3}).requires_grad_();
  frobenius_norm(zero).backward();
  EXPECT_EQ(zero.grad().abs().sum().item<double>(), 0);
  // |(3, 4)| = 5, |(1, 0)| = 1: squares 26 / (2 * 2), norms 6 / 2.
  const std::vector<torch::Tensor> rows = {torch::tensor({{3., 4.}}), torch::tensor({{1., 0.}})};
  EXPECT_DOUBLE_EQ(l2_rows(rows, 2).item<double>(), 6.5);
  EXPECT_DOUBLE_EQ(norm_rows(rows, 2).item<double>(), 3);
}

// Odd widths and sizes, in float32: value and gradients of both, and no word from the threads.
TEST(Losses, SinglePrecisionAndThreads) {
  const int before = at::get_num_threads();
  torch::manual_seed(4);
  for (const int64_t width : {1, 17, 64, 83}) {
    const int64_t batch = width == 64 ? 700 : 9;
    std::vector<torch::Tensor> inputs;
    for (int i = 0; i < 3; ++i) {
      inputs.push_back((torch::randn({batch, width}) / std::sqrt(width)).requires_grad_());
    }
    const auto w = torch::rand({batch});
    const Triples each = {torch::arange(batch), torch::arange(batch),
                          torch::arange(batch, 2 * batch).view({batch, 1})};
    const auto gradients = [&](bool fused, int threads) {
      at::set_num_threads(threads);
      const auto bpr = fused ? bpr_loss(inputs[0], torch::cat({inputs[1], inputs[2]}), each)
                             : bpr_loss_composed(inputs[0], inputs[1], inputs[2]);
      const auto cosine = (fused ? cosine_loss : cosine_loss_composed)(inputs[0], inputs[1], w);
      auto out = torch::autograd::grad({bpr + cosine}, inputs);
      out.push_back(bpr.detach());
      out.push_back(cosine.detach());
      return out;
    };
    const auto one = gradients(true, 1), two = gradients(true, 2), composed = gradients(false, 1);
    at::set_num_threads(before);
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_TRUE(torch::equal(one[i], two[i])) << "width " << width << " result " << i;
      EXPECT_TRUE(torch::allclose(one[i], composed[i], 1e-4, 1e-5))
          << "width " << width << " result " << i;
    }
  }
}

// r2mr section 10, G10: a margin of .6 gives .437487950486.
TEST(Losses, BprGoldenValue) {
  const auto row = [](double x, double y) { return torch::tensor({{x, y}}, torch::kFloat64); };
  EXPECT_NEAR(one_pair(row(1, 0), row(.5, .2), row(-.1, .4)).item<double>(), .437487950486, 1e-11);
}

// By hand: cos((3, 4), (4, 3)) = 24 / 25.
TEST(Losses, CosineByHand) {
  const auto a = torch::tensor({{3.0, 4.0}, {1.0, 1.0}}, torch::kFloat64);
  const auto b = torch::tensor({{4.0, 3.0}, {-1.0, -1.0}}, torch::kFloat64);
  const auto w = torch::tensor({0.5, 0.25}, torch::kFloat64);
  EXPECT_NEAR(cosine_loss(a, b, w).item<double>(), 0.5 / 25 + 0.25 * 2, 1e-12);
}

TEST(Losses, EmptyBatch) {
  const auto none = torch::zeros({0, 4}).requires_grad_();
  const auto no_rows = torch::zeros({0}, torch::kInt64);
  const auto loss = bpr_loss(none, torch::zeros({0, 4}), {no_rows, no_rows, no_rows.view({0, 1})});
  EXPECT_EQ(loss.item<double>(), 0);
  loss.backward();
  EXPECT_EQ(
      cosine_loss(torch::zeros({0, 4}), torch::zeros({0, 4}), torch::zeros({0})).item<double>(), 0);
}

}  // namespace
}  // namespace tessera
