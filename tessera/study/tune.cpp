#include "tessera/study/tune.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/text.h"
#include "tessera/base/version.h"
#include "tessera/eval/protocol_words.h"
#include "tessera/eval/statistics.h"
#include "tessera/folder/load.h"
#include "tessera/study/compare.h"

namespace tessera {
namespace {

constexpr int64_t kMostTrials = 10000;
constexpr size_t kBins = 4;
const std::vector<std::string> kSamplers = {"grid", "random"};

std::string text(const Json& value) {
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// For one line of a file.
std::string line_text(const Json& value) { return escaped(text(value)); }

std::string without_blanks(const std::string& text) {
  std::string out;
  for (const unsigned char c : text) {
    if (std::isspace(c) == 0) out += static_cast<char>(c);
  }
  return out;
}

/// The two numbers of "word(a,b)".
bool read_range(const std::string& text, const std::string& word, double& low, double& high) {
  if (text.rfind(word + "(", 0) != 0 || text.back() != ')') return false;
  const char *at = text.data() + word.size() + 1, *end = text.data() + text.size() - 1;
  const auto first = std::from_chars(at, end, low);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != ',') return false;
  const auto second = std::from_chars(first.ptr + 1, end, high);
  return second.ec == std::errc() && second.ptr == end && std::isfinite(low) && std::isfinite(high);
}

/// A number as short as it reads back the same.
Json drawn_number(double value) { return Json(fmt::format("{}", value)); }

Json draw(const Dimension& one, const Random& random, uint64_t trial, uint64_t place) {
  const double u = random.uniform(trial, place, 0);
  switch (one.kind) {
    case Dimension::Kind::uniform:
      return drawn_number(one.low + u * (one.high - one.low));
    case Dimension::Kind::loguniform:
      return drawn_number(
          std::exp(std::log(one.low) + u * (std::log(one.high) - std::log(one.low))));
    case Dimension::Kind::whole: {
      uint32_t at = 0;
      const auto n = static_cast<uint32_t>(one.high - one.low) + 1;
      return drawn_number(one.low + random.below(n, trial, place, at));
    }
    case Dimension::Kind::list:
      break;
  }
  uint32_t at = 0;
  return one.values[random.below(static_cast<uint32_t>(one.values.size()), trial, place, at)];
}

/// How many points a space of lists has; 0 when it has ranges, or is larger than kMostTrials^2.
int64_t n_points(const std::vector<Dimension>& space) {
  int64_t n = 1;
  for (const auto& one : space) {
    if (one.kind != Dimension::Kind::list) return 0;
    n *= static_cast<int64_t>(one.values.size());
    if (n > kMostTrials * kMostTrials) return 0;
  }
  return n;
}

// ---------------------------------------------------------------- the plan

struct Plan {
  Settings fixed;
  std::vector<Dimension> space;
};

/// MMRec's `hyper_parameters` and `search.`, out of the settings.
Plan plan_of(const TuneRequest& request) {
  Plan out;
  const Log& log = request.around.log;
  std::vector<std::string> named;
  for (const auto& setting : request.settings) {
    if (setting_name(setting.name) != "hyper_parameters") continue;
    const Json& value = setting.value;
    if (value.is_array()) {
      for (const auto& one : value) named.push_back(setting_name(text(one)));
    } else {
      throw usage_error("hyper_parameters: wanted a list of setting names, got {}",
                        printable(text(value)));
    }
  }
  const auto add = [&](const std::string& name, const Json& value) {
    std::erase_if(out.space, [&](const Dimension& one) { return one.name == name; });
    out.space.push_back(parse_dimension(name, value));
  };
  std::set<std::string> found;
  for (const auto& setting : request.settings) {
    const std::string name = setting_name(setting.name);
    if (name == "hyper_parameters") continue;
    if (name.rfind("search.", 0) == 0) {
      add(name.substr(7), setting.value);
    } else if (std::find(named.begin(), named.end(), name) != named.end() &&
               setting.value.is_array()) {
      found.insert(name);
      if (name == "seed") {
        log.info("hyper_parameters: the seed is not searched; trials have seed {}",
                 request.trial_seed);
      } else {
        add(name, setting.value);
      }
    } else {
      out.fixed.push_back(setting);
    }
  }
  for (const auto& typed : request.search) {
    const size_t equals = typed.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw usage_error("--search wants name=values such as n_layers=1,2, got '{}'",
                        printable(typed));
    }
    add(setting_name(typed.substr(0, equals)), parse_value(typed.substr(equals + 1)));
  }
  for (const auto& name : named) {
    const bool fixed = std::any_of(out.fixed.begin(), out.fixed.end(),
                                   [&](const Setting& s) { return setting_name(s.name) == name; });
    if (!found.contains(name) && !fixed && name != "seed") {
      throw usage_error("hyper_parameters names '{}', which has no list of values",
                        printable(name));
    }
  }
  if (out.space.empty()) {
    throw usage_error("nothing to search: add --search name=values, or search: to a -c file");
  }
  for (const auto& one : out.space) {
    static const std::vector<std::string> kNever = {"seed", "protocol",   "metrics",     "topk",
                                                    "fold", "test_curve", "valid_metric"};
    if (std::find(kNever.begin(), kNever.end(), one.name) != kNever.end()) {
      throw usage_error("'{}' cannot be searched: it decides how a trial is measured", one.name);
    }
    std::erase_if(out.fixed, [&](const Setting& s) { return setting_name(s.name) == one.name; });
  }
  return out;
}

Json space_json(const std::vector<Dimension>& space) {
  Json out = Json::object();
  for (const auto& one : space) out[one.name] = dimension_text(one);
  return out;
}

Settings settings_from(const Json& object) {
  Settings out;
  for (const auto& [name, value] : object.items()) out.push_back({name, value, "study.json"});
  return out;
}

TuneRequest resumed(const TuneRequest& request) {
  if (!request.model.empty() || !request.dataset.empty() || !request.settings.empty() ||
      !request.search.empty() || !request.sampler.empty() || request.trials > 0) {
    throw usage_error("--resume {} takes model, dataset and search from the study: leave them out",
                      request.resume.string());
  }
  const Json identity = study_identity(request.resume, "tune");
  const std::string what = (request.resume / "study.json").string();
  TuneRequest out = request;
  out.output = request.resume;
  out.model = json_get<std::string>(identity, "model", what);
  out.dataset = json_get<std::string>(identity, "dataset folder", what);
  out.sampler = json_get<std::string>(identity, "sampler", what);
  out.trials = json_get<int64_t>(identity, "trials", what);
  out.trial_seed = json_get<int64_t>(identity, "seed of the trials", what);
  try {
    out.seeds = identity.at("seeds").get<std::vector<int64_t>>();
    out.settings = settings_from(identity.at("settings"));
    for (const auto& [name, value] : identity.at("search").items()) {
      out.settings.push_back({"search." + name, value, "study.json"});
    }
  } catch (const nlohmann::json::exception&) {
    throw data_error("{}: damaged, its identity is not one of tune's", what);
  }
  return out;
}

// ---------------------------------------------------------------- sensitivity

double number_of(const Json& value) {
  if (value.is_number()) return value.get<double>();
  double out = std::numeric_limits<double>::quiet_NaN();
  const std::string typed = text(value);
  std::from_chars(typed.data(), typed.data() + typed.size(), out);
  return out;
}

/// The name under which a value is counted: itself, or the quarter of its range.
std::string bin_of(const Dimension& one, const Json& value) {
  if (one.kind == Dimension::Kind::list || one.kind == Dimension::Kind::whole) return text(value);
  const bool log = one.kind == Dimension::Kind::loguniform;
  const auto to = [log](double x) { return log ? std::log(x) : x; };
  const auto from = [log](double x) { return log ? std::exp(x) : x; };
  const double low = to(one.low), width = (to(one.high) - low) / kBins;
  const auto bin =
      std::min<double>(kBins - 1, std::max(0.0, std::floor((to(number_of(value)) - low) / width)));
  return fmt::format("{:.3g} to {:.3g}", from(low + bin * width), from(low + (bin + 1) * width));
}

Json sensitivity(const std::vector<Dimension>& space, const Json& trials) {
  Json out = Json::array();
  for (const auto& one : space) {
    std::vector<std::pair<double, std::string>> order;
    std::map<std::string, std::vector<double>> scores;
    for (const auto& trial : trials) {
      if (!trial["score"].is_number()) continue;
      const Json& value = trial["settings"][one.name];
      const std::string bin = bin_of(one, value);
      if (!scores.contains(bin)) order.emplace_back(number_of(value), bin);
      scores[bin].push_back(trial["score"].get<double>());
    }
    if (one.kind != Dimension::Kind::list) std::sort(order.begin(), order.end());
    for (const auto& [number, bin] : order) {
      Json row = {{"setting", one.name}, {"value", bin}, {"n", scores[bin].size()}};
      const Json summary = summary_of(scores[bin]);
      row["mean"] = summary["mean"];
      row["sd"] = summary["sd"];
      out.push_back(row);
    }
  }
  return out;
}

// ---------------------------------------------------------------- files

std::vector<std::string> facts(const Json& result) {
  std::string space, settings;
  for (const auto& [name, values] : result["search"].items()) {
    space += (space.empty() ? "" : ", ") + name + " in " + line_text(values);
  }
  for (const auto& [name, value] : result["settings"].items()) {
    settings += (settings.empty() ? "" : ", ") + name + "=" + line_text(value);
  }
  std::string seeds;
  for (const auto& seed : result["seeds"]) seeds += (seeds.empty() ? "" : ", ") + seed.dump();
  std::vector<std::string> out = {
      "command: " + line_text(result["command"]),
      fmt::format("tessera {}, protocol {}", line_text(result["tessera"]),
                  protocol_words(line_text(result["protocol"]))),
      fmt::format("dataset {}: split {}, split_sha256 {}", line_text(result["dataset"]),
                  line_text(result["split"]), line_text(result["split_sha256"])),
      fmt::format("search: {} ({}, {} trials, seed {}), chosen by valid {} alone", space,
                  line_text(result["sampler"]), result["trials"].size(),
                  result["trial_seed"].dump(), line_text(result["valid_metric"]))};
  if (!settings.empty()) out.push_back("settings of every run: " + settings);
  out.push_back("looks at test in the trials: 0");
  out.push_back(fmt::format("seeds of the winner: {}; looks at test: {}, one a run",
                            seeds.empty() ? "none" : seeds, result["test_looks"].dump()));
  if (result["winner"].contains("failures")) {
    for (const auto& failure : result["winner"]["failures"]) {
      out.push_back(fmt::format("note: the winner's seed {} is left out: {}",
                                failure["seed"].dump(), line_text(failure["what"])));
    }
  }
  return out;
}

std::string cell(const Json& value) { return value.is_null() ? "" : line_text(value); }

/// trials.tsv and sensitivity.tsv.
void write_search(const fs::path& folder, const Json& result) {
  std::string head;
  for (const auto& line : facts(result)) head += "# " + line + "\n";
  std::string trials = head + "trial";
  for (const auto& [name, values] : result["search"].items()) trials += "\t" + name;
  trials += fmt::format("\tvalid_{}\tbest_epoch\tn_epochs\ttrain_s\tstate\n",
                        line_text(result["valid_metric"]));
  for (const auto& trial : result["trials"]) {
    trials += trial["trial"].dump();
    for (const auto& [name, values] : result["search"].items()) {
      trials += "\t" + cell(trial["settings"][name]);
    }
    for (const char* key : {"score", "best_epoch", "n_epochs", "train_s", "state"}) {
      trials += "\t" + cell(trial[key]);
    }
    trials += "\n";
  }
  write_file(folder / "trials.tsv", trials);
  std::string rows = head + "setting\tvalue\tmean\tdeviation\ttrials\n";
  for (const auto& row : result["sensitivity"]) {
    rows += fmt::format("{}\t{}\t{}\t{}\t{}\n", line_text(row["setting"]), line_text(row["value"]),
                        cell(row["mean"]), cell(row["sd"]), row["n"].dump());
  }
  write_file(folder / "sensitivity.tsv", rows);
}

void write_tables(const fs::path& folder, const Json& result) {
  write_search(folder, result);
  write_file(folder / "table.md", tune_markdown(result));
  if (result["winner"].contains("compare")) {
    write_file(folder / "table.tsv", compare_tsv(result["winner"]["compare"]));
    write_file(folder / "table.tex", compare_latex(result["winner"]["compare"]));
  }
}

}  // namespace

