#include "tessera/study/run.h"

#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/version.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/folder/load.h"
#include "tessera/model/bundle.h"
#include "tessera/ops/torch_version.h"
#include "tessera/study/quality.h"
#include "tessera/study/tensorboard.h"
#include "tessera/train/checkpoint.h"

namespace tessera {
namespace {

constexpr int64_t kListLength = 50;

std::string default_folder(const std::string& model, const std::string& dataset, int64_t seed) {
  std::string time = now_rfc3339();
  time.pop_back();
  std::replace(time.begin(), time.end(), ':', '-');
  return fmt::format("runs/{}_{}_{}_s{}", time, model, dataset, seed);
}

Json settings_json(const RunSettings& settings) {
  Json out = Json::object();
  for (const auto* part : {&settings.model, &settings.train}) {
    for (const auto& r : *part) out[r.name] = {{"value", r.value}, {"origin", r.origin}};
  }
  return out;
}

Settings settings_from(const Json& config, const fs::path& path) {
  Settings out;
  if (!config.is_object() || !config.contains("settings") || !config["settings"].is_object()) {
    throw data_error("{}: not a run's settings", path.string());
  }
  for (const auto& [name, entry] : config["settings"].items()) {
    if (!entry.is_object() || !entry.contains("value") || !entry.contains("origin") ||
        !entry["origin"].is_string()) {
      throw data_error("{}: setting '{}' has no value and origin", path.string(), name);
    }
    if (entry["origin"] == "default") continue;
    out.push_back({name, entry["value"], entry["origin"].get<std::string>()});
  }
  return out;
}

std::string text_of(const Json& json, const std::string& key, const fs::path& path) {
  if (!json.is_object() || !json.contains(key) || !json[key].is_string()) {
    throw data_error("{}: no '{}'", path.string(), key);
  }
  return json[key].get<std::string>();
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
          {"threads", at::get_num_threads()}};
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
  int64_t n = 0;
  for (const auto& group : model.parameter_groups()) {
    for (const auto& [name, tensor] : group.tensors) n += tensor->numel();
    for (const auto& [name, table] : group.tables) n += table->n_rows() * table->width();
  }
  log.info("Trainable parameters: {}", n);
  if (!model.abilities().ranks_cold_items) {
    log.info("items without a train row are not ranked by anything learned in this model");
  }
}

Json slices_json(const Evaluation& evaluation) {
  Json out = Json::object();
  for (const auto& slice : evaluation.slices) {
    out[slice.name] = {{"n_users", slice.n_users},
                       {"n_pairs", slice.n_pairs},
                       {"metrics", metrics_json(slice.metrics)}};
  }
  return out;
}

/// The top lists of every user, ranked as the split that was reported.
void write_lists(const fs::path& path, Model& model, const Dataset& data, const Protocol& protocol,
                 Split split) {
  const int64_t k = std::min(kListLength, data.n_items);
  write_file_with(path, [&](std::ostream& out) {
    out << "user\titem\trank\tscore\n";
    all_lists(model, data, protocol, split, k,
              [&](int64_t user, std::span<const int32_t> items, std::span<const float> scores) {
                for (size_t r = 0; r < items.size(); ++r) {
                  out << fmt::format("{}\t{}\t{}\t{}\n", data.user_ids[user],
                                     data.item_ids[items[r]], r + 1, scores[r]);
                }
              });
  });
}

void write_results_tsv(const fs::path& path, const Json& results) {
  std::string head = "model\tdataset\tseed\tprotocol\tseen\tsplit", rows;
  for (const char* split : {"valid", "test"}) {
    if (results[split].is_null()) continue;
    const bool first = rows.empty();
    rows += fmt::format("{}\t{}\t{}\t{}\t{}\t{}", results["model"].get<std::string>(),
                        results["dataset"].get<std::string>(), results["seed"].dump(),
                        results["protocol"].get<std::string>(), results["seen"].get<std::string>(),
                        split);
    for (const auto& [name, value] : results[split].items()) {
      if (first) head += "\t" + name;
      rows += "\t" + value.dump();
    }
    rows += "\n";
  }
  write_file(path, head + "\n" + rows);
}

/// Writes status.json as the run goes, and once more however it ends.
class Status {
 public:
  explicit Status(fs::path folder) : folder_(std::move(folder)) {}
  void write(const std::string& state, int exit_code, int64_t epoch) {
    Json json = {{"state", state}, {"exit_code", nullptr}, {"epoch", epoch}};
    if (state != "running") json["exit_code"] = exit_code;
    write_json(folder_ / "status.json", json);
    epoch_ = epoch;
  }
  void ended(Exit code) {
    const bool interrupted =
        code == Exit::interrupted || code == Exit::interrupted_without_checkpoint;
    try {
      write(interrupted ? "interrupted" : "failed", static_cast<int>(code), epoch_);
    } catch (const RunError&) {
      // A full disk must not hide the first failure.
    }
  }

