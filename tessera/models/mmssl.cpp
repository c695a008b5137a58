#include <algorithm>
#include <cmath>
#include <optional>

#include "tessera/base/error.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"
#include "tessera/ops/contrast.h"
#include "tessera/ops/critic.h"
#include "tessera/ops/factored_rows.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/knn.h"
#include "tessera/ops/losses.h"
#include "tessera/ops/modal_attention.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

/// MMSSL (Wei et al., WWW 2023, arXiv:2302.10632): propagated IDs plus propagated content, with two
/// self-supervised tasks. A critic tells rows that the content predicts from observed rows, and the
/// content learns to deceive it; user vectors are contrasted with those of item graphs made from
/// the content. variant = released is the published code of February 2023; each deviation is a
/// setting of its own. An item without a train row gets no content signal.
class Mmssl : public GraphModel {
 public:
  struct Config {
    std::string variant = "paper";
    int64_t embedding_size = 64;
    int64_t n_layers = 2;
    int64_t n_heads = 4;
    double dropout = 0.2;
    double omega = 0.55, eta = 0.36;
    double reg_weight = 1e-5, feat_reg_weight = 1e-5;
    bool use_asl = true, use_cl = true, use_dep = true, use_gumbel = true;
    double g_rate = 1e-4, d_lr = 3e-4, lambda_1 = 0.3;
    int64_t d_steps = 1;
    std::vector<int64_t> d_hidden;
    std::vector<double> d_dropout = {0.31, 0.5};
    std::string d_norm = "batch", d_act = "leaky", d_out = "sigmoid";
    std::string fake = "cosine", real = "softmax_observed", real_tau = "all";
    bool real_copies = false;
    double zeta = 1, tau_r = 1;
    double cl_rate = 0.003, tau = 0.5, cl_eps = 0;
    std::string generated_graph = "topk";
    int64_t graph_topk = 10;
    double graph_topk_rate = 0;
    int64_t graph_refresh = -1;
    std::string dep_mode = "attention";
    std::string prop_norm = "symmetric", prop_order = "parallel";
    std::string feat_norm = "zscore";
    std::string missing = "zero";
    std::vector<std::string> bag_modalities;
    int64_t bag_padding = -1;
    std::string adv_engine = "lowrank";

    void describe(Fields& f) {
      f.choice("variant", variant, "the paper's method, or what the published code computes",
               {"paper", "released"});
      f.add("embedding_size", embedding_size, "width of all vectors; a multiple of n_heads",
            at_least(1));
      f.add("n_layers", n_layers, "propagation steps of the IDs", between(0, 8));
      f.add("n_heads", n_heads, "of the attention across modalities", at_least(1));
      f.add("dropout", dropout, "rate on the projected features", between(0, 0.95));
      f.add("omega", omega, "weight of the propagated content in the vectors", at_least(0));
      f.add("eta", eta, "weight of the generated graphs' vectors beside the IDs (Allrecipes 0.34)",
            at_least(0));
      f.add(
          "reg_weight", reg_weight,
          "L2 penalty on the batch's final vectors; weight_decay, decoupled here (AdamW), is that "
          "on all parameters: search 0.01, 0.012, 0.014, 0.016",
          at_least(0));
      f.add("feat_reg_weight", feat_reg_weight, "L2 penalty on the propagated content",
            at_least(0));
      f.add("use_asl", use_asl, "the adversarial task; false: no discriminator");
      f.add("use_cl", use_cl, "the contrast between users and their generated graphs");
      f.add("use_dep", use_dep, "the generated graphs' vectors beside the IDs");
      f.add("use_gumbel", use_gumbel, "Gumbel noise on real rows; false: 1 / degree");
      f.add("g_rate", g_rate,
            "weight of deceiving the discriminator (Baby, Sports 1e-4, TikTok 1.8e-3, Allrecipes "
            "3e-4)",
            at_least(0));
      f.add("d_lr", d_lr,
            "the discriminator's learning rate (Allrecipes 2.5e-4); the model's is learning_rate "
            "(Sports 5e-4, Baby 5.5e-4, TikTok 5.4e-4, Allrecipes 5.6e-4)",
            at_least(0));
      f.add("lambda_1", lambda_1, "weight of the gradient penalty", at_least(0));
      f.add("d_steps", d_steps, "discriminator steps a model step", at_least(1));
      f.list(
          "d_hidden", d_hidden,
          "two widths of the discriminator; empty: n_items / 4, n_items / 8 (small ones, such as "
          "64,32, for quick runs)",
          at_least(1));
      f.list("d_dropout", d_dropout, "rates of its two layers", between(0, 0.95));
      f.choice("d_norm", d_norm, "normalisation inside the discriminator", {"batch", "none"});
      f.choice("d_act", d_act, "leaky: slope 0.2; identity: slope 1, as the published code runs",
               {"leaky", "identity"});
      f.choice("d_out", d_out, "the discriminator's output", {"sigmoid", "linear", "sigmoid100"});
      f.choice("fake", fake,
               "generated rows: cosines, or dot products with 0 at train items (published code)",
               {"cosine", "masked_dot"});
      f.choice("real", real,
               "observed rows: noisy softmax over a user's items, or over all items plus 100 times "
               "the ID scores (published code)",
               {"softmax_observed", "softmax_all"});
      f.choice(
          "real_tau", real_tau,
          "what tau_r divides in real = softmax_all; noise_only (later code) gives dense rows: "
          "adv_engine = reference",
          {"all", "noise_only"});
      f.add("real_copies", real_copies, "observed rows once a modality, each with its own masks");
      f.add("zeta", zeta, "weight of the ID scores in real rows; search 0.3, 1, 3", at_least(0));
      f.add(
          "tau_r", tau_r,
          "temperature of real rows (published code: Baby 0.005, Sports, TikTok 0.002, Allrecipes "
          "0.02)",
          above(0));
      f.add("cl_rate", cl_rate,
            "weight of the contrast; search 0.001, 0.003, 0.01, 0.03 (published code 0.03)",
            at_least(0));
      f.add("tau", tau, "temperature of the contrast (Allrecipes 0.3)", above(0));
      f.add("cl_eps", cl_eps, "added inside the contrast's logarithm (published code 1e-8)",
            at_least(0));
      f.choice(
          "generated_graph", generated_graph,
          "topk: nearest items by content; observed: train items; empty: none after two steps "
          "(published code; for Sports and Allrecipes give graph_refresh 2 as well, and results "
          "say that this is approximate)",
          {"topk", "observed", "empty"});
      f.add("graph_topk", graph_topk,
            "items a user gets per modality, at most n_items / 4; search 1, 5, 10, 20, 50",
            at_least(1));
      f.add("graph_topk_rate", graph_topk_rate,
            "above 0: that share of the items instead (published code: Baby 1e-4, Sports, "
            "Allrecipes 0.02, TikTok 0.01)",
            between(0, 1));
      f.add("graph_refresh", graph_refresh,
            "steps between new graphs; -1: once an epoch, 0: never (train items stay); published "
            "code: Baby, TikTok 1, Sports, Allrecipes 2",
            at_least(-1));
      f.choice("dep_mode", dep_mode, "how the modalities' vectors are joined",
               {"attention", "mean", "linear"});
      f.choice("prop_norm", prop_norm, "of the ID graph: by both degrees, or the receiver's",
               {"symmetric", "left"});
      f.choice("prop_order", prop_order,
               "both sides at once; or items from new users and a softmax in the last layer "
               "(published code)",
               {"parallel", "sequential_softmax"});
      f.choice("feat_norm", feat_norm, "features beforehand: by column, as they are, or by row",
               {"zscore", "none", "l2"});
      f.choice("missing", missing, "rows of items without a modality; zero: no content at all",
               {"zero", "mean", "neighbours", "error"});
      f.list("bag_modalities", bag_modalities,
             "modalities whose rows list ids (Allrecipes: text): one trained vector an id, their "
             "mean for an item");
      f.add("bag_padding", bag_padding, "the id that fills such rows (Allrecipes 33147)");
      f.choice("adv_engine", adv_engine,
               "lowrank: rows never formed, gradients by formula; reference: dense rows, autograd",
               {"lowrank", "reference"});
      f.alias("dep", {"dep_mode"});
      f.alias("gen_graph", {"generated_graph"});
      f.preset("variant", "released",
               {{"prop_norm", "left"},
                {"prop_order", "sequential_softmax"},
                {"dep_mode", "linear"},
                {"d_act", "identity"},
                {"d_out", "sigmoid100"},
                {"fake", "masked_dot"},
                {"real", "softmax_all"},
                {"tau_r", 0.005},
                {"real_copies", true},
                {"generated_graph", "empty"},
                {"cl_rate", 0.03},
                {"cl_eps", 1e-8},
                {"feat_norm", "none"}});
      f.preset("real", "softmax_all", {{"tau_r", 0.005}});
      f.global_default("learning_rate", 5e-4);
      f.global_default("train_batch_size", 1024);
      f.global_default("weight_decay", 0.01);
    }

