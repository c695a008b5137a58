#include <algorithm>
#include <chrono>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/model/offers.h"
#include "tessera/model/part_facts.h"
#include "tessera/model/registry.h"
#include "tessera/model/stored_pca.h"
#include "tessera/nn/part_net.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/parts.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kPcaScale = 0.25;  // section 1: L_ort grows with the fourth power of the scale
constexpr int64_t kPcaWidth = 128;
constexpr double kCollapsed = 1e-3;  // mean norm of common parts
constexpr int64_t kCheckEvery = 10, kChecks = 5, kMinEpochs = 50, kMaxEpochs = 1000;

/// What one modality's raw rows go through (section 1), fitted on the present rows once.
class Preparation {
 public:
  Preparation(std::string kind, const Feature& feature, const Random& random)
      : kind_(std::move(kind)), feature_(&feature), random_(random) {}

  int64_t width() const {
    const int64_t n = feature_->present().sum().item<int64_t>(), wide = feature_->width();
    return kind_ == "pca" ? n_axes(kPcaWidth, wide, n) : wide;
  }

  void state(State& state, const std::string& name) {
    if (kind_ == "pca") pca_.state(state, name);
    if (kind_ != "zscore") return;
    state.add(name + ".mean", mean_, Role::scoring);
    state.add(name + ".spread", spread_, Role::scoring);
  }

  /// float32 [n, width()]
  torch::Tensor operator()(const torch::Tensor& rows) {
    if (kind_ == "pca") {
      const Pca pca = pca_.of(*feature_, kPcaWidth, random_);
      return (pca.transform(rows) * kPcaScale).to(torch::kFloat);
    }
    if (kind_ == "zscore") {
      fit_spread();
      const auto open = spread_ >= 1e-6;
      const auto scaled = (rows - mean_) / torch::where(open, spread_, torch::ones_like(spread_));
      return torch::where(open, scaled, torch::zeros_like(scaled)).to(torch::kFloat);
    }
    if (kind_ == "l2") return rows / rows.square().sum(1, true).sqrt().clamp_min(1e-12);
    return rows;
  }

 private:
  void fit_spread() {
    const int64_t wide = feature_->width();
    if (!mean_.defined() || !spread_.defined()) {
      const auto there =
          feature_->gather(feature_->present().nonzero().squeeze(1)).to(torch::kDouble);
      const bool any = there.size(0) > 0;
      mean_ = any ? there.mean(0) : torch::zeros({wide}, torch::kDouble);
      spread_ = any ? there.std(0, /*unbiased=*/false) : torch::zeros_like(mean_);
    }
    for (const auto& stored : {mean_, spread_}) {
      if (stored.dim() == 1 && stored.size(0) == wide && stored.scalar_type() == torch::kDouble) {
        continue;
      }
      throw data_error("stored mean and spread of '{}': wanted float64 [{}], found {} [{}]",
                       feature_->name, wide, toString(stored.scalar_type()),
                       fmt::join(stored.sizes(), ", "));
    }
  }

  std::string kind_;
  const Feature* feature_;
  Random random_;
  StoredPca pca_;
  torch::Tensor mean_, spread_;  // float64 [width]
};

torch::Tensor cosine_table(const torch::Tensor& a, const torch::Tensor& b) {
  const auto unit = [](const torch::Tensor& x) {
    return x / x.square().sum(1, true).sqrt().clamp_min(1e-12);
  };
  return unit(a).matmul(unit(b).t());
}

