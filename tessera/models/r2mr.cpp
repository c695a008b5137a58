#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/model/graph_kit.h"
#include "tessera/model/offers.h"
#include "tessera/model/registry.h"
#include "tessera/model/stored_pca.h"
#include "tessera/nn/review.h"
#include "tessera/nn/rewriter.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/gather.h"
#include "tessera/ops/graph.h"
#include "tessera/ops/item_graph.h"
#include "tessera/ops/triples.h"
#include "tessera/ops/unit_rows.h"

namespace tessera {
namespace {

constexpr int64_t kNullDraws = 4;
constexpr double kNoConsensus = 0.015;
constexpr double kNoScore = -1;  // in place of the score of a row that was missing
constexpr double kNoNull = -1;   // in place of the null score of a row that no review has seen
constexpr uint64_t kReportDraws = 1'000'000;  // no round's number
constexpr int64_t kWarmEpochs = 20, kWarmSteps = 800, kRefreshEpochs = 2, kRefreshSteps = 100;
constexpr int64_t kFewestItems = 64;
constexpr int64_t kSaveEvery = 50;   // rewriter epochs between checkpoints
constexpr double kSaveSeconds = 30;  // at most between checkpoints
constexpr double kClamp = 0.999;     // of tanh's inverse
constexpr int64_t kPropagations = 2;
constexpr int64_t kAlike = 5;  // neighbours of item_graph

/// R2MR (Tang et al., KDD 2025, DOI 10.1145/3690624.3709250; formulas from a reading note, the
/// figure and the code, see specs r2mr): a reviewer scores each modality of each item by what its
/// users' taste expects, a vector-quantised GAN rewrites rows that fail from rows that pass, the
/// reviewer accepts or refuses, and the ranking fuses rows and users' tastes by the scores. The
/// published reviewer learns through the ranking loss alone and does not recognise bad rows; the
/// default, variant = calibrated, gives it a loss of its own and two cross-fitted halves.
class R2mr : public AlikeModel, public FeatureSupplier, public Reporter {
 public:
  struct Config {
    std::string variant = "calibrated", preset = "small";
    std::string reviewer = "consensus", reviewer_init = "xavier", decouple = "expand";
    int64_t k = 1;
    std::string eta = "auto", gate = "eta", missing = "rewrite";
    std::string review_mode = "evaluation";
    std::string score_scale = "sqrt", squash = "tanh", feature_scale = "std";
    double floor = 1e-3;
    bool half = false;
    std::string item_id = "neighbours", train_features = "never";
    bool item_graph = false;
    std::string rewriter = "vqgan";
    bool hold_out = true;
    double adv = 0.1, ln_gain = 0.1;
    int64_t rewrite_every = 6, rewrite_max = 10;
    double dropout = 0.3, reg_weight = 1e-4;
    int64_t embedding_size = 64, prompt_size = 32;
    std::vector<int64_t> encoder = {128, 256, 128}, decoder = {128, 256}, discriminator = {64, 32};
    int64_t n_codes = 128, code_width = 16;
    double rewriter_learning_rate = 2e-3;
    int64_t first_epochs = 200, later_epochs = 20;
    std::string export_space = "model", export_weight = "none";
    bool restore = false;

    void describe(Fields& f) {
      f.choice("variant", variant,
               "calibrated: the reviewer has a loss of its own; paper: it learns through the "
               "fusion; released: the published code, for comparison only",
               {"calibrated", "paper", "released"});
      f.choice("preset", preset, "sizes of the rewriter; tiny is for tests, full as published",
               {"tiny", "small", "full"});
      f.choice("reviewer", reviewer,
               "consensus: own loss, two cross-fitted halves; bpr: end to end through the fusion; "
               "random: scores of .5, and as many rows rewritten as consensus accepts, but any; an "
               "ablation",
               {"consensus", "bpr", "random"});
      f.choice("reviewer_init", reviewer_init, "xavier uniform, or U(-1, 1)",
               {"xavier", "uniform"});
      f.choice("decouple", decouple, "a user's tastes: W_u [d, K d], or [d, d] cut into K",
               {"expand", "split"});
      f.add("k", k, "tastes of a user; search 1, 2, 4, 8", at_least(1));
      f.add(
          "eta", eta,
          "threshold of a score: auto, or a number; after a comma NAME=VALUE for one modality, as "
          "in 0.5,image=auto");
      f.choice("gate", gate,
               "a rewritten row is taken if its score is above eta, better than before, at random "
               "(as many as eta takes), or always",
               {"eta", "better", "random", "none"});
      f.choice("missing", missing, "a missing row may be filled by an accepted rewrite, or never",
               {"rewrite", "ignore"});
      f.choice("review_mode", review_mode,
               "scores for areas and gate (bpr only): without dropout, or with the last batch's",
               {"evaluation", "training"});
      f.choice("score_scale", score_scale, "products divided by the square root of their width",
               {"sqrt", "none"});
      f.choice("squash", squash, "of features and of h", {"tanh", "none"});
      f.choice("feature_scale", feature_scale,
               "principal coordinates divided by their standard deviation, or not",
               {"std", "none"});
      f.add("floor", floor, "added to a score in the fusion: ranks cold items by content",
            at_least(0));
      f.add("half", half, "the reviewer's projections rounded to half precision");
      f.choice("item_id", item_id, "h of the fusion: from the item's users, or a trained table",
               {"neighbours", "table"});
      f.choice("train_features", train_features, "feature rows are trained",
               {"never", "until_first_rewrite"});
      f.add("item_graph", item_graph, "adds one step over a graph of 5 alike items");
      f.choice("rewriter", rewriter,
               "vqgan, or what it is compared with: mean of the high rows, neighbours' mean, a "
               "ridge map",
               {"vqgan", "mean", "neighbours", "ridge"});
      f.add("hold_out", hold_out, "stop the rewriter by a tenth of its items");
      f.add("adv", adv, "weight of the adversarial term", at_least(0));
      f.add("ln_gain", ln_gain, "initial gain of the rewriter's layer norms", above(0));
      f.add("rewrite_every", rewrite_every, "epochs between rewriting rounds; 0: never",
            at_least(0));
      f.add("rewrite_max", rewrite_max,
            "rounds at most; 1 for cleaning data, and 'features' does no more", at_least(0));
      f.add("dropout", dropout, "on users' tastes", between(0, 0.95));
      f.add("reg_weight", reg_weight, "weight of the penalty on the batch's final rows",
            at_least(0));
      f.add("embedding_size", embedding_size, "width of rows, tastes and IDs", at_least(2));
      f.add("prompt_size", prompt_size, "width of a direction's prompt", at_least(1));
      f.list("encoder", encoder, "widths of the rewriter's encoder", at_least(1));
      f.list("decoder", decoder, "widths of its decoder before the last, embedding_size",
             at_least(1));
      f.list("discriminator", discriminator, "widths of the discriminator before the logit",
             at_least(1));
      f.add("n_codes", n_codes, "codes of the rewriter", at_least(1));
      f.add("code_width", code_width, "width of a code; divides the encoder's last width",
            at_least(1));
      f.add("rewriter_learning_rate", rewriter_learning_rate, "AdamW's, of the rewriter", above(0));
      f.add("first_epochs", first_epochs, "of the rewriter in the first round, at most",
            at_least(0));
      f.add("later_epochs", later_epochs, "of the rewriter in later rounds, at most", at_least(0));
      f.choice("export_space", export_space,
               "features made for others: rows in the model's space, or in the features' own",
               {"model", "raw"});
      f.choice("export_weight", export_weight, "and as they are, or times their score",
               {"none", "score"});
      f.add("restore", restore, "and as they were before any rewriting");
      f.preset("variant", "paper",
               {{"reviewer", "bpr"},
                {"gate", "better"},
                {"item_id", "table"},
                {"score_scale", "none"},
                {"squash", "none"},
                {"floor", 0.0},
                {"eta", "0.5"},
                {"train_features", "until_first_rewrite"}});
      f.preset("variant", "released",
               {{"reviewer", "bpr"},
                {"reviewer_init", "uniform"},
                {"half", true},
                {"decouple", "split"},
                {"score_scale", "none"},
                {"feature_scale", "none"},
                {"eta", "0.5"},
                {"review_mode", "training"},
                {"train_features", "until_first_rewrite"},
                {"adv", 0.0},
                {"ln_gain", 1.0},
                {"hold_out", false}});
      f.preset("preset", "tiny",
               {{"embedding_size", 32},
                {"prompt_size", 16},
                {"encoder", {64, 128, 64}},
                {"decoder", {64, 128}},
                {"n_codes", 128},
                {"code_width", 8}});
      f.preset("preset", "full",
               {{"embedding_size", 384},
                {"prompt_size", 256},
                {"encoder", {1024, 2048, 1024}},
                {"decoder", {1024, 2048}},
                {"discriminator", {512, 128}},
                {"n_codes", 4096},
                {"code_width", 32},
                {"rewriter_learning_rate", 5e-4}});
      f.global_default("epochs", 70);
      f.global_default("train_batch_size", 1024);
      f.global_default("weight_decay", 0.01);
    }

