// The critic's formulas, factored rows and the contrast against automatic differentiation (double
// backward for the gradient penalty) and central differences, in double: mmssl sections 8 and 11.
#include "tessera/ops/critic.h"

#include <gtest/gtest.h>

#include "tessera/ops/contrast.h"
#include "tessera/ops/factored_rows.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/modal_attention.h"
#include "tessera/ops/unit_rows.h"
#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

torch::Tensor random(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kFloat64); }

Critic random_critic(const CriticForm& form, const std::vector<int64_t>& widths) {
  Critic critic;
  critic.form = form;
  for (size_t k = 0; k + 1 < widths.size(); ++k) {
    Critic::Layer layer;
    layer.weight = random({widths[k], widths[k + 1]}) * 0.5;
    if (k > 0) layer.weight = layer.weight.t().contiguous();
    layer.bias = random({widths[k + 1]});
    if (form.batch_norm) {
      layer.gamma = random({widths[k + 1]});
      layer.beta = random({widths[k + 1]});
    }
    critic.layers.push_back(layer);
  }
  critic.weight = random({widths.back()});
  critic.bias = random({1});
  return critic;
}

CriticMasks random_masks(int64_t n, const std::vector<int64_t>& widths) {
  CriticMasks out;
  for (size_t k = 1; k < widths.size(); ++k) {
    out.push_back((torch::rand({n, widths[k]}, torch::kFloat64) > 0.3) / 0.7);
  }
  return out;
}

std::vector<torch::Tensor> leaves_of(Critic& critic) {
  std::vector<torch::Tensor> leaves;
  for (auto& [name, tensor] : critic.tensors()) {
    *tensor = tensor->detach().clone().requires_grad_();
    leaves.push_back(*tensor);
  }
  return leaves;
}

void expect_equal(Critic& found, const std::vector<torch::Tensor>& wanted) {
  const auto tensors = found.tensors();
  ASSERT_EQ(tensors.size(), wanted.size());
  for (size_t k = 0; k < wanted.size(); ++k) {
    const auto to = wanted[k].defined() ? wanted[k] : torch::zeros_like(*tensors[k].second);
    EXPECT_LE((*tensors[k].second - to).norm().item<double>(),
              1e-9 * to.norm().item<double>() + 1e-12)
        << tensors[k].first;
  }
}

struct Case {
  bool batch_norm;
  double slope;
  CriticForm::Output output;
  int64_t n;                    // rows
  std::vector<int64_t> widths;  // inputs first
  bool dropout;
};

class CriticFormulas : public testing::TestWithParam<Case> {};

TEST_P(CriticFormulas, EqualAutograd) {
  const Case& c = GetParam();
  torch::manual_seed(5);
  Critic critic = random_critic({c.batch_norm, c.slope, c.output}, c.widths);
  const auto masks = c.dropout ? random_masks(c.n, c.widths) : CriticMasks{};
  const auto rows = random({c.n, c.widths[0]}), upstream = random({c.n});
  const auto leaves = leaves_of(critic);

  const auto x = rows.clone().requires_grad_();
  const auto score = critic_composed(critic, x, masks);
  auto wanted = leaves;
  wanted.push_back(x);
  wanted = torch::autograd::grad({(score * upstream).sum()}, wanted, {}, std::nullopt, false, true);
  const auto pass = critic_pass(critic, rows.mm(critic.layers[0].weight.detach()), masks);
  EXPECT_TRUE(torch::allclose(pass.score, score, 1e-12, 1e-12));
  Critic gradients = critic.zeros_like();
  const auto adjoint = critic_backward(critic, pass, upstream, &gradients);
  gradients.layers[0].weight += rows.t().mm(adjoint);
  const auto to_rows = adjoint.mm(critic.layers[0].weight.detach().t());
  EXPECT_TRUE(torch::allclose(to_rows, wanted.back(), 1e-9, 1e-11));
  wanted.pop_back();
  expect_equal(gradients, wanted);

  const auto [penalty, slopes] = gradient_penalty_composed(critic, rows, masks, 0.3);
  const auto twice = torch::autograd::grad({penalty}, leaves, {}, std::nullopt, false, true);
  Critic second = critic.zeros_like();
  const auto found = gradient_penalty(critic, pass, 0.3, second);
  second.layers[0].weight += rows.t().mm(found.adjoint);
  EXPECT_NEAR(found.value.item<double>(), penalty.item<double>(), 1e-10 * penalty.item<double>());
  EXPECT_TRUE(torch::allclose(found.slopes, slopes, 1e-9, 1e-12));
  expect_equal(second, twice);
}