/// PAMD (Han et al., WWW 2022): each modality's vector is split into a part in common with the
/// others and a specific rest, pretrained without interactions; the recommender weighs the parts
/// by attention of the user. The paper's body was not available: section numbers are those of the
/// specification, which follows the published code. With linear maps, common and specific carry
/// the same information with another emphasis; preset = separate makes them differ.
class Pamd : public Model,
             public FeatureSupplier,
             public RowEncoder,
             public ItemEncoder,
             public Reporter,
             public ItemPretrainer,
             public EvalMask {
 public:
  struct Config {
    std::string variant = "paper", preset = "default";
    int64_t embedding_size = 64;
    double tau = 0.5;
    std::string prep = "pca";
    std::string encoder = "linear", common_map = "linear", decoder = "pair";
    std::string contrast = "softmax_order", order_specific = "signed", pair_reduction = "sample";
    double purify = 0, w_en = 1, w_de = 1;
    int64_t pre_epochs = -1, pre_batch_size = 100;
    double pre_learning_rate = 1e-3, pre_weight_decay = 1e-5;
    std::string missing = "mean";
    std::string tokens = "parts";
    std::vector<std::string> only_parts, without_parts, eval_mask;
    std::string loss = "bce";
    double finetune_lr = 1e-3, id_std = 0.1;
    bool freeze_pretrained = false;
    std::string cold_id = "zero";
    std::string export_norm = "none", export_stage = "pretrained";

    void describe(Fields& f) {
      f.choice("variant", variant, "the intended method, or the published code's form",
               {"paper", "released"});
      f.choice("preset", preset, "separate: specific parts that hold little of the common ones",
               {"default", "separate"});
      f.add("embedding_size", embedding_size, "width d of parts and IDs; search 32, 64, 100",
            at_least(1));
      f.add("tau", tau, "temperature of the order loss; search 0.2, 0.5, 1", above(0));
      f.choice("prep", prep, "of the raw rows, also what decoders must rebuild",
               {"pca", "zscore", "l2", "none"});
      f.choice("encoder", encoder, "of each modality, and its decoders", {"linear", "mlp"});
      f.choice("common_map", common_map, "from the whole vector to its common part",
               {"linear", "mlp"});
      f.choice("decoder", decoder, "one for each ordered pair, or one for each target",
               {"pair", "target"});
      f.choice("contrast", contrast, "how common, whole and specific decodes are put in order",
               {"softmax_order", "mse_rank", "none"});
      f.choice("order_specific", order_specific,
               "the specific decode's cosine as it is, or its size", {"signed", "abs"});
      f.add("purify", purify, "weight of the correlation of common and specific parts",
            at_least(0));
      f.choice("pair_reduction", pair_reduction, "batchsum: a fault of the published code",
               {"sample", "batchsum"});
      f.add("w_en", w_en, "weight of alignment and orthogonality", at_least(0));
      f.add("w_de", w_de, "weight of the order loss", at_least(0));
      f.add("pre_epochs", pre_epochs, "epochs of pretraining; -1: until held-out items stop it",
            at_least(-1));
      f.add("pre_batch_size", pre_batch_size, "items a step of pretraining", at_least(1));
      f.add("pre_learning_rate", pre_learning_rate, "of pretraining", at_least(0));
      f.add("pre_weight_decay", pre_weight_decay, "of pretraining, added to the gradient",
            at_least(0));
      f.choice("missing", missing,
               "rows of items without a modality; decode: from their other modalities; mask: its "
               "parts are left out",
               {"mean", "decode", "mask", "rand"});
      f.choice("tokens", tokens, "what attention weighs: the parts, or the undivided vectors",
               {"parts", "whole"});
      f.list("only_parts", only_parts,
             "parts that attention sees, like image_common; empty: all; none: IDs alone");
      f.list("without_parts", without_parts, "parts that attention does not see");
      f.list("eval_mask", eval_mask,
             "parts left out when ranking only, which every result then says; all: IDs alone");
      f.choice("loss", loss, "of positive and negative scores", {"bce", "bpr"});
      f.add("finetune_lr", finetune_lr,
            "learning rate of pretrained tensors; search 1e-4, 3e-4, 1e-3", at_least(0));
      f.add("id_std", id_std, "standard deviation of the initial IDs; search .03, .1", at_least(0));
      f.add("freeze_pretrained", freeze_pretrained, "train the IDs alone");
      f.choice("cold_id", cold_id, "ID of items without a train row when ranking",
               {"zero", "keep"});
      f.choice("export_norm", export_norm, "of exported rows", {"none", "l2", "zscore"});
      f.choice("export_stage", export_stage,
               "finetuned: after training, good for the same split only",
               {"pretrained", "finetuned"});
      f.alias("d", {"embedding_size"});
      f.preset("variant", "released",
               {{"embedding_size", 100},
                {"prep", "none"},
                {"pair_reduction", "batchsum"},
                {"missing", "rand"},
                {"pre_epochs", 220},
                {"id_std", 1.0},
                {"finetune_lr", 1e-4},
                {"train_batch_size", 100},
                {"eval_step", 20}});
      f.preset("preset", "separate", {{"purify", 0.03}, {"order_specific", "abs"}, {"w_en", 10.0}});
      f.global_default("train_batch_size", 1024);
      f.global_default("weight_decay", 1e-5);
    }

    static SearchSpace search() {
      return {{"embedding_size", {32, 64, 100}},   {"tau", {0.2, 0.5, 1}},
              {"train_batch_size", {256, 1024}},   {"id_std", {0.03, 0.1}},
              {"finetune_lr", {1e-4, 3e-4, 1e-3}}, {"loss", {"bce", "bpr"}}};
    }

    /// What every result with these settings must say.
    std::string label() const { return eval_mask.empty() ? "" : eval_mask_note(eval_mask); }

    /// vc, vs, cc and cs are the published names of image and text, common and specific.
    static std::vector<Ablation> ablations(const std::vector<std::string>& modalities) {
      std::vector<Ablation> out = {{"full", {}},
                                   {"PAMD_en", {{"w_de", 0.0}}},
                                   {"PAMD_de", {{"w_en", 0.0}}},
                                   {"CON", {{"contrast", "none"}}},
                                   {"ID only", {{"only_parts", "none"}}},
                                   {"no pretraining", {{"pre_epochs", 0}}},
                                   {"frozen", {{"freeze_pretrained", true}}},
                                   {"raw features", {{"tokens", "whole"}, {"pre_epochs", 0}}},
                                   {"separate", {{"preset", "separate"}}}};
      for (const auto& modality : modalities) {
        for (const std::string part : {"common", "specific"}) {
          const std::string name = modality + "_" + part;
          const std::string label = modality == "image"  ? std::string("v") + part[0]
                                    : modality == "text" ? std::string("c") + part[0]
                                                         : name;
          out.push_back({label + " only", {{"only_parts", name}}});
          out.push_back({label + " without", {{"without_parts", name}}});
        }
      }
      return out;
    }
  };

  Pamd(const Config& config, const Context& context)
      : Model(context),
        config_(config),
        counts_(item_counts(data_.train, data_.n_items).to(torch::kFloat)),
        net_(net_options(), [this](const std::string& name) -> const torch::Tensor& {
          return *tensors_.at(name);
        }) {
    for (const auto& spec : PartNet::parameters(net_.options())) {
      const int64_t rows = spec.shape.size() > 1 ? spec.shape[0] : 1, cols = spec.shape.back();
      auto initial = spec.bound > 0 ? uniform(rows, cols, -spec.bound, spec.bound, init(spec.name))
                                    : torch::full({rows, cols}, spec.fill, torch::kFloat);
      const bool unused =
          config_.tokens == "whole" && spec.name.find(".common") != std::string::npos;
      auto& tensor = parameter(spec.name, initial.reshape(spec.shape),
                               spec.decoder || unused ? Role::inner : Role::scoring);
      tensors_[spec.name] = &tensor;
      pretrained_.emplace_back(spec.name, &tensor);
      if (!spec.decoder && !unused) tuned_.emplace_back(spec.name, &tensor);
    }
    const int64_t d = config_.embedding_size;
    users_ = &table("user_embedding", normal(data_.n_users, d, 0, config_.id_std, init("user")),
                    Role::scoring, Axis::by_user);
    items_ = &table("item_embedding", normal(data_.n_items, d, 0, config_.id_std, init("item")),
                    Role::scoring, Axis::by_item);
    filled_.resize(present_.size());
    name_tokens();
    attended_ = chosen_tokens();
    leave_out(config_.eval_mask);
    int64_t n_new = 0;
    for (int64_t u = 0; u < data_.n_users; ++u) n_new += data_.train.of(u).empty();
    if (n_new > 0) {
      log_.info("{} users without train rows are answered by popularity, nothing personal", n_new);
    }
  }

  Abilities abilities() const override {
    return {.uses_features = true, .score_reads_features = true, .ranks_cold_items = true};
  }
  BatchSpec batch_spec() const override {
    return {.unit = BatchSpec::Unit::pair, .n_negatives = 1};
  }

  std::vector<ParameterGroup> parameter_groups() override {
    ParameterGroup ids;
    ids.name = "ids";
    ids.tables = {{"user_embedding", users_}, {"item_embedding", items_}};
    std::vector<ParameterGroup> out = {ids};
    if (!config_.freeze_pretrained && attended_.any().item<bool>()) {
      ParameterGroup pretrained;
      pretrained.name = "pretrained";
      pretrained.tensors = tuned_;
      const double rate = config_.finetune_lr;
      pretrained.learning_rate = [rate](int64_t) { return rate; };
      out.push_back(pretrained);
    }
    if (train_.weight_decay > 0) {
      for (auto& group : out) {
        group.weight_decay = train_.weight_decay;
        group.decay = AdamOptions::Decay::gradient;
      }
    }
    return out;
  }

  void state(State& state) override {
    Model::state(state);
    for (size_t m = 0; m < preparations_.size(); ++m) {
      preparations_[m].state(state, names()[m] + ".prep");
    }
    state.add("pre.adam", adam_, Role::inner);
    state.add("pre.epoch", pre_epoch_, Role::frozen);
    state.add("pre.done", pre_done_, Role::frozen);
    state.add("pre.best_loss", best_loss_, Role::frozen);
    state.add("pre.best_gap", best_gap_, Role::frozen);
    state.add("pre.misses", misses_, Role::frozen);
    state.add("pre.checks", checks_, Role::frozen);
    if (config_.missing == "decode") {
      for (size_t m = 0; m < filled_.size(); ++m) {
        state.add(names()[m] + ".filled", filled_[m], Role::scoring);
      }
    }
  }

  void prepare(const Watch& watch) override { fit(watch); }

  Loss loss(const Batch& batch) override {
    const auto users = users_->gather(batch.distinct_users);
    const auto ids = items_->gather(batch.distinct_items);
    const auto& items = batch.distinct_items;
    const auto parts =
        config_.freeze_pretrained ? all_tokens().index_select(0, items) : tokens(items);
    const auto y =
        part_attention(users, ids, parts, open(items, attended_),
                       torch::cat({batch.user_inverse, batch.user_inverse}),
                       torch::cat({batch.positive_inverse, batch.negative_inverse.flatten()}));
    const int64_t n = batch.size();
    const auto up = y.narrow(0, 0, n), down = y.narrow(0, n, n);
    const auto total = config_.loss == "bpr"
                           ? torch::softplus(down - up).sum()
                           : torch::softplus(-up).sum() + torch::softplus(down).sum();
    return {total, {{config_.loss, total}}};
  }

  Offers offers() override {
    return {.features = this,
            .rows = this,
            .items = this,
            .pretraining = this,
            .report = this,
            .mask = this};
  }

  // --- features for others -----------------------------------------------------------------
  void fit(const Watch& watch) override;
  const std::vector<torch::Tensor>& pretraining_rows() override {
    if (x_.empty()) {
      std::vector<torch::Tensor> made;
      for (size_t m = 0; m < names().size(); ++m) made.push_back(prepared(m));
      x_ = std::move(made);
    }
    return x_;
  }
  Json report(const Interactions& held) override;
  void leave_out(const std::vector<std::string>& parts) final {
    ranked_ = attended_.clone();
    for (const auto& part : parts) ranked_ = ranked_.logical_and(token_row(part).logical_not());
  }
  bool needs_training() const override { return config_.export_stage == "finetuned"; }
  std::vector<NamedRows> export_features(const Json&) override {
    return parts_of(data_.features, data_.n_items, config_.export_stage);
  }
  std::vector<NamedRows> encode(const std::vector<Feature>& features, int64_t n_items) override {
    return parts_of(features, n_items, config_.freeze_pretrained ? "pretrained" : "finetuned");
  }
  std::shared_ptr<const Scorer> with_items(const Scorer& scorer,
                                           const std::vector<Feature>& features,
                                           int64_t n) override;

 protected:
  void forget() override { all_tokens_ = torch::Tensor(); }
  std::shared_ptr<const Scorer> make_scorer() override {
    return std::make_shared<PartScorer>(facts(), abilities(), part_factors());
  }

 private:
  /// Of all users and items, as they are ranked.
  PartFactors part_factors() {
    auto ids = items_->value();
    if (config_.cold_id == "zero") ids = ids * (counts_ > 0).to(torch::kFloat).unsqueeze(1);
    const auto every = torch::arange(data_.n_items, torch::kInt64);
    return {users_->value(), ids, all_tokens(), open(every, ranked_)};
  }

  Random init(const std::string& name) const { return random_.stream("init." + name); }
  const std::vector<std::string>& names() const { return net_.options().names; }
  int64_t n_modalities() const { return static_cast<int64_t>(names().size()); }

  /// What the net is made of.
  PartNetOptions net_options() {
    if (data_.features.size() < 2) {
      std::vector<std::string> has;
      for (const auto& f : data_.features) has.push_back(f.name);
      throw data_error(
          "PAMD needs at least two modalities and '{}' has {} selected; add some with 'tessera "
          "import --feature NAME=FILE'",
          data_.name, has.empty() ? "none" : fmt::format("only {}", fmt::join(has, ", ")));
    }
    PartNetOptions out;
    for (const auto& feature : data_.features) {
      preparations_.emplace_back(config_.prep, feature, random_.stream("pca." + feature.name));
      out.names.push_back(feature.name);
      out.widths.push_back(preparations_.back().width());
      if (out.widths.back() == 0) {
        throw data_error("PAMD: modality '{}' has the same row for every item", feature.name);
      }
      present_.push_back(feature.present());
      has_gaps_ = has_gaps_ || !present_.back().all().item<bool>();
    }
    out.d = config_.embedding_size;
    out.mlp_encoder = config_.encoder == "mlp";
    out.mlp_common = config_.common_map == "mlp";
    out.shared_decoder = config_.decoder == "target";
    out.order.contrast = config_.contrast == "mse_rank" ? OrderOptions::Contrast::mse_rank
                         : config_.contrast == "none"   ? OrderOptions::Contrast::none
                                                        : OrderOptions::Contrast::softmax_order;
    out.order.tau = config_.tau;
    out.order.absolute = config_.order_specific == "abs";
    out.order.batch_sum = config_.pair_reduction == "batchsum";
    out.purify = config_.purify;
    out.w_en = config_.w_en;
    out.w_de = config_.w_de;
    return out;
  }

  /// The rows of modality m, prepared, gaps filled. [n_items, D_m]
  torch::Tensor prepared(size_t m) {
    const auto x = preparations_[m](data_.features[m].all());
    return without_gaps(m, x, present_[m], x, 0);
  }

  /// x [n, D_m] of items `first` on, those without modality m filled; `trained` are the prepared
  /// rows of the training's items.
  torch::Tensor without_gaps(size_t m, const torch::Tensor& x, const torch::Tensor& present,
                             const torch::Tensor& trained, int64_t first) const {
    if (present.all().item<bool>()) return x.contiguous();
    const auto there = trained.index_select(0, present_[m].nonzero().squeeze(1));
    torch::Tensor fill = there.size(0) > 0 ? there.mean(0, true) : torch::zeros({1, x.size(1)});
    if (config_.missing == "rand") {  // the published code: a noise image, padding text
      const int64_t last = first + x.size(0);
      fill = names()[m] == "text"
                 ? torch::zeros({1, x.size(1)})
                 : uniform(last, x.size(1), 0, 1, random_.stream("rand." + names()[m]))
                       .narrow(0, first, x.size(0));
    }
    return torch::where(present.unsqueeze(1), x, fill).contiguous();
  }

  // --- tokens of attention -----------------------------------------------------------------
  void name_tokens() {
    if (config_.tokens == "whole") {
      token_names_ = names();
      return;
    }
    for (const char* part : {"_common", "_specific"}) {
      for (const auto& name : names()) token_names_.push_back(name + part);
    }
  }

  /// The tokens that a name stands for, bool [K]: one, a modality's, all common or specific, all.
  torch::Tensor token_row(const std::string& typed) const {
    const std::string wanted = squeezed(typed);
    torch::Tensor row = torch::zeros({n_tokens()}, torch::kBool);
    auto* to = row.mutable_data_ptr<bool>();
    bool found = wanted == "all";
    for (int64_t k = 0; k < n_tokens(); ++k) {
      const std::string& modality = names()[static_cast<size_t>(k % n_modalities())];
      const std::string part = k < n_modalities() ? "common" : "specific";
      to[k] = wanted == "all" || wanted == squeezed(token_names_[static_cast<size_t>(k)]) ||
              wanted == squeezed(modality) || wanted == part;
      found = found || to[k];
    }
    if (!found) {
      throw usage_error("PAMD has no part '{}'{}: it has {}", printable(typed),
                        did_you_mean(typed, token_names_), fmt::join(token_names_, ", "));
    }
    return row;
  }

  torch::Tensor chosen_tokens() const {
    torch::Tensor out = torch::full({n_tokens()}, config_.only_parts.empty(), torch::kBool);
    const bool none = config_.only_parts.size() == 1 && squeezed(config_.only_parts[0]) == "none";
    if (!none) {
      for (const auto& name : config_.only_parts) out = out.logical_or(token_row(name));
    }
    for (const auto& name : config_.without_parts) {
      out = out.logical_and(token_row(name).logical_not());
    }
    return out;
  }

  int64_t n_tokens() const { return static_cast<int64_t>(token_names_.size()); }

  /// x of modality m for those items, gaps filled.
  torch::Tensor rows_of(size_t m, const torch::Tensor& items) {
    const auto& rows = filled_[m].defined() ? filled_[m] : pretraining_rows()[m];
    return rows.index_select(0, items);
  }

  /// Tokens of items, [n, K, d]: c of every modality, then s.
  torch::Tensor tokens(const torch::Tensor& items) {
    std::vector<torch::Tensor> x;
    for (size_t m = 0; m < names().size(); ++m) x.push_back(rows_of(m, items));
    return tokens_of(x);
  }

  /// The same of their rows, gaps filled.
  torch::Tensor tokens_of(const std::vector<torch::Tensor>& x) const {
    std::vector<torch::Tensor> first, second;
    for (size_t m = 0; m < x.size(); ++m) {
      const Parts parts = net_.split(m, x[m]);
      first.push_back(config_.tokens == "whole" ? parts.e : parts.c);
      second.push_back(parts.s);
    }
    if (config_.tokens != "whole") first.insert(first.end(), second.begin(), second.end());
    return torch::stack(first, 1);
  }

  const torch::Tensor& all_tokens() {
    if (!all_tokens_.defined()) {
      const torch::NoGradGuard no_grad;
      all_tokens_ = tokens(torch::arange(data_.n_items, torch::kInt64));
    }
    return all_tokens_;
  }

  /// Which tokens of those items are in the softmax, bool [n, K]; undefined where all are.
  torch::Tensor open(const torch::Tensor& items, const torch::Tensor& tokens) const {
    if (config_.missing != "mask" || !has_gaps_) return open_of({}, items.size(0), tokens);
    std::vector<torch::Tensor> present;
    for (const auto& there : present_) present.push_back(there.index_select(0, items));
    return open_of(present, items.size(0), tokens);
  }

  /// The same of n items with those modalities; `present` empty: all that attention sees.
  torch::Tensor open_of(const std::vector<torch::Tensor>& present, int64_t n,
                        const torch::Tensor& tokens) const {
    if (present.empty() && tokens.all().item<bool>()) return {};
    auto out = tokens.unsqueeze(0).expand({n, n_tokens()});
    if (!present.empty()) {
      std::vector<torch::Tensor> there;
      for (int64_t k = 0; k < n_tokens(); ++k) {
        there.push_back(present[static_cast<size_t>(k % n_modalities())]);
      }
      out = out.logical_and(torch::stack(there, 1));
    }
    return out.contiguous();
  }

  // --- pretraining -------------------------------------------------------------------------
  struct PreItems {
    std::vector<int64_t> train;
    torch::Tensor held;  // int64
  };
  PreItems pretraining_items() const;
  void pretrain_epoch(const std::vector<int64_t>& items);
  Json check(const torch::Tensor& held, const Watch& watch);
  PartNet::Loss net_loss(const torch::Tensor& items);
  void fill_by_decoding();
  Json agreement();
  std::vector<NamedRows> raw_parts(const std::vector<Feature>& features, int64_t n_items,
                                   Json& overlaps);
  std::vector<NamedRows> parts_of(const std::vector<Feature>& features, int64_t n_items,
                                  const std::string& stage);

  const Config config_;
  const torch::Tensor counts_;  // float32 [n_items], train rows
  std::vector<Preparation> preparations_;
  std::vector<torch::Tensor> x_;        // by modality, [n_items, D_m]; made when first read
  std::vector<torch::Tensor> present_;  // by modality, bool [n_items]
  bool has_gaps_ = false;
  PartNet net_;
  std::map<std::string, torch::Tensor*> tensors_;
  std::vector<std::pair<std::string, torch::Tensor*>> pretrained_, tuned_;
  RowTable* users_ = nullptr;
  RowTable* items_ = nullptr;
  std::vector<torch::Tensor> filled_;  // missing = decode: x with decoded rows
  std::vector<std::string> token_names_;
  torch::Tensor attended_, ranked_;  // bool [K]
  torch::Tensor all_tokens_;
  DenseAdam adam_;
  int64_t pre_epoch_ = 0, pre_done_ = 0, misses_ = 0;
  double best_loss_ = 1e300, best_gap_ = -1e300;
  Json checks_ = Json::array();  // one entry a check, and the state before and after
};

