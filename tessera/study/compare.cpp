#include "tessera/study/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
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

constexpr const char* kTests[] = {"t", "wilcoxon"};
constexpr uint64_t kBootstrapSeed = 999;
constexpr size_t kSeedsForTest = 5;

// What decides how a run is measured must be the same in all rows of a table.
const std::vector<std::string>& shared_only() {
  static const std::vector<std::string> names = {
      "protocol",   "metrics",  "topk", "valid_metric", "sparse_max",
      "tail_ratio", "map_norm", "fold", "seed",         "test_curve"};
  return names;
}

// ---------------------------------------------------------------- rows

/// `text` cut at each of `separators` that stands outside brackets.
std::vector<std::string> cut(const std::string& text, const std::string& separators) {
  std::vector<std::string> out(1);
  int depth = 0;
  for (const char c : text) {
    if (c == '[') ++depth;
    if (c == ']' && --depth < 0) {
      throw usage_error("row '{}': ']' without '['", printable(text));
    }
    if (depth == 0 && separators.find(c) != std::string::npos) {
      out.emplace_back();
    } else {
      out.back() += c;
    }
  }
  if (depth > 0) throw usage_error("row '{}': '[' without ']'", printable(text));
  std::vector<std::string> kept;
  for (const auto& part : out) {
    if (const auto inner = trimmed(part); !inner.empty()) kept.push_back(inner);
  }
  return kept;
}

/// The registered spelling of a model's name or of one of its aliases.
std::string spelled(const std::string& typed) {
  const ModelInfo& info = find_model(typed);
  for (const auto& [alias, settings] : info.aliases) {
    if (squeezed(alias) == squeezed(typed)) return alias;
  }
  return info.name;
}

/// A label stands in one cell of every table.
void check_label(const std::string& label, const std::string& typed) {
  if (escaped(label) == label) return;
  throw usage_error("row '{}': a label is one line without tabs: give it another one, x={}",
                    printable(typed), printable(typed.substr(typed.find('=') + 1)));
}

CompareRow parse_row(const std::string& text) {
  CompareRow row;
  std::string rest = text;
  const size_t equals = text.find('='), bracket = text.find('[');
  if (equals != std::string::npos && equals < bracket) {
    row.label = trimmed(text.substr(0, equals));
    rest = trimmed(text.substr(equals + 1));
    if (row.label.empty()) throw usage_error("row '{}': nothing before '='", printable(text));
  }
  if (rest.rfind("recs:", 0) == 0) {
    row.lists = cut(rest.substr(5), "+");
    if (row.lists.empty()) throw usage_error("row '{}': no file after recs:", printable(text));
    if (row.label.empty()) row.label = fs::path(row.lists[0]).stem().string();
    check_label(row.label, text);
    return row;
  }
  const size_t open = rest.find('[');
  const std::string name = trimmed(rest.substr(0, open));
  row.model = spelled(name);
  row.bare = row.label.empty() && open == std::string::npos;
  std::string shown;
  if (open != std::string::npos) {
    if (rest.back() != ']') {
      throw usage_error("row '{}': '{}' after ']'", printable(text),
                        printable(rest.substr(rest.rfind(']') + 1)));
    }
    for (const auto& part : cut(rest.substr(open + 1, rest.size() - open - 2), ",")) {
      const size_t at = part.find('=');
      if (at == std::string::npos || at == 0) {
        throw usage_error("row '{}': wanted name=value in the brackets, got '{}' (a list is a+b)",
                          printable(text), printable(part));
      }
      const std::string key = setting_name(trimmed(part.substr(0, at)));
      row.settings.push_back({key, parse_value(trimmed(part.substr(at + 1))), "row"});
      shown += (shown.empty() ? "" : ",") + key + "=" + trimmed(part.substr(at + 1));
    }
  }
  if (row.label.empty()) row.label = row.model + (shown.empty() ? "" : "[" + shown + "]");
  check_label(row.label, text);
  return row;
}

void check_labels(const std::vector<CompareRow>& rows) {
  std::set<std::string> labels, files;
  for (const auto& row : rows) {
    if (!labels.insert(row.label).second) {
      throw usage_error("two rows are called '{}': give one another label, x={}",
                        printable(row.label), row.model.empty() ? "recs:FILE" : row.model);
    }
    if (!files.insert(file_name(row.label)).second) {
      throw usage_error("row '{}' would share its folder with another one: give it another label",
                        printable(row.label));
    }
    if (row.label == "all") throw usage_error("a row may not be called 'all'");
  }
}

/// The settings of `shared` that the row's model or the training knows, then the row's own.
Settings settings_of(const CompareRow& row, const Settings& shared) {
  const ModelInfo& info = find_model(row.model);
  const auto own = info.fields();
  Fields training("train");
  TrainSettings defaults;
  defaults.describe(training);
  Settings out;
  for (const auto& setting : shared) {
    if (own->knows(setting.name) || training.knows(setting.name)) out.push_back(setting);
  }
  out.insert(out.end(), row.settings.begin(), row.settings.end());
  return out;
}

