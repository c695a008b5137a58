#include "tessera/train/train.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/resumable.h"
#include "tessera/model/offers.h"
#include "tessera/model/sampler.h"
#include "tessera/ops/device.h"
#include "tessera/ops/process.h"
#include "tessera/train/checkpoint.h"
#include "tessera/train/metrics_log.h"
#include "tessera/train/results.h"
#include "tessera/train/test_curve.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The share of the time that checkpoints may take, and how old one may get in a long hook.
constexpr double kCheckpointShare = 0.05, kHookSeconds = 60;

std::string metrics_line(const MetricValues& metrics) {
  std::string out;
  for (const auto& [name, value] : metrics) {
    out += fmt::format("{}{}: {:.4f}", out.empty() ? "" : "    ", name, value);
  }
  return out;
}

constexpr int64_t kLookEvery = 64;  // steps between looks at sums that lie on a device

/// Sums of an epoch's losses in double, where the losses lie; parts by name, in the order in which
/// names first came, a step without a part adding nothing to it.
class LossSums {
 public:
  void add(const Loss& loss) {
    total_.add(loss.total);
    for (size_t p = 0; p < loss.parts.size(); ++p) {
      const auto& [name, value] = loss.parts[p];
      // Nearly always where it was at the step before.
      auto at = p < parts_.size() && parts_[p].first == name
                    ? parts_.begin() + static_cast<std::ptrdiff_t>(p)
                    : std::find_if(
                          parts_.begin(), parts_.end(),
                          [&](const auto& part) { return part.first == name; });
      if (at == parts_.end()) at = parts_.insert(at, {name, Sum()});
      at->second.add(value);
    }
  }
  double total() const { return total_.value(); }
  std::vector<std::pair<std::string, double>> parts() const {
    std::vector<std::pair<std::string, double>> out;
    for (const auto& [name, sum] : parts_) out.emplace_back(name, sum.value());
    return out;
  }

 private:
  class Sum {
   public:
    void add(const torch::Tensor& x) {
      if (x.is_cpu()) {
        here_ += x.item<double>();
      } else {
        const auto wide = x.detach().to(torch::kFloat64);
        there_ = there_.defined() ? there_ + wide : wide;
      }
    }
    double value() const { return here_ + (there_.defined() ? there_.item<double>() : 0); }

   private:
    double here_ = 0;
    torch::Tensor there_;
  };

  Sum total_;
  std::vector<std::pair<std::string, Sum>> parts_;
};

/// One training: the state that hooks, steps and checkpoints share.
class Training {
 public:
  Training(Model& model, const Dataset& data, const TrainConfig& config)
      : model_(model),
        data_(data),
        config_(config),
        settings_(config.settings),
        metric_(selecting_metric(config.settings, config.protocol, data.n_items)),
        options_(eval_options(config.settings, config.protocol)),
        stopping_(config.protocol, config.settings.stopping_step >= 0
                                       ? config.settings.stopping_step
                                       : config.protocol.patience) {
    if (options_.metrics.empty()) {
      // With K in their names: "map" and "mrr" alone mean the whole list.
      for (const auto& name : default_metrics()) {
        for (const int64_t k : cut_topk(options_, data.n_items)) {
          options_.metrics.push_back(fmt::format("{}@{}", name, k));
        }
      }
    }
    asked_ = options_.metrics;
    options_.metrics.push_back(metric_);
    watch_.log = [this](const Json& line) { append_line("metrics.jsonl", line); };
    watch_.progress = config.progress;
    watch_.stop_requested = [this] { return stopping_asked_ = config_.stop_requested(); };
    watch_.checkpoint = [this] {
      hook_checkpoint_ = true;
      if (affordable() || seconds_since(written_) >= kHookSeconds || stopping_asked_) {
        write_last();
      }
    };
    watch_.text = config.log;
    own_ = model.offers().step;
    max_epochs_ = config.protocol.epochs;
    if (settings_.epochs.chosen()) max_epochs_ = settings_.epochs;
    test_looks_ = config.test_looks;
  }