/// Items with two modalities or more; max(20, 5 %) of the fully present ones are held out, at most
/// half of them.
Pamd::PreItems Pamd::pretraining_items() const {
  auto n_present = torch::zeros({data_.n_items}, torch::kInt64);
  for (const auto& p : present_) n_present += p.to(torch::kInt64);
  const auto* n = n_present.const_data_ptr<int64_t>();
  std::vector<int64_t> full;
  for (int64_t i = 0; i < data_.n_items; ++i) {
    if (n[i] == n_modalities()) full.push_back(i);
  }
  random_.stream("pretrain.held_out").shuffle(full, 0);
  const auto n_full = static_cast<int64_t>(full.size());
  const int64_t n_held = std::min(n_full / 2, std::max<int64_t>(20, std::llround(0.05 * n_full)));
  full.resize(static_cast<size_t>(n_held));
  std::sort(full.begin(), full.end());
  PreItems out;
  for (int64_t i = 0; i < data_.n_items; ++i) {
    if (n[i] >= 2 && !std::binary_search(full.begin(), full.end(), i)) out.train.push_back(i);
  }
  out.held = torch::tensor(full, torch::kInt64);
  return out;
}

PartNet::Loss Pamd::net_loss(const torch::Tensor& items) {
  std::vector<torch::Tensor> x, present;
  for (size_t m = 0; m < names().size(); ++m) {
    x.push_back(pretraining_rows()[m].index_select(0, items));
    present.push_back(present_[m].index_select(0, items));
    if (present.back().all().item<bool>()) present.back() = torch::Tensor();
  }
  return net_.loss(x, present);
}

