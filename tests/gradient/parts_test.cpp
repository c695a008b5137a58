// Kernels of PAMD's losses and attention: central differences, and against their composed twins.
#include "tessera/ops/parts.h"

#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

torch::Tensor leaf(const std::vector<int64_t>& shape) {
  return torch::randn(shape, torch::kFloat64).requires_grad_();
}

std::vector<OrderOptions> order_options() {
  std::vector<OrderOptions> out;
  for (const auto contrast : {OrderOptions::Contrast::softmax_order,
                              OrderOptions::Contrast::mse_rank, OrderOptions::Contrast::none}) {
    for (const bool absolute : {false, true}) {
      for (const bool batch_sum : {false, true}) {
        OrderOptions options;
        options.contrast = contrast;
        options.tau = 0.7;
        options.absolute = absolute;
        options.batch_sum = batch_sum;
        out.push_back(options);
      }
    }
  }
  return out;
}

TEST(Parts, OrderLoss) {
  torch::manual_seed(1);
  for (const auto& options : order_options()) {
    for (const int64_t n : {1, 5}) {
      const auto x = torch::randn({n, 7}, torch::kFloat64);
      const auto y = leaf({3, n, 7});
      expect_gradients([&](const auto& in) { return order_loss(x, in[0], options).value; }, {y});
      EXPECT_NEAR(order_loss(x, y, options).value.item<double>(),
                  order_loss_composed(x, y, options).item<double>(), 1e-12);
    }
  }
  // Zero rows and an empty batch: finite, and 0.
  const auto zero = torch::zeros({3, 2, 4}).requires_grad_();
  order_loss(torch::zeros({2, 4}), zero, {}).value.backward();
  EXPECT_TRUE(zero.grad().isfinite().all().item<bool>());
  EXPECT_EQ(order_loss(torch::zeros({0, 4}), torch::zeros({3, 0, 4}), {}).value.item<double>(), 0);
}

TEST(Parts, OrderLossSinglePrecisionAndThreads) {
  const int before = at::get_num_threads();
  torch::manual_seed(2);
  for (const int64_t width : {1, 17, 128}) {
    const auto x = torch::randn({200, width});
    const auto y = torch::randn({3, 200, width}).requires_grad_();
    const auto run = [&](int threads) {
      at::set_num_threads(threads);
      const auto value = order_loss(x, y, {}).value;
      return std::pair(value.detach(), torch::autograd::grad({value}, {y})[0]);
    };
    const auto one = run(1), two = run(2);
    at::set_num_threads(before);
    EXPECT_TRUE(torch::equal(one.first, two.first) && torch::equal(one.second, two.second));
    const auto composed = order_loss_composed(x, y, {});
    EXPECT_NEAR(one.first.item<double>(), composed.item<double>(), 1e-5);
    EXPECT_TRUE(torch::allclose(one.second, torch::autograd::grad({composed}, {y})[0], 1e-4, 1e-6));
  }
}

TEST(Parts, Overlap) {
  torch::manual_seed(3);
  expect_gradients([](const auto& x) { return overlap(x[0], x[1]); }, {leaf({9, 3}), leaf({9, 3})},
                   1e-6);
  // A constant column counts 0 and gets no gradient.
  auto c = torch::randn({9, 3}, torch::kFloat64);
  c.select(1, 1).fill_(2.5);
  c.requires_grad_();
  overlap(c, torch::randn({9, 3}, torch::kFloat64)).backward();
  EXPECT_TRUE(c.grad().isfinite().all().item<bool>());
  EXPECT_EQ(c.grad().select(1, 1).abs().max().item<double>(), 0);
}

struct Case {
  torch::Tensor users, ids, parts, open, user_of, item_of;
  explicit Case(int64_t d, torch::ScalarType type, int64_t n_pairs) {
    const auto as = torch::TensorOptions(type);
    users = torch::randn({4, d}, as).requires_grad_();
    ids = torch::randn({5, d}, as).requires_grad_();
    parts = torch::randn({5, 6, d}, as).requires_grad_();
    open = torch::rand({5, 6}) > 0.4;
    open[2].fill_(false);  // an item without any part: its ID alone
    user_of = torch::randint(0, 4, {n_pairs}, torch::kInt64);
    item_of = torch::randint(0, 5, {n_pairs}, torch::kInt64);
  }
};

