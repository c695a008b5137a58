// Losses over items and the encoders of sequences against composed twins and central differences.
#include <gtest/gtest.h>

#include <map>

#include "tessera/nn/sequence_encoder.h"
#include "tessera/ops/attention.h"
#include "tessera/ops/block_product.h"
#include "tessera/ops/gru.h"
#include "tessera/ops/sequence_losses.h"
#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

torch::Tensor randoms(int64_t rows, int64_t cols, double scale = 1) {
  return scale * torch::randn({rows, cols}, torch::kFloat64);
}
torch::Tensor ids(const std::vector<int64_t>& values) {
  return torch::tensor(values, torch::kInt64);
}

/// Same value and gradients, the loss scaled so that the upstream factor is seen.
void expect_same(const std::function<torch::Tensor(const std::vector<torch::Tensor>&)>& one,
                 const std::function<torch::Tensor(const std::vector<torch::Tensor>&)>& other,
                 std::vector<torch::Tensor> inputs, double tolerance = 1e-10) {
  for (auto& input : inputs) input = input.detach().clone().requires_grad_();
  const auto a = one(inputs), b = other(inputs);
  EXPECT_TRUE(torch::allclose(a, b, tolerance, tolerance)) << a << b;
  const auto weights = torch::linspace(0.3, 1.9, a.numel(), torch::kFloat64).reshape(a.sizes());
  const auto to_a = torch::autograd::grad({(a * weights.to(a.scalar_type())).sum()}, inputs);
  const auto to_b = torch::autograd::grad({(b * weights.to(b.scalar_type())).sum()}, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_TRUE(torch::allclose(to_a[i], to_b[i], tolerance, tolerance)) << "input " << i;
  }
}

TEST(SoftmaxLoss, EqualsComposedInBothWaysAtAnyBlock) {
  torch::manual_seed(1);
  for (const int64_t n : {1, 7, 40}) {
    for (const SoftmaxBlocks blocks : {SoftmaxBlocks{}, SoftmaxBlocks{3, 4, 1 << 20},
                                       SoftmaxBlocks{5, 4, 0}, SoftmaxBlocks{256, 1, 0}}) {
      const auto targets = torch::randint(0, 11, {n}, torch::kInt64);
      for (const double scale : {1.0, 20.0}) {  // logits to about +-80
        const std::vector<torch::Tensor> inputs = {randoms(n, 5, scale), randoms(11, 5),
                                                   randoms(1, 11).squeeze(0)};
        expect_same([&](const auto& x) { return softmax_loss(x[0], x[1], targets, x[2], blocks); },
                    [&](const auto& x) { return softmax_loss_composed(x[0], x[1], targets, x[2]); },
                    inputs);
        expect_same([&](const auto& x) { return softmax_loss(x[0], x[1], targets, {}, blocks); },
                    [&](const auto& x) { return softmax_loss_composed(x[0], x[1], targets); },
                    {inputs[0], inputs[1]});
      }
    }
  }
}

TEST(SoftmaxLoss, Float32NearDoubleAtLogitsOfEighty) {
  torch::manual_seed(2);
  const auto h = randoms(300, 16), items = randoms(1001, 16);
  const auto big = h * (80 / h.mm(items.t()).abs().max().item<double>());
  const auto targets = torch::randint(0, 1001, {300}, torch::kInt64);
  for (const SoftmaxBlocks blocks : {SoftmaxBlocks{}, SoftmaxBlocks{128, 300, 0}}) {
    auto a = big.to(torch::kFloat).requires_grad_(), b = items.to(torch::kFloat).requires_grad_();
    const auto loss = softmax_loss(a, b, targets, {}, blocks);
    loss.backward();
    auto c = big.clone().requires_grad_(), d = items.clone().requires_grad_();
    const auto wanted = softmax_loss_composed(c, d, targets);
    wanted.backward();
    EXPECT_NEAR(loss.item<double>(), wanted.item<double>(), 1e-4);
    EXPECT_TRUE(torch::allclose(a.grad().to(torch::kDouble), c.grad(), 1e-3, 1e-6));
    EXPECT_TRUE(torch::allclose(b.grad().to(torch::kDouble), d.grad(), 1e-3, 1e-6));
  }
}

