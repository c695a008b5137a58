// Golden checks of MMSSL: specs mmssl section 10, "every number obtained in two independent ways",
// and the acceptance tests of its section 11.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/model/bundle.h"
#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"
#include "tessera/ops/contrast.h"
#include "tessera/ops/critic.h"
#include "tessera/ops/factored_rows.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/knn.h"
#include "tessera/ops/modal_attention.h"
#include "tessera/ops/unit_rows.h"
#include "tests/contract/training.h"

namespace tessera {
namespace {

torch::Tensor matrix(int64_t rows, int64_t cols, std::vector<double> values) {
  return torch::tensor(values, torch::kFloat64).reshape({rows, cols});
}

void expect_near(const torch::Tensor& found, const std::vector<double>& wanted,
                 double tolerance = 1e-6) {
  ASSERT_EQ(found.numel(), static_cast<int64_t>(wanted.size()));
  const auto flat = found.detach().flatten().to(torch::kFloat64);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), wanted[i], tolerance)
        << "entry " << i;
  }
}

// --- section 10 -------------------------------------------------------------------------------
BipartiteGraph g1_graph() {
  return BipartiteGraph(torch::tensor({0, 2, 4, 5}, torch::kInt64),
                        torch::tensor({0, 1, 1, 2, 2}, torch::kInt32), 4, 0);
}

TEST(MmsslGolden, G1Graphs) {
  const auto graph = g1_graph();
  const auto x = matrix(4, 2, {1, 0, 0, 1, 1, 1, 2, -1});
  const auto u = to_users(graph, x, EdgeWeight::receiver);
  expect_near(u, {.707107, .707107, .707107, 1.414214, 1, 1});
  expect_near(to_items(graph, u, EdgeWeight::receiver),
              {.707107, .707107, 1, 1.5, 1.207107, 1.707107, 0, 0});
  const auto users = matrix(3, 2, {1, 0, 0, 1, 1, 1});
  const auto items = matrix(4, 2, {1, 2, 0, 1, -1, 0, .5, .5});
  expect_near(to_users(graph, items, EdgeWeight::both), {.707107, 1.914214, -.5, .5, -.707107, 0});
  expect_near(to_items(graph, users, EdgeWeight::both),
              {.707107, 0, .5, .5, .707107, 1.207107, 0, 0});
  const auto [mean_u, mean_i] = layer_mean(graph, users, items, 2);
  expect_near(mean_u, {.819036, .721405, .034518, .784518, .264298, .617851});
  expect_near(mean_i, {.735702, 1.117851, .201184, .902369, -.347631, .485702, .166667, .166667});
  // The published code's order: items from new users.
  const auto u1 = to_users(graph, items, EdgeWeight::receiver);
  expect_near(u1, {.707107, 2.121320, -.707107, .707107, -1, 0});
  const auto i1 = to_items(graph, u1, EdgeWeight::receiver);
  expect_near(i1, {.707107, 2.121320, 0, 2, -1.207107, .5, 0, 0});
  const auto u2 = torch::softmax(to_users(graph, i1, EdgeWeight::receiver), 1);
  expect_near(u2, {.082095, .917905, .067779, .932221, .153539, .846461});
  const auto i2 = torch::softmax(to_items(graph, u2, EdgeWeight::receiver), 1);
  expect_near((users + u1 + u2) / 3, {.596401, 1.013075, -.213109, .879776, .051180, .615487});
  expect_near((items + i1 + i2) / 3,
              {.669842, 1.606301, .077024, 1.256309, -.652532, .416830, .333333, .333333});
}

TEST(MmsslGolden, G2Contrast) {
  const auto h = unit_rows(matrix(3, 2, {1, 0, 0, 1, 1, 1}));
  const auto own = torch::arange(3);
  const auto value = [&](const torch::Tensor& e, bool with_self) {
    const auto unit = unit_rows(e);
    return info_nce(unit, torch::cat({h, unit}), own, with_self ? torch::Tensor() : own + 3, .5)
        .item<double>();
  };
  const auto e1 = matrix(3, 2, {1, 1, 0, 2, 1, 0}), e2 = matrix(3, 2, {2, 1, 1, -1, 0, 1});
  const auto terms = [&](const torch::Tensor& e) {
    const auto unit = unit_rows(e);
    std::vector<double> out;
    for (int64_t j = 0; j < 3; ++j) {
      out.push_back(info_nce(unit.narrow(0, j, 1), torch::cat({h, unit}), own.narrow(0, j, 1),
                             own.narrow(0, j, 1) + 3, .5)
                        .item<double>());
    }
    return torch::tensor(out, torch::kFloat64);
  };
  expect_near(terms(e1), {1.757238, .868782, 1.454569});
  expect_near(terms(e2), {1.177707, 3.426675, 1.306513});
  EXPECT_NEAR(value(e1, false), 1.360196, 1e-6);
  EXPECT_NEAR(value(e2, false), 1.970298, 1e-6);
  EXPECT_NEAR(value(e1, false) + value(e2, false), 3.330495, 1e-6);
  EXPECT_NEAR(value(e1, true) + value(e2, true), 4.122553, 1e-6);
  EXPECT_NEAR(value(torch::zeros_like(h), false), std::log(5.0), 1e-9);
  const auto zero = torch::zeros({1024, 2}, torch::kFloat64);
  const auto all = torch::arange(1024);
  EXPECT_NEAR(info_nce(zero, torch::cat({zero, zero}), all, all + 1024, .5).item<double>(),
              7.624131, 1e-6);
}

TEST(MmsslGolden, G3RealRow) {
  const SparseRows at{
      torch::tensor({0, 3}, torch::kInt64), torch::tensor({1, 3, 4}, torch::kInt32), {}};
  const auto eps = torch::tensor({.2, .5, .9}, torch::kFloat64);
  const auto g = -torch::log(-torch::log(eps));
  expect_near(g, {-.475885, .366513, 2.250367});
  const auto with = [&](const torch::Tensor& values) {
    return SparseRows{at.offsets, at.columns, values};
  };
  const auto p = entry_softmax(with(g), 1);
  expect_near(p, {.053771, .124852, .821377});
  expect_near(entry_softmax(with(g), .5), {.004171, .022489, .973340});
  const auto hu = matrix(1, 2, {1, 0});
  const auto hi = matrix(5, 2, {1, 1, 2, 0, 1, 2, -1, 1, 1, -2});
  const auto items = unit_rows(hi);
  expect_near(hu.mm(items.t()), {.707107, 1, .447214, -.707107, .447214});
  const auto inverse = factored_rows(items, hu).inverse;
  expect_near(inverse.reciprocal(), {1.549193});
  const auto real = factored_rows(items, hu * inverse, with(p));
  expect_near(real.inverse.reciprocal(), {1.456985});
  expect_near(dense_rows(real), {.313274, .479942, .198132, -.227582, .761883});
  // Published code: noise of 1e-5, the masked ID row times 100.
  const auto noise = -torch::log(-torch::log(torch::tensor({.2, .5, .9}, torch::kFloat64)));
  const auto soft = entry_softmax(with(noise * 1e-5), .005);
  expect_near(soft, {.332540, .333101, .334359});
  const auto scale = factored_rows(hi, hu, masking(hi, hu, at)).inverse * 100;
  const auto q = hu * scale;
  const auto all = factored_rows(hi, q, with(soft + masking(hi, q, at).values));
  // Items 0 and 2 score 1 and 1; the specification's eps of them do not matter.
  const std::vector<double> released = {.707095, .003325, .707095, .003331, .003344};
  expect_near(dense_rows(all), released);
  // The same from whole rows, and the later code's, whose tau divides the noise alone.
  const auto a = matrix(1, 5, {0, 1, 0, 1, 1});
  const auto everywhere = -torch::log(-torch::log(matrix(1, 5, {.3, .2, .6, .5, .9})));
  const auto scores = hu.mm(hi.t());
  expect_near(observed_rows(a, everywhere, scores, .005, false), released);
  expect_near(observed_rows(a, everywhere, scores, .005, true),
              {.707098, .002667, .707100, .002672, .002682});
  // Without scores the softmax is left, scaled.
  const auto row = observed_rows(a, everywhere, torch::zeros_like(scores), .005, true);
  expect_near(row / row.sum(), {.098316, .267096, .098485, .267546, .268556});
}