void Pamd::pretrain_epoch(const std::vector<int64_t>& items) {
  std::vector<int64_t> order = items;
  random_.stream("pretrain.order").shuffle(order, static_cast<uint64_t>(pre_epoch_));
  AdamOptions rule;
  const double rate = config_.pre_learning_rate;
  rule.learning_rate = [rate](int64_t) { return rate; };
  rule.weight_decay = config_.pre_weight_decay;
  if (rule.weight_decay > 0) rule.decay = AdamOptions::Decay::gradient;
  const auto all = torch::tensor(order, torch::kInt64);
  for (int64_t begin = 0; begin < all.size(0); begin += config_.pre_batch_size) {
    const auto batch = all.slice(0, begin, std::min(all.size(0), begin + config_.pre_batch_size));
    const PartNet::Loss loss = net_loss(batch);
    if (!std::isfinite(loss.total.item<double>())) {
      std::string term = "total";
      for (const auto& [name, value] : loss.terms) {
        if (!std::isfinite(value.item<double>())) term = name;
      }
      throw RunError(Exit::diverged,
                     fmt::format("diverged in epoch {} of pretraining: loss part '{}' is {}; try "
                                 "prep = pca or a smaller pre_learning_rate",
                                 pre_epoch_, term, loss.total.item<double>()));
    }
    if (on_pretraining_step) on_pretraining_step(batch, loss.total.item<double>());
    if (!loss.total.requires_grad()) continue;  // w_en = w_de = 0
    loss.total.backward();
    const torch::NoGradGuard no_grad;
    for (const auto& [name, tensor] : pretrained_) {
      torch::Tensor& gradient = tensor->mutable_grad();
      if (!gradient.defined()) continue;
      adam_.step(name, *tensor, gradient.contiguous(), rule);
      gradient.reset();
    }
  }
}

