// Golden numbers of the sequence models: specs sequential section 6, "each computed in two
// independent ways", parameter counts of section 4, self-checks of section 7, the planted test of
// section 5.4.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tessera/eval/sampled.h"
#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"
#include "tessera/model/sequence_model.h"
#include "tessera/nn/sequence_encoder.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/sequence_kernels.h"
#include "tessera/ops/sequence_losses.h"
#include "tessera/train/train.h"
#include "tests/gradient/numeric.h"
#include "tests/planted.h"

namespace tessera {
namespace {

torch::Tensor matrix(int64_t rows, int64_t cols, const std::vector<double>& values) {
  return torch::tensor(values, torch::kFloat64).reshape({rows, cols});
}

void expect_near(const torch::Tensor& found, const std::vector<double>& wanted,
                 double tolerance = 2e-6) {
  ASSERT_EQ(found.numel(), static_cast<int64_t>(wanted.size()));
  const auto flat = found.detach().flatten().to(torch::kDouble);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), wanted[i], tolerance)
        << "entry " << i;
  }
}

Pass pass_of(const std::vector<int64_t>& offsets) {
  Pass pass;
  pass.offsets = torch::tensor(offsets, torch::kInt64);
  return pass;
}

TEST(Golden, Attention) {
  const auto q = matrix(3, 2, {1, 0, 0, 2, 1, 1}), k = matrix(3, 2, {1, 1, 0, 1, 2, -1});
  const auto v = matrix(3, 2, {1, 2, 3, -1, 0, 4});
  const Pass pass = pass_of({0, 3});
  expect_near(attention(q, k, v, 1, true, 0, pass, ""), {1, 2, 2, .5, 1.248255, 1.751745}, 1e-6);
  expect_near(attention(q, k, v, 1, false, 0, pass, ""),
              {.704083, 2.731863, 1.942591, .600466, 1.248255, 1.751745}, 1e-6);
  // Values that are columns of an identity give the weights of the last query.
  const auto first = attention(q, k, matrix(3, 2, {1, 0, 0, 1, 0, 0}), 1, true, 0, pass, "");
  expect_near(first[2], {.503490, .248255}, 1e-6);
  const auto third = attention(q, k, matrix(3, 2, {0, 0, 0, 0, 1, 0}), 1, true, 0, pass, "");
  expect_near(third[2], {.248255, 0}, 1e-6);
}

/// The block of golden B.
struct Block {
  std::map<std::string, torch::Tensor> by_name;
  Transformer encoder;

  explicit Block(TransformerOptions options) {
    options.width = options.inner = 4;
    options.n_layers = 1;
    encoder = Transformer(
        "b", options,
        [&](const std::string& name, torch::Tensor initial) -> torch::Tensor& {
          return by_name[name] = initial.to(torch::kDouble);
        },
        Random(1));
    const auto weight = [&](const std::string& name, int a, int b, int c) {
      auto w = torch::empty({4, 4}, torch::kFloat64);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) w[i][j] = (((a * i + b * j + c) % 7) - 3) / 4.0;
      }
      if (by_name.contains("b.0." + name + ".weight")) by_name["b.0." + name + ".weight"] = w;
    };
    const auto bias = [&](const std::string& name, const std::vector<double>& values) {
      if (by_name.contains("b.0." + name + ".bias")) {
        by_name["b.0." + name + ".bias"] = torch::tensor(values, torch::kFloat64);
      }
    };
    weight("query", 3, 5, 0);
    weight("key", 5, 2, 0);
    weight("value", 2, 3, 0);
    weight("out", 4, 1, 0);
    weight("inner", 1, 4, 1);
    weight("outer", 6, 2, 3);
    bias("query", {0, .1, .2, .3});
    bias("key", {.2, .1, 0, -.1});
    bias("value", {.05, .1, .15, .2});
    bias("out", {.1, 0, -.1, .2});
    bias("inner", {.3, -.2, .1, 0});
    bias("outer", {0, .1, .2, -.3});
  }
  static torch::Tensor input() { return matrix(2, 4, {1, 0, -1, 2, 0, 1, 2, -1}); }
  torch::Tensor output() const { return encoder.blocks(input(), pass_of({0, 2})); }
  torch::Tensor after_last_norm() const { return encoder(input(), pass_of({0, 2})); }
};