    static SearchSpace search() { return {{"k", {1, 2, 4, 8}}}; }

    void check_export() const {
      if (restore && export_weight == "score") {
        throw usage_error(
            "R2MR: restore gives the rows as they were, export_weight = score multiplies them: "
            "choose one");
      }
    }

    static std::vector<Ablation> ablations(const std::vector<std::string>&) {
      return {{"full", {}},
              {"no rewrite", {{"rewrite_every", 0}}},
              {"no reviewer", {{"reviewer", "random"}}},
              {"neither", {{"reviewer", "random"}, {"rewrite_every", 0}}},
              {"random gate", {{"gate", "random"}}},
              {"no gate", {{"gate", "none"}}},
              {"published reviewer", {{"reviewer", "bpr"}, {"eta", "0.5"}}},
              {"mean of high rows", {{"rewriter", "mean"}}},
              {"neighbours' mean", {{"rewriter", "neighbours"}}},
              {"ridge map", {{"rewriter", "ridge"}}}};
    }
  };

  R2mr(const Config& config, const Context& context)
      : AlikeModel(context, 1),
        config_(config),
        form_(form_of(config)),
        graph_(data_.train_distinct.offsets, data_.train_distinct.items, data_.n_items, 0),
        degrees_(graph_.parts().item_offsets.diff()),
        all_users_(torch::arange(data_.n_users, torch::kInt64)),
        users_(parameter("user_embedding",
                         uniform(data_.n_users, config.embedding_size, -1, 1, init("user")),
                         Role::scoring, Axis::by_user)) {
    const int64_t d = config.embedding_size, n = data_.n_items;
    config.check_export();
    require_features(data_, "R2MR");
    if (config.decouple == "split" && d % config.k != 0) {
      throw usage_error("R2MR.k: with decouple = split it must divide embedding_size {}, got {}", d,
                        config.k);
    }
    std::vector<std::string> names;
    for (const auto& feature : data_.features) names.push_back(feature.name);
    read_thresholds(names);
    modalities_.reserve(names.size());  // rows may point at own_rows
    for (const auto& feature : data_.features) {
      auto& m = modalities_.emplace_back();
      m.name = feature.name;
      m.present = feature.present();
      m.threshold = thresholds_[modalities_.size() - 1];
      if (config.train_features == "never") {
        m.own_rows = torch::zeros({n, d});
        m.rows = &m.own_rows;
      } else {
        m.rows = &parameter(m.name + ".rows", torch::zeros({n, d}), Role::scoring, Axis::by_item);
        trained_rows_.insert(m.name + ".rows");
      }
      m.ids = &parameter(m.name + ".user_ids",
                         xavier_normal(data_.n_users, d, init(m.name + ".user_ids")), Role::scoring,
                         Axis::by_user);
    }
    if (config.item_id == "table") {
      item_ids_ = &parameter("item_embedding", xavier_uniform(n, d, init("item")), Role::scoring,
                             Axis::by_item);
    }
    const auto n_modalities = static_cast<int64_t>(names.size());
    if (config.reviewer == "bpr") {
      tastes_ = trained(taste_weights(form_, random_, "init.review.taste"), "review.taste");
      for (auto& m : modalities_) {
        m.review = trained(row_weights(form_, random_, "init.review.rows." + m.name),
                           "review.rows." + m.name);
      }
    } else {
      cross_ = CrossReviewer(graph_, names, form_, random_);
    }
    if (n_modalities > 1 && config.rewriter == "vqgan") {
      if (config.encoder.empty() || config.encoder.back() % config.code_width != 0) {
        throw usage_error("R2MR.code_width must divide the encoder's last width {}, got {}",
                          config.encoder.empty() ? 0 : config.encoder.back(), config.code_width);
      }
    }
    if (n_modalities > 1) {
      RewriterOptions options;
      options.method = config.rewriter;
      options.gan = {d,
                     config.prompt_size,
                     0,
                     config.encoder,
                     config.decoder,
                     config.discriminator,
                     config.n_codes,
                     config.code_width,
                     config.rewriter_learning_rate,
                     config.ln_gain,
                     config.adv};
      options.hold_out = config.hold_out;
      options.first_epochs = config.first_epochs;
      options.later_epochs = config.later_epochs;
      rewriter_.emplace(options, n_modalities, graph_, random_);
    }
    scores_ = torch::zeros({n, n_modalities});
    null_scores_ = torch::zeros({n, n_modalities, kNullDraws});
    eta_ = torch::zeros({n_modalities}, torch::kFloat64);
    consensus_ = torch::ones({n_modalities}, torch::kInt64);
    // Before prepare() no row is anything yet.
    round_of_ = torch::full({n, n_modalities}, -1, torch::kInt64);
    source_ = torch::full({n, n_modalities}, -1, torch::kInt64);
    score_before_ = torch::zeros({n, n_modalities});
    score_after_ = torch::zeros({n, n_modalities});
    rounds_done_ = torch::zeros({1}, torch::kInt64);
    if (config.item_graph) {
      similar_ = alike_items("similar", data_.features, feature_weights(data_, {}, "R2MR"), kAlike,
                             /*weighted=*/false);
    }
  }