/// Refuses wrong settings of rows and shared ones that no row's model knows.
void check_settings(const std::vector<CompareRow>& rows, const Settings& shared, const Log& log) {
  for (const auto& row : rows) {
    if (!row.lists.empty()) continue;
    for (const auto& setting : row.settings) {
      const auto name = setting_name(setting.name);
      if (std::find(shared_only().begin(), shared_only().end(), name) != shared_only().end()) {
        throw usage_error(
            "row '{}': {} is the same for all rows of a table; give --{} for the whole comparison",
            printable(row.label), name, name);
      }
    }
    resolve_settings(find_model(row.model), settings_of(row, shared));
  }
  for (const auto& setting : shared) {
    std::vector<std::string> without;
    std::optional<CompareRow> refused;
    bool known = false;
    for (const auto& row : rows) {
      if (!row.lists.empty()) continue;
      const Settings one = settings_of({row.label, row.model, {}, {}}, {setting});
      known = known || !one.empty();
      if (!one.empty()) continue;
      without.push_back(row.label);
      refused = row;
    }
    if (refused && !known) resolve_settings(find_model(refused->model), {setting});
    if (!without.empty()) {
      log.info("{} does not concern {}: no such setting", setting.name, fmt::join(without, ", "));
    }
  }
}

/// The training settings that all rows share.
TrainSettings shared_train(const Settings& shared) {
  TrainSettings out;
  Fields fields("compare");
  out.describe(fields);
  fields.apply(shared);
  return out;
}

// ---------------------------------------------------------------- the plan

struct DatasetPlan {
  DataCard card;
  std::string path;
  Json features;         ///< hashes of those that the rows read
  std::string reported;  ///< test or valid
  std::vector<std::string> metrics;
  std::string valid_metric, test_metric;
  std::vector<CompareRow> rows;
};

/// The per-user metric that the tests are about.
std::string choose_test_metric(const std::string& typed, const std::string& selecting,
                               const std::vector<Metric>& measured) {
  std::vector<std::string> names;
  for (const auto& metric : measured) {
    if (metric.per_user()) names.push_back(metric.name());
  }
  if (names.empty()) {
    throw usage_error(
        "none of the metrics is a mean over users, so nothing can be tested: add one "
        "such as recall@20 to --metrics");
  }
  const std::string wanted = typed.empty() ? selecting : canonical_metric(typed);
  if (std::find(names.begin(), names.end(), wanted) != names.end()) return wanted;
  if (typed.empty()) return names.front();
  throw usage_error("--test-metric '{}' is not measured for each user{}: there are {}",
                    printable(typed), did_you_mean(wanted, names), fmt::join(names, ", "));
}

/// What a row of lists is measured by: as a run, all K written out.
EvalOptions list_options(const TrainSettings& train, const Protocol& protocol, int64_t n_items) {
  EvalOptions options = eval_options(train, protocol);
  options.topk = cut_topk(options, n_items);
  if (options.metrics.empty()) {
    for (const auto& name : default_metrics()) {
      for (const int64_t k : options.topk) options.metrics.push_back(fmt::format("{}@{}", name, k));
    }
  }
  options.slices = options.per_user = true;
  return options;
}

DatasetPlan plan_dataset(const CompareRequest& request, const std::string& path,
                         const std::vector<CompareRow>& typed) {
  const TrainSettings train = shared_train(request.settings);
  DatasetView view;
  view.modalities = train.modalities;
  view.fold = train.fold;
  const Dataset data = load_dataset(path, view);
  const Protocol& protocol = find_protocol(train.protocol);
  DatasetPlan out;
  out.path = fs::absolute(path).lexically_normal().string();
  if (out.path.size() > 1 && out.path.back() == '/') out.path.pop_back();
  out.card = DataCard::read(data.about);
  out.card.name = data.name;
  out.reported = has_rows(data, Split::test) ? "test" : "valid";
  if (out.reported == "valid" && !has_rows(data, Split::valid)) {
    throw data_error("{}: neither test nor valid rows, nothing to compare by", path);
  }
  EvalOptions options = eval_options(train, protocol);
  options.topk = cut_topk(options, data.n_items);
  for (const int64_t k : options.topk) {
    if (k > data.n_items) {
      throw usage_error("topk {} is larger than the catalogue of {} items in '{}'", k, data.n_items,
                        data.name);
    }
  }
  const bool chosen = !options.metrics.empty();
  const std::vector<std::string> main = {"recall", "ndcg"};
  for (const Metric& metric : expand_metrics(chosen ? options.metrics : main, options.topk)) {
    out.metrics.push_back(metric.name());
  }
  out.valid_metric = selecting_metric(train, protocol, data.n_items);
  out.test_metric = choose_test_metric(
      request.test_metric, out.valid_metric,
      expand_metrics(chosen ? options.metrics : default_metrics(), options.topk));
  std::vector<std::string> modalities;
  for (const auto& feature : data.features) modalities.push_back(feature.name);
  for (const auto& row : typed) {
    if (request.ablations && row.bare) {
      const auto more = with_ablations(row, modalities);
      out.rows.insert(out.rows.end(), more.begin(), more.end());
    } else {
      out.rows.push_back(row);
    }
  }
  check_labels(out.rows);
  for (auto& row : out.rows) {
    for (auto& list : row.lists) {
      if (const size_t at = list.find("{dataset}"); at != std::string::npos) {
        list.replace(at, 9, data.name);
      } else if (request.datasets.size() > 1) {
        throw usage_error(
            "row '{}': lists belong to one dataset, {} are given: write {{dataset}} "
            "where its name stands in the path",
            printable(row.label), request.datasets.size());
      }
      if (!fs::exists(list)) {
        throw data_error("row '{}' on '{}': no file of lists {}", printable(row.label),
                         out.card.name, printable(list, 200));
      }
      // What is wrong with lists is said before anything runs.
      try {
        evaluate_lists(read_recommendations(list, data), data, protocol,
                       out.reported == "test" ? Split::test : Split::valid,
                       list_options(train, protocol, data.n_items));
      } catch (const InputError& e) {
        throw InputError(e.code(), fmt::format("row '{}' on '{}': {}", printable(row.label),
                                               out.card.name, e.what()));
      }
    }
    if (row.lists.size() > 1 && row.lists.size() != request.seeds.size()) {
      throw usage_error("row '{}': {} files of lists for {} seeds: give one a seed, or one in all",
                        printable(row.label), row.lists.size(), request.seeds.size());
    }
  }
  std::vector<std::vector<std::string>> modalities_of_rows;
  for (const auto& row : out.rows) {
    if (!row.lists.empty()) continue;
    modalities_of_rows.push_back(
        resolve_settings(find_model(row.model), settings_of(row, request.settings))
            .train_settings.modalities);
  }
  out.features = feature_hashes(out.path, modalities_of_rows);
  return out;
}

