// Scores by edges, and the losses of r2mr sections 2, 4 and 5.
#include "tessera/nn/review.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <functional>

#include "tessera/base/random.h"
#include "tessera/nn/vector_gan.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/residual_norm.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"
#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

torch::Tensor values(int64_t rows, int64_t cols, const char* stream,
                     torch::Dtype type = torch::kFloat64) {
  return normal(rows, cols, 0, 1, Random(2, stream)).to(type).requires_grad_();
}

// The last user and the last item have no edge.
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
                        n_items, 0);
}

TEST(EdgeSums, KernelEqualsComposedInValueAndGradient) {
  for (const auto& [n_users, n_items, share] :
       {std::tuple{9, 7, .4}, std::tuple{1, 1, 1.}, std::tuple{130, 70, .3}}) {
    const BipartiteGraph graph = random_graph(n_users, n_items, share);
    for (const int64_t k : {1, 2, 4, 8}) {
      for (const int64_t width : {1, 5, 32}) {
        for (const torch::Dtype type : {torch::kFloat64, torch::kFloat32}) {
          const double tolerance = type == torch::kFloat64 ? 1e-12 : 2e-5;
          const double scale = std::sqrt(static_cast<double>(width));
          std::vector<torch::Tensor> results;
          for (const bool kernel : {true, false}) {
            const auto y = values(n_items, width, "y", type);
            const auto p = values(n_users, k * width, "p", type);
            const auto s = kernel ? edge_sums(graph, y, p, k, scale)
                                  : edge_sums_composed(graph, y, p, k, scale);
            (s * values(n_items, 1, "w", type).detach().squeeze(1)).sum().backward();
            for (const auto& result : {s, y.grad(), p.grad()}) results.push_back(result);
          }
          for (size_t r = 0; r < 3; ++r) {
            EXPECT_TRUE(torch::allclose(results[r], results[r + 3], tolerance, tolerance))
                << "K " << k << " width " << width << " result " << r;
          }
        }
      }
    }
  }
}

// Both forms against a dense matrix of users and items.
TEST(EdgeSums, EqualADenseComputation) {
  const BipartiteGraph graph = random_graph(20, 15, .4);
  const auto edge = (graph.dense() > 0).t();
  const auto degree = edge.sum(1).clamp_min(1);
  for (const bool split : {false, true}) {
    for (const int64_t k : {1, 2, 4, 8}) {
      const ReviewForm form{16, k, split, true, false, false, 0};
      const auto t = values(20, 16, "t", torch::kFloat32), e = values(15, 16, "e", torch::kFloat32);
      const auto p = taste_weights(form, Random(5), "taste").project(t, form);
      const auto y = row_weights(form, Random(5), "rows").project(e, form);
      const int64_t w = form.product_width();
      EXPECT_EQ(w, split ? 16 / k : 16);
      const auto x = torch::einsum("iw,ukw->iuk", {y, p.view({20, k, w})}) / std::sqrt(double(w));
      const auto dense = (torch::sigmoid(x).mean(2) * edge).sum(1) / degree;
      const auto s = edge_sums(graph, y, p, k, form.scale()) / degree;
      EXPECT_TRUE(torch::allclose(s, dense, 0, 1e-6));
      const auto some = torch::tensor({3, 0, 14, 3}, torch::kInt64);
      EXPECT_TRUE(torch::equal(edge_sums(graph, y.index_select(0, some), p, k, form.scale(), some),
                               (edge_sums(graph, y, p, k, form.scale())).index_select(0, some)));
    }
  }
}