TEST(SoftmaxLoss, SameBitsForAnyNumberOfThreads) {
  torch::manual_seed(4);
  const auto targets = torch::randint(0, 1001, {500}, torch::kInt64);
  const auto h = randoms(500, 20).to(torch::kFloat), items = randoms(1001, 20).to(torch::kFloat);
  const int before = torch::get_num_threads();
  for (const SoftmaxBlocks blocks : {SoftmaxBlocks{}, SoftmaxBlocks{50, 100, 0}}) {
    std::vector<torch::Tensor> seen;
    for (const int threads : {1, 2, 3}) {
      torch::set_num_threads(threads);
      auto a = h.clone().requires_grad_(), b = items.clone().requires_grad_();
      const auto loss = softmax_loss(a, b, targets, {}, blocks);
      loss.backward();
      const auto all = torch::cat({loss.detach().view({1}), a.grad().view(-1), b.grad().view(-1)});
      if (!seen.empty()) {
        EXPECT_TRUE(torch::equal(all, seen[0])) << threads << " threads";
      }
      seen.push_back(all);
    }
  }
  torch::set_num_threads(before);
}

template <typename T>
void expect_block_products(double tolerance) {
  torch::manual_seed(5);
  constexpr int64_t c = kernels::kBlockColumns<T>;
  for (const int64_t rows : {1, 5, 6, 13, 25}) {
    for (const int64_t depth : {1, 127, 300}) {
      for (const int64_t cols : {c, 3 * c}) {
        const auto a = randoms(rows, depth), b = randoms(depth, cols), base = randoms(rows, cols);
        const auto type = torch::CppTypeToScalarType<T>::value;
        const auto left = a.to(type), upright = a.t().contiguous().to(type), right = b.to(type);
        for (const bool turned : {false, true}) {
          for (const bool add : {false, true}) {
            auto out = base.to(type).clone();
            kernels::block_product(kernels::BlockProduct<T>{
                (turned ? upright : left).template const_data_ptr<T>(), turned ? 1 : depth,
                turned ? rows : 1, right.template const_data_ptr<T>(), cols, depth,
                out.template mutable_data_ptr<T>(), cols, rows, cols, add});
            const auto wanted = add ? a.mm(b) + base : a.mm(b);
            EXPECT_LT((out.to(torch::kDouble) - wanted).abs().max().template item<double>(),
                      tolerance)
                << rows << " " << depth << " " << cols << " " << turned << add;
          }
        }
      }
    }
  }
}

TEST(BlockProduct, EqualsTheProduct) {
  expect_block_products<float>(1e-4);
  expect_block_products<double>(1e-12);
}

TEST(SoftmaxLoss, CentralDifferences) {
  torch::manual_seed(3);
  const auto targets = ids({2, 0, 2, 4});
  expect_gradients([&](const auto& x) { return softmax_loss(x[0], x[1], targets, x[2]); },
                   {randoms(4, 3), randoms(5, 3), randoms(1, 5).squeeze(0)});
}

TEST(SampledLoss, EqualsComposed) {
  torch::manual_seed(4);
  const auto targets = torch::randint(0, 12, {9}, torch::kInt64);
  for (const auto& group_of : {ids({0, 1, 2, 3, 4, 5, 6, 7, 8}), ids({0, 0, 0, 1, 2, 2, 2, 2, 3}),
                               ids({0, 0, 0, 0, 0, 0, 0, 0, 0})}) {
    const int64_t groups = group_of[-1].item<int64_t>() + 1;
    const auto negatives = torch::randint(0, 12, {groups, 5}, torch::kInt64);
    for (const SampledLoss loss :
         {SampledLoss{}, SampledLoss{SampledLoss::Kind::softmax, -0.7, 1, false},
          SampledLoss{SampledLoss::Kind::binary, 0, 1, false},
          SampledLoss{SampledLoss::Kind::binary, 0, 0.3, true}}) {
      const std::vector<torch::Tensor> inputs = {randoms(9, 4), randoms(12, 4)};
      expect_same(
          [&](const auto& x) {
            return sampled_loss(x[0], x[1], targets, negatives, group_of, loss);
          },
          [&](const auto& x) {
            return sampled_loss_composed(x[0], x[1], targets, negatives, group_of, loss);
          },
          inputs, 1e-8);
    }
  }
}

// Self-check 5 of sequential section 7.
TEST(SampledLoss, AllOthersAsNegativesIsTheSoftmaxAndGbceAtZeroIsBce) {
  torch::manual_seed(5);
  const auto h = randoms(6, 4), items = randoms(7, 4);
  const auto targets = ids({0, 1, 2, 3, 4, 5});
  const auto everything = torch::arange(7, torch::kInt64).unsqueeze(0);
  const auto batch = torch::zeros({6}, torch::kInt64);
  EXPECT_NEAR(sampled_loss(h, items, targets, everything, batch, {}).item<double>(),
              softmax_loss(h, items, targets).item<double>(), 1e-12);
  const auto negatives = ids({6, 2}).unsqueeze(0);
  SampledLoss bce{SampledLoss::Kind::binary, 0, 1, true};
  SampledLoss gbce = bce;
  gbce.target_weight = gbce_weight(2, 7, 0);
  EXPECT_EQ(sampled_loss(h, items, targets, negatives, batch, gbce).item<double>(),
            sampled_loss(h, items, targets, negatives, batch, bce).item<double>());
}