/// One run or file of lists: where it lies and what makes it.
Child child_of(const CompareRequest& request, const DatasetPlan& plan, const CompareRow& row,
               int64_t seed) {
  Child child;
  child.folder = request.output / "runs" /
                 fmt::format("{}_{}_s{}", file_name(row.label), file_name(plan.card.name), seed);
  child.model = row.model;
  child.dataset = plan.path;
  child.split_sha256 = plan.card.split_sha256;
  if (!row.model.empty()) child.settings = settings_of(row, request.settings);
  child.settings.push_back({"seed", seed, "compare"});
  return child;
}

/// Labels and names that are joined or written as file names may meet: "a_b" and "c", "a" and
/// "b_c".
void check_folders(const CompareRequest& request, const std::vector<DatasetPlan>& plans) {
  std::map<fs::path, std::string> owners;
  for (const auto& plan : plans) {
    for (const auto& row : plan.rows) {
      const fs::path folder = child_of(request, plan, row, request.seeds.front()).folder;
      const std::string owner =
          fmt::format("row '{}' on '{}'", printable(row.label), printable(plan.card.name));
      const auto [place, fresh] = owners.emplace(folder, owner);
      if (fresh) continue;
      throw usage_error("{} and {} would share the folder {}: give the row another label, x={}",
                        place->second, owner, folder.string(),
                        row.model.empty() ? "recs:FILE" : row.model);
    }
  }
}

Json identity_of(const CompareRequest& request, const std::vector<DatasetPlan>& plans) {
  Json datasets = Json::array(), lists = Json::object(), paths = Json::array();
  Json features = Json::object();
  for (const auto& plan : plans) {
    paths.push_back(plan.path);
    features[plan.card.name] = plan.features;
    datasets.push_back({{"name", plan.card.name}, {"split_sha256", plan.card.split_sha256}});
    for (const auto& row : plan.rows) {
      for (const auto& list : row.lists) lists[list] = sha256_of_file(list);
    }
  }
  return {{"rows", request.rows},     {"ablations", request.ablations},
          {"seeds", request.seeds},   {"settings", settings_object(request.settings)},
          {"dataset folders", paths}, {"datasets", datasets},
          {"features", features},     {"lists", lists}};
}

/// The request that a study folder was made by.
CompareRequest resumed(const CompareRequest& request) {
  if (!request.rows.empty() || !request.datasets.empty() || !request.runs.empty() ||
      !request.settings.empty()) {
    throw usage_error(
        "--resume {} takes models, datasets and settings from the study: leave them "
        "out",
        request.resume.string());
  }
  const Json identity = read_study(request.resume, "compare").identity;
  const std::string what = (request.resume / "study.json").string();
  CompareRequest out = request;
  out.output = request.resume;
  out.rows = json_get<std::string>(identity, "rows", what);
  out.ablations = json_get<bool>(identity, "ablations", what);
  out.seeds = list_from<int64_t>(identity, "seeds", what);
  out.datasets = list_from<std::string>(identity, "dataset folders", what);
  out.settings = settings_from(identity, "settings", what);
  return out;
}

// ---------------------------------------------------------------- one row's runs

