// Every op twice: by its kernel, and in plain tensor operations under ReferenceOps, in value and
// gradient. Then on the meta device, whose tensors have no data: an op that read any would end.
#include "tessera/ops/device.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/library.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <functional>
#include <numeric>

#include "tessera/nn/correlation.h"
#include "tessera/nn/vector_gan.h"
#include "tessera/ops/adam.h"
#include "tessera/ops/attention.h"
#include "tessera/ops/contrast.h"
#include "tessera/ops/critic.h"
#include "tessera/ops/dropout.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/factored_rows.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/gru.h"
#include "tessera/ops/item_graph.h"
#include "tessera/ops/linear.h"
#include "tessera/ops/losses.h"
#include "tessera/ops/modal_attention.h"
#include "tessera/ops/parts.h"
#include "tessera/ops/residual_norm.h"
#include "tessera/ops/sequence_losses.h"
#include "tessera/ops/sgd.h"
#include "tessera/ops/topk.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

using Tensors = std::vector<torch::Tensor>;

// Shapes of what libtorch itself gives no meta form in C++.
torch::Tensor selected(const torch::Tensor& x, int64_t dim, const torch::Tensor& index) {
  auto sizes = x.sizes().vec();
  sizes[static_cast<size_t>(dim)] = index.numel();
  return torch::empty(sizes, x.options());
}
torch::Tensor where(const torch::Tensor& c, const torch::Tensor& a, const torch::Tensor& b) {
  return torch::empty(at::infer_size(c.sizes(), at::infer_size(a.sizes(), b.sizes())), a.options());
}
std::tuple<torch::Tensor, torch::Tensor> log_sigmoid(const torch::Tensor& x) {
  return {torch::empty_like(x), torch::empty({0}, x.options())};
}
torch::Tensor& put(torch::Tensor& x, const c10::List<std::optional<torch::Tensor>>&,
                   const torch::Tensor&, bool, bool) {
  return x;
}
torch::Tensor& like(const torch::Tensor& x, torch::Tensor& out) {
  out.resize_(x.sizes());
  return out;
}
torch::Tensor& broadcast(const torch::Tensor& a, const torch::Tensor& b, torch::Tensor& out) {
  out.resize_(at::infer_size(a.sizes(), b.sizes()));
  return out;
}
std::tuple<torch::Tensor, torch::Tensor, torch::Tensor> layer_norm(
    const torch::Tensor& x, at::IntArrayRef, const std::optional<torch::Tensor>&,
    const std::optional<torch::Tensor>&, double) {
  const auto by_row = torch::empty({x.size(0), 1}, x.options());
  return {torch::empty_like(x), by_row, by_row.clone()};
}
TORCH_LIBRARY_IMPL(aten, Meta, m) {
  m.impl("relu", [](const torch::Tensor& x) { return torch::empty_like(x); });
  m.impl("abs.out", like);
  m.impl("logical_not.out", like);
  m.impl("logical_or.out", broadcast);
  m.impl("logical_and.out", broadcast);
  m.impl("native_layer_norm", layer_norm);
  m.impl("index_select", selected);
  m.impl("where.self", where);
  m.impl("log_sigmoid_forward", log_sigmoid);
  m.impl("_index_put_impl_", put);
}

struct Case {
  std::string name;
  Tensors inputs;  ///< float64; each may get a gradient
  /// Indices and other constants go through `there`.
  using There = std::function<torch::Tensor(const torch::Tensor&)>;
  std::function<Tensors(const Tensors&, const There&)> op;
};

torch::Tensor random(at::IntArrayRef sizes, const std::string& stream) {
  const int64_t n = c10::multiply_integers(sizes);
  return normal(1, n, 0, 1, Random(7, stream)).to(torch::kFloat64).view(sizes);
}

