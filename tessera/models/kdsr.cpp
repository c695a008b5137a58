#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <set>

#include "tessera/base/error.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"
#include "tessera/model/sequence_model.h"
#include "tessera/nn/correlation.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"

namespace tessera {
namespace {

/// KDSR (Hu et al., ECIR 2024, arXiv:2401.07257): trainable modality tables, started at the codes
/// of a frozen auto-encoder, are gated with the IDs into a sequence encoder; the likeness of pairs
/// of items in a history is held to that of the frozen codes, as a number (SKD) and as an entry of
/// a codebook (CKD). The default is the released code where its weights are known; variant = paper
/// follows a published summary (tables not seen).
class Kdsr : public SequenceModel {
 public:
  struct Config {
    SequenceSettings sequence;
    std::string variant = "code", host = "gru4rec", candidate = "id", start = "codes";
    int64_t embedding_size = 128, n_layers = 2, n_heads = 1;
    double dropout = 0.4, host_dropout = 0.5, edge_dropout = 0.2;
    bool dropout_on_scores = false, ae = true, center_codes = false;
    std::string ae_input = "raw";
    int64_t ae_epochs = 500, n_parts = 8, n_codes = 50, code_pairs = 2000000;
    std::vector<double> skd_weight = {4}, ckd_weight = {0.5};
    std::string skd_form = "code", pairs = "in_sequence";
    bool standardise = true;
    double tau = 1.5;
    int64_t n_pairs = 4096, pair_nodes = 50;
    std::string async_lr = "schedule", async_unit = "epoch";
    std::vector<int64_t> async_steps = {5, 10};
    double async_gamma = 2;
    int64_t rate_drop_epoch = -1;

    void describe(Fields& f) {
      sequence.describe(f);
      f.choice(
          "variant", variant,
          "the released code's choices, the paper's (from a summary), or the released log's run",
          {"code", "paper", "ratio20"});
      f.choice("host", host, "encoder; rgat reads both directions and needs rows = prefix",
               {"gru4rec", "sasrec", "rgat"});
      f.choice(
          "candidate", candidate,
          "items are scored by their ID alone, or by ID and modalities through the gate, which "
          "ranks items without train rows too",
          {"id", "fused"});
      f.add("embedding_size", embedding_size, "width of IDs, modality tables and codes",
            at_least(1));
      f.add("n_layers", n_layers, "blocks of the sasrec host", between(0, 64));
      f.add("n_heads", n_heads, "heads of the sasrec host; a divisor of embedding_size",
            at_least(1));
      f.add("dropout", dropout, "rate on the gated vectors", between(0, 0.95));
      f.add("host_dropout", host_dropout, "rate inside the sasrec host", between(0, 0.95));
      f.add("edge_dropout", edge_dropout, "rate on the rgat host's weights", between(0, 0.95));
      f.add(
          "dropout_on_scores", dropout_on_scores,
          "rgat drops scores before the softmax, those without an edge too, as released code does");
      f.choice("start", start,
               "what the modality vectors start as: codes, random rows, or no table but a trained "
               "two-layer network over the features",
               {"codes", "mlp", "random"});
      f.add("ae", ae, "codes from an auto-encoder; false: the features, which must be that wide");
      f.choice("ae_input", ae_input,
               "features as given, or less their mean and over one standard deviation",
               {"raw", "scaled"});
      f.add("ae_epochs", ae_epochs, "epochs of the auto-encoder at most", at_least(1));
      f.add("center_codes", center_codes, "the mean code is taken off before cosines");
      f.add("n_parts", n_parts, "sub-vectors of a code; a divisor of embedding_size", at_least(1));
      f.add("n_codes", n_codes, "entries of the correlation codebook", at_least(2));
      f.add("code_pairs", code_pairs, "pairs that the codebook is fitted on", at_least(2));
      f.list("skd_weight", skd_weight, "weight of the correlations, one or one a modality",
             at_least(0));
      f.list("ckd_weight", ckd_weight,
             "weight of the correlation codes, one or one a modality; search 0.05, 0.1, 0.5",
             at_least(0));
      f.choice("skd_form", skd_form, "norms of rows, or squares of sigmoids", {"code", "paper"});
      f.add("standardise", standardise,
            "skd_form = paper: correlations less their mean, over their deviation");
      f.add("tau", tau, "temperature of the correlations", above(0));
      f.choice("pairs", pairs, "within a row, or drawn among the batch's items",
               {"in_sequence", "in_batch"});
      f.add("n_pairs", n_pairs, "pairs drawn with pairs = in_batch", at_least(1));
      f.add("pair_nodes", pair_nodes, "items of a row that form pairs at most (ML-1M: 16)",
            at_least(2));
      f.choice("async_lr", async_lr,
               "the modality tables' rate: rising with async_steps, low throughout, or like the "
               "rest",
               {"schedule", "constant", "off"});
      f.list("async_steps", async_steps, "when the rate is multiplied by async_gamma", at_least(0));
      f.add("async_gamma", async_gamma, "see async_steps", at_least(1));
      f.choice("async_unit", async_unit, "what async_steps counts", {"epoch", "step"});
      f.preset("variant", "paper",
               {{"skd_form", "paper"}, {"standardise", false}, {"pairs", "in_batch"}});
      f.add("rate_drop_epoch", rate_drop_epoch,
            "from this epoch on every rate is 1e-4 of itself; -1: never", at_least(-1));
      f.preset("variant", "ratio20",
               {{"host", "rgat"}, {"rows", "prefix"}, {"rate_drop_epoch", 40}});
      f.preset("host", "rgat", {{"rows", "prefix"}});
      f.preset("rows", "prefix", {{"train_batch_size", 256}});
    }