/// The lists of one file, measured like a run's: results.json and per_user.tsv in a folder.
RunResult measure_lists(const fs::path& folder, const std::string& file, const DatasetPlan& plan,
                        int64_t seed, const TrainSettings& train) {
  if (fs::exists(folder / "results.json")) {
    RunResult found = read_results(folder);
    if (found.sha256 != sha256_of_file(file) || found.dataset != plan.card.name ||
        found.seed != seed ||
        DataCard::read(read_json(folder / "data.json")).split_sha256 != plan.card.split_sha256) {
      throw data_error(
          "{} holds the numbers of other lists than {}: remove it or choose another folder",
          folder.string(), file);
    }
    return found;
  }
  DatasetView view;
  view.modalities = train.modalities;
  view.fold = train.fold;
  const Dataset data = load_dataset(plan.path, view);
  const Protocol& protocol = find_protocol(train.protocol);
  const EvalOptions options = list_options(train, protocol, data.n_items);
  const bool test = plan.reported == "test";
  const Evaluation measured = evaluate_lists(read_recommendations(file, data), data, protocol,
                                             test ? Split::test : Split::valid, options);
  RunResult out;
  out.recs = file;
  out.sha256 = sha256_of_file(file);
  out.dataset = data.name;
  out.seed = seed;
  out.protocol = protocol.name;
  (test ? out.test : out.valid) = measured.metrics;
  out.slices = measured.slices;
  out.n_users = measured.n_users;
  out.test_looks = test ? 1 : 0;
  out.audit = measured.audit;
  out.time_s.eval = measured.time_s;
  std::error_code error;
  fs::create_directories(folder, error);
  write_file(folder / "per_user.tsv", per_user_tsv(measured, data));
  write_json(folder / "data.json", data.about);
  write_json(folder / "results.json", out.json());
  return out;
}

/// A run that counts in a table.
struct Member {
  fs::path folder;
  RunResult result;
};

struct RowRuns {
  CompareRow row;
  std::vector<Member> members;
  std::vector<Failure> failures;
};

std::vector<double> finite(std::vector<double> values) {
  std::erase_if(values, [](double x) { return !std::isfinite(x); });
  return values;
}

/// The cold slice's recall at 20, or at the largest K that was measured.
std::string cold_metric(const std::vector<RowRuns>& rows) {
  std::string best;
  int64_t best_k = 0;
  for (const auto& row : rows) {
    for (const auto& member : row.members) {
      const Slice* cold = member.result.slice("cold");
      if (cold == nullptr) continue;
      for (const auto& [name, value] : cold->metrics) {
        const Metric metric = parse_metric(name);
        if (metric.kind != Metric::Kind::recall) continue;
        if (metric.k == 20) return name;
        if (metric.k > best_k) {
          best_k = metric.k;
          best = name;
        }
      }
    }
  }
  return best;
}

/// Over the runs of a row: the mean, of memory the largest.
Cost cost_of(const RowRuns& runs) {
  std::vector<Cost> costs;
  for (const auto& member : runs.members) costs.push_back(run_cost(member.folder, member.result));
  Cost out;
  for (const auto& [name, of] : kCostNames) {
    std::vector<double> values;
    for (const auto& one : costs) values.push_back(one.*of);
    values = finite(values);
    if (values.empty()) continue;
    out.*of = of == &Cost::peak_rss_mb ? *std::max_element(values.begin(), values.end())
                                       : mean_of(values);
  }
  return out;
}

ComparedRow compared_row(const RowRuns& runs, const DatasetPlan& plan, const std::string& cold) {
  ComparedRow out;
  out.label = runs.row.label;
  out.model = runs.row.model;
  out.settings = runs.row.settings;
  out.lists = runs.row.lists;
  for (const auto& member : runs.members) {
    out.seeds.push_back(member.result.seed);
    out.runs.push_back(member.folder.string());
    out.test_looks += member.result.test_looks;
  }
  const auto values = [&](const std::function<double(const RunResult&)>& of) {
    std::vector<double> all;
    for (const auto& member : runs.members) all.push_back(of(member.result));
    return all;
  };
  for (const std::string split : {"valid", "test"}) {
    for (const auto& metric : plan.metrics) {
      out.metrics[split].emplace_back(
          metric, summary_of(values([&](const RunResult& r) { return r.value(split, metric); })));
    }
  }
  out.selecting = plan.valid_metric;
  out.selection = summary_of(
      values([](const RunResult& r) { return r.selection.value.value_or(Cost::kUnknown); }));
  out.best_epochs = values([](const RunResult& r) {
    return r.recs.empty() ? static_cast<double>(r.selection.epoch) : Cost::kUnknown;
  });
  for (const std::string name : {"cold", "cold_only"}) {
    if (cold.empty()) break;
    out.by_slice[name] = summary_of(values([&](const RunResult& r) {
      const Slice* slice = r.slice(name);
      return slice == nullptr ? Cost::kUnknown : value_of(slice->metrics, cold);
    }));
  }
  out.cost = cost_of(runs);
  out.failures = runs.failures;
  return out;
}

// ---------------------------------------------------------------- tests

/// Each user's value, averaged over the seeds; users of all seeds.
std::map<std::string, double> user_means(const RowRuns& runs, const std::string& metric) {
  std::map<std::string, double> sums;
  bool first = true;
  for (const auto& member : runs.members) {
    const auto values = per_user_values(member.folder, metric);
    if (first) {
      sums = values;
      first = false;
      continue;
    }
    std::erase_if(sums, [&](const auto& entry) { return !values.contains(entry.first); });
    for (auto& [user, sum] : sums) sum += values.at(user);
  }
  for (auto& [user, sum] : sums) sum /= static_cast<double>(runs.members.size());
  return sums;
}

bool varies(const std::vector<double>& values) {
  return std::any_of(values.begin(), values.end(), [&](double x) { return x != values.front(); });
}