TEST(Golden, OneBlock) {
  TransformerOptions original;
  expect_near(Block(original).output(),
              {1.157426, 1.216558, -1.469313, -1.251796, -.463017, 1.105307, 1.373055, -1.304815});
  expect_near(Block(original).after_last_norm(),
              {.974883, 1.021214, -1.083265, -.912832, -.578968, .838358, 1.080328, -1.339718});
  TransformerOptions two_heads = original;
  two_heads.n_heads = 2;
  expect_near(Block(two_heads).output(),
              {1.157426, 1.216558, -1.469313, -1.251796, -1.174747, -.313843, 1.322695, .240895});
  TransformerOptions no_out = original;
  no_out.out_proj = false;
  expect_near(Block(no_out).output(),
              {-1.712092, .021026, -.159985, -.855999, -.906268, .986498, 1.550017, -1.011448});
  TransformerOptions post;
  post.norm = TransformerOptions::Norm::post;
  post.eps = 1e-12;
  post.gelu = true;
  expect_near(Block(post).output(),
              {1.061928, .919172, -1.170903, -.810197, -.169392, .880911, .857124, -1.568643});
  EXPECT_TRUE(torch::equal(Block(post).output(), Block(post).after_last_norm()));
  post.causal = false;
  expect_near(Block(post).output(),
              {1.173588, -.561130, -1.335858, .723400, -.169392, .880911, .857124, -1.568643});
}

TEST(Golden, GruCell) {
  double w_in[6][2], w_hidden[6][2];
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 2; ++j) {
      w_in[i][j] = (((2 * i + j + 1) % 5) - 2) / 4.0;
      w_hidden[i][j] = (((i + 3 * j + 2) % 5) - 2) / 4.0;
    }
  }
  const auto step = [&](const double* x, const double* h, double* gates, double* after) {
    double in[6], hidden[6];
    for (int i = 0; i < 6; ++i) {
      in[i] = w_in[i][0] * x[0] + w_in[i][1] * x[1];
      hidden[i] = w_hidden[i][0] * h[0] + w_hidden[i][1] * h[1];
    }
    kernels::gru_step(kernels::GruStep<double>{in, hidden, h, gates, after}, 2);
  };
  const double first[] = {1, -.5}, second[] = {.3, .8}, start[] = {.2, -.4};
  double gates[8], one[2], two[2];
  step(first, start, gates, one);
  const double wanted[] = {.487503, .537430, .431680, .419458, .556759, -.141557};
  for (int i = 0; i < 6; ++i) EXPECT_NEAR(gates[i], wanted[i], 1e-6);
  EXPECT_NEAR(one[0], .402753, 1e-6);
  EXPECT_NEAR(one[1], -.249963, 1e-6);
  step(second, one, gates, two);
  EXPECT_NEAR(two[0], -.001640, 1e-6);
  EXPECT_NEAR(two[1], -.117493, 1e-6);
}

TEST(Golden, Losses) {
  auto h = matrix(1, 3, {.5, -1, 2}).requires_grad_();
  auto e = matrix(4, 3, {1, 0, .5, 0, 1, 1, .2, -.4, .1, -1, .5, .25}).requires_grad_();
  const auto target = [](int64_t y) { return torch::tensor({y}, torch::kInt64); };
  const double ce[] = {.78444701, 1.28444701, 1.58444701, 2.78444701};
  for (const SoftmaxBlocks blocks : {SoftmaxBlocks{}, SoftmaxBlocks{256, 2, 0}}) {
    for (int64_t y = 0; y < 4; ++y) {
      EXPECT_NEAR(softmax_loss(h, e, target(y), {}, blocks).item<double>(), ce[y], 1e-8);
    }
    const auto to = torch::autograd::grad({softmax_loss(h, e, target(1), {}, blocks)}, {h, e});
    expect_near(to[0], {.435621, -.774339, -.459063}, 1e-6);
    expect_near(to[1][1], {-.361598, .723196, -1.446393}, 1e-6);
    // With items of an identity the scores are the state: the slopes of the scores, and lse.
    auto scores = matrix(1, 4, {1.5, 1, .7, -.5}).requires_grad_();
    const auto eye = torch::eye(4, torch::kFloat64);
    const auto loss = softmax_loss(scores, eye, target(1), {}, blocks);
    EXPECT_NEAR(loss.item<double>() + 1, 2.28444701, 1e-8);
    expect_near(torch::autograd::grad({loss}, {scores})[0], {.456372, -.723196, .205061, .061763},
                1e-6);
  }
  const auto group = torch::zeros({1}, torch::kInt64);
  const auto value = [&](const std::vector<int64_t>& negatives, const SampledLoss& loss) {
    const auto ids = torch::tensor(negatives, torch::kInt64).unsqueeze(0);
    return sampled_loss(h, e, target(1), ids, group, loss).item<double>();
  };
  using Kind = SampledLoss::Kind;
  EXPECT_NEAR(value({0, 3}, {}), 1.05495692, 1e-8);
  EXPECT_NEAR(value({0, 3}, {Kind::softmax, std::log(2 * 0.25), 1, false}), 1.55681803, 1e-8);
  EXPECT_NEAR(value({0, 3}, {Kind::binary, 0, 1, false}), 2.48875195, 1e-8);
  EXPECT_NEAR(value({0, 3}, {Kind::binary, 0, 1, true}), .82958398, 1e-8);
  EXPECT_NEAR(value({0}, {Kind::binary, 0, 1, false}), 2.01467497, 1e-8);
  EXPECT_NEAR(gbce_weight(2, 4, .75), .75, 1e-12);
  EXPECT_NEAR(value({0, 3}, {Kind::binary, 0, gbce_weight(2, 4, .75), true}), .80347884, 1e-8);
  EXPECT_NEAR(gbce_weight(256, 3416, .75), .306223, 1e-6);
  EXPECT_NEAR(gbce_weight(256, 11924, .75), .266103, 1e-6);
  EXPECT_NEAR(gbce_weight(256, 18357, .75), .260460, 1e-6);
}

