// Golden instances G1 to G13 of specs r2mr section 10, "plain double arithmetic, recomputed;
// tolerance 1e-9".
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include "tessera/base/error.h"
#include "tessera/nn/review.h"
#include "tessera/nn/vector_gan.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"
#include "tests/golden/golden_model.h"

namespace tessera {
namespace {

constexpr double kTolerance = 1e-9;

torch::Tensor doubles(const std::vector<double>& values, at::IntArrayRef shape) {
  return torch::tensor(values, torch::kFloat64).reshape(shape);
}

TEST(R2mrGolden, G1Score) {
  const BipartiteGraph edges(torch::tensor({0, 1, 2}, torch::kInt64),
                             torch::tensor({0, 0}, torch::kInt32), 1);
  const auto score = [&](const torch::Tensor& y, const torch::Tensor& p, double scale) {
    return edge_sums(edges, y, p, 2, scale) / 2;
  };
  auto y = doubles({.5, -1}, {1, 2}).requires_grad_();
  auto p = doubles({1, 0, 0, 1, 2, 1, -1, -1}, {2, 4}).requires_grad_();
  expect_near(score(y, p, 1), {.503465020943}, kTolerance);
  const auto s = score(y, p, std::sqrt(2.0));
  expect_near(s, {.501299113088}, kTolerance);
  s.sum().backward();
  expect_near(y.grad(), {.088388347648, .040452446159}, kTolerance);
  expect_near(p.grad()[0].narrow(0, 0, 2), {.021420688401, -.042841376801}, kTolerance);
  // Both forms give these products: a taste table that is the identity of the tastes.
  ReviewForm expand{2, 2, false, false, false, false, 0}, split{4, 2, true, false, false, false, 0};
  EXPECT_EQ(expand.product_width(), 2);
  EXPECT_EQ(split.product_width(), 2);
  const auto identity = torch::eye(4, torch::kFloat64);
  const ReviewWeights taste{identity, torch::zeros({4}, torch::kFloat64)};
  const auto from_split = score(y.detach(), taste.project(p.detach(), split), split.scale());
  expect_near(from_split, {.503465020943}, kTolerance);
  const ReviewWeights wide{doubles({1, 0, 0, 1, 0, 1, 1, 0}, {2, 4}), {}};
  EXPECT_EQ(wide.project(doubles({1, 2}, {1, 2}), expand).size(1), 4);
}

TEST(R2mrGolden, G2Consensus) {
  auto own = doubles({.8, -.2}, {2, 1}).requires_grad_();
  auto other = doubles({-.5, .3}, {2, 1}).requires_grad_();
  const auto loss = consensus_loss(own, other);
  // softplus(-1000) = 0 stands for the part that is left out.
  const auto nothing = torch::full({2, 1}, 1e3, torch::kFloat64);
  expect_near(consensus_loss(own, -nothing), {.584619767665}, kTolerance);
  expect_near(consensus_loss(nothing, other), {.664216114324}, kTolerance);
  expect_near(loss, {1.248835881989}, kTolerance);
  loss.backward();
  expect_near(own.grad(), {-.155012759436, -.274916998656}, kTolerance);
  expect_near(other.grad(), {.188770334399, .287221258406}, kTolerance);
}

TEST(R2mrGolden, G3Fusion) {
  const auto e = doubles({.5, -1}, {1, 2}), h = doubles({.2, .4}, {1, 2});
  const auto f = fused_rows(doubles({.503465020943}, {1}), e, h, 1e-3);
  expect_near(f, {.351539506283, -.305851029321}, kTolerance);
  expect_near(unit_rows(f), {.754430688386, -.656379719690}, kTolerance);
  const auto cold = fused_rows(doubles({0}, {1}), e, torch::zeros_like(h), 1e-3);
  expect_near(cold, {.0005, -.001}, kTolerance);
  expect_near(unit_rows(cold), {.447213595500, -.894427191000}, kTolerance);
}

const std::vector<double> kG4Scores = {4.011799885757, 5.190185025906, 1.278064209170,
                                       3.915669560206, 5.817815037074, 2.095572732660};

TEST(R2mrGolden, G4Graph) {
  const BipartiteGraph graph(torch::tensor({0, 2, 3}, torch::kInt64),
                             torch::tensor({0, 1, 1}, torch::kInt32), 3, 0);
  const auto h = to_items(graph, doubles({1, 0, 0, -1}, {2, 2})).tanh();
  expect_near(h, {.608859365014, 0, .462117157260, -.608859365014, 0, 0}, kTolerance);
  const auto x = fused_unit_rows(doubles({.6, .4, 0}, {3}),
                                 doubles({.5, -1, .2, .3, .6, -.8}, {3, 2}), h, 1e-3);
  expect_near(x, {.671104474024, -.741362789021, .824843847880, -.565360616433, .6, -.8},
              kTolerance);
  const auto y = unit_rows(doubles({1, 1, 1, -2}, {2, 2}));
  const auto [u, i] = layer_mean(graph, y, x, 2);
  expect_near(3 * i, {1.798283050164, -.811929346380, 2.350529152634, -1.530394547917, .6, -.8},
              kTolerance);
  expect_near(3 * u, {2.282515198492, .114306137407, 1.504073071506, -1.491411112196}, kTolerance);
  expect_near((3 * u).matmul((3 * i).t()), kG4Scores, 2 * kTolerance);
}

Dataset g4_data() {
  const std::vector<int32_t> users = {0, 0, 1}, items = {0, 1, 1};
  return make_dataset(2, 3, make_interactions(2, users, items), {}, {},
                      {feature("image", matrix(3, 2, {1, 0, 0, 2, 1, 1}))});
}

// The model itself, in single precision, with the numbers of G4 as its state.
TEST(R2mrGolden, G4Model) {
  GoldenModel golden(g4_data(), "R2MR", {{"embedding_size", 2, "test"}});
  golden.set({{"user_embedding", matrix(2, 2, {1, 0, 0, -1})},
              {"image.user_ids", matrix(2, 2, {1, 1, 1, -2})},
              {"image.rows", matrix(3, 2, {.5, -1, .2F, .3F, .6F, -.8F})},
              {"scores", matrix(3, 1, {.6F, .4F, 0})}});
  expect_near(golden.scores(), kG4Scores, 4e-6);
}

// The model's own loss, its gradients and its scores. The numbers are from a program in plain
// doubles, written from sections 2 and 5 alone; its gradients are central differences.
GoldenModel whole_model(const Settings& extra) {
  Settings settings = {
      {"embedding_size", 2, "test"}, {"dropout", 0, "test"}, {"reg_weight", 0.1, "test"}};
  settings.insert(settings.end(), extra.begin(), extra.end());
  Dataset data = g4_data();
  data.features.push_back(feature("text", matrix(3, 2, {1, 0, 0, 2, 1, 1})));
  GoldenModel golden(std::move(data), "R2MR", settings);
  golden.set({{"user_embedding", matrix(2, 2, {1, .5F, -.25F, -1})},
              {"image.rows", matrix(3, 2, {.5F, -1, .25F, .5F, .75F, -.5F})},
              {"text.rows", matrix(3, 2, {-.5F, .25F, 1, -.25F, .5F, .75F})},
              {"image.user_ids", matrix(2, 2, {1, 1, 1, -2})},
              {"text.user_ids", matrix(2, 2, {.5F, -1, -1, -.5F})}});
  golden.set_batch({0, 0, 1}, {0, 1, 1}, {2, 2, 0});
  return golden;
}

TEST(R2mrGolden, LossGradientsAndScoresOfTheModel) {
  GoldenModel golden = whole_model({});
  golden.set({{"scores", matrix(3, 2, {.75F, .5F, .25F, .625F, 0, 0})}});
  const Loss loss = golden.run();
  EXPECT_NEAR(part(loss, "bpr"), .0324256770, 1e-6);
  EXPECT_NEAR(part(loss, "reg"), 9.5268891418, 1e-5);
  EXPECT_NEAR(loss.total.item<double>(), .9851145912, 2e-6);
  expect_near(golden.gradient("user_embedding"), {.10542734, .00192510, .01496684, .01473726});
  expect_near(golden.gradient("image.user_ids"), {.15775342, -.15775342, .05521671, .02760835});
  expect_near(golden.gradient("text.user_ids"), {.07188314, .03594157, .05260913, -.10521825});
  expect_near(golden.scores(),
              {3.90721365, 7.83784552, 1.38897180, 2.52171819, 6.52013455, .73103973}, 1e-5);
}

// reviewer = bpr: the scores are part of the loss, and rows learn as well.
TEST(R2mrGolden, LossGradientsAndScoresWithThePublishedReviewer) {
  GoldenModel golden = whole_model({{"reviewer", "bpr", "test"},
                                    {"k", 2, "test"},
                                    {"train_features", "until_first_rewrite", "test"}});
  golden.set({{"review.taste.weight", matrix(2, 4, {.5F, -1, .25F, 1, 1, .5F, -.5F, .75F})},
              {"review.rows.image.weight", matrix(2, 2, {1, -.5F, .5F, 2})},
              {"review.rows.text.weight", matrix(2, 2, {-1, .5F, 1, 1.5F})}});
  const Loss loss = golden.run();
  EXPECT_NEAR(part(loss, "bpr"), .0185220623, 1e-6);
  EXPECT_NEAR(part(loss, "reg"), 10.0496313596, 1e-5);
  EXPECT_NEAR(loss.total.item<double>(), 1.0234851982, 2e-6);
  expect_near(golden.gradient("user_embedding"), {.04120983, .04845820, -.01119479, -.08866121});
  expect_near(golden.gradient("image.rows"),
              {.02275066, .09267768, .00027811, -.07920961, .00739711, .01109567});
  expect_near(golden.gradient("text.user_ids"), {.04705082, .02352541, .04494659, -.08989318});
  expect_near(
      golden.gradient("review.taste.weight"),
      {-.02496188, .03640395, -.02516375, .01483191, -.01103184, .02380652, -.01137433, .01317247});
  expect_near(golden.gradient("review.rows.image.weight"),
              {-.01083599, .00200455, .01885048, .00192090});
  expect_near(golden.gradient("review.rows.text.weight"),
              {.01503500, .01159567, -.00767080, -.00561786});
  expect_near(golden.scores(),
              {5.16728132, 9.24666909, 1.16674756, 2.50719002, 5.78227601, .52390464}, 1e-5);
}

// Central differences of L in every entry of everything that it trains: the model's own loss() in
// double precision.
TEST(R2mrGolden, LossOfTheModelByCentralDifferences) {
  const std::vector<int32_t> users = {0, 0, 1, 1, 2, 3}, items = {0, 1, 1, 2, 3, 3};
  for (const Settings& extra :
       std::vector<Settings>{{},
                             {{"decouple", "split", "test"}, {"item_id", "table", "test"}},
                             {{"score_scale", "none", "test"}, {"squash", "none", "test"}}}) {
    Settings settings = {{"embedding_size", 4, "test"},
                         {"reviewer", "bpr", "test"},
                         {"k", 2, "test"},
                         {"train_features", "until_first_rewrite", "test"},
                         {"dropout", 0, "test"},
                         {"reg_weight", 0.1, "test"}};
    settings.insert(settings.end(), extra.begin(), extra.end());
    GoldenModel golden(
        make_dataset(4, 5, make_interactions(4, users, items), {}, {},
                     {feature("image", torch::ones({5, 3})), feature("text", torch::ones({5, 2}))}),
        "R2MR", settings);
    golden.set_batch({0, 0, 1, 3}, {0, 1, 2, 3}, {2, 4, 0, 4});
    const auto groups = golden.model->parameter_groups();
    int64_t row = 0;
    for (const auto& [name, tensor] : groups[0].tensors) {
      const auto start = normal(tensor->numel(), 1, 0, 1, Random(5, name)).view(tensor->sizes());
      tensor->set_data(start.to(torch::kFloat64));
      ++row;
    }
    EXPECT_GE(row, 8);
    golden.run();
    const torch::NoGradGuard no_grad;
    const auto loss = [&] { return golden.model->loss(golden.batch).total.item<double>(); };
    for (const auto& [name, tensor] : groups[0].tensors) {
      ASSERT_TRUE(tensor->grad().defined()) << name;
      ASSERT_EQ(tensor->grad().scalar_type(), torch::kFloat64) << name;
      auto flat = tensor->detach().view(-1);
      const auto gradient = tensor->grad().reshape(-1);
      for (int64_t j = 0; j < flat.numel(); ++j) {
        const double start = flat[j].item<double>(), step = 1e-5;
        flat[j] = start + step;
        const double up = loss();
        flat[j] = start - step;
        const double down = loss();
        flat[j] = start;
        EXPECT_NEAR(gradient[j].item<double>(), (up - down) / (2 * step), 1e-7)
            << name << " entry " << j;
      }
    }
  }
}

TEST(R2mrGolden, G5Codes) {
  const auto slots = doubles({.2, .9, -.5, .1}, {2, 2});
  const auto codes = doubles({0, 1, -1, 0, 1, 1}, {3, 2});
  const auto index = nearest_codes(slots, codes);
  EXPECT_TRUE(torch::equal(index, torch::tensor({0, 1}, torch::kInt64)));
  const auto z_q = codes.index_select(0, index);
  EXPECT_NEAR((z_q - slots).square().mean().item<double>(), .0775, kTolerance);
  EXPECT_NEAR(code_loss(slots, z_q).item<double>(), .08525, kTolerance);
  EXPECT_NEAR(perplexity(index, 3), 2, kTolerance);
  // A tie goes to the lower index.
  EXPECT_EQ(
      nearest_codes(doubles({0, 0}, {1, 2}), doubles({2, 0, 1, 0, 0, 1}, {3, 2})).item<int64_t>(),
      1);
  // More codes than a vector holds, the last of them nearest; a row of NaN gets some code.
  const auto many = torch::arange(37, torch::kFloat32).unsqueeze(1).expand({37, 2}).contiguous();
  const auto far = torch::tensor({{90.f, 90.f}, {20.4f, 20.4f}, {NAN, NAN}});
  const auto found = nearest_codes(far, many);
  EXPECT_TRUE(torch::equal(found.narrow(0, 0, 2), torch::tensor({36, 20}, torch::kInt64)));
  EXPECT_LT(found[2].item<int64_t>(), 37);
}

TEST(R2mrGolden, G6Block) {
  const auto x = doubles({1, 2, 4}, {1, 3});
  for (const auto& [gain, wanted] : std::vector<std::pair<double, std::vector<double>>>{
           {1, {-.069041531450, 1.732739617137, 5.336301914313}},
           {.1, {.893095846855, 1.973273961714, 4.133630191431}}}) {
    const GanBlock block{torch::eye(3, torch::kFloat64), torch::zeros({3}, torch::kFloat64),
                         torch::full({3}, gain, torch::kFloat64),
                         torch::zeros({3}, torch::kFloat64)};
    expect_near(block(x), wanted, kTolerance);
  }
}

TEST(R2mrGolden, G7Gan) {
  auto real = doubles({.4, -.1}, {2, 1}), fake = doubles({-.3, .2}, {2, 1}).requires_grad_();
  const auto d = discriminator_loss(real, fake);
  expect_near(d, {.130495301316}, kTolerance);
  d.backward();
  expect_near(fake.grad(), {.021277874159, .027491699866}, kTolerance);
  fake.mutable_grad().reset();
  const auto adversarial = adversarial_loss(fake);
  expect_near(adversarial, {.726247056925}, kTolerance);
  expect_near(.1 * adversarial, {.072624705693}, kTolerance);
  (.1 * adversarial).backward();
  expect_near(fake.grad(), {-.028722125841, -.022508300134}, kTolerance);
}

TEST(R2mrGolden, G8EtaAndG9Auc) {
  EXPECT_NEAR(auto_threshold({.48, .52, .50, .50}, doubles({.45, .55, .60, .62, .70}, {5})), .55,
              kTolerance);
  EXPECT_NEAR(median_of(doubles({1, 4, 2, 3}, {4})), 2.5, kTolerance);
  EXPECT_NEAR(auc(doubles({.6, .55, .7, .5}, {4}), doubles({.5, .58}, {2})), .6875, kTolerance);
}

TEST(R2mrGolden, G10Loss) {
  const auto users = doubles({1, 0}, {1, 2}), items = doubles({.5, .2, -.1, .4}, {2, 2});
  const Triples at = {torch::tensor({0}), torch::tensor({0}), torch::tensor({{1}})};
  expect_near(bpr_loss(users, items, at), {.437487950486}, kTolerance);
  expect_near(1e-4 * l2_rows(users, items, at, 1), {.000073}, kTolerance);
}

TEST(R2mrGolden, G11LearningRate) {
  GoldenModel golden(g4_data(), "R2MR", {{"embedding_size", 2, "test"}});
  for (const auto& [epoch, rate] : std::vector<std::pair<int64_t, double>>{
           {0, .001}, {6, .000914285714}, {35, .0005}, {69, .000014285714}, {70, 0}, {90, 0}}) {
    golden.model->begin_epoch(epoch, Watch{});
    EXPECT_NEAR(golden.model->parameter_groups()[0].learning_rate(1), rate, kTolerance);
  }
}

TEST(R2mrGolden, G12AreasAndDirections) {
  const auto scores =
      doubles({.7, .5, .6, .7, .4, .6, .4, .3, .45, .7, .9, .2, .7, .7, .7}, {5, 3});
  auto present = torch::ones({5, 3}, torch::kBool);
  present[3][1] = false;
  const auto scored = torch::tensor({true, true, true, true, false});
  const Areas areas = areas_of(scores, present, scored, {.5, .5, .5});
  EXPECT_TRUE(torch::equal(
      areas.area,
      torch::tensor({int64_t{Area::high_area}, int64_t{Area::disparity}, int64_t{Area::low_area},
                     int64_t{Area::disparity}, int64_t{Area::unscored}})));
  EXPECT_TRUE(torch::equal(areas.high[1], torch::tensor({true, false, true})));
  EXPECT_TRUE(torch::equal(areas.high[3], torch::tensor({true, false, false})));
  int64_t number = 0;
  for (int64_t from = 0; from < 3; ++from) {
    for (int64_t to = 0; to < 3; ++to) {
      if (from == to) continue;
      EXPECT_EQ(direction_of(from, to, 3), number++);
    }
  }
}

int64_t trained_numbers(Model& model) {
  int64_t n = 0;
  for (const auto& group : model.parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) n += tensor->numel();
  }
  return n;
}

TEST(R2mrGolden, G13Size) {
  // The logged count is 3 U d + 2 I d + 7 (d^2 + d); three of its seven layers are in use.
  EXPECT_EQ(3 * 39387 * 384 + 2 * 23033 * 384 + 7 * (384 * 384 + 384), 64098048);
  const int64_t n_users = 40, n_items = 30, d = 64;
  const std::vector<int32_t> users = {0, 1}, items = {0, 1};
  GoldenModel golden(
      make_dataset(n_users, n_items, make_interactions(n_users, users, items), {}, {},
                   {feature("image", torch::ones({n_items, 24})),
                    feature("text", torch::ones({n_items, 12}))}),
      "R2MR", {{"variant", "released", "test"}});
  EXPECT_EQ(trained_numbers(*golden.model), 3 * n_users * d + 2 * n_items * d + 3 * (d * d + d));
}

// Parameters of the rewriter and of its discriminator, section 4.
TEST(R2mrGolden, PresetSizes) {
  const auto count = [](const VectorGanOptions& options) {
    const VectorGan gan(options, Random(1));
    return std::pair(gan.n_parameters(), gan.n_discriminator_parameters());
  };
  EXPECT_EQ(count({32, 16, 2, {64, 128, 64}, {64, 128}, {64, 32}, 128, 8}),
            (std::pair<int64_t, int64_t>(38336, 4417)));
  EXPECT_EQ(count({}), (std::pair<int64_t, int64_t>(148352, 6465)));
  EXPECT_EQ(count({384, 256, 2, {1024, 2048, 1024}, {1024, 2048}, {512, 128}, 4096, 32}),
            (std::pair<int64_t, int64_t>(8936064, 264193)));
}

TEST(R2mrSettings, ThresholdsAndWidths) {
  const auto make = [](const Settings& settings) { GoldenModel(g4_data(), "R2MR", settings); };
  EXPECT_NO_THROW(make({{"eta", "auto", "test"}}));
  EXPECT_NO_THROW(make({{"eta", "0.4,image=auto", "test"}}));
  EXPECT_THROW(make({{"eta", "high", "test"}}), InputError);
  EXPECT_THROW(make({{"eta", "0.4,pictures=auto", "test"}}), InputError);
  EXPECT_THROW(make({{"eta", "1.5", "test"}}), InputError);
  EXPECT_THROW(make({{"k", 7, "test"}, {"decouple", "split", "test"}}), InputError);
  EXPECT_NO_THROW(make({{"k", 7, "test"}}));
}

}  // namespace
}  // namespace tessera