    static SearchSpace search() { return {{"ckd_weight", {0.05, 0.1, 0.5}}}; }

    static std::vector<Ablation> ablations(const std::vector<std::string>& modalities) {
      std::vector<Ablation> out = {
          {"full", {}},
          {"no correlations", {{"skd_weight", Json::array({0.0})}}},
          {"no codes", {{"ckd_weight", Json::array({0.0})}}},
          {"no supervision",
           {{"skd_weight", Json::array({0.0})}, {"ckd_weight", Json::array({0.0})}}},
          {"no asynchronous rate", {{"async_lr", "off"}}}};
      for (const auto& modality : modalities) {
        out.push_back({modality + " alone", {{"modalities", modality}}});
      }
      return out;
    }
  };

  Kdsr(const Config& config, const Context& context)
      : SequenceModel(config.sequence, context),
        config_(config),
        items_(item_rows(normal(data_.n_items, config.embedding_size, 0, 0.02, init("item")),
                         config.candidate == "fused")) {
    check_settings();
    const int64_t d = config.embedding_size;
    gate_hidden_ = Linear("gate.hidden", d, d, maker(), random_);
    gate_out_ = &parameter("gate.out", normal(1, d, 0, 0.02, init("gate.out")));
    if (config.host == "gru4rec") {
      gru_ = GruEncoder("encoder", d, 2 * d, maker(), random_);
    } else if (config.host == "sasrec") {
      TransformerOptions options;
      options.width = options.inner = d;
      options.n_layers = config.n_layers;
      options.n_heads = config.n_heads;
      options.hidden_dropout = options.attention_dropout = config.host_dropout;
      transformer_ = Transformer("encoder", options, maker(), random_);
      positions_ = &parameter("position_embedding",
                              normal(config.sequence.max_length, d, 0, 0.02, init("position")));
    } else {
      const double bound = 1 / std::sqrt(static_cast<double>(d));
      graph_map_ = &parameter("graph.map", uniform(d, d, -bound, bound, init("graph.map")));
      graph_query_ = &parameter("graph.query", uniform(4, d, -bound, bound, init("graph.query")));
      graph_amp_ =
          &parameter("graph.amp", uniform(1, 4, -bound, bound, init("graph.amp")).squeeze(0));
    }
    for (size_t k = 0; k < data_.features.size(); ++k) {
      const Feature& feature = data_.features[k];
      modalities_.emplace_back();
      Modality& m = modalities_.back();
      m.name = feature.name;
      m.present = feature.present();
      m.feature = &feature;
      if (config.start == "mlp") {
        const auto family = [&](const char* part) { return init(m.name + ".map." + part); };
        const int64_t wide = feature.width();
        m.map = {&parameter(m.name + ".map1.weight", linear_default_weight(d, wide, family("w1"))),
                 &parameter(m.name + ".map1.bias", linear_default_bias(wide, d, family("b1"))),
                 &parameter(m.name + ".map2.weight", linear_default_weight(d, d, family("w2"))),
                 &parameter(m.name + ".map2.bias", linear_default_bias(d, d, family("b2")))};
      } else {
        auto rows = torch::zeros({data_.n_items, d});
        if (config.start == "random") {
          rows = normal(data_.n_items, d, 0, 0.02, init(m.name)) *
                 m.present.to(torch::kFloat).unsqueeze(1);
        }
        m.table = &table(m.name + ".table", rows, Role::scoring, Axis::by_item);
      }
      const bool usable = m.present.sum().item<int64_t>() >= 2;
      m.skd_weight = usable ? weight_of(config.skd_weight, k, "skd_weight") : 0;
      m.ckd_weight = usable ? weight_of(config.ckd_weight, k, "ckd_weight") : 0;
      const MakeParameter make = maker(Role::training);
      if (m.skd_weight > 0) {
        m.student1 = Linear(m.name + ".student1", d, d, make, random_);
        m.student2 = Linear(m.name + ".student2", d, d, make, random_);
      }
      if (m.ckd_weight > 0) {
        m.code_hidden = Linear(m.name + ".code_hidden", d, d, make, random_);
        m.code_out = Linear(m.name + ".code_out", config.n_codes, d, make, random_);
      }
    }
  }

  Abilities abilities() const override {
    return {.uses_features = true,
            .score_reads_features = config_.start == "mlp",
            .ranks_cold_items = config_.candidate == "fused",
            .takes_histories = true};
  }