  Abilities abilities() const override {
    return {.uses_features = true,
            .score_reads_features = config_.item_graph,
            // A table's row of an item without train rows was never trained.
            .ranks_cold_items = config_.floor > 0 && config_.item_id != "table"};
  }

  std::vector<ParameterGroup> parameter_groups() override {
    auto groups = AlikeModel::parameter_groups();
    auto& tensors = groups[0].tensors;
    if ((round_of_ > 0).any().item<bool>()) {
      std::erase_if(tensors,
                    [&](const auto& entry) { return trained_rows_.contains(entry.first); });
    }
    const auto last = static_cast<double>(std::max<int64_t>(1, train_.epochs));
    groups[0].learning_rate = [this, last](int64_t) {
      return train_.learning_rate * std::max(0.0, 1 - static_cast<double>(epoch_) / last);
    };
    groups[0].weight_decay = train_.weight_decay;
    groups[0].decay = AdamOptions::Decay::decoupled;
    return groups;
  }

  void state(State& state) override {
    AlikeModel::state(state);
    for (auto& m : modalities_) {
      if (m.rows == &m.own_rows) state.add(m.name + ".rows", m.own_rows, Role::scoring);
      state.add(m.name + ".original", m.original, Role::frozen);
      m.pca.state(state, m.name + ".pca");
    }
    state.add("scores", scores_, Role::scoring);
    state.add("null_scores", null_scores_, Role::scoring);
    state.add("eta", eta_, Role::scoring);
    state.add("consensus", consensus_, Role::scoring);
    state.add("round_of", round_of_, Role::scoring);
    state.add("source", source_, Role::scoring);
    state.add("score_before", score_before_, Role::scoring);
    state.add("score_after", score_after_, Role::scoring);
    state.add("rounds_done", rounds_done_, Role::scoring);
    if (cross_) {
      for (auto& [name, tensor] : cross_->tensors()) state.add(name, *tensor, Role::inner);
      for (int64_t f = 0; f < 2; ++f) {
        const std::string name = fmt::format("review.{}.", f);
        state.add(name + "tastes", cross_->tastes(f), Role::inner);
        state.add(name + "steps", cross_->n_steps(f), Role::inner);
        state.add(name + "steps_left", steps_left_[static_cast<size_t>(f)], Role::inner);
      }
      state.add("review.adam", cross_->adam(), Role::inner);
      state.add("review.epochs", cross_->n_epochs(), Role::inner);
    }
    if (rewriter_) {
      if (auto& gan = rewriter_->gan()) {
        for (auto& [name, tensor] : gan->tensors()) state.add(name, *tensor, Role::inner);
        state.add("gan.adam", gan->adam(), Role::inner);
        state.add("gan.discriminator_adam", gan->discriminator_adam(), Role::inner);
      }
      auto& progress = rewriter_->progress();
      state.add("rewriter.epochs", progress.epochs, Role::inner);
      state.add("rewriter.epochs_ever", progress.epochs_ever, Role::inner);
      state.add("rewriter.misses", progress.misses, Role::inner);
      state.add("rewriter.best", progress.best, Role::inner);
    }
    state.add("phase", phase_, Role::inner);
    state.add("phase_epochs", phase_epochs_, Role::inner);
    state.add("rounds", n_rounds_, Role::inner);
    state.add("last_step", last_step_, Role::inner);
    state.add("round_records", round_records_, Role::inner);
    state.add("rounds_kept", rounds_kept_, Role::scoring);
  }

  // --- schedule ------------------------------------------------------------------------------
  void prepare(const Watch& watch) override {
    const torch::NoGradGuard no_grad;
    AlikeModel::prepare(watch);
    if (phase_ == kUnprepared) {
      for (int64_t m = 0; m < n_modalities(); ++m) at(m).rows->copy_(original_of(m));
      round_of_.zero_();
      start_review(kWarmSteps);
    }
    if (phase_ == kReviewing) {
      if (!review_epochs(kWarmEpochs, watch)) return;
      review(0);
      phase_ = kIdle;
      log_areas(watch, areas(), 0);
    }
  }

  void begin_epoch(int64_t epoch, const Watch&) override { epoch_ = epoch; }

  void end_epoch(int64_t epoch, const Watch& watch) override {
    epoch_ = epoch;
    const bool due = config_.rewrite_every > 0 && epoch > 0 && epoch % config_.rewrite_every == 0 &&
                     n_rounds_ < config_.rewrite_max && modalities_.size() > 1;
    if (due || phase_ != kIdle) round(watch);
  }

  Loss loss(const Batch& batch) override {
    last_step_ = batch.step;
    const Vectors h = forward(true, batch.step, &batch);
    const Triples at{batch.user_inverse, batch.positive_inverse, batch.negative_inverse};
    const auto bpr = bpr_loss(h.users, h.items, at);
    const auto reg = l2_rows(h.users, h.items, at, batch.size());
    return {bpr + config_.reg_weight * reg, {{"bpr", bpr}, {"reg", reg}}};
  }

  Vectors propagate() override { return forward(false, 0); }