TEST(UnitRows, KernelEqualsComposedInValueAndGradient) {
  for (const int64_t n : {0, 1, 5, 300}) {
    for (const int64_t d : {1, 3, 64}) {
      for (const torch::Dtype type : {torch::kFloat64, torch::kFloat32}) {
        const double tolerance = type == torch::kFloat64 ? 1e-12 : 1e-4;
        std::vector<torch::Tensor> results;
        for (const bool kernel : {true, false}) {
          const auto x = values(n, d, "x", type), s = values(1, n, "s", type);
          const auto e = values(n, d, "e", type), h = values(n, d, "h", type);
          const auto unit = kernel ? unit_rows(x) : unit_rows_composed(x);
          const auto fused = kernel ? fused_unit_rows(s.view({n}), e, h, 1e-3)
                                    : unit_rows_composed(fused_rows(s.view({n}), e, h, 1e-3));
          const auto w = values(n, d, "w", type).detach();
          ((unit + fused * fused) * w).sum().backward();
          for (const auto& r : {unit, fused, x.grad(), s.grad(), e.grad(), h.grad()}) {
            results.push_back(r);
          }
        }
        for (size_t r = 0; r < 6; ++r) {
          EXPECT_TRUE(torch::allclose(results[r], results[r + 6], tolerance, tolerance))
              << n << " rows of " << d << ", result " << r;
        }
      }
    }
  }
  EXPECT_EQ(unit_rows(torch::zeros({2, 3})).abs().sum().item<double>(), 0);
}

TEST(UnitRows, ByCentralDifferences) {
  expect_gradients(
      [](const std::vector<torch::Tensor>& x) {
        const auto f = fused_unit_rows(x[0].view({4}), x[1], x[2], 1e-3);
        return (f.tanh() * f).sum() + (unit_rows(x[1]).sin() * 2).sum();
      },
      {values(4, 1, "s"), values(4, 3, "e"), values(4, 3, "h")});
}

TEST(R2mrGradients, ScoresByCentralDifferences) {
  const BipartiteGraph graph = random_graph(6, 5, .6);
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        return edge_sums(graph, x[0], x[1], 2, 1.7).square().sum();
      },
      {values(5, 3, "y"), values(6, 6, "p")});
}

// L_con as a reviewer's step has it, from tastes, W_u and every W_m (and biases).
TEST(R2mrGradients, ConsensusLoss) {
  const auto user = torch::tensor({0, 1, 2, 2, 0, 3}, torch::kInt64);
  const auto item = torch::tensor({1, 1, 0}, torch::kInt64);
  const std::vector<torch::Tensor> rows = {values(2, 4, "e0").detach(),
                                           values(2, 4, "e1").detach()};
  for (const bool split : {false, true}) {
    for (const bool divided : {true, false}) {
      const ReviewForm form{4, 2, split, divided, false, false, 0};
      const int64_t w = form.product_width();
      std::vector<torch::Tensor> inputs = {values(4, 4, "t"), values(4, 2 * w, "wu"),
                                           values(4, w, "w0"), values(4, w, "w1")};
      if (split) {
        inputs.push_back(values(1, 2 * w, "bu").detach()[0]);
        inputs.push_back(values(1, w, "b0").detach()[0]);
        inputs.push_back(values(1, w, "b1").detach()[0]);
      }
      expect_gradients(
          [&](const std::vector<torch::Tensor>& x) {
            const auto bias = [&](size_t at) { return split ? x[at] : torch::Tensor(); };
            return consensus_loss(form, x[0], {x[1], bias(4)}, rows,
                                  {{x[2], bias(5)}, {x[3], bias(6)}}, user, item);
          },
          inputs);
      // The same with every row set beside its partner.
      const auto own = [&](const torch::Tensor& x, size_t of, size_t with) {
        const auto y = x.matmul(inputs[of]);
        return split ? y + inputs[with] : y;
      };
      const auto p = own(inputs[0], 1, 4).index_select(0, user).view({2, 3, 2, w});
      double wanted = 0;
      for (size_t m = 0; m < 2; ++m) {
        const auto y = own(rows[m], 2 + m, 5 + m).index_select(0, item).view({1, 3, 1, w});
        const auto x = (p * y).sum(3) / form.scale();
        wanted += consensus_loss(x[0], x[1]).item<double>();
      }
      const auto bias = [&](size_t at) { return split ? inputs[at] : torch::Tensor(); };
      EXPECT_NEAR(consensus_loss(form, inputs[0], {inputs[1], bias(4)}, rows,
                                 {{inputs[2], bias(5)}, {inputs[3], bias(6)}}, user, item)
                      .item<double>(),
                  wanted, 1e-12);
    }
  }
}