  TrainResult run() {
    if (config_.resume) resume();
    spent_before_ = train_s_ + eval_s_;
    has_valid_ = has_rows(data_, Split::valid);
    if (!prepared_) {
      const auto start = Clock::now();
      model_.prepare(watch_);
      throw_if_stopped();
      train_s_ += seconds_since(start) - checkpoint_s_;
      prepared_ = 1;
      write_last();
    }
    if (model_.trainable()) {
      epochs();
    } else if (epoch_ == 0) {
      closed_form();
    }
    return finish();
  }

 private:
  // --- state -------------------------------------------------------------------------------
  State trainer_state() {
    State state;
    model_.state(state);
    state.add("trainer.adam", adam_, Role::training);
    state.add("trainer.epoch", epoch_, Role::training);
    state.add("trainer.step", step_, Role::training);
    state.add("trainer.prepared", prepared_, Role::training);
    state.add("trainer.best_epoch", stopping_.best_epoch_, Role::training);
    state.add("trainer.best", stopping_.best_, Role::training);
    state.add("trainer.best_score", stopping_.best_score_, Role::training);
    state.add("trainer.misses", stopping_.misses_, Role::training);
    state.add("trainer.train_s", train_s_, Role::training);
    state.add("trainer.eval_s", eval_s_, Role::training);
    state.add("trainer.test_looks", test_looks_, Role::training);
    state.add("trainer.epoch_done", epoch_done_, Role::training);
    state.add("trainer.metrics_lines", metrics_lines_, Role::training);
    state.add("trainer.curve_lines", curve_lines_, Role::training);
    return state;
  }

  fs::path checkpoints() const { return config_.folder / "checkpoints"; }
  fs::path best_weights() const { return checkpoints() / "best" / "weights.safetensors"; }

  /// Whether one more `last` keeps them within their share of the time. The first always is.
  bool affordable() const {
    return last_s_ + latest_s_ <= kCheckpointShare * seconds_since(started_);
  }

  bool checkpoint_due() const {
    return settings_.checkpoint > 0 ? epoch_ % settings_.checkpoint == 0 : affordable();
  }

  void write_last() {
    if (config_.folder.empty()) return;
    const auto start = Clock::now();
    metrics_lines_ = lines_of("metrics.jsonl");
    curve_lines_ = lines_of("test_curve.jsonl");
    write_checkpoint(checkpoints() / "last", trainer_state().save(), [&](const fs::path& to) {
      // The best weights as of this checkpoint: best/ may move on before the next one.
      std::error_code error;
      if (stopping_.best_epoch() < 0 || !fs::exists(best_weights())) return;
      fs::create_hard_link(best_weights(), to / "best.safetensors", error);
      if (error) fs::copy_file(best_weights(), to / "best.safetensors");
    });
    has_checkpoint_ = true;
    written_ = Clock::now();
    latest_s_ = seconds_since(start);
    last_s_ += latest_s_;
    checkpoint_s_ += latest_s_;
  }

  void write_best() {
    State state;
    model_.state(state);
    State::Saved saved = state.save(true);
    if (config_.folder.empty()) {
      for (auto& [name, tensor] : saved.weights) tensor = tensor.clone();
      best_in_memory_ = std::move(saved);
      return;
    }
    saved.values["epoch"] = stopping_.best_epoch();
    saved.values["score"] = stopping_.best_score();
    const auto start = Clock::now();
    write_checkpoint(checkpoints() / "best", saved);
    checkpoint_s_ += seconds_since(start);
  }

  void load_best() {
    if (stopping_.best_epoch() < 0) return;
    State state;
    model_.state(state);
    state.load(config_.folder.empty() ? best_in_memory_ : read_checkpoint(checkpoints() / "best"),
               true);
  }