  /// Nobody reviews them, and they have no h: unit(e) by modality, as items without users.
  torch::Tensor new_items(const RowsByFeature& rows) override {
    if (item_ids_ != nullptr) {
      throw usage_error("R2MR.item_id = table has no row of a new item; wanted neighbours");
    }
    if (config_.floor == 0) {
      throw usage_error(
          "R2MR.floor = 0 leaves a new item, which nobody reviews, without a row; "
          "wanted above 0");
    }
    std::vector<torch::Tensor> parts;
    for (int64_t m = 0; m < n_modalities(); ++m) {
      const auto& given = rows.at(at(m).name);
      const auto e = prepared(m, given.rows, given.present);
      const auto s = torch::full({e.size(0)}, config_.reviewer == "random" ? 0.5 : 0.0);
      parts.push_back(fused_unit_rows(s, e, torch::zeros_like(e), config_.floor));
    }
    const auto items = torch::cat(parts, 1);
    if (!similar_) return items;
    return items + similar_->walk_new(rows, fused(false, 0, nullptr).items, items);
  }

  // --- data cleaning -------------------------------------------------------------------------
  /// Review and one rewriting round (none with rewrite_every or rewrite_max = 0), without a
  /// recommender.
  void fit(const Watch& watch) override {
    if (config_.reviewer == "bpr") {
      throw usage_error(
          "R2MR: reviewing without training a recommender needs reviewer = consensus, got bpr");
    }
    prepare(watch);
    if (watch.stop_requested() || modalities_.size() < 2) return;
    if (config_.rewrite_every == 0 || config_.rewrite_max == 0 || n_rounds_ > 0) return;
    if (config_.rewrite_max > 1) {
      log_.info("R2MR: without a recommender one rewriting round; rewrite_max = {} is for training",
                config_.rewrite_max);
    }
    round(watch);
  }

  /// `options` (export_space, export_weight, restore) win over the settings of the same names.
  std::vector<NamedRows> export_features(const Json& options) override;

  Offers offers() override { return {.features = this, .items = this, .report = this}; }
  std::optional<Quality> quality() override;

 private:
  enum Phase : int64_t { kUnprepared = 0, kReviewing = 1, kRewriting = 2, kIdle = 3 };
  struct Modality {
    std::string name;
    torch::Tensor present;            // bool [n_items]
    torch::Tensor own_rows;           // [n_items, d], where they are not trained
    torch::Tensor* rows = nullptr;    // the working table
    torch::Tensor original;           // as prepared; undefined before that, see original_of()
    torch::Tensor* ids = nullptr;     // q^m [n_users, d]
    ReviewWeights review;             // of reviewer = bpr
    std::optional<double> threshold;  // none: auto
    StoredPca pca;
  };

  Random init(const std::string& name) const { return random_.stream("init." + name); }
  int64_t n_modalities() const { return static_cast<int64_t>(modalities_.size()); }
  Modality& at(int64_t m) { return modalities_[static_cast<size_t>(m)]; }

  static ReviewForm form_of(const Config& config) {
    return {config.embedding_size,
            config.k,
            config.decouple == "split",
            config.score_scale == "sqrt",
            config.half,
            config.reviewer_init == "uniform",
            config.dropout};
  }

  ReviewWeights trained(ReviewWeights weights, const std::string& name) {
    weights.weight = parameter(name + ".weight", weights.weight);
    if (weights.bias.defined()) weights.bias = parameter(name + ".bias", weights.bias);
    return weights;
  }

  /// `eta` = VALUE and NAME=VALUE, with commas between.
  void read_thresholds(const std::vector<std::string>& names);

  // --- rows ----------------------------------------------------------------------------------
  Pca pca_of(int64_t index) {
    Modality& m = at(index);
    Pca pca = m.pca.of(data_.features[static_cast<size_t>(index)], config_.embedding_size,
                       random_.stream("pca." + m.name));
    if (config_.feature_scale == "none") pca.scale = 1;
    return pca;
  }

  /// The rows before any rewriting [n_items, d]. A bundle has none: it makes them from its
  /// features and the stored PCA.
  const torch::Tensor& original_of(int64_t index) {
    Modality& m = at(index);
    if (m.original.defined()) return m.original;
    const Feature& feature = data_.features[static_cast<size_t>(index)];
    m.original = prepared(index, feature.all(), m.present);
    return m.original;
  }

  /// Rows of modality `index` in the model's space, 0 where missing. [n, d]
  torch::Tensor prepared(int64_t index, const torch::Tensor& rows, const torch::Tensor& present) {
    const auto e = squashed(pca_of(index).transform(rows).to(torch::kFloat32));
    auto out = torch::zeros({rows.size(0), config_.embedding_size});
    out.narrow(1, 0, e.size(1)).copy_(e * present.unsqueeze(1));
    return out;
  }

  /// Present, or filled by an accepted rewrite. bool [n_items]
  torch::Tensor exists(int64_t m) { return at(m).present.logical_or(round_of_.select(1, m) > 0); }

  // --- ranking -------------------------------------------------------------------------------
  torch::Tensor squashed(const torch::Tensor& x) const {
    return config_.squash == "tanh" ? x.tanh() : x;
  }

  torch::Tensor dropped(const torch::Tensor& x, const char* name, int64_t step) const {
    if (config_.dropout == 0) return x;
    return x * dropout_mask(all_users_, x.size(1), config_.dropout, random_.stream(name), step);
  }

  torch::Tensor per_edge(const torch::Tensor& sums) const {
    return sums / degrees_.clamp_min(1).to(sums.scalar_type());
  }

  /// All rows, or those of a batch alone.
  Vectors forward(bool training, int64_t step, const Batch* batch = nullptr) {
    Vectors all = fused(training, step, batch);
    if (!similar_) return all;
    all.items = all.items + similar_->walk(all.items);
    if (batch == nullptr) return all;
    return {gather_rows(all.users, batch->distinct_users),
            gather_rows(all.items, batch->distinct_items)};
  }

