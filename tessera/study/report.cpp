#include "tessera/study/report.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/base/version.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/load.h"
#include "tessera/model/offers.h"
#include "tessera/study/report_models.h"
#include "tessera/study/report_template.h"
#include "tessera/study/report_views.h"
#include "tessera/study/run.h"
#include "tessera/study/study.h"
#include "tessera/train/checkpoint.h"
#include "tessera/train/metrics_log.h"

namespace tessera {
namespace {

constexpr int64_t kUsersShown = 5, kItemsShown = 8, kHistoryShown = 8;
constexpr const char* kQuality = "quality.json";  // of a dataset folder
constexpr size_t kPictureBytes = size_t{96} << 10, kPicturesBytes = size_t{4} << 20;

Json read_optional(const fs::path& path) { return fs::exists(path) ? read_json(path) : Json(); }

Json texts(const std::vector<std::string>& values) {
  Json out = Json::array();
  for (const auto& value : values) out.push_back(value);
  return out;
}

/// The result of a run that is finished.
std::optional<RunResult> result_of(const fs::path& run) {
  if (!run_finished(run)) return {};
  return read_results(run);
}

std::vector<Json> json_of(const std::vector<MetricsLine>& lines) {
  std::vector<Json> out;
  for (const auto& line : lines) out.push_back(line.json);
  return out;
}

// ---- one run --------------------------------------------------------------------------------

/// Curves by name from the numbers of events, x = epoch.
struct Curves {
  std::vector<std::string> order;
  std::map<std::string, Json> points;
  void add(const std::string& name, const std::optional<int64_t>& x, double y) {
    if (!x || std::isnan(y)) return;
    if (!points.contains(name)) {
      order.push_back(name);
      points[name] = Json::array();
    }
    points[name].push_back(pair_of(*x, y));
  }
  Json block_of(const std::string& title) const {
    Json out = block("lines", title);
    out["x"] = "epoch";
    out["series"] = Json::array();
    for (const auto& name : order) {
      Json one;
      one["name"] = name;
      one["points"] = points.at(name);
      out["series"].push_back(one);
    }
    return out;
  }
};

Json curves_section(const std::vector<MetricsLine>& lines) {
  Curves total, parts, valid, before, agree;
  for (const MetricsLine& line : lines) {
    if (line.event == "pretraining") {
      for (const auto& [name, value] : line.losses) before.add(name, line.epoch, value);
      for (const char* name : {"matched", "unmatched", "ordered"}) {
        agree.add(name, line.epoch, line.value(name));
      }
    } else if (line.trains()) {
      for (const auto& [name, value] : line.losses) {
        (name == "total" ? total : parts).add(name, line.epoch, value);
      }
    } else if (line.validates()) {
      for (const auto& [name, value] : line.values) {
        if (name.find('@') != std::string::npos) valid.add(name, line.epoch, value);
      }
    }
  }
  Json out = section("Curves");
  for (const auto& [curves, title] :
       {std::pair(&valid, "Validation"), std::pair(&total, "Training loss"),
        std::pair(&parts, "Parts of the training loss"),
        std::pair(&before, "Pretraining loss on held-out items"),
        std::pair(&agree, "Pretraining: cosines of common parts, share in order")}) {
    if (!curves->order.empty() && !(curves == &parts && parts.order.size() < 2)) {
      out["blocks"].push_back(curves->block_of(title));
    }
  }
  return out;
}

/// Adds the names that `names` lacks.
void add_names(const MetricValues& metrics, std::vector<std::string>& names) {
  for (const auto& [name, value] : metrics) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
}

Json results_section(const RunResult& result) {
  Json out = section("Results");
  Json table = block("table", "Metrics");
  table["columns"] = texts({"metric", "valid", "test"});
  table["rows"] = Json::array();
  std::vector<std::string> names;
  for (const auto* metrics : {result.metrics("valid"), result.metrics("test")}) {
    if (metrics != nullptr) add_names(*metrics, names);
  }
  for (const auto& name : names) {
    table["rows"].push_back(Json::array(
        {name, number_json(result.value("valid", name)), number_json(result.value("test", name))}));
  }
  out["blocks"].push_back(table);
  if (result.slices.empty()) return out;
  std::vector<std::string> metrics;
  for (const Slice& slice : result.slices) add_names(slice.metrics, metrics);
  Json by_slice = block("table", "Metrics by slice");
  by_slice["columns"] = texts({"slice", "users", "pairs"});
  for (const auto& metric : metrics) by_slice["columns"].push_back(metric);
  by_slice["rows"] = Json::array();
  const std::string shown =
      std::find(metrics.begin(), metrics.end(), "recall@20") != metrics.end() || metrics.empty()
          ? "recall@20"
          : metrics[0];
  Json bars = block("bars", shown + " by slice");
  bars["y"] = shown;
  bars["labels"] = Json::array();
  bars["values"] = Json::array();
  for (const Slice& slice : result.slices) {
    Json row = Json::array({slice.name, slice.n_users, slice.n_pairs});
    for (const auto& metric : metrics) row.push_back(number_json(value_of(slice.metrics, metric)));
    by_slice["rows"].push_back(row);
    if (const double value = value_of(slice.metrics, shown); !std::isnan(value)) {
      bars["labels"].push_back(slice.name);
      bars["values"].push_back(value);
    }
  }
  if (!bars["values"].empty()) out["blocks"].push_back(bars);
  out["blocks"].push_back(by_slice);
  return out;
}

Json settings_section(const fs::path& run, const RunResult* result, const RunConfig& config) {
  Json out = section("Audit and settings");
  Json audit = block("table", "Audit");
  audit["columns"] = texts({"what", "value"});
  audit["rows"] = Json::array();
  if (result != nullptr) flatten(result->audit, "", audit["rows"]);
  flatten(read_optional(run / "env.json"), "", audit["rows"]);
  const Json numbers = result != nullptr ? result->json() : Json::object();
  for (const char* key : {"time_s", "peak_rss_mb", "stopped_by", "n_epochs", "test_looks"}) {
    if (numbers.contains(key)) flatten(numbers[key], key, audit["rows"]);
  }
  out["blocks"].push_back(audit);
  Json settings = block("table", "Settings");
  settings["columns"] = texts({"setting", "value", "from"});
  settings["rows"] = Json::array();
  for (const auto& [name, value, origin] : config.settings) {
    settings["rows"].push_back(
        Json::array({name, value.is_structured() ? Json(value.dump()) : value, origin}));
  }
  out["blocks"].push_back(settings);
  return out;
}

// ---- items as people know them ----------------------------------------------------------------

std::string base64(const std::string& bytes) {
  static constexpr const char* kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) {
      word = word << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (size_t j = 0; j < 4; ++j) {
      out += i + j > bytes.size() ? '=' : kDigits[(word >> (18 - 6 * j)) & 63U];
    }
  }
  return out;
}

/// Titles and pictures of items; pictures are put into the page while there is room.
class Items {
 public:
  Items(const fs::path& folder, const Dataset& data, const Log& log)
      : data_(data), folder_(folder) {
    try {
      pictures_ = media_files(folder, "image");
    } catch (const InputError& e) {
      log.warn("without pictures: {}", e.what());
    }
  }
  /// Fills title and picture of a card that has an id.
  void fill(Json& card, Json& pictures) {
    const auto id = card.value("id", std::string());
    const int32_t item = data_.item_ids.find(id);
    if (item < 0) return;
    if (const auto title = data_.item_columns.title(item); !title.empty()) card["title"] = title;
    const auto found = pictures_.find(id);
    if (found == pictures_.end()) return;
    if (!pictures.contains(id)) {
      const fs::path place = folder_ / found->second;
      std::error_code error;
      const auto size = fs::file_size(place, error);
      if (error || size > kPictureBytes || used_ + size > kPicturesBytes) return;
      const std::string bytes = read_file(place);
      const bool png = bytes.rfind("\x89PNG", 0) == 0, jpeg = bytes.rfind("\xff\xd8\xff", 0) == 0;
      if (!png && !jpeg) return;
      used_ += size;
      pictures[id] =
          std::string("data:image/") + (png ? "png" : "jpeg") + ";base64," + base64(bytes);
    }
    card["picture"] = id;
  }

