// Scores by edges, and the losses of r2mr sections 2, 4 and 5.
#include "tessera/nn/review.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "tessera/base/random.h"
#include "tessera/nn/vector_gan.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/losses.h"
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

TEST(R2mrGradients, ConsensusLoss) {
  // Tastes, W_u and W_m of pairs (user, other, item).
  const auto user = torch::tensor({0, 1, 2}, torch::kInt64),
             other = torch::tensor({2, 0, 3}, torch::kInt64);
  const auto item = torch::tensor({1, 1, 0}, torch::kInt64);
  const auto rows = values(2, 4, "e").detach();
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        const auto p = x[0].matmul(x[1]).view({4, 2, 4});
        const auto y = gather_rows(rows.matmul(x[2]), item).unsqueeze(1);
        return consensus_loss((p.index_select(0, user) * y).sum(2) / 2,
                              (p.index_select(0, other) * y).sum(2) / 2);
      },
      {values(4, 4, "t"), values(4, 8, "wu"), values(4, 4, "wm")});
}

// The ranking loss with the reviewer inside (reviewer = bpr), from u, W_u, W_m, e and q.
TEST(R2mrGradients, RankingLossThroughTheFusion) {
  const BipartiteGraph graph = random_graph(5, 6, .6);
  const auto degree = graph.parts().item_offsets.diff().clamp_min(1);
  const auto users = torch::tensor({0, 1, 2, 2}, torch::kInt64);
  const auto ranked = torch::tensor({0, 1, 2, 3, 5, 4, 0, 1}, torch::kInt64);
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        const auto h = to_items(graph, x[0]).tanh();
        const auto p = x[0].matmul(x[1]);
        const auto s = edge_sums(graph, x[3].matmul(x[2]), p, 2, std::sqrt(3.0)) / degree;
        const auto [u, i] =
            layer_mean(graph, unit_rows(x[4]), fused_unit_rows(s, x[3], h, 1e-3), 2);
        const auto bu = gather_rows(u, users), bi = gather_rows(i, ranked);
        const auto own = bi.narrow(0, 0, 4), negative = bi.narrow(0, 4, 4);
        return bpr_loss(bu, own, negative) + 1e-1 * l2_rows({bu, own, negative}, 4);
      },
      {values(5, 3, "u"), values(3, 6, "wu"), values(3, 3, "wm"), values(6, 3, "e"),
       values(5, 3, "q")},
      1e-6);
}

GanBlock block_of(const std::vector<torch::Tensor>& x) { return {x[0], x[1], x[2], x[3]}; }

// The rewriter away from code changes: what stands behind the codes is constant.
TEST(R2mrGradients, RewriterAndDiscriminator) {
  const auto source = values(4, 3, "s").detach(), target = values(4, 3, "t").detach();
  const std::vector<torch::Tensor> shape = {values(3, 3, "w"), values(1, 3, "b").detach()[0],
                                            values(1, 3, "g").detach()[0],
                                            values(1, 3, "h").detach()[0]};
  const auto judge = [&](const std::vector<torch::Tensor>& x, const torch::Tensor& rows) {
    return block_of({x.begin(), x.begin() + 4})(rows).matmul(x[4]);
  };
  const auto logit = values(3, 1, "l");
  std::vector<torch::Tensor> weights = shape;
  weights.push_back(logit);
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        return discriminator_loss(judge(x, target), judge(x, source));
      },
      weights);
  const auto frozen = values(3, 1, "l").detach();
  expect_gradients(
      [&](const std::vector<torch::Tensor>& x) {
        const auto fake = block_of(x)(source);
        return (fake - target).abs().mean() + .1 * adversarial_loss(fake.matmul(frozen));
      },
      shape);
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