  void resume() {
    const fs::path last = checkpoints() / "last";
    if (!folder_exists(last) || !fs::exists(last / "state.json")) {
      config_.log.info("no checkpoint yet: starting again from epoch 0");
      cut("metrics.jsonl", 1);  // what the run is, written before the training
      cut("test_curve.jsonl", 0);
      return;
    }
    configure();  // tables need their rule before they can replay
    trainer_state().load(read_checkpoint(last));
    check_counters();
    cut("metrics.jsonl", metrics_lines_);
    cut("test_curve.jsonl", curve_lines_);
    // Looks since the checkpoint: at the run's end, and by later evaluations.
    test_looks_ = std::max(test_looks_, config_.test_looks);
    has_checkpoint_ = true;
    if (stopping_.best_epoch() >= 0 && fs::exists(last / "best.safetensors")) {
      State::Saved best = read_checkpoint(checkpoints() / "best");
      if (best.values["epoch"] != stopping_.best_epoch()) {
        best.weights = read_safetensors(last / "best.safetensors");
        best.values["epoch"] = stopping_.best_epoch();
        best.values["score"] = stopping_.best_score();
        write_checkpoint(checkpoints() / "best", best);
      }
    }
    config_.log.info("resuming after epoch {}", epoch_ - 1);
  }

  /// A checkpoint's counters are indices and sizes here.
  void check_counters() const {
    const auto whole = [](const Json& of, const char* name) {
      return of.contains(name) && of[name].is_number_unsigned() &&
             of[name].get<uint64_t>() <= std::numeric_limits<int64_t>::max();
    };
    bool good = epoch_ >= 0 && step_ >= 0 && stopping_.best_epoch_ <= epoch_ &&
                metrics_lines_ >= 0 && curve_lines_ >= 0;
    if (!epoch_done_.is_null()) {
      good = good && epoch_done_.is_object() && whole(epoch_done_, "steps") &&
             whole(epoch_done_, "examples") && epoch_done_.contains("total") &&
             epoch_done_["total"].is_number() && epoch_done_.contains("parts") &&
             epoch_done_["parts"].is_object();
      for (const auto& part : good ? epoch_done_["parts"] : Json::array()) {
        good = good && part.is_number();
      }
    }
    if (!good) {
      throw data_error("{}: its counters are damaged",
                       (checkpoints() / "last" / "state.json").string());
    }
  }

  // --- files -------------------------------------------------------------------------------
  // Lines, not bytes: the times in them differ between runs that are otherwise equal.
  int64_t lines_of(const char* name) const {
    std::ifstream in(config_.folder / name);
    return std::count(std::istreambuf_iterator<char>(in), {}, '\n');
  }

  void cut(const char* name, int64_t lines) const {
    const fs::path path = config_.folder / name;
    if (!fs::exists(path)) return;
    std::string text = read_file(path);
    size_t end = 0;
    for (int64_t i = 0; i < lines && end < text.size(); ++i) {
      end = std::min(text.find('\n', end), text.size() - 1) + 1;
    }
    if (end < text.size()) fs::resize_file(path, end);
  }

  void append_line(const char* name, const Json& line) const {
    if (config_.folder.empty()) return;
    std::ofstream out(config_.folder / name, std::ios::app);
    out << line.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
    out.flush();
    if (!out) {
      throw ResumableError(Exit::failed,
                           fmt::format("cannot write {}: disk full or not writable",
                                       (config_.folder / name).string()),
                           config_.folder.string());
    }
  }

  // --- optimiser ---------------------------------------------------------------------------
  AdamOptions options_of(const ParameterGroup& group) const {
    AdamOptions options;
    // Tables are configured anew every epoch, so a row's pending steps are all of one epoch.
    const double factor = settings_.rate_factor(epoch_);
    options.learning_rate = [of = group.learning_rate, constant = settings_.learning_rate,
                             factor](int64_t step) { return (of ? of(step) : constant) * factor; };
    options.beta1 = group.beta1;
    options.beta2 = group.beta2;
    options.eps = group.eps;
    options.weight_decay = group.weight_decay;
    options.decay = group.decay;
    return options;
  }

  void configure() {
    groups_ = model_.parameter_groups();
    for (const auto& group : groups_) {
      for (const auto& [name, table] : group.tables) table->configure(options_of(group));
    }
  }