  /// The modality tables in a group of their own, at their own rate.
  std::vector<ParameterGroup> parameter_groups() override {
    auto groups = Model::parameter_groups();
    const double rate = train_.learning_rate;
    const int64_t per_epoch = steps_per_epoch(), drop = config_.rate_drop_epoch;
    const auto usual = [=](int64_t step) {
      return drop >= 0 && (step - 1) / per_epoch >= drop ? 1e-4 * rate : rate;
    };
    groups[0].learning_rate = usual;
    if (config_.async_lr == "off" || config_.async_steps.empty()) return groups;
    ParameterGroup slow = groups[0];
    slow.name = "modalities";
    slow.tensors.clear();
    std::erase_if(slow.tables, [&](const auto& table) { return !is_modality(table.second); });
    std::erase_if(groups[0].tables, [&](const auto& table) { return is_modality(table.second); });
    if (slow.tables.empty()) return groups;
    const double gamma = config_.async_gamma;
    const auto steps = config_.async_steps;
    const bool constant = config_.async_lr == "constant";
    const int64_t per_unit = config_.async_unit == "step" ? 1 : per_epoch;
    slow.learning_rate = [=](int64_t step) {
      const int64_t now = (step - 1) / per_unit;
      const auto passed = std::count_if(steps.begin(), steps.end(),
                                        [&](int64_t s) { return !constant && now >= s; });
      return usual(step) *
             std::pow(gamma, static_cast<double>(passed) - static_cast<double>(steps.size()));
    };
    groups.push_back(slow);
    return groups;
  }

  /// Goes on where a checkpoint found it: inside an auto-encoder, or after a part. The codes
  /// themselves are let go when the table has started as them and the teacher has its parts.
  void prepare(const Watch& watch) override {
    for (auto& m : modalities_) {
      const auto places = m.present.nonzero().flatten();
      if (!m.units.defined()) {
        auto codes = torch::zeros({data_.n_items, config_.embedding_size});
        if (places.numel() > 0) {
          const auto found = encode_features(m, places, watch);
          if (!found.defined()) return;
          codes.index_copy_(0, places, found);
        }
        const Correlation teacher(codes, m.present, config_.n_parts, config_.center_codes);
        m.units = teacher.units();
        m.shares = teacher.shares();
        if (config_.start == "codes") *m.table = RowTable(std::move(codes));
        watch.checkpoint();
      }
      if (places.numel() < 2 || m.centroids.defined()) continue;
      Correlation teacher(m.units, m.shares, m.present);
      teacher.fit(config_.n_codes, config_.code_pairs, random_.stream("codebook." + m.name));
      m.centroids = teacher.centroids();
      m.mean = teacher.mean;
      m.spread = teacher.spread;
      report(m, teacher, watch);
      m.teacher = std::move(teacher);
      watch.checkpoint();
      if (watch.stop_requested()) return;
    }
  }

  void state(State& state) override {
    Model::state(state);
    for (auto& m : modalities_) {
      state.add(m.name + ".units", m.units, Role::frozen);
      state.add(m.name + ".shares", m.shares, Role::frozen);
      state.add(m.name + ".centroids", m.centroids, Role::frozen);
      state.add(m.name + ".mean", m.mean, Role::frozen);
      state.add(m.name + ".spread", m.spread, Role::frozen);
      AutoEncoder& ae = m.ae;
      for (size_t i = 0; i < ae.weights.size(); ++i) {
        state.add(fmt::format("{}.ae.{}", m.name, i), ae.weights[i], Role::inner);
      }
      state.add(m.name + ".ae.adam", ae.adam, Role::inner);
      state.add(m.name + ".ae.epoch", ae.epoch, Role::inner);
      state.add(m.name + ".ae.misses", ae.misses, Role::inner);
      state.add(m.name + ".ae.best", ae.best, Role::inner);
    }
  }

  void begin_epoch(int64_t epoch, const Watch& watch) override {
    if (epoch == 0) diagnose(-1, watch);
  }
  void end_epoch(int64_t epoch, const Watch& watch) override { diagnose(epoch, watch); }

  Loss loss(const Batch& batch) override {
    const auto items = batch.rows.items.to(torch::kInt64);
    current_ = look_up(items, true);
    in_loss_ = true;
    Loss out = SequenceModel::loss(batch);
    in_loss_ = false;
    supervise(batch, out);
    current_ = {};
    return out;
  }

 protected:
  torch::Tensor encode(const torch::Tensor& items, const Pass& pass) override {
    const Step step = in_loss_ ? current_ : look_up(items, false);
    const auto h = step.all.defined() ? gather_rows(fused_of_all(step), step.nodes) : mixed(step).h;
    auto x = dropout(gather_rows(h, step.inverse), config_.dropout, pass, "gate");
    if (config_.host == "gru4rec") return gru_(x, pass);
    x = x + gather_rows(*positions_, position_index(pass.offsets, sequence_.max_length, true));
    return transformer_(x, pass);
  }

  torch::Tensor row_vectors(const torch::Tensor& items, const Pass& pass) override {
    if (config_.host != "rgat") return SequenceModel::row_vectors(items, pass);
    const Step step = in_loss_ ? current_ : look_up(items, false);
    return graph_vectors(step, pass);
  }

  torch::Tensor candidates() override {
    if (config_.candidate == "id") return items_.all();
    if (in_loss_) return fused_of_all(current_);
    if (!fused_.defined()) fused_ = mixed(everything(false)).h;
    return fused_;
  }

  void forget() override { fused_ = torch::Tensor(); }
  std::shared_ptr<const Scorer> make_scorer() override {
    for (auto& m : modalities_) {
      if (m.table != nullptr) m.table->catch_up();  // who ranks only reads
    }
    return SequenceModel::make_scorer();
  }