Dimension parse_dimension(const std::string& name, const Json& value) {
  Dimension out;
  out.name = setting_name(name);
  const auto refuse = [&](const std::string& why) {
    return usage_error(
        "search of {}: {}, got {}; forms are [1, 2], uniform(a, b), "
        "loguniform(a, b), int(a, b)",
        printable(out.name), why, printable(text(value)));
  };
  if (value.is_array()) {
    for (const auto& one : value) {
      if (one.is_array() || one.is_object() || one.is_null()) throw refuse("wanted plain values");
      out.values.push_back(one);
    }
  } else if (value.is_string()) {
    std::string typed = without_blanks(value.get<std::string>());
    for (const auto& [word, kind] : {std::pair{"uniform", Dimension::Kind::uniform},
                                     {"loguniform", Dimension::Kind::loguniform},
                                     {"int", Dimension::Kind::whole}}) {
      if (!read_range(typed, word, out.low, out.high)) continue;
      out.kind = kind;
      if (!(out.low < out.high)) throw refuse("wanted a below b");
      if (kind == Dimension::Kind::loguniform && out.low <= 0) throw refuse("wanted a above 0");
      if (kind == Dimension::Kind::whole &&
          (out.low != std::floor(out.low) || out.high != std::floor(out.high) ||
           out.high - out.low > 1e9)) {
        throw refuse("wanted whole numbers");
      }
      return out;
    }
    if (typed.find('(') != std::string::npos) {
      const std::string word = typed.substr(0, typed.find('('));
      throw refuse(
          fmt::format("no such range{}", did_you_mean(word, {"uniform", "loguniform", "int"})));
    }
    if (typed.size() >= 2 && typed.front() == '[' && typed.back() == ']') {
      typed = typed.substr(1, typed.size() - 2);
    }
    for (const auto& one : split_list(typed)) out.values.emplace_back(one);
  } else {
    out.values.push_back(value);
  }
  if (out.values.empty()) throw refuse("no values");
  std::set<std::string> seen;
  for (const auto& one : out.values) {
    if (!seen.insert(text(one)).second) throw refuse("a value is named twice");
  }
  return out;
}

