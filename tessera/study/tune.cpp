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

namespace tessera {
namespace {

constexpr int64_t kMostTrials = 10000;
constexpr size_t kBins = 4;
const std::vector<std::string> kSamplers = {"grid", "random"};

std::string text(const Json& value) {
  return value.is_string() ? value.get<std::string>()
                           : value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

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

/// MMRec's `hyper_parameters` and `search.`, out of the settings; `own` is what is searched where
/// nothing was named: the model's grid, settings and their values.
Plan plan_of(const TuneRequest& request, const std::vector<std::pair<std::string, Json>>& own) {
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
    for (const auto& [name, values] : own) {
      const bool chosen =
          std::any_of(out.fixed.begin(), out.fixed.end(),
                      [&, &one = name](const Setting& s) { return setting_name(s.name) == one; });
      if (!chosen) add(name, values);
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

TuneRequest resumed(const TuneRequest& request) {
  if (!request.model.empty() || !request.dataset.empty() || !request.settings.empty() ||
      !request.search.empty() || !request.sampler.empty() || request.trials > 0) {
    throw usage_error("--resume {} takes model, dataset and search from the study: leave them out",
                      request.resume.string());
  }
  const Json identity = read_study(request.resume, "tune").identity;
  const std::string what = (request.resume / "study.json").string();
  TuneRequest out = request;
  out.output = request.resume;
  out.model = json_get<std::string>(identity, "model", what);
  out.dataset = json_get<std::string>(identity, "dataset folder", what);
  out.sampler = json_get<std::string>(identity, "sampler", what);
  out.trials = json_get<int64_t>(identity, "trials", what);
  out.trial_seed = json_get<int64_t>(identity, "seed of the trials", what);
  out.seeds = list_from<int64_t>(identity, "seeds", what);
  out.settings = settings_from(identity, "settings", what);
  for (auto& one : settings_from(identity, "search", what)) {
    out.settings.push_back({"search." + one.name, one.value, one.origin});
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

std::vector<Effect> sensitivity(const std::vector<Dimension>& space,
                                const std::vector<TrialResult>& trials) {
  std::vector<Effect> out;
  for (size_t d = 0; d < space.size(); ++d) {
    std::vector<std::pair<double, std::string>> order;
    std::map<std::string, std::vector<double>> scores;
    for (const auto& trial : trials) {
      if (std::isnan(trial.score)) continue;
      const Json& value = trial.settings[d].value;
      const std::string bin = bin_of(space[d], value);
      if (!scores.contains(bin)) order.emplace_back(number_of(value), bin);
      scores[bin].push_back(trial.score);
    }
    if (space[d].kind != Dimension::Kind::list) std::sort(order.begin(), order.end());
    for (const auto& [number, bin] : order) {
      const auto& all = scores[bin];
      out.push_back(
          {space[d].name, bin, static_cast<int64_t>(all.size()), mean_of(all), deviation_of(all)});
    }
  }
  return out;
}

/// trials.tsv and sensitivity.tsv.
void write_search(const fs::path& folder, const TuneResult& result) {
  write_file(folder / "trials.tsv", trials_tsv(result));
  write_file(folder / "sensitivity.tsv", sensitivity_tsv(result));
}

void write_tables(const fs::path& folder, const TuneResult& result) {
  write_search(folder, result);
  write_file(folder / "table.md", tune_markdown(result));
  if (result.compare) {
    write_file(folder / "table.tsv", compare_tsv(*result.compare));
    write_file(folder / "table.tex", compare_latex(*result.compare));
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

TuneResult tune(const TuneRequest& typed) {
  TuneRequest request = typed.resume.empty() ? typed : resumed(typed);
  const Log& log = request.around.log;
  if (request.model.empty()) throw usage_error("no model given: add -m NAME, see 'tessera models'");
  if (request.dataset.empty()) {
    throw usage_error("no dataset given: add -d FOLDER (made by 'tessera import')");
  }
  const ModelInfo& info = find_model(request.model);
  const Plan plan = plan_of(request, find_model(request.model).search);
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
  DataCard card;
  std::string valid_metric;
  {
    DatasetView view;
    view.modalities = train.modalities;
    view.fold = train.fold;
    const Dataset data = load_dataset(request.dataset, view);
    if (!has_rows(data, Split::valid)) {
      throw data_error("'{}' has no validation rows to choose by: import it with another --split",
                       data.name);
    }
    card = DataCard::read(data.about);
    card.name = data.name;
    valid_metric = selecting_metric(train, protocol, data.n_items);
  }
  std::string dataset = fs::absolute(request.dataset).lexically_normal().string();
  if (dataset.size() > 1 && dataset.back() == '/') dataset.pop_back();
  if (request.output.empty()) {
    std::string time = now_rfc3339();
    time.pop_back();
    std::replace(time.begin(), time.end(), ':', '-');
    request.output = fmt::format("runs/{}_tune_{}_{}", time, info.name, file_name(card.name));
  }
  const Study study =
      claim_study(request.output, {"tune",
                                   request.around.command,
                                   {{"model", request.model},
                                    {"dataset folder", dataset},
                                    {"split_sha256", card.split_sha256},
                                    {"features", feature_hashes(dataset, modalities_of_trials)},
                                    {"settings", settings_object(plan.fixed)},
                                    {"search", space_json(plan.space)},
                                    {"sampler", sampler},
                                    {"trials", request.trials},
                                    {"seed of the trials", request.trial_seed},
                                    {"seeds", request.seeds}}});
  if (!typed.resume.empty()) request.around.command = study.command;
  const auto child_of = [&](const std::string& name, const Trial& trial, int64_t seed, bool test) {
    Child child;
    child.folder = request.output / "runs" / name;
    child.model = request.model;
    child.dataset = dataset;
    child.settings = plan.fixed;
    child.settings.insert(child.settings.end(), trial.settings.begin(), trial.settings.end());
    child.settings.push_back({"seed", seed, "tune"});
    child.split_sha256 = card.split_sha256;
    child.look_at_test = test;
    return child;
  };

  TuneResult result;
  result.tessera = kVersion;
  result.command = request.around.command;
  result.folder = request.output.string();
  result.model = info.name;
  result.dataset = card.name;
  result.split = card.split;
  result.split_sha256 = card.split_sha256;
  result.protocol = protocol.name;
  result.valid_metric = valid_metric;
  result.settings = plan.fixed;
  for (const auto& one : plan.space) result.search.emplace_back(one.name, dimension_text(one));
  result.sampler = sampler;
  result.trial_seed = request.trial_seed;
  result.seeds = request.seeds;
  // The protocol's own rule for "better" also chooses among trials (protocol section 5).
  EarlyStopping best(protocol, std::numeric_limits<int64_t>::max() - 1);
  for (size_t t = 0; t < trials.size(); ++t) {
    const Child child = child_of(fmt::format("t{}", t), trials[t], request.trial_seed, false);
    log.info("trial {} of {}: {}{}", t, trials.size(), settings_object(trials[t].settings).dump(),
             child.finished() ? ", finished before" : "");
    const ChildResult done = run_child(child, request.output, request.around);
    TrialResult trial;
    trial.settings = trials[t].settings;
    trial.failure = done.failure;
    if (done.result) {
      trial.score = done.result->selection.value.value_or(Cost::kUnknown);
      trial.best_epoch = done.result->selection.epoch;
      trial.n_epochs = done.result->n_epochs;
      trial.train_s = done.result->time_s.train.value_or(Cost::kUnknown);
      if (!std::isnan(trial.score)) best.add(static_cast<int64_t>(t), trial.score);
    } else {
      log.warn("trial {}: {}", t, done.failure);
    }
    result.trials.push_back(std::move(trial));
  }
  result.sensitivity = sensitivity(plan.space, result.trials);
  if (best.best_epoch() < 0) {
    write_tables(request.output, result);
    throw RunError(Exit::diverged,
                   "no trial came to an end; see trials.tsv in " + request.output.string());
  }
  const auto winner = static_cast<size_t>(best.best_epoch());
  result.winner = winner;
  // Whatever becomes of the winner's runs, the search is kept.
  write_search(request.output, result);
  CompareRequest compared;
  compared.around = request.around;
  for (const int64_t seed : request.seeds) {
    const Child child = child_of(fmt::format("{}_{}_s{}", info.name, file_name(card.name), seed),
                                 trials[winner], seed, true);
    log.info("winner, seed {}{}", seed, child.finished() ? ", finished before" : "");
    const ChildResult done = run_child(child, request.output, request.around);
    if (done.result) {
      compared.runs.push_back(info.name + "=" + child.folder.string());
    } else {
      log.warn("the winner, trial {}, seed {}: {}", winner, seed, done.failure);
      result.failures.push_back({seed, done.failure});
    }
  }
  if (!compared.runs.empty()) {
    result.compare = compare(compared);
    result.test_looks = result.compare->test_looks;
  }
  write_tables(request.output, result);
  return result;
}

}  // namespace tessera
