// The trainer's joints, with small models made for the purpose: prepare() that checkpoints, inner
// optimisers, divergence, interruption, time limit, no validation rows.
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <chrono>
#include <cmath>
#include <set>
#include <thread>

#include "tessera/base/error.h"
#include "tests/contract/training.h"

namespace tessera {
namespace {

/// Fits a vector in prepare(), ten rounds with a checkpoint each, then trains a table and an inner
/// tensor of its own.
class Staged : public FactorModel {
 public:
  struct Config {
    double poison_step = 0, prepare_s = 0;
    void describe(Fields& f) {
      f.add("poison_step", poison_step, "step whose loss is NaN; 0: none", at_least(0));
      f.add("prepare_s", prepare_s, "seconds that prepare() takes at least", at_least(0));
      f.global_default("learning_rate", 0.01);
    }
  };
  Staged(const Config& config, const Context& context)
      : FactorModel(context),
        config_(config),
        fitted_(torch::zeros({8})),
        inner_(torch::ones({8})),
        users_(table("users", torch::randn({data_.n_users, 8}))),
        items_(table("items", torch::randn({data_.n_items, 8}))) {
    const Random random = random_.stream("init");
    for (auto* t : {&users_, &items_}) {
      auto value = t->value().clone();
      for (int64_t i = 0; i < value.numel(); ++i) {
        value.view(-1)[i] = random.normal(t == &users_ ? 0 : 1, i, 0);
      }
      *t = RowTable(value);
    }
  }
  Abilities abilities() const override { return {}; }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = 1};
  }
  void prepare(const Watch& watch) override {
    std::this_thread::sleep_for(std::chrono::duration<double>(config_.prepare_s));
    while (round_ < 10) {
      fitted_ += static_cast<double>(round_ + 1);
      ++round_;
      watch.checkpoint();
      if (kill_in_round && *kill_in_round == round_) throw std::runtime_error("killed");
    }
  }
  void before_step(const Batch& batch) override {
    const torch::Tensor gradient = inner_ * 0.1 + static_cast<double>(batch.step);
    AdamOptions options;
    options.learning_rate = [](int64_t) { return 1e-2; };
    inner_adam_.step("inner", inner_, gradient, options);
  }
  Loss loss(const Batch& batch) override {
    const auto users = users_.gather(batch.distinct_users);
    const auto items = items_.gather(batch.distinct_items);
    const auto u = users.index_select(0, batch.user_inverse) * (1 + 0.01 * inner_ + 1e-3 * fitted_);
    const auto p = items.index_select(0, batch.positive_inverse);
    const auto n = items.index_select(0, batch.negative_inverse.flatten());
    auto total = torch::softplus((u * (n - p)).sum(1)).mean();
    if (config_.poison_step > 0 && batch.step == static_cast<int64_t>(config_.poison_step)) {
      total = total * std::nan("");
    }
    return {total, {{"fine", torch::ones({})}, {"poisoned", total}}};
  }
  void state(State& state) override {
    Model::state(state);
    state.add("fitted", fitted_, Role::frozen);
    state.add("round", round_, Role::frozen);
    state.add("inner", inner_, Role::inner);
    state.add("inner_adam", inner_adam_, Role::inner);
  }
  static inline const int64_t* kill_in_round = nullptr;

 protected:
  Vectors vectors() override { return {users_.value(), items_.value()}; }

 private:
  const Config config_;
  torch::Tensor fitted_, inner_;
  DenseAdam inner_adam_;
  int64_t round_ = 0;
  RowTable& users_;
  RowTable& items_;
};

const ModelInfo& staged() {
  static const ModelInfo info = model_info<Staged>("Staged", "a model of the tests");
  return info;
}

TEST(Training, KilledInsidePrepareEndsAsUnbroken) {
  const Dataset data = small_data(1);
  const Settings settings = {{"epochs", 3, "test"}};
  const fs::path whole = scratch("prepare_whole"), broken = scratch("prepare_broken");
  Trained unbroken(staged(), data, settings, whole);
  const int64_t round = 4;
  Staged::kill_in_round = &round;
  EXPECT_THROW(Trained(staged(), data, settings, broken), std::runtime_error);
  Staged::kill_in_round = nullptr;
  Trained resumed(staged(), data, settings, broken, true);
  EXPECT_TRUE(torch::equal(unbroken.scores(), resumed.scores()));
  EXPECT_EQ(without_times(whole / "metrics.jsonl"), without_times(broken / "metrics.jsonl"));
}