    /// What the paper searched and, of what its published code left without effect, the weights.
    static SearchSpace search() {
      return {{"weight_decay", {0.01, 0.012, 0.014, 0.016}},
              {"zeta", {0.3, 1, 3}},
              {"graph_topk", {1, 5, 10, 20, 50}},
              {"cl_rate", {0.001, 0.003, 0.01, 0.03}}};
    }

    /// What every result with these settings must say.
    std::string label() const {
      return generated_graph == "empty" && graph_refresh == 2
                 ? "approximate: the published code's graphs with two steps between them are not "
                   "emulated, generated_graph = empty stands for them"
                 : "";
    }

    static std::vector<Ablation> ablations(const std::vector<std::string>& modalities) {
      std::vector<Ablation> out = {
          {"full", {}},
          {"no adversary", {{"use_asl", false}}},
          {"no adversary, observed graphs", {{"use_asl", false}, {"generated_graph", "observed"}}},
          {"observed graphs", {{"generated_graph", "observed"}}},
          {"no contrast", {{"use_cl", false}}},
          {"no dependency", {{"use_dep", false}}},
          {"mean dependency", {{"dep_mode", "mean"}}},
          {"no Gumbel noise", {{"use_gumbel", false}}},
          {"no ID scores in real rows", {{"zeta", 0.0}}},
          {"LightGCN",
           {{"use_asl", false},
            {"use_cl", false},
            {"use_dep", false},
            {"omega", 0.0},
            {"feat_reg_weight", 0.0}}}};
      for (const auto& modality : modalities) {
        out.push_back({modality + " alone", {{"modalities", modality}}});
      }
      out.push_back({"features permuted", {{"permute", "all"}}});
      return out;
    }
  };