// The ranking loss with the reviewer inside (reviewer = bpr), from u, W_u, W_m, e and q.
TEST(R2mrGradients, RankingLossThroughTheFusion) {
  const BipartiteGraph graph = random_graph(5, 6, .6);
  const auto degree = graph.parts().item_offsets.diff().clamp_min(1);
  const Triples at = {torch::tensor({0, 1, 2, 2}), torch::tensor({0, 1, 2, 3}),
                      torch::tensor({{5}, {4}, {0}, {1}})};
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        const auto h = to_items(graph, x[0]).tanh();
        const auto p = x[0].matmul(x[1]);
        const auto s = edge_sums(graph, x[3].matmul(x[2]), p, 2, std::sqrt(3.0)) / degree;
        const auto [u, i] =
            layer_mean(graph, unit_rows(x[4]), fused_unit_rows(s, x[3], h, 1e-3), 2);
        return bpr_loss(u, i, at) + 1e-1 * l2_rows(u, i, at, 4);
      },
      {values(5, 3, "u"), values(3, 6, "wu"), values(3, 3, "wm"), values(6, 3, "e"),
       values(5, 3, "q")},
      1e-6);
}

// 70 rows are more than one part of the sums, 21 columns no multiple of a vector.
TEST(R2mrGradients, ResidualNormEqualsItsComposedForm) {
  for (const auto type : {torch::kFloat64, torch::kFloat32}) {
    const auto row = [&](const char* stream) {
      return values(1, 21, stream, type).detach().squeeze(0).requires_grad_();
    };
    const std::vector<torch::Tensor> inputs = {values(70, 9, "x", type).detach().requires_grad_(),
                                               values(9, 21, "w", type).detach().requires_grad_(),
                                               row("b"), row("g"), row("h")};
    const auto upstream = values(70, 21, "u", type).detach();
    const auto fused = residual_norm(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], 1e-5);
    const auto plain =
        residual_norm_composed(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], 1e-5);
    const double near = type == torch::kFloat64 ? 1e-12 : 2e-5;
    EXPECT_LT((fused - plain).abs().max().item<double>(), near);
    const auto a = torch::autograd::grad({fused}, inputs, {upstream});
    const auto b = torch::autograd::grad({plain}, inputs, {upstream});
    for (size_t k = 0; k < a.size(); ++k) {
      EXPECT_LT((a[k] - b[k]).abs().max().item<double>(),
                near * b[k].abs().max().clamp_min(1).item<double>())
          << "input " << k;
    }
    // Without some of the gradients the others stay what they are.
    const auto frozen = residual_norm(inputs[0], inputs[1].detach(), inputs[2].detach(),
                                      inputs[3].detach(), inputs[4].detach(), 1e-5);
    EXPECT_TRUE(torch::equal(torch::autograd::grad({frozen}, {inputs[0]}, {upstream})[0], a[0]));
  }
}

TEST(R2mrGradients, ResidualNorm) {
  expect_gradients(
      [](const std::vector<torch::Tensor>& x) {
        const auto y =
            residual_norm(x[0], x[1], x[2].squeeze(0), x[3].squeeze(0), x[4].squeeze(0), 1e-5);
        return (y * y.sin()).sum();
      },
      {values(3, 4, "x"), values(4, 5, "w"), values(1, 5, "b"), values(1, 5, "g"),
       values(1, 5, "h")},
      1e-6);
}