TEST(MmsslGolden, G4GradientPenalty) {
  const auto rows = matrix(3, 4, {1, 0, .5, 0, 0, 1, 0, -.5, .5, .5, -1, 1});
  Critic critic;
  critic.form.batch_norm = false;
  critic.layers.push_back({matrix(2, 4, {.5, -.3, .8, .1, -.2, .7, .4, -.6}).t().contiguous(),
                           torch::tensor({.1, -.1}, torch::kFloat64),
                           {},
                           {}});
  critic.weight = torch::tensor({.9, -1.1}, torch::kFloat64);
  critic.bias = torch::tensor({.05}, torch::kFloat64);
  const auto& w1 = critic.layers[0].weight;
  expect_near(w1.t().mm(w1), {.99, -.05, -.05, 1.05});
  const auto run = [&](const std::vector<double>& d, const std::vector<double>& v,
                       const std::vector<double>& rho, double value, const std::vector<double>& w1,
                       const std::vector<double>& b1, const std::vector<double>& w, double b) {
    const auto pass = critic_pass(critic, rows.mm(critic.layers[0].weight), {});
    expect_near(pass.score, d);
    expect_near(critic_backward(critic, pass, torch::ones_like(pass.score), nullptr), v);
    Critic to = critic.zeros_like();
    const auto found = gradient_penalty(critic, pass, .3, to);
    expect_near(found.slopes, rho);
    EXPECT_NEAR(found.value.item<double>(), value, 1e-6);
    to.layers[0].weight += rows.t().mm(found.adjoint);
    expect_near(to.layers[0].weight.t(), w1);
    expect_near(to.layers[0].bias, b1);
    expect_near(to.weight, w);
    expect_near(to.bias, {b});
    return to;
  };
  run({.725518, .271901, .536684}, {.179227, -.043811, .035635, -.217768, .044758, -.054704},
      {.186016, .227656, .073282}, .211789,
      {-.008304, .020245, -.013934, -.012779, .014336, -.016960, -.003190, .017646},
      {.009584, .014423}, {-.024102, .025495}, -.001387);
  critic.form.batch_norm = true;
  critic.layers[0].gamma = torch::tensor({1.2, .8}, torch::kFloat64);
  critic.layers[0].beta = torch::tensor({0., .1}, torch::kFloat64);
  const Critic to =
      run({.874743, .118803, .470098}, {.006981, .025233, -.030735, -.017682, .029339, -.021697},
          {.026442, .034773, .037551}, .280579,
          {.002904, .001645, -.001719, -.002922, .000034, .002574, -.003476, -.000529},
          {.007077, .007237}, {-.023271, .017508}, -.003256);
  expect_near(to.layers[0].gamma, {-.017453, -.024522});
  expect_near(to.layers[0].beta, {-.002931, .003582});
}

TEST(MmsslGolden, G5Attention) {
  const auto e1 = matrix(1, 4, {1, 0, 2, -1}), e2 = matrix(1, 4, {0, 1, 1, 1});
  const auto query = matrix(4, 4, {1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1});
  const auto key = matrix(4, 4, {0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0});
  // The definition, which gives what the op keeps to itself: weights by head, and both modalities.
  const auto e = torch::cat({e1, e2});
  const auto heads = [](const torch::Tensor& x) { return x.view({2, 2, 2}).transpose(0, 1); };
  const auto w =
      torch::softmax(heads(e.mm(query)).bmm(heads(e.mm(key)).transpose(1, 2)) / std::sqrt(2.0), 2);
  expect_near(w[0], {.107042, .892958, .195570, .804430});
  expect_near(w[1], {.5, .5, .892958, .107042});
  const auto each = w.bmm(heads(e)).transpose(0, 1).reshape({2, 4});
  expect_near(each, {.107042, .892958, 1.5, 0, .195570, .804430, 1.892958, -.785916});
  const auto mean = modal_attention({e1, e2}, query, key, 2);
  expect_near(mean - each.mean(0), {0, 0, 0, 0}, 1e-12);
  expect_near(mean, {.151306, .848694, 1.696479, -.392958});
  expect_near(unit_rows(mean), {.077868, .436773, .873079, -.202233});
  EXPECT_TRUE(torch::equal(modal_attention({e1}, query, key, 2), e1));
}

TEST(MmsslGolden, G6RowForm) {
  const auto p = matrix(4, 2, {1, 0, .6, .8, 0, 1, -.8, .6}), q = matrix(1, 2, {2, 1});
  const SparseRows s{torch::tensor({0, 2}, torch::kInt64), torch::tensor({1, 3}, torch::kInt32),
                     torch::tensor({.5, -.25}, torch::kFloat64)};
  const auto rows = factored_rows(p, q, s);
  expect_near(rows.inverse.reciprocal(), {3.579455});
  expect_near(dense_rows(rows), {.558744, .698430, .279372, -.349215});
  const auto w = matrix(2, 4, {1, 2, 0, -1, .5, -1, 1, 0}).t().contiguous();
  expect_near(p.t().mm(w).t(), {3, 1, -.1, .2});
  expect_near(rows_product({rows}, w), {2.304820, -.139686});
}

// G7 (metrics) is in unit_eval: Accuracy.ThreeHeldOutItemsOfMmssl.

TEST(MmsslGolden, G8Pairing) {
  torch::Tensor table = torch::full({10, 2}, -1, torch::kInt32);
  table[7] = torch::tensor({3, 1}, torch::kInt32);
  table[9] = torch::tensor({4, 3}, torch::kInt32);
  const auto graph = neighbour_graph(table, 5);
  EXPECT_EQ(graph.n_edges(), 4);
  const auto items = torch::arange(10, torch::kFloat64).reshape({5, 2});
  const auto users = torch::arange(20, torch::kFloat64).reshape({10, 2});
  EXPECT_TRUE(torch::allclose(to_users(graph, items, EdgeWeight::receiver)[7],
                              (items[3] + items[1]) / std::sqrt(2.0)));
  EXPECT_TRUE(torch::allclose(to_items(graph, users, EdgeWeight::receiver)[3],
                              (users[7] + users[9]) / std::sqrt(2.0)));
}