/// A of a check: matched less unmatched cosine.
double gap_of(const Json& check) {
  return check["matched"].get<double>() - check["unmatched"].get<double>();
}

/// H, A and what else one check logs, on those items.
Json Pamd::check(const torch::Tensor& held, const Watch& watch) {
  const torch::NoGradGuard no_grad;
  const PartNet::Loss loss = net_loss(held);
  std::vector<Parts> parts;
  for (size_t m = 0; m < names().size(); ++m) {
    parts.push_back(net_.split(m, pretraining_rows()[m].index_select(0, held)));
  }
  const int64_t n = held.size(0);
  double matched = 0, unmatched = 0, first = 0, tenth = 0;
  std::vector<double> norms_c, norms_s;
  int64_t n_pairs = 0;
  std::vector<torch::Tensor> all_matched;
  for (size_t a = 0; a < parts.size(); ++a) {
    norms_c.push_back(parts[a].c.norm(2, {1}).mean().item<double>());
    norms_s.push_back(parts[a].s.norm(2, {1}).mean().item<double>());
    if (norms_c.back() < kCollapsed) {
      watch.text.warn("pretraining: the common parts of '{}' collapse, their mean norm is {:.2g}",
                      names()[a], norms_c.back());
    }
    for (size_t b = a + 1; b < parts.size(); ++b, ++n_pairs) {
      const auto table = cosine_table(parts[a].c, parts[b].c).to(torch::kDouble);
      const double diagonal = table.trace().item<double>();
      matched += diagonal / static_cast<double>(n);
      all_matched.push_back(table.diagonal());
      // How many others are nearer to an item of a than its own vector of b.
      const auto nearer = (table > table.diagonal().unsqueeze(1)).sum(1);
      first += (nearer < 1).to(torch::kDouble).mean().item<double>();
      tenth += (nearer < 10).to(torch::kDouble).mean().item<double>();
      unmatched += (table.sum().item<double>() - diagonal) /
                   static_cast<double>(std::max<int64_t>(1, n * (n - 1)));
    }
  }
  matched /= static_cast<double>(n_pairs);
  unmatched /= static_cast<double>(n_pairs);
  Json out = {{"epoch", pre_epoch_}, {"loss", {{"total", loss.total.item<double>()}}}};
  for (const auto& [name, value] : loss.terms) out["loss"][name] = value.item<double>();
  out["l"] = Json::object();
  for (const auto& [name, value] : loss.directions) out["l"][name] = value;
  out["p_c"] = loss.p_c;
  out["p_0"] = loss.p_0;
  out["p_s"] = loss.p_s;
  out["ordered"] = loss.ordered;
  out["matched"] = matched;
  out["unmatched"] = unmatched;
  const auto spread =
      torch::quantile(torch::cat(all_matched), torch::tensor({.05, .5, .95}, torch::kDouble));
  out["matched_5_50_95"] = {spread[0].item<double>(), spread[1].item<double>(),
                            spread[2].item<double>()};
  out["hit@1"] = first / static_cast<double>(n_pairs);
  out["hit@10"] = tenth / static_cast<double>(n_pairs);
  out["n_held_out"] = n;
  for (const auto& [name, norms] : {std::pair("norm_c", &norms_c), std::pair("norm_s", &norms_s)}) {
    double sum = 0;
    for (const double norm : *norms) sum += norm;
    out[name] = sum / static_cast<double>(norms->size());
    for (size_t m = 0; m < norms->size(); ++m) {
      out[name + std::string("_of")][names()[m]] = (*norms)[m];
    }
  }
  return out;
}

