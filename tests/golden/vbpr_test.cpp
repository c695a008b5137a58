// VBPR against plain tensor operations (specs baselines section 5), with features in float32 and,
// as they are read, in float16.
#include "tessera/data/npy.h"
#include "tessera/ops/fill.h"
#include "tests/golden/golden_model.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

constexpr int64_t kUsers = 5, kItems = 6, kWidth = 3;  // of the ID vectors

/// Two modalities, the second without a row for item 4; their numbers are float16's own.
Dataset instance(bool halves, const TempFolder& folder) {
  const std::vector<int32_t> users = {0, 0, 1, 2, 3, 4}, items = {0, 1, 1, 2, 3, 5};
  std::vector<Feature> features;
  for (const auto& [name, width] : {std::pair{"image", 7}, {"text", 2}}) {
    Feature f = feature(name, normal(kItems, width, 0, 1, Random(3, name)).to(torch::kHalf));
    if (halves) {
      const auto path = folder / (name + std::string(".npy"));
      write_npy(path, f.all().to(torch::kHalf));
      f.rows = map_npy(path);
    }
    features.push_back(std::move(f));
  }
  features[1].row_of_item[4] = -1;
  return make_dataset(kUsers, kItems, make_interactions(kUsers, users, items), {}, {},
                      std::move(features));
}

struct Composed {
  torch::Tensor total, users, ids, bias, projection, visual_bias, projection_bias, scores;
};

torch::Tensor leaf(GoldenModel& golden, const std::string& name) {
  State state;
  golden.model->state(state);
  const auto saved = state.save();
  const auto found = saved.weights.find(name);
  return found == saved.weights.end() ? torch::Tensor()
                                      : found->second.detach().clone().requires_grad_();
}

/// The published loss word by word; `released`: one vector a user, E f + c beside the ID, norms.
Composed composed(GoldenModel& golden, bool released, double reg, double reg_bias) {
  Composed out;
  out.users = leaf(golden, "user_embedding");
  out.ids = leaf(golden, "item_embedding");
  out.bias = leaf(golden, "item_bias");
  out.projection = leaf(golden, "projection");
  out.visual_bias = leaf(golden, "visual_bias");
  out.projection_bias = leaf(golden, "projection_bias");
  std::vector<torch::Tensor> rows;
  for (const auto& feature : golden.data.features) rows.push_back(feature.all());
  if (released) std::swap(rows[0], rows[1]);
  const auto f = torch::cat(rows, 1);
  auto seen = f.matmul(out.projection.t());
  if (released) seen = seen + out.projection_bias;
  const auto items = torch::cat({out.ids, seen}, 1);
  const Batch& b = golden.batch;
  const auto n = b.negatives.flatten();
  const auto offset =
      released ? torch::zeros({kItems}) : (out.bias + f.matmul(out.visual_bias.t())).flatten();
  const auto score = [&](const torch::Tensor& i) {
    return (out.users.index_select(0, b.users) * items.index_select(0, i)).sum(1) +
           offset.index_select(0, i);
  };
  out.total = torch::softplus(score(n) - score(b.positives)).mean();
  const auto size = static_cast<double>(b.users.numel());
  const auto penalty = [&](const torch::Tensor& table, const torch::Tensor& i) {
    const auto some = table.index_select(0, i);
    return released ? some.norm() / size : some.square().sum() / (2 * size);
  };
  const auto& table = released ? items : out.ids;
  out.total = out.total +
              reg * (penalty(out.users, b.users) + penalty(table, b.positives) + penalty(table, n));
  if (!released) {
    out.total = out.total + reg_bias * (penalty(out.bias, b.positives) + penalty(out.bias, n));
  }
  out.total.backward();
  const auto trained = (item_counts(golden.data.train, kItems) > 0).to(torch::kFloat).unsqueeze(1);
  out.scores = out.users.matmul(torch::cat({out.ids * trained, seen}, 1).t());
  if (!released) {
    out.scores = out.scores + (out.bias * trained + f.matmul(out.visual_bias.t())).t();
  }
  return out;
}

GoldenModel golden(bool halves, const std::string& variant, const TempFolder& folder) {
  GoldenModel out(instance(halves, folder), "VBPR",
                  {{"variant", variant, "test"},
                   {"embedding_size", kWidth, "test"},
                   {"reg_weight", 0.3, "test"},
                   {"reg_bias", 0.2, "test"}});
  out.set_batch({0, 0, 1, 4, 3}, {0, 1, 1, 5, 3}, {2, 4, 4, 0, 5});
  return out;
}

TEST(Vbpr, EqualsTheFormulasInBothForms) {
  for (const std::string variant : {"paper", "released"}) {
    for (const bool halves : {false, true}) {
      SCOPED_TRACE(variant + (halves ? " float16" : " float32"));
      const TempFolder folder;
      GoldenModel model = golden(halves, variant, folder);
      if (variant == "paper") model.set({{"item_bias", normal(kItems, 1, 0, 1, Random(4))}});
      const Composed want = composed(model, variant == "released", 0.3, 0.2);
      EXPECT_NEAR(model.run().total.item<double>(), want.total.item<double>(), 1e-6);
      for (const auto& [name, weight] : {std::pair{"user_embedding", want.users},
                                         {"item_embedding", want.ids},
                                         {"item_bias", want.bias},
                                         {"projection", want.projection},
                                         {"visual_bias", want.visual_bias},
                                         {"projection_bias", want.projection_bias}}) {
        const auto found = model.gradient(name);
        ASSERT_EQ(found.defined(), weight.defined()) << name;
        if (!found.defined()) continue;
        EXPECT_GT(weight.grad().abs().max().item<double>(), 1e-3) << name;
        EXPECT_TRUE(torch::allclose(found, weight.grad(), 1e-5, 1e-6)) << name;
      }
      EXPECT_TRUE(torch::allclose(model.scores(), want.scores, 1e-5, 1e-6));
    }
  }
}

TEST(Vbpr, Float16FeaturesTrainToTheSameBits) {
  const TempFolder folder;
  GoldenModel wide = golden(false, "paper", folder), half = golden(true, "paper", folder);
  EXPECT_EQ(half.data.features[0].rows.dtype(), torch::kHalf);
  EXPECT_EQ(wide.run().total.item<float>(), half.run().total.item<float>());
  EXPECT_TRUE(torch::equal(wide.gradient("projection"), half.gradient("projection")));
  EXPECT_TRUE(torch::equal(wide.scores(), half.scores()));
}

// Ranking widens some thousand float16 rows at a time.
TEST(Vbpr, Float16FeaturesRankManyItemsAlike) {
  constexpr int64_t n_items = 4099;
  const TempFolder folder;
  const auto rows = normal(n_items, 2, 0, 1, Random(5)).to(torch::kHalf);
  write_npy(folder / "image.npy", rows);
  const std::vector<int32_t> ids = {0, 1};
  std::vector<torch::Tensor> scores;
  for (const bool halves : {false, true}) {
    Feature f = feature("image", rows);
    if (halves) f.rows = map_npy(folder / "image.npy");
    GoldenModel model(make_dataset(2, n_items, make_interactions(2, ids, ids), {}, {}, {f}), "VBPR",
                      {{"embedding_size", kWidth, "test"}});
    scores.push_back(model.scores());
  }
  EXPECT_GT((scores[0].slice(1, 4096) - scores[0][0][5]).abs().min().item<double>(), 0);
  EXPECT_TRUE(torch::allclose(scores[0], scores[1], 1e-5, 1e-6));
}

}  // namespace
}  // namespace tessera