std::unique_ptr<Model> make(const std::string& name, const Dataset& data,
                            const Settings& given = {}) {
  const ModelInfo& info = find_model(name);
  return info.make(
      given, Context{data.view(), Random(1), resolve_settings(info, given).train_settings, {}});
}

int64_t n_parameters(Model& model) {
  int64_t n = 0;
  for (const auto& group : model.parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) n += tensor->numel();
    for (const auto& [name, table] : group.tables) n += table->n_rows() * table->width();
  }
  return n;
}

Dataset rows_of(int64_t n_items, const std::vector<int32_t>& items, int64_t n_users = 1) {
  std::vector<int32_t> users(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    users[i] = static_cast<int32_t>(i * static_cast<size_t>(n_users) / items.size());
  }
  return make_dataset(n_users, n_items, make_interactions(n_users, users, items));
}

TEST(Models, ParameterCounts) {
  const Dataset data = rows_of(11924, {0, 1, 2});
  EXPECT_EQ(n_parameters(*make("GRU4Rec", data)), 845120);
  EXPECT_EQ(n_parameters(*make("SASRec", data)), 816896);
  EXPECT_EQ(n_parameters(*make("SASRec", data, {{"norm", "post", "test"}})), 866432);
  EXPECT_EQ(n_parameters(*make("BERT4Rec", data)), 882708);
  // FDSA: 978,881 less the bias of the fields' energies, which no softmax sees, and its fields: one
  // of 3 categories.
  Dataset with_categories = rows_of(11924, {0, 1, 2});
  with_categories.item_columns.names = {"categories"};
  with_categories.item_columns.values = {std::vector<std::string>(11924, "a|b")};
  with_categories.item_columns.values[0][7] = "c";
  EXPECT_EQ(n_parameters(*make("FDSA", with_categories)), 978881 - 1 + 3 * 64);
}

Batch batch_of(const Dataset& data, Model& model) {
  Sampler sampler(data.view(), model.batch_spec(), 128, Random(1));
  sampler.begin_epoch(0);
  return sampler.batch(0, 1);
}

/// Rows of items as histories, each item in one of three categories and most with one of two.
Dataset categorised(int64_t n_items, const std::vector<int32_t>& items, int64_t n_users) {
  Dataset data = rows_of(n_items, items, n_users);
  data.item_columns.names = {"categories"};
  data.item_columns.values = {std::vector<std::string>(static_cast<size_t>(n_items))};
  for (size_t item = 0; item < static_cast<size_t>(n_items); ++item) {
    data.item_columns.values[0][item] = std::vector<std::string>{"a|b", "b", "c"}[item % 3];
  }
  return data;
}

TEST(Models, LossOfAnUntrainedModelIsTheLogOfTheCatalogue) {
  std::vector<int32_t> items(3000);
  for (size_t i = 0; i < items.size(); ++i) items[i] = static_cast<int32_t>(i * 37 % 3706);
  const Dataset data = categorised(3706, items, 150);
  const std::vector<std::pair<std::string, Settings>> all = {
      {"SASRec", {{"norm", "original", "test"}}},
      {"SASRec", {{"norm", "pre", "test"}}},
      {"SASRec", {{"norm", "post", "test"}}},
      {"GRU4Rec", {}},
      // Most positions hidden: the mean over the few of the default is off by as much as the bound.
      {"BERT4Rec", {{"mask_ratio", 0.9, "test"}}},
      {"BERT4Rec", {{"head", "plain", "test"}, {"mask_ratio", 0.9, "test"}}},
      {"FDSA", {}}};
  for (const auto& [name, given] : all) {
    const auto model = make(name, data, given);
    EXPECT_NEAR(model->loss(batch_of(data, *model)).total.item<double>(), std::log(3706.), .03)
        << name << (given.empty() ? Json() : given[0].value);
  }
}

/// The whole model in double at d = 4 as a function of its parameters, on one batch of three rows.
struct Whole {
  Dataset data;
  std::unique_ptr<Model> model;
  std::vector<torch::Tensor*> places;
  std::map<std::string, torch::Tensor*> by_name;
  std::vector<torch::Tensor> inputs;
  Batch batch;