  void optimise() {
    clip();
    for (const auto& group : groups_) {
      const AdamOptions options = options_of(group);
      for (const auto& [name, tensor] : group.tensors) {
        torch::Tensor& gradient = tensor->mutable_grad();
        if (!gradient.defined()) continue;
        const torch::NoGradGuard no_grad;
        adam_.step(name, *tensor, gradient.contiguous(), options);
        gradient.reset();
      }
      for (const auto& [name, table] : group.tables) table->step();
    }
  }

  void clip() {
    if (settings_.clip_grad_norm <= 0) return;
    std::vector<torch::Tensor> gradients;
    for (const auto& group : groups_) {
      for (const auto& [name, tensor] : group.tensors) gradients.push_back(tensor->grad());
      for (const auto& [name, table] : group.tables) gradients.push_back(table->gradient());
    }
    if (!settings_.on().is_cpu()) {
      auto squares = torch::zeros({}, torch::TensorOptions(settings_.on()).dtype(torch::kFloat64));
      for (const auto& g : gradients) {
        if (g.defined()) squares = squares + g.square().sum(torch::kFloat64);
      }
      const auto scale = (settings_.clip_grad_norm / (squares.sqrt() + 1e-6)).clamp_max(1);
      for (auto& g : gradients) {
        if (g.defined()) g.mul_(scale.to(g.scalar_type()));
      }
      return;
    }
    double squares = 0;
    for (const auto& g : gradients) {
      if (g.defined()) squares += g.square().sum(torch::kFloat64).item<double>();
    }
    const double scale = settings_.clip_grad_norm / (std::sqrt(squares) + 1e-6);
    if (scale >= 1) return;
    for (auto& g : gradients) {
      if (g.defined()) g.mul_(scale);
    }
  }

  // --- epochs ------------------------------------------------------------------------------
  bool time_is_up() const {
    return settings_.time_limit > 0 &&
           spent_before_ + seconds_since(started_) >= settings_.time_limit * 60;
  }

  void throw_if_stopped() const {
    if (!config_.stop_requested()) return;
    if (has_checkpoint_) {
      throw ResumableError(Exit::interrupted, "interrupted", config_.folder.string());
    }
    throw RunError(Exit::interrupted_without_checkpoint,
                   "interrupted before the first checkpoint; nothing to resume");
  }

  void epochs() {
    Sampler sampler(data_.view(), model_.batch_spec(), settings_.train_batch_size,
                    Random(settings_.seed));
    if (sampler.n_left_out() > 0) {
      config_.log.warn("{} train rows left out: their user has no negative", sampler.n_left_out());
    }
    while (epoch_ < max_epochs_ && !(has_valid_ && stopping_.stop()) && !timed_out_) {
      one_epoch(sampler);
    }
    stopped_by_ = timed_out_                       ? "time_limit"
                  : has_valid_ && stopping_.stop() ? "patience"
                                                   : "epochs";
    if (timed_out_) {
      config_.log.info("time limit of {:g} minutes reached in epoch {}", settings_.time_limit,
                       epoch_ - 1);
    }
  }

  void one_epoch(Sampler& sampler) {
    const auto start = Clock::now();
    const double checkpoint_s = checkpoint_s_;
    model_.train(true);
    if (epoch_done_.is_null()) {
      model_.begin_epoch(epoch_, watch_);
      configure();
      steps(sampler);
    } else {
      configure();  // a checkpoint that end_epoch wrote: the steps are behind it
    }
    const Json done = epoch_done_;
    hook_checkpoint_ = false;
    model_.end_epoch(epoch_, watch_);
    if (hook_checkpoint_) throw_if_stopped();
    epoch_done_ = nullptr;
    // Steps that rows have pending are this epoch's work, not that of whoever reads them next.
    for (const auto& group : model_.parameter_groups()) {
      for (const auto& [name, table] : group.tables) table->catch_up();
    }
    const double time_s = seconds_since(start) - (checkpoint_s_ - checkpoint_s);
    train_s_ += time_s;
    epoch_s_.push_back(time_s);
    const auto n = done["steps"].get<int64_t>();
    std::vector<std::pair<std::string, double>> sums;
    for (const auto& [name, sum] : done["parts"].items())
      sums.emplace_back(name, sum.get<double>());
    const double mean = n > 0 ? done["total"].get<double>() / static_cast<double>(n) : 0;
    log_epoch(time_s, mean, sums, n, done["examples"].get<int64_t>());
    model_.train(false);
    const bool last = epoch_ + 1 == max_epochs_ || timed_out_;
    // Without a step there is nothing new to rank, but a result must have a best epoch.
    const bool worth = n > 0 || stopping_.best_epoch() < 0;
    if (has_valid_ && ((epoch_ + 1) % settings_.eval_step == 0 || last) && worth) validate();
    if (settings_.test_curve && has_rows(data_, Split::test)) test_curve();
    ++epoch_;
    const bool ends = last || (has_valid_ && stopping_.stop());
    if (ends || checkpoint_due() || config_.stop_requested()) write_last();
    config_.on_epoch(epoch_ - 1);
  }