using Output = CriticForm::Output;
INSTANTIATE_TEST_SUITE_P(
    Forms, CriticFormulas,
    testing::Values(Case{true, 0.2, Output::sigmoid, 12, {40, 9, 5}, true},
                    Case{false, 0.2, Output::sigmoid, 12, {40, 9, 5}, true},
                    Case{true, 1, Output::sigmoid100, 12, {40, 9, 5}, true},
                    Case{true, 0.2, Output::linear, 7, {17, 4, 2}, false},
                    Case{false, 0.2, Output::linear, 7, {17, 4, 2}, true},
                    Case{false, 1, Output::sigmoid100, 3, {40, 20, 5}, true},  // not by W1 W1^T
                    Case{true, 0.2, Output::sigmoid, 3, {40, 30, 4}, false},
                    Case{true, 0.2, Output::sigmoid, 9, {600, 300, 7}, true},  // several blocks
                    Case{false, 0.2, Output::sigmoid, 5, {8, 6}, false}));     // one layer

TEST(Critic, ScoreHasItsGradientByDifferences) {
  torch::manual_seed(6);
  const Critic critic = random_critic({}, {6, 5, 3});
  const auto masks = random_masks(4, {6, 5, 3});
  expect_gradients([&](const auto& x) { return critic_score(critic, x[0], masks).square().sum(); },
                   {random({4, 5})}, 1e-6);
}

// mmssl section 11: central differences of L_D in all of the critic's parameters. The penalty is
// itself made of first derivatives, so its own gradient is of second order.
TEST(Critic, LossHasItsGradientByDifferences) {
  torch::manual_seed(13);
  const std::vector<int64_t> widths = {9, 6, 4};
  const int64_t n = 7;
  for (const bool batch_norm : {true, false}) {
    for (const auto output : {Output::sigmoid, Output::linear, Output::sigmoid100}) {
      Critic critic = random_critic({batch_norm, 0.2, output}, widths);
      const auto fake = unit_rows(random({n, 9})), real = unit_rows(random({n, 9}));
      const auto mixed = torch::lerp(fake, real, torch::rand({n, 1}, torch::kFloat64));
      const std::vector<CriticMasks> masks = {random_masks(n, widths), random_masks(n, widths),
                                              random_masks(n, widths)};
      const auto loss = [&](Critic& gradients) {
        const auto of = [&](const torch::Tensor& rows, double sign, const CriticMasks& drop) {
          const auto pass = critic_pass(critic, rows.mm(critic.layers[0].weight), drop);
          const auto adjoint = critic_backward(
              critic, pass, torch::full_like(pass.score, sign / static_cast<double>(n)),
              &gradients);
          gradients.layers[0].weight += rows.t().mm(adjoint);
          return sign * pass.score.mean().item<double>();
        };
        const double scores = of(fake, 1, masks[0]) + of(real, -1, masks[1]);
        const auto pass = critic_pass(critic, mixed.mm(critic.layers[0].weight), masks[2]);
        const auto penalty = gradient_penalty(critic, pass, 0.3, gradients);
        gradients.layers[0].weight += mixed.t().mm(penalty.adjoint);
        return scores + penalty.value.item<double>();
      };
      Critic gradients = critic.zeros_like(), unused = critic.zeros_like();
      loss(gradients);
      const auto tensors = critic.tensors(), found = gradients.tensors();
      const double step = 1e-6;
      for (size_t k = 0; k < tensors.size(); ++k) {
        auto flat = tensors[k].second->view({-1});
        const auto mine = found[k].second->reshape({-1});
        for (int64_t j = 0; j < flat.size(0); ++j) {
          const double start = flat[j].item<double>();
          flat[j] = start + step;
          const double up = loss(unused);
          flat[j] = start - step;
          const double down = loss(unused);
          flat[j] = start;
          const double numeric = (up - down) / (2 * step);
          EXPECT_NEAR(mine[j].item<double>(), numeric, 1e-5 * std::max(1.0, std::abs(numeric)))
              << tensors[k].first << " entry " << j << ", normalised " << batch_norm;
        }
      }
    }
  }
}

// Row 1 has one entry, row 2 none.
SparseRows places() {
  return {torch::tensor({0, 2, 3, 3}, torch::kInt64), torch::tensor({5, 1, 0}, torch::kInt32),
          torch::tensor({.7, -.3, 1.1}, torch::kFloat64)};
}

