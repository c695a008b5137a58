#include "tessera/study/run.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/version.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/folder/load.h"
#include "tessera/model/bundle.h"
#include "tessera/ops/process.h"
#include "tessera/ops/torch_version.h"
#include "tessera/study/quality.h"
#include "tessera/study/tensorboard.h"
#include "tessera/train/checkpoint.h"
#include "tessera/train/metrics_log.h"

namespace tessera {
namespace {

constexpr int64_t kListLength = 50;

fs::path default_folder(const std::string& model, const std::string& dataset, int64_t seed) {
  std::string time = now_rfc3339();
  time.pop_back();
  std::replace(time.begin(), time.end(), ':', '-');
  return fmt::format("runs/{}_{}_{}_s{}", time, model, dataset, seed);
}

DatasetView view_of(const TrainSettings& settings) {
  DatasetView view;
  view.modalities = settings.modalities;
  view.permute = settings.permute;
  view.permute_seed = static_cast<uint64_t>(settings.seed);
  view.fold = settings.fold;
  view.verify_hashes = true;
  return view;
}

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

Json environment() {
  return {{"tessera", kVersion},
          {"compiler", fmt::format("{}", __VERSION__)},
          {"libtorch", torch_version()},
          {"cpu", cpu_name()},
          {"gpu", nullptr},
          {"threads", n_threads()}};
}

int64_t count_parameters(Model& model) {
  int64_t n = 0;
  for (const auto& group : model.parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) n += tensor->numel();
    for (const auto& [name, table] : group.tables) n += table->n_rows() * table->width();
  }
  return n;
}

/// The five dataset lines that MMRec prints, and the size of the model.
void log_head(const Log& log, const Dataset& data, Model& model) {
  const int64_t rows =
      data.train.n_rows() + data.valid.n_rows() + data.test.n_rows() + data.history.n_rows();
  const auto per = [rows](int64_t n) { return n > 0 ? static_cast<double>(rows) / n : 0.0; };
  log.info("The number of users: {}", data.n_users);
  log.info("Average actions of users: {:.2f}", per(data.n_users));
  log.info("The number of items: {}", data.n_items);
  log.info("The number of inters: {}", rows);
  log.info("The sparsity of the dataset: {:.4f}%",
           100 - 100 * per(data.n_users) / std::max<double>(1, data.n_items));
  log.info("Trainable parameters: {}", count_parameters(model));
  if (!model.abilities().ranks_cold_items) {
    log.info("items without a train row are not ranked by anything learned in this model");
  }
}

/// The top lists of every user, ranked as the split that was reported.
void write_lists(const fs::path& path, Model& model, const Dataset& data, const Protocol& protocol,
                 Split split) {
  const int64_t k = std::min(kListLength, data.n_items);
  const ReferenceOps plain(model.settings().reference());
  write_file_with(path, [&](std::ostream& out) {
    out << "user\titem\trank\tscore\n";
    all_lists(*model.freeze(), data, protocol, split, k,
              [&](int64_t user, std::span<const int32_t> items, std::span<const float> scores) {
                for (size_t r = 0; r < items.size(); ++r) {
                  out << fmt::format("{}\t{}\t{}\t{}\n", data.user_ids[user],
                                     data.item_ids[items[r]], r + 1, scores[r]);
                }
              });
  });
}

/// What is trained, where it goes and what it goes on from.
struct Plan {
  std::string model;
  fs::path dataset, folder;  ///< folder empty: runs/<time>_<model>_<dataset>_s<seed>
  Settings settings;
  bool look_at_test = true;
  std::optional<RunConfig> begun;  ///< of the run that goes on
};

Plan plan_of(const RunRequest& request) {
  if (!request.resume.empty()) {
    RunConfig begun = read_run_config(request.resume);
    if (!request.model.empty() && find_model(request.model).name != begun.model) {
      throw usage_error("{} is a run of {}, got model {}: leave it out", request.resume.string(),
                        begun.model, printable(request.model));
    }
    Settings settings = begun.given();
    settings.insert(settings.end(), request.settings.begin(), request.settings.end());
    // A folder that was moved is named again; the hashes say whether it is the same.
    const fs::path dataset = request.dataset.empty() ? fs::path(begun.dataset) : request.dataset;
    const bool look_at_test = begun.looks_at_test;
    return {begun.model,         dataset,      request.resume,
            std::move(settings), look_at_test, std::move(begun)};
  }
  if (request.model.empty()) throw usage_error("no model given: name one that is registered");
  return {request.model,    request.dataset,      request.output,
          request.settings, request.look_at_test, std::nullopt};
}

/// Everything of a run that is checked before anything is written.
struct Checked {
  const ModelInfo* info = nullptr;
  RunSettings settings;
  Protocol protocol;
  std::unique_ptr<Dataset> data;
  std::unique_ptr<Model> model;
};

Checked check(const Plan& plan, const Log& log) {
  Checked out;
  out.info = &find_model(plan.model);
  Settings all = implied_settings(plan.model);
  all.insert(all.end(), plan.settings.begin(), plan.settings.end());
  out.settings = resolve_settings(*out.info, all);
  const TrainSettings& train = out.settings.train_settings;
  train.on();
  use_threads(train.threads);
  keep_freed_memory();
  out.protocol = find_protocol(train.protocol);
  if (!train.valid_metric.empty()) canonical_metric(train.valid_metric);
  for (const auto& metric : train.metrics) canonical_metric(metric);
  out.data = std::make_unique<Dataset>(load_dataset(plan.dataset, view_of(train)));
  for (const int64_t k : train.topk) {
    if (k > out.data->n_items) {
      throw usage_error("topk {} is larger than the catalogue of {} items", k, out.data->n_items);
    }
  }
  check_evaluations(*out.data, train, out.protocol);
  if (!plan.look_at_test) out.data->test = {};
  const Random random(static_cast<uint64_t>(train.seed));
  out.model = out.settings.config.make(Context{out.data->view(), random, train, log});
  check_training(*out.model, *out.data, train, out.protocol);
  return out;
}

/// A run goes with the rows it was trained on.
void check_same_rows(const fs::path& folder, const fs::path& dataset, const Dataset& data) {
  if (!fs::exists(folder / "data.json")) return;
  const Json stored = read_json(folder / "data.json");
  for (const char* hash : {"train_sha256", "split_sha256"}) {
    if (stored.is_object() && stored.contains(hash) && data.about.contains(hash) &&
        stored[hash] != data.about[hash]) {
      throw data_error("{} has changed since {} began: its {} rows differ", dataset.string(),
                       folder.string(), hash == std::string("train_sha256") ? "train" : "held-out");
    }
  }
}

/// What a run that goes on may be told anew: how long and how often, not what is trained.
void check_goes_on(const Plan& plan, const Checked& checked) {
  static const std::set<std::string> free = {"epochs",     "time_limit", "stopping_step",
                                             "checkpoint", "threads",    "tensorboard"};
  for (const auto* part : {&checked.settings.model, &checked.settings.train}) {
    for (const auto& now : *part) {
      if (free.contains(now.name)) continue;
      for (const auto& was : plan.begun->settings) {
        if (was.name != now.name || was.value == now.value) continue;
        throw usage_error("{} was begun with {} = {}, got {}: a new run takes other settings",
                          plan.folder.string(), now.name, was.value.dump(),
                          printable(now.value.dump()));
      }
    }
  }
  check_same_rows(plan.folder, plan.dataset, *checked.data);
}

RunConfig config_of(const Plan& plan, const Checked& checked) {
  RunConfig out;
  out.model = checked.info->name;
  out.dataset = plan.dataset.string();
  for (const auto* part : {&checked.settings.model, &checked.settings.train}) {
    for (const auto& setting : *part) {
      out.settings.push_back({setting.name, setting.value, setting.origin});
    }
  }
  out.looks_at_test = plan.look_at_test;
  return out;
}

RunFolder open_folder(const Plan& plan, const Checked& checked, const Log& log) {
  const RunConfig config = config_of(plan, checked);
  if (plan.begun) return RunFolder::resume(plan.folder, config, log);
  const int64_t seed = checked.settings.train_settings.seed;
  return RunFolder::begin(plan.folder.empty()
                              ? default_folder(checked.info->name, checked.data->name, seed)
                              : plan.folder,
                          config, log);
}

/// What a reader of the folder wants to know before there are results.
void write_head(const RunFolder& folder, const Checked& checked, const RunRequest& request) {
  const fs::path& path = folder.path();
  const TrainSettings& train = checked.settings.train_settings;
  write_file(path / "command.txt", request.command + "\n");
  write_json(path / "env.json", environment());
  write_json(path / "data.json", checked.data->about);
  log_head(folder.log(), *checked.data, *checked.model);
  folder.log().info("Protocol: {}", protocol_words(train.protocol));
  // A run that goes on keeps its lines up to the checkpoint.
  if (fs::exists(path / "metrics.jsonl") && folder_exists(path / "checkpoints" / "last")) return;
  const RunLine line{fs::absolute(path).filename().string(),
                     checked.info->name,
                     checked.data->name,
                     train.seed,
                     train.protocol,
                     seen_words(checked.protocol),
                     count_parameters(*checked.model),
                     now_rfc3339()};
  write_file(path / "metrics.jsonl", line_json(line).dump() + "\n");
}

TrainResult train(RunFolder& folder, const Plan& plan, const Checked& checked,
                  const RunRequest& request) {
  TrainConfig config;
  config.settings = checked.settings.train_settings;
  config.protocol = checked.protocol;
  config.folder = folder.path();
  config.resume = plan.begun.has_value();
  config.test_looks = folder.test_looks();
  config.log = folder.log();
  config.stop_requested = request.stop_requested;
  config.progress = request.progress;
  std::optional<TensorboardFiles> tensorboard;
  config.on_epoch = [&](int64_t epoch) {
    folder.running(epoch);
    if (config.settings.tensorboard && !tensorboard) tensorboard.emplace(folder.path());
    if (tensorboard) tensorboard->update();
  };
  return train_model(*checked.model, *checked.data, config);
}

/// The split that is reported: test, else valid, else none.
const Evaluation* reported(const TrainResult& trained) {
  if (trained.test) return &*trained.test;
  return trained.valid ? &*trained.valid : nullptr;
}

std::optional<double> median_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

RunResult result_of(const Checked& checked, const TrainResult& trained) {
  const TrainSettings& train = checked.settings.train_settings;
  RunResult out;
  out.model = checked.info->name;
  out.dataset = checked.data->name;
  out.seed = train.seed;
  out.protocol = train.protocol;
  out.seen = seen_words(checked.protocol);
  for (const auto& feature : checked.data->features) out.modalities.push_back(feature.name);
  out.permute = train.permute;
  out.selection.metric = trained.valid_metric;
  out.selection.epoch = trained.best_epoch;
  if (trained.valid) {
    out.selection.value = trained.best_score;
    out.valid = trained.valid->metrics;
  }
  if (trained.test) {
    out.test = trained.test->metrics;
    out.time_s.rank_test = trained.test->time_s;
  }
  if (const Evaluation* evaluation = reported(trained)) {
    out.slices = evaluation->slices;
    out.n_users = evaluation->n_users;
    out.audit = evaluation->audit;
  }
  out.test_looks = trained.test_looks;
  out.audit["seed"] = train.seed;
  out.audit["looks_at_test"] = trained.test_looks;
  const std::string& label = checked.settings.config.label;
  if (!label.empty()) out.audit["notes"].push_back(label);
  out.n_parameters = count_parameters(*checked.model);
  out.n_epochs = trained.n_epochs;
  out.n_steps = trained.n_steps;
  out.stopped_by = trained.stopped_by;
  out.time_s.train = trained.train_s;
  out.time_s.eval = trained.eval_s;
  out.time_s.epoch_median = median_of(trained.epoch_s);
  out.time_s.checkpoint = trained.checkpoint_s;
  return out;
}

/// Lists, rows by user, files of the model's own and the bundle.
void write_outputs(RunFolder& folder, const Checked& checked, const TrainResult& trained,
                   const RunResult& result) {
  const fs::path& path = folder.path();
  const Dataset& data = *checked.data;
  if (const Evaluation* evaluation = reported(trained)) {
    write_file(path / "per_user.tsv", per_user_tsv(*evaluation, data));
  }
  write_lists(path / "recs_top50.tsv", *checked.model, data, checked.protocol,
              trained.test ? Split::test : Split::valid);
  if (const auto files = quality_files(checked.info->name, *checked.model); !files.empty()) {
    folder.write_report_files(files);
  }
  const Json json = result.json();
  save_bundle(path / "model", *checked.model, data, *checked.info, checked.settings,
              {{"protocol", result.protocol},
               {"seen", result.seen},
               {"valid", json["valid"]},
               {"test", json["test"]}});
}

}  // namespace