Comparison compare_two(const RowRuns& a, const RowRuns& b,
                       const std::map<std::string, double>& of_a,
                       const std::map<std::string, double>& of_b, const DatasetPlan& plan,
                       const CompareRequest& request) {
  std::vector<double> differences;
  for (const auto& [user, value] : of_a) {
    const auto other = of_b.find(user);
    if (other == of_b.end() || !std::isfinite(value - other->second)) continue;
    differences.push_back(value - other->second);
  }
  Comparison out;
  out.dataset = plan.card.shown();
  out.a = a.row.label;
  out.b = b.row.label;
  out.metric = plan.test_metric;
  out.n_users = static_cast<int64_t>(differences.size());
  out.mean_difference = mean_of(differences);
  out.bootstrap_95 = bootstrap_mean(differences, kBootstrapSeed);
  for (const auto& test : request.tests) {
    const double p = differences.empty() ? Cost::kUnknown
                     : test == "t"       ? paired_t(differences).p
                                         : wilcoxon(differences).p;
    out.p.push_back({test, p, Cost::kUnknown});
  }
  std::vector<double> of_seeds_a, of_seeds_b, by_seed;
  for (const auto& one : a.members) {
    for (const auto& other : b.members) {
      if (one.result.seed != other.result.seed) continue;
      const double x = one.result.value(plan.reported, plan.test_metric);
      const double y = other.result.value(plan.reported, plan.test_metric);
      if (!std::isfinite(x - y)) continue;
      of_seeds_a.push_back(x);
      of_seeds_b.push_back(y);
      by_seed.push_back(x - y);
    }
  }
  if (by_seed.size() < kSeedsForTest) return out;
  // A side that is the same for every seed has no randomness of training to test against.
  if (!varies(of_seeds_a)) out.same_for_all_seeds.push_back(a.row.label);
  if (!varies(of_seeds_b)) out.same_for_all_seeds.push_back(b.row.label);
  const double p = out.same_for_all_seeds.empty() ? paired_t(by_seed).p : Cost::kUnknown;
  out.p.push_back({"t over seeds", p, Cost::kUnknown});
  out.n_seeds = static_cast<int64_t>(by_seed.size());
  return out;
}

std::vector<Comparison> comparisons_of(const std::vector<RowRuns>& rows, const DatasetPlan& plan,
                                       const CompareRequest& request) {
  std::vector<const RowRuns*> usable;
  for (const auto& row : rows) {
    if (!row.members.empty()) usable.push_back(&row);
  }
  std::vector<Comparison> out;
  if (usable.size() < 2) return out;
  std::map<const RowRuns*, std::map<std::string, double>> values;
  for (const auto* row : usable) values[row] = user_means(*row, plan.test_metric);
  const RowRuns* reference = usable.front();
  for (const auto* row : usable) {
    if (row->row.label == request.against) reference = row;
  }
  for (size_t i = 0; i < usable.size(); ++i) {
    for (size_t j = i + 1; j < usable.size(); ++j) {
      const bool all = request.against == "all";
      if (!all && usable[i] != reference && usable[j] != reference) continue;
      const RowRuns* a = !all && usable[j] == reference ? usable[j] : usable[i];
      const RowRuns* b = a == usable[i] ? usable[j] : usable[i];
      out.push_back(compare_two(*a, *b, values[a], values[b], plan, request));
    }
  }
  return out;
}

/// Corrects each test over all comparisons of the result that have a value of it; returns how many
/// these are.
std::vector<std::pair<std::string, int64_t>> correct(std::vector<Comparison>& comparisons,
                                                     const std::string& method) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<PValue*>> tests;
  for (auto& one : comparisons) {
    for (auto& value : one.p) {
      if (!tests.contains(value.test)) order.push_back(value.test);
      tests[value.test].push_back(&value);
    }
  }
  std::vector<std::pair<std::string, int64_t>> over;
  for (const auto& test : order) {
    std::vector<double> p;
    for (const auto* value : tests[test]) p.push_back(value->p);
    over.emplace_back(test, static_cast<int64_t>(finite(p).size()));
    const auto better = adjusted(p, method);
    for (size_t i = 0; i < better.size(); ++i) tests[test][i]->adjusted = better[i];
  }
  return over;
}

// ---------------------------------------------------------------- the result

struct Compared {
  DatasetPlan plan;
  std::vector<RowRuns> rows;
};

/// What was left out of a file of lists, or was not in it.
std::string list_words(const Json& audit, const DatasetPlan& plan) {
  std::vector<std::string> out;
  const Json lists = json_get<Json>(audit, "lists", "audit", Json::object());
  const auto add = [&](const char* key, const std::string& words) {
    const auto n = json_get<int64_t>(lists, key, "audit", 0);
    if (n > 0) out.push_back(fmt::format("{} {}", n, words));
  };
  add("rows_of_unknown_users", "rows of users that '" + plan.card.name + "' does not have");
  add("rows_of_unknown_items", "rows of items that '" + plan.card.name + "' does not have");
  add("repeated_rows", "rows that repeat an item of their list");
  add("masked_items_removed", "masked items taken out of the lists, which are shorter for it");
  add("averaged_users_without_a_list", "users without a list");
  add("averaged_users_with_a_short_list", "users with a list shorter than the largest K");
  return fmt::format("{}", fmt::join(out, "; "));
}