TEST(FactoredRows, ProductsEqualThoseOfTheRows) {
  torch::manual_seed(7);
  const auto p = random({8, 3}), w = random({8, 21}), delta = random({3, 21});
  auto q = random({3, 3});
  q[2].zero_();  // the last row is empty
  for (const bool sparse : {true, false}) {
    const auto rows = factored_rows(p, q, sparse ? places() : SparseRows{});
    auto y = q.mm(p.t());
    if (sparse) {
      y.index_put_({torch::tensor({0, 0, 1}), torch::tensor({5, 1, 0})}, places().values, true);
    }
    EXPECT_TRUE(torch::allclose(dense_rows(rows), unit_rows(y), 1e-12, 1e-13));
    EXPECT_TRUE(torch::allclose(rows_product({rows}, w), unit_rows(y).mm(w), 1e-12, 1e-13));
    auto out = torch::ones({8, 21}, torch::kFloat64);
    add_rows_transposed({rows}, delta, out);
    EXPECT_TRUE(torch::allclose(out, 1 + unit_rows(y).t().mm(delta), 1e-12, 1e-13));
  }
}

TEST(FactoredRows, ListsOfRowsAreOneAfterTheOther) {
  torch::manual_seed(16);
  const auto w = random({8, 21}), delta = random({5, 21});
  const auto a = factored_rows(random({8, 3}), random({3, 3}), places());
  const auto b = factored_rows(random({8, 4}), random({2, 4}));
  const auto rows = torch::cat({dense_rows(a), dense_rows(b)});
  EXPECT_TRUE(torch::allclose(rows_product({a, b}, w), rows.mm(w), 1e-12, 1e-13));
  auto out = torch::ones({8, 21}, torch::kFloat64);
  add_rows_transposed({a, b}, delta, out);
  EXPECT_TRUE(torch::allclose(out, 1 + rows.t().mm(delta), 1e-12, 1e-13));
}

TEST(FactoredRows, ProductHasTheGradientOfTheRows) {
  torch::manual_seed(8);
  const auto w = random({8, 5}), weights = random({3, 5});
  for (const bool masked : {false, true}) {
    const SparseRows at = masked ? places() : SparseRows{};
    auto q = random({3, 4});
    const auto p = random({8, 4});
    const auto loss = [&](const auto& x) {
      return (factored_product(x[0], x[1], at, w) * weights).sum();
    };
    const auto twin = [&](const auto& x) {
      return (factored_product_composed(x[0], x[1], at, w) * weights).sum();
    };
    expect_gradients(loss, {p, q}, 1e-6);
    q[2].zero_();
    const auto a = p.clone().requires_grad_(), b = q.clone().requires_grad_();
    const std::vector<torch::Tensor> x = {a, b};
    const auto mine = torch::autograd::grad({loss(x)}, x),
               theirs = torch::autograd::grad({twin(x)}, x);
    for (size_t k = 0; k < 2; ++k) EXPECT_TRUE(torch::allclose(mine[k], theirs[k], 1e-9, 1e-12));
    EXPECT_EQ(mine[1][2].abs().sum().item<double>(), 0) << "an empty row has no gradient";
  }
}

// L_G of mmssl section 1.4: through the critic and the rows to what the content gives.
TEST(FactoredRows, DeceivingTheCriticHasItsGradientByDifferences) {
  torch::manual_seed(14);
  const std::vector<int64_t> widths = {8, 6, 4};
  for (const bool batch_norm : {true, false}) {
    const Critic critic = random_critic({batch_norm, 0.2, Output::sigmoid}, widths);
    const auto masks = random_masks(3, widths);
    for (const bool masked : {false, true}) {
      const SparseRows at = masked ? places() : SparseRows{};
      const auto loss = [&](const auto& x) {
        const auto first = factored_product(x[0], x[1], at, critic.layers[0].weight);
        return -critic_score(critic, first, masks).mean();
      };
      expect_gradients(loss, {random({8, 3}), random({3, 3})}, 1e-6);
    }
  }
}