 private:
  fs::path folder_;
  int64_t epoch_ = -1;
};

/// Everything of a run that is checked before anything is written.
struct Checked {
  const ModelInfo* info = nullptr;
  RunSettings settings;
  Protocol protocol;
  std::unique_ptr<Dataset> data;
  std::unique_ptr<Model> model;
  Settings all;  ///< given, after what the name implies
};

Checked check(const std::string& model, const fs::path& dataset, const Settings& given,
              const Log& log) {
  Checked out;
  out.info = &find_model(model);
  Settings all = implied_settings(model);
  all.insert(all.end(), given.begin(), given.end());
  out.settings = resolve_settings(*out.info, all);
  const TrainSettings& train = out.settings.train_settings;
  use_device_and_threads(train);
  keep_freed_memory();
  out.protocol = find_protocol(train.protocol);
  if (!train.valid_metric.empty()) canonical_metric(train.valid_metric);
  for (const auto& metric : train.metrics) canonical_metric(metric);
  out.data = std::make_unique<Dataset>(load_dataset(dataset, view_of(train)));
  for (const int64_t k : train.topk) {
    if (k > out.data->n_items) {
      throw usage_error("topk {} is larger than the catalogue of {} items", k, out.data->n_items);
    }
  }
  out.model = out.info->make(
      all, Context{out.data->view(), Random(static_cast<uint64_t>(train.seed)), train, log});
  out.all = std::move(all);
  check_training(*out.model, *out.data, train, out.protocol);
  return out;
}

/// What a run that goes on may be told anew: how long and how often, not what is trained.
void check_resumed(const Json& stored, const RunSettings& now, const fs::path& folder) {
  static const std::set<std::string> free = {"epochs",     "time_limit", "stopping_step",
                                             "checkpoint", "threads",    "tensorboard"};
  for (const auto* part : {&now.model, &now.train}) {
    for (const auto& setting : *part) {
      if (free.contains(setting.name) || !stored.contains(setting.name)) continue;
      const Json& was = stored[setting.name]["value"];
      if (was != setting.value) {
        throw usage_error("{} was begun with {} = {}, got {}: a new run takes other settings",
                          folder.string(), setting.name, was.dump(),
                          printable(setting.value.dump()));
      }
    }
  }
}

/// Everything that a run writes into its folder; other files there are somebody's own.
constexpr const char* kRunFiles[] = {
    "config.resolved.json", "status.json", "results.json",   "results.tsv", "metrics.jsonl",
    "test_curve.jsonl",     "train.log",   "command.txt",    "env.json",    "data.json",
    "per_user.tsv",         "model",       "recs_top50.tsv", "checkpoints", "tb"};

void prepare_output(const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder)) {
    if (!fs::is_directory(folder)) throw usage_error("{} is a file", folder.string());
    if (!fs::is_empty(folder, error) && !is_run_folder(folder)) {
      throw usage_error("{} is not empty and holds no run: choose another -o", folder.string());
    }
    for (const char* name : kRunFiles) {
      if (!error) fs::remove_all(folder / name, error);
    }
  } else {
    check_writable(folder);
    fs::create_directories(folder, error);
  }
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
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

}  // namespace

