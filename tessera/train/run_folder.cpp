#include "tessera/train/run_folder.h"

#include <algorithm>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/train/metrics_log.h"

namespace tessera {
namespace {

constexpr const char* kConfig = "config.resolved.json";
constexpr const char* kStatus = "status.json";
constexpr const char* kResults = "results.json";

/// What a run ends with; results.json first, which says that the others are there.
constexpr const char* kEnd[] = {kResults, "results.tsv", "per_user.tsv", "recs_top50.tsv", "model"};
/// What it writes on its way. config.resolved.json is not among them: it is replaced, so that the
/// folder never stops being a run's.
constexpr const char* kWay[] = {"metrics.jsonl", "test_curve.jsonl", "train.log",   "command.txt",
                                "env.json",      "data.json",        "checkpoints", "tb",
                                kStatus};

/// A file that a writer left which was killed, or the mark of one that lives.
bool is_passing(const std::string& name) {
  return name == FolderLock::kFile || (name.starts_with('.') && name.ends_with(".tmp"));
}

void check_place(const fs::path& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) {
    check_writable(folder);
    return;
  }
  if (!fs::is_directory(folder, error)) throw usage_error("{} is a file", folder.string());
  if (is_run_folder(folder)) return;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (!is_passing(entry.path().filename().string())) {
      throw usage_error("{} is not empty and holds no run: choose another folder", folder.string());
    }
  }
  if (error) throw usage_error("cannot read {}: {}", folder.string(), error.message());
}

void remove(const fs::path& folder, const std::string& name) {
  std::error_code error;
  fs::remove_all(folder / name, error);
  if (error) throw usage_error("cannot write {}: {}", folder.string(), error.message());
}

Json status_of(const fs::path& folder) {
  return fs::exists(folder / kStatus) ? read_json(folder / kStatus) : Json::object();
}

/// The names in a run's status.json that may be those of report files: files in this very folder.
/// A damaged one names none.
std::vector<std::string> report_files_of(const fs::path& folder) {
  std::vector<std::string> out;
  Json status;
  try {
    status = status_of(folder);
  } catch (const InputError&) {
    return out;
  }
  if (!status.is_object() || !status.contains("report_files")) return out;
  for (const Json& name : status["report_files"]) {
    if (!name.is_string()) continue;
    const auto text = name.get<std::string>();
    if (!text.empty() && text.front() != '.' && fs::path(text).filename() == text) {
      out.push_back(text);
    }
  }
  return out;
}

int64_t test_looks_of(const fs::path& folder) {
  const fs::path status = folder / kStatus, results = folder / kResults;
  const auto counted = [](const fs::path& path) -> int64_t {
    return fs::exists(path) ? json_get<int64_t>(read_json(path), "test_looks", path.string(), 0)
                            : 0;
  };
  return std::max(counted(status), counted(results));
}

}  // namespace

Settings RunConfig::given() const {
  Settings out = settings;
  std::erase_if(out, [](const Setting& setting) { return setting.origin == "default"; });
  return out;
}

Json RunConfig::json() const {
  Json out = {{"model", model},
              {"dataset", fs::absolute(dataset).lexically_normal().string()},
              {"settings", Json::object()}};
  for (const auto& setting : settings) {
    out["settings"][setting.name] = {{"value", setting.value}, {"origin", setting.origin}};
  }
  if (!looks_at_test) out["looks_at_test"] = false;
  return out;
}

RunConfig read_run_config(const fs::path& folder) {
  const fs::path path = folder / kConfig;
  if (!fs::exists(path)) throw data_error("{} is no run folder", folder.string());
  const Json json = read_json(path);
  const std::string where = path.string();
  RunConfig out;
  out.model = json_get<std::string>(json, "model", where);
  out.dataset = json_get<std::string>(json, "dataset", where);
  out.looks_at_test = json_get<bool>(json, "looks_at_test", where, true);
  const Json settings = json_get<Json>(json, "settings", where);
  for (const auto& [name, entry] : settings.items()) {
    if (!entry.is_object() || !entry.contains("value") || !entry.contains("origin") ||
        !entry["origin"].is_string()) {
      throw data_error("{}: setting '{}' has no value and origin", where, printable(name));
    }
    out.settings.push_back({name, entry["value"], entry["origin"].get<std::string>()});
  }
  return out;
}

bool is_run_folder(const fs::path& folder) {
  if (!fs::is_regular_file(folder / kConfig)) return false;
  try {
    const Json json = read_json(folder / kConfig);
    return json.is_object() && json.contains("model") && json.contains("settings");
  } catch (const InputError&) {
    return false;
  }
}