torch::Tensor indices(int64_t n, int64_t below, const std::string& stream) {
  const Random random(8, stream);
  auto out = torch::empty({n}, torch::kInt64);
  for (int64_t i = 0; i < n; ++i) {
    uint32_t draw = 0;
    out[i] = static_cast<int64_t>(
        random.below(static_cast<uint32_t>(below), 0, static_cast<uint64_t>(i), draw));
  }
  return out;
}

torch::Tensor flags(at::IntArrayRef sizes, const std::string& stream) {
  return random(sizes, stream) > -0.5;
}

/// Edges of about half of all pairs; the last user has none.
BipartiteGraph some_graph(int64_t n_users, int64_t n_items) {
  const Random random(9, "edges");
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < n_users; ++u) {
    for (int64_t i = 0; i < n_items && u + 1 < n_users; ++i) {
      if (random.bits(0, static_cast<uint64_t>(u), static_cast<uint32_t>(i)) & 1) {
        items.push_back(static_cast<int32_t>(i));
      }
    }
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(items, torch::kInt32), n_items};
}

/// Some columns of each row, the first row has none.
SparseRows some_entries(int64_t n_rows, int64_t n) {
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> columns;
  for (int64_t j = 0; j < n_rows; ++j) {
    for (int64_t c = j; c < n && j > 0; c += j + 1) columns.push_back(static_cast<int32_t>(c));
    offsets.push_back(static_cast<int64_t>(columns.size()));
  }
  const auto n_entries = static_cast<int64_t>(columns.size());
  return {torch::tensor(offsets, torch::kInt64), torch::tensor(columns, torch::kInt32),
          random({n_entries}, "entries")};
}
SparseRows moved(const SparseRows& s, const Case::There& there) {
  return {there(s.offsets), there(s.columns), there(s.values)};
}

torch::Tensor packed_offsets(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> out = {0};
  for (const int64_t n : lengths) out.push_back(out.back() + n);
  return torch::tensor(out, torch::kInt64);
}

