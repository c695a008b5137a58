// Golden instances of BM3: specs bm3 section 12, "computed by an independent double-precision
// script" and, for the settings of section 4a, by automatic differentiation in double.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <map>

#include "tessera/base/error.h"
#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/losses.h"
#include "tessera/train/train.h"
#include "tests/planted.h"

namespace tessera {
namespace {

torch::Tensor matrix(int64_t rows, int64_t cols, std::vector<float> values) {
  return torch::tensor(values).reshape({rows, cols});
}

Feature feature(const std::string& name, const torch::Tensor& rows) {
  Feature f;
  f.name = name;
  f.rows = MappedArray(rows);
  f.row_of_item = torch::arange(rows.size(0), torch::kInt32);
  return f;
}

Dataset instance() {
  const std::vector<int32_t> users = {0, 0, 1, 1}, items = {0, 1, 1, 2};
  return make_dataset(
      2, 3, make_interactions(2, users, items), {}, {},
      {feature("image", matrix(3, 2, {1, 0, 0, 2, 1, 1})), feature("text", torch::eye(3))});
}

/// The model with the golden values, and one batch of all pairs.
struct Golden {
  Dataset data = instance();
  std::unique_ptr<Model> model;
  Batch batch;

  explicit Golden(Settings extra, bool mlp = false) {
    Settings settings = {{"embedding_size", 2, "test"},
                         {"dropout", 0, "test"},
                         {"n_layers", 1, "test"},
                         {"reg_weight", 0.1, "test"}};
    settings.insert(settings.end(), extra.begin(), extra.end());
    const ModelInfo& info = find_model("BM3");
    const RunSettings resolved = resolve_settings(info, settings);
    model = info.make(settings, Context{data.view(), Random(1), resolved.train_settings, {}});
    State state;
    model->state(state);
    State::Saved saved = state.save();
    saved.weights["user_embedding"] = torch::eye(2);
    saved.weights["item_embedding"] = matrix(3, 2, {1, 1, 0, 1, 1, -1});
    saved.weights["predictor.weight"] = matrix(2, 2, {1, .5, -.5, 1});
    saved.weights["predictor.bias"] = torch::tensor({.1F, -.2F});
    saved.optimizer["image.projection.weight"] = torch::eye(2);
    saved.optimizer["image.projection.bias"] = torch::tensor({0.F, .5F});
    saved.optimizer["text.projection.weight"] = matrix(2, 3, {1, 2, 0, 0, 1, -1});
    saved.optimizer["text.projection.bias"] = torch::tensor({.5F, 0.F});
    if (mlp) {
      for (const std::string name : {"predictor", "image.projection", "text.projection"}) {
        auto& file = name == "predictor" ? saved.weights : saved.optimizer;
        file[name + ".weight2"] = matrix(2, 2, {.5, -1, 1, .25});
        file[name + ".bias2"] = torch::tensor({.1F, .3F});
      }
    }
    state.load(saved);
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, table] : group.tables) {
        table->configure({[](int64_t) { return 1e-3; }});
      }
    }
    batch.step = 1;
    batch.users = torch::tensor({0, 0, 1, 1}, torch::kInt64);
    batch.positives = torch::tensor({0, 1, 1, 2}, torch::kInt64);
    batch.distinct_users = torch::tensor({0, 1}, torch::kInt64);
    batch.distinct_items = torch::tensor({0, 1, 2}, torch::kInt64);
    batch.user_inverse = batch.users;
    batch.positive_inverse = batch.positives;
  }

  Loss run() {
    model->train(true);
    Loss loss = model->loss(batch);
    loss.total.backward();
    return loss;
  }

  torch::Tensor gradient(const std::string& wanted) {
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, tensor] : group.tensors) {
        if (name == wanted) return tensor->grad();
      }
      for (const auto& [name, table] : group.tables) {
        if (name == wanted) return table->gradient();
      }
    }
    return {};
  }
};

void expect_near(const torch::Tensor& found, const std::vector<double>& wanted) {
  ASSERT_TRUE(found.defined());
  ASSERT_EQ(found.numel(), static_cast<int64_t>(wanted.size()));
  const auto flat = found.detach().flatten().to(torch::kDouble);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), wanted[i], 2e-6) << "entry " << i;
  }
}