CompareResult result_of(const CompareRequest& request, const std::string& protocol,
                        const std::vector<Compared>& all) {
  CompareResult out;
  out.tessera = kVersion;
  out.command = request.around.command;
  out.folder = request.output.string();
  out.protocol = protocol;
  out.seeds = request.seeds;
  out.settings = request.settings;
  out.tests = request.tests;
  out.correction = request.correct;
  for (const auto& [plan, rows] : all) {
    ComparedTable table;
    table.dataset = plan.card.shown();
    table.split = plan.card.split;
    table.split_sha256 = plan.card.split_sha256;
    table.reported = plan.reported;
    table.metrics = plan.metrics;
    table.cold_metric = cold_metric(rows);
    table.test_metric = plan.test_metric;
    table.valid_metric = plan.valid_metric;
    for (const auto& row : rows) {
      for (const auto& member : row.members) {
        table.n_users.insert(member.result.n_users);
        for (const auto& note : member.result.notes()) table.notes.insert(note);
        if (const auto words = list_words(member.result.audit, plan); !words.empty()) {
          const bool several = row.members.size() > 1;
          table.notes.insert(
              fmt::format("{}{}: {}", row.row.label,
                          several ? fmt::format(", seed {}", member.result.seed) : "", words));
        }
      }
      for (const auto& failure : row.failures) {
        table.notes.insert(
            fmt::format("{}, seed {}: {}", row.row.label, failure.seed, failure.what));
      }
      table.rows.push_back(compared_row(row, plan, table.cold_metric));
      out.test_looks += table.rows.back().test_looks;
    }
    for (auto& one : comparisons_of(rows, plan, request)) out.comparisons.push_back(std::move(one));
    out.tables.push_back(std::move(table));
  }
  out.corrected_over = correct(out.comparisons, request.correct);
  return out;
}

void write_tables(const fs::path& folder, const CompareResult& result) {
  write_file(folder / "table.md", compare_markdown(result));
  write_file(folder / "table.tex", compare_latex(result));
  write_file(folder / "table.tsv", compare_tsv(result));
  write_file(folder / "comparisons.tsv", comparisons_tsv(result));
}

void check_options(const CompareRequest& request) {
  const std::vector<std::string> tests(std::begin(kTests), std::end(kTests));
  for (const auto& test : request.tests) {
    if (std::find(tests.begin(), tests.end(), test) == tests.end()) {
      throw usage_error("no test '{}'{}: tests are {}", printable(test), did_you_mean(test, tests),
                        fmt::join(tests, ", "));
    }
  }
  adjusted({}, request.correct);
}

void check_against(const CompareRequest& request, const std::vector<std::string>& labels) {
  if (request.against.empty() || request.against == "all") return;
  if (std::find(labels.begin(), labels.end(), request.against) != labels.end()) return;
  throw usage_error("--against '{}' is no row{}: rows are {}", printable(request.against),
                    did_you_mean(request.against, labels), fmt::join(labels, ", "));
}

// ---------------------------------------------------------------- runs that are there already

/// The settings that make a run another row than a bare model's.
Settings own_settings(const fs::path& run) {
  Settings out;
  for (const auto& setting : read_run_config(run).given()) {
    const bool of_the_run =
        setting.name == "seed" || setting.name == "threads" || setting.name == "fold";
    if (!of_the_run) out.push_back(setting);
  }
  return out;
}

/// Runs in rows by label, else by model and settings.
std::vector<Compared> gather_runs(const CompareRequest& request, std::string& protocol) {
  std::vector<Compared> out;
  std::map<std::string, std::string> settings_of_label;
  std::string protocol_of;
  for (const auto& typed : request.runs) {
    const size_t equals = typed.find('=');
    const bool labelled = equals != std::string::npos && !fs::exists(typed);
    const fs::path folder = labelled ? typed.substr(equals + 1) : typed;
    if (!fs::exists(folder)) {
      throw data_error("{}: expected a run folder, found nothing", printable(folder.string(), 200));
    }
    if (!is_run_folder(folder)) throw data_error("{} is no run folder", folder.string());
    if (!run_finished(folder)) {
      throw data_error("{} has not ended: go on with it, tessera train --resume {}",
                       folder.string(), folder.string());
    }
    Member member{folder, read_results(folder)};
    const RunResult& result = member.result;
    if (protocol.empty()) {
      refuse_in_tables(find_protocol(result.protocol), "compare");
      protocol = result.protocol;
      protocol_of = folder.string();
    } else if (result.protocol != protocol) {
      throw usage_error("{} has protocol {}, {} has {}: they never share a table", folder.string(),
                        result.protocol, protocol_of, protocol);
    }
    const DataCard card = DataCard::read(read_json(folder / "data.json"));
    CompareRow row;
    row.model = result.model;
    row.settings = own_settings(folder);
    const std::string key = row.model + settings_object(row.settings).dump();
    row.label = labelled ? trimmed(typed.substr(0, equals)) : row.model;
    if (!labelled) {
      // Two settings of one model: the second is known by what its folder is called.
      auto& first = settings_of_label[row.label];
      if (first.empty()) first = key;
      if (first != key) {
        row.label = folder.lexically_normal().filename().string();
        if (row.label.empty()) row.label = folder.lexically_normal().parent_path().filename();
      }
    }
    check_label(row.label, typed);
    auto table = std::find_if(out.begin(), out.end(), [&](const Compared& one) {
      return one.plan.card.split_sha256 == card.split_sha256 && one.plan.card.name == card.name &&
             one.plan.card.fold == card.fold;
    });
    if (table == out.end()) {
      Compared one;
      one.plan.card = card;
      one.plan.reported = result.test ? "test" : "valid";
      one.plan.valid_metric = result.selection.metric;
      out.push_back(std::move(one));
      table = out.end() - 1;
    }
    auto place = std::find_if(table->rows.begin(), table->rows.end(),
                              [&](const RowRuns& one) { return one.row.label == row.label; });
    if (place == table->rows.end()) {
      table->rows.push_back({row, {}, {}});
      place = table->rows.end() - 1;
    }
    if (place->row.model + settings_object(place->row.settings).dump() != key) {
      throw usage_error(
          "{}: its model or settings differ from the other runs of row '{}': give it "
          "another label, x={}",
          folder.string(), printable(row.label), folder.string());
    }
    for (const auto& other : place->members) {
      if (other.result.seed == result.seed) {
        throw usage_error("{} and {} are two runs of row '{}' with seed {}", other.folder.string(),
                          folder.string(), printable(row.label), result.seed);
      }
    }
    place->members.push_back(std::move(member));
  }
  return out;
}