// --- the model --------------------------------------------------------------------------------
/// A model on small planted data and one batch.
struct Instance {
  Dataset data;
  Settings settings;
  std::unique_ptr<Model> model;
  Batch batch;

  Instance(Dataset d, Settings given, int64_t batch_size = 24)
      : data(std::move(d)), settings(std::move(given)) {
    const ModelInfo& info = find_model("MMSSL");
    const RunSettings resolved = resolve_settings(info, settings);
    model = info.make(settings, Context{data.view(), Random(7), resolved.train_settings, {}});
    Sampler sampler(data.view(), model->batch_spec(), batch_size, Random(7));
    sampler.begin_epoch(0);
    batch = sampler.batch(0, 1);
  }
  Loss step() {
    model->train(true);
    model->before_step(batch);
    Loss loss = model->loss(batch);
    loss.total.backward();
    return loss;
  }
  torch::Tensor gradient(const std::string& wanted) {
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, tensor] : group.tensors) {
        if (name == wanted) return tensor->grad();
      }
    }
    return {};
  }
  /// As they are now: later steps do not change it.
  State::Saved saved() {
    State state;
    model->state(state);
    State::Saved out = state.save();
    for (auto* file : {&out.weights, &out.optimizer}) {
      for (auto& [name, tensor] : *file) tensor = tensor.clone();
    }
    return out;
  }
  void set(const std::string& wanted, const torch::Tensor& value) {
    const torch::NoGradGuard no_grad;
    int n = 0;
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, tensor] : group.tensors) {
        if (name != wanted) continue;
        tensor->copy_(value);
        ++n;
      }
    }
    EXPECT_EQ(n, 1) << wanted;
  }
  /// What ranking uses.
  Vectors vectors() {
    const torch::NoGradGuard no_grad;
    model->train(true);
    model->train(false);  // forgets
    auto& factors = dynamic_cast<FactorModel&>(*model);
    return factors.factors();
  }
};

/// A feature of all items but those whose row is -1.
Feature feature_of(const std::string& name, const torch::Tensor& rows,
                   const std::vector<int32_t>& row_of_item) {
  Feature out;
  out.name = name;
  out.rows = MappedArray(rows.to(torch::kFloat32));
  out.row_of_item = torch::tensor(row_of_item, torch::kInt32);
  return out;
}

/// Users and items of G1 with one modality.
Dataset g1_data(const Feature& feature) {
  const std::vector<int32_t> users = {0, 0, 1, 1, 2}, items = {0, 1, 1, 2, 2};
  return make_dataset(3, 4, make_interactions(3, users, items), {}, {}, {feature});
}

// The model's own propagation, with the means that only it forms.
TEST(MmsslGolden, G1Model) {
  const auto x = matrix(4, 2, {1, 0, 0, 1, 1, 1, 2, -1});
  const Dataset data = g1_data(feature_of("image", x, {0, 1, 2, 3}));
  const Settings bare = {{"use_asl", false, "test"},    {"use_cl", false, "test"},
                         {"use_dep", false, "test"},    {"n_heads", 1, "test"},
                         {"embedding_size", 2, "test"}, {"feat_norm", "none", "test"}};
  const auto made = [&](const Settings& more) {
    Settings settings = bare;
    settings.insert(settings.end(), more.begin(), more.end());
    auto out = std::make_unique<Instance>(data, settings);
    out->set("user_embedding", matrix(3, 2, {1, 0, 0, 1, 1, 1}));
    out->set("item_embedding", matrix(4, 2, {1, 2, 0, 1, -1, 0, .5, .5}));
    return out;
  };
  const double float32 = 2e-6;
  const auto paper = made({{"omega", 0, "test"}})->vectors();
  expect_near(paper.users, {.819036, .721405, .034518, .784518, .264298, .617851}, float32);
  expect_near(paper.items,
              {.735702, 1.117851, .201184, .902369, -.347631, .485702, .166667, .166667}, float32);
  const auto released = made({{"omega", 0, "test"},
                              {"prop_norm", "left", "test"},
                              {"prop_order", "sequential_softmax", "test"}})
                            ->vectors();
  expect_near(released.users, {.596401, 1.013075, -.213109, .879776, .051180, .615487}, float32);
  expect_near(released.items,
              {.669842, 1.606301, .077024, 1.256309, -.652532, .416830, .333333, .333333}, float32);
  // F_u and F_i, by their directions.
  const auto content = made({{"omega", 1, "test"}});
  content->set("user_embedding", torch::zeros({3, 2}));
  content->set("item_embedding", torch::zeros({4, 2}));
  content->set("image.weight", torch::eye(2));
  content->set("image.bias", torch::zeros({2}));
  const auto h = content->vectors();
  EXPECT_TRUE(torch::allclose(
      h.users,
      unit_rows(matrix(3, 2, {.707107, .707107, .707107, 1.414214, 1, 1})).to(torch::kFloat32),
      1e-5, 1e-6));
  EXPECT_TRUE(
      torch::allclose(h.items,
                      unit_rows(matrix(4, 2, {.707107, .707107, 1, 1.5, 1.207107, 1.707107, 0, 0}))
                          .to(torch::kFloat32),
                      1e-5, 1e-6));
}

double part(const Loss& loss, const std::string& name) {
  for (const auto& [key, value] : loss.parts) {
    if (key == name) return value.item<double>();
  }
  return std::nan("");
}

/// Tensors equal to 1e-4 of the wanted one's length.
void expect_close(const std::string& name, const torch::Tensor& found, const torch::Tensor& wanted,
                  double absolute = 0) {
  ASSERT_TRUE(found.defined() && wanted.defined()) << name;
  EXPECT_LE((found - wanted).norm().item<double>(), 1e-4 * wanted.norm().item<double>() + absolute)
      << name;
}

/// A small catalogue of which most items lack each modality: some users' generated rows are empty.
Dataset sparse_data(int n_modalities) {
  PlantedOptions options;
  options.n_users = 60;
  options.n_items = 50;
  options.mean_rows = 4;
  options.n_modalities = n_modalities;
  options.missing = 0.8;
  options.n_cold = 5;
  return planted_pairs(options);
}

/// Users of the batch all of whose train items lack the first modality.
int64_t n_empty_rows(const Instance& instance) {
  int64_t out = 0;
  for (int64_t j = 0; j < instance.batch.size(); ++j) {
    const auto row = instance.data.train_distinct.of(instance.batch.users[j].item<int64_t>());
    out += std::none_of(row.begin(), row.end(),
                        [&](int32_t item) { return instance.data.features[0].has(item); });
  }
  return out;
}