  Mmssl(const Config& config, const Context& context)
      : GraphModel(context),
        config_(config),
        // The published code adds 1e-8 to the degrees of prop_norm = left.
        graph_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items,
               config.prop_norm == "left" ? 1e-8 : 1e-7),
        observed_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items, 0),
        users_(parameter("user_embedding",
                         xavier_uniform(data_.n_users, config.embedding_size,
                                        random_.stream("init.user_embedding")),
                         Role::scoring, Axis::by_user)),
        items_(parameter("item_embedding",
                         xavier_uniform(data_.n_items, config.embedding_size,
                                        random_.stream("init.item_embedding")),
                         Role::scoring, Axis::by_item)) {
    check_settings();
    for (const auto& feature : data_.features) add_modality(feature);
    if (needs_graphs() && config.use_dep) add_dependency();
    if (config.use_asl) {
      critic_.form = form_of(config);
      critic_.layers.resize(2);
    }
  }

  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::distinct_user,
            .n_negatives = 1,
            .pool = BatchSpec::Pool::all,
            .split = BatchSpec::Split::none};
  }

  std::vector<ParameterGroup> parameter_groups() override {
    auto groups = GraphModel::parameter_groups();
    groups[0].decay = AdamOptions::Decay::decoupled;
    return groups;
  }

  void state(State& state) override {
    GraphModel::state(state);
    for (auto& m : modalities_) {
      if (m.edges.defined()) state.add(m.name + ".edges", m.edges, Role::scoring);
    }
    if (!config_.use_asl) return;
    for (auto& [name, tensor] : critic_.tensors()) {
      state.add("discriminator." + name, *tensor, Role::inner);
    }
    state.add("discriminator.adam", critic_adam_, Role::inner);
  }

  void prepare(const Watch&) override {
    if (config_.use_asl) make_critic();
  }

  void before_step(const Batch& batch) override {
    const int64_t period = config_.graph_refresh;
    if (period > 0 && batch.step > 1 && (batch.step - 1) % period == 0) refresh();
    kept_ = forward(batch.step);
    kept_step_ = batch.step;
    critic_parts_ = {};
    if (!config_.use_asl) return;
    make_critic();
    for (int64_t k = 0; k < config_.d_steps; ++k) {
      critic_step(batch, *kept_, batch.step * config_.d_steps + k);
    }
  }

  Loss loss(const Batch& batch) override {
    const Forward f = kept_ && kept_step_ == batch.step ? std::move(*kept_) : forward(batch.step);
    kept_.reset();
    const int64_t n = batch.size();
    const Triples at{batch.users, batch.positives, batch.negatives};
    Loss out;
    out.total = bpr_loss(f.h.users, f.h.items, at);
    out.parts.emplace_back("bpr", out.total);
    const auto add = [&](const std::string& name, double weight, const torch::Tensor& part) {
      out.total = out.total + weight * part;
      out.parts.emplace_back(name, part);
    };
    if (config_.reg_weight > 0)
      add("reg", config_.reg_weight, l2_rows(f.h.users, f.h.items, at, n));
    if (config_.feat_reg_weight > 0) {
      std::vector<torch::Tensor> rows = f.content_users;
      rows.insert(rows.end(), f.content_items.begin(), f.content_items.end());
      add("feat_reg", config_.feat_reg_weight, l2_rows(rows, data_.n_items));
    }
    if (config_.use_cl && config_.cl_rate > 0) {
      add("contrast", config_.cl_rate, contrast(batch, f));
    }
    if (config_.use_asl) {
      make_critic();
      if (config_.g_rate > 0) add("generator", config_.g_rate, generator_loss(batch, f));
      for (const auto& [name, value] : critic_parts_) {
        out.parts.emplace_back(name, torch::tensor(value, torch::kFloat64));
      }
    }
    return out;
  }

  void end_epoch(int64_t epoch, const Watch& watch) override {
    if (config_.graph_refresh == -1) refresh();
    if (!needs_graphs() || config_.generated_graph != "topk") return;
    Json line = {{"event", "graphs"}, {"epoch", epoch}};
    Json shares = Json::object();
    std::string text;
    for (const auto& m : modalities_) {
      if (!is_built(m)) return;
      shares[m.name] = observed_share(m);
      text += fmt::format(", {}: {:.4f}", m.name, shares[m.name].get<double>());
    }
    line["train_share"] = shares;
    line["overlap"] = overlap();
    watch.text.info("generated graphs [share of train edges{}, overlap between modalities: {:.4f}]",
                    text, line["overlap"].get<double>());
    watch.log(line);
  }

  Vectors propagate() override { return forward(0).h; }

 protected:
  void forget() override {
    GraphModel::forget();
    generated_.clear();
    kept_.reset();
  }

 private:
  struct Modality {
    std::string name;
    torch::Tensor rows;     // [n_items, width], undefined for a bag
    torch::Tensor present;  // [n_items, 1], 0 or 1; undefined where all are
    BipartiteGraph bag;     // items and the ids they list
    torch::Tensor *weight = nullptr, *bias = nullptr;  // [d, width] or [n_ids, d]; [d]
    torch::Tensor edges;  // int32 [n_users, k], -1: none; kNotBuilt before the first refresh
  };
  static constexpr int32_t kNotBuilt = -2;

  struct Forward {
    std::vector<torch::Tensor> content_users, content_items;      // F_u^m, F_i^m
    std::vector<torch::Tensor> generated_users, generated_items;  // e_u^m, e_i^m
    Vectors h;
  };

  bool needs_graphs() const { return config_.use_dep || config_.use_cl; }
  bool needs_content() const {
    return config_.omega > 0 || config_.use_asl || config_.feat_reg_weight > 0;
  }
  Random init(const std::string& name) const { return random_.stream("init." + name); }
  int64_t n_modalities() const { return static_cast<int64_t>(modalities_.size()); }

  // --- construction ------------------------------------------------------------------------
  void check_settings() const {
    require_features(data_, "MMSSL");
    if (config_.embedding_size % config_.n_heads != 0) {
      throw usage_error("MMSSL.embedding_size must be a multiple of n_heads = {}, got {}",
                        config_.n_heads, config_.embedding_size);
    }
    if (!config_.d_hidden.empty() && config_.d_hidden.size() != 2) {
      throw usage_error("MMSSL.d_hidden: wanted two widths, like 64,32, got {}",
                        config_.d_hidden.size());
    }
    if (config_.d_dropout.size() != 2) {
      throw usage_error("MMSSL.d_dropout: wanted two rates, like 0.31,0.5, got {}",
                        config_.d_dropout.size());
    }
    if (config_.real == "softmax_all" && config_.adv_engine == "lowrank") {
      if (config_.real_tau == "noise_only") {
        throw usage_error(
            "MMSSL.real_tau = noise_only makes dense rows: it wants adv_engine = reference");
      }
      if (config_.tau_r > 0.02) {
        throw usage_error(
            "MMSSL.tau_r = {} makes dense rows under real = softmax_all: wanted at most 0.02, or "
            "adv_engine = reference",
            config_.tau_r);
      }
    }
    for (const auto& bag : config_.bag_modalities) {
      if (data_.feature(bag) != nullptr) continue;
      std::vector<std::string> names;
      for (const auto& feature : data_.features) names.push_back(feature.name);
      throw usage_error("MMSSL.bag_modalities: no modality '{}' among {}{}", printable(bag),
                        fmt::join(names, ", "), did_you_mean(bag, names));
    }
  }

  void add_modality(const Feature& feature) {
    Modality m;
    m.name = feature.name;
    const int64_t d = config_.embedding_size;
    torch::Tensor has = feature.present();
    const auto& bags = config_.bag_modalities;
    if (std::find(bags.begin(), bags.end(), feature.name) != bags.end()) {
      has = make_bag(m, feature);
      m.weight = &parameter(m.name + ".bag", xavier_uniform(m.bag.n_items(), d, init(m.name)));
    } else {
      m.rows = normalised(filled(data_, feature, config_.missing), has);
      if (config_.missing != "zero") has = torch::ones_like(has);
      m.weight = &parameter(m.name + ".weight", xavier_uniform(d, feature.width(), init(m.name)));
    }
    m.bias = &parameter(m.name + ".bias",
                        linear_default_bias(feature.width(), d, init(m.name + ".bias")));
    if (!has.all().item<bool>()) m.present = has.to(torch::kFloat32).unsqueeze(1);
    if (needs_graphs() && config_.generated_graph == "topk") {
      const int64_t wanted =
          config_.graph_topk_rate > 0
              ? static_cast<int64_t>(config_.graph_topk_rate * static_cast<double>(data_.n_items))
              : config_.graph_topk;
      const int64_t k = std::max<int64_t>(1, std::min(wanted, data_.n_items / 4));
      m.edges = torch::full({data_.n_users, k}, kNotBuilt, torch::kInt32);
    }
    modalities_.push_back(std::move(m));
  }

  /// Rows by feat_norm; statistics over the items that have the modality.
  torch::Tensor normalised(const torch::Tensor& rows, const torch::Tensor& has) const {
    if (config_.feat_norm == "none") return rows;
    if (config_.feat_norm == "l2") return unit_rows(rows);
    const auto own = rows.index_select(0, has.nonzero().flatten());
    if (own.size(0) == 0) return rows;
    const auto mean = own.mean(0, false, torch::kFloat64);
    const auto sd = own.to(torch::kFloat64).sub_(mean).square_().mean(0).sqrt_().add_(1e-8);
    return rows.to(torch::kFloat64).sub_(mean).div_(sd).to(torch::kFloat32);
  }

  /// The graph from items to the ids they list, numbered in rising order. bool [n_items]
  torch::Tensor make_bag(Modality& m, const Feature& feature) const {
    const auto rows = feature.all();
    const float* value = rows.const_data_ptr<float>();
    const int64_t width = feature.width();
    std::vector<int32_t> ids;
    std::vector<int64_t> offsets = {0};
    std::vector<int32_t> known;
    for (int64_t item = 0; item < data_.n_items; ++item) {
      std::vector<int32_t> own;
      for (int64_t c = 0; c < width && feature.has(item); ++c) {
        const float id = value[item * width + c];
        if (id == static_cast<float>(config_.bag_padding)) continue;
        if (!(id >= 0 && id < 1 << 24) || id != std::floor(id)) {
          throw data_error(
              "feature '{}', item {}, column {}: {} is no id; MMSSL.bag_modalities wants whole "
              "numbers from 0",
              feature.name, item, c, id);
        }
        own.push_back(static_cast<int32_t>(id));
      }
      std::sort(own.begin(), own.end());
      own.erase(std::unique(own.begin(), own.end()), own.end());
      ids.insert(ids.end(), own.begin(), own.end());
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    known = ids;
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(std::lower_bound(known.begin(), known.end(), id) - known.begin());
    }
    const auto at = torch::tensor(offsets, torch::kInt64);
    m.bag = BipartiteGraph(at, torch::tensor(ids, torch::kInt32),
                           static_cast<int64_t>(known.size()), 0);
    return at.diff() > 0;
  }

  void add_dependency() {
    const int64_t d = config_.embedding_size;
    if (config_.dep_mode == "attention") {
      query_ = &parameter("attention.query", xavier_uniform(d, d, init("query")));
      key_ = &parameter("attention.key", xavier_uniform(d, d, init("key")));
    } else if (config_.dep_mode == "linear") {
      query_ = &parameter("attention.blocks",
                          xavier_uniform(config_.n_heads * d, d, init("attention.blocks")));
    }
  }

  static CriticForm form_of(const Config& config) {
    CriticForm form;
    form.batch_norm = config.d_norm == "batch";
    form.slope = config.d_act == "leaky" ? 0.2 : 1;
    if (config.d_out == "linear") form.output = CriticForm::Output::linear;
    if (config.d_out == "sigmoid100") form.output = CriticForm::Output::sigmoid100;
    return form;
  }

  /// Made when first trained: ranking does without.
  void make_critic() {
    if (critic_.bias.defined()) return;  // made, or read from a checkpoint
    std::vector<int64_t> widths = config_.d_hidden;
    if (widths.empty()) {
      widths = {std::max<int64_t>(1, data_.n_items / 4), std::max<int64_t>(1, data_.n_items / 8)};
    }
    log_.info("discriminator: {} items, hidden layers of {}", data_.n_items,
              fmt::join(widths, " and "));
    // The published code keeps the gain of a plain ReLU where its slope is 1.
    const double slope = config_.d_act == "identity" ? 0 : critic_.form.slope;
    const double gain = std::sqrt(2 / (1 + slope * slope));
    const auto kaiming = [&](int64_t rows, int64_t cols, int64_t fan_in, const std::string& name) {
      return normal(rows, cols, 0, gain / std::sqrt(static_cast<double>(fan_in)),
                    init("discriminator." + name));
    };
    int64_t before = data_.n_items;
    for (size_t k = 0; k < 2; ++k) {
      Critic::Layer& layer = critic_.layers[k];
      const int64_t width = widths[k];
      layer.weight = k == 0 ? kaiming(before, width, before, "weight1")
                            : kaiming(width, before, before, "weight2");
      layer.bias = torch::zeros({width});
      if (critic_.form.batch_norm) {
        layer.gamma = torch::ones({width});
        layer.beta = torch::zeros({width});
      }
      before = width;
    }
    critic_.weight = kaiming(1, before, before, "weight").squeeze(0);
    critic_.bias = torch::zeros({1});
  }

  // --- forward -----------------------------------------------------------------------------
  /// X_m of all items. [n_items, d]
  torch::Tensor projected(const Modality& m) const {
    torch::Tensor x;
    if (m.bag.defined()) {
      // The mean: 1/sqrt(n) from the graph, 1/sqrt(n) here.
      const auto root = m.bag.parts()
                            .user_root.to(torch::kFloat32)
                            .masked_fill(m.bag.parts().user_offsets.diff() == 0, 0);
      x = to_users(m.bag, *m.weight, EdgeWeight::receiver) * root.unsqueeze(1) + *m.bias;
    } else {
      x = torch::addmm(*m.bias, m.rows, m.weight->t());
    }
    return m.present.defined() ? x * m.present : x;
  }

  /// All users and items. Step 0: evaluation form; else with the dropout of `stream` at that step.
  Forward forward(int64_t step) { return forward(step, "dropout", step); }
  /// The same with a number of its own for the dropout.
  Forward forward(int64_t step, const std::string& stream, int64_t key) {
    Forward out;
    const bool dropout = step > 0 && config_.dropout > 0;
    torch::Tensor content_u, content_i;
    for (size_t k = 0; k < modalities_.size() && needs_content(); ++k) {
      const Modality& m = modalities_[k];
      torch::Tensor x = projected(m);
      if (dropout) {
        const auto items = torch::arange(x.size(0), x.options().dtype(torch::kInt64));
        x = x * dropout_mask(items, x.size(1), config_.dropout,
                             random_.stream(stream + "." + m.name), key);
      }
      const auto u = to_users(observed_, x, EdgeWeight::receiver);
      const auto i = to_items(observed_, u, EdgeWeight::receiver);
      out.content_users.push_back(u);
      out.content_items.push_back(i);
      if (config_.omega == 0) continue;
      content_u = content_u.defined() ? content_u + unit_rows(u) : unit_rows(u);
      content_i = content_i.defined() ? content_i + unit_rows(i) : unit_rows(i);
    }
    torch::Tensor users = users_, items = items_;
    if (needs_graphs()) {
      const bool empty = config_.generated_graph == "empty" && (step == 0 || step > 2);
      for (size_t k = 0; k < modalities_.size() && !empty; ++k) {
        const BipartiteGraph& graph = generated(k);
        out.generated_users.push_back(to_users(graph, items_, EdgeWeight::receiver));
        out.generated_items.push_back(to_items(graph, users_, EdgeWeight::receiver));
      }
      if (config_.use_dep && config_.eta > 0 && !empty) {
        users = users + config_.eta * unit_rows(joined(out.generated_users));
        items = items + config_.eta * unit_rows(joined(out.generated_items));
      }
    }
    out.h = spread(users, items);
    if (content_u.defined()) {
      out.h.users = out.h.users + config_.omega * content_u;
      out.h.items = out.h.items + config_.omega * content_i;
    }
    return out;
  }

  /// The modalities' vectors in one. [n, d]
  torch::Tensor joined(const std::vector<torch::Tensor>& e) const {
    if (config_.dep_mode == "attention") {
      return modal_attention(e, *query_, *key_, config_.n_heads);
    }
    const auto mean = torch::stack(e).mean(0);
    if (config_.dep_mode == "mean") return mean;
    const int64_t d = config_.embedding_size;
    return mean.mm(query_->view({config_.n_heads, d, d}).sum(0));
  }

  /// Mean over the layers of the propagated IDs.
  Vectors spread(const torch::Tensor& users, const torch::Tensor& items) const {
    const bool sequential = config_.prop_order == "sequential_softmax";
    if (!sequential && config_.prop_norm == "symmetric") {
      auto [u, i] = layer_mean(graph_, users, items, config_.n_layers);
      return {u, i};
    }
    const auto weight = config_.prop_norm == "symmetric" ? EdgeWeight::both : EdgeWeight::receiver;
    torch::Tensor u = users, i = items, sum_u = users, sum_i = items;
    for (int64_t layer = 1; layer <= config_.n_layers; ++layer) {
      const bool last = sequential && layer == config_.n_layers;
      auto next = to_users(graph_, i, weight);
      if (last) next = torch::softmax(next, 1);
      i = to_items(graph_, sequential ? next : u, weight);
      if (last) i = torch::softmax(i, 1);
      u = next;
      sum_u = sum_u + u;
      sum_i = sum_i + i;
    }
    const auto count = static_cast<double>(config_.n_layers + 1);
    return {sum_u / count, sum_i / count};
  }

  // --- generated graphs --------------------------------------------------------------------
  static bool is_built(const Modality& m) {
    return m.edges.defined() && !(m.edges == kNotBuilt).any().item<bool>();
  }

  void refresh() {
    if (!needs_graphs() || config_.generated_graph != "topk") return;
    const torch::NoGradGuard no_grad;
    for (auto& m : modalities_) {
      const auto u = to_users(observed_, projected(m), EdgeWeight::receiver);
      const auto i = to_items(observed_, u, EdgeWeight::receiver);
      m.edges.copy_(nearest_rows(u, i, m.edges.size(1)).items);
    }
    generated_.clear();
  }

  /// The graph of modality k, made from its edges once and remembered.
  const BipartiteGraph& generated(size_t k) {
    if (generated_.empty()) generated_.resize(modalities_.size());
    BipartiteGraph& graph = generated_[k];
    if (graph.defined()) return graph;
    const Modality& m = modalities_[k];
    if (!is_built(m)) return graph = observed_;  // observed, or before the first refresh
    const auto sorted = std::get<0>(m.edges.sort(1));
    const auto repeated = sorted.slice(1, 1) == sorted.slice(1, 0, -1);
    if ((sorted < -1).any().item<bool>() || (sorted >= data_.n_items).any().item<bool>() ||
        repeated.logical_and(sorted.slice(1, 1) >= 0).any().item<bool>()) {
      throw data_error("stored '{}.edges' are no distinct items of {}", m.name, data_.n_items);
    }
    return graph = neighbour_graph(m.edges, data_.n_items);
  }

  double observed_share(const Modality& m) const {
    const int64_t k = m.edges.size(1);
    const int32_t* item = m.edges.const_data_ptr<int32_t>();
    int64_t n = 0, shared = 0;
    for (int64_t e = 0; e < data_.n_users * k; ++e) {
      if (item[e] < 0) continue;
      ++n;
      shared += contains(data_.train_distinct.of(e / k), item[e]);
    }
    return n > 0 ? static_cast<double>(shared) / static_cast<double>(n) : 0;
  }

  /// Mean over pairs of modalities of the share of edges in both.
  double overlap() const {
    double sum = 0;
    int64_t n_pairs = 0;
    for (size_t a = 0; a < modalities_.size(); ++a) {
      for (size_t b = 0; b < a; ++b, ++n_pairs) {
        const auto &x = modalities_[a].edges, &y = modalities_[b].edges;
        const auto n = (x >= 0).sum().item<int64_t>();
        if (n == 0) continue;
        int64_t shared = 0;
        const int64_t k = x.size(1);
        const int32_t* xs = x.const_data_ptr<int32_t>();
        const int32_t* ys = y.const_data_ptr<int32_t>();
        for (int64_t u = 0; u < data_.n_users; ++u) {
          for (int64_t e = u * k; e < (u + 1) * k; ++e) {
            shared +=
                xs[e] >= 0 && std::find(ys + u * k, ys + (u + 1) * k, xs[e]) != ys + (u + 1) * k;
          }
        }
        sum += static_cast<double>(shared) / static_cast<double>(n);
      }
    }
    return n_pairs > 0 ? sum / static_cast<double>(n_pairs) : 1;
  }

  // --- contrast ----------------------------------------------------------------------------
  torch::Tensor contrast(const Batch& batch, const Forward& f) const {
    const int64_t n = batch.size();
    const auto h = unit_rows(gather_rows(f.h.users, batch.users));
    const auto own = torch::arange(n, batch.users.options());
    torch::Tensor sum = torch::zeros({}, h.options());
    for (size_t m = 0; m < modalities_.size(); ++m) {
      const auto e = f.generated_users.empty()
                         ? torch::zeros_like(h)
                         : unit_rows(gather_rows(f.generated_users[m], batch.users));
      sum = sum + info_nce(e, torch::cat({h, e}), own, own + n, config_.tau, config_.cl_eps);
    }
    return sum;
  }

  // --- adversary ---------------------------------------------------------------------------
  /// The train items of the batch's users.
  SparseRows places_of(const Batch& batch) const {
    std::vector<int64_t> offsets = {0};
    std::vector<int32_t> columns;
    const int64_t* users = batch.users.const_data_ptr<int64_t>();
    for (int64_t j = 0; j < batch.size(); ++j) {
      const auto row = data_.train_distinct.of(users[j]);
      columns.insert(columns.end(), row.begin(), row.end());
      offsets.push_back(static_cast<int64_t>(columns.size()));
    }
    return {torch::tensor(offsets, torch::kInt64), torch::tensor(columns, torch::kInt32), {}};
  }

  double gumbel(int64_t key, int64_t user, int64_t item) const {
    const double eps = random_.stream("gumbel").uniform(
        static_cast<uint64_t>(key), static_cast<uint64_t>(user), static_cast<uint32_t>(item));
    return -std::log(-std::log(std::clamp(eps, 1e-12, 1 - 1e-7)));
  }

  /// Noise at the places, float64.
  torch::Tensor gumbel_at(const Batch& batch, const SparseRows& places, int64_t key) const {
    const auto out = torch::empty({places.columns.size(0)}, torch::kFloat64);
    double* to = out.mutable_data_ptr<double>();
    const int64_t* users = batch.users.const_data_ptr<int64_t>();
    const int64_t* offsets = places.offsets.const_data_ptr<int64_t>();
    const int32_t* columns = places.columns.const_data_ptr<int32_t>();
    for (int64_t j = 0; j < batch.size(); ++j) {
      for (int64_t e = offsets[j]; e < offsets[j + 1]; ++e) {
        to[e] = gumbel(key, users[j], columns[e]);
      }
    }
    return out;
  }

  /// The observed part p of real rows on a user's items. [n_entries]
  torch::Tensor observed_part(const Batch& batch, const SparseRows& places, int64_t key) const {
    SparseRows rows = places;
    if (!config_.use_gumbel) {
      rows.values = torch::zeros({places.columns.size(0)}, torch::kFloat64);
    } else {
      rows.values = gumbel_at(batch, places, key);
      if (config_.real == "softmax_all") rows.values.mul_(1e-5);
    }
    return entry_softmax(rows, config_.tau_r).to(torch::kFloat32);
  }

  /// The final vectors that real rows are made of, without gradient. The published code makes them
  /// anew for every step of the discriminator.
  Vectors real_vectors(const Batch& batch, const Forward& f, int64_t key) {
    const Vectors h =
        config_.real == "softmax_all" ? forward(batch.step, "dropout.real", key).h : f.h;
    return {h.users.detach().index_select(0, batch.users), h.items.detach()};
  }

  FactoredRows real_rows(const Batch& batch, const Forward& f, const SparseRows& places,
                         int64_t key) {
    const Vectors h = real_vectors(batch, f, key);
    SparseRows s = places;
    s.values = observed_part(batch, places, key);
    if (config_.real == "softmax_observed") {
      const auto p = unit_rows(h.items);
      const auto q = h.users * (config_.zeta * factored_rows(p, h.users).inverse.unsqueeze(1));
      return factored_rows(p, q, s);
    }
    const auto masked = factored_rows(h.items, h.users, masking(h.items, h.users, places));
    const auto q = h.users * (100 * masked.inverse.unsqueeze(1));
    s.values = s.values + masking(h.items, q, places).values;
    return factored_rows(h.items, q, s);
  }

  /// P of the fake rows of modality m; q is F_u^m of the batch's users.
  torch::Tensor fake_items(const Forward& f, size_t m) const {
    return config_.fake == "cosine" ? unit_rows(f.content_items[m]) : f.content_items[m];
  }

  CriticMasks masks(int64_t n, const std::string& call, int64_t key) const {
    CriticMasks out;
    if (config_.d_dropout[0] == 0 && config_.d_dropout[1] == 0) return out;
    for (size_t k = 0; k < 2; ++k) {
      out.push_back(dropout_mask(torch::arange(n, critic_.bias.options().dtype(torch::kInt64)),
                                 critic_.layers[k].bias.size(0), config_.d_dropout[k],
                                 random_.stream(fmt::format("discriminator.{}.{}", call, k + 1)),
                                 key));
    }
    return out;
  }

  /// alpha of the interpolates. [n, 1]
  torch::Tensor mixture(int64_t n, int64_t key) const {
    const auto out = torch::empty({n, 1});
    const Random random = random_.stream("alpha");
    for (int64_t j = 0; j < n; ++j) {
      out.mutable_data_ptr<float>()[j] = static_cast<float>(
          random.uniform(static_cast<uint64_t>(key), static_cast<uint64_t>(j), 0));
    }
    return out;
  }

  struct CriticLoss {
    double fake = 0, real = 0, penalty = 0, slope = 0;
    Critic gradients;
  };

  /// One step of the discriminator; `key` numbers the steps.
  void critic_step(const Batch& batch, const Forward& f, int64_t key) {
    CriticLoss loss = config_.adv_engine == "lowrank" ? critic_loss_lowrank(batch, f, key)
                                                      : critic_loss_reference(batch, f, key);
    double squares = 0;
    for (auto& [name, gradient] : loss.gradients.tensors()) {
      const double norm = gradient->norm().item<double>();
      squares += norm * norm;
    }
    const std::vector<std::pair<std::string, double>> parts = {{"d_fake", loss.fake},
                                                               {"d_real", loss.real},
                                                               {"d_penalty", loss.penalty},
                                                               {"d_slope", loss.slope},
                                                               {"d_gradient", std::sqrt(squares)}};
    for (const auto& [name, value] : parts) {
      if (std::isfinite(value)) continue;
      throw RunError(Exit::diverged,
                     fmt::format("diverged in epoch {}: loss part '{}' is {}; try a smaller d_lr",
                                 batch.epoch, name, value));
    }
    // The log has the mean over the steps that belong to one of the model.
    critic_parts_.resize(parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      critic_parts_[i].first = parts[i].first;
      critic_parts_[i].second += parts[i].second / static_cast<double>(config_.d_steps);
    }
    AdamOptions options;
    options.learning_rate = [rate = config_.d_lr](int64_t) { return rate; };
    options.beta1 = 0.5;
    options.beta2 = 0.9;
    const torch::NoGradGuard no_grad;
    auto gradients = loss.gradients.tensors();
    auto tensors = critic_.tensors();
    for (size_t k = 0; k < tensors.size(); ++k) {
      critic_adam_.step(tensors[k].first, *tensors[k].second, gradients[k].second->contiguous(),
                        options);
    }
  }

  CriticLoss critic_loss_lowrank(const Batch& batch, const Forward& f, int64_t key) {
    const torch::NoGradGuard no_grad;
    const int64_t n = batch.size(), n_fake = n * n_modalities();
    const int64_t n_copies = config_.real_copies ? n_modalities() : 1;
    const SparseRows places = places_of(batch);
    std::vector<FactoredRows> rows;  // fake, modality after modality, then real
    for (size_t m = 0; m < modalities_.size(); ++m) {
      const auto p = fake_items(f, m).detach();
      const auto q = f.content_users[m].detach().index_select(0, batch.users);
      rows.push_back(
          factored_rows(p, q, config_.fake == "cosine" ? SparseRows{} : masking(p, q, places)));
    }
    rows.push_back(real_rows(batch, f, places, key));
    const auto first = rows_product(rows, critic_.layers[0].weight);
    const auto fake_first = first.narrow(0, 0, n_fake), real_first = first.narrow(0, n_fake, n);

    CriticLoss out;
    out.gradients = critic_.zeros_like();
    const auto call = [&](const torch::Tensor& of, const char* name, double sign, double& mean) {
      const auto pass = critic_pass(critic_, of, masks(of.size(0), name, key));
      mean = pass.score.mean().item<double>();
      return critic_backward(critic_, pass,
                             torch::full_like(pass.score, sign / static_cast<double>(of.size(0))),
                             &out.gradients);
    };
    auto fake_adjoint = call(fake_first, "fake", 1, out.fake);
    auto real_adjoint =
        call(n_copies > 1 ? real_first.repeat({n_copies, 1}) : real_first, "real", -1, out.real);
    if (n_copies > 1) real_adjoint = real_adjoint.view({n_copies, n, -1}).sum(0);
    const auto alpha = mixture(n_fake, key);
    {
      const auto mixed = torch::lerp(fake_first, real_first.repeat({n_modalities(), 1}), alpha);
      const auto pass = critic_pass(critic_, mixed, masks(n_fake, "mixed", key));
      const auto penalty = gradient_penalty(critic_, pass, config_.lambda_1, out.gradients);
      out.penalty = penalty.value.item<double>();
      out.slope = penalty.slopes.mean().item<double>();
      const auto to_real = penalty.adjoint * alpha;
      fake_adjoint.add_(penalty.adjoint).sub_(to_real);
      real_adjoint.add_(to_real.view({n_modalities(), n, -1}).sum(0));
    }
    add_rows_transposed(rows, torch::cat({fake_adjoint, real_adjoint}),
                        out.gradients.layers[0].weight);
    return out;
  }

  /// Real rows as the specification writes them. [B, n_items]
  torch::Tensor dense_real(const Batch& batch, const Forward& f, const SparseRows& places,
                           int64_t key) {
    const Vectors h = real_vectors(batch, f, key);
    const int64_t n = batch.size();
    const auto at = torch::repeat_interleave(places.offsets.diff());
    const auto items = places.columns.to(torch::kInt64);
    if (config_.real == "softmax_observed") {
      auto rows = config_.zeta * unit_rows(unit_rows(h.users).mm(unit_rows(h.items).t()));
      rows.index_put_({at, items}, observed_part(batch, places, key), true);
      return unit_rows(rows);
    }
    auto observed = torch::zeros({n, data_.n_items}, torch::kFloat64);
    observed.index_put_({at, items}, torch::ones({}, torch::kFloat64));
    const auto noise = torch::zeros_like(observed);
    const int64_t* users = batch.users.const_data_ptr<int64_t>();
    double* to = noise.mutable_data_ptr<double>();
    for (int64_t j = 0; j < n && config_.use_gumbel; ++j) {
      for (int64_t i = 0; i < data_.n_items; ++i) {
        to[j * data_.n_items + i] = gumbel(key, users[j], i);
      }
    }
    return observed_rows(observed, noise, h.users.mm(h.items.t()), config_.tau_r,
                         config_.real_tau == "noise_only");
  }

  /// Fake rows with their gradient, modality after modality. [M B, n_items]
  torch::Tensor dense_fake(const Batch& batch, const Forward& f, const SparseRows& places) const {
    std::vector<torch::Tensor> rows;
    for (size_t m = 0; m < modalities_.size(); ++m) {
      auto y = gather_rows(f.content_users[m], batch.users).mm(fake_items(f, m).t());
      if (config_.fake == "masked_dot") {
        y = y.index_put(
            {torch::repeat_interleave(places.offsets.diff()), places.columns.to(torch::kInt64)},
            torch::zeros({}));
      }
      rows.push_back(unit_rows(y));
    }
    return torch::cat(rows);
  }

  CriticLoss critic_loss_reference(const Batch& batch, const Forward& f, int64_t key) {
    const int64_t n_fake = batch.size() * n_modalities();
    const int64_t n_copies = config_.real_copies ? n_modalities() : 1;
    const SparseRows places = places_of(batch);
    torch::Tensor fake, real;
    {
      const torch::NoGradGuard no_grad;
      fake = dense_fake(batch, f, places);
      real = dense_real(batch, f, places, key);
    }
    Critic critic = critic_;
    std::vector<torch::Tensor> leaves;
    for (auto& [name, tensor] : critic.tensors()) {
      *tensor = tensor->detach().requires_grad_();
      leaves.push_back(*tensor);
    }
    const auto copies = real.repeat({n_copies, 1});
    const auto d_fake = critic_composed(critic, fake, masks(n_fake, "fake", key)).mean();
    const auto d_real = critic_composed(critic, copies, masks(copies.size(0), "real", key)).mean();
    const auto mixed = torch::lerp(fake, real.repeat({n_modalities(), 1}), mixture(n_fake, key));
    const auto [penalty, slopes] =
        gradient_penalty_composed(critic, mixed, masks(n_fake, "mixed", key), config_.lambda_1);
    const auto gradients =
        torch::autograd::grad({d_fake - d_real + penalty}, leaves, {}, std::nullopt, false, true);
    CriticLoss out;
    out.fake = d_fake.item<double>();
    out.real = d_real.item<double>();
    out.penalty = penalty.item<double>();
    out.slope = slopes.mean().item<double>();
    out.gradients = critic_.zeros_like();
    auto to = out.gradients.tensors();
    for (size_t k = 0; k < to.size(); ++k) {
      if (gradients[k].defined()) to[k].second->copy_(gradients[k]);
    }
    return out;
  }

  /// L_G: the content is to be taken for observed rows by the critic as it is.
  torch::Tensor generator_loss(const Batch& batch, const Forward& f) const {
    const int64_t n_fake = batch.size() * n_modalities();
    const auto drops = masks(n_fake, "model", batch.step);
    const SparseRows places = places_of(batch);
    if (config_.adv_engine == "reference") {
      return -critic_composed(critic_, dense_fake(batch, f, places), drops).mean();
    }
    std::vector<torch::Tensor> products;
    for (size_t m = 0; m < modalities_.size(); ++m) {
      products.push_back(factored_product(
          fake_items(f, m), gather_rows(f.content_users[m], batch.users),
          config_.fake == "cosine" ? SparseRows{} : places, critic_.layers[0].weight));
    }
    return -critic_score(critic_, torch::cat(products), drops).mean();
  }

  const Config config_;
  const BipartiteGraph graph_;     // of the IDs
  const BipartiteGraph observed_;  // of the content: exact degrees
  torch::Tensor& users_;
  torch::Tensor& items_;
  torch::Tensor *query_ = nullptr, *key_ = nullptr;
  std::vector<Modality> modalities_;
  std::vector<BipartiteGraph> generated_;
  std::optional<Forward> kept_;  // of before_step, for loss
  int64_t kept_step_ = 0;
  Critic critic_;
  DenseAdam critic_adam_;
  std::vector<std::pair<std::string, double>> critic_parts_;
};

const RegisterModel<Mmssl> registered{"MMSSL", "MMSSL, Wei et al. 2023"};

}  // namespace
}  // namespace tessera