 private:
  /// An auto-encoder that is being fitted; its tensors are let go when its codes are made.
  struct AutoEncoder {
    std::array<torch::Tensor, 4> weights;  // encoder [d, wide], [d]; decoder [wide, d], [wide]
    DenseAdam adam;
    int64_t epoch = 0, misses = 0;
    double best = -1;  // smallest loss of every tenth epoch; -1: none yet
  };

  struct Modality {
    std::string name;
    const Feature* feature = nullptr;
    torch::Tensor present;                   // bool [n_items]
    RowTable* table = nullptr;               // [n_items, d], e_a; start = mlp: none, but
    std::array<torch::Tensor*, 4> map = {};  // the network's weights and biases
    AutoEncoder ae;
    double skd_weight = 0, ckd_weight = 0;
    Linear student1, student2;     // g_phi
    Linear code_hidden, code_out;  // the code head
    torch::Tensor units, shares;   // frozen, what the teacher keeps of the codes (Correlation)
    torch::Tensor centroids;       // [n_codes, n_parts]
    double mean = 0, spread = 1;   // of the correlations
    Correlation teacher;           // made from units, shares and centroids where it is empty
  };

  /// The distinct items of a step with their rows; with candidate = fused, of all items first.
  struct Step {
    torch::Tensor nodes, inverse;  // int64 [n] rising; [P]
    std::vector<torch::Tensor> e;  // by modality: [n, d]
    torch::Tensor all;             // int64 [n_items], defined where every item was gathered
    std::vector<torch::Tensor> e_all;
  };

  Random init(const std::string& name) const { return random_.stream("init." + name); }

  void check_settings() const {
    const int64_t d = config_.embedding_size;
    require_features(data_, "KDSR");
    if (config_.host == "sasrec" && d % config_.n_heads != 0) {
      throw usage_error("KDSR.n_heads must divide embedding_size {}, got {}", d, config_.n_heads);
    }
    if (d % config_.n_parts != 0) {
      throw usage_error("KDSR.n_parts must divide embedding_size {}, got {}", d, config_.n_parts);
    }
    if (config_.host == "rgat" && config_.sequence.rows != "prefix") {
      throw usage_error("KDSR with host = rgat reads both directions: rows must be prefix, got {}",
                        config_.sequence.rows);
    }
    for (const auto& feature : data_.features) {
      if (!config_.ae && feature.width() != d) {
        throw usage_error(
            "KDSR with ae = false needs features of width embedding_size {}, '{}' is {} wide", d,
            feature.name, feature.width());
      }
    }
  }

  double weight_of(const std::vector<double>& weights, size_t k, const char* name) const {
    if (weights.size() == 1) return weights[0];
    if (weights.size() != data_.features.size()) {
      throw usage_error("KDSR.{} wants one value or one for each of {} modalities, got {}", name,
                        data_.features.size(), weights.size());
    }
    return weights[k];
  }

  int64_t steps_per_epoch() const {
    int64_t n_rows = 0;
    for (int64_t user = 0; user < data_.n_users; ++user) {
      const int64_t n = static_cast<int64_t>(data_.train.of(user).size()) - 1;
      if (n < 1) continue;
      n_rows += sequence_.rows == "prefix"  ? n
                : sequence_.rows == "chunk" ? (n + sequence_.max_length - 1) / sequence_.max_length
                                            : 1;
    }
    return std::max<int64_t>(1, (n_rows + train_.train_batch_size - 1) / train_.train_batch_size);
  }

  // --- teacher -----------------------------------------------------------------------------

  /// Codes of the items that have the feature: sigmoid(W m + b) of an auto-encoder trained on them.
  /// Undefined where a stop was asked for before they were made.
  torch::Tensor encode_features(Modality& m, const torch::Tensor& places,
                                const Watch& watch) const {
    torch::Tensor rows = m.feature->gather(places);
    if (!config_.ae) return rows;
    if (config_.ae_input == "scaled") {
      rows = rows - rows.mean(0);
      rows = rows / rows.square().mean().sqrt().clamp_min(1e-12);
    }
    const int64_t n = rows.size(0), wide = rows.size(1), d = config_.embedding_size;
    AutoEncoder& ae = m.ae;
    auto& weights = ae.weights;
    if (!weights[0].defined()) {
      const auto family = [&](const char* part) { return init(m.name + ".ae." + part); };
      weights = {linear_default_weight(d, wide, family("encoder")),
                 linear_default_bias(wide, d, family("encoder_bias")),
                 linear_default_weight(wide, d, family("decoder")),
                 linear_default_bias(d, wide, family("decoder_bias"))};
    }
    for (auto& w : weights) w.set_requires_grad(true);
    const auto encoded = [&](const torch::Tensor& x) {
      return torch::addmm(weights[1], x, weights[0].t()).sigmoid();
    };
    AdamOptions rule;
    rule.learning_rate = [](int64_t) { return 1e-3; };
    const Progress bar =
        watch.progress(fmt::format("codes of {}", m.name), config_.ae_epochs - ae.epoch);
    using Clock = std::chrono::steady_clock;
    auto saved = Clock::now();
    const torch::AutoGradMode with_gradients(true);
    while (ae.epoch < config_.ae_epochs && ae.misses < 4) {
      const bool stop = watch.stop_requested();
      if (stop || Clock::now() - saved > std::chrono::seconds(20)) {
        watch.checkpoint();
        saved = Clock::now();
      }
      if (stop) return {};
      double total = 0;
      for (int64_t begin = 0; begin < n; begin += 256) {
        const auto x = rows.slice(0, begin, std::min<int64_t>(begin + 256, n));
        const auto loss =
            (torch::addmm(weights[3], encoded(x), weights[2].t()) - x).square().mean();
        loss.backward();
        for (size_t i = 0; i < weights.size(); ++i) {
          ae.adam.step(std::to_string(i), weights[i], weights[i].grad(), rule);
          weights[i].mutable_grad().reset();
        }
        total += loss.item<double>() * static_cast<double>(x.size(0));
      }
      bar.advance(1);
      if (++ae.epoch % 10 != 0) continue;
      const bool better = ae.best < 0 || total < ae.best;
      ae.misses = better ? 0 : ae.misses + 1;
      if (better) ae.best = total;
    }
    const torch::NoGradGuard no_grad;
    const auto codes = encoded(rows);
    ae.weights = {};
    ae.adam.moments().clear();
    return codes;
  }