double part(const Loss& loss, const std::string& name) {
  for (const auto& [key, value] : loss.parts) {
    if (key == name) return value.item<double>();
  }
  return std::nan("");
}

TEST(Bm3Golden, Released) {
  Golden golden({{"cl_weight", 2, "test"}});
  const Loss loss = golden.run();
  EXPECT_NEAR(part(loss, "user_to_item"), .541070, 1e-6);
  EXPECT_NEAR(part(loss, "item_to_user"), .379953, 1e-6);
  EXPECT_NEAR(part(loss, "align_image"), .246084, 1e-6);
  EXPECT_NEAR(part(loss, "align_text"), .749201, 1e-6);
  EXPECT_NEAR(part(loss, "mask_image"), .154138, 1e-6);
  EXPECT_NEAR(part(loss, "mask_text"), .121520, 1e-6);
  EXPECT_NEAR(part(loss, "reg"), 1.563472, 1e-6);
  EXPECT_NEAR(loss.total.item<double>(), 3.619257, 2e-6);
  expect_near(golden.gradient("user_embedding"), {.097343, -.157960, .013445, -.089721});
  expect_near(golden.gradient("item_embedding"),
              {.130333, -.147137, .012856, -.069411, -.050555, -.191816});
  expect_near(golden.gradient("predictor.weight"), {-.900863, 1.015491, -2.563656, -1.215708});
  expect_near(golden.gradient("predictor.bias"), {-.585188, -1.927586});
  expect_near(golden.gradient("image.features"),
              {.167004, -.509801, .370322, -.024896, -.069887, .058746});
  expect_near(golden.gradient("text.projection.bias"), {-.239365, -1.164281});
}

TEST(Bm3Golden, VectorsAndScores) {
  Golden golden({});
  golden.model->train(false);
  auto& factors = dynamic_cast<GraphModel&>(*golden.model);
  const torch::NoGradGuard no_grad;
  const Vectors h = factors.propagate();
  expect_near(h.users, {.853553, .603553, .353553, .396447});
  expect_near(h.items, {1.853553, 1.5, .25, 1.75, 1.5, -1.146447});
  expect_near(golden.model->score({torch::tensor({0, 1}, torch::kInt64), {}}),
              {3.385184, 1.504686, 1.337630, 1.769454, .826456, .627992});
}

TEST(Bm3Golden, SquaredAndUnitWeights) {
  Golden golden({{"reg", "squared", "test"}, {"cl_weight", 1, "test"}});
  const Loss loss = golden.run();
  EXPECT_NEAR(loss.total.item<double>(), 2.420091, 2e-6);
  EXPECT_NEAR(part(loss, "reg"), 2.281250, 1e-6);
  expect_near(golden.gradient("user_embedding"), {.119256, -.125487, .028025, -.074008});
  expect_near(golden.gradient("predictor.weight"), {-.517023, .539077, -1.513401, -.719555});
}

TEST(Bm3Golden, WithoutStopGradient) {
  Golden golden({{"stop_gradient", false, "test"}});
  const Loss loss = golden.run();
  EXPECT_NEAR(loss.total.item<double>(), 3.619257, 2e-6);
  expect_near(golden.gradient("user_embedding"), {-.273040, .015752, -.433152, .057399});
  expect_near(golden.gradient("predictor.weight"), {-.900863, 1.015491, -2.563656, -1.215708});
}

TEST(Bm3Golden, MlpProjectionsAndPredictor) {
  Golden golden({{"reg", "squared", "test"},
                 {"cl_weight", 1, "test"},
                 {"projection", "mlp", "test"},
                 {"predictor", "mlp", "test"}},
                true);
  const Loss loss = golden.run();
  EXPECT_NEAR(loss.total.item<double>(), 2.806456, 2e-6);
  EXPECT_NEAR(part(loss, "user_to_item"), .356533, 1e-6);
  EXPECT_NEAR(part(loss, "item_to_user"), .379137, 1e-6);
  EXPECT_NEAR(part(loss, "align_image") + part(loss, "align_text"), 1.630576, 2e-6);
  EXPECT_NEAR(part(loss, "mask_image") + part(loss, "mask_text"), .212085, 2e-6);
  expect_near(golden.gradient("user_embedding"), {-.041499, .090137, -.096660, .130667});
  expect_near(golden.gradient("predictor.weight"), {-.188947, -1.390152, .352042, 1.611166});
}