  Whole(const std::string& name, Dataset data_in, Settings given) : data(std::move(data_in)) {
    for (const Setting& setting :
         Settings{{"embedding_size", 4, "test"}, {"max_length", 5, "test"}}) {
      given.push_back(setting);
    }
    if (name != "GRU4Rec") given.push_back({"inner_size", 3, "test"});
    model = make(name, data, given);
    batch = batch_of(data, *model);
    Random random(7);
    for (auto& group : model->parameter_groups()) {
      EXPECT_TRUE(group.tables.empty());
      for (auto& [tensor_name, tensor] : group.tensors) {
        const auto noise = planted::normals(random.stream(tensor_name), 0, tensor->numel(), 1);
        inputs.push_back(tensor->detach().to(torch::kDouble) + .4 * noise.view(tensor->sizes()));
        places.push_back(tensor);
        by_name[tensor_name] = tensor;
      }
    }
    put(inputs);
  }
  void put(const std::vector<torch::Tensor>& x) {
    for (size_t i = 0; i < places.size(); ++i) *places[i] = x[i];
  }
  torch::Tensor p(const std::string& name) const { return *by_name.at(name); }
  torch::Tensor encode(const std::vector<int64_t>& items, const std::vector<int64_t>& offsets) {
    struct Open : SequenceModel {
      using SequenceModel::encode;
    };
    auto& sequence = dynamic_cast<SequenceModel&>(*model);
    return (sequence.*(&Open::encode))(torch::tensor(items, torch::kInt64), pass_of(offsets));
  }
};

/// Seven items, three histories; a modality that items 2 and 5 lack, categories that 3 and 5 lack.
Dataset seven() {
  Dataset data = categorised(7, {0, 3, 1, 6, 2, 2, 5, 4, 0, 1, 4, 6}, 3);
  data.item_columns.values[0][3] = data.item_columns.values[0][5] = "";
  Feature feature;
  feature.name = "image";
  feature.rows = MappedArray(torch::tensor({.5F, -1.F, 2.F, .25F, .75F, -.5F, 1.F, 1.5F, -.25F,
                                            -2.F, .125F, 1.F, .3F, .6F, -.9F},
                                           torch::kFloat)
                                 .view({5, 3}));
  feature.row_of_item = torch::tensor({0, 1, -1, 2, 3, -1, 4}, torch::kInt32);
  data.features.push_back(feature);
  return data;
}

// Self-check 3: of each encoder, embeddings, head and loss included.
TEST(Models, CentralDifferencesOfWholeModels) {
  const Setting two_heads{"n_heads", 2, "test"}, one_layer{"n_layers", 1, "test"};
  const std::vector<std::pair<std::string, Settings>> all = {
      {"GRU4Rec", {{"hidden_size", 3, "test"}}},
      {"SASRec", {one_layer}},  // ReLU
      {"SASRec", {one_layer, two_heads, {"out_proj", false, "test"}}},
      {"SASRec", {one_layer, {"norm", "pre", "test"}}},
      {"SASRec", {one_layer, {"norm", "post", "test"}}},
      {"BERT4Rec", {two_heads, {"mask_ratio", .6, "test"}, {"last_only", 0.0, "test"}}},
      {"BERT4Rec", {one_layer, {"head", "plain", "test"}}},
      {"FDSA", {one_layer}},
      {"FDSA", {one_layer, {"shared_ln", false, "test"}}}};
  for (const auto& [name, settings] : all) {
    Whole whole(name, seven(), settings);
    SCOPED_TRACE(name);
    expect_gradients(
        [&](const std::vector<torch::Tensor>& x) {
          whole.put(x);
          return whole.model->loss(whole.batch).total;
        },
        whole.inputs, 2e-6);
  }
}

