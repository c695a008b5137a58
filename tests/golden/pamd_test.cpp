// Golden instances of PAMD: specs pamd section 11, "plain double arithmetic, recomputed; tolerance
// 1e-8".
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <tuple>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/eval/ranking.h"
#include "tessera/eval/sampled.h"
#include "tessera/model/bundle.h"
#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tessera/nn/part_net.h"
#include "tessera/ops/parts.h"
#include "tessera/ops/topk.h"
#include "tessera/study/report_pamd.h"
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
  // Each term is a softmax less a one: P of l1 over all three, Q of l2 over whole and specific.
  const auto leaf = p.clone().requires_grad_();
  const OrderTerms terms = order_terms_composed(leaf, {});
  EXPECT_NEAR(terms.l1.item<double>(), .7512505137, 1e-8);
  EXPECT_NEAR(terms.l2.item<double>(), .5130152524, 1e-8);
  const double tau = OrderOptions{}.tau;
  expect_near(tau * torch::autograd::grad({terms.l1}, {leaf})[0] + mat(3, {1, 0, 0}),
              {.4717762211, .3162410582, .2119827207});
  expect_near(tau * torch::autograd::grad({terms.l2}, {leaf})[0] + mat(3, {0, 1, 0}),
              {0, .5986876601, .4013123399});
}