std::string dimension_text(const Dimension& one) {
  switch (one.kind) {
    case Dimension::Kind::uniform:
      return fmt::format("uniform({}, {})", one.low, one.high);
    case Dimension::Kind::loguniform:
      return fmt::format("loguniform({}, {})", one.low, one.high);
    case Dimension::Kind::whole:
      return fmt::format("int({}, {})", one.low, one.high);
    case Dimension::Kind::list:
      break;
  }
  std::string out;
  for (const auto& value : one.values) out += (out.empty() ? "" : ", ") + text(value);
  return "[" + out + "]";
}

std::vector<Trial> make_trials(const std::vector<Dimension>& space, const std::string& sampler,
                               int64_t n, uint64_t seed) {
  std::vector<Trial> out;
  const int64_t points = n_points(space);
  if (sampler == "grid") {
    for (const auto& one : space) {
      if (one.kind != Dimension::Kind::list) {
        throw usage_error("a grid needs lists, {} is {}: use --sampler random", one.name,
                          dimension_text(one));
      }
    }
    if (points == 0 || points > kMostTrials) {
      throw usage_error("this grid has more than {} points: use --sampler random --trials N",
                        kMostTrials);
    }
    for (int64_t point = 0; point < points; ++point) {
      Trial trial;
      int64_t rest = point;
      for (size_t d = space.size(); d-- > 0;) {
        const auto size = static_cast<int64_t>(space[d].values.size());
        trial.settings.insert(trial.settings.begin(),
                              {space[d].name, space[d].values[rest % size], "search"});
        rest /= size;
      }
      out.push_back(std::move(trial));
    }
    return out;
  }
  const Random random(seed, "tune");
  const int64_t wanted = points > 0 ? std::min(n, points) : n;
  std::set<std::string> seen;
  for (uint64_t at = 0; static_cast<int64_t>(out.size()) < wanted; ++at) {
    Trial trial;
    for (size_t d = 0; d < space.size(); ++d) {
      trial.settings.push_back({space[d].name, draw(space[d], random, at, d), "search"});
    }
    // Spaces that hold few points are drawn from without replacement.
    const bool fresh = seen.insert(settings_object(trial.settings).dump()).second;
    if (fresh || (points == 0 && at > 100 * static_cast<uint64_t>(wanted))) {
      out.push_back(std::move(trial));
    }
  }
  return out;
}