/// Every op at n rows of width d.
std::vector<Case> cases(int64_t n, int64_t d) {
  std::vector<Case> out;
  const auto add = [&](const std::string& name, Tensors inputs, auto op) {
    out.push_back({name, std::move(inputs), op});
  };
  const auto a = random({n, d}, "a"), b = random({n, d}, "b"), c = random({n, d}, "c");
  const auto table = random({9, d}, "table"), other = random({6, d}, "other");
  const auto at = indices(n, 9, "at"), at_other = indices(n, 6, "at_other");
  const auto negatives = indices(2 * n, 6, "negatives").view({n, 2});
  using X = const Tensors&;
  using There = const Case::There&;

  add("cosine_loss", {a, b}, [=](X x, There there) -> Tensors {
    return {cosine_loss(x[0], x[1], there(torch::ones({n}, torch::kFloat64) / 3))};
  });
  add("cosine_loss of zeros", {a, torch::zeros_like(b)}, [=](X x, There there) -> Tensors {
    return {cosine_loss(x[0], x[1].detach(), there(torch::ones({n}, torch::kFloat64)))};
  });
  if (n > 0) {
    add("mean_square", {a, b}, [](X x, There) -> Tensors { return {mean_square(x[0], x[1])}; });
    add("mean_distance", {a, b}, [](X x, There) -> Tensors { return {mean_distance(x[0], x[1])}; });
  }
  add("norms", {a, b}, [](X x, There) -> Tensors {
    return {l2_rows({x[0], x[1]}, 5), norm_rows({x[0], x[1]}, 5), frobenius_norm(0 * x[0]),
            sum_of_squares(x[0])};
  });
  add("sum_of_squares, counted", {table},
      [](X x, There there) -> Tensors { return {sum_of_squares(x[0], there(torch::arange(9)))}; });
  add("bpr_loss", {table, other, random({6}, "offset")}, [=](X x, There there) -> Tensors {
    const Triples of{there(at), there(at_other), there(negatives)};
    return {bpr_loss(x[0], x[1], of), bpr_loss(x[0], x[1], of, x[2]), l2_rows(x[0], x[1], of, 5),
            norm_rows(x[0], x[1], of, 5)};
  });
  add("row_dots", {table, other}, [=](X x, There there) -> Tensors {
    return {row_dots(x[0], x[1], there(at), there(at_other))};
  });
  add("gather_rows", {table},
      [=](X x, There there) -> Tensors { return {gather_rows(x[0], there(at))}; });
  add("unit_rows", {a, b, random({n}, "share")}, [](X x, There) -> Tensors {
    return {unit_rows(x[0]), unit_rows(0 * x[0]), fused_unit_rows(x[2], x[0], x[1], 0.1),
            fused_rows(x[2], x[0], x[1], 0.1)};
  });
  add("residual_norm",
      {a, random({d, 4}, "weight"), random({4}, "bias"), random({4}, "gain"), random({4}, "shift")},
      [](X x, There) -> Tensors { return {residual_norm(x[0], x[1], x[2], x[3], x[4], 1e-5)}; });
  add("info_nce", {a, other}, [=](X x, There there) -> Tensors {
    const auto positive = there(at_other), out_of = there((at_other + 1).remainder(6) - 1);
    const auto excluded = torch::where(out_of == positive, torch::full_like(out_of, -1), out_of);
    return {info_nce(x[0], x[1], positive, {}, 0.5), info_nce(x[0], x[1], positive, excluded, 0.5),
            info_nce(x[0], x[1], positive, excluded, 0.5, 1e-2)};
  });
  add("softmax_loss", {a, other, random({6}, "bias")}, [=](X x, There there) -> Tensors {
    return {softmax_loss(x[0], x[1], there(at_other)),
            softmax_loss(x[0], x[1], there(at_other), x[2])};
  });
  for (const auto kind : {SampledLoss::Kind::softmax, SampledLoss::Kind::binary}) {
    add("sampled_loss", {a, other}, [=](X x, There there) -> Tensors {
      return {sampled_loss(x[0], x[1], there(at_other), there(negatives),
                           there(torch::arange(n, torch::kInt64)), {kind, 0.3, 0.7, true})};
    });
  }
  if (d % 2 == 0) {
    add("modal_attention", {a, b, c, random({d, d}, "q"), random({d, d}, "k")},
        [](X x, There) -> Tensors { return {modal_attention({x[0], x[1], x[2]}, x[3], x[4], 2)}; });
  }

  // Packed sequences of n positions, one of them long.
  std::vector<int64_t> lengths;
  for (int64_t left = n, k = 1; left > 0; left -= k, k = 1 + k % 5) {
    lengths.push_back(k = std::min(left, k == 1 ? 1 + left / 2 : k));
  }
  const auto offsets = packed_offsets(lengths);
  for (const double rate : {0.0, 0.3}) {
    const DropKey drop = rate > 0 ? drop_key(rate, Random(5, "drop"), 11) : DropKey{};
    add("dropout", {a}, [=](X x, There) -> Tensors { return {dropout(x[0], drop)}; });
    for (const int64_t n_heads : {1, 2}) {
      if (d % n_heads != 0) continue;
      for (const bool causal : {true, false}) {
        add("attention", {a, b, c}, [=](X x, There) -> Tensors {
          return {attention(x[0], x[1], x[2], offsets, n_heads, causal, drop)};
        });
      }
    }
  }
  add("gru", {random({n, 3 * d}, "in"), random({3 * d, d}, "hidden") / 8},
      [=](X x, There) -> Tensors { return {gru(x[0], x[1], offsets)}; });

  // Parts of items.
  const auto parts = random({6, 3, d}, "parts"), open = flags({6, 3}, "open");
  for (const bool gated : {false, true}) {
    add("part_attention", {table, other, parts}, [=](X x, There there) -> Tensors {
      const auto gate = gated ? there(open) : torch::Tensor();
      return {part_attention(x[0], x[1], x[2], gate, there(at), there(at_other)),
              part_weights(x[0], x[2], gate)};
    });
    add("part_scores", {table, other, parts}, [=](X x, There there) -> Tensors {
      return {part_scores(x[0], x[1], x[2], gated ? there(open) : torch::Tensor())};
    });
  }
  using Contrast = OrderOptions::Contrast;
  for (const auto contrast : {Contrast::softmax_order, Contrast::mse_rank, Contrast::none}) {
    for (const bool odd : {false, true}) {
      const OrderOptions options{contrast, 0.5, odd, odd};
      add("order_loss", {a, random({3, n, d}, "decoded")}, [=](X x, There) -> Tensors {
        const auto loss = order_loss(x[0].detach(), x[1], options);
        return {loss.value, loss.cosines};
      });
      if (contrast == Contrast::mse_rank) continue;
      add("order_loss_affine", {a, b, c, random({d, d}, "w"), random({d}, "bias")},
          [=](X x, There) -> Tensors {
            const auto loss = order_loss_affine(x[0].detach(), x[1], x[2], x[3], x[4], options);
            return {loss.value, loss.cosines};
          });
    }
  }
  if (n > 0) add("overlap", {a, b}, [](X x, There) -> Tensors { return {overlap(x[0], x[1])}; });

  // Graphs of n + 1 users.
  const auto graph = some_graph(n + 1, 6);
  const auto users = random({n + 1, d}, "users");
  const auto user_rows = torch::arange(n, -1, -2, torch::kInt64);
  const auto item_rows = torch::tensor({4, 1}, torch::kInt64);
  for (const int64_t n_layers : {0, 1, 3}) {
    add("layer_mean", {users, other}, [=](X x, There there) -> Tensors {
      const auto [u, i] = layer_mean(graph, x[0], x[1], n_layers);
      const auto [ur, ir] =
          layer_mean_rows(graph, x[0], x[1], n_layers, there(user_rows), there(item_rows));
      return {u, i, ur, ir};
    });
  }
  for (const auto weight : {EdgeWeight::both, EdgeWeight::receiver}) {
    add("one way", {users, other}, [=](X x, There) -> Tensors {
      return {to_users(graph, x[1], weight), to_items(graph, x[0], weight)};
    });
  }
  add("propagate", {users, other}, [=](X x, There) -> Tensors {
    const auto [u, i] = propagate(graph, x[0], x[1]);
    return {u, i};
  });
  const ItemGraph items({packed_offsets({2, 0, 1, 3, 0, 1}),
                         torch::tensor({0, 5, 2, 0, 1, 2, 5}, torch::kInt32),
                         torch::tensor({1.F, .5F, 2.F, .25F, 3.F, -1.F, 1.F})});
  add("propagate items", {other}, [=](X x, There) -> Tensors { return {propagate(items, x[0])}; });
  add("edge_sums", {other, random({n + 1, 2 * d}, "tastes")},
      [=](X x, There) -> Tensors { return {edge_sums(graph, x[0], x[1], 2, 1.7)}; });
  add("edge_sums of chosen items", {other, random({n + 1, 2 * d}, "tastes")},
      [=](X x, There) -> Tensors {
        const auto chosen = torch::tensor({3, 3, 0, 5, 1, 2}, torch::kInt64);
        return {edge_sums(graph, x[0], x[1], 2, 1.7, chosen)};
      });

  // Rows that are never formed.
  const auto entries = some_entries(n, 9);
  for (const bool masked : {false, true}) {
    add("factored_product", {table, a, random({9, 4}, "w")}, [=](X x, There there) -> Tensors {
      return {factored_product(x[0], x[1], masked ? moved(entries, there) : SparseRows{}, x[2])};
    });
  }
  add("factored rows", {table, a, random({9, 4}, "w")}, [=](X x, There there) -> Tensors {
    const torch::NoGradGuard no_grad;
    const auto s = moved(entries, there);
    const auto rows = factored_rows(x[0], x[1], s);
    auto back = torch::zeros_like(x[2]);
    add_rows_transposed({rows}, x[1].narrow(1, 0, 1).expand({n, 4}).contiguous(), back);
    return {entry_products(x[0], x[1], s),
            entry_softmax(s, 0.7),
            rows.inverse,
            dense_rows(rows),
            rows_product({rows}, x[2]),
            back};
  });

  add("linear", {a, random({4, d}, "weight"), random({4}, "bias")}, [](X x, There) -> Tensors {
    const auto f = [](const torch::Tensor& v) { return v.to(torch::kFloat32); };
    return {linear(x[0], x[1], x[2], false), linear(f(x[0]), f(x[1]), f(x[2]), true)};
  });
  for (const bool norm : {true, false}) {
    add("critic",
        {random({n + 2, 5}, "first"), random({d, 5}, "w1"), random({5}, "b1"), random({4, 5}, "w2"),
         random({4}, "b2"), random({4}, "w"), random({1}, "b")},
        [=](X x, There) -> Tensors {
          Critic critic{{norm, 0.2, CriticForm::Output::sigmoid},
                        {{x[1], x[2], x[2] + 1, x[2]}, {x[3], x[4], x[4] + 1, x[4]}},
                        x[5],
                        x[6]};
          for (auto& [name, tensor] : critic.tensors()) *tensor = tensor->detach();
          const auto pass = critic_pass(critic, x[0].detach(), {});
          Critic to = critic.zeros_like();
          const auto adjoint = critic_backward(critic, pass, pass.score, &to);
          const auto penalty = gradient_penalty(critic, pass, 0.7, to);
          return {critic_score(critic, x[0], {}), adjoint, penalty.value, penalty.adjoint,
                  to.layers[0].weight};
        });
  }

  // Pairs of items.
  ItemPairs pairs;
  pairs.i = at;
  pairs.j = (at + 1 + at_other.remainder(7)).remainder(9);
  pairs.row = indices(n, 3, "row");
  pairs.sizes = torch::tensor({3., 2., 1.}, torch::kFloat64);
  pairs.diagonal = torch::arange(6, torch::kInt64);
  const auto codes = indices(n, 5, "codes"), diagonal_codes = indices(6, 5, "diagonal");
  add("pairs",
      {table, random({d, d}, "wc"), random({d}, "bc"), random({5, d}, "wo"), random({5}, "bo")},
      [=](X x, There there) -> Tensors {
        ItemPairs of = pairs;
        for (auto* index : {&of.i, &of.j, &of.row}) *index = there(*index);
        return {
            ckd_loss(x[0], of, there(codes), there(diagonal_codes), {x[1], x[2], x[3], x[4]}, 3),
            pair_products(x[0], of.i, of.j)};
      });
  add("nearest_codes", {table, other},
      [](X x, There) -> Tensors { return {nearest_codes(x[0], x[1])}; });
  return out;
}