  void report(const Modality& m, const Correlation& teacher, const Watch& watch) const {
    const double most = std::log(static_cast<double>(config_.n_codes));
    watch.log({{"event", "teacher"},
               {"modality", m.name},
               {"mean", teacher.mean},
               {"spread", teacher.spread},
               {"entropy", teacher.entropy},
               {"largest_share", teacher.largest_share}});
    watch.text.info(
        "{}: correlation of codes {:.3f} +- {:.3f}; codebook entropy {:.2f} of {:.2f}, largest "
        "share {:.2f}",
        m.name, teacher.mean, teacher.spread, teacher.entropy, most, teacher.largest_share);
    if (m.ckd_weight > 0 &&
        teacher.entropy <= 0.5 * std::log(static_cast<double>(teacher.centroids().size(0)))) {
      throw data_error(
          "KDSR: the {} features are degenerate: pairs of items fall into few codes (entropy "
          "{:.2f} "
          "of {:.2f}); leave the modality out or set ckd_weight 0",
          m.name, teacher.entropy, most);
    }
    if (teacher.spread < 0.01) {
      watch.text.warn(
          "{}: correlations hardly differ (deviation {:.4f}); see center_codes, ae_input", m.name,
          teacher.spread);
    }
    if (config_.skd_form == "paper" && m.skd_weight > 0) {
      const double nbar = mean_pair_nodes(m);
      const double s = 1 / (1 + std::exp(-teacher.mean / config_.tau));
      const double g = s * (1 - s) / config_.tau;
      const double spread = std::max(teacher.spread, 1e-9);
      const double suggested = config_.standardise ? 4 * nbar * spread / 0.083
                                                   : 4 * nbar / (2 * g * g * config_.tau * spread);
      watch.text.info("{}: skd_weight {:.3g} would pull as hard as 4 does with skd_form = code",
                      m.name, suggested);
    }
  }

  const Correlation& teacher_of(Modality& m) const {
    if (!m.teacher.centroids().defined()) {
      m.teacher = Correlation(m.units, m.shares, m.present);
      m.teacher.set_centroids(m.centroids);
    }
    return m.teacher;
  }

  // --- items -------------------------------------------------------------------------------

  Step everything(bool with_gradient) {
    Step step;
    step.nodes = torch::arange(data_.n_items, torch::kInt64);
    for (auto& m : modalities_) {
      if (m.table != nullptr) {
        step.e.push_back(with_gradient ? m.table->gather(step.nodes) : m.table->value());
        continue;
      }
      constexpr int64_t kRows = 8192;  // bounds the features in memory
      std::vector<torch::Tensor> parts;
      for (const auto& nodes : step.nodes.split(kRows)) parts.push_back(mapped(m, nodes));
      step.e.push_back(torch::cat(parts));
    }
    return step;
  }

  /// start = mlp: W2 ReLU(W1 m + b1) + b2, zero where the item lacks the modality.
  static torch::Tensor mapped(const Modality& m, const torch::Tensor& nodes) {
    const auto hidden = torch::addmm(*m.map[1], m.feature->gather(nodes), m.map[0]->t()).relu();
    return torch::addmm(*m.map[3], hidden, m.map[2]->t()) *
           m.present.index_select(0, nodes).to(torch::kFloat).unsqueeze(1);
  }

  bool is_modality(const RowTable* table) const {
    return std::any_of(modalities_.begin(), modalities_.end(),
                       [&](const Modality& m) { return m.table == table; });
  }

  Step look_up(const torch::Tensor& items, bool with_gradient) {
    DistinctRows distinct(data_.n_items);
    distinct.mark(items);
    Step step;
    step.nodes = distinct.list();
    step.inverse = distinct.inverse(items);
    if (with_gradient && config_.candidate == "fused") {
      Step all = everything(true);
      step.all = all.nodes;
      step.e_all = all.e;
      for (const auto& e : all.e) step.e.push_back(gather_rows(e, step.nodes));
      return step;
    }
    for (auto& m : modalities_) {
      step.e.push_back(m.table == nullptr ? mapped(m, step.nodes)
                       : with_gradient    ? m.table->gather(step.nodes)
                                          : m.table->rows(step.nodes));
    }
    return step;
  }

