// What the trainer, the wrappers and several processes rely on, for every registered model.
#include <gtest/gtest.h>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/model/bundle.h"
#include "tessera/model/forwarding_model.h"
#include "tessera/model/offers.h"
#include "tessera/serve/recommender.h"
#include "tests/contract/training.h"

namespace tessera {
namespace {

class EveryJoint : public testing::TestWithParam<std::string> {
 protected:
  const ModelInfo& info() const { return find_model(GetParam()); }
  std::unique_ptr<Model> made(const Dataset& data, const Settings& given) const {
    const TrainSettings train = resolve_settings(info(), given).train_settings;
    return info().make(given, Context{data.view(), Random(7), train, {}});
  }
};

INSTANTIATE_TEST_SUITE_P(Registry, EveryJoint, testing::ValuesIn(model_names()),
                         [](const auto& info) { return squeezed(info.param); });

torch::Tensor scores_of(Model& model) {
  return model.score({torch::arange(model.data().n_users, torch::kInt64), {}});
}

TEST_P(EveryJoint, AWrappedModelLosesNothing) {
  const Dataset data = small_data(2);
  std::vector<Settings> cases = {{{"epochs", 2, "test"}}};
  if (GetParam() == "BPR") cases.push_back({{"epochs", 2, "test"}, {"optimizer", "sgd", "test"}});
  for (const Settings& given : cases) {
    const auto plain = made(data, given), inner = made(data, given);
    const TrainConfig config = training(given, info());
    ForwardingModel wrapped(*inner, Context{data.view(), Random(7), config.settings, {}});
    const BatchSpec want = plain->batch_spec(), found = wrapped.batch_spec();
    EXPECT_EQ(want.unit, found.unit);
    EXPECT_EQ(want.pool, found.pool);
    EXPECT_EQ(want.split, found.split);
    EXPECT_EQ(want.distinct, found.distinct);
    EXPECT_EQ(plain->axes(), wrapped.axes());
    const TrainResult a = train_model(*plain, data, config), b = train_model(wrapped, data, config);
    EXPECT_EQ(a.best_score, b.best_score);
    EXPECT_TRUE(torch::equal(scores_of(*plain), scores_of(wrapped)));
    ASSERT_TRUE(a.test && b.test);
    EXPECT_EQ(a.test->metrics, b.test->metrics);
    EXPECT_EQ(a.test->audit, b.test->audit);
    const Offers own = inner->offers(), handed = wrapped.offers();
    EXPECT_EQ(own.features, handed.features);
    EXPECT_EQ(own.rows, handed.rows);
    EXPECT_EQ(own.items, handed.items);
    EXPECT_EQ(own.pretraining, handed.pretraining);
    EXPECT_EQ(own.report, handed.report);
    EXPECT_EQ(own.step, handed.step);
    EXPECT_EQ(own.mask, handed.mask);
    State one, other;
    plain->state(one);
    wrapped.state(other);
    EXPECT_EQ(one.entries().size(), other.entries().size());
  }
}

// What a class offers is found in the one place where it is looked for.
TEST_P(EveryJoint, OffersWhatItIs) {
  const Dataset data = small_data(2);
  const auto model = made(data, {});
  const Offers offers = model->offers();
  EXPECT_EQ(offers.features, dynamic_cast<FeatureSupplier*>(model.get()));
  EXPECT_EQ(offers.rows, dynamic_cast<RowEncoder*>(model.get()));
  EXPECT_EQ(offers.items, dynamic_cast<ItemEncoder*>(model.get()));
  EXPECT_EQ(offers.pretraining, dynamic_cast<ItemPretrainer*>(model.get()));
  EXPECT_EQ(offers.report, dynamic_cast<Reporter*>(model.get()));
  EXPECT_EQ(offers.mask, dynamic_cast<EvalMask*>(model.get()));
  if (dynamic_cast<OwnStep*>(model.get()) == nullptr) {
    EXPECT_EQ(offers.step, nullptr);
  }
}

// 61 users and 47 items: no width of a model is that.
TEST_P(EveryJoint, MarksRowsOfUsersAndItems) {
  PlantedOptions options;
  options.n_users = 61;
  options.n_items = 47;
  options.mean_rows = 10;
  options.n_modalities = 2;
  const Dataset data = planted_pairs(options);
  const auto model = made(data, {});
  std::map<std::string, Axis> marked;
  for (const auto& [name, axis] : model->axes()) marked[name] = axis;
  const auto check = [&](const std::string& name, int64_t n_rows) {
    const auto found = marked.find(name);
    const Axis axis = found == marked.end() ? Axis::whole : found->second;
    EXPECT_EQ(axis == Axis::by_user, n_rows == data.n_users) << name;
    EXPECT_EQ(axis == Axis::by_item, n_rows == data.n_items) << name;
  };
  size_t n_marked = 0;
  for (const auto& group : model->parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) {
      check(name, tensor->dim() > 0 ? tensor->size(0) : 0);
      n_marked += marked.count(name);
    }
    for (const auto& [name, table] : group.tables) {
      check(name, table->n_rows());
      n_marked += marked.count(name);
    }
  }
  EXPECT_LE(n_marked, marked.size());
}

// What is trained does not depend on what is held out: other test rows, the same weights.
TEST_P(EveryJoint, TestRowsChangeNothing) {
  Dataset data = small_data(2), other = small_data(2);
  other.test = other.valid;
  const Settings given = {{"epochs", 2, "test"}};
  Trained one(info(), data, given), two(info(), other, given);
  EXPECT_TRUE(torch::equal(one.scores(), two.scores()));
  EXPECT_EQ(one.result.best_score, two.result.best_score);
}

TEST_P(EveryJoint, OneScorerAnswersAlikeInListsAndWhole) {
  const Dataset data = small_data(2);
  Trained trained(info(), data, {{"epochs", 1, "test"}});
  const auto scorer = trained.model->freeze();
  EXPECT_EQ(scorer->n_items(), data.n_items);
  const Queries everybody{torch::arange(data.n_users, torch::kInt64), {}};
  const TopLists lists = scorer->top(everybody, {}, {}, 10);
  const TopK want = top_k_scores(scorer->scores(everybody), {}, 10);
  EXPECT_TRUE(torch::allclose(lists.scores, want.scores, 1e-5, 1e-6));
  if (const auto vectors = scorer->item_vectors(); vectors.defined()) {
    EXPECT_EQ(vectors.size(0), data.n_items);
  }
  EXPECT_GE(scorer->spread(Random(1)).deviation, 0);
}

// The stored graphs and directions are read, nothing is fitted again.
TEST_P(EveryJoint, ABundleAnswersTheSameBitsElsewhere) {
  const Dataset data = small_data(2);
  const int threads = at::get_num_threads();
  Trained trained(info(), data, {{"epochs", 1, "test"}});
  const fs::path folder = scratch("elsewhere_" + squeezed(GetParam())),
                 moved = scratch("moved_" + squeezed(GetParam()));
  save_bundle(folder, *trained.model, data, info(), trained.settings, Json::object());
  const auto lists = [&](const fs::path& from, const BundleUse& use) {
    const Recommender recommender(load_bundle(from, {}, use));
    std::vector<std::vector<std::pair<int64_t, double>>> out;
    recommender.recommend({.n = 20, .all_users = true}, [&](Answer&& answer) {
      out.emplace_back();
      for (const auto& one : answer.items) out.back().emplace_back(one.item, one.score);
    });
    return out;
  };
  for (const BundleUse& use : {BundleUse(), BundleUse{.answers = true}}) {
    at::set_num_threads(1);
    const auto want = lists(folder, use);
    at::set_num_threads(2);
    fs::rename(folder, moved);
    const auto found = lists(moved, use);
    fs::rename(moved, folder);
    // A GRU's products are the BLAS's, which sums otherwise on other threads.
    if (GetParam() != "GRU4Rec" && GetParam() != "KDSR") {
      EXPECT_EQ(found, want);
      continue;
    }
    ASSERT_EQ(found.size(), want.size());
    for (size_t user = 0; user < want.size(); ++user) {
      ASSERT_EQ(found[user].size(), want[user].size());
      for (size_t r = 0; r < want[user].size(); ++r) {
        EXPECT_NEAR(found[user][r].second, want[user][r].second, 1e-6);
      }
    }
  }
  at::set_num_threads(threads);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace tessera
