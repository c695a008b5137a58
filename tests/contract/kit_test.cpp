// The parts that graph models are built of, and the model that CONTRIBUTING.md builds of them.
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <map>

#include "tessera/base/error.h"
#include "tessera/model/graph_kit.h"
#include "tessera/ops/contrast.h"
#include "tessera/ops/fill.h"
#include "tessera/study/tune.h"
#include "tests/contract/training.h"
#include "tests/gradient/numeric.h"

namespace tessera {
namespace {

/// Tensors made by a layer, in double for numeric gradients.
struct Made {
  std::map<std::string, torch::Tensor> tensors;
  MakeParameter make() {
    return [this](const std::string& name, torch::Tensor initial) -> torch::Tensor& {
      return tensors[name] = initial.to(torch::kDouble);
    };
  }
};

torch::Tensor random(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }

TEST(KitLinear, StartsFromItsStreamsByRule) {
  const Random random(3);
  Made made;
  const Linear normal_one("a", 5, 4, made.make(), random);
  const Linear uniform_one("b", 5, 4, made.make(), random, Start::uniform);
  const Linear other("c", 5, 4, made.make(), random, Start::uniform, "b");
  const Linear xavier("d", 5, 4, made.make(), random, Start::xavier);
  const auto stream = [&](const char* name) { return random.stream(name); };
  const auto same = [](const torch::Tensor& a, const torch::Tensor& b) {
    return torch::equal(a, b.to(torch::kDouble));
  };
  EXPECT_TRUE(same(*normal_one.weight, normal(5, 4, 0, .02, stream("init.a.weight"))));
  EXPECT_TRUE(same(*normal_one.bias, torch::zeros({5})));
  EXPECT_TRUE(same(*uniform_one.weight, linear_default_weight(5, 4, stream("init.b.weight"))));
  EXPECT_TRUE(same(*uniform_one.bias, linear_default_bias(4, 5, stream("init.b.bias"))));
  EXPECT_TRUE(torch::equal(*other.weight, *uniform_one.weight));
  EXPECT_TRUE(same(*xavier.weight, xavier_normal(5, 4, stream("init.d.weight"))));
  EXPECT_TRUE(same(*xavier.bias, linear_default_bias(4, 5, stream("init.d.bias"))));
  EXPECT_EQ(made.tensors.size(), 8u);
}

TEST(KitLinear, ValueAndGradient) {
  torch::manual_seed(1);
  Made made;
  const Linear layer("a", 3, 4, made.make(), Random(3), Start::uniform);
  const auto x = random({5, 4});
  EXPECT_TRUE(torch::allclose(layer(x), x.mm(layer.weight->t()) + *layer.bias, 1e-14, 1e-15));
  const std::vector<torch::Tensor> at = {x, *layer.weight, *layer.bias};
  expect_gradients(
      [&](const auto& t) {
        *layer.weight = t[1];
        *layer.bias = t[2];
        return layer(t[0]).square().sum();
      },
      at, 1e-6);
}

TEST(KitMlp, OneLayerOrTwoWithReluBetween) {
  torch::manual_seed(2);
  Made made;
  const Mlp one("one", 3, 4, 1, made.make(), Random(3));
  EXPECT_EQ(made.tensors.size(), 2u);
  const Mlp two("two", 3, 4, 2, made.make(), Random(3));
  for (const char* name : {"two.weight", "two.bias", "two.weight2", "two.bias2"}) {
    EXPECT_TRUE(made.tensors.contains(name)) << name;
  }
  EXPECT_EQ(two.second.weight->sizes(), (std::vector<int64_t>{3, 3}));
  EXPECT_TRUE(
      torch::equal(*two.second.weight,
                   xavier_normal(3, 3, Random(3).stream("init.two.weight2")).to(torch::kDouble)));
  const auto x = random({6, 4});
  EXPECT_TRUE(torch::equal(one(x), one.first(x)));
  const auto hidden = (x.mm(two.first.weight->t()) + *two.first.bias).clamp_min(0);
  EXPECT_TRUE(
      torch::allclose(two(x), hidden.mm(two.second.weight->t()) + *two.second.bias, 1e-13, 1e-14));
  expect_gradients(
      [&](const auto& t) {
        *two.first.weight = t[1];
        *two.second.weight = t[2];
        *two.second.bias = t[3];
        return two(t[0]).square().sum();
      },
      {x, *two.first.weight, *two.second.weight, *two.second.bias}, 1e-6);
}

TEST(KitContrast, CountedRowsEqualTheBatchWrittenOut) {
  torch::manual_seed(3);
  const auto counts = torch::tensor({2, 0, 1, 3, 1}, torch::kInt64);
  const auto fused = [&](const auto& x) { return batch_info_nce(x[0], x[1], counts, 0.3); };
  const std::vector<torch::Tensor> x = {random({5, 4}), random({5, 4})};
  EXPECT_NEAR(fused(x).template item<double>(),
              batch_info_nce_composed(x[0], x[1], counts, 0.3).item<double>(), 1e-12);
  // Two rows by hand: the first twice, cosines 1, 0 and .5, temperature 1.
  const auto a = torch::tensor({{1.0, 0.0}, {0.0, 1.0}}, torch::kDouble);
  const auto b = torch::tensor({{1.0, 0.0}, {0.5, 0.5}}, torch::kDouble);
  const double first = std::log(2 * std::exp(1) + std::exp(.5)) - 1;
  const double second = std::log(2 + std::exp(.5)) - .5;
  EXPECT_NEAR(batch_info_nce(a, b, torch::tensor({2, 1}), 1).item<double>(),
              (2 * first + second) / 3, 1e-14);
  expect_gradients(fused, x, 1e-6);
}

TEST(KitContrast, OverSeveralBlocks) {
  torch::manual_seed(4);
  const auto counts = torch::randint(0, 3, {1100}, torch::kInt64);
  const auto a = random({1100, 3}).requires_grad_(), b = random({1100, 3}).requires_grad_();
  const std::vector<torch::Tensor> x = {a, b};
  const auto mine = torch::autograd::grad({batch_info_nce(a, b, counts, 0.5)}, x);
  const auto theirs = torch::autograd::grad({batch_info_nce_composed(a, b, counts, 0.5)}, x);
  for (size_t k = 0; k < 2; ++k) EXPECT_TRUE(torch::allclose(mine[k], theirs[k], 1e-9, 1e-13));
  const auto f = [](const torch::Tensor& t) { return t.detach().to(torch::kFloat); };
  EXPECT_NEAR(batch_info_nce(f(a), f(b), counts, 0.5).item<double>(),
              batch_info_nce_composed(a, b, counts, 0.5).item<double>(), 1e-5);
}

/// BPR of users and the first modality's rows through one layer, the rows kept as the test wants.
class OneTable : public FactorModel {
 public:
  OneTable(const Context& context, bool frozen, TrainedRows as)
      : FactorModel(context),
        rows_(*this, data_.features.at(0), "mean", frozen, as),
        layer_("layer", 8, rows_.width(), maker(), random_, Start::uniform),
        users_(parameter("users", uniform(data_.n_users, 8, -.1, .1, random_.stream("users")))) {}
  Abilities abilities() const override { return {.uses_features = true}; }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = 1};
  }
  Loss loss(const Batch& batch) override {
    const auto items = layer_(rows_.gather(batch.distinct_items));
    const auto score = [&](const torch::Tensor& at) {
      return (users_.index_select(0, batch.users) * items.index_select(0, at)).sum(1);
    };
    const auto total = -(score(batch.positive_inverse) - score(batch.negative_inverse.flatten()))
                            .sigmoid()
                            .log()
                            .mean();
    losses.push_back(total.item<float>());
    return {total, {{"bpr", total}}};
  }
  std::vector<float> losses;
  torch::Tensor rows() const { return rows_.all().detach().clone(); }