TEST(Bm3Golden, PairsPermutedAndBatchRows) {
  Golden one({}), other({});
  other.batch.users = torch::tensor({1, 0, 1, 0}, torch::kInt64);
  other.batch.positives = torch::tensor({2, 1, 1, 0}, torch::kInt64);
  other.batch.user_inverse = other.batch.users;
  other.batch.positive_inverse = other.batch.positives;
  EXPECT_NEAR(one.run().total.item<double>(), other.run().total.item<double>(), 1e-6);
  // Trap: features outside the batch get no gradient, the ID tables get one everywhere.
  Golden part_of({});
  part_of.batch.users = part_of.batch.user_inverse = torch::tensor({0}, torch::kInt64);
  part_of.batch.distinct_users = torch::tensor({0}, torch::kInt64);
  part_of.batch.positives = torch::tensor({1}, torch::kInt64);
  part_of.batch.positive_inverse = torch::tensor({0}, torch::kInt64);
  part_of.batch.distinct_items = torch::tensor({1}, torch::kInt64);
  part_of.run();
  EXPECT_EQ(part_of.gradient("image.features").size(0), 1);
  EXPECT_GT(part_of.gradient("item_embedding")[2].abs().max().item<double>(), 0);
}

// bm3 section 1: Baby has 33,570,688 parameters with image 4096 and text 384.
TEST(Bm3Golden, ParameterCountAndInitialBounds) {
  const int64_t n_users = 40, n_items = 30, image = 24, text = 12, d = 64;
  const std::vector<int32_t> users = {0, 1}, items = {0, 1};
  const Dataset data =
      make_dataset(n_users, n_items, make_interactions(n_users, users, items), {}, {},
                   {feature("image", torch::ones({n_items, image})),
                    feature("text", torch::ones({n_items, text}))});
  const ModelInfo& info = find_model("bm3");
  auto model = info.make({}, Context{data.view(), Random(3), {}, {}});
  int64_t n = 0;
  double low = 1, high = -1;
  for (const auto& group : model->parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) {
      n += tensor->numel();
      if (name.ends_with("bias")) {
        EXPECT_GT(tensor->abs().max().item<double>(), 0) << name << " must not start at zero";
      }
      if (name == "user_embedding") {
        low = tensor->min().item<double>();
        high = tensor->max().item<double>();
      }
    }
    for (const auto& [name, table] : group.tables) n += table->n_rows() * table->width();
  }
  EXPECT_EQ(n, d * (n_users + n_items) + 4160 + n_items * image + d * image + d + n_items * text +
                   d * text + d);
  const double bound = std::sqrt(6.0 / (n_users + d));
  EXPECT_GE(low, -bound);
  EXPECT_LE(high, bound);
  EXPECT_GT(high, 0.9 * bound);
}

TEST(Bm3Golden, StartValueIsNearTen) {
  Dataset data = instance();
  const ModelInfo& info = find_model("BM3");
  double sum = 0;
  constexpr int kSeeds = 20;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const TrainSettings train;
    auto model = info.make({{"reg_weight", 0, "test"}},
                           Context{data.view(), Random(static_cast<uint64_t>(seed)), train, {}});
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, table] : group.tables) table->configure({[](int64_t) { return 0.; }});
    }
    Sampler sampler(data.view(), model->batch_spec(), 2048, Random(7));
    sampler.begin_epoch(0);
    model->train(true);
    const double loss = model->loss(sampler.batch(0, 1)).total.item<double>();
    EXPECT_GT(loss, 0);
    EXPECT_LT(loss, 20);  // the cosine part lies in [0, 4 + 4 M cl_weight]
    sum += loss;
  }
  EXPECT_NEAR(sum / kSeeds, 10, 1);
}