/// One step by both engines. `cancels`: gradients of the discriminator whose terms cancel, to 0 or
/// so far that what is left shows their rounding; they are compared absolutely.
void expect_engines_equal(const Dataset& data, const Settings& kind,
                          const std::set<std::string>& cancels, int64_t batch_size,
                          const std::string& what) {
  Settings settings = {{"g_rate", 10, "test"}, {"d_lr", 0, "test"}};
  settings.insert(settings.end(), kind.begin(), kind.end());
  Settings dense = settings;
  dense.push_back({"adv_engine", "reference", "test"});
  Instance fast(data, settings, batch_size), slow(data, dense, batch_size);
  const Loss a = fast.step(), b = slow.step();
  for (const char* name : {"d_fake", "d_real", "d_penalty", "d_slope", "generator"}) {
    EXPECT_NEAR(part(a, name), part(b, name), 1e-4 * std::abs(part(b, name)) + 1e-6)
        << what << ": " << name;
  }
  // The discriminator's gradients are read off its first moments: m = (1 - beta1) g.
  const auto x = fast.saved(), y = slow.saved();
  int n_compared = 0;
  double largest = 0;
  for (const auto& [name, tensor] : y.optimizer) {
    if (name.ends_with(".m")) largest = std::max(largest, tensor.norm().item<double>());
  }
  const std::string prefix = "discriminator.adam.";
  for (const auto& [name, tensor] : y.optimizer) {
    if (!name.ends_with(".m")) continue;
    ++n_compared;
    ASSERT_TRUE(name.starts_with(prefix)) << name;
    const auto of = name.substr(prefix.size(), name.size() - prefix.size() - 2);
    expect_close(what + ": " + name, x.optimizer.at(name), tensor,
                 cancels.contains(of) ? 1e-5 * largest : 0);
  }
  EXPECT_GE(n_compared, 6);
  for (const auto& feature : data.features) {
    for (const char* name : {".weight", ".bias"}) {
      expect_close(what + ": " + feature.name + name, fast.gradient(feature.name + name),
                   slow.gradient(feature.name + name), 1e-7);
    }
  }
  expect_close(what + ": users", fast.gradient("user_embedding"), slow.gradient("user_embedding"),
               1e-7);
}

TEST(MmsslModel, LowrankEqualsReference) {
  struct Kind {
    Settings settings;
    std::set<std::string> cancels = {};
  };
  const std::vector<Kind> kinds = {
      {{}},
      {{{"d_norm", "none", "test"}}},
      // D is linear in its last bias, once with each sign: 0.
      {{{"d_out", "linear", "test"}}, {"bias"}},
      // Its one number is a sum over rows of terms of both signs, a hundredfold.
      {{{"fake", "masked_dot", "test"}, {"d_out", "sigmoid100", "test"}}, {"bias"}},
      {{{"use_gumbel", false, "test"}, {"zeta", 0, "test"}}},
      // A shift before a normalisation without a kink between them: 0.
      {{{"variant", "released", "test"}}, {"bias1", "bias2"}},
      {{{"variant", "released", "test"}, {"d_norm", "none", "test"}}}};
  for (int n_modalities = 1; n_modalities <= 3; ++n_modalities) {
    for (const auto& [settings, cancels] : kinds) {
      expect_engines_equal(
          small_data(n_modalities), settings, cancels, 24,
          fmt::format("{} modalities, {}", n_modalities,
                      settings.empty() ? "" : settings[0].name + " " + settings[0].value.dump()));
    }
  }
}

// Hidden layers wide enough for the float32 route through W1 W1^T to round.
TEST(MmsslModel, LowrankEqualsReferenceInWideLayers) {
  PlantedOptions options;
  options.n_users = 400;
  options.n_items = 2000;
  options.n_modalities = 2;
  const Dataset data = planted_pairs(options);
  expect_engines_equal(data, {}, {}, 64, "wide");
}

TEST(MmsslModel, LowrankEqualsReferenceWithEmptyRows) {
  ASSERT_GE(n_empty_rows(Instance(sparse_data(2), {}, 60)), 1);
  expect_engines_equal(sparse_data(2), {}, {}, 60, "paper");
  expect_engines_equal(sparse_data(2), {{"d_norm", "none", "test"}}, {}, 60, "paper, no norm");
  expect_engines_equal(sparse_data(2), {{"variant", "released", "test"}}, {"bias1", "bias2"}, 60,
                       "released");
}

// mmssl section 3: the published code's identity keeps the gain sqrt 2, a slope of 0.2 has
// sqrt(2 / 1.04).
TEST(MmsslModel, DiscriminatorStartsWithTheStatedSpread) {
  for (const auto& [act, gain] : std::vector<std::pair<std::string, double>>{
           {"leaky", std::sqrt(2 / 1.04)}, {"identity", std::sqrt(2.0)}}) {
    Instance instance(small_data(1), {{"d_act", act, "test"},
                                      {"d_lr", 0, "test"},
                                      {"d_hidden", Json::array({400, 300}), "test"}});
    instance.step();
    const auto saved = instance.saved().optimizer;
    for (const auto& [name, fan_in] : std::vector<std::pair<std::string, double>>{
             {"weight1", static_cast<double>(instance.data.n_items)}, {"weight2", 400}}) {
      const auto& weight = saved.at("discriminator." + name);
      const double wanted = gain / std::sqrt(fan_in);
      EXPECT_NEAR(weight.std().item<double>(), wanted, 0.03 * wanted) << act << " " << name;
      EXPECT_NEAR(weight.mean().item<double>(), 0, 0.03 * wanted) << act << " " << name;
    }
    EXPECT_EQ(saved.at("discriminator.bias1").abs().max().item<double>(), 0);
  }
}

// mmssl section 11, on the model as it is: float32, dropout on, the updated discriminator.
TEST(MmsslModel, LossHasItsGradientByDifferences) {
  Instance instance(small_data(2), {{"g_rate", 1, "test"},
                                    {"cl_rate", 0.3, "test"},
                                    {"feat_reg_weight", 0.01, "test"},
                                    {"reg_weight", 0.01, "test"}});
  instance.model->train(true);
  instance.model->end_epoch(0, {});  // generated graphs
  instance.batch.step = 2;
  instance.step();
  const auto value = [&] { return instance.model->loss(instance.batch).total.item<double>(); };
  const double step = 1e-2;
  for (const auto& group : instance.model->parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) {
      ASSERT_TRUE(tensor->grad().defined()) << name;
      const auto gradient = tensor->grad().clone();
      const auto start = tensor->detach().clone();
      const auto along = [&](const torch::Tensor& direction) {
        instance.set(name, start + step * direction);
        const double up = value();
        instance.set(name, start - step * direction);
        const double down = value();
        instance.set(name, start);
        return (up - down) / (2 * step);
      };
      const double length = gradient.norm().item<double>();
      EXPECT_NEAR(along(gradient / length), length, 0.02 * length + 3e-5) << name;
      if (name.starts_with("attention")) continue;  // single entries are too small for float32
      const auto largest = std::get<1>(gradient.flatten().abs().topk(3));
      for (int64_t k = 0; k < 3; ++k) {
        const auto direction = torch::zeros_like(gradient);
        direction.view({-1})[largest[k].item<int64_t>()] = 1;
        const double entry = gradient.flatten()[largest[k].item<int64_t>()].item<double>();
        EXPECT_NEAR(along(direction), entry, 0.02 * std::abs(entry) + 3e-5)
            << name << " entry " << largest[k].item<int64_t>();
      }
    }
  }
}