 private:
  const Dataset& data_;
  const fs::path folder_;
  std::map<std::string, std::string> pictures_;  // by raw id
  size_t used_ = 0;
};

Json user_cards(const fs::path& run, const Dataset& data) {
  std::map<std::string, std::vector<std::string>> lists;
  std::vector<std::string> users;
  std::ifstream in(run / "recs_top50.tsv");
  std::string line;
  std::getline(in, line);
  while (std::getline(in, line)) {
    const size_t tab = line.find('\t'), next = line.find('\t', tab + 1);
    if (tab == std::string::npos || next == std::string::npos) continue;
    const std::string user = line.substr(0, tab);
    auto& list = lists[user];
    if (list.empty()) users.push_back(user);
    if (static_cast<int64_t>(list.size()) < kItemsShown) {
      list.push_back(line.substr(tab + 1, next - tab - 1));
    }
  }
  Random(1, "report.users").shuffle(users, 0);
  Json out = section("Recommendations of sample users",
                     "Users drawn at random. Marked: items that were held out from training.");
  for (const auto& user : users) {
    if (static_cast<int64_t>(out["blocks"].size()) == kUsersShown) break;
    const int32_t index = data.user_ids.find(user);
    if (index < 0 || data.train.of(index).empty()) continue;
    Json cards = block("cards", "User " + user), history, list;
    history["label"] = "history, newest first";
    list["label"] = "recommended";
    history["items"] = Json::array();
    list["items"] = Json::array();
    const auto row = data.train.of(index);
    for (auto at = row.rbegin(); at != row.rend(); ++at) {
      if (static_cast<int64_t>(history["items"].size()) == kHistoryShown) break;
      Json card;
      card["id"] = std::string(data.item_ids[*at]);
      history["items"].push_back(card);
    }
    for (const auto& id : lists[user]) {
      Json card;
      card["id"] = id;
      for (const Interactions* held : {&data.valid, &data.test}) {
        const auto of = held->of(index);
        if (std::find(of.begin(), of.end(), data.item_ids.find(id)) != of.end()) {
          card["mark"] = "held out";
        }
      }
      list["items"].push_back(card);
    }
    cards["groups"] = Json::array({history, list});
    out["blocks"].push_back(cards);
  }
  return out;
}

/// What only the model can show. What training froze is the same in every checkpoint, so it comes
/// from the last one; the weights are the best epoch's.
Json model_views(const fs::path& run, OpenRun& open, const Log& log) {
  if (open.learned->offers().report == nullptr) return Json::array();
  if (folder_exists(run / "checkpoints" / "last")) {
    const State::Saved last = read_checkpoint(run / "checkpoints" / "last");
    State state;
    open.learned->state(state);
    for (const auto& entry : state.entries()) {
      if (entry.role == Role::frozen || entry.role == Role::inner) entry.load(last);
    }
  }
  try {
    return model_sections(open.model, model_facts(open.model, *open.learned, *open.data));
  } catch (const InputError& e) {
    log.warn("{}", e.what());
    return Json::array();
  }
}

void fill_cards(Json& sections, Items& items, Json& pictures) {
  for (auto& part : sections) {
    for (auto& each : part["blocks"]) {
      if (each.value("kind", "") != "cards") continue;
      for (auto& group : each["groups"]) {
        for (auto& card : group["items"]) items.fill(card, pictures);
      }
    }
  }
}

std::string name_of(const fs::path& folder) {
  return fs::absolute(folder).lexically_normal().filename().string();
}

Json run_data(const fs::path& run, const Log& log) {
  const std::optional<RunResult> result = result_of(run);
  const RunConfig config = read_run_config(run);
  const auto lines = read_metrics_log(run / "metrics.jsonl");
  std::string subtitle = "run " + name_of(run);
  if (fs::exists(run / "status.json")) subtitle += ", " + read_run_status(run).state;
  Json sections = Json::array(), pictures = Json::object();
  if (result) {
    subtitle += fmt::format(", protocol {}, seed {}, best epoch {} by valid {}",
                            protocol_words(result->protocol), result->seed, result->selection.epoch,
                            result->selection.metric);
    sections.push_back(results_section(*result));
  }
  sections.push_back(curves_section(lines));
  for (const auto& part : forgetting_sections({{"", json_of(lines)}})) sections.push_back(part);
  if (result) {
    try {
      OpenRun open = open_run(run, log);
      Items items(config.dataset, *open.data, log);
      Json views = Json::array({user_cards(run, *open.data)});
      for (const auto& view : model_views(run, open, log)) views.push_back(view);
      fill_cards(views, items, pictures);
      for (auto& view : views) sections.push_back(std::move(view));
    } catch (const InputError& e) {
      log.warn("without users and model: {}", e.what());
    }
  }
  sections.push_back(settings_section(run, result ? &*result : nullptr, config));
  return {{"title", result ? fmt::format("{} on {}", config.model, result->dataset) : config.model},
          {"subtitle", subtitle},
          {"pictures", pictures},
          {"sections", sections}};
}

// ---- several runs -----------------------------------------------------------------------------

Json number_or_text(const std::string& text) {
  const Json value = Json::parse(text, nullptr, false);
  return value.is_number() ? value : Json(text);
}

/// A TSV file with "# .." lines before its header.
Json table_of(const fs::path& path, const std::string& title) {
  Json out = block("table", title);
  std::ifstream in(path, std::ios::binary);
  std::string note;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.rfind("#", 0) == 0) {
      note += (note.empty() ? "" : "; ") + line.substr(line.find_first_not_of("# "));
    } else if (!out.contains("columns")) {
      out["columns"] = texts(split_cells(line, '\t'));
      out["rows"] = Json::array();
    } else {
      Json row = Json::array();
      for (const auto& cell : split_cells(line, '\t')) row.push_back(number_or_text(cell));
      out["rows"].push_back(row);
    }
  }
  if (!note.empty()) out["note"] = note;
  return out;
}