void plan_metrics(Compared& one, const CompareRequest& request) {
  const TrainSettings train = shared_train(request.settings);
  std::vector<std::string> common;
  bool first = true;
  for (const auto& row : one.rows) {
    for (const auto& member : row.members) {
      std::vector<std::string> names;
      if (const MetricValues* metrics = member.result.metrics(one.plan.reported)) {
        for (const auto& [name, value] : *metrics) names.push_back(name);
      }
      if (first) common = names;
      first = false;
      std::erase_if(common, [&](const std::string& name) {
        return std::find(names.begin(), names.end(), name) == names.end();
      });
    }
  }
  if (common.empty()) throw usage_error("the runs on '{}' share no metric", one.plan.card.name);
  std::vector<Metric> measured;
  for (const auto& name : common) measured.push_back(parse_metric(name));
  if (train.metrics.empty() && train.topk.empty()) {
    for (const auto& metric : measured) {
      if (metric.kind == Metric::Kind::recall || metric.kind == Metric::Kind::ndcg) {
        one.plan.metrics.push_back(metric.name());
      }
    }
    if (one.plan.metrics.empty()) one.plan.metrics = common;
  } else {
    std::vector<int64_t> topk = train.topk;
    if (topk.empty()) {
      for (const auto& metric : measured) {
        if (metric.k > 0 && std::find(topk.begin(), topk.end(), metric.k) == topk.end()) {
          topk.push_back(metric.k);
        }
      }
    }
    const std::vector<std::string> main = {"recall", "ndcg"};
    for (const auto& metric : expand_metrics(train.metrics.empty() ? main : train.metrics, topk)) {
      if (std::find(common.begin(), common.end(), metric.name()) == common.end()) {
        throw usage_error("not all runs measured '{}'{}: they share {}", metric.name(),
                          did_you_mean(metric.name(), common), fmt::join(common, ", "));
      }
      one.plan.metrics.push_back(metric.name());
    }
  }
  one.plan.test_metric = choose_test_metric(request.test_metric, one.plan.valid_metric, measured);
}

CompareResult compare_runs(const CompareRequest& request) {
  if (!request.rows.empty() || !request.datasets.empty()) {
    throw usage_error("compare takes run folders, or -m and -d to make them, not both");
  }
  static const std::vector<std::string> known = {"metrics", "topk"};
  for (const auto& setting : request.settings) {
    if (std::find(known.begin(), known.end(), setting_name(setting.name)) == known.end()) {
      throw usage_error("run folders keep their own {}: leave the flag out",
                        printable(setting.name));
    }
  }
  std::string protocol;
  auto all = gather_runs(request, protocol);
  std::vector<std::string> labels;
  std::set<int64_t> seeds;
  for (auto& one : all) {
    plan_metrics(one, request);
    for (const auto& row : one.rows) {
      labels.push_back(row.row.label);
      for (const auto& member : row.members) seeds.insert(member.result.seed);
    }
  }
  check_against(request, labels);
  CompareRequest shown = request;
  shown.seeds.assign(seeds.begin(), seeds.end());
  shown.settings.clear();
  if (!request.output.empty()) {
    claim_study(request.output, {"compare", request.around.command, {{"runs", request.runs}}});
  }
  const CompareResult result = result_of(shown, protocol, all);
  if (!request.output.empty()) write_tables(request.output, result);
  return result;
}

}  // namespace

std::vector<CompareRow> parse_rows(const std::string& text) {
  std::vector<CompareRow> out;
  for (const auto& part : cut(text, ",\n")) out.push_back(parse_row(part));
  if (out.empty()) {
    throw usage_error("no rows given: add -m NAME,.. or label=recs:FILE, or give run folders");
  }
  check_labels(out);
  return out;
}

