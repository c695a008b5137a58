// FREEDOM and MGCN of baselines sections 11 and 12, which have no printed instance: the numbers are
// from a program in dense double precision with automatic differentiation (PyTorch 2.13), written
// from those sections alone.
#include "tessera/base/error.h"
#include "tests/golden/golden_model.h"

namespace tessera {
namespace {

Dataset instance() {
  const std::vector<int32_t> users = {0, 0, 1, 1}, items = {0, 1, 1, 2};
  // Items 0 and 1 are equally near to item 2 by image: the lower index is its neighbour.
  return make_dataset(
      2, 3, make_interactions(2, users, items), {}, {},
      {feature("image", matrix(3, 2, {1, 0, 0, 2, 1, 1})), feature("text", torch::eye(3))});
}

const std::vector<std::pair<std::string, torch::Tensor>>& shared() {
  static const std::vector<std::pair<std::string, torch::Tensor>> values = {
      {"user_embedding", torch::eye(2)},
      {"item_embedding", matrix(3, 2, {1, 1, 0, 1, 1, -1})},
      {"image.projection.weight", matrix(2, 2, {1, .5, -.5, 1})},
      {"image.projection.bias", torch::tensor({.1F, -.2F})},
      {"text.projection.weight", matrix(2, 3, {1, 2, 0, 0, 1, -1})},
      {"text.projection.bias", torch::tensor({.5F, 0.F})}};
  return values;
}

GoldenModel freedom(const Settings& extra = {}) {
  Settings settings = {{"embedding_size", 2, "test"},
                       {"k", 2, "test"},
                       {"dropout", 0, "test"},
                       {"reg_weight", 0.5, "test"}};
  settings.insert(settings.end(), extra.begin(), extra.end());
  GoldenModel golden(instance(), "FREEDOM", settings);
  golden.set(shared());
  golden.set_batch({0, 0, 1, 1}, {0, 1, 1, 2}, {2, 2, 0, 0});
  return golden;
}

TEST(FreedomGolden, LossGradientsAndScores) {
  GoldenModel golden = freedom();
  const Loss loss = golden.run();
  EXPECT_NEAR(part(loss, "bpr"), .7169747904, 1e-6);
  EXPECT_NEAR(part(loss, "bpr_image"), .6100214844, 1e-6);
  EXPECT_NEAR(part(loss, "bpr_text"), .4665227679, 1e-6);
  EXPECT_NEAR(loss.total.item<double>(), 1.2552469166, 1e-6);
  expect_near(golden.gradient("user_embedding"), {.05106665, -.18233476, .03593358, .07939084});
  expect_near(golden.gradient("item_embedding"),
              {.02953573, -.03510119, -.07551085, -.07564991, .09101098, .04167619});
  expect_near(golden.gradient("image.projection.weight"),
              {.05172947, -.00114539, .0394776, -.03200265});
  expect_near(golden.gradient("text.features"),
              {.01803487, .08740275, -.05133301, -.01909728, -.06183049, .02363593, .00106241,
               -.02557226, .02769708});
  expect_near(golden.scores(),
              {1.79025947, 1.50000567, 1.15742385, 1.19081209, 1.09362085, .40323618});
}

TEST(FreedomGolden, TrainsOnFewerEdgesAndRanksOnAll) {
  // floor(4 (1 - .5)) of 4 edges: the loss differs from epoch to epoch, the ranking does not.
  GoldenModel golden = freedom({{"dropout", 0.5, "test"}});
  const auto whole = freedom().scores();
  std::set<float> losses;
  for (int64_t epoch = 0; epoch < 12; ++epoch) {
    golden.model->begin_epoch(epoch, Watch{});
    golden.model->train(true);
    losses.insert(golden.model->loss(golden.batch).total.item<float>());
    EXPECT_TRUE(torch::equal(golden.scores(), whole));
    for (const auto& group : golden.model->parameter_groups()) {
      for (const auto& [name, table] : group.tables) table->step();
    }
  }
  EXPECT_GT(losses.size(), 2u);
  EXPECT_LE(losses.size(), 6u);  // 4 choose 2
}

TEST(FreedomGolden, WantsAWeightForEachModality) {
  EXPECT_THROW(freedom({{"modality_weights", "1", "test"}}), InputError);
  GoldenModel golden = freedom({{"modality_weights", "0.1,0.9", "test"}});
  EXPECT_TRUE(torch::equal(golden.scores(), freedom().scores()));
}

GoldenModel mgcn(const std::string& variant) {
  GoldenModel golden(instance(), "MGCN",
                     {{"variant", variant, "test"},
                      {"embedding_size", 2, "test"},
                      {"k", 2, "test"},
                      {"reg_weight", 0.1, "test"},
                      {"cl_loss", 0.5, "test"}});
  golden.set(shared());
  golden.set({{"image.gate.weight", matrix(2, 2, {.5, -1, 1, .25})},
              {"image.gate.bias", torch::tensor({.1F, .3F})},
              {"text.gate.weight", matrix(2, 2, {1, 0, .5, 1})},
              {"text.gate.bias", torch::tensor({0.F, .2F})},
              {"image.own.weight", matrix(2, 2, {.3F, -.2F, .1F, .4F})},
              {"image.own.bias", torch::tensor({0.F, .1F})},
              {"text.own.weight", matrix(2, 2, {-.5F, .2F, .6F, .1F})},
              {"text.own.bias", torch::tensor({.2F, -.1F})},
              {"query.weight", matrix(2, 2, {1, .5, -.5, 1})},
              {"query.bias", torch::tensor({.1F, -.2F})},
              {"query.out.weight", matrix(1, 2, {.7F, -.3F})}});
  golden.set_batch({0, 0, 1, 1}, {0, 1, 1, 2}, {2, 2, 0, 0});
  return golden;
}

TEST(MgcnGolden, LossGradientsAndScores) {
  GoldenModel golden = mgcn("paper");
  const Loss loss = golden.run();
  EXPECT_NEAR(part(loss, "bpr"), .6792335049, 1e-6);
  EXPECT_NEAR(part(loss, "reg"), 1.5353183366, 2e-6);
  EXPECT_NEAR(part(loss, "cl"), 2.5462580238, 4e-6);
  EXPECT_NEAR(loss.total.item<double>(), 2.1058943505, 4e-6);
  expect_near(golden.gradient("user_embedding"), {.17152178, -.27347334, -.34711582, .36030628});
  expect_near(golden.gradient("item_embedding"),
              {.07155286, .04599046, .04532896, -.25928446, -.00271545, .00864085});
  expect_near(golden.gradient("image.projection.weight"),
              {.01472881, -.00241531, -.00459644, -.00857934});
  expect_near(golden.gradient("text.features"),
              {.00366319, .03049749, -.02317111, -.00488011, -.01952043, .00976021, .04174318,
               .12740922, -.04392287});
  expect_near(golden.gradient("image.gate.weight"), {.01163935, .00193818, .00812305, -.01159193});
  expect_near(golden.gradient("text.own.weight"), {-.0006677, -.00235972, .01171317, -.00172322});
  expect_near(golden.gradient("query.weight"), {.00056927, -.00023572, .00014599, .001536});
  expect_near(golden.gradient("query.out.weight"), {-.00168509, -.00511489});
  expect_near(golden.scores(), {1.52572365, 1.02183535, .57833641, .89649139, .6702086, .23020186});
}

TEST(MgcnGolden, ReleasedDividesByTheFullBatch) {
  GoldenModel golden = mgcn("released");
  EXPECT_NEAR(part(golden.run(), "reg"), .0029986686, 1e-8);
}

TEST(ItemGraphModels, NeedFeatures) {
  const std::vector<int32_t> users = {0, 1}, items = {0, 1};
  for (const char* name : {"FREEDOM", "MGCN"}) {
    EXPECT_THROW(GoldenModel(make_dataset(2, 2, make_interactions(2, users, items)), name, {}),
                 InputError);
  }
}

}  // namespace
}  // namespace tessera