  /// Before the step over alike items, which reads all rows.
  Vectors fused(bool training, int64_t step, const Batch* batch) {
    const auto h = squashed(
        item_ids_ != nullptr
            ? *item_ids_
            : to_items(graph_, training ? dropped(users_, "drop.neighbours", step) : users_));
    torch::Tensor p;
    if (config_.reviewer == "bpr") p = live_tastes(training, step);
    const bool rows_alone = batch != nullptr && !similar_;
    std::vector<torch::Tensor> items, users;
    for (int64_t m = 0; m < static_cast<int64_t>(modalities_.size()); ++m) {
      const Modality& of = modalities_[static_cast<size_t>(m)];
      torch::Tensor e = *of.rows, s;
      if (e.requires_grad()) {
        e = e * of.present.logical_or(round_of_.select(1, m) > 0).unsqueeze(1);
      }
      if (config_.reviewer == "bpr") {
        s = per_edge(
            edge_sums(graph_, of.review.project(e, form_), p, form_.n_tastes, form_.scale()));
      } else if (config_.reviewer == "random") {
        s = torch::full({data_.n_items}, 0.5);
      } else {
        s = scores_.select(1, m);
      }
      const auto x = fused_unit_rows(s, e, h, config_.floor), y = unit_rows(*of.ids);
      const auto [user, item] = rows_alone
                                    ? layer_mean_rows(graph_, y, x, kPropagations,
                                                      batch->distinct_users, batch->distinct_items)
                                    : layer_mean(graph_, y, x, kPropagations);
      users.push_back(user);
      items.push_back(item);
    }
    const double n_layers = static_cast<double>(kPropagations + 1);
    return {torch::cat(users, 1) * n_layers, torch::cat(items, 1) * n_layers};
  }

  torch::Tensor live_tastes(bool training, int64_t step) const {
    return tastes_.project(training ? dropped(users_, "drop.taste", step) : users_, form_);
  }

  // --- review --------------------------------------------------------------------------------
  /// What scores_of() asks, of the reviewer as it is; without cross-fitting the first alone.
  CrossReviewer::Tastes tastes_now() {
    const torch::NoGradGuard no_grad;
    if (cross_) return cross_->projected_tastes();
    return {live_tastes(config_.review_mode == "training", last_step_), torch::Tensor()};
  }

  /// Scores of rows of modality m: of all items, or of `items`.
  torch::Tensor scores_of(const CrossReviewer::Tastes& tastes, int64_t m, const torch::Tensor& rows,
                          const torch::Tensor& items = {}) {
    const torch::NoGradGuard no_grad;
    if (cross_) return cross_->scores(tastes, m, rows, items);
    const auto sums = edge_sums(graph_, at(m).review.project(rows, form_), tastes[0],
                                form_.n_tastes, form_.scale(), items);
    const auto n = items.defined() ? degrees_.index_select(0, items) : degrees_;
    return sums / n.clamp_min(1).to(sums.scalar_type());
  }

  torch::Tensor scored() const { return (cross_ ? cross_->n_counted() : degrees_) > 0; }

  void start_review(int64_t steps) {
    phase_ = kReviewing;
    phase_epochs_ = 0;
    steps_left_ = {steps, steps};
  }

  /// Trains the reviewer to the end of this phase; false when asked to stop.
  bool review_epochs(int64_t n_epochs, const Watch& watch) {
    if (!cross_) return true;
    std::vector<torch::Tensor> rows;
    for (auto& m : modalities_) rows.push_back(*m.rows);
    const Progress bar = watch.progress("review", n_epochs);
    while (phase_epochs_ < n_epochs && steps_left_[0] + steps_left_[1] > 0) {
      cross_->train_epoch(rows, steps_left_);
      ++phase_epochs_;
      bar.advance(1);
      if (pause(watch, false)) return false;
    }
    return true;
  }

  void score_rows(const CrossReviewer::Tastes& tastes) {
    for (int64_t m = 0; m < n_modalities(); ++m) {
      scores_.select(1, m).copy_(scores_of(tastes, m, *at(m).rows));
    }
    scores_ *= scored().unsqueeze(1);
  }

  /// Scores, their null and the thresholds, from the reviewer as it is; `draws` keys the null's.
  void review(uint64_t draws) {
    const auto tastes = tastes_now();
    score_rows(tastes);
    null_scores_.fill_(kNoNull);
    const auto scored_items = scored();
    for (int64_t m = 0; m < n_modalities(); ++m) {
      Modality& of = at(m);
      const auto index = scored_items.logical_and(exists(m)).nonzero().flatten();
      std::vector<double> means;
      for (int64_t draw = 0; draw < kNullDraws && index.numel() > 0; ++draw) {
        std::vector<int64_t> order(index.const_data_ptr<int64_t>(),
                                   index.const_data_ptr<int64_t>() + index.numel());
        random_.stream("review.null." + of.name).shuffle(order, draws, static_cast<uint64_t>(draw));
        const auto s = scores_of(
            tastes, m, of.rows->index_select(0, torch::tensor(order, torch::kInt64)), index);
        null_scores_.select(1, m).select(1, draw).index_copy_(0, index, s);
        means.push_back(s.mean(torch::kFloat64).item<double>());
      }
      const auto own = scores_.select(1, m).index_select(0, index);
      eta_[m] = of.threshold ? *of.threshold : auto_threshold(means, own);
      const double null = means.empty() ? 0
                                        : std::accumulate(means.begin(), means.end(), 0.0) /
                                              static_cast<double>(means.size());
      const bool agreed = of.threshold || median_of(own) - null >= kNoConsensus;
      consensus_[m] = agreed;
      if (!agreed) {
        log_.warn(
            "R2MR: '{}' carries no consensus (median score {:.3f}, {:.3f} with its rows permuted): "
            "it is neither rewritten nor a source",
            of.name, median_of(own), null);
      }
    }
    if (cross_ && data_.n_items < 8 * config_.embedding_size && n_rounds_ == 0) {
      log_.warn("R2MR: {} items are few for a width of {}: scores keep some memory of the rows",
                data_.n_items, config_.embedding_size);
    }
  }

  /// Scored rows that were there at the last review; bool [n_items].
  torch::Tensor has_null(int64_t m) {
    return scored().logical_and(exists(m)).logical_and(null_scores_.select(1, m).select(1, 0) !=
                                                       kNoNull);
  }

  /// bool [n_items, M]
  torch::Tensor existing() {
    std::vector<torch::Tensor> out;
    for (int64_t m = 0; m < n_modalities(); ++m) out.push_back(exists(m));
    return torch::stack(out, 1);
  }

  /// What the scores say.
  Areas reviewed() {
    const double* eta = eta_.const_data_ptr<double>();
    return areas_of(scores_, existing(), scored(), {eta, eta + n_modalities()});
  }