TEST(Training, InnerOptimiserSurvivesAResume) {
  const Dataset data = small_data(1);
  const Settings settings = {{"epochs", 3, "test"}};
  const fs::path broken = scratch("inner_broken");
  Trained unbroken(staged(), data, settings, scratch("inner_whole"));
  EXPECT_THROW(Trained(staged(), data, settings, broken, false,
                       [](int64_t epoch) {
                         if (epoch == 1) throw std::runtime_error("killed");
                       }),
               std::runtime_error);
  Trained resumed(staged(), data, settings, broken, true);
  EXPECT_TRUE(torch::equal(unbroken.scores(), resumed.scores()));
}

/// The epochs that checkpoints/last held at the ends of the epochs of a run.
std::set<int64_t> kept_epochs(const Dataset& data, const Settings& settings) {
  const fs::path folder = scratch("kept");
  std::set<int64_t> out;
  const Trained trained(staged(), data, settings, folder, false, [&](int64_t) {
    const Json state = read_json(folder / "checkpoints" / "last" / "state.json");
    out.insert(state["values"]["trainer.epoch"].get<int64_t>());
  });
  EXPECT_GT(trained.result.checkpoint_s, 0);
  EXPECT_EQ(*out.rbegin(), trained.result.n_epochs) << "the last epoch is always kept";
  return out;
}

// An epoch of small data takes less than twenty times what a checkpoint does.
TEST(Training, CheckpointsComeAsOftenAsTheirCostAllows) {
  const Dataset data = small_data(1);
  const Settings settings = {{"epochs", 30, "test"}, {"stopping_step", 100, "test"}};
  EXPECT_LT(kept_epochs(data, settings).size(), 30u);
  Settings each = settings;
  each.push_back({"checkpoint", 1, "test"});
  EXPECT_EQ(kept_epochs(data, each).size(), 30u);
  each.back().value = 10;
  EXPECT_EQ(kept_epochs(data, each), (std::set<int64_t>{0, 10, 20, 30}));
}

TEST(Training, KilledBetweenCheckpointsEndsAsUnbroken) {
  const Dataset data = small_data(1);
  const Settings settings = {{"epochs", 9, "test"}, {"checkpoint", 4, "test"}};
  const fs::path whole = scratch("between_whole"), broken = scratch("between_broken");
  Trained unbroken(staged(), data, settings, whole);
  EXPECT_THROW(Trained(staged(), data, settings, broken, false,
                       [](int64_t epoch) {
                         if (epoch == 6) throw std::runtime_error("killed");
                       }),
               std::runtime_error);
  const Json state = read_json(broken / "checkpoints" / "last" / "state.json");
  EXPECT_EQ(state["values"]["trainer.epoch"], 4);
  Trained resumed(staged(), data, settings, broken, true);
  EXPECT_TRUE(torch::equal(unbroken.scores(), resumed.scores()));
  EXPECT_EQ(without_times(whole / "metrics.jsonl"), without_times(broken / "metrics.jsonl"));
}

// Counted by results that a run had before it went on.
TEST(Training, LooksAtTestAreCountedOn) {
  const Dataset data = small_data(1);
  const Settings settings = {{"epochs", 2, "test"}};
  TrainConfig config = training(settings, staged(), scratch("looks"));
  fs::create_directories(config.folder);
  config.resume = true;
  config.test_looks = 5;
  auto model = staged().make({}, Context{data.view(), Random(1), config.settings, {}});
  EXPECT_EQ(train_model(*model, data, config).test_looks, 6);
}

TEST(Training, DivergenceNamesEpochAndPart) {
  const Dataset data = small_data(1);
  try {
    Trained(staged(), data, {{"epochs", 3, "test"}, {"poison_step", 1, "test"}});
    FAIL() << "a NaN loss went through";
  } catch (const RunError& e) {
    EXPECT_EQ(e.code(), Exit::diverged);
    EXPECT_NE(std::string(e.what()).find("epoch 0: loss part 'poisoned'"), std::string::npos)
        << e.what();
  }
}