// mmssl section 1.10: negatives from all items. Without the other terms a cold item's vector can
// only move as a negative.
TEST(MmsslModel, ColdItemsAreDrawnAsNegatives) {
  const Dataset data = small_data(1);
  const Settings settings = {{"epochs", 1, "test"},       {"use_asl", false, "test"},
                             {"use_cl", false, "test"},   {"use_dep", false, "test"},
                             {"weight_decay", 0, "test"}, {"reg_weight", 0, "test"}};
  const ModelInfo& info = find_model("MMSSL");
  Trained trained(info, data, settings);
  const auto start = info.make(
      settings, Context{data.view(),
                        Random(static_cast<uint64_t>(trained.settings.train_settings.seed)),
                        trained.settings.train_settings,
                        {}});
  const auto items = [](Model& model) {
    State state;
    model.state(state);
    return state.save().weights.at("item_embedding");
  };
  const auto cold = (item_counts(data.train, data.n_items) == 0).nonzero().flatten();
  ASSERT_GE(cold.numel(), 5);
  const auto moved = (items(*trained.model) - items(*start)).abs().amax(1);
  EXPECT_GT(moved.index_select(0, cold).min().item<double>(), 0);
}

TEST(MmsslModel, EverythingOffIsLightGcn) {
  const Settings off = {{"use_asl", false, "test"},     {"use_cl", false, "test"},
                        {"use_dep", false, "test"},     {"omega", 0, "test"},
                        {"feat_reg_weight", 0, "test"}, {"reg_weight", 0, "test"},
                        {"n_layers", 2, "test"}};
  Instance mmssl(small_data(2), off);
  const ModelInfo& info = find_model("LightGCN");
  const Settings plain = {{"n_layers", 2, "test"}, {"reg_weight", 0, "test"}};
  auto light = info.make(plain, Context{mmssl.data.view(), Random(7), {}, {}});
  const Queries everybody{torch::arange(mmssl.data.n_users, torch::kInt64), {}};
  {
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(torch::equal(mmssl.model->score(everybody), light->score(everybody)));
  }
  const Loss one = mmssl.step();
  const Loss other = light->loss(mmssl.batch);
  other.total.backward();
  EXPECT_EQ(one.total.item<double>(), other.total.item<double>());
  const auto groups = light->parameter_groups();
  for (const auto& [name, tensor] : groups[0].tensors) {
    EXPECT_TRUE(torch::equal(mmssl.gradient(name), tensor->grad())) << name;
  }
}

TEST(MmsslModel, ReleasedContrastIsConstant) {
  Instance released(small_data(2), {{"variant", "released", "test"}});
  released.batch.step = 3;  // from the third step on the graphs are empty
  const Loss loss = released.step();
  const double n = static_cast<double>(released.batch.size());
  EXPECT_NEAR(part(loss, "contrast"), 2 * std::log(2 * n - 1), 1e-4);
  Instance without(small_data(2), {{"variant", "released", "test"}, {"use_cl", false, "test"}});
  without.batch.step = 3;
  without.step();
  EXPECT_TRUE(torch::allclose(released.gradient("user_embedding"),
                              without.gradient("user_embedding"), 1e-5, 1e-9));
}

TEST(MmsslModel, GraphsHoldExactlyKItemsAUser) {
  Instance instance(small_data(2), {{"graph_topk", 5, "test"}});
  EXPECT_TRUE((instance.saved().weights.at("image.edges") == -2).all().item<bool>())
      << "until the first refresh the graph is that of the train items";
  instance.model->train(true);
  instance.model->end_epoch(0, {});
  for (const char* name : {"image.edges", "text.edges"}) {
    const auto edges = instance.saved().weights.at(name);
    ASSERT_EQ(edges.size(1), 5);
    for (int64_t u = 0; u < instance.data.n_users; ++u) {
      std::set<int32_t> own;
      for (int64_t k = 0; k < 5; ++k) own.insert(edges[u][k].item<int32_t>());
      EXPECT_EQ(own.size(), instance.data.train_distinct.of(u).empty() ? 1u : 5u);
      EXPECT_EQ(own.contains(-1), instance.data.train_distinct.of(u).empty());
    }
  }
  // k is at least 1 and at most n_items / 4.
  Instance one(small_data(1), {{"graph_topk_rate", 1e-4, "test"}});
  EXPECT_EQ(one.saved().weights.at("image.edges").size(1), 1);
  Instance many(small_data(1), {{"graph_topk", 1000, "test"}});
  EXPECT_EQ(many.saved().weights.at("image.edges").size(1), many.data.n_items / 4);
}

// mmssl section 1.5: the k items of largest cos(f_u, f_i), f without dropout.
TEST(MmsslModel, EdgesAreTheNearestItemsByContent) {
  Instance instance(small_data(1), {{"graph_topk", 5, "test"}, {"dropout", 0.5, "test"}});
  instance.model->train(true);
  instance.model->end_epoch(0, {});
  const auto weights = instance.saved().weights;
  const auto& feature = instance.data.features[0];
  const auto raw = feature.all().to(torch::kFloat64);
  const auto own = raw.index_select(0, feature.present().nonzero().flatten());
  const auto x = (raw - own.mean(0)) / (own.std(0, false) + 1e-8);
  const auto projected =
      (x.mm(weights.at("image.weight").to(torch::kFloat64).t()) + weights.at("image.bias")) *
      feature.present().unsqueeze(1);
  auto train = torch::zeros({instance.data.n_users, instance.data.n_items}, torch::kFloat64);
  for (int64_t u = 0; u < instance.data.n_users; ++u) {
    for (const int32_t i : instance.data.train_distinct.of(u)) train[u][i] = 1;
  }
  const auto by_root = [](const torch::Tensor& a) {
    return a / a.sum(1, true).clamp_min(1).sqrt();
  };
  const auto users = by_root(train).mm(projected), items = by_root(train.t()).mm(users);
  const auto cosine = unit_rows(users).mm(unit_rows(items).t());
  const auto edges = weights.at("image.edges").to(torch::kInt64);
  for (int64_t u = 0; u < instance.data.n_users; ++u) {
    if (instance.data.train_distinct.of(u).empty()) continue;
    const auto best = std::get<0>(cosine[u].topk(5));
    const auto found = std::get<0>(cosine[u].index_select(0, edges[u]).sort(0, true));
    EXPECT_LT((best - found).abs().max().item<double>(), 1e-5) << u;
  }
}

TEST(MmsslModel, ResultsSayThatTheyAreApproximate) {
  const auto label = [](const Settings& settings) {
    return find_model("MMSSL").resolve(settings).label;
  };
  EXPECT_NE(
      label({{"variant", "released", "test"}, {"graph_refresh", 2, "test"}}).find("approximate"),
      std::string::npos);
  EXPECT_EQ(label({{"variant", "released", "test"}}), "");
  EXPECT_EQ(label({{"graph_refresh", 2, "test"}}), "");
}