TEST(Parts, Attention) {
  torch::manual_seed(4);
  for (const bool masked : {false, true}) {
    const Case c(3, torch::kFloat64, 11);
    const auto open = masked ? c.open : torch::Tensor();
    const auto weights = torch::randn({11}, torch::kFloat64);
    const auto loss = [&](auto attention, const std::vector<torch::Tensor>& in) {
      return (weights * attention(in[0], in[1], in[2], open, c.user_of, c.item_of)).sum();
    };
    expect_gradients([&](const auto& in) { return loss(part_attention, in); },
                     {c.users, c.ids, c.parts});
    EXPECT_NEAR(loss(part_attention, {c.users, c.ids, c.parts}).template item<double>(),
                loss(part_attention_composed, {c.users, c.ids, c.parts}).template item<double>(),
                1e-12);
  }
}

TEST(Parts, AttentionSinglePrecisionAndThreads) {
  const int before = at::get_num_threads();
  torch::manual_seed(5);
  const Case c(17, torch::kFloat32, 400);
  const auto run = [&](auto attention, int threads) {
    at::set_num_threads(threads);
    const auto y = attention(c.users, c.ids, c.parts, c.open, c.user_of, c.item_of);
    auto out = torch::autograd::grad({y.square().sum()}, {c.users, c.ids, c.parts});
    out.push_back(y.detach());
    return out;
  };
  const auto one = run(part_attention, 1), two = run(part_attention, 2);
  const auto composed = run(part_attention_composed, 1);
  at::set_num_threads(before);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(torch::equal(one[i], two[i])) << i;
    EXPECT_TRUE(torch::allclose(one[i], composed[i], 1e-4, 1e-4)) << i;
  }
}

// The blocked ranking equals the pairs' formula, lies between the stated bounds, and is the same
// for any number of threads and whoever else is ranked.
TEST(Parts, ScoresOfAllItems) {
  const int before = at::get_num_threads();
  torch::manual_seed(6);
  for (const auto& [n_users, n_items, d] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {13, 35, 7}, {25, 64, 64}}) {
    const auto users = torch::randn({n_users, d}), ids = torch::randn({n_items, d});
    const auto parts = torch::randn({n_items, 4, d});
    const auto gates = torch::rand({n_items, 4}) > 0.5;
    const auto u = torch::arange(n_users, torch::kInt64).repeat_interleave(n_items);
    const auto i = torch::arange(n_items, torch::kInt64).repeat({n_users});
    for (const auto& open : {torch::Tensor(), gates}) {
      const auto scores = part_scores(users, ids, parts, open);
      const auto pairs = part_attention_composed(users, ids, parts, open, u, i);
      EXPECT_TRUE(torch::allclose(scores.flatten(), pairs, 1e-4, 1e-4));
      at::set_num_threads(1);
      EXPECT_TRUE(torch::equal(scores, part_scores(users, ids, parts, open)));
      at::set_num_threads(before);
      EXPECT_TRUE(torch::equal(scores.slice(0, n_users - 1),
                               part_scores(users.slice(0, n_users - 1), ids, parts, open)));
    }
    const auto a = torch::einsum("ud,ikd->uik", {users, parts});
    const auto base = users.matmul(ids.t());
    const auto scores = part_scores(users, ids, parts, {});
    EXPECT_TRUE((scores >= base + a.mean(2) - 1e-3).all().item<bool>());
    EXPECT_TRUE((scores <= base + a.amax(2) + 1e-3).all().item<bool>());
  }
}

// Large inner products neither overflow nor turn into NaN, and NaN stays visible.
TEST(Parts, ScoresAtTheEdge) {
  auto parts = torch::full({2, 4, 1}, 1.0F);
  parts[0][0].fill_(1e4);
  parts[0][1].fill_(-1e4);
  const auto scores =
      part_scores(torch::full({1, 1}, 1e3F), torch::zeros({2, 1}), parts, torch::Tensor());
  EXPECT_NEAR(scores[0][0].item<double>(), 1e7, 1);
  EXPECT_NEAR(scores[0][1].item<double>(), 1e3, 1e-2);
  parts[1][2].fill_(std::nan(""));
  EXPECT_TRUE(part_scores(torch::ones({1, 1}), torch::zeros({2, 1}), parts, torch::Tensor())[0][1]
                  .isnan()
                  .item<bool>());
}

}  // namespace
}  // namespace tessera