/// All terms of a check as one line for people.
std::string words_of(const Json& check) {
  std::string out = fmt::format("held-out loss: {:.4f}", check["loss"]["total"].get<double>());
  const auto add = [&out](const std::string& name, const Json& value) {
    out += fmt::format(", {}: {:.4f}", name, value.get<double>());
  };
  for (const auto& [name, value] : check["loss"].items()) {
    if (name != "total") add(name, value);
  }
  for (const auto& [name, value] : check["l"].items()) add("l " + name, value);
  for (const char* name : {"p_c", "p_0", "p_s"}) add(name, check[name]);
  add("in order", check["ordered"]);
  out += fmt::format(", A: {:.4f} (matched {:.4f}, unmatched {:.4f})", gap_of(check),
                     check["matched"].get<double>(), check["unmatched"].get<double>());
  for (const char* name : {"norm_c", "norm_s"}) {
    for (const auto& [modality, norm] : check[name + std::string("_of")].items()) {
      add(fmt::format("{} {}", name, modality), norm);
    }
  }
  return out;
}

/// Sections 3 and 5. Ends early when asked to stop; a later call goes on.
void Pamd::fit(const Watch& watch) {
  if (pre_done_ != 0) return;
  const PreItems items = pretraining_items();
  const bool fixed = config_.pre_epochs >= 0;
  const int64_t n_epochs = fixed ? config_.pre_epochs : kMaxEpochs;
  const auto all_train = torch::tensor(items.train, torch::kInt64);
  const bool enough = items.held.size(0) >= 2;
  const torch::Tensor held = enough ? items.held : all_train;
  if (items.train.empty() && n_epochs > 0) {
    watch.text.warn("pretraining: no item has two modalities, so nothing is pretrained");
  }
  const bool idle = items.train.empty() || held.size(0) < 2;
  auto saved = Clock::now();
  double seconds = 0;  // of the epochs since the last check
  const Progress bar = watch.progress("pretraining", n_epochs);
  const auto note = [&](const Json& line) {
    Json event = {{"event", "pretraining"}, {"time_s", seconds}};
    event.update(line);
    seconds = 0;
    watch.log(event);
    watch.text.info("pretraining epoch {} [{}]", pre_epoch_, words_of(line));
    checks_.push_back(line);
  };
  if (!idle && pre_epoch_ == 0 && checks_.empty()) note(check(held, watch));
  while (!idle && pre_epoch_ < n_epochs) {
    if (watch.stop_requested()) {
      watch.checkpoint();
      return;
    }
    const auto start = Clock::now();
    pretrain_epoch(items.train);
    seconds += std::chrono::duration<double>(Clock::now() - start).count();
    ++pre_epoch_;
    bar.advance(1);
    if (pre_epoch_ % kCheckEvery == 0) {
      const Json line = check(held, watch);
      note(line);
      const double loss = line["loss"]["total"].get<double>();
      const double gap = gap_of(line);
      const bool lower = loss < best_loss_ - 1e-3 * std::abs(best_loss_);
      const bool wider = gap > best_gap_ + 0.01;
      if (lower) best_loss_ = loss;
      if (wider) best_gap_ = gap;
      misses_ = lower || wider ? 0 : misses_ + 1;
      if (!fixed && misses_ >= kChecks && pre_epoch_ >= kMinEpochs) break;
    }
    if (Clock::now() - saved > std::chrono::seconds(30)) {
      watch.checkpoint();
      saved = Clock::now();
    }
  }
  // What exports and reports call "after pretraining".
  if (!idle && checks_.back()["epoch"] != pre_epoch_) note(check(held, watch));
  bar.advance(n_epochs - pre_epoch_);
  pre_done_ = 1;
  adam_.moments().clear();
  if (config_.missing == "decode") fill_by_decoding();
  forget();
}