std::vector<CompareRow> with_ablations(const CompareRow& row,
                                       const std::vector<std::string>& modalities) {
  const ModelInfo& info = find_model(row.model);
  std::vector<CompareRow> out = {row};
  if (!info.ablations) return out;
  for (const auto& ablation : info.ablations(modalities)) {
    if (ablation.settings.empty()) continue;  // the model as it is
    CompareRow more = row;
    more.bare = false;
    more.label = row.label + ", " + ablation.label;
    for (const auto& [name, value] : ablation.settings) {
      more.settings.push_back({name, value, "ablation '" + ablation.label + "'"});
    }
    out.push_back(std::move(more));
  }
  return out;
}

CompareResult compare(const CompareRequest& typed) {
  check_options(typed);
  if (!typed.runs.empty() && typed.resume.empty()) return compare_runs(typed);
  CompareRequest request = typed.resume.empty() ? typed : resumed(typed);
  const Log& log = request.around.log;
  if (request.datasets.empty()) {
    throw usage_error("no dataset given: add -d FOLDER (made by 'tessera import')");
  }
  const auto rows = parse_rows(request.rows);
  if (request.ablations && std::none_of(rows.begin(), rows.end(), [](const CompareRow& row) {
        return row.bare && find_model(row.model).ablations;
      })) {
    throw usage_error(
        "--ablations: none of the rows is a bare model with an ablation set; "
        "'tessera models NAME' shows a model's");
  }
  const Protocol& shared = find_protocol(shared_train(request.settings).protocol);
  refuse_in_tables(shared, "compare");
  const std::string protocol = shared.name;
  std::vector<DatasetPlan> plans;
  std::vector<std::string> labels;
  check_settings(rows, request.settings, log);
  for (const auto& path : request.datasets) {
    plans.push_back(plan_dataset(request, path, rows));
    for (size_t i = 0; i + 1 < plans.size(); ++i) {
      if (plans[i].card.name == plans.back().card.name) {
        throw usage_error("two datasets are called '{}': {} and {}", plans[i].card.name,
                          plans[i].path, plans.back().path);
      }
    }
    check_settings(plans.back().rows, request.settings, Log());
    for (const auto& row : plans.back().rows) labels.push_back(row.label);
    if (plans.back().reported == "valid") {
      log.warn("dataset '{}' has no test rows: its table shows valid", plans.back().card.name);
    }
  }
  check_against(request, labels);
  if (request.output.empty()) {
    std::string time = now_rfc3339();
    time.pop_back();
    std::replace(time.begin(), time.end(), ':', '-');
    request.output = fmt::format("runs/{}_compare", time);
  }
  check_folders(request, plans);
  const std::string asked_by = request.around.command;
  const Study study =
      claim_study(request.output, {"compare", asked_by, identity_of(request, plans)});
  if (!typed.resume.empty()) request.around.command = study.command;
  // A model that cannot be built is said now rather than in the middle of the night.
  for (const auto& plan : plans) {
    for (const auto& row : plan.rows) {
      if (!row.lists.empty()) continue;
      const Child child = child_of(request, plan, row, request.seeds.front());
      if (fs::exists(child.folder)) continue;
      RunRequest wanted;
      wanted.model = child.model;
      wanted.dataset = child.dataset;
      wanted.settings = child.settings;
      try {
        check_run(wanted);
      } catch (const InputError& e) {
        throw InputError(e.code(),
                         fmt::format("row '{}' on '{}': {}", row.label, plan.card.name, e.what()));
      }
    }
  }
  const TrainSettings train = shared_train(request.settings);
  std::vector<Compared> all;
  size_t n_runs = 0, at = 0;
  for (const auto& plan : plans) n_runs += plan.rows.size() * request.seeds.size();
  for (const auto& plan : plans) {
    Compared one{plan, {}};
    for (const auto& row : plan.rows) one.rows.push_back({row, {}, {}});
    for (size_t s = 0; s < request.seeds.size(); ++s) {
      const int64_t seed = request.seeds[s];
      for (auto& runs : one.rows) {
        ++at;
        const Child child = child_of(request, plan, runs.row, seed);
        if (!runs.row.lists.empty()) {
          if (s >= runs.row.lists.size()) continue;
          runs.members.push_back(
              {child.folder, measure_lists(child.folder, runs.row.lists[s], plan, seed, train)});
          continue;
        }
        log.info("run {} of {}: {} on {}, seed {}{}", at, n_runs, runs.row.label, plan.card.name,
                 seed, child.finished() ? ", finished before" : "");
        const ChildResult done = run_child(child, request.output, request.around);
        if (done.result) {
          runs.members.push_back({child.folder, *done.result});
        } else {
          log.warn("{} on {}, seed {}: {}", runs.row.label, plan.card.name, seed, done.failure);
          runs.failures.push_back({seed, done.failure});
        }
      }
    }
    all.push_back(std::move(one));
  }
  CompareResult result = result_of(request, protocol, all);
  const CompareRequest usual;
  if (!typed.resume.empty() &&
      (request.tests != usual.tests || request.correct != usual.correct ||
       request.test_metric != usual.test_metric || request.against != usual.against)) {
    result.asked_by = asked_by;
  }
  write_tables(request.output, result);
  return result;
}

}  // namespace tessera