TEST(Bm3Golden, NeedsFeaturesAndDrawsNoNegatives) {
  const std::vector<int32_t> users = {0, 1}, items = {0, 1};
  const Dataset bare = make_dataset(2, 2, make_interactions(2, users, items));
  EXPECT_THROW(find_model("BM3").make({}, Context{bare.view(), Random(1), {}, {}}), InputError);
  Golden golden({});
  EXPECT_EQ(golden.model->batch_spec().n_negatives, 0);
}

// Traps 3, 6 and 10 with dropout: the loss in plain tensor operations, masks drawn for whole
// tables.
TEST(Bm3Golden, DropoutMasksTargetsOnly) {
  Golden golden({{"dropout", 0.5, "test"}, {"reg_weight", 0, "test"}});
  // Item 1 occurs twice: both pairs and all terms meet the same i'.
  golden.batch.step = 3;
  const double found = golden.run().total.item<double>();

  const auto values = [&] {
    State state;
    golden.model->state(state);
    return state.save();
  }();
  const auto& w = values.weights;
  const auto& o = values.optimizer;
  const auto linear = [](const torch::Tensor& x, const torch::Tensor& weight,
                         const torch::Tensor& bias) { return x.matmul(weight.t()) + bias; };
  const auto predict = [&](const torch::Tensor& x) {
    return linear(x, w.at("predictor.weight"), w.at("predictor.bias"));
  };
  const auto away = [](const torch::Tensor& a, const torch::Tensor& b) {
    return 1 - torch::cosine_similarity(a, b).mean();
  };
  const torch::NoGradGuard no_grad;
  const Vectors h = dynamic_cast<GraphModel&>(*golden.model).propagate();
  const auto dropped = [&](const torch::Tensor& x, const std::string& name) {
    return x * dropout_mask(torch::arange(x.size(0)), 2, 0.5, Random(1).stream("drop." + name), 3);
  };
  const auto u = golden.batch.users, i = golden.batch.positives;
  const auto target_u = dropped(h.users, "user"), target_i = dropped(h.items, "item");
  auto wanted = away(predict(h.users).index_select(0, u), target_i.index_select(0, i)) +
                away(predict(h.items).index_select(0, i), target_u.index_select(0, u));
  for (const std::string m : {"image", "text"}) {
    const auto x =
        linear(o.at(m + ".features"), o.at(m + ".projection.weight"), o.at(m + ".projection.bias"));
    const auto online = predict(x).index_select(0, i);
    wanted = wanted + 2 * away(online, target_i.index_select(0, i)) +
             2 * away(online, dropped(x, "modality." + m).index_select(0, i));
  }
  EXPECT_NEAR(found, wanted.item<double>(), 2e-6);
}

TEST(Bm3Golden, ScaleOfTargetsDoesNotMatter) {
  const auto a = torch::tensor({{1.F, 2.F}, {-1.F, .5F}}),
             b = torch::tensor({{.3F, -2.F}, {1.F, 1.F}});
  const auto each = torch::full({2}, .5);
  EXPECT_NEAR(cosine_loss(a, b, each).item<double>(),
              cosine_loss(a, b * torch::tensor({{7.F}, {.2F}}), each).item<double>(), 1e-6);
}

// Trap 9, and section 12: below the start value after one epoch.
TEST(Bm3Golden, LearningRateIsConstantAndOneEpochImproves) {
  const Dataset data = planted_pairs({});
  const ModelInfo& info = find_model("BM3");
  const RunSettings settings = resolve_settings(info, {});
  auto model = info.make({}, Context{data.view(), Random(5), settings.train_settings, {}});
  for (const auto& group : model->parameter_groups()) {
    EXPECT_FALSE(group.learning_rate) << group.name << " has a schedule of its own";
  }
  TrainConfig config;
  config.settings = settings.train_settings;
  config.settings.epochs = 2;
  config.settings.train_batch_size = 256;
  config.protocol = find_protocol("mmrec");
  std::vector<double> losses;
  config.log = Log([&](Level, const std::string& line) {
    const size_t at = line.find("train loss: ");
    if (at != std::string::npos) losses.push_back(std::stod(line.substr(at + 12)));
  });
  train_model(*model, data, config);
  ASSERT_EQ(losses.size(), 2u);
  EXPECT_LT(losses[1], losses[0]);
  EXPECT_LT(losses[1], 10);
}

}  // namespace
}  // namespace tessera