void check_run(const RunRequest& request) { check(plan_of(request), request.log); }

bool is_bundle_folder(const fs::path& folder) { return fs::exists(folder / "model.json"); }

RunOutcome run(const RunRequest& request) {
  const Plan plan = plan_of(request);
  if (plan.begun && request.settings.empty() && run_finished(plan.folder)) {
    request.log.info("{} is finished: nothing to do", plan.folder.string());
    return {plan.folder, read_results(plan.folder)};
  }
  const Checked checked = check(plan, request.log);
  if (plan.begun) check_goes_on(plan, checked);
  RunFolder folder = open_folder(plan, checked, request.log);
  try {
    write_head(folder, checked, request);
    const TrainResult trained = train(folder, plan, checked, request);
    RunResult result = result_of(checked, trained);
    for (const auto& note : result.notes()) folder.log().warn("{}", note);
    write_outputs(folder, checked, trained, result);
    result.peak_rss_mb = peak_rss_mb();  // of all that is above
    folder.finish(result);
    return {folder.path(), result};
  } catch (...) {
    folder.failed(std::current_exception());
    throw;
  }
}

OpenRun open_run(const fs::path& folder, const Log& log) {
  const RunConfig config = read_run_config(folder);
  auto checked = check({config.model, config.dataset, folder, config.given(), true, config}, log);
  check_same_rows(folder, config.dataset, *checked.data);
  State state;
  checked.model->state(state);
  // Closed-form models have undefined or empty tensors until they are loaded.
  state.load(read_checkpoint(folder / "checkpoints" / "best"), true);
  checked.model->train(false);
  OpenRun out;
  out.model = config.model;
  out.settings = std::move(checked.settings);
  out.learned = std::move(checked.model);
  out.data = std::move(checked.data);
  return out;
}

}  // namespace tessera