Pass pass_of(const std::vector<int64_t>& offsets) {
  Pass pass;
  pass.offsets = ids(offsets);
  return pass;
}

/// Attention row by row and head by head.
torch::Tensor attention_by_rows(const torch::Tensor& q, const torch::Tensor& k,
                                const torch::Tensor& v, int64_t n_heads, bool causal,
                                const std::vector<int64_t>& offsets) {
  const int64_t width = q.size(1) / n_heads;
  std::vector<torch::Tensor> rows;
  for (size_t row = 0; row + 1 < offsets.size(); ++row) {
    const int64_t begin = offsets[row], n = offsets[row + 1] - begin;
    std::vector<torch::Tensor> heads;
    for (int64_t a = 0; a < n_heads; ++a) {
      const auto part = [&](const torch::Tensor& x) {
        return x.narrow(0, begin, n).narrow(1, a * width, width);
      };
      auto scores = part(q).mm(part(k).t()) / std::sqrt(static_cast<double>(width));
      if (causal) {
        scores = scores.masked_fill(torch::ones({n, n}, torch::kBool).triu(1),
                                    -std::numeric_limits<double>::infinity());
      }
      heads.push_back(scores.softmax(1).mm(part(v)));
    }
    rows.push_back(torch::cat(heads, 1));
  }
  return torch::cat(rows, 0);
}

/// A GRU row by row and position by position.
torch::Tensor gru_by_rows(const torch::Tensor& in, const torch::Tensor& w_hidden,
                          const std::vector<int64_t>& offsets) {
  std::vector<torch::Tensor> states;
  for (size_t row = 0; row + 1 < offsets.size(); ++row) {
    auto state = torch::zeros({1, w_hidden.size(1)}, in.options());
    for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
      const auto i = in.narrow(0, p, 1).chunk(3, 1), g = state.mm(w_hidden.t()).chunk(3, 1);
      const auto r = torch::sigmoid(i[0] + g[0]), z = torch::sigmoid(i[1] + g[1]);
      state = (1 - z) * torch::tanh(i[2] + r * g[2]) + z * state;
      states.push_back(state);
    }
  }
  return torch::cat(states, 0);
}

TEST(Attention, EqualsComposedAndCentralDifferences) {
  torch::manual_seed(6);
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0, 1}, {0, 3, 4, 9}, {0, 1, 2, 3, 30}}) {
    const Pass pass = pass_of(offsets);
    const int64_t n = offsets.back();
    for (const int64_t heads : {1, 2}) {
      for (const bool causal : {true, false}) {
        expect_same(
            [&](const auto& x) { return attention(x[0], x[1], x[2], heads, causal, 0, pass, "a"); },
            [&](const auto& x) {
              return attention_by_rows(x[0], x[1], x[2], heads, causal, offsets);
            },
            {randoms(n, 4), randoms(n, 4), randoms(n, 4)});
        expect_same(
            [&](const auto& x) {
              return attention_composed(x[0], x[1], x[2], pass.offsets, heads, causal);
            },
            [&](const auto& x) {
              return attention_by_rows(x[0], x[1], x[2], heads, causal, offsets);
            },
            {randoms(n, 4), randoms(n, 4), randoms(n, 4)});
      }
    }
  }
  const Pass pass = pass_of({0, 2, 5});
  expect_gradients(
      [&](const auto& x) {
        return attention(x[0], x[1], x[2], 2, true, 0, pass, "a").square().sum();
      },
      {randoms(5, 4), randoms(5, 4), randoms(5, 4)});
}

TEST(Attention, DropoutKeepsItsMaskInBackward) {
  torch::manual_seed(7);
  Pass pass = pass_of({0, 4, 11});
  pass.training = true;
  pass.step = 3;
  expect_gradients(
      [&](const auto& x) {
        return attention(x[0], x[1], x[2], 1, true, 0.4, pass, "a").square().sum();
      },
      {randoms(11, 4), randoms(11, 4), randoms(11, 4)});
  expect_gradients([&](const auto& x) { return dropout(x[0], 0.3, pass, "b").square().sum(); },
                   {randoms(11, 4)});
}