 protected:
  Vectors vectors() override { return {users_, layer_(rows_.all())}; }

 private:
  const ModalityTable rows_;
  const Linear layer_;
  torch::Tensor& users_;
};

/// Trained for two epochs of some ten steps in which the rate falls.
std::unique_ptr<OneTable> one_table(const Dataset& data, bool frozen, TrainedRows as,
                                    const std::string& scheduler = "0.5,1") {
  TrainConfig config = training({{"epochs", 2, "test"},
                                 {"train_batch_size", 64, "test"},
                                 {"learning_rate", 0.01, "test"},
                                 {"learning_rate_scheduler", scheduler, "test"}},
                                find_model("BPR"));
  auto model = std::make_unique<OneTable>(Context{data.view(), Random(999), config.settings, {}},
                                          frozen, as);
  train_model(*model, data, config);
  return model;
}

TEST(KitModalityTable, WholeAndLazyTrainTheSameBitsAndFrozenStays) {
  const Dataset data = small_data(1);
  const auto whole = one_table(data, false, TrainedRows::whole);
  const auto lazy = one_table(data, false, TrainedRows::lazy);
  const auto frozen = one_table(data, true, TrainedRows::whole);
  ASSERT_GT(whole->losses.size(), 10u);
  EXPECT_EQ(whole->losses, lazy->losses);
  EXPECT_TRUE(torch::equal(whole->rows(), lazy->rows()));
  EXPECT_EQ(whole->losses[0], frozen->losses[0]);
  EXPECT_NE(whole->losses.back(), frozen->losses.back());
  EXPECT_TRUE(torch::equal(frozen->rows(), filled(data.view(), data.features[0], "mean")));
  EXPECT_FALSE(torch::equal(whole->rows(), frozen->rows()));
}