TEST(PamdGolden, G2Batch) {
  const auto p = mat(3, {.6, .3, .4, .5, .2, -.1});
  const auto value = [&](const OrderOptions& options) {
    return order_loss(unit_rows(2), decodes_with(p), options).value.item<double>();
  };
  const auto expect_terms = [&](const OrderOptions& options, double l1, double l2) {
    EXPECT_NEAR(value(options), l1 + l2, 1e-8);
    const OrderTerms terms = order_terms_composed(p, options);
    EXPECT_NEAR(terms.l1.mean().item<double>(), l1, 1e-8);
    EXPECT_NEAR(terms.l2.mean().item<double>(), l2, 1e-8);
  };
  expect_terms({}, .9150262100, .3881488599);
  EXPECT_NEAR(value({}), 1.3031750699, 1e-8);
  OrderOptions options;
  options.absolute = true;
  expect_terms(options, .9512505137, .4420579592);
  options = {};
  options.batch_sum = true;
  expect_terms(options, .9316586638, .4042943082);
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
  Net(const Net&) = delete;
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
  const OrderTerms terms = order_terms_composed(loss.cosines, {});
  EXPECT_NEAR(terms.l1.item<double>(), .5814007443, 1e-8);
  EXPECT_NEAR(terms.l2.item<double>(), .3289670612, 1e-8);
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
  const std::vector<double> a = {.13, .22, -.23, .13};
  for (int k = 0; k < 4; ++k) {  // alone in the softmax a part adds its a to p.e
    EXPECT_NEAR(score.masked({k}) - .01, a[static_cast<size_t>(k)], 1e-8);
  }
  const auto w = part_weights(score.p, score.parts, {});
  expect_near(w, {.2637234699, .2885594387, .1839936216, .2637234699});
  EXPECT_NEAR(w.slice(0, 0, 2).sum().item<double>(), .5522829086, 1e-8);
  const auto y = score.y();
  EXPECT_NEAR(y.item<double>(), .0997326457, 1e-8);
  EXPECT_NEAR(torch::softplus(-y).item<double>(), .6445236678, 1e-8);
  EXPECT_NEAR(torch::softplus(y).item<double>(), .7442563136, 1e-8);
  torch::softplus(-y).sum().backward();
  expect_near(score.p.grad(), {-.2340585739, -.0558350262});
  expect_near(score.e.grad(), {-.1425262454, .0950174969});
  expect_near(score.parts.grad()[0][0], {-.0391010658, .0260673772});
  expect_near(score.parts.grad()[0][2], {-.0178392767, .0118928511});
  // dr_k = (delta w_k + da_k) p.
  const double delta = torch::sigmoid(y).item<double>() - 1;
  EXPECT_NEAR(delta, -.4750874847, 1e-8);
  const auto p = score.p.detach()[0];
  expect_near(score.parts.grad()[0].mv(p) / p.dot(p) - delta * w.detach().flatten(),
              {-.0050451661, -.0178584790, .0279488111, -.0050451661});
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
  std::vector<torch::Tensor> found;
  for (size_t m = 0; m < 3; ++m) found.push_back(golden.net.split(m, x[m]).c);
  expect_near(mean_common(found, {{}, {}, {}}), {.5, .8333333333});
  const auto none = torch::zeros({1}, torch::kBool);
  expect_near(mean_common(found, {{}, ~none, none}), {.75, .25});
  expect_near(mean_common(found, {none, none, none}), {0, 0});
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

// Acceptance 1: central differences of both losses of the recommender, from the rows through
// encoder, parts and attention.
TEST(PamdFineTuning, Gradients) {
  torch::manual_seed(10);
  const auto users_of = torch::randint(0, 4, {9}, torch::kInt64);
  const auto items_of = torch::randint(0, 5, {18}, torch::kInt64);
  const auto pairs = torch::cat({users_of, users_of});
  for (const int n : {2, 3}) {
    for (const bool mlp : {false, true}) {
      for (const std::string form : {"bce", "bpr"}) {
        auto options =
            options_of(n == 2 ? std::vector<int64_t>{4, 5} : std::vector<int64_t>{4, 5, 3}, 3);
        options.mlp_encoder = options.mlp_common = mlp;
        Net net(options);
        std::vector<torch::Tensor> x, leaves;
        for (const int64_t width : options.widths) {
          x.push_back(torch::randn({5, width}, torch::kFloat64));
        }
        auto open = torch::ones({5, 2 * n}, torch::kBool);
        open[1][0] = false;  // a missing modality
        open[1][n] = false;
        open[2].fill_(false);
        std::vector<std::string> names;
        for (const auto& [name, tensor] : net.tensors) {
          if (name.find("decoder") != std::string::npos) continue;  // no gradient reaches these
          names.push_back(name);
          leaves.push_back(tensor);
        }
        leaves.push_back(torch::randn({4, 3}, torch::kFloat64));
        leaves.push_back(torch::randn({5, 3}, torch::kFloat64));
        const auto loss = [&](const std::vector<torch::Tensor>& in) {
          for (size_t i = 0; i < names.size(); ++i) net.tensors[names[i]] = in[i];
          std::vector<torch::Tensor> parts, specific;
          for (size_t m = 0; m < x.size(); ++m) {
            const Parts of = net.net.split(m, x[m]);
            parts.push_back(of.c);
            specific.push_back(of.s);
          }
          parts.insert(parts.end(), specific.begin(), specific.end());
          const auto y = part_attention(in[names.size()], in[names.size() + 1],
                                        torch::stack(parts, 1), open, pairs, items_of);
          const auto up = y.narrow(0, 0, 9), down = y.narrow(0, 9, 9);
          return form == "bpr" ? torch::softplus(down - up).sum()
                               : torch::softplus(-up).sum() + torch::softplus(down).sum();
        };
        expect_gradients(loss, leaves, 2e-5, 1e-6);
      }
    }
  }
}

/// Every tensor of a model's state by name, copied.
TensorMap tensors_of(Model& model) {
  State state;
  model.state(state);
  const State::Saved saved = state.save();
  TensorMap out;
  for (const auto* part : {&saved.weights, &saved.optimizer}) {
    for (const auto& [name, tensor] : *part) out[name] = tensor.detach().clone();
  }
  return out;
}

struct Pamd {
  Dataset data;
  std::unique_ptr<Model> model;
  Pamd(const PlantedOptions& planted, const Settings& settings)
      : Pamd(planted_pairs(planted), settings) {}
  Pamd(Dataset rows, const Settings& settings) : data(std::move(rows)) {
    const ModelInfo& info = find_model("PAMD");
    const RunSettings resolved = resolve_settings(info, settings);
    model = info.make(settings, Context{data.view(), Random(1), resolved.train_settings, {}});
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
  /// Pretrains; the lines of the log, by check.
  std::vector<Json> fit(const Log& text = {}) {
    std::vector<Json> lines;
    Watch watch;
    watch.text = text;
    watch.log = [&](const Json& line) { lines.push_back(line); };
    dynamic_cast<FeatureSupplier&>(*model).fit(watch);
    return lines;
  }
  std::vector<NamedRows> exported() {
    return dynamic_cast<FeatureSupplier&>(*model).export_features(Json::object());
  }
  const std::vector<torch::Tensor>& rows() {
    return dynamic_cast<ItemPretrainer&>(*model).pretraining_rows();
  }
  /// Its pretraining model in double, over its own tensors.
  std::unique_ptr<Net> twin(const std::function<void(PartNetOptions&)>& change =
                                [](PartNetOptions&) {}) {
    std::vector<int64_t> widths;
    for (const auto& x : rows()) widths.push_back(x.size(1));
    PartNetOptions options = options_of(widths, 64);
    change(options);
    auto out = std::make_unique<Net>(options);
    const TensorMap own = tensors_of(*model);
    for (auto& [name, tensor] : out->tensors) {
      tensor = own.at(name).to(torch::kDouble).requires_grad_();
    }
    return out;
  }
};

std::vector<int64_t> epochs_of(const std::vector<Json>& lines) {
  std::vector<int64_t> out;
  for (const auto& line : lines) out.push_back(line["epoch"].get<int64_t>());
  return out;
}

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

// Section 9, column "released": every value, the training's among them; explicit ones win.
TEST(PamdModel, ReleasedSetsWhatThePublishedCodeHas) {
  const ModelInfo& info = find_model("PAMD");
  const auto values = [&](const Settings& settings) {
    std::map<std::string, Json> out;
    const RunSettings resolved = resolve_settings(info, settings);
    for (const auto& setting : resolved.model) out[setting.name] = setting.value;
    for (const auto& setting : resolved.train) out[setting.name] = setting.value;
    EXPECT_EQ(out["train_batch_size"], resolved.train_settings.train_batch_size);
    EXPECT_EQ(out["eval_step"], resolved.train_settings.eval_step);
    return out;
  };
  const Setting released = {"variant", "released", "test"};
  auto now = values({released});
  const std::map<std::string, Json> wanted = {
      {"embedding_size", 100}, {"tau", 0.5},
      {"prep", "none"},        {"pair_reduction", "batchsum"},
      {"missing", "rand"},     {"pre_learning_rate", 1e-3},
      {"pre_epochs", 220},     {"pre_weight_decay", 1e-5},
      {"pre_batch_size", 100}, {"id_std", 1.0},
      {"finetune_lr", 1e-4},   {"learning_rate", 1e-3},
      {"loss", "bce"},         {"train_batch_size", 100},
      {"eval_step", 20},       {"weight_decay", 1e-5},
      {"epochs", 1000}};
  for (const auto& [name, value] : wanted) EXPECT_EQ(now[name], value) << name;
  auto plain = values({});
  EXPECT_EQ(plain["train_batch_size"], 1024);
  EXPECT_EQ(plain["eval_step"], 1);
  EXPECT_EQ(values({{"train_batch_size", 256, "test"}, released})["train_batch_size"], 256);
}

// Section 3: preset = separate.
TEST(PamdModel, SeparateSetsItsThreeValues) {
  std::map<std::string, Json> now;
  for (const auto& setting :
       resolve_settings(find_model("PAMD"), {{"preset", "separate", "test"}}).model) {
    now[setting.name] = setting.value;
  }
  EXPECT_EQ(now["purify"], 0.03);
  EXPECT_EQ(now["order_specific"], "abs");
  EXPECT_EQ(now["w_en"], 10.0);
}

// Section 1: each form of the rows that encoders read and decoders rebuild.
TEST(PamdModel, Preparation) {
  Dataset data = planted_pairs(small());
  const auto present = data.features[0].present().nonzero().squeeze(1);
  auto raw = data.features[0].gather(present).clone();
  raw.select(1, 0).fill_(3);  // a column without spread
  data.features[0].rows = MappedArray(raw);
  for (const std::string prep : {"pca", "zscore", "l2", "none"}) {
    Pamd pamd(data, {{"prep", prep, "test"}});
    const auto x = pamd.rows()[0].index_select(0, present);
    const auto wide = x.to(torch::kDouble);
    if (prep == "none") {
      EXPECT_TRUE(torch::equal(x, raw));
    }
    if (prep == "l2") {
      expect_near(x.norm(2, {1}), std::vector<double>(static_cast<size_t>(x.size(0)), 1), 1e-5);
      EXPECT_TRUE(torch::allclose(x * raw.norm(2, {1}, true), raw, 1e-4, 1e-5));
    }
    if (prep == "zscore") {
      EXPECT_EQ(x.select(1, 0).abs().max().item<float>(), 0);
      EXPECT_LT(wide.mean(0).abs().max().item<double>(), 1e-5);
      const auto spread = wide.slice(1, 1).std(0, /*unbiased=*/false);
      EXPECT_LT((spread - 1).abs().max().item<double>(), 1e-4);
    }
    if (prep == "pca") {
      EXPECT_EQ(x.size(1), std::min<int64_t>(48, present.size(0) - 1));
      EXPECT_LT(wide.mean(0).abs().max().item<double>(), 1e-5);
      EXPECT_NEAR(wide.square().mean().sqrt().item<double>(), .25, 5e-4);
    }
  }
}

// What is fitted to the features is fitted once: a model that is loaded takes what the file has.
TEST(PamdModel, KeepsItsPreparation) {
  for (const std::string prep : {"pca", "zscore"}) {
    const Settings settings = {{"prep", prep, "test"}, {"pre_epochs", 3, "test"}};
    Pamd pamd(small(), settings);
    pamd.fit();
    State state;
    pamd.model->state(state);
    const State::Saved saved = state.save(true);
    const auto load = [](Pamd& to, const State::Saved& from) {
      State other;
      to.model->state(other);
      other.load(from, true);
    };
    const auto mean = saved.weights.at("image.prep.mean");
    const auto spread = saved.weights.at(prep == "pca" ? "image.prep.scale" : "image.prep.spread");
    Pamd same(pamd.data, settings);
    load(same, saved);
    EXPECT_TRUE(torch::equal(same.scores(), pamd.scores()));

    Dataset moved = pamd.data;  // a fit of its own would find another mean and scale
    const auto present = pamd.data.features[0].present();
    const auto rows = 2 * pamd.data.features[0].all() + 1;
    moved.features[0].rows = MappedArray(rows);
    moved.features[0].row_of_item =
        torch::where(present, torch::arange(moved.n_items), -1).to(torch::kInt32);
    Pamd other(moved, settings);
    load(other, saved);
    auto wanted = (rows.to(torch::kDouble) - mean) / spread;
    if (prep == "pca") wanted = .25 * wanted.matmul(saved.weights.at("image.prep.axes").t());
    const auto there = present.nonzero().squeeze(1);
    EXPECT_TRUE(torch::allclose(other.rows()[0].index_select(0, there).to(torch::kDouble),
                                wanted.index_select(0, there), 1e-4, 1e-5));

    State::Saved changed = saved;
    changed.weights.at("image.prep.mean") = mean.slice(0, 1).clone();
    Pamd damaged(pamd.data, settings);
    load(damaged, changed);
    EXPECT_THROW(damaged.scores(), InputError);

    // Files that were written before have none: it is fitted when it is first needed.
    changed = saved;
    std::erase_if(changed.weights, [](const auto& entry) {
      return entry.first.find(".prep.") != std::string::npos;
    });
    EXPECT_EQ(saved.weights.size() - changed.weights.size(), 2 * (prep == "pca" ? 3U : 2U));
    Pamd old(pamd.data, settings);
    load(old, changed);
    EXPECT_TRUE(torch::equal(old.scores(), pamd.scores()));
    if (prep == "zscore") continue;
    changed = saved;
    changed.weights.at("image.prep.axes") = -saved.weights.at("image.prep.axes");
    Pamd turned(pamd.data, settings);
    load(turned, changed);
    EXPECT_TRUE(torch::equal(turned.rows()[0], -pamd.rows()[0]));
    EXPECT_FALSE(torch::equal(turned.scores(), pamd.scores()));
  }
}

TEST(PamdBundle, AnswersTheSameBitsOnAnotherNumberOfThreads) {
  const int before = torch::get_num_threads();
  const fs::path folder = fs::path(testing::TempDir()) / "tessera_pamd_bundle";
  for (const std::string missing : {"mean", "decode"}) {
    fs::remove_all(folder);
    torch::set_num_threads(1);
    const Settings settings = {{"missing", missing, "test"}, {"pre_epochs", 3, "test"}};
    PlantedOptions planted;
    planted.missing = .2;
    Pamd pamd(planted, settings);
    pamd.fit();
    const auto scores = pamd.scores();
    const ModelInfo& info = find_model("PAMD");
    save_bundle(folder, *pamd.model, pamd.data, info, resolve_settings(info, settings),
                Json::object());
    torch::set_num_threads(2);
    const Bundle bundle = load_bundle(folder);
    const torch::NoGradGuard no_grad;
    const Queries all{torch::arange(pamd.data.n_users, torch::kInt64), {}};
    EXPECT_TRUE(torch::equal(bundle.model->score(all), scores)) << missing;
    const auto ours = pamd.exported();
    const auto theirs = dynamic_cast<RowEncoder&>(*bundle.model)
                            .encode(bundle.data->features, bundle.data->n_items);
    for (size_t p = 0; p < ours.size(); ++p) {
      EXPECT_TRUE(torch::equal(ours[p].rows, theirs[p].rows)) << ours[p].modality;
    }
  }
  torch::set_num_threads(before);
  fs::remove_all(folder);
}

TEST(PamdModel, UnknownPartIsRefused) {
  EXPECT_THROW(Pamd(small(), {{"only_parts", "image_commn", "test"}}), InputError);
}

// Acceptance 6: all parts masked is the ID alone, never NaN; ranking by mask is training's mask.
TEST(PamdModel, Masks) {
  for (const std::string missing : {"mean", "decode", "mask", "rand"}) {
    for (const std::string mask : {"all", "common", "image", "text_specific"}) {
      Pamd pamd(
          small(),
          {{"missing", missing, "test"}, {"eval_mask", mask, "test"}, {"pre_epochs", 1, "test"}});
      pamd.fit();
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

// A ranking with parts left out says so wherever its numbers go.
TEST(PamdModel, EvalMaskIsLabelled) {
  const ModelInfo& info = find_model("PAMD");
  EXPECT_EQ(info.resolve({{"eval_mask", "common,text", "test"}}).label,
            "eval_mask = common,text: parts are left out when ranking only, the model was trained "
            "with them");
  EXPECT_EQ(info.resolve({{"without_parts", "common", "test"}}).label, "");
}

// Section 5: what stands for a row that is not there, by each policy.
TEST(PamdModel, MissingRows) {
  auto planted = small();
  planted.n_modalities = 3;
  for (const std::string missing : {"mean", "decode", "rand"}) {
    Pamd pamd(planted, {{"missing", missing, "test"}, {"pre_epochs", 3, "test"}});
    pamd.fit();
    TensorMap own = tensors_of(*pamd.model);
    const auto twin = pamd.twin();
    std::vector<torch::Tensor> present, x;
    for (const auto& feature : pamd.data.features) present.push_back(feature.present());
    for (const auto& rows : pamd.rows()) x.push_back(rows.to(torch::kDouble));
    for (size_t m = 0; m < 3; ++m) {
      const std::string name = pamd.data.features[m].name;
      const auto gone = present[m].logical_not().nonzero().squeeze(1);
      const auto there = present[m].nonzero().squeeze(1);
      ASSERT_GT(gone.size(0), 1);
      const auto mean = x[m].index_select(0, there).mean(0);
      if (missing == "mean") {
        EXPECT_TRUE(torch::allclose(x[m].index_select(0, gone), mean.expand({gone.size(0), -1}),
                                    1e-4, 1e-6));
      }
      if (missing == "rand") {  // noise for each image, the padding word for texts
        const auto rows = x[m].index_select(0, gone);
        if (name == "text") {
          EXPECT_EQ(rows.abs().max().item<double>(), 0);
        } else {
          EXPECT_TRUE((rows >= 0).logical_and(rows < 1).all().item<bool>());
          EXPECT_FALSE(torch::equal(rows[0], rows[1]));
          EXPECT_NEAR(rows.mean().item<double>(), .5, .1);
        }
      }
      EXPECT_EQ(own.count(name + ".filled"), missing == "decode" ? 1U : 0U);
      if (missing != "decode") continue;
      const auto filled = own[name + ".filled"].to(torch::kDouble);
      EXPECT_TRUE(torch::equal(filled.index_select(0, there), x[m].index_select(0, there)));
      const auto* item = gone.const_data_ptr<int64_t>();
      for (int64_t i = 0; i < gone.size(0); ++i) {
        auto wanted = torch::zeros_like(mean);
        int n = 0;
        for (size_t a = 0; a < 3; ++a) {
          if (a == m || !present[a][item[i]].item<bool>()) continue;
          const auto c = twin->net.split(a, x[a].slice(0, item[i], item[i] + 1)).c;
          wanted = wanted + twin->net.decode(a, m, c)[0];
          ++n;
        }
        EXPECT_TRUE(torch::allclose(filled[item[i]], n > 0 ? wanted / n : mean, 1e-3, 1e-5))
            << name << " of item " << item[i];
      }
    }
  }
}

// Each setting of pretraining, against the model of part_net.h with that option: the loss of the
// first step, on its items.
TEST(PamdModel, SettingsReachThePretraining) {
  auto planted = small();
  planted.n_modalities = 3;
  using Change = std::function<void(PartNetOptions&)>;
  const std::vector<std::pair<Settings, Change>> cases = {
      {{}, [](PartNetOptions&) {}},
      {{{"decoder", "target", "test"}}, [](PartNetOptions& o) { o.shared_decoder = true; }},
      {{{"encoder", "mlp", "test"}}, [](PartNetOptions& o) { o.mlp_encoder = true; }},
      {{{"common_map", "mlp", "test"}}, [](PartNetOptions& o) { o.mlp_common = true; }},
      {{{"contrast", "mse_rank", "test"}},
       [](PartNetOptions& o) { o.order.contrast = OrderOptions::Contrast::mse_rank; }},
      {{{"contrast", "none", "test"}},
       [](PartNetOptions& o) { o.order.contrast = OrderOptions::Contrast::none; }},
      {{{"order_specific", "abs", "test"}}, [](PartNetOptions& o) { o.order.absolute = true; }},
      {{{"pair_reduction", "batchsum", "test"}},
       [](PartNetOptions& o) { o.order.batch_sum = true; }},
      {{{"tau", 0.2, "test"}}, [](PartNetOptions& o) { o.order.tau = 0.2; }},
      {{{"purify", 0.5, "test"}}, [](PartNetOptions& o) { o.purify = 0.5; }},
      {{{"w_en", 0.5, "test"}}, [](PartNetOptions& o) { o.w_en = 0.5; }},
      {{{"w_de", 0.5, "test"}}, [](PartNetOptions& o) { o.w_de = 0.5; }}};
  std::vector<double> losses;
  for (const auto& [settings, change] : cases) {
    Settings all = settings;
    all.push_back({"pre_epochs", 1, "test"});
    Pamd pamd(planted, all);
    const auto twin = pamd.twin(change);
    torch::Tensor items;
    double loss = 0;
    dynamic_cast<ItemPretrainer&>(*pamd.model).on_pretraining_step = [&](const torch::Tensor& batch,
                                                                         double value) {
      items = batch.clone();
      loss = value;
    };
    pamd.fit();
    ASSERT_TRUE(items.defined());
    std::vector<torch::Tensor> x, present;
    for (size_t m = 0; m < 3; ++m) {
      x.push_back(pamd.rows()[m].index_select(0, items).to(torch::kDouble));
      present.push_back(pamd.data.features[m].present().index_select(0, items));
    }
    const double wanted = twin->net.loss(x, present).total.item<double>();
    const std::string what = settings.empty() ? "default" : settings[0].name;
    EXPECT_NEAR(loss, wanted, 1e-4 * std::abs(wanted)) << what;
    for (const double other : losses) EXPECT_NE(loss, other) << what;
    losses.push_back(loss);
  }
}

// Section 7: an untrained ID says nothing (zero), or is used as drawn (keep).
TEST(PamdModel, ColdIds) {
  const Settings ids = {{"only_parts", "none", "test"}};
  Settings kept = ids;
  kept.push_back({"cold_id", "keep", "test"});
  Pamd zero(small(), ids), keep(small(), kept);
  const auto cold = item_counts(zero.data.train, zero.data.n_items) == 0;
  ASSERT_TRUE(cold.any().item<bool>());
  const auto of = [](Pamd& pamd, const torch::Tensor& items) {
    return pamd.scores().index_select(1, items.nonzero().squeeze(1));
  };
  EXPECT_EQ(of(zero, cold).abs().max().item<float>(), 0);
  EXPECT_GT(of(keep, cold).abs().min().item<float>(), 0);
  EXPECT_TRUE(torch::equal(of(zero, ~cold), of(keep, ~cold)));
}

// Section 7, both losses of the recommender: value from the scores, gradients from the same formula
// in double.
TEST(PamdModel, LossOfPairs) {
  for (const std::string form : {"bce", "bpr"}) {
    Pamd pamd(small(), {{"loss", form, "test"}, {"cold_id", "keep", "test"}});
    std::vector<int64_t> users, up, down;
    for (int64_t u = 0; u < pamd.data.n_users; ++u) {
      const auto row = pamd.data.train.of(u);
      if (row.empty()) continue;
      int32_t other = 0;
      while (std::find(row.begin(), row.end(), other) != row.end()) ++other;
      users.push_back(u);
      up.push_back(row[0]);
      down.push_back(other);
    }
    Batch batch;
    batch.step = 1;
    batch.users = torch::tensor(users);
    batch.positives = torch::tensor(up);
    batch.negatives = torch::tensor(down).unsqueeze(1);
    const int64_t n = batch.users.size(0);
    std::tie(batch.distinct_users, batch.user_inverse, std::ignore) =
        torch::_unique2(batch.users, true, true);
    torch::Tensor inverse;
    std::tie(batch.distinct_items, inverse, std::ignore) =
        torch::_unique2(torch::cat({batch.positives, batch.negatives.flatten()}), true, true);
    batch.positive_inverse = inverse.slice(0, 0, n);
    batch.negative_inverse = inverse.slice(0, n).unsqueeze(1);
    const auto scores = pamd.scores().to(torch::kDouble);
    const auto value = [&](const torch::Tensor& y_up, const torch::Tensor& y_down) {
      return form == "bpr" ? torch::softplus(y_down - y_up).sum()
                           : torch::softplus(-y_up).sum() + torch::softplus(y_down).sum();
    };
    pamd.model->train(true);
    const Loss loss = pamd.model->loss(batch);
    const double wanted = value(scores.index({batch.users, batch.positives}),
                                scores.index({batch.users, batch.negatives.flatten()}))
                              .item<double>();
    EXPECT_NEAR(loss.total.item<double>(), wanted, 1e-4 * wanted) << form;
    loss.total.backward();

    const auto twin = pamd.twin();
    const TensorMap own = tensors_of(*pamd.model);
    std::vector<torch::Tensor> parts, specific;
    for (size_t m = 0; m < 2; ++m) {
      const Parts of = twin->net.split(m, pamd.rows()[m].to(torch::kDouble));
      parts.push_back(of.c);
      specific.push_back(of.s);
    }
    parts.insert(parts.end(), specific.begin(), specific.end());
    const auto y = part_attention_composed(
        own.at("user_embedding").to(torch::kDouble), own.at("item_embedding").to(torch::kDouble),
        torch::stack(parts, 1), {}, torch::cat({batch.users, batch.users}),
        torch::cat({batch.positives, batch.negatives.flatten()}));
    value(y.slice(0, 0, n), y.slice(0, n)).backward();
    int n_compared = 0;
    for (const auto& group : pamd.model->parameter_groups()) {
      for (const auto& [name, tensor] : group.tensors) {
        ASSERT_TRUE(tensor->grad().defined()) << name;
        EXPECT_TRUE(torch::allclose(tensor->grad().to(torch::kDouble),
                                    twin->tensors.at(name).grad(), 1e-3, 1e-4))
            << form << " " << name;
        ++n_compared;
      }
    }
    EXPECT_EQ(n_compared, 6);
  }
}

// Lists that leave out what cannot enter them are those of the whole ranking.
TEST(PamdModel, ListsAreTheFullRanking) {
  for (const std::string missing : {"mean", "mask"}) {
    auto planted = small();
    planted.n_items = 700;
    Pamd pamd(planted, {{"missing", missing, "test"}, {"id_std", 1, "test"}});
    const torch::NoGradGuard no_grad;
    for (const bool strangers : {false, true}) {
      auto users = torch::arange(pamd.data.n_users, torch::kInt64);
      if (strangers) users[3] = -1;
      const auto scorer = pamd.model->freeze();
      EXPECT_EQ(scorer->vias({users, {}})[3], strangers ? Via::popular : Via::user);
      const TopLists lists = scorer->top({users, {}}, {}, {}, 20);
      const TopK wanted = top_k_scores(scorer->scores({users, {}}), {}, 20);
      EXPECT_TRUE(torch::equal(lists.items, wanted.items));
      EXPECT_TRUE(torch::equal(lists.scores, wanted.scores));
    }
  }
}

// Every registered ablation is a model, and the part names mean what section 8 says.
TEST(PamdModel, Ablations) {
  const ModelInfo& info = find_model("PAMD");
  std::map<std::string, torch::Tensor> scores;
  for (const int64_t n : {2, 3}) {
    auto planted = small();
    planted.n_modalities = n;
    std::vector<std::string> modalities;
    for (int64_t m = 0; m < n; ++m) modalities.push_back(planted::modality(m));
    scores.clear();
    for (const auto& [label, settings] : info.ablations(modalities)) {
      Settings given;
      for (const auto& [name, value] : settings) given.push_back({name, value, "test"});
      Pamd pamd(planted, given);
      EXPECT_TRUE(scores.emplace(label, pamd.scores()).second) << label << " is there twice";
      EXPECT_TRUE(scores[label].isfinite().all().item<bool>()) << label;
    }
    EXPECT_EQ(scores.size(), static_cast<size_t>(9 + 4 * n));
    if (n != 2) continue;
    for (const std::string label : {"full", "PAMD_en", "PAMD_de", "CON", "ID only", "frozen"}) {
      EXPECT_TRUE(scores.contains(label)) << label;
    }
    const auto with = [&](const std::string& name, const std::string& value) {
      return Pamd(planted, {{name, value, "test"}}).scores();
    };
    for (const auto& [label, part] :
         {std::pair("vc", "image_common"), std::pair("vs", "image_specific"),
          std::pair("cc", "text_common"), std::pair("cs", "text_specific")}) {
      EXPECT_TRUE(torch::equal(scores[label + std::string(" only")], with("only_parts", part)));
      EXPECT_TRUE(torch::equal(scores[label + std::string(" without")], with("eval_mask", part)));
    }
    EXPECT_TRUE(torch::equal(scores["ID only"], with("eval_mask", "all")));
  }
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

// Candidates: all held-out items and others up to the total, none that the user knows, the same at
// every call, others for another seed.
TEST(PamdModel, SampledCandidates) {
  Pamd pamd(small(), {});
  SampledOptions options, other;
  options.total = other.total = 15;
  other.seed = options.seed + 1;
  int n_changed = 0;
  for (int64_t user = 0; user < pamd.data.n_users; ++user) {
    const auto drawn = sampled_candidates(pamd.data, Split::test, user, options);
    EXPECT_EQ(drawn, sampled_candidates(pamd.data, Split::test, user, options));
    n_changed += drawn != sampled_candidates(pamd.data, Split::test, user, other);
    EXPECT_EQ(drawn.size(), 15U);
    EXPECT_EQ(std::adjacent_find(drawn.begin(), drawn.end()), drawn.end());
    const auto test = pamd.data.test.of(user);
    for (const int32_t item : test) {
      EXPECT_TRUE(std::binary_search(drawn.begin(), drawn.end(), item));
    }
    for (const Interactions* known : {&pamd.data.train, &pamd.data.valid}) {
      for (const int32_t item : known->of(user)) {
        if (std::find(test.begin(), test.end(), item) != test.end()) continue;
        EXPECT_FALSE(std::binary_search(drawn.begin(), drawn.end(), item));
      }
    }
  }
  EXPECT_EQ(n_changed, pamd.data.n_users);
  // Fewer where there are not enough.
  options.total = 1000;
  for (int64_t user = 0; user < pamd.data.n_users; ++user) {
    const auto n_known = pamd.data.train.of(user).size() + pamd.data.valid.of(user).size();
    EXPECT_EQ(sampled_candidates(pamd.data, Split::test, user, options).size(), 40 - n_known);
  }
  options.total = 15;
  const auto out =
      evaluate_sampled(*pamd.model, pamd.data, find_protocol("strict"), Split::test, options);
  EXPECT_EQ(out.name(), "sampled-15");
  EXPECT_GT(value_of(out.metrics, "recall@10"), 0);
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

// A catalogue's part of a feature: those items alone, numbered anew.
Feature of_items(const Feature& feature, const std::vector<int64_t>& items) {
  Feature out = feature;
  std::vector<int64_t> kept;
  out.row_of_item = torch::full({static_cast<int64_t>(items.size())}, -1, torch::kInt);
  for (size_t i = 0; i < items.size(); ++i) {
    if (!feature.has(items[i])) continue;
    out.row_of_item.mutable_data_ptr<int32_t>()[i] = static_cast<int32_t>(kept.size());
    kept.push_back(items[i]);
  }
  out.rows = MappedArray(feature.gather(torch::tensor(kept)));
  return out;
}

// Section 6: the norm of exported rows, and the same rows for items that are encoded alone.
TEST(PamdModel, ExportNormOfACatalogueAndOfAFewItems) {
  for (const std::string norm : {"none", "l2", "zscore"}) {
    Pamd pamd(small(), {{"export_norm", norm, "test"}, {"pre_epochs", 3, "test"}});
    pamd.fit();
    const auto all = pamd.exported();
    for (const auto& part : all) {
      const auto rows = part.rows.to(torch::kDouble);
      EXPECT_EQ(part.card["norm"], norm);
      if (norm == "l2") {
        EXPECT_LT((rows.norm(2, {1}) - 1).abs().max().item<double>(), 1e-5);
      }
      if (norm == "zscore") {
        EXPECT_LT(rows.mean(0).abs().max().item<double>(), 1e-4) << part.modality;
        EXPECT_LT((rows.std(0, false) - 1).abs().max().item<double>(), 1e-3) << part.modality;
      }
    }
    std::vector<int64_t> items;
    for (int64_t i = 3; i < 40; i += 4) items.push_back(i);
    std::vector<Feature> features;
    for (const auto& feature : pamd.data.features) features.push_back(of_items(feature, items));
    const auto few =
        dynamic_cast<RowEncoder&>(*pamd.model).encode(features, static_cast<int64_t>(items.size()));
    ASSERT_EQ(few.size(), all.size());
    for (size_t p = 0; p < few.size(); ++p) {
      EXPECT_EQ(few[p].modality, all[p].modality);
      ASSERT_GT(few[p].items.size(0), 2);
      for (int64_t r = 0; r < few[p].items.size(0); ++r) {
        const int64_t item = items[static_cast<size_t>(few[p].items[r].item<int64_t>())];
        const auto at = (all[p].items == item).nonzero().squeeze(1);
        ASSERT_EQ(at.size(0), 1);
        EXPECT_TRUE(torch::allclose(few[p].rows[r], all[p].rows[at.item<int64_t>()], 1e-4, 1e-5))
            << norm << " " << few[p].modality << " " << item;
      }
    }
  }
}

// Section 5: a check before, at every tenth epoch and at the end, which is what "after pretraining"
// means.
TEST(PamdModel, ChecksTheLastEpoch) {
  for (const auto& [n, wanted] : std::vector<std::pair<int64_t, std::vector<int64_t>>>{
           {0, {0}}, {5, {0, 5}}, {20, {0, 10, 20}}, {23, {0, 10, 20, 23}}}) {
    Pamd pamd(small(), {{"pre_epochs", n, "test"}});
    const auto lines = pamd.fit();
    EXPECT_EQ(epochs_of(lines), wanted);
    const Json card = pamd.exported()[0].card;
    EXPECT_EQ(card["pretraining_epochs"], n);
    EXPECT_EQ(card["matched"], lines.back()["matched"]);
    Json rows;
    const Json report = pamd.model->offers().report->report(held_out(pamd.data));
    for (const Json& view : pamd_sections(report)) {
      if (view["title"] == "Do the common parts agree?") rows = view["blocks"][0]["rows"];
    }
    ASSERT_EQ(rows.size(), n == 0 ? 2U : 3U);
    EXPECT_EQ(rows[0][1], lines[0]["matched"]);
    if (n == 0) continue;
    EXPECT_EQ(rows[1][0], "after pretraining");
    EXPECT_EQ(rows[1][1], lines.back()["matched"]);
    EXPECT_NE(rows[1][1], rows[0][1]);
    EXPECT_NEAR(rows[1][1].get<double>(), rows[2][1].get<double>(), 1e-9);  // no training since
  }
}

// Section 5: everything that a check has to tell, in one line for people; a collapse by modality.
TEST(PamdModel, TellsAllTermsOfACheck) {
  std::vector<std::string> said, warned;
  const Log log([&](Level level, const std::string& text) {
    (level == Level::warn ? warned : said).push_back(text);
  });
  Pamd pamd(small(), {{"pre_epochs", 0, "test"}, {"purify", 0.1, "test"}});
  State state;
  pamd.model->state(state);
  State::Saved saved = state.save();
  saved.weights.at("image.common.weight") = torch::zeros({64, 64});
  state.load(saved);
  const auto lines = pamd.fit(log);
  ASSERT_EQ(said.size(), 1U);
  for (const std::string word :
       {"pretraining epoch 0",
        "held-out loss: ", "sim: ", "ort: ", "order: ", "purify: ", "l image to text: ",
        "l text to image: ", "p_c: ", "p_0: ", "p_s: ", "in order: ", "A: ", "matched ",
        "unmatched ", "norm_c image: 0.0000", "norm_c text: ", "norm_s image: ", "norm_s text: "}) {
    EXPECT_NE(said[0].find(word), std::string::npos) << word << " in " << said[0];
  }
  ASSERT_EQ(warned.size(), 1U);
  EXPECT_NE(warned[0].find("the common parts of 'image' collapse"), std::string::npos) << warned[0];
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NEAR(lines[0]["norm_c"].get<double>(), lines[0]["norm_c_of"]["text"].get<double>() / 2,
              1e-12);
}

// Section 5: stops after 5 checks in a row without a lower H or a wider A.
TEST(PamdModel, StopRule) {
  // Nothing changes: the first check is the best, the five after it end it.
  Pamd still(small(), {{"pre_learning_rate", 0, "test"}});
  EXPECT_EQ(epochs_of(still.fit()), (std::vector<int64_t>{0, 10, 20, 30, 40, 50, 60}));

  Pamd pamd(small(), {});
  const auto lines = pamd.fit();
  double best_loss = 1e300, best_gap = -1e300;
  int64_t misses = 0, ends = 1000;
  for (size_t i = 1; i < lines.size(); ++i) {
    const double loss = lines[i]["loss"]["total"].get<double>();
    const double gap = lines[i]["matched"].get<double>() - lines[i]["unmatched"].get<double>();
    const bool lower = loss<(1 - 1e-3) * best_loss, wider = gap> best_gap + .01;
    best_loss = lower ? loss : best_loss;
    best_gap = wider ? gap : best_gap;
    misses = lower || wider ? 0 : misses + 1;
    if (misses == 5 && lines[i]["epoch"].get<int64_t>() >= 50) {
      ends = lines[i]["epoch"].get<int64_t>();
      break;
    }
  }
  EXPECT_EQ(lines.back()["epoch"], ends);
  EXPECT_GT(ends, 60);
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
        Context{
            factors.data.view(), Random(static_cast<uint64_t>(seed)), resolved.train_settings, {}});
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
    overlap = std::max(tessera::overlap(c_image, s_image).item<double>(),
                       tessera::overlap(c_text, s_text).item<double>());
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