// Without a layer FDSA is what section 4 says in plain tensor operations: an item's present fields
// alone are mixed, a category field is the mean of its categories, an item without any field is
// zero, one layer norm serves all three places.
TEST(Models, FdsaMixesThePresentFields) {
  Whole whole("FDSA", seven(), {{"n_layers", 0, "test"}});
  const torch::NoGradGuard no_grad;
  const std::vector<int64_t> items = {0, 1, 2, 3, 5};
  const auto found = whole.encode(items, {0, 5});
  const auto table = whole.p("field.categories");  // a, b, c in order of appearance
  const std::vector<std::vector<int64_t>> categories = {{0, 1}, {1}, {2}, {}, {}};
  const auto& feature = whole.data.features[0];
  const auto norm = [&](const torch::Tensor& x) {
    return torch::layer_norm(x, {4}, whole.p("norm.weight"), whole.p("norm.bias"), 1e-12);
  };
  for (size_t t = 0; t < items.size(); ++t) {
    std::vector<torch::Tensor> fields;
    if (!categories[t].empty()) {
      auto sum = torch::zeros({4}, torch::kDouble);
      for (const int64_t c : categories[t]) sum += table[c];
      fields.push_back(sum / static_cast<double>(categories[t].size()));
    }
    if (feature.has(items[t])) {
      const auto row = feature.gather(torch::tensor({items[t]}, torch::kInt64))[0];
      fields.push_back(torch::mv(whole.p("image.map.weight"), row.to(torch::kDouble)) +
                       whole.p("image.map.bias"));
    }
    EXPECT_EQ(fields.size(), (std::vector<size_t>{2, 2, 1, 1, 0})[t]);
    auto mixed = torch::zeros({4}, torch::kDouble);
    double total = 0;
    for (const auto& u : fields) {
      const auto hidden =
          torch::relu(torch::mv(whole.p("mix.hidden.weight"), u) + whole.p("mix.hidden.bias"));
      const double energy = std::exp((hidden * whole.p("mix.out")[0]).sum().item<double>());
      mixed += energy * u;
      total += energy;
    }
    if (total > 0) mixed /= total;
    const auto where = whole.p("position_embedding")[static_cast<int64_t>(t)];
    const auto both =
        torch::cat({norm(whole.p("item_embedding")[items[t]] + where), norm(mixed + where)});
    const auto wanted =
        norm(torch::mv(whole.p("join.weight"), both) + whole.p("join.bias")).contiguous();
    const double* numbers = wanted.const_data_ptr<double>();
    SCOPED_TRACE(t);
    expect_near(found[static_cast<int64_t>(t)], {numbers, numbers + 4}, 1e-10);
  }
}

Queries histories(const std::vector<std::vector<int32_t>>& rows) {
  std::vector<int32_t> items;
  std::vector<int64_t> offsets = {0};
  for (const auto& row : rows) {
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  return {{}, {torch::tensor(items, torch::kInt32), torch::tensor(offsets, torch::kInt64)}};
}

// Self-check 1: nothing of one row reaches another.
TEST(Models, ARowAloneScoresAsInABatch) {
  const Dataset data = rows_of(60, {0, 1, 2});
  std::vector<int32_t> longest(50);
  for (int i = 0; i < 50; ++i) longest[static_cast<size_t>(i)] = i;
  const torch::NoGradGuard no_grad;
  for (const char* name : {"SASRec", "GRU4Rec", "BERT4Rec"}) {
    const auto model = make(name, data);
    const auto alone = model->score(histories({{3, 1, 4}}));
    const auto together = model->score(histories({longest, {3, 1, 4}, {7}}))[1];
    EXPECT_TRUE(torch::allclose(alone[0], together, 0, 1e-6)) << name;
    EXPECT_FALSE(torch::allclose(alone[0], model->score(histories({{1, 3, 4}}))[0], 0, 1e-6))
        << name << " does not see the order";
    // The last max_length items count.
    std::vector<int32_t> longer = {55, 56};
    longer.insert(longer.end(), longest.begin(), longest.end());
    if (name == std::string("BERT4Rec")) continue;
    EXPECT_TRUE(torch::allclose(model->score(histories({longer})),
                                model->score(histories({longest})), 0, 1e-6));
  }
}

// The same of models that read features.
TEST(Models, ARowAloneScoresAsInABatchWithFeatures) {
  PlantedSequenceOptions options;
  options.n_users = 30;
  options.n_items = 60;
  const Dataset data = planted_sequences(options);
  std::vector<int32_t> longest(50);
  for (int i = 0; i < 50; ++i) longest[static_cast<size_t>(i)] = i;
  const torch::NoGradGuard no_grad;
  for (const std::string host : {"", "gru4rec", "sasrec", "rgat"}) {
    const std::string name = host.empty() ? "FDSA" : "KDSR";
    Settings given;
    if (name == "KDSR") {
      given = {{"candidate", "fused", "test"}, {"host", host, "test"}, {"start", "random", "test"}};
    }
    const auto model = make(name, data, given);
    const auto alone = model->score(histories({{3, 1, 4}}))[0];
    const auto together = model->score(histories({longest, {3, 1, 4}, {7}}))[1];
    EXPECT_TRUE(torch::allclose(alone, together, 0, 1e-6)) << name << " " << host;
  }
}

TEST(Models, LaterItemsLeaveEarlierOutputsBitEqual) {
  std::map<std::string, torch::Tensor> by_name;
  const MakeParameter keep = [&](const std::string& name, torch::Tensor x) -> torch::Tensor& {
    return by_name[name] = x;
  };
  const GruEncoder gru("g", 64, 128, keep, Random(1));
  const Pass pass = pass_of({0, 9, 20});
  const auto x = torch::randn({20, 64});
  auto changed = x.clone();
  changed[15].fill_(3);
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(gru(x, pass).slice(0, 0, 15), gru(changed, pass).slice(0, 0, 15)));
  EXPECT_FALSE(torch::equal(gru(x, pass)[15], gru(changed, pass)[15]));
  using Norm = TransformerOptions::Norm;
  for (const Norm norm : {Norm::original, Norm::pre, Norm::post}) {
    TransformerOptions options;
    options.norm = norm;
    const Transformer encoder("t", options, keep, Random(1));
    const auto before = encoder(x, pass), after = encoder(changed, pass);
    EXPECT_TRUE(torch::equal(before.slice(0, 0, 15), after.slice(0, 0, 15)));
    EXPECT_FALSE(torch::equal(before[15], after[15]));
  }
}