/// A small rewriter in double precision, three wide, of two directions.
struct SmallGan {
  VectorGan gan;
  torch::Tensor source = values(4, 3, "s").detach(), target = values(4, 3, "t").detach();
  torch::Tensor direction = torch::tensor({0, 1, 1, 0}, torch::kInt64);
  std::vector<torch::Tensor*> network, discriminator;

  explicit SmallGan(double adv = .1)
      : gan({3, 2, 2, {5, 4}, {4}, {4, 3}, 5, 2, 2e-3, .5, adv}, Random(6)) {
    for (auto& [name, tensor] : gan.tensors()) {
      if (!tensor->defined()) continue;  // of the best state
      *tensor = tensor->detach().to(torch::kFloat64).set_requires_grad(true);
      (name.rfind("gan.discriminator", 0) == 0 ? discriminator : network).push_back(tensor);
    }
  }

  /// `loss` by central differences in every one of `tensors`.
  void expect_gradients_of(const std::vector<torch::Tensor*>& tensors,
                           const std::function<torch::Tensor()>& loss) {
    std::vector<torch::Tensor> inputs;
    for (const auto* tensor : tensors) inputs.push_back(*tensor);
    expect_gradients(
        [&](const std::vector<torch::Tensor>& x) {
          for (size_t i = 0; i < x.size(); ++i) *tensors[i] = x[i];
          return loss();
        },
        inputs);
  }
};

// L_R as a step has it, away from code changes: what section 4 writes sg stays where it was.
TEST(R2mrGradients, LossOfTheRewriter) {
  SmallGan small;
  const VectorGan& gan = small.gan;
  const Coded start = gan.code(small.source, small.direction);
  const auto codes = gan.codes_of(small.source, small.direction);
  small.expect_gradients_of(small.network, [&] {
    Coded coded = gan.code(small.source, small.direction);
    EXPECT_TRUE(torch::equal(gan.codes_of(small.source, small.direction), codes));
    coded.z_fixed = start.z_fixed;
    coded.z_q_fixed = start.z_q_fixed;
    return gan.loss_of_network(coded, gan.decode(coded), small.target).total;
  });
  // The discriminator is frozen in it.
  const Coded coded = gan.code(small.source, small.direction);
  gan.loss_of_network(coded, gan.decode(coded), small.target).total.backward();
  for (const auto* tensor : small.discriminator) EXPECT_FALSE(tensor->grad().defined());
}

// L_D as a step has it; nothing of it goes into the rewriter.
TEST(R2mrGradients, LossOfTheDiscriminator) {
  SmallGan small;
  const VectorGan& gan = small.gan;
  const auto loss = [&] {
    const auto e_hat = gan.decode(gan.code(small.source, small.direction));
    return gan.loss_of_discriminator(small.target, e_hat);
  };
  small.expect_gradients_of(small.discriminator, loss);
  loss().backward();
  for (const auto* tensor : small.network) EXPECT_FALSE(tensor->grad().defined());
}

