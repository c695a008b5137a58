// What every registered model must do: the registry is walked, nothing is listed.
#include <gtest/gtest.h>

#include <cmath>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/model/bundle.h"
#include "tessera/model/sampler.h"
#include "tessera/study/run.h"
#include "tests/contract/training.h"

namespace tessera {
namespace {

class EveryModel : public testing::TestWithParam<std::string> {
 protected:
  const ModelInfo& info() const { return find_model(GetParam()); }
};

/// True for models that learn from the order of a user's items.
bool reads_order(const ModelInfo& info) {
  const Dataset data = small_data(2);
  const auto model = info.make({}, Context{data.view(), Random(1), {}, {}});
  return model->abilities().takes_histories &&
         model->batch_spec().unit == BatchSpec::Unit::sequence_row;
}

INSTANTIATE_TEST_SUITE_P(Registry, EveryModel, testing::ValuesIn(model_names()),
                         [](const auto& info) { return squeezed(info.param); });

TEST_P(EveryModel, HelpAndUnknownSetting) {
  const auto fields = info().fields();
  if (!fields->names().empty()) {
    EXPECT_FALSE(fields->help().empty());
  }
  for (const auto& row : fields->rows()) EXPECT_FALSE(row.help.empty()) << row.name;
  EXPECT_FALSE(info().title.empty());
  try {
    resolve_settings(info(), {{"no_such_setting", 1, "flag"}});
    FAIL() << "an unknown setting was taken";
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_NE(std::string(e.what()).find("has no setting 'no_such_setting'"), std::string::npos);
  }
}

TEST_P(EveryModel, ScoresAllItemsFinite) {
  const Dataset data = small_data(2);
  Trained trained(info(), data, {{"epochs", 2, "test"}});
  const auto scores = trained.scores();
  EXPECT_EQ(scores.sizes(), (std::vector<int64_t>{data.n_users, data.n_items}));
  EXPECT_TRUE(scores.isfinite().all().item<bool>());
}

TEST_P(EveryModel, OneToThreeModalitiesAndItemsWithoutOne) {
  for (int n = 1; n <= 3; ++n) {
    const Dataset data = small_data(n);
    try {
      Trained trained(info(), data, {{"epochs", 1, "test"}});
      EXPECT_TRUE(trained.scores().isfinite().all().item<bool>()) << n << " modalities";
    } catch (const InputError& e) {
      // A model that compares modalities may refuse a single one, if it says so.
      EXPECT_EQ(n, 1) << e.what();
      EXPECT_NE(std::string(e.what()).find("at least two modalities"), std::string::npos);
    }
  }
}

TEST_P(EveryModel, EveryParameterLearns) {
  const Dataset data = small_data(2);
  const RunSettings settings = resolve_settings(info(), {});
  auto model = info().make({}, Context{data.view(), Random(999), settings.train_settings, {}});
  State named;
  model->state(named);
  const auto groups = model->parameter_groups();
  if (groups.empty()) GTEST_SKIP() << "closed form: nothing to train";
  State::Saved before = named.save();
  for (auto* file : {&before.weights, &before.optimizer}) {
    for (auto& [name, tensor] : *file) tensor = tensor.clone();
  }
  TrainConfig config = training({{"epochs", 1, "test"}}, info());
  train_model(*model, data, config);
  State::Saved after = named.save();
  std::set<std::string> trained;
  const auto changed = [&](const std::string& name) {
    trained.insert(name);
    for (const auto& [was, is] : {std::pair(&before.weights, &after.weights),
                                  std::pair(&before.optimizer, &after.optimizer)}) {
      if (was->contains(name)) return !torch::equal(was->at(name), is->at(name));
    }
    ADD_FAILURE() << name << " is trained but not part of the state";
    return false;
  };
  for (const auto& group : groups) {
    for (const auto& [name, tensor] : group.tensors) EXPECT_TRUE(changed(name)) << name;
    for (const auto& [name, table] : group.tables) EXPECT_TRUE(changed(name)) << name;
  }
  // Whole numbers that ranking reads, such as stored edges, have no gradient to learn by.
  const auto whole = [&](const std::string& name) {
    const auto at = before.weights.find(name);
    return at != before.weights.end() && !at->second.is_floating_point();
  };
  // A record of what a hook did is zero before and stays so where it did nothing: these data give
  // R2MR no row to rewrite.
  const auto empty_record = [&](const std::string& name) {
    const auto at = after.weights.find(name);
    return at != after.weights.end() && torch::count_nonzero(at->second).item<int64_t>() == 0;
  };
  // So is one in words, as long as it is a list: R2MR's rounds, which a bundle tells.
  const auto written_record = [&](const std::string& name) {
    return after.values.contains(name) && after.values.at(name).is_array();
  };
  // And what the features alone give before the first step: graphs of alike items (StoredGraph),
  // principal directions (StoredPca) and z-scores.
  const auto fitted = [&](const std::string& name) {
    static const std::vector<std::string> parts = {".offsets", ".items", ".weights", ".mean",
                                                   ".axes",    ".scale", ".spread"};
    const bool stored = std::any_of(parts.begin(), parts.end(),
                                    [&](const std::string& part) { return name.ends_with(part); });
    return stored && !before.weights.contains(name) && after.weights.contains(name);
  };
  for (const auto& entry : named.entries()) {
    if (trained.contains(entry.name) || whole(entry.name) || empty_record(entry.name) ||
        written_record(entry.name) || fitted(entry.name)) {
      continue;
    }
    // What ranking reads and no group trains is made by the model's hooks: R2MR's scores and rows.
    if (entry.role == Role::scoring && before.weights.contains(entry.name)) {
      EXPECT_FALSE(torch::equal(before.weights.at(entry.name), after.weights.at(entry.name)))
          << entry.name;
    } else {
      EXPECT_TRUE(entry.role == Role::inner || entry.role == Role::frozen) << entry.name;
    }
  }
}

TEST_P(EveryModel, SameSeedSameRun) {
  const Dataset data = small_data(2);
  const Settings settings = {{"epochs", 2, "test"}};
  Trained one(info(), data, settings), again(info(), data, settings);
  EXPECT_TRUE(torch::equal(one.scores(), again.scores()));
  Settings other = settings;
  other.push_back({"seed", 1000, "test"});
  if (one.model->trainable()) {
    EXPECT_FALSE(torch::equal(one.scores(), Trained(info(), data, other).scores()));
  }
}

TEST_P(EveryModel, BundleScoresTheSame) {
  const Dataset data = small_data(2);
  Trained trained(info(), data, {{"epochs", 1, "test"}});
  const fs::path folder = scratch("bundle_" + squeezed(GetParam()));
  save_bundle(folder, *trained.model, data, info(), trained.settings, Json::object());
  const Bundle bundle = load_bundle(folder);
  const Queries everybody{torch::arange(data.n_users, torch::kInt64), {}};
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::equal(trained.scores(), bundle.model->score(everybody)));
  // Where it ranks by stored vectors only the product is made anew.
  const Bundle quick = load_bundle(folder, {}, {.answers = true});
  EXPECT_TRUE(torch::allclose(trained.scores(), quick.scorer->scores(everybody), 1e-5, 1e-6));
  fs::remove_all(folder);
}

TEST_P(EveryModel, ResumesBitEqualAfterAnyEpoch) {
  const Dataset data = small_data(2);
  const Settings settings = {{"epochs", 3, "test"}};
  const fs::path whole = scratch("whole_" + squeezed(GetParam()));
  Trained unbroken(info(), data, settings, whole);
  for (int64_t epoch = 0; epoch < (unbroken.model->trainable() ? 3 : 0); ++epoch) {
    const fs::path broken = scratch("broken_" + squeezed(GetParam()));
    struct Killed {};
    EXPECT_THROW(Trained(info(), data, settings, broken, false,
                         [&](int64_t now) {
                           if (now == epoch) throw Killed{};
                         }),
                 Killed);
    Trained resumed(info(), data, settings, broken, true);
    EXPECT_TRUE(torch::equal(unbroken.scores(), resumed.scores())) << "after epoch " << epoch;
    EXPECT_EQ(without_times(whole / "metrics.jsonl"), without_times(broken / "metrics.jsonl"));
    EXPECT_EQ(unbroken.result.best_epoch, resumed.result.best_epoch);
    fs::remove_all(broken);
  }
  fs::remove_all(whole);
}

TEST_P(EveryModel, RanksColdItemsOrSaysSo) {
  const Dataset data = small_data(2);
  Trained trained(info(), data, {{"epochs", 8, "test"}});
  const auto cold = (item_counts(data.train, data.n_items) == 0).nonzero().flatten();
  ASSERT_GT(cold.numel(), 1) << "the planted data must hold items without train rows";
  const auto scores = trained.scores().index_select(1, cold);
  const double spread = (scores.amax(1) - scores.amin(1)).max().item<double>();
  if (trained.model->abilities().ranks_cold_items) {
    EXPECT_GT(spread, 0);
  }
  if (trained.model->abilities().score_reads_features) {
    EXPECT_TRUE(trained.model->abilities().uses_features);
  }
}

// Learned models at default settings: recall@20 at 1.5 times popularity within 30 epochs.
TEST_P(EveryModel, BeatsPopularityOnPlantedData) {
  // Sequence models see rows of users instead of pairs, on data whose order means something: 800
  // rows in batches of 16 are as many steps as 13,000 pairs in batches of 256.
  const bool sequential = reads_order(info());
  // BERT4Rec sees a fifth of the targets a step and needs 3 to 15 times SASRec's epochs (sequential
  // section 4): more than a test has on noisy groups, so its order is a cycle of 50 items. Its
  // positions count from the start, and all users here have 14 rows: a window of 10 keeps MASK,
  // which stands after the last of them, on a position that training has seen.
  const bool cloze = GetParam() == "BERT4Rec";
  PlantedSequenceOptions cycle;
  cycle.n_items = cycle.n_groups = 50;
  cycle.follow = 0.9;
  const Dataset data = cloze        ? planted_sequences(cycle)
                       : sequential ? planted_sequences()
                                    : learning_data();
  Trained popularity(find_model("Popularity"), data, {});
  if (GetParam() == "Popularity") {
    EXPECT_GT(popularity.result.test->value("recall@20"), 0);
    return;
  }
  // 13,000 pairs: batches of 256 give 30 epochs the steps that 2048 gives on data of real size.
  Settings settings = {{"epochs", 30, "test"}, {"train_batch_size", sequential ? 16 : 256, "test"}};
  if (cloze) settings.push_back({"max_length", 10, "test"});
  Trained trained(info(), data, settings);
  EXPECT_GE(trained.result.test->value("recall@20"),
            1.5 * popularity.result.test->value("recall@20"));
}

}  // namespace
}  // namespace tessera
