// Golden checks of MMSSL: specs mmssl section 10, "every number obtained in two independent ways",
// and the acceptance tests of its section 11.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>

#include "tessera/base/error.h"
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
  // The published code's order: items from new users, softmax in the last layer.
  const auto u1 = to_users(graph, items, EdgeWeight::receiver);
  expect_near(u1, {.707107, 2.121320, -.707107, .707107, -1, 0});
  const auto i1 = to_items(graph, u1, EdgeWeight::receiver);
  expect_near(i1, {.707107, 2.121320, 0, 2, -1.207107, .5, 0, 0});
  expect_near(torch::softmax(to_users(graph, i1, EdgeWeight::receiver), 1),
              {.082095, .917905, .067779, .932221, .153539, .846461});
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
  expect_near(dense_rows(all), {.707095, .003325, .707095, .003331, .003344});
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
  const auto run = [&](const std::vector<double>& d, const std::vector<double>& rho, double value,
                       const std::vector<double>& w1, const std::vector<double>& b1,
                       const std::vector<double>& w, double b) {
    const auto pass = critic_pass(critic, rows.mm(critic.layers[0].weight), {});
    expect_near(pass.score, d);
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
  run({.725518, .271901, .536684}, {.186016, .227656, .073282}, .211789,
      {-.008304, .020245, -.013934, -.012779, .014336, -.016960, -.003190, .017646},
      {.009584, .014423}, {-.024102, .025495}, -.001387);
  critic.form.batch_norm = true;
  critic.layers[0].gamma = torch::tensor({1.2, .8}, torch::kFloat64);
  critic.layers[0].beta = torch::tensor({0., .1}, torch::kFloat64);
  const Critic to =
      run({.874743, .118803, .470098}, {.026442, .034773, .037551}, .280579,
          {.002904, .001645, -.001719, -.002922, .000034, .002574, -.003476, -.000529},
          {.007077, .007237}, {-.023271, .017508}, -.003256);
  expect_near(to.layers[0].gamma, {-.017453, -.024522});
  expect_near(to.layers[0].beta, {-.002931, .003582});
}

TEST(MmsslGolden, G5Attention) {
  const auto e1 = matrix(1, 4, {1, 0, 2, -1}), e2 = matrix(1, 4, {0, 1, 1, 1});
  const auto query = matrix(4, 4, {1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1});
  const auto key = matrix(4, 4, {0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0});
  const auto mean = modal_attention({e1, e2}, query, key, 2);
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
  expect_near(rows_product(rows, w), {2.304820, -.139686});
}

// G7 (metrics) is in unit_eval: ndcg of three held-out items.

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
    model = info.make(settings, Context{data, Random(7), resolved.train_settings, {}});
    Sampler sampler(data, model->batch_spec(), batch_size, Random(7));
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
  State::Saved saved() {
    State state;
    model->state(state);
    return state.save();
  }
};

double part(const Loss& loss, const std::string& name) {
  for (const auto& [key, value] : loss.parts) {
    if (key == name) return value.item<double>();
  }
  return std::nan("");
}

void expect_close(const std::string& name, const torch::Tensor& found, const torch::Tensor& wanted,
                  double absolute) {
  ASSERT_TRUE(found.defined() && wanted.defined()) << name;
  EXPECT_LE((found - wanted).norm().item<double>(), 1e-4 * wanted.norm().item<double>() + absolute)
      << name;
}

