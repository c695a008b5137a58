// Items that came after training, for every registered model: those that offer ItemEncoder rank
// them by their features, the others say that they cannot.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "tessera/base/error.h"
#include "tessera/model/bundle.h"
#include "tessera/model/offers.h"
#include "tessera/ops/unit_rows.h"
#include "tessera/serve/recommender.h"
#include "tests/contract/training.h"

namespace tessera {
namespace {

class NewItemsOf : public testing::TestWithParam<std::string> {
 protected:
  const ModelInfo& info() const { return find_model(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Registry, NewItemsOf, testing::ValuesIn(model_names()),
                         [](const auto& info) { return squeezed(info.param); });

/// Rows that those items of the training have, for new ones.
std::vector<Feature> copies(const Dataset& data, const std::vector<int64_t>& items) {
  std::vector<Feature> out;
  for (const Feature& feature : data.features) {
    Feature copy;
    copy.name = feature.name;
    const auto index = torch::tensor(items, torch::kInt64);
    const auto there = feature.present().index_select(0, index);
    copy.rows = MappedArray(feature.gather(index));
    const auto numbers = torch::arange(index.size(0), torch::kInt32);
    copy.row_of_item = torch::where(there, numbers, torch::full_like(numbers, -1)).contiguous();
    out.push_back(copy);
  }
  return out;
}

Queries everybody(const Dataset& data) { return {torch::arange(data.n_users, torch::kInt64), {}}; }

/// Correlation over the users of two columns of scores.
double correlation(const torch::Tensor& a, const torch::Tensor& b) {
  const auto x = (a - a.mean()).to(torch::kDouble), y = (b - b.mean()).to(torch::kDouble);
  return (x.dot(y) / (x.norm() * y.norm()).clamp_min(1e-12)).item<double>();
}

template <typename Body>
std::string refused(Exit code, Body body) {
  try {
    body();
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

NewItems shop_items(const Dataset& data, const std::vector<int64_t>& from,
                    const std::vector<std::string>& ids) {
  NewItems out;
  for (const auto& id : ids) out.ids.add(id);
  out.features = copies(data, from);
  return out;
}

/// Items by their train rows, most first.
std::vector<int64_t> popular(const Dataset& data, int64_t n) {
  const auto order = item_counts(data.train, data.n_items).argsort(/*stable=*/true, 0, true);
  return {order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + n};
}

std::vector<int64_t> cold_items(const Dataset& data) {
  const auto items = (item_counts(data.train, data.n_items) == 0).nonzero().flatten();
  return {items.const_data_ptr<int64_t>(), items.const_data_ptr<int64_t>() + items.numel()};
}

TEST_P(NewItemsOf, AreRankedLikeItemsWithTheirFeatures) {
  PlantedOptions options;
  options.n_users = 150;
  options.n_items = 120;
  const Dataset data = planted_pairs(options);
  Trained trained(info(), data, {{"epochs", 12, "test"}});
  auto* encoder = trained.model->offers().items;
  if (encoder == nullptr) GTEST_SKIP() << "takes no new items";
  const auto before = trained.model->freeze();
  const auto old = before->scores(everybody(data));
  const auto from = popular(data, 30);
  const auto n = static_cast<int64_t>(from.size());
  const auto after = encoder->with_items(*before, copies(data, from), n);
  ASSERT_EQ(after->n_items(), data.n_items + n);
  EXPECT_EQ(before->n_items(), data.n_items);
  const auto scores = after->scores(everybody(data));
  EXPECT_TRUE(torch::equal(scores.narrow(1, 0, data.n_items), old));
  const auto added = scores.narrow(1, data.n_items, n);
  EXPECT_TRUE(added.isfinite().all().item<bool>());
  double same = 0, other = 0;
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_TRUE(after->has_vector(data.n_items + i));
    const auto column = added.select(1, i);
    EXPECT_GT(column.std().item<double>(), 0);
    same += correlation(column, old.select(1, from[static_cast<size_t>(i)]));
    other += correlation(column, old.select(1, from[static_cast<size_t>((i + n / 2) % n)]));
  }
  same /= static_cast<double>(n);
  other /= static_cast<double>(n);
  EXPECT_GT(same, other + 0.25) << "like what it copies " << same << ", like another " << other;
  // Once more: the numbers go on.
  const auto twice = encoder->with_items(*after, copies(data, {from[0]}), 1);
  ASSERT_EQ(twice->n_items(), data.n_items + n + 1);
  const auto last = twice->scores(everybody(data));
  EXPECT_TRUE(torch::equal(last.narrow(1, 0, data.n_items + n), scores));
  EXPECT_TRUE(torch::allclose(last.select(1, data.n_items + n), added.select(1, 0), 1e-5, 1e-6));
}

TEST_P(NewItemsOf, WithoutAModalityAndWhatIsRefused) {
  const Dataset data = small_data(2);
  Trained trained(info(), data, {{"epochs", 2, "test"}});
  auto* encoder = trained.model->offers().items;
  if (encoder == nullptr) GTEST_SKIP() << "takes no new items";
  const auto before = trained.model->freeze();
  auto given = copies(data, popular(data, 3));
  const auto with = [&](const std::vector<Feature>& features) {
    return encoder->with_items(*before, features, 3);
  };
  for (size_t m = 0; m < given.size(); ++m) {
    const auto scores = with({given[m]})->scores(everybody(data));
    EXPECT_TRUE(scores.isfinite().all().item<bool>()) << "with " << given[m].name << " alone";
    auto gap = given;
    gap[m].row_of_item = torch::tensor({0, -1, 2}, torch::kInt32);
    EXPECT_TRUE(with(gap)->scores(everybody(data)).isfinite().all().item<bool>());
  }
  EXPECT_NE(refused(Exit::data, [&] { with({}); }).find("none of the features image, text"),
            std::string::npos);
  auto wrong = given;
  wrong[1].rows = MappedArray(torch::ones({3, 7}));
  EXPECT_NE(refused(Exit::data, [&] { with(wrong); }).find("'text'"), std::string::npos);
}

// Items without a train row stand where a new one stands: no users, features alone.
TEST_P(NewItemsOf, AColdItemsFeaturesScoreAsItDoes) {
  PlantedOptions options;
  options.n_users = 80;
  options.n_items = 60;
  options.n_cold = 6;
  options.missing = 0.2;
  const Dataset data = planted_pairs(options);
  std::vector<Settings> cases;
  const std::string name = GetParam();
  if (name == "VBPR") {
    cases = {{},
             {{"missing", "mean", "test"}},
             {{"variant", "released", "test"}},
             {{"visual", "projection", "test"}}};
  } else if (name == "PAMD") {
    cases = {{}, {{"missing", "mask", "test"}}, {{"tokens", "whole", "test"}}};
  } else if (name == "R2MR") {
    cases = {{{"preset", "tiny", "test"}},
             {{"preset", "tiny", "test"}, {"reviewer", "bpr", "test"}},
             {{"preset", "tiny", "test"}, {"reviewer", "random", "test"}}};
  } else {
    GTEST_SKIP() << "a cold item of the training has what a new one has not";
  }
  const auto cold = cold_items(data);
  ASSERT_GE(cold.size(), 6U);
  const auto n = static_cast<int64_t>(cold.size());
  for (Settings given : cases) {
    given.push_back({"epochs", 3, "test"});
    Trained trained(info(), data, given);
    const auto before = trained.model->freeze();
    const auto after = trained.model->offers().items->with_items(*before, copies(data, cold), n);
    const auto scores = after->scores(everybody(data));
    const auto want = scores.index_select(1, torch::tensor(cold, torch::kInt64));
    const auto found = scores.narrow(1, data.n_items, n);
    // Products of other row counts round otherwise: 1e-6 of the largest score, which is above 1.
    const double scale = std::max(1.0, want.abs().max().item<double>());
    EXPECT_LE((found - want).abs().max().item<double>(), 1e-6 * scale) << given[0].name;
  }
}

TEST(NewItems, SettingsThatCannotTakeThemSaySo) {
  const Dataset data = small_data(2);
  const auto from = cold_items(data);
  const auto refusal = [&](const std::string& name, Settings given) {
    given.push_back({"epochs", 1, "test"});
    Trained trained(find_model(name), data, given);
    auto features = copies(data, from);
    features[0].row_of_item[0] = -1;
    return refused(Exit::usage, [&] {
      trained.model->offers().items->with_items(*trained.model->freeze(), features,
                                                static_cast<int64_t>(from.size()));
    });
  };
  EXPECT_EQ(refusal("PAMD", {{"missing", "decode", "test"}}).find("PAMD.missing = decode"), 0U);
  EXPECT_EQ(refusal("R2MR", {{"item_id", "table", "test"}}).find("R2MR.item_id = table"), 0U);
  EXPECT_EQ(refusal("R2MR", {{"floor", 0.0, "test"}}).find("R2MR.floor = 0"), 0U);
  EXPECT_EQ(refusal("FREEDOM", {{"k", 1, "test"}}).find("k = 1"), 0U);
  EXPECT_EQ(refusal("MGCN", {{"k", 1, "test"}}).find("k = 1"), 0U);
}

/// S of features alone where every item has the rows: row n of the graph of n + 1 items is what the
/// later one gets, but for the trained items that have it among their own neighbours.
TEST(NewItems, FreedomsStepIsThatOfAGraphWithOneItemMore) {
  // Items 0 and 1 point one way, 2 and 3 another; the new item lies nearest to 0 and 1.
  const auto rows = torch::tensor({{1.F, 0.F}, {1.F, .1F}, {0.F, 1.F}, {-.1F, 1.F}});
  Feature image;
  image.name = "image";
  image.rows = MappedArray(rows);
  image.row_of_item = torch::arange(4, torch::kInt32);
  const std::vector<int32_t> users = {0, 0, 1, 1}, items = {0, 1, 2, 3};
  const Dataset data =
      make_dataset(2, 4, make_interactions(2, users, items), {}, {}, {std::move(image)});
  Trained trained(find_model("FREEDOM"), data,
                  {{"epochs", 1, "test"}, {"k", 3, "test"}, {"embedding_size", 2, "test"}});
  State state;
  trained.model->state(state);
  const auto ids = state.save().weights.at("item_embedding");
  const auto scorer = trained.model->freeze();
  Feature more;
  more.name = "image";
  more.rows = MappedArray(torch::tensor({{1.F, .05F}, {0.F, 0.F}}));
  more.row_of_item = torch::arange(2, torch::kInt32);
  const auto after = trained.model->offers().items->with_items(*scorer, {more}, 2);
  // Two neighbours of weight 1 and itself: D = 3, as each trained row has three.
  const auto found = after->item_vectors();
  EXPECT_TRUE(torch::allclose(found[4], (ids[0] + ids[1]) / 3, 1e-5, 1e-6));
  EXPECT_EQ(found[5].abs().sum().item<float>(), 0);
}

/// The step over alike items of R2MR counts the new item itself: near copies, near vectors.
TEST(NewItems, R2mrsItemGraphTakesThem) {
  const Dataset data = small_data(2);
  Trained trained(
      find_model("R2MR"), data,
      {{"epochs", 2, "test"}, {"preset", "tiny", "test"}, {"item_graph", true, "test"}});
  const auto from = cold_items(data);
  const auto n = static_cast<int64_t>(from.size());
  const auto after =
      trained.model->offers().items->with_items(*trained.model->freeze(), copies(data, from), n);
  const auto unit = unit_rows(after->item_vectors());
  const auto alike =
      (unit.narrow(0, data.n_items, n) * unit.index_select(0, torch::tensor(from, torch::kInt64)))
          .sum(1);
  EXPECT_GT(alike.min().item<float>(), 0.7) << alike;
}

TEST_P(NewItemsOf, ABundleTakesThemOrSaysThatItCannot) {
  const Dataset data = small_data(2);
  const fs::path folder = scratch("new_items_" + squeezed(GetParam()));
  Trained trained(info(), data, {{"epochs", 2, "test"}});
  const bool takes = trained.model->offers().items != nullptr;
  save_bundle(folder, *trained.model, data, info(), trained.settings, Json::object());
  Recommender recommender(load_bundle(folder));
  const int64_t from = popular(data, 1)[0];
  const NewItems items = shop_items(data, {from}, {"fresh"});
  if (!takes) {
    const auto said = refused(Exit::usage, [&] { recommender.add_items(items); });
    EXPECT_NE(said.find("cannot rank items that it was not trained with"), std::string::npos);
    fs::remove_all(folder);
    return;
  }
  // Who asks meanwhile keeps the items that were there when it began.
  const std::string user(data.user_ids[0]);
  std::atomic<bool> stop = false;
  std::atomic<int64_t> wrong = 0;
  const auto held = recommender.version();
  std::thread asks([&] {
    while (!stop) {
      const auto now = recommender.version();
      const auto n = now->scorer->n_items();
      wrong += n != now->catalogue->size() || (n != data.n_items && n != data.n_items + 1);
      recommender.recommend({.users = {user}, .n = 5});
    }
  });
  recommender.add_items(items);
  stop = true;
  asks.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(held->scorer->n_items(), data.n_items);
  EXPECT_EQ(held->catalogue->find("fresh"), -1);
  const auto now = recommender.version();
  ASSERT_EQ(now->catalogue->find("fresh"), data.n_items);
  // As the trained model ranks it, before it was written and read.
  const auto want = trained.model->offers()
                        .items->with_items(*trained.model->freeze(), items.features, 1)
                        ->scores(everybody(data));
  const auto answer =
      recommender.recommend({.users = {user}, .n = data.n_items + 1, .filter_seen = false})[0];
  const auto at = std::find_if(answer.items.begin(), answer.items.end(),
                               [&](const auto& one) { return one.item == data.n_items; });
  ASSERT_NE(at, answer.items.end());
  EXPECT_EQ(now->catalogue->id(at->item), "fresh");
  EXPECT_NEAR(at->score, want[0][data.n_items].item<double>(), 1e-5);
  EXPECT_NE(refused(Exit::usage, [&] { recommender.add_items(items); }).find("'fresh'"),
            std::string::npos);
  if (now->unit_items.defined()) {
    const auto near = recommender.similar("fresh", 5);
    EXPECT_EQ(near.size(), 5U);
    for (const auto& one : near) EXPECT_NE(one.item, data.n_items);
  }
  fs::remove_all(folder);
}

}  // namespace
}  // namespace tessera
