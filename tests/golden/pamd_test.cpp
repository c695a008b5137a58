// Golden instances of PAMD: specs pamd section 11, "plain double arithmetic, recomputed; tolerance
// 1e-8".
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <tuple>

#include "tessera/base/error.h"
#include "tessera/eval/sampled.h"
#include "tessera/model/registry.h"
#include "tessera/model/row_encoder.h"
#include "tessera/nn/part_net.h"
#include "tessera/ops/parts.h"
#include "tests/gradient/numeric.h"
#include "tests/planted.h"

namespace tessera {
namespace {

torch::Tensor vec(const std::vector<double>& values) {
  return torch::tensor(values, torch::kFloat64);
}
torch::Tensor mat(int64_t rows, const std::vector<double>& values) {
  return vec(values).reshape({rows, -1});
}

void expect_near(const torch::Tensor& found, const std::vector<double>& wanted,
                 double tolerance = 1e-8) {
  ASSERT_TRUE(found.defined());
  ASSERT_EQ(found.numel(), static_cast<int64_t>(wanted.size()));
  const auto flat = found.detach().flatten().to(torch::kDouble);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_NEAR(flat[static_cast<int64_t>(i)].item<double>(), wanted[i], tolerance)
        << "entry " << i;
  }
}

/// Decodes of width 2 whose cosines with x = (1, 0) are p [3, B].
torch::Tensor decodes_with(const torch::Tensor& p) {
  return torch::stack({p, (1 - p.square()).sqrt()}, 2);
}
torch::Tensor unit_rows(int64_t n) { return vec({1, 0}).expand({n, 2}).contiguous(); }

/// d loss / dp, through decodes_with.
torch::Tensor slopes(const torch::Tensor& values, const OrderOptions& options) {
  const auto p = values.clone().requires_grad_();
  order_loss(unit_rows(p.size(1)), decodes_with(p), options).value.backward();
  return p.grad();
}

TEST(PamdGolden, G1OrderLoss) {
  const auto p = mat(3, {.6, .4, .2});
  EXPECT_NEAR(order_loss(unit_rows(1), decodes_with(p), {}).value.item<double>(),
              .7512505137 + .5130152524, 1e-8);
  expect_near(slopes(p, {}), {-1.0564475579, -.1701425633, 1.2265901212});
}

TEST(PamdGolden, G2Batch) {
  const auto p = mat(3, {.6, .3, .4, .5, .2, -.1});
  const auto value = [&](const OrderOptions& options) {
    return order_loss(unit_rows(2), decodes_with(p), options).value.item<double>();
  };
  EXPECT_NEAR(value({}), 1.3031750699, 1e-8);
  OrderOptions options;
  options.absolute = true;
  EXPECT_NEAR(value(options), .9512505137 + .4420579592, 1e-8);
  options = {};
  options.batch_sum = true;
  EXPECT_NEAR(value(options), .9316586638 + .4042943082, 1e-8);
  options = {};
  options.contrast = OrderOptions::Contrast::none;
  EXPECT_NEAR(value(options), .55, 1e-8);
}

TEST(PamdGolden, G3MseRank) {
  OrderOptions options;
  options.contrast = OrderOptions::Contrast::mse_rank;
  const auto decoded = vec({.2, .5, .9}).sqrt().reshape({3, 1, 1});
  EXPECT_NEAR(
      order_loss(torch::zeros({1, 1}, torch::kFloat64), decoded, options).value.item<double>(),
      1.0673704969, 1e-8);
}

/// A net over given tensors, in double.
struct Net {
  std::map<std::string, torch::Tensor> tensors;
  PartNet net;
  explicit Net(PartNetOptions options)
      : net(options,
            [this](const std::string& name) -> const torch::Tensor& { return tensors.at(name); }) {
    for (const auto& p : PartNet::parameters(options)) {
      tensors[p.name] = (0.5 * torch::randn(p.shape, torch::kFloat64)).requires_grad_();
    }
  }
};

PartNetOptions options_of(const std::vector<int64_t>& widths, int64_t d) {
  PartNetOptions out;
  const std::vector<std::string> names = {"image", "text", "audio"};
  out.names.assign(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(widths.size()));
  out.widths = widths;
  out.d = d;
  return out;
}

double term(const PartNet::Loss& loss, const std::string& wanted) {
  for (const auto& [name, value] : loss.terms) {
    if (name == wanted) return value.item<double>();
  }
  ADD_FAILURE() << wanted;
  return 0;
}

// e^v and e^t enter as x with the identity as encoder.
TEST(PamdGolden, G4Encoder) {
  auto options = options_of({2, 2}, 2);
  options.w_de = 0;
  Net golden(options);
  for (const std::string name : {"image", "text"}) {
    golden.tensors[name + ".encoder.weight"] = torch::eye(2, torch::kFloat64);
    golden.tensors[name + ".encoder.bias"] = torch::zeros({2}, torch::kFloat64);
  }
  auto& wv = golden.tensors["image.common.weight"] = mat(2, {.5, 0, .1, .2}).requires_grad_();
  auto& wt = golden.tensors["text.common.weight"] = mat(2, {1, .3, 0, .5}).requires_grad_();
  const auto ev = mat(1, {1, 2}).requires_grad_(), et = mat(1, {.5, -1}).requires_grad_();
  const Parts v = golden.net.split(0, ev), t = golden.net.split(1, et);
  expect_near(v.c, {.7, .4});
  expect_near(t.c, {.5, -.35});
  expect_near(v.s, {.3, 1.6});
  expect_near(t.s, {0, -.65});
  const auto loss = golden.net.loss({ev, et}, {{}, {}});
  EXPECT_NEAR(term(loss, "sim"), .30125, 1e-8);
  EXPECT_NEAR(term(loss, "ort"), 1.0816, 1e-8);
  loss.total.backward();
  expect_near(ev.grad(), {.1, 1.2516});
  expect_near(et.grad(), {.5734, -2.039});
  expect_near(wv.grad(), {.2, -.602, .4, -1.204});
  expect_near(wt.grad(), {.212, 1.289, -.424, -2.578});
}

TEST(PamdGolden, G5Decoder) {
  const auto x = mat(1, {1, 2, 2});
  const auto y = vec({2, 4, 3, 1, 0, 1, -1, 1, 0}).reshape({3, 1, 3}).requires_grad_();
  const auto loss = order_loss(x, y, {});
  expect_near(loss.cosines, {.9903751369, .7071067812, .2357022604});
  EXPECT_NEAR(loss.value.item<double>(), .5814007443 + .3289670612, 1e-8);
  loss.value.backward();
  expect_near(y.grad(), {.0056462314, .0112924629, -.0188207714, -.0087109055, .0348436219,
                         .0087109055, .2856203105, .2856203105, .3808270807});
}

// Decodes by an affine map, of c, c + s and s: value, cosines and all gradients of the long way.
TEST(PamdPretraining, AffineDecoderInsideTheLoss) {
  torch::manual_seed(9);
  for (const int64_t n : {1, 5, 70}) {
    for (const int form : {0, 1, 2, 3}) {
      OrderOptions options;
      options.absolute = form == 1;
      options.batch_sum = form == 2;
      if (form == 3) options.contrast = OrderOptions::Contrast::none;
      const auto x = torch::randn({n, 7}, torch::kFloat64);
      std::vector<torch::Tensor> leaves = {
          torch::randn({n, 3}, torch::kFloat64), torch::randn({n, 3}, torch::kFloat64),
          torch::randn({3, 7}, torch::kFloat64), torch::randn({7}, torch::kFloat64)};
      for (auto& leaf : leaves) leaf.requires_grad_();
      const auto& [c, s, w, b] = std::tie(leaves[0], leaves[1], leaves[2], leaves[3]);
      const auto decoded = torch::stack({c.matmul(w) + b, (c + s).matmul(w) + b, s.matmul(w) + b});
      const auto wanted = order_loss_composed(x, decoded, options);
      const auto slopes = torch::autograd::grad({wanted * 3}, leaves);
      const OrderLoss found = order_loss_affine(x, c, s, w, b, options);
      EXPECT_NEAR(found.value.item<double>(), wanted.item<double>(), 1e-12);
      EXPECT_TRUE(
          torch::allclose(found.cosines, order_loss(x, decoded, options).cosines, 0, 1e-12));
      const auto own = torch::autograd::grad({found.value * 3}, leaves);
      for (size_t i = 0; i < leaves.size(); ++i) {
        EXPECT_TRUE(torch::allclose(own[i], slopes[i], 1e-9, 1e-12))
            << n << " " << form << " " << i;
      }
    }
  }
  const auto none = torch::zeros({0, 3}), w = torch::randn({3, 7}), b = torch::randn({7});
  EXPECT_EQ(order_loss_affine(torch::zeros({0, 7}), none, none, w, b, {}).value.item<float>(), 0);
}

struct Score {
  torch::Tensor p = mat(1, {.3, -.2}).requires_grad_(), e = mat(1, {.1, .1}).requires_grad_();
  torch::Tensor parts =
      vec({.7, .4, .5, -.35, .3, 1.6, 0, -.65}).reshape({1, 4, 2}).requires_grad_();
  torch::Tensor zero = torch::zeros({1}, torch::kInt64);
  torch::Tensor y(const torch::Tensor& open = {}) const {
    return part_attention(p, e, parts, open, zero, zero);
  }
  double masked(const std::vector<int>& open) const {
    auto gate = torch::zeros({1, 4}, torch::kBool);
    for (const int k : open) gate[0][k] = true;
    const double value = y(gate).item<double>();
    EXPECT_NEAR(part_scores(p.detach(), e.detach(), parts.detach(), gate).item<double>(), value,
                1e-6);
    return value;
  }
};

TEST(PamdGolden, G6Score) {
  Score score;
  expect_near(part_weights(score.p, score.parts, {}),
              {.2637234699, .2885594387, .1839936216, .2637234699});
  const auto y = score.y();
  EXPECT_NEAR(y.item<double>(), .0997326457, 1e-8);
  EXPECT_NEAR(torch::softplus(-y).item<double>(), .6445236678, 1e-8);
  EXPECT_NEAR(torch::softplus(y).item<double>(), .7442563136, 1e-8);
  torch::softplus(-y).sum().backward();
  expect_near(score.p.grad(), {-.2340585739, -.0558350262});
  expect_near(score.e.grad(), {-.1425262454, .0950174969});
  expect_near(score.parts.grad()[0][0], {-.0391010658, .0260673772});
  expect_near(score.parts.grad()[0][2], {-.0178392767, .0118928511});
}

TEST(PamdGolden, G7Masks) {
  const Score score;
  auto gate = torch::tensor({1, 1, 0, 1}).to(torch::kBool).reshape({1, 4});
  expect_near(part_weights(score.p, score.parts, gate), {.3231880005, .3536239990, 0, .3231880005});
  EXPECT_NEAR(score.masked({0, 1, 3}), .1718261599, 1e-8);
  EXPECT_NEAR(score.masked({0, 1}), .1870236342, 1e-8);
  EXPECT_NEAR(score.masked({2, 3}), -.0079454437, 1e-8);
  EXPECT_NEAR(score.masked({2}), -.22, 1e-8);
  EXPECT_NEAR(score.masked({}), .01, 1e-8);
}

TEST(PamdGolden, G8Pair) {
  const Score score;
  const auto e = mat(1, {-.2, .3});
  const auto parts = vec({.1, .2, .3, -.1, -.4, .5, .2, .2}).reshape({1, 4, 2});
  const auto up = score.y();
  const auto down = part_attention(score.p, e, parts, {}, score.zero, score.zero);
  EXPECT_NEAR(down.item<double>(), -.1310103055, 1e-8);
  EXPECT_NEAR((torch::softplus(-up) + torch::softplus(down)).item<double>(), 1.2743096256, 1e-8);
  EXPECT_NEAR(torch::softplus(down - up).item<double>(), .5844162815, 1e-8);
}

// c and s are given: e = c + s enters through the identity, and W maps each e to its c.
TEST(PamdGolden, G9ThreeModalities) {
  auto options = options_of({2, 2, 2}, 2);
  options.w_de = 0;
  Net golden(options);
  const std::vector<torch::Tensor> c = {vec({1, 0}), vec({.5, .5}), vec({0, 2})};
  const std::vector<torch::Tensor> s = {vec({1, 1}), vec({2, -1}), vec({0, .5})};
  std::vector<torch::Tensor> x;
  for (size_t m = 0; m < 3; ++m) {
    const auto e = c[m] + s[m];
    golden.tensors[options.names[m] + ".encoder.weight"] = torch::eye(2, torch::kFloat64);
    golden.tensors[options.names[m] + ".encoder.bias"] = torch::zeros({2}, torch::kFloat64);
    golden.tensors[options.names[m] + ".common.weight"] = torch::outer(e, c[m]) / e.dot(e);
    x.push_back(e.reshape({1, 2}));
  }
  const auto all = golden.net.loss(x, {{}, {}, {}});
  EXPECT_NEAR(term(all, "sim"), 4.0 / 3, 1e-8);
  EXPECT_NEAR(term(all, "ort"), .5, 1e-8);
  const auto none = torch::zeros({1}, torch::kBool);
  const auto two = golden.net.loss(x, {{}, {}, none});
  EXPECT_NEAR(term(two, "sim"), .0833333333, 1e-8);
  EXPECT_NEAR(term(two, "ort"), .3333333333, 1e-8);
}

TEST(PamdGolden, G10Purify) {
  const auto c = mat(4, {1, 0, 2, 1, 4, -1, 1, 2}), s = mat(4, {0, 1, 1, 1, 3, 0, 0, 4});
  EXPECT_NEAR(overlap(c, s).item<double>(), 1.3981481481, 1e-8);
}

TEST(PamdGolden, G11Sampled) {
  SampledOptions options;
  const auto few = sampled_values({1, 4}, 3, options);
  EXPECT_NEAR(few.precision, .2, 1e-12);
  EXPECT_NEAR(few.recall, 2.0 / 3, 1e-12);
  EXPECT_NEAR(few.ndcg, .6713860725, 1e-9);
  EXPECT_NEAR(sampled_values({1, 2, 5}, 12, options).ndcg, .4440973278, 1e-9);
  options.ideal_all = true;
  EXPECT_NEAR(sampled_values({1, 2, 5}, 12, options).ndcg, .3962076185, 1e-9);
}

TEST(PamdGolden, G12Size) {
  const auto size = [](int64_t d, int64_t text) {
    int64_t n = 0;
    for (const auto& p : PartNet::parameters(options_of({4096, text}, d))) {
      int64_t numel = 1;
      for (const int64_t s : p.shape) numel *= s;
      n += numel;
    }
    return n;
  };
  EXPECT_EQ(size(100, 2700), 1386196);
  EXPECT_EQ(size(50, 1500), 570296);
  EXPECT_EQ(size(30, 5400), 581116);
}

// Acceptance 1: central differences of L_pre in every parameter.
TEST(PamdPretraining, Gradients) {
  torch::manual_seed(7);
  for (const int n : {2, 3}) {
    for (const bool mlp : {false, true}) {
      for (const auto contrast : {OrderOptions::Contrast::softmax_order,
                                  OrderOptions::Contrast::mse_rank, OrderOptions::Contrast::none}) {
        auto options =
            options_of(n == 2 ? std::vector<int64_t>{4, 5} : std::vector<int64_t>{4, 5, 3}, 3);
        options.mlp_encoder = options.mlp_common = options.shared_decoder = mlp;
        options.order.contrast = contrast;
        options.order.absolute = mlp;
        options.purify = 0.1;
        Net net(options);
        std::vector<torch::Tensor> x, present, leaves;
        std::vector<std::string> names;
        for (const int64_t width : options.widths) {
          x.push_back(torch::randn({10, width}, torch::kFloat64));
          present.push_back(torch::Tensor());
        }
        present[0] = torch::arange(10) > 0;
        for (const auto& [name, tensor] : net.tensors) {
          names.push_back(name);
          leaves.push_back(tensor);
        }
        const auto loss = [&](const std::vector<torch::Tensor>& in) {
          for (size_t i = 0; i < in.size(); ++i) net.tensors[names[i]] = in[i];
          return net.net.loss(x, present).total;
        };
        expect_gradients(loss, leaves, 2e-5, 1e-6);
      }
    }
  }
}

// Acceptance 1: M = 3 with one modality absent everywhere is M = 2 times 1/3 in every pair term.
TEST(PamdPretraining, AbsentModalityIsAThird) {
  torch::manual_seed(8);
  Net three(options_of({4, 5, 3}, 3)), two(options_of({4, 5}, 3));
  for (auto& [name, tensor] : two.tensors) tensor = three.tensors.at(name);
  const auto image = torch::randn({6, 4}, torch::kFloat64);
  const auto text = torch::randn({6, 5}, torch::kFloat64);
  const auto all = three.net.loss({image, text, torch::zeros({6, 3}, torch::kFloat64)},
                                  {{}, {}, torch::zeros({6}, torch::kBool)});
  const auto pair = two.net.loss({image, text}, {{}, {}});
  for (const std::string name : {"sim", "ort", "order"}) {
    EXPECT_NEAR(term(all, name), term(pair, name) / 3, 1e-12) << name;
  }
}

struct Pamd {
  Dataset data;
  std::unique_ptr<Model> model;
  Pamd(const PlantedOptions& planted, const Settings& settings) : data(planted_pairs(planted)) {
    const ModelInfo& info = find_model("PAMD");
    const RunSettings resolved = resolve_settings(info, settings);
    model = info.make(settings, Context{data, Random(1), resolved.train_settings, {}});
    for (const auto& group : model->parameter_groups()) {
      for (const auto& [name, table] : group.tables) {
        table->configure({[](int64_t) { return 1e-3; }});
      }
    }
  }
  torch::Tensor scores() {
    const torch::NoGradGuard no_grad;
    return model->score({torch::arange(data.n_users, torch::kInt64), {}});
  }
};

PlantedOptions small() {
  PlantedOptions options;
  options.n_users = 30;
  options.n_items = 40;
  options.mean_rows = 8;
  options.missing = 0.2;
  options.n_cold = 3;
  return options;
}

TEST(PamdModel, OneModalityIsRefused) {
  auto options = small();
  options.n_modalities = 1;
  try {
    Pamd pamd(options, {});
    FAIL() << "one modality was taken";
  } catch (const InputError& e) {
    EXPECT_EQ(std::string(e.what()).rfind("PAMD needs at least two modalities", 0), 0U) << e.what();
  }
}

// Section 9: the published code's settings, the training's batch among them.
TEST(PamdModel, ReleasedSetsTheBatchOfTheTraining) {
  const ModelInfo& info = find_model("PAMD");
  const auto batch = [&](const Settings& settings) {
    return resolve_settings(info, settings).train_settings.train_batch_size;
  };
  const Setting released = {"variant", "released", "test"};
  EXPECT_EQ(batch({}), 1024);
  EXPECT_EQ(batch({released}), 100);
  EXPECT_EQ(batch({{"train_batch_size", 256, "test"}, released}), 256);
}

TEST(PamdModel, UnknownPartIsRefused) {
  EXPECT_THROW(Pamd(small(), {{"only_parts", "image_commn", "test"}}), InputError);
}

// Acceptance 6: all parts masked is the ID alone, never NaN; ranking by mask is training's mask.
TEST(PamdModel, Masks) {
  Pamd all(small(), {{"pre_epochs", 5, "test"}});
  for (const std::string missing : {"mean", "decode", "mask", "rand"}) {
    for (const std::string mask : {"all", "common", "image", "text_specific"}) {
      Pamd pamd(small(), {{"missing", missing, "test"}, {"eval_mask", mask, "test"}});
      EXPECT_TRUE(pamd.scores().isfinite().all().item<bool>()) << missing << " " << mask;
    }
  }
  Pamd ids(small(), {{"only_parts", "none", "test"}});
  Pamd masked(small(), {{"eval_mask", "all", "test"}});
  EXPECT_TRUE(torch::equal(ids.scores(), masked.scores()));
  Pamd without(small(), {{"without_parts", "image_common,text_specific", "test"}});
  Pamd only(small(), {{"only_parts", "text_common,image_specific", "test"}});
  EXPECT_TRUE(torch::equal(without.scores(), only.scores()));
}

// Acceptance 6: missing = mask equals dropping the two parts by hand.
TEST(PamdModel, MissingMaskDropsTheParts) {
  Pamd masked(small(), {{"missing", "mask", "test"}});
  Pamd dropped(small(), {{"eval_mask", "image", "test"}});
  const auto gone = masked.data.features[0].present().logical_not().logical_and(
      masked.data.features[1].present());
  ASSERT_TRUE(gone.any().item<bool>());
  const auto items = gone.nonzero().squeeze(1);
  EXPECT_TRUE(torch::allclose(masked.scores().index_select(1, items),
                              dropped.scores().index_select(1, items), 1e-5, 1e-6));
}

// Candidates: all held-out items, none that the user knows, the same at every call.
TEST(PamdModel, SampledCandidates) {
  Pamd pamd(small(), {});
  SampledOptions options;
  options.total = 15;
  for (int64_t user = 0; user < pamd.data.n_users; ++user) {
    const auto drawn = sampled_candidates(pamd.data, Split::test, user, options);
    EXPECT_EQ(drawn, sampled_candidates(pamd.data, Split::test, user, options));
    EXPECT_LE(drawn.size(), 15U);
    EXPECT_EQ(std::adjacent_find(drawn.begin(), drawn.end()), drawn.end());
    for (const int32_t item : pamd.data.test.of(user)) {
      EXPECT_TRUE(std::binary_search(drawn.begin(), drawn.end(), item));
    }
    for (const int32_t item : pamd.data.train.of(user)) {
      EXPECT_FALSE(std::binary_search(drawn.begin(), drawn.end(), item));
    }
  }
  const Json out = evaluate_sampled(*pamd.model, pamd.data, Split::test, options);
  EXPECT_EQ(out["name"], "sampled-15");
  EXPECT_GT(out["metrics"]["recall@10"].get<double>(), 0);
}

// Users without train rows are answered by the train counts.
TEST(PamdModel, UnknownUsersGetPopularity) {
  Pamd pamd(small(), {});
  const torch::NoGradGuard no_grad;
  const auto scores = pamd.model->score({torch::tensor({-1}, torch::kInt64), {}});
  EXPECT_TRUE(
      torch::equal(scores[0], item_counts(pamd.data.train, pamd.data.n_items).to(torch::kFloat)));
}

// Acceptance 5: an item without the image has a common row and no image_specific row; equal seeds
// give equal bits; the missing rows of the features are none of the export.
TEST(PamdModel, Export) {
  const Settings settings = {{"pre_epochs", 10, "test"}};
  Pamd one(small(), settings), again(small(), settings);
  const auto exported = [](Pamd& pamd) {
    auto* supplier = dynamic_cast<FeatureSupplier*>(pamd.model.get());
    supplier->fit({});
    return supplier->export_features(Json::object());
  };
  const auto rows = exported(one), same = exported(again);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].modality, "common");
  EXPECT_EQ(rows[1].modality, "image_specific");
  EXPECT_EQ(rows[2].modality, "text_specific");
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_TRUE(torch::equal(rows[i].rows, same[i].rows));
    EXPECT_EQ(rows[i].rows.size(1), 64);
    EXPECT_FALSE(rows[i].card["uses_interactions"].get<bool>());
  }
  const auto image = one.data.features[0].present(), text = one.data.features[1].present();
  EXPECT_TRUE(torch::equal(rows[1].items, image.nonzero().squeeze(1)));
  EXPECT_TRUE(torch::equal(rows[0].items, image.logical_or(text).nonzero().squeeze(1)));
}