/// Outputs, then the gradients of their sum by fixed weights.
Tensors results(const Case& of, const Case::There& there) {
  Tensors inputs;
  for (const auto& x : of.inputs) inputs.push_back(x.detach().clone().requires_grad_());
  Tensors out = of.op(inputs, there);
  torch::Tensor sum = torch::zeros({}, torch::kFloat64);
  for (size_t k = 0; k < out.size(); ++k) {
    if (!out[k].requires_grad()) continue;
    sum = sum + (out[k] * random(out[k].sizes(), "weight" + std::to_string(k))).sum();
  }
  if (sum.requires_grad()) {
    const auto gradients = torch::autograd::grad({sum}, inputs, {}, false, false, true);
    for (size_t i = 0; i < inputs.size(); ++i) {
      out.push_back(gradients[i].defined() ? gradients[i] : torch::zeros_like(inputs[i]));
    }
  }
  return out;
}

class Device : public testing::TestWithParam<std::tuple<int64_t, int64_t>> {};

TEST_P(Device, KernelEqualsComposedInValueAndGradient) {
  const auto [n, d] = GetParam();
  const auto here = [](const torch::Tensor& x) { return x; };
  for (const Case& of : cases(n, d)) {
    const Tensors kernel = results(of, here);
    const ReferenceOps plain;
    const Tensors composed = results(of, here);
    ASSERT_EQ(kernel.size(), composed.size()) << of.name;
    for (size_t k = 0; k < kernel.size(); ++k) {
      ASSERT_EQ(kernel[k].sizes(), composed[k].sizes()) << of.name << " " << k;
      EXPECT_EQ(kernel[k].scalar_type(), composed[k].scalar_type()) << of.name << " " << k;
      const double tolerance = kernel[k].scalar_type() == torch::kFloat32 ? 1e-5 : 1e-10;
      EXPECT_TRUE(torch::allclose(kernel[k], composed[k], tolerance, tolerance))
          << of.name << " " << k << " " << (kernel[k] - composed[k]).abs().max();
    }
  }
}