TEST(LearningRateScheduler, MultipliesTheRateByEpoch) {
  TrainSettings train;
  EXPECT_EQ(train.rate_factor(17), 1);
  train.learning_rate_scheduler = {0.96, 50};
  EXPECT_EQ(train.rate_factor(0), 1);
  EXPECT_DOUBLE_EQ(train.rate_factor(50), 0.96);
  EXPECT_DOUBLE_EQ(train.rate_factor(25), std::sqrt(0.96));
  for (const std::vector<double>& wrong : {std::vector<double>{0.9}, {0.9, 1, 2}, {}}) {
    train.learning_rate_scheduler = wrong;
    EXPECT_THROW(train.rate_factor(0), InputError);
  }
  // As MMRec writes it, and MGCN's own default.
  const auto of = [](const char* model, const Settings& given) {
    return resolve_settings(find_model(model), given).train_settings.learning_rate_scheduler;
  };
  EXPECT_EQ(of("BM3", {{"learning_rate_scheduler", Json::array({0.9, 10}), "test"}}),
            (std::vector<double>{0.9, 10}));
  EXPECT_EQ(of("MGCN", {}), (std::vector<double>{0.96, 50}));
  EXPECT_EQ(of("FREEDOM", {}), (std::vector<double>{1, 50}));
}

TEST(LearningRateScheduler, ReachesTheOptimiserFromTheSecondEpochOn) {
  const Dataset data = small_data(1);
  const auto constant = one_table(data, false, TrainedRows::lazy, "1,50");
  const auto falling = one_table(data, false, TrainedRows::lazy, "0.5,1");
  const size_t n = constant->losses.size() / 2;
  const std::vector<float> a(constant->losses.begin(), constant->losses.begin() + n + 1);
  const std::vector<float> b(falling->losses.begin(), falling->losses.begin() + n + 1);
  EXPECT_EQ(a, b);  // the first epoch, and the first loss of the second
  EXPECT_NE(constant->losses.back(), falling->losses.back());
}

NeighbourGraph small_graph() {
  return {torch::tensor({0, 2, 2, 3}, torch::kInt64), torch::tensor({0, 2, 1}, torch::kInt32),
          torch::tensor({.5F, .25F, 1.F})};
}

State::Saved saved_graph() {
  StoredGraph graph("near", 3, small_graph);
  graph.get();
  State state;
  graph.state(state);
  return state.save(true);
}

TEST(KitStoredGraph, IsFittedOnceAndThenTakenFromTheWeights) {
  int fits = 0;
  StoredGraph graph("near", 3, [&] {
    ++fits;
    return small_graph();
  });
  const auto x = torch::eye(3);
  const auto wanted = propagate(graph.get(), x);
  graph.get();
  EXPECT_EQ(fits, 1);
  StoredGraph loaded("near", 3, [&] {
    ++fits;
    return small_graph();
  });
  State state;
  loaded.state(state);
  State::Saved saved = saved_graph();
  state.load(saved, true);
  EXPECT_TRUE(torch::equal(propagate(loaded.get(), x), wanted));
  EXPECT_EQ(fits, 1);
  // Another load of the same size is seen.
  saved.weights["near.weights"] = torch::tensor({1.F, 2.F, 4.F});
  state.load(saved, true);
  EXPECT_FALSE(torch::equal(propagate(loaded.get(), x), wanted));
  // Of files that hold none, made before graphs were stored, it is fitted.
  StoredGraph old("near", 3, [&] {
    ++fits;
    return small_graph();
  });
  State none;
  old.state(none);
  none.load({}, true);
  EXPECT_TRUE(torch::equal(propagate(old.get(), x), wanted));
  EXPECT_EQ(fits, 2);
}