// The step writes out what autograd makes of its losses, then steps as section 4 says. Even and odd
// batches, one whose first half is empty, and no discriminator.
TEST(R2mrGradients, AStepIsTheOptimisersOnItsLosses) {
  const auto moved = [](const std::vector<torch::Tensor*>& tensors, double rate, double decay) {
    AdamOptions options;
    options.learning_rate = [rate](int64_t) { return rate; };
    options.beta1 = .5;
    options.beta2 = .9;
    options.weight_decay = decay;
    options.decay = AdamOptions::Decay::decoupled;
    for (auto* tensor : tensors) {
      auto value = tensor->detach().clone();
      auto m = torch::zeros_like(value), v = torch::zeros_like(value);
      adam_composed(value, m, v, tensor->grad(), 1, options);
      *tensor = value.set_requires_grad(true);
    }
  };
  const std::vector<std::pair<int64_t, double>> cases = {{4, .1}, {3, .1}, {1, .1}, {4, 0}};
  for (const auto& [n, adv] : cases) {
    SmallGan stepped(adv), twin(adv);
    const auto source = stepped.source.narrow(0, 0, n), target = stepped.target.narrow(0, 0, n);
    const auto direction = stepped.direction.narrow(0, 0, n);
    const auto start = stepped.gan.tensors().front().second->detach().clone();
    const double distance = stepped.gan.step(source, target, direction);
    const auto coded = [&] { return twin.gan.code(source, direction); };
    if (adv > 0) {
      twin.gan.loss_of_discriminator(target, twin.gan.decode(coded())).backward();
      moved(twin.discriminator, 5e-5, 0);
    }
    const Coded now = coded();
    const auto loss = twin.gan.loss_of_network(now, twin.gan.decode(now), target);
    loss.total.backward();
    moved(twin.network, 2e-3, .01);
    EXPECT_NEAR(distance, loss.distance.item<double>(), 1e-12);
    const auto wanted = twin.gan.tensors();
    const auto found = stepped.gan.tensors();
    for (size_t i = 0; i < found.size(); ++i) {
      if (!found[i].second->defined()) continue;
      EXPECT_TRUE(torch::allclose(*found[i].second, *wanted[i].second, 1e-9, 1e-12))
          << found[i].first << ", " << n << " rows";
    }
    EXPECT_FALSE(torch::equal(start, *found.front().second));
  }
}

TEST(VectorGan, StepsAlikeOnAnyNumberOfThreads) {
  const auto source = normal(100, 32, 0, .5, Random(1)), target = normal(100, 32, 0, .5, Random(2));
  const auto direction = torch::arange(100, torch::kInt64).remainder(2);
  const auto trained = [&](int threads) {
    const int before = torch::get_num_threads();
    torch::set_num_threads(threads);
    VectorGan gan({32, 16, 2, {64, 128, 64}, {64, 128}, {64, 32}, 128, 8}, Random(3));
    for (int step = 0; step < 5; ++step) gan.step(source, target, direction);
    torch::set_num_threads(before);
    std::vector<torch::Tensor> out;
    for (const auto& [name, tensor] : gan.tensors()) {
      if (tensor->defined()) out.push_back(tensor->detach());
    }
    return out;
  };
  const auto one = trained(1), two = trained(2), three = trained(3);
  ASSERT_EQ(one.size(), 36U);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(torch::equal(one[i], two[i])) << i;
    EXPECT_TRUE(torch::equal(one[i], three[i])) << i;
  }
}

// dz = 2 (z - z_q) / n, dcode = .1 * 2 (z_q - z) / n: section 7.
TEST(R2mrGradients, Codes) {
  const auto z = values(3, 4, "z"), z_q = values(3, 4, "c");
  code_loss(z, z_q).backward();
  EXPECT_TRUE(torch::allclose(z.grad(), 2 * (z - z_q) / 12));
  EXPECT_TRUE(torch::allclose(z_q.grad(), .1 * 2 * (z_q - z) / 12));
}

TEST(VectorGan, LearnsALinearMapAndRestoresItsBest) {
  const auto source = normal(256, 32, 0, .5, Random(1)), map = normal(32, 32, 0, .2, Random(2));
  const auto target = source.matmul(map);
  const auto direction = torch::zeros({256}, torch::kInt64);
  VectorGan gan({32, 16, 2, {64, 128, 64}, {64, 128}, {64, 32}, 128, 8}, Random(3));
  const auto distance = [&] {
    return (gan.rewrite(source, direction) - target).abs().mean().item<double>();
  };
  const double first = distance();
  for (int step = 0; step < 100; ++step) gan.step(source, target, direction);
  const double trained = distance();
  EXPECT_LT(trained, .7 * first);
  gan.remember_best();
  for (int step = 0; step < 3; ++step) gan.step(source, -target, direction);
  EXPECT_NE(distance(), trained);
  gan.restore_best();
  EXPECT_EQ(distance(), trained);
}

}  // namespace
}  // namespace tessera