  Mixed mixed(const Step& step) {
    std::vector<torch::Tensor> inputs = {items_.rows(step.nodes)}, present = {{}};
    for (size_t k = 0; k < modalities_.size(); ++k) {
      inputs.push_back(step.e[k]);
      present.push_back(modalities_[k].present.index_select(0, step.nodes));
    }
    return gate(inputs, present, *gate_hidden_.weight, *gate_hidden_.bias, *gate_out_, {});
  }

  /// The gate over all items, once a step.
  torch::Tensor fused_of_all(const Step& step) {
    if (!in_loss_ || !current_fused_.defined()) {
      Step all;
      all.nodes = step.all;
      all.e = step.e_all;
      const auto h = mixed(all).h;
      if (!in_loss_) return h;
      current_fused_ = h;
      return h;
    }
    const auto h = current_fused_;
    return h;
  }

  /// The gate over (ID, what attention over the row's graph gives, modalities) of every node.
  Mixed mixed_nodes(const Step& step, const RowGraphs& graphs, const Pass& pass) {
    const int64_t n_rows = graphs.padded.size(0), widest = graphs.padded.size(1);
    const int64_t d = config_.embedding_size;
    const auto ids = items_.rows(step.nodes);
    const auto padded_rows =
        gather_rows(torch::mm(ids, *graph_map_), graphs.padded.flatten()).view({n_rows, widest, d});
    const auto drop = [&](const torch::Tensor& alpha) {
      return dropout(alpha.reshape({n_rows * widest, widest}), config_.edge_dropout, pass, "edges")
          .view({n_rows, widest, widest});
    };
    const auto g = gather_rows(relational_attention(padded_rows, graphs.relation, *graph_query_,
                                                    *graph_amp_, drop, config_.dropout_on_scores)
                                   .reshape({-1, d}),
                               graphs.kept);
    std::vector<torch::Tensor> inputs = {gather_rows(ids, graphs.nodes), g}, present = {{}, {}};
    const auto item_of = step.nodes.index_select(0, graphs.nodes);
    for (size_t k = 0; k < modalities_.size(); ++k) {
      inputs.push_back(gather_rows(step.e[k], graphs.nodes));
      present.push_back(modalities_[k].present.index_select(0, item_of));
    }
    return gate(inputs, present, *gate_hidden_.weight, *gate_hidden_.bias, *gate_out_, {});
  }

  /// h(last) + h(the one before) of each row's graph.
  torch::Tensor graph_vectors(const Step& step, const Pass& pass) {
    const RowGraphs graphs = row_graphs(step.inverse, pass.offsets);
    const auto h = dropout(mixed_nodes(step, graphs, pass).h, config_.dropout, pass, "gate");
    return gather_rows(h, graphs.last) + gather_rows(h, graphs.before);
  }

  // --- supervision -------------------------------------------------------------------------

  void supervise(const Batch& batch, Loss& out) {
    current_fused_ = torch::Tensor();
    const auto rows = rows_of_pairs(batch);
    for (size_t k = 0; k < modalities_.size(); ++k) {
      Modality& m = modalities_[k];
      if (m.skd_weight == 0 && m.ckd_weight == 0) continue;
      TORCH_CHECK(m.units.defined(), "KDSR: prepare() comes before loss()");
      const Correlation& teacher = teacher_of(m);
      const ItemPairs pairs = pairs_of(m, rows, batch.step);
      const auto to_items = [&](const torch::Tensor& places) {
        return current_.nodes.index_select(0, places);
      };
      const auto signal = teacher.signal(to_items(pairs.i), to_items(pairs.j));
      const auto& e = current_.e[k];
      const auto add = [&](const std::string& name, double weight, const torch::Tensor& part) {
        out.total = out.total + weight * part;
        out.parts.emplace_back(name + "_" + m.name, part);
      };
      if (m.skd_weight > 0) {
        SkdOptions options;
        options.paper = config_.skd_form == "paper";
        options.standardise = options.paper && config_.standardise;
        options.tau = config_.tau;
        options.mean = m.mean;
        options.spread = std::max(m.spread, 1e-9);
        add("skd", m.skd_weight, skd_loss(m.student2(m.student1(e)), pairs, signal.r, options));
      }
      if (m.ckd_weight > 0) {
        const auto codes = pairs.diagonal.defined() && pairs.diagonal.numel() > 0
                               ? teacher.diagonal().index_select(0, to_items(pairs.diagonal))
                               : torch::empty({0}, torch::kInt64);
        add("ckd", m.ckd_weight,
            ckd_loss(e, pairs, signal.codes, codes,
                     {*m.code_hidden.weight, *m.code_hidden.bias, *m.code_out.weight,
                      *m.code_out.bias}));
      }
    }
  }