int64_t column_of(const Json& table, const std::string& name) {
  for (size_t c = 0; c < table["columns"].size(); ++c) {
    if (table["columns"][c] == name) return static_cast<int64_t>(c);
  }
  return -1;
}

Json differences(const Json& table) {
  Json out = block("intervals", "Paired differences with 95 % intervals");
  out["x"] = "mean difference";
  out["zero"] = true;
  out["rows"] = Json::array();
  const int64_t a = column_of(table, "a"), b = column_of(table, "b"),
                metric = column_of(table, "metric"), dataset = column_of(table, "dataset"),
                value = column_of(table, "mean_difference"), low = column_of(table, "low_95"),
                high = column_of(table, "high_95");
  if (std::min({a, b, metric, value, low, high}) < 0) return out;
  std::set<std::string> seen, datasets;
  for (const auto& row : table["rows"]) {
    if (dataset >= 0 && row.size() > static_cast<size_t>(dataset)) {
      datasets.insert(row[dataset].dump());
    }
  }
  for (const auto& row : table["rows"]) {
    if (row.size() < table["columns"].size() || !row[value].is_number()) continue;
    const auto text = [&](int64_t c) {
      return row[c].is_string() ? row[c].get<std::string>() : row[c].dump();
    };
    const std::string label =
        fmt::format("{}{} - {}", datasets.size() > 1 ? text(dataset) + ": " : "", text(a), text(b));
    if (!seen.insert(label + ", " + text(metric)).second) continue;  // a row for each test
    Json one;
    one["label"] = label;
    one["group"] = text(metric);
    one["value"] = row[value];
    one["low"] = row[low];
    one["high"] = row[high];
    out["rows"].push_back(one);
  }
  return out;
}