  /// What rounds go by: the same, but with reviewer = random it is said of any other scored item
  /// with the same modalities, so that areas and proposals are as many.
  Areas areas() {
    Areas out = reviewed();
    if (config_.reviewer != "random") return out;
    const auto there = existing().contiguous();
    const bool* flags = there.const_data_ptr<bool>();
    const auto scored_items = scored().nonzero().flatten();
    std::map<std::vector<bool>, std::vector<int64_t>> alike;
    for (int64_t j = 0; j < scored_items.numel(); ++j) {
      const int64_t i = scored_items.const_data_ptr<int64_t>()[j];
      const bool* of = flags + i * n_modalities();
      alike[std::vector<bool>(of, of + n_modalities())].push_back(i);
    }
    const torch::Tensor high = out.high.clone();
    uint64_t group = 0;
    for (const auto& [modalities, items] : alike) {
      auto order = items;
      random_.stream("review.random")
          .shuffle(order, static_cast<uint64_t>(rounds_done_.item<int64_t>()), group++);
      high.index_copy_(0, torch::tensor(items, torch::kInt64),
                       out.high.index_select(0, torch::tensor(order, torch::kInt64)));
    }
    return {high, area_of(high, scored())};
  }

  // --- rewriting -----------------------------------------------------------------------------
  /// One rewriting round from wherever it stands; returns early when asked to stop.
  void round(const Watch& watch) {
    const torch::NoGradGuard no_grad;
    if (phase_ == kIdle) start_review(kRefreshSteps);
    if (phase_ == kReviewing) {
      if (!review_epochs(kRefreshEpochs, watch)) return;
      review(static_cast<uint64_t>(n_rounds_));
      phase_ = kRewriting;
      rewriter_->begin_round();
      if (pause(watch, true)) return;
    }
    const Areas now = areas();
    std::vector<bool> takes_part;
    for (int64_t m = 0; m < n_modalities(); ++m) takes_part.push_back(has_consensus(m));
    const int64_t n_items = rewriter_->choose(now.high, takes_part, n_rounds_);
    Json entry = {{"round", n_rounds_ + 1}, {"epoch", epoch_}};
    if (n_items < kFewestItems) {
      log_.info("R2MR round {}: {} items to learn from, wanted {}: skipped", n_rounds_ + 1, n_items,
                kFewestItems);
      entry["skipped"] = "too few items";
    } else if (!something_to_write(now)) {
      log_.info("R2MR round {}: nothing to rewrite", n_rounds_ + 1);
      entry["skipped"] = "no disparity";
    } else {
      if (!train_rewriter(watch, entry)) return;
      rewrite(now, entry);
      score_rows(tastes_now());
    }
    ++n_rounds_;
    rounds_done_.fill_(n_rounds_);
    phase_ = kIdle;
    log_areas(watch, now, n_rounds_, std::move(entry));
  }

  /// What the last review() found; a modality without it takes no part in rewriting.
  bool has_consensus(int64_t m) const { return consensus_[m].item<bool>(); }

  /// False when asked to stop.
  bool train_rewriter(const Watch& watch, Json& entry) {
    const auto rows = tables();
    const int64_t limit = rewriter_->epochs_of_round();
    const Progress bar = watch.progress(fmt::format("rewriter, round {}", n_rounds_ + 1), limit);
    const bool done = rewriter_->train(rows, [&](int64_t epoch) {
      bar.advance(1);
      return !pause(watch, epoch % kSaveEvery == 0);
    });
    if (!done || !rewriter_->gan()) return done;
    const double held = rewriter_->distance(rows, true);
    const auto [codes, perplexity] = rewriter_->codes_in_use(rows);
    entry["rewriter"] = {{"epochs", rewriter_->progress().epochs},
                         {"train", rewriter_->distance(rows, false)},
                         {"held_out", std::isfinite(held) ? Json(held) : Json()},
                         {"codes", codes},
                         {"perplexity", perplexity}};
    return true;
  }

  std::vector<torch::Tensor> tables() const {
    std::vector<torch::Tensor> out;
    for (const auto& m : modalities_) out.push_back(m.rows->detach());
    return out;
  }

  /// New rows of one modality, by item.
  struct Proposals {
    torch::Tensor items, rows, source, after;  // [n], [n, d], [n] modality, [n] their scores
    Proposals at(const torch::Tensor& places) const {
      return {items.index_select(0, places), rows.index_select(0, places),
              source.index_select(0, places), after.index_select(0, places)};
    }
  };

  /// Items that proposals() may write of modality b from modality a.
  torch::Tensor targets(const Areas& now, int64_t a, int64_t b) {
    if (a == b || !has_consensus(a) || !has_consensus(b)) return torch::empty({0}, torch::kInt64);
    auto wanted = (now.area == Area::disparity)
                      .logical_and(now.high.select(1, b).logical_not())
                      .logical_and(now.high.select(1, a));
    if (config_.missing == "ignore") wanted = wanted.logical_and(exists(b));
    return wanted.nonzero().flatten();
  }

  bool something_to_write(const Areas& now) {
    for (int64_t a = 0; a < n_modalities(); ++a) {
      for (int64_t b = 0; b < n_modalities(); ++b) {
        if (targets(now, a, b).numel() > 0) return true;
      }
    }
    return false;
  }

  /// Candidates of every disparity item that `now` finds low in modality b: of its high sources the
  /// one whose row scores highest, or without asking the reviewer the first.
  Proposals proposals(const Areas& now, int64_t b, bool by_score) {
    const auto tables_now = tables();
    const auto tastes = tastes_now();
    torch::Tensor best_rows = torch::zeros_like(at(b).rows->detach());
    torch::Tensor best = torch::full({data_.n_items}, -1.0),
                  from = torch::full({data_.n_items}, -1);
    for (int64_t a = 0; a < n_modalities(); ++a) {
      const auto items = targets(now, a, b);
      if (items.numel() == 0) continue;
      const auto rows = rewriter_->candidates(tables_now, a, b, items, now.high);
      const auto s = scores_of(tastes, b, rows, items).to(best.scalar_type());
      const auto better =
          (by_score ? s > best.index_select(0, items) : from.index_select(0, items) < 0)
              .nonzero()
              .flatten();
      const auto at_items = items.index_select(0, better);
      best.index_copy_(0, at_items, s.index_select(0, better));
      best_rows.index_copy_(0, at_items, rows.index_select(0, better));
      from.index_fill_(0, at_items, a);
    }
    const auto items = (from >= 0).nonzero().flatten();
    return {items, best_rows.index_select(0, items), from.index_select(0, items),
            best.index_select(0, items)};
  }