// The same of whole models: FDSA's two streams and their join among them.
TEST(Models, LaterItemsLeaveEarlierOutputsOfModelsBitEqual) {
  for (const std::string name : {"GRU4Rec", "SASRec", "FDSA"}) {
    Whole whole(name, seven(), {});
    const torch::NoGradGuard no_grad;
    const std::vector<int64_t> offsets = {0, 3, 8};
    const auto before = whole.encode({1, 2, 3, 0, 6, 4, 1, 2}, offsets);
    const auto after = whole.encode({1, 2, 3, 0, 6, 5, 1, 2}, offsets);
    EXPECT_TRUE(torch::equal(before.slice(0, 0, 5), after.slice(0, 0, 5))) << name;
    for (int64_t t = 5; t < 8; ++t) EXPECT_FALSE(torch::equal(before[t], after[t])) << name << t;
  }
}

TEST(Models, PositionsFromEitherEnd) {
  const auto offsets = torch::tensor({0, 1, 4}, torch::kInt64);
  EXPECT_TRUE(
      torch::equal(position_index(offsets, 3, true), torch::tensor({2, 0, 1, 2}, torch::kInt64)));
  EXPECT_TRUE(
      torch::equal(position_index(offsets, 3, false), torch::tensor({0, 0, 1, 2}, torch::kInt64)));
}

// Protocol section 5: recbole-seq trains on every prefix, unless the user says otherwise; BERT4Rec,
// whose rows are masked, cannot, and the audit says what was done.
TEST(Models, RecboleSeqTrainsOnPrefixes) {
  const Setting protocol{"protocol", "recbole-seq", "flag"};
  const auto rows = [](const std::string& name, const Settings& given) {
    for (const auto& setting : resolve_settings(find_model(name), given).model) {
      if (setting.name == "rows") return setting.value.get<std::string>() + " " + setting.origin;
    }
    return std::string();
  };
  for (const std::string name : {"GRU4Rec", "SASRec", "FDSA", "KDSR"}) {
    EXPECT_EQ(rows(name, {protocol}), "prefix protocol=recbole-seq") << name;
    EXPECT_EQ(rows(name, {protocol, {"rows", "chunk", "flag"}}), "chunk flag") << name;
    EXPECT_EQ(rows(name, {{"protocol", "seq-none", "flag"}}), "user default") << name;
  }
  EXPECT_EQ(resolve_settings(find_model("KDSR"), {protocol}).train_settings.train_batch_size, 256);
  EXPECT_EQ(rows("BERT4Rec", {protocol}), "user default");

  Dataset data = categorised(20, {0, 1, 2, 3, 4, 5}, 2);
  const std::vector<int32_t> users = {0, 1}, valid = {6, 7}, test = {8, 9};
  data.valid = make_interactions(2, users, valid);
  data.test = make_interactions(2, users, test);
  const auto notes = [&](const std::string& name, const Settings& given) {
    const auto model = make(name, data, given);
    EvalOptions options;
    options.metrics = {"hit@10"};
    return evaluate(*model, data, find_protocol("recbole-seq"), Split::test, options)
        .audit["notes"]
        .dump();
  };
  const std::string words = "trains on every prefix";
  EXPECT_EQ(notes("SASRec", {protocol}).find(words), std::string::npos);
  EXPECT_EQ(notes("MC1", {protocol}).find(words), std::string::npos);
  EXPECT_NE(notes("SASRec", {protocol, {"rows", "user", "flag"}}).find(words), std::string::npos);
  EXPECT_NE(notes("BERT4Rec", {protocol}).find(words), std::string::npos);
}

/// Items in a cycle, each followed by its successor with probability .9.
Dataset planted_cycle(int64_t n_users, int64_t n_items) {
  PlantedSequenceOptions options;
  options.n_users = n_users;
  options.n_items = options.n_groups = n_items;
  options.follow = 0.9;
  options.n_modalities = 0;
  return planted_sequences(options);
}