// The discriminator's gradients are read off its first moments: m = (1 - beta1) g.
TEST(MmsslModel, LowrankEqualsReference) {
  const std::vector<Settings> kinds = {
      {},
      {{"d_norm", "none", "test"}},
      {{"d_out", "linear", "test"}},
      {{"fake", "masked_dot", "test"}, {"d_out", "sigmoid100", "test"}},
      {{"use_gumbel", false, "test"}, {"zeta", 0, "test"}},
      {{"variant", "released", "test"}},
      {{"variant", "released", "test"}, {"d_norm", "none", "test"}}};
  for (int n_modalities = 1; n_modalities <= 3; ++n_modalities) {
    for (const auto& kind : kinds) {
      Settings settings = {{"g_rate", 10, "test"}, {"d_lr", 0, "test"}};
      settings.insert(settings.end(), kind.begin(), kind.end());
      Settings dense = settings;
      dense.push_back({"adv_engine", "reference", "test"});
      Instance fast(small_data(n_modalities), settings), slow(small_data(n_modalities), dense);
      const Loss a = fast.step(), b = slow.step();
      const std::string what =
          fmt::format("{} modalities, {}", n_modalities, kind.empty() ? "" : kind[0].name);
      for (const char* name : {"d_fake", "d_real", "d_penalty", "d_slope", "generator"}) {
        EXPECT_NEAR(part(a, name), part(b, name), 1e-4 * std::abs(part(b, name)) + 1e-6)
            << what << ": " << name;
      }
      const auto x = fast.saved(), y = slow.saved();
      int n_compared = 0;
      double largest = 0;
      for (const auto& [name, tensor] : y.optimizer) {
        if (name.ends_with(".m")) largest = std::max(largest, tensor.norm().item<double>());
      }
      for (const auto& [name, tensor] : y.optimizer) {
        if (!name.ends_with(".m")) continue;
        ++n_compared;
        // Exactly 0 with identity and batch normalisation: compared absolutely.
        expect_close(what + ": " + name, x.optimizer.at(name), tensor,
                     name.find("bias") != std::string::npos ? 1e-5 * largest : 0);
      }
      EXPECT_GE(n_compared, 6);
      for (const char* name : {"user_embedding", "image.weight", "image.bias"}) {
        expect_close(what + ": " + name, fast.gradient(name), slow.gradient(name), 1e-7);
      }
    }
  }
}

TEST(MmsslModel, EverythingOffIsLightGcn) {
  const Settings off = {{"use_asl", false, "test"},     {"use_cl", false, "test"},
                        {"use_dep", false, "test"},     {"omega", 0, "test"},
                        {"feat_reg_weight", 0, "test"}, {"reg_weight", 0, "test"},
                        {"n_layers", 2, "test"}};
  Instance mmssl(small_data(2), off);
  const ModelInfo& info = find_model("LightGCN");
  const Settings plain = {{"n_layers", 2, "test"}, {"reg_weight", 0, "test"}};
  auto light = info.make(plain, Context{mmssl.data, Random(7), {}, {}});
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
  instance.model->begin_epoch(1, {});
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

TEST(MmsslModel, ZeroRowsHaveFiniteGradients) {
  PlantedOptions options;
  options.n_users = 60;
  options.n_items = 50;
  options.mean_rows = 4;
  options.missing = 0.8;  // users all of whose items lack a modality
  options.n_cold = 5;
  for (const char* engine : {"lowrank", "reference"}) {
    for (const char* variant : {"paper", "released"}) {
      Instance instance(planted_pairs(options),
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
      instance.model->begin_epoch(1, {});
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
        Settings{{"real", "softmax_all", "test"}},  // with tau_r = 1
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

TEST(MmsslModel, EveryFlagTrains) {
  for (const auto& ablation : find_model("MMSSL").ablations({"image", "text"})) {
    Settings settings;
    for (const auto& [name, value] : ablation.settings) {
      if (name != "modalities" && name != "permute") settings.push_back({name, value, "test"});
    }
    Instance instance(small_data(2), settings);
    EXPECT_TRUE(std::isfinite(instance.step().total.item<double>())) << ablation.label;
  }
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, Json>>{{"prop_norm", "left"},
                                                 {"prop_order", "sequential_softmax"},
                                                 {"dep_mode", "linear"},
                                                 {"feat_norm", "l2"},
                                                 {"missing", "mean"},
                                                 {"d_steps", 2},
                                                 {"graph_refresh", 1},
                                                 {"real_copies", true},
                                                 {"generated_graph", "empty"}}) {
    Instance instance(small_data(2), {{name, value, "test"}});
    EXPECT_TRUE(std::isfinite(instance.step().total.item<double>())) << name;
  }
}

}  // namespace
}  // namespace tessera