  /// Mean number of a training row's pair nodes that have the modality: of its distinct items, of
  /// which at most pair_nodes are drawn.
  double mean_pair_nodes(const Modality& m) const {
    Sampler sampler(data_, batch_spec(), train_.train_batch_size, random_.stream("pair_nodes"));
    sampler.begin_epoch(0);
    const auto* present = m.present.const_data_ptr<bool>();
    double n_rows = 0, n_items = 0;
    for (int64_t index = 0; index < sampler.n_batches(); ++index) {
      const Batch batch = sampler.batch(index, 1);
      const auto items = batch.rows.items.to(torch::kInt64);
      const auto* item = items.const_data_ptr<int64_t>();
      const auto* offset = batch.rows.offsets.const_data_ptr<int64_t>();
      for (int64_t row = 0; row < batch.rows.n_rows(); ++row) {
        const std::set<int64_t> distinct(item + offset[row], item + offset[row + 1]);
        const auto n_present = static_cast<double>(
            std::count_if(distinct.begin(), distinct.end(), [&](int64_t i) { return present[i]; }));
        const auto n = static_cast<double>(distinct.size());
        n_items += n_present * std::min(1.0, static_cast<double>(config_.pair_nodes) / n);
        n_rows += 1;
      }
    }
    return n_items / n_rows;
  }

  /// The distinct items of each row as places in current_.nodes, at most pair_nodes of them, drawn
  /// anew each step.
  std::vector<std::vector<int64_t>> rows_of_pairs(const Batch& batch) const {
    const Random random = random_.stream("pair_nodes");
    const auto* offset = batch.rows.offsets.const_data_ptr<int64_t>();
    const auto* node_of = current_.inverse.const_data_ptr<int64_t>();
    std::vector<std::vector<int64_t>> out(static_cast<size_t>(batch.rows.n_rows()));
    for (size_t row = 0; row < out.size(); ++row) {
      auto& own = out[row];
      own.assign(node_of + offset[row], node_of + offset[row + 1]);
      std::sort(own.begin(), own.end());
      own.erase(std::unique(own.begin(), own.end()), own.end());
      const auto most = static_cast<size_t>(config_.pair_nodes);
      if (own.size() <= most) continue;
      uint32_t draw = 0;
      for (size_t t = 0; t < most; ++t) {
        const auto left = static_cast<uint32_t>(own.size() - t);
        std::swap(own[t],
                  own[t + random.below(left, static_cast<uint64_t>(batch.step), row, draw)]);
      }
      own.resize(most);
      std::sort(own.begin(), own.end());
    }
    return out;
  }

  ItemPairs pairs_of(const Modality& m, const std::vector<std::vector<int64_t>>& rows,
                     int64_t step) const {
    const auto* item_of = current_.nodes.const_data_ptr<int64_t>();
    const auto* present = m.present.const_data_ptr<bool>();
    std::vector<int64_t> is, js, row_of, diagonal, own;
    std::vector<double> sizes;
    const bool in_batch = config_.pairs == "in_batch";
    for (size_t row = 0; row < rows.size(); ++row) {
      own.clear();
      for (const int64_t node : rows[row]) {
        if (present[item_of[node]]) own.push_back(node);
      }
      sizes.push_back(static_cast<double>(own.size()));
      if (in_batch) continue;
      diagonal.insert(diagonal.end(), own.begin(), own.end());
      for (size_t a = 0; a < own.size(); ++a) {
        for (size_t b = a + 1; b < own.size(); ++b) {
          is.push_back(own[a]);
          js.push_back(own[b]);
          row_of.push_back(static_cast<int64_t>(row));
        }
      }
    }
    if (in_batch) {
      for (int64_t node = 0; node < current_.nodes.size(0); ++node) {
        if (present[item_of[node]]) own.push_back(node);
      }
      const Random random = random_.stream("pairs." + m.name);
      const auto n = static_cast<uint32_t>(own.size());
      for (int64_t p = 0; p < config_.n_pairs && n >= 2; ++p) {
        uint32_t draw = 0;
        const uint32_t a =
            random.below(n, static_cast<uint64_t>(step), static_cast<uint64_t>(p), draw);
        uint32_t b =
            random.below(n - 1, static_cast<uint64_t>(step), static_cast<uint64_t>(p), draw);
        b += b >= a;
        is.push_back(own[std::min(a, b)]);
        js.push_back(own[std::max(a, b)]);
        row_of.push_back(0);
      }
    }
    ItemPairs out;
    out.i = torch::tensor(is, torch::kInt64);
    out.j = torch::tensor(js, torch::kInt64);
    out.row = torch::tensor(row_of, torch::kInt64);
    out.sizes = torch::tensor(sizes, torch::kFloat64);
    out.diagonal = torch::tensor(diagonal, torch::kInt64);
    out.in_batch = in_batch;
    return out;
  }

  // --- diagnostic --------------------------------------------------------------------------

  /// What the gate makes of the items and how it weighs its inputs.
  struct Gated {
    torch::Tensor h;        // [n_items, d]
    torch::Tensor read;     // bool [n_items], items that h knows
    torch::Tensor weights;  // [inputs], means
  };