RunStatus read_run_status(const fs::path& folder) {
  const Json status = status_of(folder);
  const std::string where = (folder / kStatus).string();
  RunStatus out;
  out.state = json_get<std::string>(status, "state", where, out.state);
  out.epoch = json_get<int64_t>(status, "epoch", where, -1);
  out.error = json_get<std::string>(status, "error", where, "");
  const auto code = json_get<int64_t>(status, "exit_code", where, -1);
  if (code >= 0) out.exit_code = static_cast<Exit>(code);
  return out;
}

bool run_finished(const fs::path& folder) {
  if (!fs::exists(folder / kResults)) return false;
  const std::string state = read_run_status(folder).state;
  return state == "finished" || state == RunStatus().state;
}

int64_t count_test_look(const fs::path& folder) {
  const int64_t looks = test_looks_of(folder) + 1;
  const fs::path path = folder / (run_finished(folder) ? kResults : kStatus);
  Json json = fs::exists(path) ? read_json(path) : Json::object();
  json["test_looks"] = looks;
  if (json.contains("audit") && json["audit"].is_object()) json["audit"]["looks_at_test"] = looks;
  write_json(path, json);
  return looks;
}

RunFolder::RunFolder(const fs::path& path, const Log& log) : path_(path), lock_(path, log) {
  const auto mutex = std::make_shared<std::mutex>();
  file_log_ = Log([file = path / "train.log", mutex](Level level, const std::string& message) {
    static constexpr const char* kNames[] = {"DEBUG", "INFO", "WARN", "ERROR"};
    const std::lock_guard lock(*mutex);
    std::ofstream(file, std::ios::app)
        << now_rfc3339() << " " << kNames[static_cast<int>(level)] << " " << message << "\n";
  });
  log_ = Log([outer = log, own = file_log_](Level level, const std::string& message) {
    outer.write(level, message);
    own.write(level, message);
  });
}

RunFolder RunFolder::begin(const fs::path& path, const RunConfig& config, const Log& log) {
  check_place(path);
  RunFolder out(path, log);
  const auto report_files = report_files_of(path);
  for (const char* name : kEnd) remove(path, name);
  for (const auto& name : report_files) remove(path, name);
  for (const char* name : kWay) remove(path, name);
  write_json(path / kConfig, config.json());
  out.running(-1);
  return out;
}

RunFolder RunFolder::resume(const fs::path& path, const RunConfig& config, const Log& log) {
  RunFolder out(path, log);
  const auto report_files = report_files_of(path);
  out.status_ = {-1, test_looks_of(path), report_files};
  out.write_status("running", Exit::done);
  for (const char* name : kEnd) remove(path, name);
  for (const auto& name : report_files) remove(path, name);
  out.status_.report_files.clear();
  write_json(path / kConfig, config.json());
  return out;
}

void RunFolder::write_status(const std::string& state, Exit code, const std::string& error) {
  const bool over = state != "running";
  Json json = {{"state", state},
               {"exit_code", over ? Json(static_cast<int>(code)) : Json()},
               {"epoch", status_.epoch}};
  // While there is no results.json to hold it.
  if (state != "finished" && status_.test_looks > 0) json["test_looks"] = status_.test_looks;
  if (!error.empty()) json["error"] = error;
  if (!status_.report_files.empty()) json["report_files"] = status_.report_files;
  write_json(path_ / kStatus, json);
}

void RunFolder::running(int64_t epoch) {
  status_.epoch = epoch;
  write_status("running", Exit::done);
}

void RunFolder::write_report_files(const std::map<std::string, std::string>& files) {
  if (files.empty()) return;
  for (const auto& [name, text] : files) status_.report_files.push_back(name);
  write_status("running", Exit::done);  // known before they are there
  for (const auto& [name, text] : files) write_file(path_ / name, text);
}

void RunFolder::finish(const RunResult& result) {
  write_file(path_ / "results.tsv", results_tsv(result));
  std::ofstream(path_ / "metrics.jsonl", std::ios::app)
      << line_json(EndLine{"finished", result.selection.epoch, result.test,
                           result.time_s.train.value_or(0) + result.time_s.eval})
             .dump()
      << "\n";
  write_json(path_ / kResults, result.json());
  status_.epoch = result.n_epochs.value_or(0) - 1;
  write_status("finished", Exit::done);
}

void RunFolder::failed(const std::exception_ptr& error) noexcept {
  // Nothing that fails here, a full disk above all, may hide the first failure.
  try {
    Exit code = Exit::failed;
    std::string words;
    try {
      std::rethrow_exception(error);
    } catch (const RunError& e) {
      code = e.code();
      words = e.what();
    } catch (const InputError& e) {
      code = e.code();
      words = e.what();
    } catch (const std::exception& e) {
      words = e.what();
    }
    file_log_.write(Level::error, words);
    const bool interrupted =
        code == Exit::interrupted || code == Exit::interrupted_without_checkpoint;
    write_status(interrupted ? "interrupted" : "failed", code, words);
  } catch (...) {
    return;
  }
}

}  // namespace tessera