// A cosine with nothing is no likeness: user 2 has item 2 alone, which lacks the modality.
TEST(MmsslModel, UsersWithoutContentGetNoEdges) {
  const auto x = matrix(4, 2, {1, 0, 0, 1, 1, 1, 2, -1});
  Instance instance(g1_data(feature_of("image", x, {0, 1, -1, 3})),
                    {{"embedding_size", 4, "test"}, {"use_asl", false, "test"}}, 3);
  instance.model->train(true);
  instance.model->end_epoch(0, {});
  const auto edges = instance.saved().weights.at("image.edges");
  EXPECT_GE(edges[0][0].item<int32_t>(), 0);
  EXPECT_GE(edges[1][0].item<int32_t>(), 0);
  EXPECT_EQ(edges[2][0].item<int32_t>(), -1);
  EXPECT_TRUE(std::isfinite(instance.step().total.item<double>()));
  EXPECT_TRUE(instance.vectors().users.isfinite().all().item<bool>());
}

TEST(MmsslModel, ZeroRowsHaveFiniteGradients) {
  for (const char* engine : {"lowrank", "reference"}) {
    for (const char* variant : {"paper", "released"}) {
      Instance instance(sparse_data(2),
                        {{"variant", variant, "test"}, {"adv_engine", engine, "test"}}, 60);
      const Loss loss = instance.step();
      for (const auto& [name, value] : loss.parts) EXPECT_TRUE(std::isfinite(value.item<double>()));
      for (const auto& group : instance.model->parameter_groups()) {
        for (const auto& [name, tensor] : group.tensors) {
          if (tensor->grad().defined()) {
            EXPECT_TRUE(tensor->grad().isfinite().all().item<bool>()) << name;
          }
        }
      }
      for (const auto& [name, tensor] : instance.saved().optimizer) {
        EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
      }
    }
  }
}

/// The largest tensor made while it is installed, in bytes.
struct Largest : public c10::MemoryReportingInfoBase {
  int64_t bytes = 0;
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    bytes = std::max(bytes, size);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

TEST(MmsslModel, NoArrayOfBatchTimesItems) {
  const int64_t n_users = 2000, n_items = 20000, batch = 64;
  const Random random(3, "memory");
  std::vector<int32_t> users, items;
  for (int32_t u = 0; u < n_users; ++u) {
    for (int32_t k = 0; k < 5; ++k) {
      users.push_back(u);
      items.push_back(static_cast<int32_t>(u * 10 + k * 2) % static_cast<int32_t>(n_items));
    }
  }
  Feature feature;
  feature.name = "image";
  feature.rows = MappedArray(torch::randn({n_items, 6}));
  feature.row_of_item = torch::arange(n_items, torch::kInt32);
  for (const char* variant : {"paper", "released"}) {
    Instance instance(
        make_dataset(n_users, n_items, make_interactions(n_users, users, items), {}, {}, {feature}),
        {{"variant", variant, "test"},
         {"embedding_size", 16, "test"},
         {"d_hidden", Json::array({16, 8}), "test"}},
        batch);
    instance.model->train(true);
    const auto largest = std::make_shared<Largest>();
    {
      const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, largest);
      instance.model->end_epoch(0, {});
      instance.step();
    }
    EXPECT_GT(largest->bytes, 0);
    EXPECT_LT(largest->bytes, batch * n_items * 4) << "no [B, n_items], so no [n_users, n_items]";
  }
}

TEST(MmsslModel, BagsOfIds) {
  Dataset data = small_data(2);
  torch::Tensor ids = torch::full({data.n_items, 3}, 33147.0);
  for (int64_t i = 0; i < data.n_items; ++i) {
    for (int64_t k = 0; k < i % 4; ++k) ids[i][k] = static_cast<double>(100 + (i * 7 + k * 3) % 11);
  }
  data.features[1].rows = MappedArray(ids.to(torch::kFloat32));
  data.features[1].row_of_item = torch::arange(data.n_items, torch::kInt32);
  const Settings bags = {{"bag_modalities", Json::array({"text"}), "test"},
                         {"bag_padding", 33147, "test"}};
  Instance instance(data, bags);
  EXPECT_EQ(instance.saved().weights.at("text.bag").size(0), 11);
  instance.step();
  EXPECT_GT(instance.gradient("text.bag").abs().sum().item<double>(), 0);
  EXPECT_THROW(Instance(small_data(2), bags), InputError) << "real features are no ids";
}

TEST(MmsslModel, RefusesWhatCannotBe) {
  for (const Settings& wrong :
       {Settings{{"embedding_size", 30, "test"}}, Settings{{"d_hidden", Json::array({5}), "test"}},
        Settings{{"d_dropout", Json::array({.5}), "test"}},
        Settings{{"bag_modalities", Json::array({"texts"}), "test"}},
        Settings{{"real", "softmax_all", "test"}, {"tau_r", 1, "test"}},
        Settings{{"variant", "released", "test"}, {"real_tau", "noise_only", "test"}}}) {
    EXPECT_THROW(Instance(small_data(2), wrong), InputError) << wrong[0].name;
  }
  Dataset bare = small_data(1);
  bare.features.clear();
  EXPECT_THROW(Instance(bare, {}), InputError);
  Instance noise(small_data(2), {{"variant", "released", "test"},
                                 {"real_tau", "noise_only", "test"},
                                 {"adv_engine", "reference", "test"}});
  EXPECT_TRUE(std::isfinite(noise.step().total.item<double>()));
}

/// A step on the train graph, then one on generated graphs.
void expect_trains(const Settings& settings, const std::string& what) {
  Instance instance(small_data(2), settings);
  EXPECT_TRUE(std::isfinite(instance.step().total.item<double>())) << what;
  instance.model->end_epoch(0, {});
  instance.batch.step = 3;
  EXPECT_TRUE(std::isfinite(instance.step().total.item<double>())) << what << ", third step";
}

TEST(MmsslModel, EveryFlagTrains) {
  for (const auto& ablation : find_model("MMSSL").ablations({"image", "text"})) {
    Settings settings;
    for (const auto& [name, value] : ablation.settings) {
      if (name != "modalities" && name != "permute") settings.push_back({name, value, "test"});
    }
    expect_trains(settings, ablation.label);
  }
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, Json>>{{"prop_norm", "left"},
                                                 {"prop_order", "sequential_softmax"},
                                                 {"dep_mode", "linear"},
                                                 {"feat_norm", "l2"},
                                                 {"missing", "mean"},
                                                 {"d_steps", 2},
                                                 {"graph_refresh", 1},
                                                 {"real", "softmax_all"},
                                                 {"real_copies", true},
                                                 {"generated_graph", "empty"}}) {
    expect_trains({{name, value, "test"}}, name);
  }
}