  /// Proposals for each modality; the gate; the rows.
  void rewrite(const Areas& now, Json& entry) {
    std::vector<Proposals> writes;
    entry["accepted"] = Json::object();
    entry["refused"] = Json::object();
    for (int64_t b = 0; b < n_modalities(); ++b) {
      const bool random = config_.reviewer == "random";
      Proposals made = proposals(now, b, !random);
      if (random) {
        // A random set as large as what the reviewer would accept of its own.
        const auto own = proposals(reviewed(), b, true).after.to(torch::kFloat64) > eta_[b];
        made = made.at(drawn(made.items.numel(), own, "rewrite.random", b).nonzero().flatten());
      }
      const auto before = scores_.select(1, b).index_select(0, made.items);
      writes.push_back(made.at(gated(b, made.after, before).nonzero().flatten()));
      const int64_t n_accepted = writes.back().items.numel();
      entry["accepted"][at(b).name] = n_accepted;
      entry["refused"][at(b).name] = made.items.numel() - n_accepted;
    }
    for (int64_t b = 0; b < n_modalities(); ++b) {
      const auto& [items, rows, source, after] = writes[static_cast<size_t>(b)];
      at(b).rows->index_copy_(0, items, rows);
      // Of a row rewritten again that of the given row stands, beside whose neighbours it is shown;
      // one that was missing never had a score.
      const auto now_scores = torch::where(at(b).present.index_select(0, items),
                                           scores_.select(1, b).index_select(0, items), kNoScore);
      const auto first = round_of_.select(1, b).index_select(0, items) == 0;
      score_before_.select(1, b).index_copy_(
          0, items,
          torch::where(first, now_scores, score_before_.select(1, b).index_select(0, items)));
      round_of_.select(1, b).index_fill_(0, items, n_rounds_ + 1);
      source_.select(1, b).index_copy_(0, items, source);
      score_after_.select(1, b).index_copy_(0, items, after);
    }
  }

  torch::Tensor gated(int64_t b, const torch::Tensor& after, const torch::Tensor& before) const {
    if (config_.gate == "none" || config_.reviewer == "random") {
      return torch::ones_like(after, torch::kBool);
    }
    if (config_.gate == "better") return after > before;
    const auto above = after.to(torch::kFloat64) > eta_[b];
    if (config_.gate == "eta") return above;
    return drawn(after.numel(), above, "rewrite.gate", b);
  }

  /// As many of n as hold in `flags`, but any. bool [n]
  torch::Tensor drawn(int64_t n, const torch::Tensor& flags, const char* stream, int64_t b) const {
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), int64_t{0});
    random_.stream(stream).shuffle(order, static_cast<uint64_t>(n_rounds_),
                                   static_cast<uint64_t>(b));
    order.resize(std::min(order.size(), static_cast<size_t>(flags.sum().item<int64_t>())));
    return torch::zeros({n}, torch::kBool)
        .index_fill_(0, torch::tensor(order, torch::kInt64), true);
  }

  // --- log -----------------------------------------------------------------------------------
  /// Writes a checkpoint when one is due; true when asked to stop.
  bool pause(const Watch& watch, bool due) {
    const auto now = std::chrono::steady_clock::now();
    const bool stop = watch.stop_requested();
    if (due || stop || std::chrono::duration<double>(now - saved_).count() > kSaveSeconds) {
      watch.checkpoint();
      saved_ = std::chrono::steady_clock::now();
    }
    return stop;
  }

  Json counts_of(const Areas& now) const {
    const auto count = [&](int64_t area) { return (now.area == area).sum().item<int64_t>(); };
    return {{"high", count(Area::high_area)},
            {"disparity", count(Area::disparity)},
            {"low", count(Area::low_area)},
            {"unscored", count(Area::unscored)}};
  }

  void log_areas(const Watch& watch, const Areas& now, int64_t round, Json entry = Json::object()) {
    if (round == 0) entry = {{"round", 0}, {"epoch", -1}};
    entry["areas"] = counts_of(now);
    entry["eta"] = Json::object();
    for (int64_t m = 0; m < n_modalities(); ++m) entry["eta"][at(m).name] = eta_[m].item<double>();
    const Json& areas = entry["areas"];
    std::string text =
        fmt::format("R2MR round {}: {} high, {} disparity, {} low, {} unscored", round,
                    areas["high"].get<int64_t>(), areas["disparity"].get<int64_t>(),
                    areas["low"].get<int64_t>(), areas["unscored"].get<int64_t>());
    for (int64_t m = 0; m < n_modalities(); ++m) {
      text += fmt::format("; {}: eta {:.3f}", at(m).name, eta_[m].item<double>());
      if (entry.contains("accepted")) {
        text +=
            fmt::format(", {} accepted, {} refused", entry["accepted"][at(m).name].get<int64_t>(),
                        entry["refused"][at(m).name].get<int64_t>());
      }
    }
    if (entry.contains("rewriter")) {
      const Json& r = entry["rewriter"];
      text += fmt::format(
          "; L1 {:.4f}{}, {} codes in use (perplexity {:.1f})", r["train"].get<double>(),
          r["held_out"].is_null() ? std::string()
                                  : fmt::format(", held out {:.4f}", r["held_out"].get<double>()),
          r["codes"].get<int64_t>(), r["perplexity"].get<double>());
    }
    watch.text.info("{}", text);
    round_records_.push_back(entry);
    rounds_kept_ = round_records_;
    Json line = {{"event", "round"}, {"model", "R2MR"}};
    line.update(entry);
    watch.log(line);
  }

  // --- report --------------------------------------------------------------------------------
  Json options_json() const;

  const Config config_;
  const ReviewForm form_;
  const BipartiteGraph graph_;
  const torch::Tensor degrees_;    // int64 [n_items]
  const torch::Tensor all_users_;  // int64 [n_users], 0, 1, ..
  torch::Tensor& users_;           // u [n_users, d]
  torch::Tensor* item_ids_ = nullptr;
  std::vector<std::optional<double>> thresholds_;  // by modality; none: auto
  std::vector<Modality> modalities_;
  std::set<std::string> trained_rows_;
  ReviewWeights tastes_;  // of reviewer = bpr
  std::optional<CrossReviewer> cross_;
  std::optional<Rewriter> rewriter_;
  std::optional<AlikeItems> similar_;  // of item_graph
  torch::Tensor scores_;               // [n_items, M]
  torch::Tensor null_scores_;          // [n_items, M, kNullDraws]
  torch::Tensor eta_;                  // float64 [M]
  torch::Tensor consensus_;            // int64 [M], 0 or 1
  // The record of a row's last rewriting, [n_items, M]; it goes wherever the rows go.
  torch::Tensor round_of_;                    // int64, 0: as given
  torch::Tensor source_;                      // int64, modality
  torch::Tensor score_before_, score_after_;  // float32
  torch::Tensor rounds_done_;                 // int64 [1], rounds that the rows went through
  std::array<int64_t, 2> steps_left_ = {0, 0};
  int64_t epoch_ = 0, phase_ = kUnprepared, phase_epochs_ = 0, n_rounds_ = 0;
  int64_t last_step_ = 0;
  Json round_records_ = Json::array();  // of the whole run
  Json rounds_kept_ = Json::array();    // up to the rows that stand; all that a bundle has
  std::chrono::steady_clock::time_point saved_ = std::chrono::steady_clock::now();
};