  /// The epoch's steps; their sums go to epoch_done_, for the log and for checkpoints that
  /// end_epoch writes.
  void steps(Sampler& sampler) {
    sampler.begin_epoch(epoch_);
    LossSums sums;
    int64_t n = 0, n_examples = 0;
    const Progress bar = config_.progress(fmt::format("epoch {}", epoch_), sampler.n_batches());
    for (int64_t index = 0; index < sampler.n_batches(); ++index) {
      throw_if_stopped();
      if (time_is_up()) {
        timed_out_ = true;
        break;
      }
      const Batch batch = sampler.batch(index, ++step_);
      model_.before_step(batch);
      const Batch there = batch.to(settings_.on());
      Loss loss = own_ ? own_->step(there) : model_.loss(there);
      // In main memory a look costs nothing; elsewhere it waits for all that was asked of the
      // device.
      sums.add(loss);
      if (loss.total.is_cpu() || index % kLookEvery == kLookEvery - 1) check_finite(sums);
      if (!own_) {
        loss.total.backward();
        optimise();
      }
      ++n;
      n_examples += batch.size();
      bar.advance(1);
    }
    check_finite(sums);
    epoch_done_ = {{"total", sums.total()}, {"steps", n}, {"examples", n_examples}};
    epoch_done_["parts"] = Json::object();
    for (const auto& [name, sum] : sums.parts()) epoch_done_["parts"][name] = sum;
  }

  /// A sum is finite as long as all that went into it is.
  void check_finite(const LossSums& sums) const {
    if (std::isfinite(sums.total())) return;
    std::string part = "total";
    for (const auto& [name, sum] : sums.parts()) {
      if (!std::isfinite(sum)) {
        part = name;
        break;
      }
    }
    throw RunError(Exit::diverged,
                   fmt::format("diverged in epoch {}: loss part '{}' is {}; try a smaller "
                               "learning_rate",
                               epoch_, part, sums.total()));
  }

  void log_epoch(double time_s, double mean,
                 const std::vector<std::pair<std::string, double>>& sums, int64_t n,
                 int64_t n_examples) const {
    const double divisor = n > 0 ? static_cast<double>(n) : 1;
    std::string parts;
    TrainLine line;
    line.losses = {{"total", mean}};
    for (const auto& [name, sum] : sums) {
      if (sums.size() > 1) parts += fmt::format(", {}: {:.4f}", name, sum / divisor);
      line.losses.emplace_back(name, sum / divisor);
    }
    config_.log.info("epoch {} training [time: {:.2f}s, train loss: {:.4f}{}]", epoch_, time_s,
                     mean, parts);
    line.epoch = epoch_;
    line.learning_rate = groups_.empty() ? 0.0 : options_of(groups_[0]).learning_rate(step_);
    line.time_s = time_s;
    line.samples_per_s = static_cast<double>(n_examples) / std::max(time_s, 1e-9);
    line.rss_mb = resident_mb();
    append_line("metrics.jsonl", line_json(line));
  }