TEST(MmsslModel, GraphsAreNewAfterSoManySteps) {
  const auto other = torch::full({64, 48}, -1.0) + 2 * torch::eye(64).slice(1, 0, 48);
  for (const int64_t period : {1, 2}) {
    Instance instance(small_data(2), {{"graph_refresh", period, "test"}});
    const auto edges_at = [&](int64_t step) {
      instance.batch.step = step;
      instance.step();
      return instance.saved().weights.at("image.edges");
    };
    const auto built = [](const torch::Tensor& edges) { return !(edges == -2).any().item<bool>(); };
    for (int64_t step = 1; step <= period; ++step) EXPECT_FALSE(built(edges_at(step))) << step;
    const auto first = edges_at(period + 1);
    EXPECT_TRUE(built(first)) << period;
    // Other content gives other edges, once they are due.
    instance.set("image.weight", other);
    for (int64_t step = period + 2; step <= 2 * period; ++step) {
      EXPECT_TRUE(torch::equal(edges_at(step), first)) << step;
    }
    EXPECT_FALSE(torch::equal(edges_at(2 * period + 1), first)) << period;
  }
  // Never, and once an epoch.
  for (const auto& [period, wanted] :
       std::vector<std::pair<int64_t, bool>>{{0, false}, {-1, true}}) {
    Instance instance(small_data(2), {{"graph_refresh", period, "test"}});
    instance.batch.step = 7;
    instance.step();
    EXPECT_TRUE((instance.saved().weights.at("image.edges") == -2).all().item<bool>());
    instance.model->end_epoch(0, {});
    EXPECT_NE((instance.saved().weights.at("image.edges") == -2).all().item<bool>(), wanted);
  }
}

// mmssl section 3: the train graph stands in for the generated ones in the first two steps; from
// then on there are none.
TEST(MmsslModel, EmptyGraphsAfterTwoSteps) {
  Instance instance(small_data(2), {{"generated_graph", "empty", "test"}});
  EXPECT_FALSE(instance.saved().weights.contains("image.edges"));
  const double constant = 2 * std::log(2 * static_cast<double>(instance.batch.size()) - 1);
  for (const int64_t step : {1, 2, 3, 4}) {
    instance.batch.step = step;
    const double found = part(instance.step(), "contrast");
    if (step <= 2) {
      EXPECT_GT(std::abs(found - constant), 1e-3) << step;
    } else {
      EXPECT_NEAR(found, constant, 1e-4) << step;
    }
  }
}

// mmssl sections 1.5 to 1.8 over the edges that the checkpoint holds, for each way of joining the
// modalities' vectors; h is E^0 where there is neither propagation nor content.
TEST(MmsslModel, DependencyAndContrastReadTheStoredEdges) {
  for (const auto& mode : std::vector<std::string>{"attention", "mean", "linear"}) {
    Instance instance(small_data(2), {{"dep_mode", mode, "test"},
                                      {"use_asl", false, "test"},
                                      {"omega", 0, "test"},
                                      {"n_layers", 0, "test"},
                                      {"eta", 0.7, "test"},
                                      {"dropout", 0, "test"}});
    instance.model->train(true);
    instance.model->end_epoch(0, {});
    const auto weights = instance.saved().weights;
    const auto &users = weights.at("user_embedding"), &items = weights.at("item_embedding");
    std::vector<torch::Tensor> eu, ei;
    for (const char* name : {"image.edges", "text.edges"}) {
      const auto graph = neighbour_graph(weights.at(name), instance.data.n_items);
      eu.push_back(to_users(graph, items, EdgeWeight::receiver));
      ei.push_back(to_items(graph, users, EdgeWeight::receiver));
    }
    const auto joined = [&](const std::vector<torch::Tensor>& e) {
      if (mode == "attention") {
        return modal_attention(e, weights.at("attention.query"), weights.at("attention.key"), 4);
      }
      const auto mean = (e[0] + e[1]) / 2;
      if (mode == "mean") return mean;
      const auto& blocks = weights.at("attention.blocks");  // four of d x d, one below the other
      torch::Tensor sum = torch::zeros({64, 64});
      for (int64_t n = 0; n < 4; ++n) sum = sum + blocks.slice(0, 64 * n, 64 * (n + 1));
      return mean.mm(sum);
    };
    const auto hu = users + 0.7 * unit_rows(joined(eu)), hi = items + 0.7 * unit_rows(joined(ei));
    const auto found = instance.vectors();
    EXPECT_TRUE(torch::allclose(found.users, hu, 1e-4, 1e-6)) << mode;
    EXPECT_TRUE(torch::allclose(found.items, hi, 1e-4, 1e-6)) << mode;
    const auto own = torch::arange(instance.batch.size());
    const auto h = unit_rows(hu.index_select(0, instance.batch.users));
    double contrast = 0;
    for (const auto& e : eu) {
      const auto unit = unit_rows(e.index_select(0, instance.batch.users));
      contrast += info_nce_composed(unit, torch::cat({h, unit}), own, own + own.size(0), 0.5)
                      .item<double>();
    }
    instance.batch.step = 5;
    EXPECT_NEAR(part(instance.step(), "contrast"), contrast, 1e-4) << mode;
  }
}

/// h of a model without IDs against nrm(F_u), nrm(F_i) of the rows X, and R_feat against their
/// squares. x float64 [n_items, d]
void expect_content(Instance& instance, const torch::Tensor& x) {
  const Dataset& data = instance.data;
  const int64_t d = x.size(1);
  auto u = torch::zeros({data.n_users, d}, torch::kFloat64);
  auto i = torch::zeros({data.n_items, d}, torch::kFloat64);
  for (int64_t user = 0; user < data.n_users; ++user) {
    const auto row = data.train_distinct.of(user);
    for (const int32_t item : row) {
      u[user].add_(x[item] / std::sqrt(static_cast<double>(row.size())));
    }
  }
  const auto counts = item_counts(data.train_distinct, data.n_items);
  for (int64_t user = 0; user < data.n_users; ++user) {
    for (const int32_t item : data.train_distinct.of(user)) {
      i[item].add_(u[user] / std::sqrt(counts[item].item<double>()));
    }
  }
  for (const char* name : {"user_embedding", "item_embedding"}) {
    instance.set(name, torch::zeros({name[0] == 'u' ? data.n_users : data.n_items, d}));
  }
  const auto found = instance.vectors();
  EXPECT_TRUE(torch::allclose(found.users.to(torch::kFloat64), unit_rows(u), 1e-4, 1e-6));
  EXPECT_TRUE(torch::allclose(found.items.to(torch::kFloat64), unit_rows(i), 1e-4, 1e-6));
  const double squares = (u.square().sum() + i.square().sum()).item<double>();
  EXPECT_NEAR(part(instance.step(), "feat_reg"), squares / 2 / static_cast<double>(data.n_items),
              1e-5 * squares);
}