Json several_data(const std::vector<fs::path>& runs, const fs::path& folder) {
  Json out;
  out["title"] = folder.empty() ? fmt::format("{} runs", runs.size()) : name_of(folder);
  out["subtitle"] = fmt::format("{} runs", runs.size());
  out["pictures"] = Json::object();
  out["sections"] = Json::array();
  if (!folder.empty()) {
    Json tables = section("Tables");
    for (const auto& [file, title] :
         {std::pair("table.tsv", "Results in full"),
          std::pair("comparisons.tsv", "Paired differences"), std::pair("trials.tsv", "Trials"),
          std::pair("sensitivity.tsv", "Sensitivity")}) {
      if (!fs::exists(folder / file)) continue;
      const Json table = table_of(folder / file, title);
      if (!table.contains("rows")) continue;
      if (std::string(file) == "comparisons.tsv") {
        if (const Json chart = differences(table); !chart["rows"].empty()) {
          tables["blocks"].push_back(chart);
        }
      }
      if (std::string(file) == "table.tsv") {
        for (const auto& each : summary_blocks(table)) tables["blocks"].push_back(each);
      }
      tables["blocks"].push_back(table);
    }
    if (!tables["blocks"].empty()) out["sections"].push_back(tables);
  }
  Json section_of_runs = section("Runs");
  Json table = block("table", "Test results of every run");
  Curves valid;
  std::vector<std::string> metrics;
  std::vector<std::pair<std::string, RunResult>> all;
  std::vector<std::pair<std::string, std::vector<Json>>> logs;
  for (const auto& run : runs) {
    const auto lines = read_metrics_log(run / "metrics.jsonl");
    for (const MetricsLine& line : lines) {
      if (line.validates()) valid.add(name_of(run), line.epoch, line.value("score"));
    }
    logs.emplace_back(name_of(run), json_of(lines));
    const auto result = result_of(run);
    if (!result) continue;
    all.emplace_back(name_of(run), *result);
    if (result->test) add_names(*result->test, metrics);
  }
  table["columns"] = texts({"run", "model", "protocol", "seed", "best epoch"});
  for (const auto& metric : metrics) table["columns"].push_back(metric);
  table["rows"] = Json::array();
  for (const auto& [name, result] : all) {
    Json row = Json::array(
        {name, result.model, protocol_words(result.protocol), result.seed, result.selection.epoch});
    for (const auto& metric : metrics) row.push_back(number_json(result.value("test", metric)));
    table["rows"].push_back(row);
  }
  if (!valid.order.empty() && valid.order.size() <= 24) {
    section_of_runs["blocks"].push_back(valid.block_of("Validation score by epoch"));
  }
  if (!all.empty()) section_of_runs["blocks"].push_back(table);
  out["sections"].push_back(section_of_runs);
  for (const auto& part : forgetting_sections(logs)) out["sections"].push_back(part);
  return out;
}