Json tune(const TuneRequest& typed) {
  TuneRequest request = typed.resume.empty() ? typed : resumed(typed);
  const Log& log = request.around.log;
  if (request.model.empty()) throw usage_error("no model given: add -m NAME, see 'tessera models'");
  if (request.dataset.empty()) {
    throw usage_error("no dataset given: add -d FOLDER (made by 'tessera import')");
  }
  const ModelInfo& info = find_model(request.model);
  const Plan plan = plan_of(request);
  std::string sampler;
  for (const auto& name : kSamplers) {
    if (squeezed(name) == squeezed(request.sampler)) sampler = name;
  }
  if (request.sampler.empty()) {
    sampler = n_points(plan.space) > 0 && request.trials == 0 ? "grid" : "random";
  } else if (sampler.empty()) {
    throw usage_error("no sampler '{}'{}: samplers are {}", printable(request.sampler),
                      did_you_mean(request.sampler, kSamplers), fmt::join(kSamplers, ", "));
  }
  if (request.trials < 0 || request.trials > kMostTrials) {
    throw usage_error("--trials must be from 1 to {}, got {}", kMostTrials, request.trials);
  }
  const auto trials = make_trials(plan.space, sampler, request.trials > 0 ? request.trials : 20,
                                  static_cast<uint64_t>(request.trial_seed));
  if (sampler == "grid" && request.trials > 0 &&
      request.trials != static_cast<int64_t>(trials.size())) {
    throw usage_error("the grid has {} points, --trials {}: leave it out, or use --sampler random",
                      trials.size(), request.trials);
  }
  Settings implied = implied_settings(request.model);
  implied.insert(implied.end(), plan.fixed.begin(), plan.fixed.end());
  RunSettings resolved;
  std::vector<std::vector<std::string>> modalities_of_trials;
  for (const auto& trial : trials) {
    Settings all = implied;
    all.insert(all.end(), trial.settings.begin(), trial.settings.end());
    resolved = resolve_settings(info, all);
    modalities_of_trials.push_back(resolved.train_settings.modalities);
  }
  const TrainSettings& train = resolved.train_settings;
  const Protocol& protocol = find_protocol(train.protocol);
  refuse_in_tables(protocol, "tune");
  Json about;
  std::string dataset_name, valid_metric;
  {
    DatasetView view;
    view.modalities = train.modalities;
    view.fold = train.fold;
    const Dataset data = load_dataset(request.dataset, view);
    if (!has_rows(data, Split::valid)) {
      throw data_error("'{}' has no validation rows to choose by: import it with another --split",
                       data.name);
    }
    about = data.about;
    dataset_name = data.name;
    valid_metric = selecting_metric(train, protocol, data.n_items);
  }
  std::string dataset = fs::absolute(request.dataset).lexically_normal().string();
  if (dataset.size() > 1 && dataset.back() == '/') dataset.pop_back();
  if (request.output.empty()) {
    std::string time = now_rfc3339();
    time.pop_back();
    std::replace(time.begin(), time.end(), ':', '-');
    request.output = fmt::format("runs/{}_tune_{}_{}", time, info.name, file_name(dataset_name));
  }
  const std::string split_sha256 =
      about.contains("split_sha256") ? text(about["split_sha256"]) : "";
  const std::string began_by =
      claim_study(request.output, "tune", request.around.command,
                  {{"model", request.model},
                   {"dataset folder", dataset},
                   {"split_sha256", split_sha256},
                   {"features", feature_hashes(dataset, modalities_of_trials)},
                   {"settings", settings_object(plan.fixed)},
                   {"search", space_json(plan.space)},
                   {"sampler", sampler},
                   {"trials", request.trials},
                   {"seed of the trials", request.trial_seed},
                   {"seeds", request.seeds}});
  if (!typed.resume.empty()) request.around.command = began_by;
  const auto child_of = [&](const std::string& name, const Trial& trial, int64_t seed, bool test) {
    Child child;
    child.folder = request.output / "runs" / name;
    child.model = request.model;
    child.dataset = dataset;
    child.settings = plan.fixed;
    child.settings.insert(child.settings.end(), trial.settings.begin(), trial.settings.end());
    child.settings.push_back({"seed", seed, "tune"});
    child.split_sha256 = split_sha256;
    child.look_at_test = test;
    return child;
  };

  Json result = {{"kind", "tune"},
                 {"tessera", kVersion},
                 {"command", request.around.command},
                 {"folder", request.output.string()},
                 {"model", info.name},
                 {"dataset", dataset_name},
                 {"split", split_words(about)},
                 {"split_sha256", split_sha256},
                 {"protocol", protocol.name},
                 {"valid_metric", valid_metric},
                 {"settings", settings_object(plan.fixed)},
                 {"search", space_json(plan.space)},
                 {"sampler", sampler},
                 {"trial_seed", request.trial_seed},
                 {"seeds", request.seeds}};
  result["trials"] = Json::array();
  // The protocol's own rule for "better" also chooses among trials (protocol section 5).
  EarlyStopping best(protocol, std::numeric_limits<int64_t>::max() - 1);
  for (size_t t = 0; t < trials.size(); ++t) {
    const Child child = child_of(fmt::format("t{}", t), trials[t], request.trial_seed, false);
    log.info("trial {} of {}: {}{}", t, trials.size(), settings_object(trials[t].settings).dump(),
             child.finished() ? ", finished before" : "");
    const ChildResult done = run_child(child, request.output, "tune", request.around);
    Json row = {{"trial", t},
                {"settings", settings_object(trials[t].settings)},
                {"score", nullptr},
                {"best_epoch", nullptr},
                {"n_epochs", nullptr},
                {"train_s", nullptr},
                {"state", done.failure.empty() ? "finished" : done.failure}};
    if (done.failure.empty()) {
      row["score"] = done.results["selection"]["value"];
      row["best_epoch"] = done.results["selection"]["epoch"];
      row["n_epochs"] = done.results["n_epochs"];
      row["train_s"] = done.results["time_s"]["train"];
      if (row["score"].is_number()) best.add(static_cast<int64_t>(t), row["score"].get<double>());
    } else {
      log.warn("trial {}: {}", t, done.failure);
    }
    result["trials"].push_back(std::move(row));
  }
  result["sensitivity"] = sensitivity(plan.space, result["trials"]);
  if (best.best_epoch() < 0) {
    result["winner"] = Json::object();
    result["test_looks"] = 0;
    write_tables(request.output, result);
    throw RunError(Exit::diverged,
                   "no trial came to an end; see trials.tsv in " + request.output.string());
  }
  const auto winner = static_cast<size_t>(best.best_epoch());
  result["winner"] = {{"trial", winner},
                      {"settings", settings_object(trials[winner].settings)},
                      {"score", result["trials"][winner]["score"]},
                      {"failures", Json::array()}};
  result["test_looks"] = 0;
  // Whatever becomes of the winner's runs, the search is kept.
  write_search(request.output, result);
  if (!request.seeds.empty()) {
    CompareRequest compared;
    compared.around = request.around;
    compared.test_metric = "";
    for (const int64_t seed : request.seeds) {
      const Child child =
          child_of(fmt::format("{}_{}_s{}", info.name, file_name(dataset_name), seed),
                   trials[winner], seed, true);
      log.info("winner, seed {}{}", seed, child.finished() ? ", finished before" : "");
      const ChildResult done = run_child(child, request.output, "tune", request.around);
      if (done.failure.empty()) {
        compared.runs.push_back(info.name + "=" + child.folder.string());
      } else {
        log.warn("the winner, trial {}, seed {}: {}", winner, seed, done.failure);
        result["winner"]["failures"].push_back({{"seed", seed}, {"what", done.failure}});
      }
    }
    if (!compared.runs.empty()) {
      result["winner"]["compare"] = compare(compared);
      result["test_looks"] = result["winner"]["compare"]["test_looks"];
    }
  }
  write_tables(request.output, result);
  return result;
}

