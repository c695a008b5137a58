// Golden numbers of the sequence models: specs sequential section 6, "each computed in two
// independent ways", parameter counts of section 4, self-checks of section 7, the planted test of
// section 5.4.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"
#include "tessera/model/sequence_model.h"
#include "tessera/nn/sequence_encoder.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/sequence_kernels.h"
#include "tessera/ops/sequence_losses.h"
#include "tessera/train/train.h"
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
  torch::Tensor run() const {
    return encoder(matrix(2, 4, {1, 0, -1, 2, 0, 1, 2, -1}), pass_of({0, 2}));
  }
};

/// The forms that end with a layer norm give that of the block's own output.
void expect_normed(const torch::Tensor& found, const std::vector<double>& before) {
  const auto wanted = torch::layer_norm(matrix(2, 4, before), {4}, {}, {}, 1e-8).contiguous();
  const double* p = wanted.const_data_ptr<double>();
  expect_near(found, {p, p + 8}, 3e-6);
}

TEST(Golden, OneBlock) {
  TransformerOptions original;
  expect_near(Block(original).run(),
              {.974883, 1.021214, -1.083265, -.912832, -.578968, .838358, 1.080328, -1.339718});
  expect_normed(Block(original).run(), {1.157426, 1.216558, -1.469313, -1.251796, -.463017,
                                        1.105307, 1.373055, -1.304815});
  TransformerOptions two_heads = original;
  two_heads.n_heads = 2;
  expect_normed(Block(two_heads).run(),
                {1.157426, 1.216558, -1.469313, -1.251796, -1.174747, -.313843, 1.322695, .240895});
  TransformerOptions no_out = original;
  no_out.out_proj = false;
  expect_normed(Block(no_out).run(),
                {-1.712092, .021026, -.159985, -.855999, -.906268, .986498, 1.550017, -1.011448});
  TransformerOptions post;
  post.norm = TransformerOptions::Norm::post;
  post.eps = 1e-12;
  post.gelu = true;
  expect_near(Block(post).run(),
              {1.061928, .919172, -1.170903, -.810197, -.169392, .880911, .857124, -1.568643});
  post.causal = false;
  expect_near(Block(post).run(),
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
  return info.make(given,
                   Context{data, Random(1), resolve_settings(info, given).train_settings, {}});
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
  Sampler sampler(data, model.batch_spec(), 128, Random(1));
  sampler.begin_epoch(0);
  return sampler.batch(0, 1);
}

TEST(Models, LossOfAnUntrainedModelIsTheLogOfTheCatalogue) {
  std::vector<int32_t> items(600);
  for (size_t i = 0; i < items.size(); ++i) items[i] = static_cast<int32_t>(i * 37 % 3706);
  const Dataset data = rows_of(3706, items, 40);
  for (const char* name : {"SASRec", "GRU4Rec"}) {
    for (const char* norm : {"original", "pre", "post"}) {
      if (name == std::string("GRU4Rec") && norm != std::string("pre")) continue;
      Settings given;
      if (name == std::string("SASRec")) given = {{"norm", norm, "test"}};
      const auto model = make(name, data, given);
      EXPECT_NEAR(model->loss(batch_of(data, *model)).total.item<double>(), std::log(3706.), .03)
          << name << " " << norm;
    }
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
  const torch::NoGradGuard no_grad;
  for (const std::string name : {"FDSA", "KDSR"}) {
    Settings given;
    if (name == "KDSR") given = {{"candidate", "fused", "test"}, {"host", "sasrec", "test"}};
    const auto model = make(name, data, given);
    const auto alone = model->score(histories({{3, 1, 4}}))[0];
    const auto together = model->score(histories({{9, 8, 7, 6, 5, 4, 3}, {3, 1, 4}, {7}}))[1];
    EXPECT_TRUE(torch::allclose(alone, together, 0, 1e-6)) << name;
  }
}

TEST(Models, LaterItemsLeaveEarlierOutputsBitEqual) {
  std::map<std::string, torch::Tensor> by_name;
  const MakeParameter keep = [&](const std::string& name, torch::Tensor x) -> torch::Tensor& {
    return by_name[name] = x;
  };
  const Transformer encoder("t", {}, keep, Random(1));
  const GruEncoder gru("g", 64, 128, keep, Random(1));
  const Pass pass = pass_of({0, 9, 20});
  const auto x = torch::randn({20, 64});
  auto changed = x.clone();
  changed[15].fill_(3);
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(
      torch::equal(encoder(x, pass).slice(0, 0, 15), encoder(changed, pass).slice(0, 0, 15)));
  EXPECT_TRUE(torch::equal(gru(x, pass).slice(0, 0, 15), gru(changed, pass).slice(0, 0, 15)));
  EXPECT_FALSE(torch::equal(encoder(x, pass)[15], encoder(changed, pass)[15]));
}

TEST(Models, PositionsFromEitherEnd) {
  const auto offsets = torch::tensor({0, 1, 4}, torch::kInt64);
  EXPECT_TRUE(
      torch::equal(position_index(offsets, 3, true), torch::tensor({2, 0, 1, 2}, torch::kInt64)));
  EXPECT_TRUE(
      torch::equal(position_index(offsets, 3, false), torch::tensor({0, 0, 1, 2}, torch::kInt64)));
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

// Section 5.4: 50 items in a cycle, successor with probability .9.
TEST(Learning, OrderIsLearnedAndLostWhenShuffled) {
  PlantedSequenceOptions options;
  options.n_users = 600;
  options.n_items = options.n_groups = 50;
  options.follow = 0.9;
  options.n_modalities = 0;
  const Dataset data = planted_sequences(options);
  for (const std::string name : {"SASRec", "GRU4Rec"}) {
    Settings given = {{"embedding_size", 32, "test"},
                      {"epochs", 20, "test"},
                      {"learning_rate", 5e-3, "test"},
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
          Tiny model(settings, Context{data, Random(1), train, {}}, whole);
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
    Sampler sampler(data, model->batch_spec(), 64, Random(1));
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