// Candidates of the valid split are scored from the train rows alone, not from the answer.
TEST(Evaluation, SampledReadsTheHistoryOfItsSplit) {
  const Dataset data = planted_cycle(60, 40);
  const auto model = make("MC1", data, {});
  model->prepare({});
  SampledOptions options;
  options.total = 20;
  options.k = 3;
  const auto recall_after = [&](bool with_valid) {
    double n_hits = 0;
    for (int64_t user = 0; user < data.n_users; ++user) {
      const auto train = data.train.of(user), valid = data.valid.of(user);
      std::vector<int32_t> row(train.begin(), train.end());
      if (with_valid) row.insert(row.end(), valid.begin(), valid.end());
      const auto scores = model->score(histories({row}));
      const float* score = scores.const_data_ptr<float>();
      int64_t above = 0;
      for (const int32_t item : sampled_candidates(data, Split::valid, user, options)) {
        above +=
            score[item] > score[valid[0]] || (score[item] == score[valid[0]] && item < valid[0]);
      }
      n_hits += above < options.k;
    }
    return n_hits / static_cast<double>(data.n_users);
  };
  const auto out = evaluate_sampled(*model, data, find_protocol("seq-none"), Split::valid, options);
  EXPECT_DOUBLE_EQ(value_of(out.metrics, "recall@3"), recall_after(false));
  EXPECT_NE(recall_after(false), recall_after(true));
}

/// Hit@1 of the test items, histories as they are or shuffled.
double hit_at_one(Model& model, const Dataset& data, bool shuffled) {
  std::vector<std::vector<int32_t>> rows;
  for (int64_t u = 0; u < data.n_users; ++u) {
    const auto train = data.train.of(u), valid = data.valid.of(u);
    std::vector<int32_t> row(train.begin(), train.end());
    row.insert(row.end(), valid.begin(), valid.end());
    if (shuffled) Random(5).shuffle(row, 0, static_cast<uint64_t>(u));
    rows.push_back(row);
  }
  const torch::NoGradGuard no_grad;
  const auto best = model.score(histories(rows)).argmax(1);
  int64_t hits = 0;
  for (int64_t u = 0; u < data.n_users; ++u) {
    hits += best[u].item<int64_t>() == data.test.of(u)[0];
  }
  return static_cast<double>(hits) / static_cast<double>(data.n_users);
}

// Section 5.4.
TEST(Learning, OrderIsLearnedAndLostWhenShuffled) {
  const Dataset data = planted_cycle(600, 50);
  for (const std::string name : {"SASRec", "GRU4Rec"}) {
    Settings given = {{"embedding_size", 32, "test"},
                      {"epochs", 20, "test"},
                      // Not named by the specification; 600 users make few steps of the default.
                      {"train_batch_size", 32, "test"},
                      {"protocol", "seq-none", "test"}};
    if (name == "SASRec") {
      given.push_back({"hidden_dropout", 0.2, "test"});
      given.push_back({"attention_dropout", 0.2, "test"});
      given.push_back({"inner_size", 32, "test"});
    } else {
      given.push_back({"dropout", 0.2, "test"});
    }
    const ModelInfo& info = find_model(name);
    const auto model = make(name, data, given);
    TrainConfig config;
    config.settings = resolve_settings(info, given).train_settings;
    config.protocol = find_protocol("seq-none");
    train_model(*model, data, config);
    EXPECT_GT(hit_at_one(*model, data, false), .8) << name;
    EXPECT_LT(hit_at_one(*model, data, true), .3) << name;
  }
}

/// Item rows and one map; `whole` keeps the items in one tensor under a sampled loss too.
class Tiny : public SequenceModel {
 public:
  Tiny(const SequenceSettings& settings, const Context& context, bool whole)
      : SequenceModel(settings, context),
        items_(item_rows(normal(data_.n_items, 8, 0, 0.1, random_.stream("items")), whole)),
        map_(parameter("map", normal(8, 8, 0, 0.3, random_.stream("map")))) {}

 protected:
  torch::Tensor encode(const torch::Tensor& items, const Pass&) override {
    return torch::mm(items_.rows(items), map_).tanh();
  }
  torch::Tensor candidates() override { return items_.all(); }

 private:
  ItemRows& items_;
  torch::Tensor& map_;
};

// Section 3: lazy row updates under the sampled losses give what dense ones give, to the bit.
TEST(Learning, LazyItemRowsEqualTheWholeTable) {
  PlantedSequenceOptions options;
  options.n_users = 120;
  options.n_items = 90;
  options.n_modalities = 0;
  const Dataset data = planted_sequences(options);
  for (const std::string loss : {"sampled_softmax", "bce", "gbce"}) {
    for (const std::string share : {"position", "row", "batch"}) {
      for (const std::string rows : {"user", "prefix"}) {
        SequenceSettings settings;
        settings.loss = loss;
        settings.neg_share = share;
        settings.rows = rows;
        settings.n_negatives = 4;
        TrainSettings train;
        train.epochs = 3;
        train.train_batch_size = 16;
        train.learning_rate = 1e-2;
        train.weight_decay = share == "batch" ? 1e-3 : 0;
        std::vector<torch::Tensor> scores;
        for (const bool whole : {false, true}) {
          Tiny model(settings, Context{data.view(), Random(1), train, {}}, whole);
          EXPECT_EQ(model.parameter_groups()[0].tables.size(), whole ? 0 : 1);
          TrainConfig config;
          config.settings = train;
          config.protocol = find_protocol("seq-none");
          train_model(model, data, config);
          const torch::NoGradGuard no_grad;
          scores.push_back(model.score({torch::arange(data.n_users, torch::kInt64), {}}));
        }
        EXPECT_TRUE(torch::equal(scores[0], scores[1])) << loss << " " << share << " " << rows;
      }
    }
  }
}