  /// Over all items; with a graph, whose vector depends on the row, over the nodes of up to 4,096
  /// train histories, an item's h being the mean of its nodes'.
  Gated gated(const Step& all) {
    if (config_.host != "rgat") {
      const Mixed out = mixed(all);
      return {out.h, torch::ones({data_.n_items}, torch::kBool), out.alpha.mean(0)};
    }
    std::vector<int64_t> users;
    for (int64_t user = 0; user < data_.n_users; ++user) {
      if (!data_.train.of(user).empty()) users.push_back(user);
    }
    constexpr size_t kMost = 4096, kBlock = 256;
    const size_t n_rows = std::min(users.size(), kMost);
    auto h = torch::zeros({data_.n_items, config_.embedding_size});
    auto counts = torch::zeros({data_.n_items});
    auto weights = torch::zeros({static_cast<int64_t>(modalities_.size()) + 2}, torch::kFloat64);
    for (size_t first = 0; first < n_rows; first += kBlock) {
      std::vector<int64_t> items, offsets = {0};
      for (size_t row = first; row < std::min(first + kBlock, n_rows); ++row) {
        const auto own = data_.train.of(users[row * users.size() / n_rows]);
        const auto window =
            own.last(std::min(own.size(), static_cast<size_t>(sequence_.max_length)));
        items.insert(items.end(), window.begin(), window.end());
        offsets.push_back(static_cast<int64_t>(items.size()));
      }
      Pass pass;
      pass.offsets = torch::tensor(offsets, torch::kInt64);
      const Step step = look_up(torch::tensor(items, torch::kInt64), false);
      const RowGraphs graphs = row_graphs(step.inverse, pass.offsets);
      const Mixed out = mixed_nodes(step, graphs, pass);
      const auto item_of = step.nodes.index_select(0, graphs.nodes);
      h.index_add_(0, item_of, out.h);
      counts.index_add_(0, item_of, torch::ones({item_of.size(0)}));
      weights += out.alpha.sum(0, false, torch::kFloat64);
    }
    return {h / counts.clamp_min(1).unsqueeze(1), counts > 0, weights / counts.sum().clamp_min(1)};
  }

  /// How far the likeness of 10,000 fixed pairs has moved from the teacher's (kdsr section 7), and
  /// what the gate looks at.
  void diagnose(int64_t epoch, const Watch& watch) {
    const torch::NoGradGuard no_grad;
    const Step all = everything(false);
    const Gated fused = gated(all);
    const auto cosines = [](const torch::Tensor& x, const torch::Tensor& i,
                            const torch::Tensor& j) {
      const auto u = x / torch::linalg_vector_norm(x, 2, {1}, true).clamp_min(1e-8);
      return pair_products(u, i, j);
    };
    for (size_t k = 0; k < modalities_.size(); ++k) {
      Modality& m = modalities_[k];
      const auto places = m.present.nonzero().flatten();
      const auto n = static_cast<uint32_t>(places.numel());
      if (n < 2 || !m.centroids.defined()) continue;
      const Random random = random_.stream("forgetting." + m.name);
      std::vector<int64_t> is, js;
      for (uint64_t p = 0; p < 10000; ++p) {
        uint32_t draw = 0;
        const uint32_t a = random.below(n, 0, p, draw);
        uint32_t b = random.below(n - 1, 0, p, draw);
        b += b >= a;
        is.push_back(places.const_data_ptr<int64_t>()[std::min(a, b)]);
        js.push_back(places.const_data_ptr<int64_t>()[std::max(a, b)]);
      }
      const auto i = torch::tensor(is, torch::kInt64), j = torch::tensor(js, torch::kInt64);
      const auto r = teacher_of(m).signal(i, j).r;
      Json line = {{"event", "forgetting"},
                   {"epoch", epoch},
                   {"modality", m.name},
                   {"e", pearson(r, cosines(all.e[k], i, j))},
                   {"id", pearson(r, cosines(items_.all(), i, j))}};
      const auto both = fused.read.index_select(0, i).logical_and(fused.read.index_select(0, j));
      line["fused"] = pearson(r.masked_select(both), cosines(fused.h, i, j).masked_select(both));
      if (m.skd_weight > 0) {
        const auto student = cosines(m.student2(m.student1(all.e[k])), i, j);
        line["z"] = pearson(r, student);
        // 0: no better than a constant, which a small loss cannot tell where correlations crowd.
        line["skill"] =
            1 - (student - r).square().mean().item<double>() / std::max(m.spread * m.spread, 1e-18);
      }
      watch.log(line);
    }
    std::vector<std::string> inputs = {"id"};
    if (config_.host == "rgat") inputs.push_back("graph");
    for (const auto& m : modalities_) inputs.push_back(m.name);
    Json line = {{"event", "gate"}, {"epoch", epoch}};
    for (size_t k = 0; k < inputs.size(); ++k) {
      line[inputs[k]] = fused.weights[static_cast<int64_t>(k)].item<double>();
    }
    watch.log(line);
  }

  const Config config_;
  ItemRows& items_;  // [n_items, d], e_id
  Linear gate_hidden_;
  torch::Tensor* gate_out_ = nullptr;  // [1, d]; its bias would move all energies alike
  GruEncoder gru_;
  Transformer transformer_;
  torch::Tensor* positions_ = nullptr;  // [max_length, d]
  torch::Tensor *graph_map_ = nullptr, *graph_query_ = nullptr, *graph_amp_ = nullptr;
  std::deque<Modality> modalities_;
  Step current_;  // of the loss() that runs
  bool in_loss_ = false;
  torch::Tensor current_fused_, fused_;
};

const RegisterModel<Kdsr> registered{"KDSR", "KDSR, Hu et al. 2024"};

}  // namespace
}  // namespace tessera