TEST(ModalAttention, HasItsGradientByDifferences) {
  torch::manual_seed(15);
  for (int64_t n_modalities = 1; n_modalities <= 3; ++n_modalities) {
    const auto weights = random({5, 4});
    std::vector<torch::Tensor> inputs;
    for (int64_t m = 0; m < n_modalities; ++m) inputs.push_back(random({5, 4}));
    if (n_modalities == 1) {
      expect_gradients(
          [&](const auto& x) { return (modal_attention({x[0]}, {}, {}, 2) * weights).sum(); },
          inputs);
      continue;
    }
    inputs.push_back(random({4, 4}));
    inputs.push_back(random({4, 4}));
    expect_gradients(
        [&](const auto& x) {
          const std::vector<torch::Tensor> e(x.begin(), x.end() - 2);
          return (modal_attention(e, x[x.size() - 2], x[x.size() - 1], 2) * weights).sum();
        },
        inputs, 1e-6);
    const std::vector<torch::Tensor> e(inputs.begin(), inputs.end() - 2);
    const auto &query = inputs[inputs.size() - 2], &key = inputs.back();
    EXPECT_TRUE(torch::allclose(modal_attention(e, query, key, 2),
                                modal_attention_composed(e, query, key, 2), 1e-12, 1e-13));
  }
}

TEST(UnitOrZero, ValueAndGradient) {
  torch::manual_seed(9);
  const auto weights = random({4, 3});
  expect_gradients([&](const auto& x) { return (unit_rows(x[0]) * weights).sum(); },
                   {random({4, 3})}, 1e-6);
  const auto zero = torch::zeros({2, 3}, torch::kFloat64).requires_grad_();
  (unit_rows(zero) * 3).sum().backward();
  EXPECT_EQ(zero.grad().abs().sum().item<double>(), 0);
}

TEST(InfoNce, EqualsComposedAndDifferences) {
  torch::manual_seed(10);
  const auto positive = torch::tensor({1, 0, 6}, torch::kInt64);
  const auto excluded = torch::tensor({4, -1, 5}, torch::kInt64);
  for (const double eps : {0.0, 0.05}) {
    for (const auto& without : {excluded, torch::Tensor()}) {
      const auto fused = [&](const auto& x) {
        return info_nce(x[0], x[1], positive, without, 0.5, eps);
      };
      const auto a = random({3, 4}), keys = random({7, 4});
      EXPECT_NEAR(fused(std::vector{a, keys}).template item<double>(),
                  info_nce_composed(a, keys, positive, without, 0.5, eps).item<double>(), 1e-12);
      expect_gradients(fused, {a, keys}, 1e-6);
    }
  }
  // Blocks: more logits than one block holds.
  const auto a = random({700, 3}).requires_grad_(), keys = random({1500, 3}).requires_grad_();
  const auto own = torch::arange(700);
  const std::vector<torch::Tensor> x = {a, keys};
  const auto mine = torch::autograd::grad({info_nce(a, keys, own, own + 700, 0.5)}, x);
  const auto theirs = torch::autograd::grad({info_nce_composed(a, keys, own, own + 700, 0.5)}, x);
  for (size_t k = 0; k < 2; ++k) EXPECT_TRUE(torch::allclose(mine[k], theirs[k], 1e-9, 1e-13));
}

TEST(OneWay, EqualsTheDenseMatrix) {
  torch::manual_seed(11);
  // Users 0, 1 and 2 of 4, items 0 to 3 of 5.
  const BipartiteGraph graph(torch::tensor({0, 2, 5, 6, 6}, torch::kInt64),
                             torch::tensor({0, 3, 0, 1, 2, 3}, torch::kInt32), 5, 0);
  const auto both = graph.dense();
  const auto a = (both > 0).to(torch::kFloat64);
  const auto left = [](const torch::Tensor& m) { return m / m.sum(1, true).clamp_min(1).sqrt(); };
  const auto items = random({5, 3}), users = random({4, 3});
  for (const auto weight : {EdgeWeight::both, EdgeWeight::receiver}) {
    const bool one = weight == EdgeWeight::both;
    EXPECT_TRUE(torch::allclose(to_users(graph, items, weight), (one ? both : left(a)).mm(items),
                                1e-12, 1e-13));
    EXPECT_TRUE(torch::allclose(to_items(graph, users, weight),
                                (one ? both.t() : left(a.t())).mm(users), 1e-12, 1e-13));
    expect_gradients([&](const auto& x) { return to_users(graph, x[0], weight).square().sum(); },
                     {items}, 1e-6);
    expect_gradients([&](const auto& x) { return to_items(graph, x[0], weight).square().sum(); },
                     {users}, 1e-6);
  }
}

}  // namespace
}  // namespace tessera