// mmssl sections 1.10 and 5.
TEST(MmsslModel, ContentOfBagsAndOfItemsWithoutAModality) {
  const Settings content = {{"use_asl", false, "test"},    {"use_cl", false, "test"},
                            {"use_dep", false, "test"},    {"n_heads", 1, "test"},
                            {"embedding_size", 2, "test"}, {"feat_norm", "none", "test"},
                            {"omega", 1, "test"},          {"dropout", 0, "test"}};
  const auto bias = torch::tensor({.5, -.25}, torch::kFloat64);
  {
    // Item 0 lists 9 and 7, item 1 all three, item 2 nothing, item 3 has no row.
    Settings settings = content;
    settings.push_back({"bag_modalities", Json::array({"text"}), "test"});
    settings.push_back({"bag_padding", 33, "test"});
    const auto ids = matrix(3, 3, {9, 7, 33, 3, 7, 9, 33, 33, 33});
    Instance instance(g1_data(feature_of("text", ids, {0, 1, 2, -1})), settings);
    const auto bag = matrix(3, 2, {1, 2, -3, 1, 2, 4});  // of 3, 7, 9
    instance.set("text.bag", bag);
    instance.set("text.bias", bias);
    auto x = torch::zeros({4, 2}, torch::kFloat64);
    x[0] = (bag[1] + bag[2]) / 2 + bias;
    x[1] = bag.mean(0) + bias;
    expect_content(instance, x);
  }
  // Item 1 has no row, and no bias either; under missing = mean it has the others' mean.
  for (const auto& missing : std::vector<std::string>{"zero", "mean"}) {
    Settings settings = content;
    settings.push_back({"missing", missing, "test"});
    const auto rows = matrix(3, 3, {1, 0, 2, 0, 1, 1, 2, 2, -1});
    Instance instance(g1_data(feature_of("image", rows, {0, -1, 1, 2})), settings);
    const auto weight = matrix(2, 3, {1, .5, 0, -1, 1, 2});
    instance.set("image.weight", weight);
    instance.set("image.bias", bias);
    auto x = torch::zeros({4, 2}, torch::kFloat64);
    for (const auto& [item, row] :
         std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {2, 1}, {3, 2}}) {
      x[item] = weight.mv(rows[row]) + bias;
    }
    if (missing == "mean") x[1] = weight.mv(rows.mean(0)) + bias;
    expect_content(instance, x);
  }
}

// mmssl section 1.10: d_steps steps of the discriminator, each with fresh masks; the published
// code's real rows come from a forward of their own. Without noise, without masks in the
// discriminator and without an update the dropout on the features is all that differs.
TEST(MmsslModel, EveryDiscriminatorStepDrawsAnew) {
  const auto d_real = [](double dropout, int64_t d_steps) {
    Instance instance(small_data(2), {{"variant", "released", "test"},
                                      {"use_gumbel", false, "test"},
                                      {"d_dropout", Json::array({0.0, 0.0}), "test"},
                                      {"d_lr", 0, "test"},
                                      {"dropout", dropout, "test"},
                                      {"d_steps", d_steps, "test"}});
    return part(instance.step(), "d_real");
  };
  EXPECT_NE(d_real(0.2, 2), d_real(0.2, 1));
  EXPECT_EQ(d_real(0, 2), d_real(0, 1));
}

// --- a training -------------------------------------------------------------------------------
std::vector<Json> lines_of(const fs::path& path) {
  std::vector<Json> out;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) out.push_back(Json::parse(line));
  return out;
}

// mmssl section 11: what the log says of the losses and of the generated graphs.
TEST(MmsslTraining, LogsPartsSharesAndOverlap) {
  const Dataset data = small_data(3);
  const fs::path folder = scratch("mmssl_log");
  Trained trained(find_model("MMSSL"), data, {{"epochs", 1, "test"}, {"graph_topk", 5, "test"}},
                  folder);
  Json graphs, losses;
  for (const Json& line : lines_of(folder / "metrics.jsonl")) {
    if (line.value("event", "") == "graphs") graphs = line;
    if (line.value("phase", "") == "train") losses = line.at("loss");
  }
  for (const char* name : {"bpr", "reg", "feat_reg", "contrast", "generator", "d_fake", "d_real",
                           "d_penalty", "d_slope", "d_gradient"}) {
    ASSERT_TRUE(losses.contains(name)) << name;
    EXPECT_TRUE(std::isfinite(losses[name].get<double>())) << name;
  }
  EXPECT_NEAR(losses["generator"].get<double>(), -losses["d_fake"].get<double>(), 0.2);
  EXPECT_GT(losses["d_slope"].get<double>(), 0);
  EXPECT_GT(losses["d_gradient"].get<double>(), 0);

  State state;
  trained.model->state(state);
  const auto weights = state.save().weights;
  std::vector<std::set<std::pair<int64_t, int32_t>>> edges;
  ASSERT_TRUE(graphs.is_object());
  EXPECT_EQ(graphs.at("epoch").get<int64_t>(), 0);
  for (const char* name : {"image", "text", "audio"}) {
    const auto& table = weights.at(std::string(name) + ".edges");
    auto& own = edges.emplace_back();
    int64_t n_train = 0;
    for (int64_t u = 0; u < data.n_users; ++u) {
      for (int64_t k = 0; k < table.size(1); ++k) {
        const auto item = table[u][k].item<int32_t>();
        if (item < 0 || !own.insert({u, item}).second) continue;
        const auto row = data.train.of(u);
        n_train += std::find(row.begin(), row.end(), item) != row.end();
      }
    }
    ASSERT_FALSE(own.empty());
    EXPECT_NEAR(graphs.at("train_share").at(name).get<double>(),
                static_cast<double>(n_train) / static_cast<double>(own.size()), 1e-12)
        << name;
  }
  double sum = 0;
  for (size_t a = 0; a < 3; ++a) {
    for (size_t b = 0; b < a; ++b) {
      const auto n = std::count_if(edges[a].begin(), edges[a].end(),
                                   [&](const auto& edge) { return edges[b].contains(edge); });
      sum += static_cast<double>(n) / static_cast<double>(edges[a].size());
    }
  }
  EXPECT_NEAR(graphs.at("overlap").get<double>(), sum / 3, 1e-12);
  fs::remove_all(folder);
}

// The contract tests resume and bundle the default; the published code's form has parameters and
// graphs of its own.
TEST(MmsslTraining, ReleasedResumesBitEqualAndScoresFromItsBundle) {
  const Dataset data = small_data(2);
  const ModelInfo& info = find_model("MMSSL");
  const Settings settings = {{"variant", "released", "test"}, {"epochs", 2, "test"}};
  const fs::path whole = scratch("mmssl_whole"), broken = scratch("mmssl_broken");
  Trained unbroken(info, data, settings, whole);
  struct Killed {};
  EXPECT_THROW(Trained(info, data, settings, broken, false,
                       [](int64_t now) {
                         if (now == 0) throw Killed{};
                       }),
               Killed);
  Trained resumed(info, data, settings, broken, true);
  EXPECT_TRUE(torch::equal(unbroken.scores(), resumed.scores()));
  EXPECT_EQ(without_times(whole / "metrics.jsonl"), without_times(broken / "metrics.jsonl"));
  const auto state_of = [](Model& model) {
    State state;
    model.state(state);
    return state.save();
  };
  const auto x = state_of(*unbroken.model), y = state_of(*resumed.model);
  EXPECT_TRUE(x.weights.contains("attention.blocks"));
  for (const auto& [name, tensor] : x.optimizer) {
    EXPECT_TRUE(torch::equal(tensor, y.optimizer.at(name))) << name;
  }
  const fs::path folder = scratch("mmssl_bundle");
  save_bundle(folder, *unbroken.model, unbroken.data, info, unbroken.settings, Json::object());
  const Bundle bundle = load_bundle(folder);
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(unbroken.scores(),
                           bundle.model->score({torch::arange(data.n_users, torch::kInt64), {}})));
  for (const auto& path : {whole, broken, folder}) fs::remove_all(path);
}

}  // namespace
}  // namespace tessera