  void validate() {
    const Evaluation result = [&] {
      try {
        return evaluate(model_, data_, config_.protocol, Split::valid, options_);
      } catch (const RunError& e) {
        if (e.code() != Exit::diverged) throw;
        throw RunError(Exit::diverged,
                       fmt::format("diverged in epoch {}: ranking after it: {}; try a smaller "
                                   "learning_rate",
                                   epoch_, e.what()));
      }
    }();
    eval_s_ += result.time_s;
    const double score = result.value(metric_);
    if (!std::isfinite(score)) {
      throw RunError(Exit::failed, fmt::format("epoch {}: valid {} is not a number: nothing can "
                                               "be selected by it",
                                               epoch_, metric_));
    }
    const bool best = stopping_.add(epoch_, score);
    config_.log.info("epoch {} evaluating [time: {:.2f}s, valid_score: {:.6f}]", epoch_,
                     result.time_s, score);
    config_.log.info("valid result:");
    config_.log.info("{}", metrics_line(result.metrics));
    append_line("metrics.jsonl", line_json(ValidLine{epoch_, result.metrics, score, best,
                                                     stopping_.misses(), result.time_s}));
    if (best) write_best();
  }

  void test_curve() {
    const Evaluation result = evaluate(model_, data_, config_.protocol, Split::test, options_);
    ++test_looks_;
    Json line = {{"label", "diagnostic: never selects"}, {"epoch", epoch_}};
    line.update(metrics_json(result.metrics));
    append_line("test_curve.jsonl", line);
  }

  /// A fixed run's curve as the released log would have it: a last line of the curve's own file.
  void summarise_curve() const {
    std::vector<Json> lines;
    std::ifstream in(config_.folder / "test_curve.jsonl");
    for (std::string line; std::getline(in, line);) {
      lines.push_back(Json::parse(line, nullptr, false));
    }
    const Json summary = released_summary(lines);
    append_line("test_curve.jsonl", summary);
    config_.log.info("best epochs on test, a diagnostic (kdsr section 8): {}",
                     summary["best"].dump());
  }

  void closed_form() {
    model_.train(false);
    if (has_valid_) {
      validate();
    } else {
      write_best();
    }
    epoch_ = 1;
    stopped_by_ = "closed form";
    write_last();
  }

  TrainResult finish() {
    model_.train(false);
    if (!has_valid_ && model_.trainable()) {
      stopping_.best_epoch_ = epoch_ - 1;
      write_best();
    }
    load_best();
    model_.train(false);
    if (settings_.test_curve && config_.protocol.every_position && !config_.folder.empty()) {
      summarise_curve();
    }
    TrainResult out;
    out.best_epoch = has_valid_ || model_.trainable() ? stopping_.best_epoch() : 0;
    out.n_epochs = epoch_;
    out.n_steps = step_;
    out.stopped_by = stopped_by_.empty() ? "closed form" : stopped_by_;
    out.best_score = stopping_.best_score();
    out.valid_metric = metric_;
    EvalOptions full = options_;
    full.metrics = asked_;
    full.slices = true;
    full.per_user = true;
    if (has_valid_) {
      out.valid = evaluate(model_, data_, config_.protocol, Split::valid, full);
      config_.log.info("best valid result:");
      config_.log.info("{}", metrics_line(out.valid->metrics));
    }
    if (has_rows(data_, Split::test)) {
      out.test = evaluate(model_, data_, config_.protocol, Split::test, full);
      ++test_looks_;
      config_.log.info("test result:");
      config_.log.info("{}", metrics_line(out.test->metrics));
      eval_s_ += out.test->time_s;
    }
    out.test_looks = test_looks_;
    out.train_s = train_s_;
    out.eval_s = eval_s_;
    out.epoch_s = epoch_s_;
    out.checkpoint_s = checkpoint_s_;
    config_.log.info("finished training, best epoch {}", out.best_epoch);
    return out;
  }