/// What 'features --encoder r2mr' found in a dataset folder.
Json features_data(const fs::path& folder, const Log& log) {
  const Dataset data = load_dataset(folder);
  Items items(folder, data, log);
  Json out;
  out["title"] = "Item features of " + data.name;
  out["subtitle"] = "reviewed by " + read_json(folder / kQuality).value("model", std::string());
  out["pictures"] = Json::object();
  out["sections"] = quality_sections(read_json(folder / kQuality));
  fill_cards(out["sections"], items, out["pictures"]);
  return out;
}

bool is_reviewed_dataset(const fs::path& path) {
  return fs::exists(path / "dataset.json") && fs::exists(path / kQuality);
}

Json data_of(const std::vector<fs::path>& paths, const Log& log) {
  if (paths.size() == 1 && is_reviewed_dataset(paths[0])) return features_data(paths[0], log);
  std::vector<fs::path> runs;
  fs::path folder;
  for (const auto& path : paths) {
    if (fs::exists(path / "config.resolved.json")) {
      runs.push_back(path);
      continue;
    }
    if (!fs::is_directory(path / "runs")) {
      throw data_error("{} is no run folder and holds no runs", path.string());
    }
    folder = path;
    for (const auto& entry : fs::directory_iterator(path / "runs")) {
      if (fs::exists(entry.path() / "config.resolved.json")) runs.push_back(entry.path());
    }
  }
  std::sort(runs.begin(), runs.end());
  return runs.size() == 1 && folder.empty() ? run_data(runs[0], log) : several_data(runs, folder);
}

}  // namespace

Json report_data(const std::vector<fs::path>& paths, const Log& log) {
  if (paths.empty()) throw usage_error("no run given: name a run folder, or the folder of a study");
  Json out = data_of(paths, log);
  out["tessera"] = kVersion;
  out["created"] = now_rfc3339();
  return out;
}

std::string report_page(const Json& data) {
  // "</script>" and "<!--" could end the data early: no '<' is left in it.
  const std::string json = data.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string safe;
  for (const char c : json) {
    if (c == '<') {
      safe += "\\u003c";
    } else {
      safe += c;
    }
  }
  static constexpr std::string_view kMark = "/*DATA*/null";
  std::string page(kReportTemplate);
  const size_t at = page.find(kMark);
  return page.replace(at, kMark.size(), safe);
}

}  // namespace tessera