/// A model whose steps do not all have the same parts.
class Varying : public FactorModel {
 public:
  explicit Varying(const Context& context)
      : FactorModel(context), users_(parameter("users", torch::ones({data_.n_users, 2}))) {}
  Abilities abilities() const override { return {}; }
  BatchSpec batch_spec() const override { return {.unit = BatchSpec::Unit::pair}; }
  Loss loss(const Batch& batch) override {
    const auto total = users_.square().mean(), one = torch::ones({});
    if (batch.step % 2 == 1) return {total, {{"first", one}, {"always", 2 * one}}};
    return {total, {{"always", 4 * one}, {"second", 8 * one}, {"third", 16 * one}}};
  }

 protected:
  Vectors vectors() override { return {users_, torch::ones({data_.n_items, 2})}; }

 private:
  torch::Tensor& users_;
};

TEST(Training, LossPartsAreSummedByName) {
  const Dataset data = small_data(1);
  const fs::path folder = scratch("parts");
  fs::create_directories(folder);
  const auto batch = static_cast<int64_t>((data.train.n_rows() + 3) / 4);
  TrainConfig config = training({{"epochs", 1, "test"}, {"train_batch_size", batch, "test"}},
                                find_model("BPR"), folder);
  Varying model(Context{data.view(), Random(1), config.settings, {}});
  EXPECT_EQ(train_model(model, data, config).n_steps, 4);
  std::ifstream in(folder / "metrics.jsonl");
  std::string line;
  std::getline(in, line);
  const Json loss = Json::parse(line)["loss"];
  EXPECT_EQ(loss["first"], 1.0 * 2 / 4);
  EXPECT_EQ(loss["always"], (2.0 * 2 + 4.0 * 2) / 4);
  EXPECT_EQ(loss["second"], 8.0 * 2 / 4);
  EXPECT_EQ(loss["third"], 16.0 * 2 / 4);
}

TEST(Training, InterruptedWithAndWithoutCheckpoint) {
  const Dataset data = small_data(1);
  for (const bool with : {false, true}) {
    const fs::path folder = scratch("interrupted");
    fs::create_directories(folder);
    TrainConfig config = training({{"epochs", 3, "test"}}, staged(), with ? folder : fs::path());
    int64_t asked = 0;
    config.stop_requested = [&] { return ++asked > 1; };
    auto model = staged().make({}, Context{data.view(), Random(1), config.settings, {}});
    try {
      train_model(*model, data, config);
      FAIL() << "the request to stop was not heard";
    } catch (const RunError& e) {
      EXPECT_EQ(e.code(), with ? Exit::interrupted : Exit::interrupted_without_checkpoint);
    }
  }
}

TEST(Training, WithoutValidationRowsEpochsMustBeGiven) {
  Dataset data = small_data(1);
  data.valid = {};
  EXPECT_THROW(Trained(staged(), data, {}), InputError);
  Trained trained(staged(), data, {{"epochs", 2, "test"}});
  EXPECT_EQ(trained.result.n_epochs, 2);
  EXPECT_EQ(trained.result.best_epoch, 1) << "all epochs run, the last is kept";
  EXPECT_FALSE(trained.result.valid.has_value());
}

TEST(Training, WithoutTestRowsNothingIsLookedAt) {
  Dataset data = small_data(1);
  data.test = {};
  Trained trained(staged(), data, {{"epochs", 2, "test"}});
  EXPECT_FALSE(trained.result.test.has_value());
  EXPECT_EQ(trained.result.test_looks, 0);
}

TEST(Training, TestIsLookedAtOnceOrEveryEpochForTheCurve) {
  const Dataset data = small_data(1);
  EXPECT_EQ(Trained(staged(), data, {{"epochs", 3, "test"}}).result.test_looks, 1);
  const fs::path folder = scratch("curve");
  EXPECT_EQ(Trained(staged(), data, {{"epochs", 3, "test"}, {"test_curve", true, "test"}}, folder)
                .result.test_looks,
            4);
  std::ifstream in(folder / "test_curve.jsonl");
  int lines = 0;
  for (std::string line; std::getline(in, line); ++lines) {
    EXPECT_NE(line.find("diagnostic"), std::string::npos);
  }
  EXPECT_EQ(lines, 3);
}