  Model& model_;
  OwnStep* own_ = nullptr;  // the model, where it takes its steps itself
  const Dataset& data_;
  const TrainConfig& config_;
  const TrainSettings& settings_;
  const std::string metric_;
  EvalOptions options_;             ///< with the metric that selects
  std::vector<std::string> asked_;  ///< metrics of the result
  EarlyStopping stopping_;
  Watch watch_;
  DenseAdam adam_;
  std::vector<ParameterGroup> groups_;
  State::Saved best_in_memory_;
  std::vector<double> epoch_s_;
  std::string stopped_by_;
  int64_t max_epochs_ = 0, epoch_ = 0, step_ = 0, prepared_ = 0, test_looks_ = 0;
  int64_t metrics_lines_ = 0, curve_lines_ = 0;
  double train_s_ = 0, eval_s_ = 0, spent_before_ = 0;   // the last: by runs that this one resumes
  double checkpoint_s_ = 0, last_s_ = 0, latest_s_ = 0;  // on all, on `last`, on the latest of them
  Json epoch_done_;  ///< sums of the epoch's steps while end_epoch has not ended, else null
  bool stopping_asked_ = false;  ///< by a hook, which was told to stop
  bool has_valid_ = false, has_checkpoint_ = false, timed_out_ = false, hook_checkpoint_ = false;
  const Clock::time_point started_ = Clock::now();
  Clock::time_point written_ = started_;  ///< of `last`
};

}  // namespace

std::string selecting_metric(const TrainSettings& settings, const Protocol& protocol,
                             int64_t n_items) {
  if (!settings.valid_metric.empty()) {
    const Metric metric = parse_metric(settings.valid_metric);
    using Kind = Metric::Kind;
    const bool alone =
        metric.kind == Kind::auc || metric.kind == Kind::mrr || metric.kind == Kind::map;
    if (metric.k == 0 && !alone) {
      throw usage_error("valid_metric '{}' needs a K, like {}@20", printable(settings.valid_metric),
                        metric.name());
    }
    if (!metric.higher_is_better()) {
      throw usage_error(
          "valid_metric '{}' cannot select: more of it is not better; choose one like recall@20",
          printable(settings.valid_metric));
    }
    return metric.name();
  }
  const std::string name = canonical_metric(protocol.valid_metric);
  const size_t at = name.find('@');
  const int64_t k = at == std::string::npos ? 0 : std::stoll(name.substr(at + 1));
  return k > n_items ? fmt::format("{}@{}", name.substr(0, at), n_items) : name;
}

EvalOptions eval_options(const TrainSettings& settings, const Protocol& protocol) {
  EvalOptions options;
  options.metrics = settings.metrics;
  options.topk = settings.topk.empty() ? protocol.topk : settings.topk;
  options.topk_given = !settings.topk.empty();
  options.sparse_max = settings.sparse_max;
  options.tail_ratio = settings.tail_ratio;
  options.map_norm = settings.map_norm;
  options.eval_batch_size = settings.eval_batch_size;
  return options;
}

std::vector<int64_t> cut_topk(const EvalOptions& options, int64_t n_items) {
  std::vector<int64_t> out = options.topk;
  if (options.topk_given) return out;
  for (int64_t& k : out) k = std::min(k, n_items);
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

void check_evaluations(const Dataset& data, const TrainSettings& settings,
                       const Protocol& protocol) {
  EvalOptions options = eval_options(settings, protocol);
  options.metrics.push_back(selecting_metric(settings, protocol, data.n_items));
  for (const Split split : {Split::valid, Split::test}) {
    if (has_rows(data, split)) check_evaluation(data, protocol, split, options);
  }
}

void check_training(Model& model, const Dataset& data, const TrainSettings& settings,
                    const Protocol& protocol) {
  settings.rate_factor(0);
  check_evaluations(data, settings, protocol);
  const bool fixed = settings.epochs.chosen() || protocol.every_position;
  if (model.trainable() && !has_rows(data, Split::valid) && !fixed) {
    throw usage_error(
        "'{}' has no validation rows to choose an epoch by: choose epochs (all of them run, the "
        "last is kept) or import another split",
        data.name);
  }
}

TrainResult train_model(Model& model, const Dataset& data, const TrainConfig& config) {
  check_training(model, data, config.settings, config.protocol);
  config.settings.on();
  const ReferenceOps plain(config.settings.reference());
  return Training(model, data, config).run();
}

}  // namespace tessera