/// x^m of an item without m: the mean over its modalities a of D_am(c^a).
void Pamd::fill_by_decoding() {
  const torch::NoGradGuard no_grad;
  const auto& x = pretraining_rows();
  std::vector<torch::Tensor> common;
  for (size_t m = 0; m < names().size(); ++m) common.push_back(net_.split(m, x[m]).c);
  for (size_t m = 0; m < names().size(); ++m) {
    auto sum = torch::zeros_like(x[m]);
    auto n = torch::zeros({data_.n_items, 1});
    for (size_t a = 0; a < names().size(); ++a) {
      if (a == m) continue;
      const auto there = present_[a].to(torch::kFloat).unsqueeze(1);
      sum += there * net_.decode(a, m, common[a]);
      n += there;
    }
    const auto gone = present_[m].logical_not().unsqueeze(1).logical_and(n > 0);
    filled_[m] = torch::where(gone, sum / n.clamp_min(1), x[m]).contiguous();
  }
}

/// Common and specific parts of items by name, those that have any; `overlap`s by modality.
std::vector<NamedRows> Pamd::raw_parts(const std::vector<Feature>& features, int64_t n_items,
                                       Json& overlaps) {
  std::vector<NamedRows> out(1);
  std::vector<torch::Tensor> common, present;
  for (size_t m = 0; m < names().size(); ++m) {
    const auto place = std::find_if(features.begin(), features.end(),
                                    [&](const Feature& f) { return f.name == names()[m]; });
    if (place == features.end()) continue;
    if (place->width() != data_.features[m].width()) {
      throw data_error("modality '{}' is {} wide, PAMD was trained with {}", place->name,
                       place->width(), data_.features[m].width());
    }
    const auto there = place->present();
    const auto items = there.nonzero().squeeze(1);
    if (items.size(0) == 0) continue;
    const Parts parts = net_.split(m, preparations_[m](place->gather(items)));
    present.push_back(there);
    common.push_back(
        torch::zeros({n_items, config_.embedding_size}).index_copy_(0, items, parts.c));
    overlaps[names()[m]] =
        items.size(0) >= 8 ? Json(overlap(parts.c, parts.s).item<double>()) : Json();
    out.push_back({names()[m] + "_specific", parts.s, items, Json::object()});
  }
  if (out.size() == 1) {
    throw data_error("no item has one of the modalities {}", fmt::join(names(), ", "));
  }
  auto any = present[0];
  for (const auto& there : present) any = any.logical_or(there);
  const auto items = any.nonzero().squeeze(1);
  out[0] = {"common", mean_common(common, present).index_select(0, items), items, Json::object()};
  return out;
}