TEST(Dropout, RateScaleAndKeys) {
  Pass pass = pass_of({0, 1000});
  pass.training = true;
  pass.step = 5;
  const auto x = torch::ones({1000, 100});
  const auto once = dropout(x, 0.2, pass, "d");
  EXPECT_NEAR((once == 0).to(torch::kDouble).mean().item<double>(), 0.2, 0.005);
  EXPECT_NEAR(once.max().item<double>(), 1 / 0.8, 1e-4);
  EXPECT_TRUE(torch::equal(once, dropout(x, 0.2, pass, "d")));
  EXPECT_FALSE(torch::equal(once, dropout(x, 0.2, pass, "e")));
  EXPECT_FALSE(torch::equal(once.slice(0, 0, 500), once.slice(0, 500, 1000)));
  // Every column and every one of the 64 draws of a block falls out about as often.
  EXPECT_LT(((once == 0).to(torch::kDouble).mean(0) - 0.2).abs().max().item<double>(), 0.06);
  pass.step = 6;
  EXPECT_FALSE(torch::equal(once, dropout(x, 0.2, pass, "d")));
  pass.training = false;
  EXPECT_TRUE(torch::equal(x, dropout(x, 0.2, pass, "d")));
}

TEST(Gru, EqualsComposedAndCentralDifferences) {
  torch::manual_seed(8);
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0, 1}, {0, 2, 7, 8, 12}, {0, 5, 6}}) {
    const auto at = ids(offsets);
    expect_same([&](const auto& x) { return gru(x[0], x[1], at); },
                [&](const auto& x) { return gru_by_rows(x[0], x[1], offsets); },
                {randoms(offsets.back(), 12), randoms(12, 4)});
    expect_same([&](const auto& x) { return gru_composed(x[0], x[1], at); },
                [&](const auto& x) { return gru_by_rows(x[0], x[1], offsets); },
                {randoms(offsets.back(), 12), randoms(12, 4)});
  }
  const auto at = ids({0, 2, 5});
  expect_gradients([&](const auto& x) { return gru(x[0], x[1], at).square().sum(); },
                   {randoms(5, 6), randoms(6, 2)});
}

TEST(Gru, Float32NearDouble) {
  torch::manual_seed(9);
  const auto in = randoms(40, 96, 3), w = randoms(96, 32);
  const auto at = ids({0, 30, 40});
  EXPECT_LT((gru(in.to(torch::kFloat), w.to(torch::kFloat), at).to(torch::kDouble) - gru(in, w, at))
                .abs()
                .max()
                .item<double>(),
            2e-5);
}

/// Parameters of an encoder in double, small random values, as inputs of a check.
struct Made {
  std::map<std::string, torch::Tensor> by_name;
  MakeParameter make() {
    return [this](const std::string& name, torch::Tensor initial) -> torch::Tensor& {
      return by_name[name] = initial.to(torch::kDouble) + 0.3 * torch::randn_like(initial);
    };
  }
};

TEST(Encoders, CentralDifferences) {
  torch::manual_seed(10);
  const Pass pass = pass_of({0, 1, 4});
  using Norm = TransformerOptions::Norm;
  for (const Norm norm : {Norm::original, Norm::pre, Norm::post}) {
    Made made;
    TransformerOptions options;
    options.norm = norm;
    options.width = options.inner = 4;
    options.n_layers = 1;
    options.n_heads = 2;
    options.gelu = true;
    const Transformer encoder("t", options, made.make(), Random(1));
    std::vector<torch::Tensor> inputs = {randoms(4, 4)};
    std::vector<torch::Tensor*> places;
    for (auto& [name, value] : made.by_name) {
      inputs.push_back(value);
      places.push_back(&value);
    }
    const auto weights = randoms(4, 4);
    expect_gradients(
        [&](const auto& x) {
          for (size_t i = 0; i < places.size(); ++i) *places[i] = x[i + 1];
          return (encoder(x[0], pass) * weights).sum();
        },
        inputs, 1e-6);
  }
  Made made;
  const GruEncoder encoder("g", 3, 4, made.make(), Random(1));
  std::vector<torch::Tensor> inputs = {randoms(4, 3)};
  std::vector<torch::Tensor*> places;
  for (auto& [name, value] : made.by_name) {
    inputs.push_back(value);
    places.push_back(&value);
  }
  expect_gradients(
      [&](const auto& x) {
        for (size_t i = 0; i < places.size(); ++i) *places[i] = x[i + 1];
        return encoder(x[0], pass).square().sum();
      },
      inputs, 1e-6);
}

}  // namespace
}  // namespace tessera