/// Acceptance 2: z in R^8 common, f in R^4 of each modality, all N(0, 1);
/// image (64) = z G / sqrt 8 + f_v G' / 2 + .1 noise, text (48) likewise.
struct Factors {
  torch::Tensor z, f_image;
  Dataset data;
  explicit Factors(uint64_t seed) {
    const Random random(seed);
    const int64_t n = 1000;
    z = planted::normals(random.stream("z"), 0, n, 8);
    std::vector<Feature> features;
    for (const auto& [name, width] : {std::pair("image", 64), std::pair("text", 48)}) {
      const Random own = random.stream(name);
      const auto f = planted::normals(own, 0, n, 4);
      if (!f_image.defined()) f_image = f;
      const auto rows = z.mm(planted::normals(own, 1, 8, width)) / std::sqrt(8.0) +
                        f.mm(planted::normals(own, 2, 4, width)) / 2 +
                        0.1 * planted::normals(own, 3, n, width);
      features.push_back(planted::feature(random, name, rows, 0));
    }
    const std::vector<int32_t> users = {0, 0}, items = {0, 1};
    data = make_dataset(1, n, make_interactions(1, users, items), {}, {}, std::move(features));
  }
};

/// Pretrained parts of the planted items, and what is measured of them.
struct Measured {
  torch::Tensor c_image, c_text, s_image, s_text;
  double matched, unmatched, first, ordered, specific, overlap;
  Measured(const Factors& factors, int64_t seed, Settings settings) {
    settings.push_back({"embedding_size", 32, "test"});
    settings.push_back({"pre_epochs", 220, "test"});
    const ModelInfo& info = find_model("PAMD");
    const RunSettings resolved = resolve_settings(info, settings);
    auto model = info.make(
        settings,
        Context{factors.data, Random(static_cast<uint64_t>(seed)), resolved.train_settings, {}});
    Watch watch;
    watch.log = [&](const Json& line) { ordered = line["ordered"].get<double>(); };
    dynamic_cast<FeatureSupplier&>(*model).fit(watch);
    const auto part = [&](size_t m) {
      return dynamic_cast<RowEncoder&>(*model).encode({factors.data.features[m]}, 1000);
    };
    const auto image = part(0), text = part(1);
    c_image = image[0].rows.to(torch::kDouble);
    s_image = image[1].rows.to(torch::kDouble);
    c_text = text[0].rows.to(torch::kDouble);
    s_text = text[1].rows.to(torch::kDouble);
    overlap = tessera::overlap(c_image, s_image).item<double>();
    const auto unit = [](const torch::Tensor& x) { return x / x.norm(2, {1}, true); };
    const auto cosines = unit(c_image).mm(unit(c_text).t());
    matched = cosines.diagonal().mean().item<double>();
    unmatched = (cosines.sum().item<double>() - 1000 * matched) / (1000 * 999);
    first = (std::get<1>(cosines.max(1)) == torch::arange(1000))
                .to(torch::kDouble)
                .mean()
                .item<double>();
    specific = (unit(s_image) * unit(s_text)).sum(1).abs().mean().item<double>();
  }
};