TEST_P(Device, NothingIsReadBack) {
  const torch::NoGradGuard no_grad;
  const auto [n, d] = GetParam();
  if (n <= 1) GTEST_SKIP() << "libtorch's own meta forms do not take empty sums";
  const auto away = [](const torch::Tensor& x) { return x.defined() ? x.to(torch::kMeta) : x; };
  for (const Case& of : cases(n, d)) {
    const Tensors here = of.op(of.inputs, [](const torch::Tensor& x) { return x; });
    Tensors inputs, there;
    for (const auto& x : of.inputs) inputs.push_back(away(x));
    try {
      there = of.op(inputs, away);
    } catch (const std::exception& e) {
      ADD_FAILURE() << of.name << ": " << std::string(e.what()).substr(0, 400);
      continue;
    }
    ASSERT_EQ(here.size(), there.size()) << of.name;
    for (size_t k = 0; k < here.size(); ++k) {
      EXPECT_TRUE(there[k].is_meta()) << of.name << " " << k;
      EXPECT_EQ(here[k].sizes(), there[k].sizes()) << of.name << " " << k;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Device,
                         testing::Combine(testing::Values<int64_t>(0, 1, 7, 37),
                                          testing::Values<int64_t>(1, 6, 64)));

TEST(ReferenceOps, IsOfItsThreadAndNests) {
  const auto x = torch::ones({2, 2});
  EXPECT_FALSE(composed(x));
  EXPECT_TRUE(composed(x.to(torch::kMeta)));
  {
    const ReferenceOps plain;
    EXPECT_TRUE(composed(x));
    {
      const ReferenceOps inner(false);
      EXPECT_TRUE(composed(x));
    }
    EXPECT_TRUE(composed(x));
    // Backward of tensors in main memory runs in the thread that asked for it.
    struct Probe : torch::autograd::Function<Probe> {
      static torch::Tensor forward(torch::autograd::AutogradContext*, const torch::Tensor& v) {
        return v.clone();
      }
      static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                     torch::autograd::variable_list g) {
        EXPECT_TRUE(composed(g[0]));
        return g;
      }
    };
    Probe::apply(x.clone().requires_grad_()).sum().backward();
  }
  EXPECT_FALSE(composed(x));
}

TEST(ReferenceOps, MasksAreThoseOfTheKernels) {
  const Random random(3, "mask");
  for (const int64_t width : {1, 5, 64, 130}) {
    const auto rows =
        torch::tensor({0L, 5L, 1L << 31, (1L << 33) + 7, (5L << 36) + 1, 1L << 39}, torch::kInt64);
    const auto kernel = dropout_mask(rows, width, 0.3, random, (7L << 33) + 5);
    const ReferenceOps plain;
    EXPECT_TRUE(torch::equal(kernel, dropout_mask(rows, width, 0.3, random, (7L << 33) + 5)));
    EXPECT_TRUE(torch::equal(dropout_mask(rows, width, 0, random, 1), torch::ones({6, width})));
  }
}

/// Scores with many ties, masks with repeats, a row of no candidate.
struct Ranking {
  torch::Tensor scores = (random({5, 40}, "scores") * 3).round().to(torch::kFloat32);
  RankMask mask{packed_offsets({3, 0, 40, 2, 1}), {}, flags({40}, "excluded").logical_not()};
  torch::Tensor held_offsets = packed_offsets({2, 0, 1, 3, 1});
  torch::Tensor held = torch::tensor({3, 39, 0, 7, 8, 31, 5}, torch::kInt32);
  Ranking() {
    std::vector<int32_t> items = {3, 3, 17};
    for (int32_t i = 0; i < 40; ++i) items.push_back(i);
    items.insert(items.end(), {0, 39, 12});
    mask.items = torch::tensor(items, torch::kInt32);
    scores[1][4] = -std::numeric_limits<float>::infinity();
    scores[1][5] = -0.0F;
  }
};

TEST(ReferenceOps, RanksAlike) {
  const Ranking r;
  const auto users = random({5, 4}, "users"), items = random({40, 4}, "items");
  const auto parts = random({40, 2, 4}, "parts");
  for (const bool masked : {true, false}) {
    const RankMask mask = masked ? r.mask : RankMask{};
    for (const int64_t k : {0, 1, 7, 45}) {
      const Tensors kernel = {top_k_scores(r.scores, mask, k).items,
                              top_k_product(users, items, mask, k).items,
                              top_k_parts({users, items, parts, {}}, mask, k).items};
      const auto scores = top_k_scores(r.scores, mask, k).scores;
      const ReferenceOps plain;
      EXPECT_TRUE(torch::equal(kernel[0], top_k_scores(r.scores, mask, k).items)) << k;
      EXPECT_TRUE(torch::equal(scores, top_k_scores(r.scores, mask, k).scores)) << k;
      EXPECT_TRUE(torch::equal(kernel[1], top_k_product(users, items, mask, k).items)) << k;
      EXPECT_TRUE(torch::equal(kernel[2], top_k_parts({users, items, parts, {}}, mask, k).items));
    }
    const auto kernel = count_above_scores(r.scores, mask, r.held_offsets, r.held);
    const auto product = count_above_product(users, items, mask, r.held_offsets, r.held);
    const ReferenceOps plain;
    const auto found = count_above_scores(r.scores, mask, r.held_offsets, r.held);
    EXPECT_TRUE(torch::equal(kernel.scores, found.scores));
    EXPECT_TRUE(torch::equal(kernel.n_greater, found.n_greater));
    EXPECT_TRUE(torch::equal(kernel.n_equal_lower, found.n_equal_lower));
    EXPECT_TRUE(torch::equal(kernel.n_equal_other, found.n_equal_other));
    EXPECT_TRUE(torch::equal(kernel.n_candidates, found.n_candidates));
    EXPECT_TRUE(
        torch::equal(product.n_greater,
                     count_above_product(users, items, mask, r.held_offsets, r.held).n_greater));
  }
  auto broken = r.scores.clone();
  broken[3][9] = std::nanf("");
  const ReferenceOps plain;
  try {
    top_k_scores(broken, {}, 3);
    FAIL() << "a NaN was ranked";
  } catch (const std::exception& e) {
    EXPECT_EQ(std::string(e.what()), "the score of item 9 for row 3 is NaN");
  }
}

TEST(ReferenceOps, SgdGoesTripleByTriple) {
  const auto u = indices(9, 5, "u"), p = indices(9, 4, "p"), n = indices(18, 4, "n") + 4;
  const auto run = [&](Tensors& tables) {
    return bpr_sgd(tables[0], tables[1], u, p, n.view({9, 2}), {0.3, 0.01});
  };
  Tensors kernel = {random({5, 6}, "users"), random({8, 6}, "items")}, composed;
  for (const auto& x : kernel) composed.push_back(x.clone());
  const auto wanted = run(kernel);
  const ReferenceOps plain;
  const auto found = run(composed);
  EXPECT_TRUE(torch::allclose(kernel[0], composed[0], 1e-12, 1e-12));
  EXPECT_TRUE(torch::allclose(kernel[1], composed[1], 1e-12, 1e-12));
  EXPECT_TRUE(torch::allclose(wanted.bpr, found.bpr, 1e-12));
  EXPECT_TRUE(torch::allclose(wanted.squares, found.squares, 1e-12));
}

// A table that changes its ways is still dense Adam's.
TEST(ReferenceOps, ATableIsDenseAdamWhicheverWayItGoes) {
  using Decay = AdamOptions::Decay;
  for (const Decay decay : {Decay::none, Decay::gradient, Decay::decoupled}) {
    AdamOptions options;
    options.learning_rate = [](int64_t step) { return 0.01 / static_cast<double>(step); };
    options.decay = decay;
    options.weight_decay = decay == Decay::none ? 0 : 0.03;
    const auto start = random({9, 3}, "start");
    RowTable lazy(start.clone()), other(start.clone());
    lazy.configure(options);
    other.configure(options);
    for (int64_t step = 1; step <= 30; ++step) {
      const auto rows = step % 4 == 0 ? torch::empty({0}, torch::kInt64)
                                      : torch::tensor({step % 7, 7L}, torch::kInt64);
      const auto move = [&](RowTable& table) {
        const auto leaf = table.gather(rows);
        if (rows.numel() > 0) (leaf * leaf * random({2, 3}, std::to_string(step))).sum().backward();
        table.step();
      };
      move(lazy);
      const ReferenceOps plain(step % 10 < 6);
      move(other);
      if (step == 17) {
        RowTable loaded;
        loaded.load(other.parts());
        loaded.configure(options);
        other = std::move(loaded);
      }
    }
    EXPECT_TRUE(torch::allclose(lazy.value(), other.value(), 1e-12, 1e-14));
  }
}

TEST(ReferenceOps, CodesOfPairsAreTheNearest) {
  const auto codes = random({12, 8}, "codes").to(torch::kFloat32);
  Correlation kernel(codes, flags({12}, "present"), 4, true);
  kernel.fit(5, 60, Random(3));
  const auto i = indices(50, 12, "i"), j = indices(50, 12, "j");
  const auto wanted = kernel.signal(i, j);
  const auto rho = kernel.rho(i, j);
  const ReferenceOps plain;
  EXPECT_TRUE(torch::allclose(rho, kernel.rho(i, j), 1e-5, 1e-6));
  EXPECT_TRUE(torch::allclose(wanted.r, kernel.signal(i, j).r, 1e-5, 1e-6));
  EXPECT_TRUE(torch::equal(wanted.codes, kernel.signal(i, j).codes));
}

TEST(ReferenceOps, TheGansStepIsThatOfItsLosses) {
  VectorGanOptions options;
  options.width = 6;
  options.encoder = {8};
  options.decoder = {8};
  options.discriminator = {5};
  options.code_width = 4;
  options.n_codes = 5;
  for (const double adv : {0.1, 0.0}) {
    options.adv = adv;
    VectorGan kernel(options, Random(3)), composed(options, Random(3));
    const auto source = random({7, 6}, "source").to(torch::kFloat32);
    const auto target = random({7, 6}, "target").to(torch::kFloat32);
    const auto direction = indices(7, 2, "direction");
    for (int step = 0; step < 3; ++step) {
      const double wanted = kernel.step(source, target, direction);
      const ReferenceOps plain;
      EXPECT_NEAR(composed.step(source, target, direction), wanted, 1e-4 * wanted);
    }
    const auto a = kernel.tensors(), b = composed.tensors();
    for (size_t t = 0; t < a.size(); ++t) {
      if (a[t].second->defined()) {
        EXPECT_TRUE(torch::allclose(*a[t].second, *b[t].second, 1e-3, 1e-4)) << a[t].first;
      }
    }
  }
}

}  // namespace
}  // namespace tessera