// Section 3, logq: c_j = log(k q_j), where k q_j is how often j is expected among a row's
// negatives: k over the items that it draws from. With all scores 0 the loss of a position is
// log(1 + k e^-c), whichever items are drawn.
TEST(Losses, LogqCountsTheItemsThatARowDrawsFrom) {
  const std::vector<int32_t> users = {0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3},
                             items = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 2, 3};
  const Dataset data = make_dataset(4, 12, make_interactions(4, users, items));
  for (const std::string share : {"position", "row"}) {
    SequenceSettings settings;
    settings.loss = "sampled_softmax";
    settings.logq = settings.unseen_negatives = true;
    settings.neg_share = share;
    settings.n_negatives = 3;
    Tiny model(settings, Context{data.view(), Random(1), {}, {}}, false);
    const torch::NoGradGuard no_grad;
    const auto groups = model.parameter_groups();
    for (const auto& [name, tensor] : groups[0].tensors) tensor->zero_();
    AdamOptions rule;
    rule.learning_rate = [](int64_t) { return 0.0; };
    groups[0].tables[0].second->configure(rule);
    const Batch batch = batch_of(data, model);
    double wanted = 0, n = 0;
    for (int64_t row = 0; row < 4; ++row) {
      const int64_t user = batch.row_users[row].item<int64_t>();
      const auto length = static_cast<double>(data.train.of(user).size()) - 1;
      wanted +=
          length * std::log(1 + 12. - static_cast<double>(data.train_distinct.of(user).size()));
      n += length;
    }
    EXPECT_NEAR(model.loss(batch).total.item<double>(), wanted / n, 1e-5) << share;
  }
}

// Every loss and every kind of row trains: a few epochs lower it.
TEST(Learning, EveryLossAndRowKind) {
  PlantedSequenceOptions options;
  options.n_users = 200;
  options.n_items = 60;
  options.n_modalities = 0;
  const Dataset data = planted_sequences(options);
  const std::vector<Settings> variants = {
      {{"loss", "ce", "test"}, {"rows", "chunk", "test"}, {"max_length", 4, "test"}},
      {{"loss", "ce", "test"}, {"rows", "prefix", "test"}},
      {{"loss", "sampled_softmax", "test"}, {"n_negatives", 20, "test"}, {"logq", true, "test"}},
      {{"loss", "sampled_softmax", "test"},
       {"n_negatives", 30, "test"},
       {"neg_share", "row", "test"}},
      {{"loss", "sampled_softmax", "test"},
       {"n_negatives", 30, "test"},
       {"neg_share", "batch", "test"}},
      {{"loss", "bce", "test"}},
      {{"loss", "gbce", "test"}, {"n_negatives", 16, "test"}}};
  for (const auto& variant : variants) {
    Settings given = variant;
    given.push_back({"learning_rate", 1e-2, "test"});
    const auto model = make("SASRec", data, given);
    Sampler sampler(data.view(), model->batch_spec(), 64, Random(1));
    DenseAdam adam;
    AdamOptions rule;
    rule.learning_rate = [](int64_t) { return 1e-2; };
    const bool sampled = variant[0].value != "ce";
    double first = 0, last = 0;
    int64_t step = 0;
    model->train(true);
    const auto groups = model->parameter_groups();
    EXPECT_EQ(groups[0].tables.size(), sampled ? 1 : 0);
    for (const auto& [name, table] : groups[0].tables) table->configure(rule);
    for (int64_t epoch = 0; epoch < 8; ++epoch) {
      sampler.begin_epoch(epoch);
      double sum = 0;
      for (int64_t i = 0; i < sampler.n_batches(); ++i) {
        const auto loss = model->loss(sampler.batch(i, ++step)).total;
        loss.backward();
        for (const auto& [name, tensor] : groups[0].tensors) {
          adam.step(name, *tensor, tensor->grad(), rule);
          tensor->mutable_grad().reset();
        }
        for (const auto& [name, table] : groups[0].tables) table->step();
        sum += loss.item<double>();
      }
      (epoch == 0 ? first : last) = sum;
    }
    EXPECT_LT(last, first) << variant[0].value << " " << variant.back().name;
  }
}

}  // namespace
}  // namespace tessera