/// R^2 of the least-squares map from a (with a constant) to b: fitted on 800 rows, held-out 200.
double explained(const torch::Tensor& a, const torch::Tensor& b) {
  const auto with_one = torch::cat({a, torch::ones({a.size(0), 1}, torch::kDouble)}, 1);
  const auto x = with_one.slice(0, 0, 800), y = b.slice(0, 0, 800);
  const auto map = torch::linalg_solve(x.t().mm(x), x.t().mm(y));
  const auto truth = b.slice(0, 800);
  const auto rest = (truth - with_one.slice(0, 800).mm(map)).square().sum();
  return 1 - (rest / (truth - truth.mean(0)).square().sum()).item<double>();
}

TEST(PamdPlanted, FindsWhatModalitiesShare) {
  for (int64_t seed = 1; seed <= 3; ++seed) {
    const Factors factors(static_cast<uint64_t>(seed));
    const Measured full(factors, seed, {});
    EXPECT_GE(full.matched - full.unmatched, .40) << "seed " << seed;
    EXPECT_GE(full.first, .40) << "seed " << seed;
    EXPECT_GE(full.ordered, .95) << "seed " << seed;
    EXPECT_LE(full.specific, .08) << "seed " << seed;
    const Measured de(factors, seed, {{"w_en", 0, "test"}}),
        en(factors, seed, {{"w_de", 0, "test"}});
    EXPECT_LE(de.matched - de.unmatched, .1) << "seed " << seed;
    EXPECT_LE(en.ordered, .6) << "seed " << seed;
    std::printf(
        "seed %d: gap %.2f, first %.2f, ordered %.2f, |cos(s, s)| %.3f, z to s %.2f, f to s "
        "%.2f, overlap %.2f; de gap %.2f; en ordered %.2f\n",
        static_cast<int>(seed), full.matched - full.unmatched, full.first, full.ordered,
        full.specific, explained(factors.z, full.s_image), explained(factors.f_image, full.s_image),
        full.overlap, de.matched - de.unmatched, en.ordered);
  }
}

// Acceptance 3: under the preset, specific means specific.
TEST(PamdPlanted, SeparateSeparates) {
  for (int64_t seed = 1; seed <= 3; ++seed) {
    const Factors factors(static_cast<uint64_t>(seed));
    const Measured parts(factors, seed, {{"preset", "separate", "test"}});
    const double z_s = explained(factors.z, parts.s_image);
    const double f_s = explained(factors.f_image, parts.s_image);
    const double z_c = explained(factors.z, parts.c_image);
    EXPECT_LE(z_s, .25) << "seed " << seed;
    EXPECT_GE(f_s, .65) << "seed " << seed;
    EXPECT_GE(z_c, .85) << "seed " << seed;
    EXPECT_LE(parts.overlap, .3) << "seed " << seed;
    EXPECT_GE(parts.first, .30) << "seed " << seed;
    std::printf("seed %d: z to s %.2f, f to s %.2f, z to c %.2f, overlap %.2f, first %.2f\n",
                static_cast<int>(seed), z_s, f_s, z_c, parts.overlap, parts.first);
  }
}

}  // namespace
}  // namespace tessera