TEST(Training, TimeLimitEndsInGoodOrder) {
  const Dataset data = small_data(1);
  Trained trained(staged(), data,
                  {{"epochs", 100000, "test"},
                   {"time_limit", 0.01, "test"},
                   {"stopping_step", 100000, "test"}});
  EXPECT_EQ(trained.result.stopped_by, "time_limit");
  EXPECT_GE(trained.result.best_epoch, 0);
}

// Seconds of prepare() count once: 1 of 1.8 leaves time for two epochs.
TEST(Training, TimeLimitCountsPretrainingOnce) {
  const Dataset data = small_data(1);
  const Settings settings = {
      {"epochs", 2, "test"}, {"time_limit", 0.03, "test"}, {"prepare_s", 1.0, "test"}};
  EXPECT_EQ(Trained(staged(), data, settings).result.stopped_by, "epochs");
}

TEST(Training, ClippedGradientsAndWeightDecayTrain) {
  const Dataset data = small_data(1);
  Trained plain(staged(), data, {{"epochs", 1, "test"}});
  Trained clipped(staged(), data, {{"epochs", 1, "test"}, {"clip_grad_norm", 1e-3, "test"}});
  Trained decayed(staged(), data, {{"epochs", 1, "test"}, {"weight_decay", 0.1, "test"}});
  EXPECT_FALSE(torch::equal(plain.scores(), clipped.scores()));
  EXPECT_FALSE(torch::equal(plain.scores(), decayed.scores()));
  EXPECT_TRUE(decayed.scores().isfinite().all().item<bool>());
}

// style.md, randomness: for different thread counts the first losses agree to 1e-5.
TEST(Training, ThreadsDoNotChangeTheStart) {
  const Dataset data = small_data(1);
  const ModelInfo& info = find_model("LightGCN");
  std::vector<double> losses;
  for (const int threads : {1, 2}) {
    torch::set_num_threads(threads);
    const fs::path folder = scratch("threads");
    Trained trained(info, data, {{"epochs", 1, "test"}}, folder);
    std::ifstream in(folder / "metrics.jsonl");
    std::string line;
    std::getline(in, line);
    losses.push_back(Json::parse(line)["loss"]["total"].get<double>());
  }
  EXPECT_NEAR(losses[0], losses[1], 1e-5);
}

TEST(Training, BprBySgdLearnsResumesAndIgnoresThreads) {
  const Dataset data = learning_data();
  const ModelInfo& bpr = find_model("BPR");
  const Settings sgd = {{"optimizer", "sgd", "test"}, {"epochs", 20, "test"}};
  EXPECT_EQ(resolve_settings(bpr, sgd).train_settings.learning_rate, 0.05);
  torch::set_num_threads(1);
  const fs::path whole = scratch("sgd_whole"), broken = scratch("sgd_broken");
  Trained one(bpr, data, sgd, whole);
  torch::set_num_threads(2);
  EXPECT_TRUE(torch::equal(one.scores(), Trained(bpr, data, sgd).scores()));
  Trained popularity(find_model("Popularity"), data, {});
  EXPECT_GE(one.result.test->value("recall@20"), 1.5 * popularity.result.test->value("recall@20"));
  struct Killed {};
  EXPECT_THROW(Trained(bpr, data, sgd, broken, false,
                       [](int64_t epoch) {
                         if (epoch == 7) throw Killed{};
                       }),
               Killed);
  EXPECT_TRUE(torch::equal(one.scores(), Trained(bpr, data, sgd, broken, true).scores()));
  for (const auto& other : Settings{{"reg", "norm", "test"}, {"clip_grad_norm", 1, "test"}}) {
    Settings mixed = sgd;
    mixed.push_back(other);
    EXPECT_THROW(Trained(bpr, data, mixed), InputError) << other.name;
  }
}

}  // namespace
}  // namespace tessera