std::string tune_markdown(const Json& result) {
  const std::string metric = published_metric(text(result["valid_metric"]));
  std::vector<std::vector<std::string>> rows(1);
  rows[0].emplace_back("trial");
  for (const auto& [name, values] : result["search"].items()) rows[0].push_back(name);
  for (const auto& head :
       {metric + " (valid)", std::string("best epoch"), std::string("train s")}) {
    rows[0].push_back(head);
  }
  const Json& winner = result["winner"];
  for (const auto& trial : result["trials"]) {
    const bool won = winner.contains("trial") && winner["trial"] == trial["trial"];
    std::vector<std::string> row = {trial["trial"].dump()};
    for (const auto& [name, values] : result["search"].items()) {
      row.push_back(line_text(trial["settings"][name]));
    }
    const std::string score =
        trial["score"].is_null() ? "diverged" : number_cell(trial["score"], "{:.4f}");
    row.push_back(won ? "**" + score + "**" : score);
    row.push_back(trial["best_epoch"].is_null() ? "-" : trial["best_epoch"].dump());
    row.push_back(number_cell(trial["train_s"], "{:.1f}"));
    rows.push_back(std::move(row));
  }
  std::string out =
      fmt::format("### {} on {}: {} trials, protocol {}\n\n{}\n", line_text(result["model"]),
                  line_text(result["dataset"]), result["trials"].size(),
                  protocol_words(text(result["protocol"])), markdown_table(rows));
  std::vector<std::vector<std::string>> effects = {
      {"setting", "value", metric + " (valid)", "trials"}};
  for (const auto& row : result["sensitivity"]) {
    effects.push_back(
        {line_text(row["setting"]), line_text(row["value"]), summary_cell(row), row["n"].dump()});
  }
  out += "### Sensitivity: mean and deviation over the trials with a value\n\n" +
         markdown_table(effects) + "\n";
  const bool failed = winner.contains("failures") && !winner["failures"].empty();
  if (failed && !winner.contains("compare")) {
    out += "### The winner: trial " + winner["trial"].dump() + "\n\n";
  }
  if (winner.contains("compare")) {
    out += "### The winner: trial " + winner["trial"].dump() + "\n\n";
    const std::string table = compare_markdown(winner["compare"]);
    // The table alone: what made it is told below for the whole search.
    const size_t begin = table.find('|'), end = table.find("\n\n", begin);
    out += "#" + table.substr(0, begin) + table.substr(begin, end - begin) + "\n\n";
  }
  for (const auto& line : facts(result)) out += "- " + line + "\n";
  return out;
}

}  // namespace tessera