TEST(KitStoredGraph, RefusesADamagedOne) {
  const auto refused = [](const std::string& name, const torch::Tensor& value) {
    State::Saved saved = saved_graph();
    if (value.defined()) {
      saved.weights["near." + name] = value;
    } else {
      saved.weights.erase("near." + name);
    }
    StoredGraph graph("near", 3, small_graph);
    State state;
    graph.state(state);
    state.load(saved, true);
    try {
      graph.get();
    } catch (const InputError& e) {
      EXPECT_EQ(e.code(), Exit::data);
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      return true;
    }
    return false;
  };
  const auto longs = [](std::vector<int64_t> v) { return torch::tensor(v, torch::kInt64); };
  const auto ints = [](std::vector<int32_t> v) { return torch::tensor(v, torch::kInt32); };
  EXPECT_FALSE(refused("offsets", longs({0, 1, 2, 3})));
  EXPECT_TRUE(refused("offsets", longs({0, 2, 3})));
  EXPECT_TRUE(refused("offsets", longs({0, 2, 2, 4})));
  EXPECT_TRUE(refused("offsets", longs({0, 3, 2, 3})));
  EXPECT_TRUE(refused("offsets", longs({1, 2, 2, 3})));
  EXPECT_TRUE(refused("offsets", torch::tensor({0, 2, 2, 3}, torch::kInt32)));
  EXPECT_TRUE(refused("items", ints({0, 3, 1})));
  EXPECT_TRUE(refused("items", ints({0, -1, 1})));
  EXPECT_TRUE(refused("items", ints({0, 2})));
  EXPECT_TRUE(refused("items", {}));
  EXPECT_TRUE(refused("weights", torch::tensor({.5F, NAN, 1.F})));
  EXPECT_TRUE(refused("weights", torch::ones({3}, torch::kDouble)));
  EXPECT_TRUE(refused("weights", torch::ones({3, 1})));
}

// Ranking does not look at the features again: with others in their place it is the same.
TEST(KitStoredGraph, ModelsRankByTheStoredOne) {
  const Dataset data = small_data(2);
  Dataset other = small_data(2);
  torch::manual_seed(5);
  for (auto& feature : other.features) {
    feature.rows = MappedArray(torch::randn({feature.rows.n_rows(), feature.width()}));
  }
  for (const Settings& given : {Settings{{"model", "FREEDOM", ""}}, Settings{{"model", "MGCN", ""}},
                                Settings{{"model", "R2MR", ""}, {"item_graph", true, "test"}}}) {
    const std::string name = given[0].value.get<std::string>();
    Settings settings(given.begin() + 1, given.end());
    settings.push_back({"epochs", 2, "test"});
    Trained trained(find_model(name), data, settings);
    State state, own;
    trained.model->state(state);
    const State::Saved saved = state.save(true);
    const std::string graph = name == "MGCN" ? "image.similar" : "similar";
    for (const char* part : {".offsets", ".items", ".weights"}) {
      EXPECT_TRUE(saved.weights.contains(graph + part)) << name << " " << graph << part;
    }
    const auto loaded = find_model(name).make(
        settings, Context{other.view(), Random(999), trained.settings.train_settings, {}});
    loaded->state(own);
    own.load(saved, true);
    EXPECT_TRUE(torch::equal(loaded->score({torch::arange(data.n_users, torch::kInt64), {}}),
                             trained.scores()))
        << name;
  }
}

TEST(Search, EveryModelWithSettingsNamesValuesThatItTakes) {
  for (const auto& info : models()) {
    EXPECT_EQ(info.search.empty(), info.name == "Popularity" || info.name == "MC1") << info.name;
    for (const auto& [name, values] : info.search) {
      const Dimension one = parse_dimension(name, values);
      EXPECT_GT(one.values.size(), 1u) << info.name << " " << name;
      for (const auto& value : one.values) {
        EXPECT_NO_THROW(resolve_settings(info, {{name, value, "search"}}))
            << info.name << " " << name << " = " << value;
      }
    }
  }
}

TEST(Contributing, ShowsTheModelThatIsCompiledHere) {
  const std::string page = read_file(CONTRIBUTING), code = read_file(EXAMPLE);
  EXPECT_NE(page.find("```cpp\n" + code + "```"), std::string::npos)
      << "copy tests/contract/example_model.cpp into CONTRIBUTING.md";
  EXPECT_LE(std::count(code.begin(), code.end(), '\n'), 75);
}

TEST(Contributing, ItsModelBeatsPopularityAndRanksNewItems) {
  const Dataset data = learning_data();
  Trained popularity(find_model("Popularity"), data, {});
  Trained trained(find_model("ContentGCN"), data,
                  {{"epochs", 30, "test"}, {"train_batch_size", 256, "test"}});
  EXPECT_GE(trained.result.test->value("recall@20"),
            1.5 * popularity.result.test->value("recall@20"));
  const Dataset small = small_data(2);
  Trained other(find_model("ContentGCN"), small, {{"epochs", 2, "test"}});
  const auto cold = (item_counts(small.train, small.n_items) == 0).nonzero().flatten();
  const auto scores = other.scores().index_select(1, cold);
  EXPECT_GT((scores.amax(1) - scores.amin(1)).min().item<float>(), 0);
}

}  // namespace
}  // namespace tessera