void use_device_and_threads(const TrainSettings& settings) {
  if (settings.device != "cpu") {
    throw usage_error("device '{}' is not available: this build computes on cpu",
                      printable(settings.device));
  }
  at::set_num_threads(settings.threads > 0
                          ? static_cast<int>(settings.threads)
                          : static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
}

void keep_freed_memory() {
  // What a step frees the next one wants again: without this glibc returns every larger array to
  // the system, and its pages come back one fault each.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);  // never
}

void check_run(const RunRequest& request) {
  check(request.model, request.dataset, request.settings, request.log);
}

void reset_peak_memory() {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";
}

int64_t peak_rss_mb() {
  // Of this program alone: ru_maxrss begins at what the process held that started it.
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return kilobytes / 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

Json metrics_json(const MetricValues& metrics) {
  Json out = Json::object();
  for (const auto& [name, value] : metrics) out[name] = std::isfinite(value) ? Json(value) : Json();
  return out;
}

bool is_run_folder(const fs::path& folder) {
  const fs::path config = folder / "config.resolved.json";
  if (!fs::is_regular_file(config)) return false;
  try {
    const Json json = read_json(config);
    return json.is_object() && json.contains("model") && json.contains("settings");
  } catch (const InputError&) {
    return false;
  }
}

bool is_bundle_folder(const fs::path& folder) { return fs::exists(folder / "model.json"); }

RunOutcome run(const RunRequest& request) {
  const bool resuming = !request.resume.empty();
  std::string model = request.model;
  fs::path dataset = request.dataset, folder = request.output;
  Settings given = request.settings;
  bool look_at_test = request.look_at_test;
  Json begun;  // the settings of the run that goes on
  if (resuming) {
    folder = request.resume;
    const fs::path path = folder / "config.resolved.json";
    if (!fs::exists(path)) throw data_error("{} is no run folder", folder.string());
    const Json config = read_json(path);
    model = text_of(config, "model", path);
    if (!request.model.empty() && find_model(request.model).name != model) {
      throw usage_error("{} is a run of {}, got -m {}: leave it out", folder.string(), model,
                        printable(request.model));
    }
    // A folder that was moved is named again; the hashes say whether it is the same.
    if (dataset.empty()) dataset = text_of(config, "dataset", path);
    look_at_test = json_get<bool>(config, "looks_at_test", path.string(), true);
    Settings stored = settings_from(config, path);
    begun = config["settings"];
    stored.insert(stored.end(), request.settings.begin(), request.settings.end());
    given = std::move(stored);
    const bool finished = fs::exists(folder / "results.json");
    if (finished && request.settings.empty()) {
      request.log.info("{} is finished: nothing to do", folder.string());
      return {folder, read_json(folder / "results.json")};
    }
  }
  if (model.empty()) throw usage_error("no model given: add -m NAME, see 'tessera models'");
  auto checked = check(model, dataset, given, request.log);
  Dataset& data = *checked.data;
  const TrainSettings& train = checked.settings.train_settings;
  if (!look_at_test) data.test = {};
  if (resuming) {
    check_resumed(begun, checked.settings, folder);
    check_same_rows(folder, dataset, data);
  } else {
    if (folder.empty()) folder = default_folder(checked.info->name, data.name, train.seed);
    prepare_output(folder);
  }
  Json resolved = {{"model", checked.info->name},
                   {"dataset", fs::absolute(dataset).lexically_normal().string()},
                   {"settings", settings_json(checked.settings)}};
  if (!look_at_test) resolved["looks_at_test"] = false;
  write_json(folder / "config.resolved.json", resolved);
  Status status(folder);
  status.write("running", 0, -1);
  // The run's own log beside the caller's.
  auto file = std::make_shared<std::ofstream>(folder / "train.log", std::ios::app);
  auto mutex = std::make_shared<std::mutex>();
  const auto to_file = [file, mutex](Level level, const std::string& message) {
    static constexpr const char* kNames[] = {"DEBUG", "INFO", "WARN", "ERROR"};
    const std::lock_guard lock(*mutex);
    *file << now_rfc3339() << " " << kNames[static_cast<int>(level)] << " " << message << "\n"
          << std::flush;
  };
  const Log log([to_file, outer = request.log](Level level, const std::string& message) {
    outer.write(level, message);
    to_file(level, message);
  });
  try {
    write_file(folder / "command.txt", request.command + "\n");
    write_json(folder / "env.json", environment());
    write_json(folder / "data.json", data.about);
    log_head(log, data, *checked.model);
    log.info("Protocol: {}", protocol_words(train.protocol));
    TrainConfig config;
    config.settings = train;
    config.protocol = checked.protocol;
    config.folder = folder;
    config.resume = resuming;
    config.log = log;
    config.stop_requested = request.stop_requested;
    config.progress = request.progress;
    std::optional<TensorboardFiles> tensorboard;
    config.on_epoch = [&](int64_t epoch) {
      status.write("running", 0, epoch);
      if (train.tensorboard && !tensorboard) tensorboard.emplace(folder);
      if (tensorboard) tensorboard->update();
    };
    int64_t n_parameters = 0;
    for (const auto& group : checked.model->parameter_groups()) {
      for (const auto& [name, tensor] : group.tensors) n_parameters += tensor->numel();
      for (const auto& [name, table] : group.tables) {
        n_parameters += table->n_rows() * table->width();
      }
    }
    if (!fs::exists(folder / "metrics.jsonl") || !resuming ||
        !fs::exists(folder / "checkpoints" / "last")) {
      write_file(folder / "metrics.jsonl", Json{{"event", "run"},
                                                {"run", fs::absolute(folder).filename().string()},
                                                {"model", checked.info->name},
                                                {"dataset", data.name},
                                                {"seed", train.seed},
                                                {"protocol", train.protocol},
                                                {"seen", seen_words(checked.protocol)},
                                                {"n_parameters", n_parameters},
                                                {"time", now_rfc3339()}}
                                                   .dump() +
                                               "\n");
    }
    const TrainResult result = train_model(*checked.model, data, config);
    Json results;
    results["model"] = checked.info->name;
    results["dataset"] = data.name;
    results["seed"] = train.seed;
    results["protocol"] = train.protocol;
    results["seen"] = seen_words(checked.protocol);
    Json modalities = Json::array();
    for (const auto& feature : data.features) modalities.push_back(feature.name);
    results["modalities"] = modalities;
    results["permute"] = train.permute;
    results["selection"] = {{"split", "valid"},
                            {"metric", result.valid_metric},
                            {"epoch", result.best_epoch},
                            {"value", result.valid ? Json(result.best_score) : Json()}};
    results["valid"] = result.valid ? metrics_json(result.valid->metrics) : Json();
    results["test"] = result.test ? metrics_json(result.test->metrics) : Json();
    const Evaluation* reported = result.test    ? &*result.test
                                 : result.valid ? &*result.valid
                                                : nullptr;
    results["slices"] = reported != nullptr ? slices_json(*reported) : Json::object();
    results["n_users"] = reported != nullptr ? reported->n_users : 0;
    results["test_looks"] = result.test_looks;
    results["audit"] = reported != nullptr ? reported->audit : Json::object();
    results["audit"]["seed"] = train.seed;
    results["audit"]["looks_at_test"] = result.test_looks;
    const std::string label = checked.info->label ? checked.info->label(checked.all) : "";
    if (!label.empty()) results["audit"]["notes"].push_back(label);
    if (reported != nullptr) {
      for (const Json& note : results["audit"]["notes"]) log.warn("{}", note.get<std::string>());
    }
    results["n_parameters"] = n_parameters;
    results["n_epochs"] = result.n_epochs;
    results["n_steps"] = result.n_steps;
    results["stopped_by"] = result.stopped_by;
    std::vector<double> epoch_s = result.epoch_s;
    std::sort(epoch_s.begin(), epoch_s.end());
    results["time_s"] = {
        {"train", result.train_s},
        {"eval", result.eval_s},
        {"epoch_median", epoch_s.empty() ? Json() : Json(epoch_s[epoch_s.size() / 2])},
        {"rank_test", result.test ? Json(result.test->time_s) : Json()}};
    results["peak_rss_mb"] = peak_rss_mb();
    results["peak_gpu_mb"] = nullptr;
    if (reported != nullptr) write_file(folder / "per_user.tsv", per_user_tsv(*reported, data));
    write_lists(folder / "recs_top50.tsv", *checked.model, data, checked.protocol,
                result.test ? Split::test : Split::valid);
    for (const auto& [name, text] : quality_files(checked.info->name, *checked.model)) {
      write_file(folder / name, text);
    }
    save_bundle(folder / "model", *checked.model, data, *checked.info, checked.settings,
                {{"protocol", train.protocol},
                 {"seen", results["seen"]},
                 {"valid", results["valid"]},
                 {"test", results["test"]}});
    write_results_tsv(folder / "results.tsv", results);
    // results.json last: whoever finds it finds a finished run.
    std::ofstream(folder / "metrics.jsonl", std::ios::app)
        << Json{{"event", "end"},
                {"state", "finished"},
                {"best_epoch", result.best_epoch},
                {"test", results["test"]},
                {"time_s", result.train_s + result.eval_s}}
               .dump()
        << "\n";
    write_json(folder / "results.json", results);
    status.write("finished", 0, result.n_epochs - 1);
    return {folder, results};
  } catch (const RunError& e) {
    to_file(Level::error, e.what());  // the caller tells the user
    status.ended(e.code());
    throw;
  } catch (const InputError& e) {
    to_file(Level::error, e.what());
    status.ended(e.code());
    throw;
  } catch (...) {
    status.ended(Exit::failed);
    throw;
  }
}

OpenRun open_run(const fs::path& folder, const Log& log) {
  const fs::path path = folder / "config.resolved.json";
  if (!fs::exists(path)) throw data_error("{} is no run folder", folder.string());
  const Json config = read_json(path);
  OpenRun out;
  out.model = text_of(config, "model", path);
  const fs::path dataset = text_of(config, "dataset", path);
  auto checked = check(out.model, dataset, settings_from(config, path), log);
  check_same_rows(folder, dataset, *checked.data);
  State state;
  checked.model->state(state);
  // Closed-form models have undefined or empty tensors until they are loaded.
  state.load(read_checkpoint(folder / "checkpoints" / "best"), true);
  checked.model->train(false);
  out.settings = checked.settings;
  if (fs::exists(folder / "results.json")) out.results = read_json(folder / "results.json");
  out.learned = std::move(checked.model);
  out.data = std::move(checked.data);
  return out;
}

void count_test_look(const fs::path& folder) {
  Json results = read_json(folder / "results.json");
  if (!results.is_object()) return;
  const int64_t looks = results.contains("test_looks") && results["test_looks"].is_number_integer()
                            ? results["test_looks"].get<int64_t>()
                            : 0;
  results["test_looks"] = looks + 1;
  if (results.contains("audit") && results["audit"].is_object()) {
    results["audit"]["looks_at_test"] = looks + 1;
  }
  write_json(folder / "results.json", results);
}

}  // namespace tessera