void R2mr::read_thresholds(const std::vector<std::string>& names) {
  std::optional<double> all;
  std::vector<std::pair<std::string, std::optional<double>>> given;
  std::string text = config_.eta, name;
  std::erase(text, ' ');
  for (std::string part : split_list(text)) {
    name.clear();
    if (const size_t equals = part.find('='); equals != std::string::npos) {
      name = setting_name(part.substr(0, equals));
      part = part.substr(equals + 1);
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        throw usage_error("R2MR.eta: no modality '{}'{}", printable(name),
                          did_you_mean(name, names));
      }
    }
    std::optional<double> value;
    if (squeezed(part) != "auto") {
      size_t read = 0;
      double number = -1;
      try {
        number = std::stod(part, &read);
      } catch (const std::exception&) {
        read = 0;
      }
      if (read != part.size() || !(number >= 0 && number <= 1)) {
        throw usage_error("R2MR.eta: expected auto or a number between 0 and 1, got {}",
                          printable(part));
      }
      value = number;
    }
    if (name.empty()) {
      all = value;
    } else {
      given.emplace_back(name, value);
    }
  }
  thresholds_.assign(names.size(), all);
  for (const auto& [name, value] : given) {
    thresholds_[static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin())] =
        value;
  }
}

// --- export ----------------------------------------------------------------------------------
std::vector<NamedRows> R2mr::export_features(const Json& options) {
  const torch::NoGradGuard no_grad;
  Config asked = config_;
  if (options.is_object()) {
    Fields f("R2MR");
    asked.describe(f);
    Settings given;
    for (const auto& [name, value] : options.items()) given.push_back({name, value, "option"});
    refuse_unknown(given, {&f}, "R2MR");
    f.apply(given);
  }
  asked.check_export();
  if ((round_of_ < 0).any().item<bool>()) {
    throw usage_error("R2MR: no rows to export before fit or a training");
  }
  // That reviewer has learned on since the last round.
  if (!cross_ && asked.export_weight == "score") review(kReportDraws);
  std::vector<NamedRows> out;
  const Json card = {
      {"name", "R2MR"},
      {"made_by", "model"},
      {"uses_interactions", true},
      {"dataset", data_.name},
      {"train_sha256", train_sha256(data_)},
      {"split_sha256", data_.about.is_object() && data_.about.contains("split_sha256")
                           ? data_.about["split_sha256"]
                           : Json()},
      {"seed", random_.seed()},
      {"export_space", asked.export_space},
      {"export_weight", asked.export_weight},
      {"restore", asked.restore},
      {"settings", options_json()}};
  for (int64_t m = 0; m < n_modalities(); ++m) {
    const Modality& of = at(m);
    const auto changed = (round_of_.select(1, m) > 0).logical_and(torch::tensor(!asked.restore));
    NamedRows rows;
    rows.modality = of.name + "_r2mr";
    rows.items = of.present.logical_or(changed).nonzero().flatten();
    if (asked.export_space == "model") {
      rows.rows = (asked.restore ? original_of(m) : of.rows->detach()).index_select(0, rows.items);
    } else {
      rows.rows = data_.features[static_cast<size_t>(m)].gather(rows.items);
      const auto place = changed.index_select(0, rows.items).nonzero().flatten();
      const Pca pca = pca_of(m);
      auto e = of.rows->detach()
                   .index_select(0, rows.items.index_select(0, place))
                   .narrow(1, 0, pca.axes.size(0))
                   .to(torch::kFloat64);
      if (config_.squash == "tanh") e = e.clamp(-kClamp, kClamp).atanh();
      rows.rows.index_copy_(0, place, pca.inverse(e).to(torch::kFloat32));
    }
    if (asked.export_weight == "score") {
      rows.rows = rows.rows * scores_.select(1, m).index_select(0, rows.items).unsqueeze(1);
    }
    rows.card = card;
    rows.card["modality"] = of.name;
    rows.card["n_rewritten"] = changed.sum().item<int64_t>();
    out.push_back(std::move(rows));
  }
  return out;
}

Json R2mr::options_json() const {
  Config config = config_;
  Fields f("R2MR");
  config.describe(f);
  Json out = Json::object();
  for (const auto& setting : f.resolved()) out[setting.name] = setting.value;
  return out;
}

// --- report ----------------------------------------------------------------------------------
std::optional<Quality> R2mr::quality() {
  const torch::NoGradGuard no_grad;
  if ((round_of_ < 0).any().item<bool>()) {
    throw usage_error("R2MR: nothing to report before fit or a training");
  }
  if (!cross_) review(kReportDraws);  // the reviewer has learned on since the last round
  Quality out;
  out.seed = random_.seed();
  const Areas now = reviewed();
  for (int64_t m = 0; m < n_modalities(); ++m) {
    const Modality& of = at(m);
    out.modalities.push_back({of.name, eta_[m].item<double>(), has_consensus(m), of.present,
                              exists(m), scores_.select(1, m), null_scores_.select(1, m),
                              has_null(m), now.high.select(1, m), round_of_.select(1, m),
                              original_of(m), of.rows->detach()});
    const auto items = (round_of_.select(1, m) > 0).nonzero().flatten();
    for (int64_t j = 0; j < items.numel(); ++j) {
      const int64_t i = items[j].item<int64_t>();
      const double before = score_before_[i][m].item<float>();
      out.rewrites.push_back({i, m, round_of_[i][m].item<int64_t>(), source_[i][m].item<int64_t>(),
                              before == kNoScore ? std::nan("") : before,
                              score_after_[i][m].item<float>()});
    }
  }
  out.scored = scored();
  out.area = now.area;
  out.n_users = degrees_;
  for (Json entry : round_records_.empty() ? rounds_kept_ : round_records_) {
    // A run goes on after its best epoch, to whose rows it returns.
    if (entry.is_object() && entry.value("round", Json()).is_number_integer()) {
      entry["kept"] = entry["round"].get<int64_t>() <= rounds_done_.item<int64_t>();
    }
    out.rounds.push_back(std::move(entry));
  }
  return out;
}

const RegisterModel<R2mr> registered{"R2MR", "R2MR, Tang et al. 2025"};

}  // namespace
}  // namespace tessera