/// Section 6; `stage` says whether the encoders have seen interactions. zscore takes mean and
/// spread of the items that PAMD was trained on, whichever items are asked for.
std::vector<NamedRows> Pamd::parts_of(const std::vector<Feature>& features, int64_t n_items,
                                      const std::string& stage) {
  const torch::NoGradGuard no_grad;
  Json overlaps = Json::object(), unused = Json::object();
  std::vector<NamedRows> out = raw_parts(features, n_items, overlaps), catalogue;
  if (config_.export_norm == "zscore") {
    catalogue =
        &features == &data_.features ? out : raw_parts(data_.features, data_.n_items, unused);
  }
  const Json last = checks_.empty() ? Json::object() : checks_.back();
  for (auto& part : out) {
    if (config_.export_norm == "l2") {
      part.rows = part.rows / part.rows.square().sum(1, true).sqrt().clamp_min(1e-12);
    }
    for (const auto& all : catalogue) {
      if (all.modality != part.modality) continue;
      const auto spread = all.rows.std(0, /*unbiased=*/false);
      const auto scaled = (part.rows - all.rows.mean(0)) / spread.clamp_min(1e-6);
      part.rows = torch::where(spread >= 1e-6, scaled, torch::zeros_like(scaled));
    }
    part.rows = part.rows.contiguous();
    part.card = {{"name", "PAMD"},
                 {"part", part.modality},
                 {"stage", stage},
                 {"norm", config_.export_norm},
                 {"uses_interactions", stage == "finetuned"},
                 {"pretraining_epochs", pre_epoch_},
                 {"matched", last.value("matched", Json())},
                 {"unmatched", last.value("unmatched", Json())},
                 {"overlap", overlaps}};
  }
  return out;
}

// --- items that came after training ----------------------------------------------------------

/// What attention sees of an item without train rows that has these features.
std::shared_ptr<const Scorer> Pamd::with_items(const Scorer& scorer,
                                               const std::vector<Feature>& features, int64_t n) {
  const torch::NoGradGuard no_grad;
  auto rows = rows_of_new_items(data_, features, n, "zero");
  std::vector<torch::Tensor> present;
  for (size_t m = 0; m < rows.size(); ++m) {
    present.push_back(present_in(features, names()[m], n));
    if (config_.missing == "decode" && !present[m].all().item<bool>()) {
      throw usage_error(
          "PAMD.missing = decode: decoders end with the pretraining, so a new item needs every "
          "modality, and {} of {} lack '{}'",
          n - present[m].sum().item<int64_t>(), n, names()[m]);
    }
    rows[m] = without_gaps(m, preparations_[m](rows[m]), present[m], pretraining_rows()[m],
                           scorer.n_items());
  }
  if (config_.missing != "mask") present.clear();
  return dynamic_cast<const PartScorer&>(scorer).with_items(
      {{},
       torch::zeros({n, config_.embedding_size}),
       tokens_of(rows),
       open_of(present, n, ranked_)});
}

// --- what there is to tell (section 10) ------------------------------------------------------

/// Checks before and after pretraining, and as it stands.
Json Pamd::agreement() {
  Json out = Json::object();
  if (!checks_.empty()) out["before"] = checks_.front();
  if (!checks_.empty() && pre_epoch_ > 0) out["after"] = checks_.back();
  const auto held = pretraining_items().held;
  if (held.size(0) >= 2) out["now"] = check(held, {});
  return out;
}

Json Pamd::report(const Interactions& held) {
  const torch::NoGradGuard no_grad;
  const ItemParts parts{names(), token_names_, part_factors(), present_};
  Json out = {{"model", "PAMD"}};
  if (parts.divided() && ranked_.any().item<bool>()) {
    out["attention"] = attention_facts(parts, data_, held, random_);
  }
  if (parts.divided()) out["overlap"] = overlap_facts(parts);
  out["agreement"] = agreement();
  out["picture"] = picture_facts(parts, data_, random_);
  out["neighbours"] = neighbour_facts(parts, data_, random_);
  return out;
}

const RegisterModel<Pamd> registered{"PAMD", "PAMD, Han et al. 2022"};

}  // namespace
}  // namespace tessera
