#include <algorithm>
#include <memory>

#include "cli/cli.h"
#include "tessera/base/files.h"
#include "tessera/eval/sampled.h"
#include "tessera/folder/load.h"
#include "tessera/model/bundle.h"
#include "tessera/model/offers.h"
#include "tessera/study/run.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string target, recs, split;
  std::vector<std::string> eval_mask;
  std::string ndcg_ideal = "capped";
  int64_t sampled = 0;
  int64_t sampled_seed = SampledOptions{}.seed;
  bool slices = false, per_user = false, shuffle = false;
};

/// What is evaluated, and the settings that its numbers come from.
struct Subject {
  std::string name;  ///< the model's, or the file's
  Json seed;         ///< null where nothing was trained here
  std::unique_ptr<Dataset> data;
  std::unique_ptr<Bundle> bundle;
  std::unique_ptr<Model> learned;
  Model* model = nullptr;  ///< null: lists
  std::string label;       ///< what the model's settings want every result to say
  TrainSettings settings;
};

std::string label_of(const std::string& model, const Settings& settings) {
  const ModelInfo& info = find_model(model);
  return info.label ? info.label(settings) : "";
}

/// The settings that evaluation reads, given ones applied.
void apply_settings(TrainSettings& settings, const Settings& given) {
  static const std::vector<std::string> known = {
      "protocol",   "metrics",         "topk",    "sparse_max", "tail_ratio", "map_norm",
      "modalities", "eval_batch_size", "threads", "fold",       "device"};
  for (const Setting& setting : given) {
    if (std::find(known.begin(), known.end(), setting.name) == known.end()) {
      throw usage_error("evaluate has no setting '{}'{}: it reads {}", printable(setting.name),
                        did_you_mean(setting.name, known), fmt::join(known, ", "));
    }
  }
  Fields fields("evaluate");
  settings.describe(fields);
  fields.apply(given);
  use_device_and_threads(settings);
}

std::unique_ptr<Dataset> open_dataset(const std::string& folder, const TrainSettings& settings) {
  DatasetView view;
  view.modalities = settings.modalities;
  view.fold = settings.fold;
  return std::make_unique<Dataset>(load_dataset(folder, view));
}

void check_same_rows(const Bundle& bundle, const Dataset& data, const std::string& folder) {
  const Dataset& own = *bundle.data;
  const auto same = [](const Vocabulary& a, const Vocabulary& b) {
    if (a.size() != b.size()) return false;
    for (int64_t i = 0; i < a.size(); ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  };
  if (!same(own.user_ids, data.user_ids) || !same(own.item_ids, data.item_ids) ||
      train_sha256(own.view()) != train_sha256(data.view())) {
    throw data_error(
        "{}: its users, items or train rows are not those that the bundle was trained on: give the "
        "dataset folder of that training",
        folder);
  }
}

Subject open_subject(const Common& common, const Flags& flags, const Log& log) {
  const Settings given = gather_settings(common);
  Subject subject;
  if (!flags.recs.empty()) {
    if (!flags.target.empty()) {
      throw usage_error(
          "evaluate takes a run or bundle, or --recs FILE with -d, got '{}' and --recs",
          printable(flags.target));
    }
    apply_settings(subject.settings, given);
    subject.data = open_dataset(common.dataset(), subject.settings);
    subject.name = flags.recs;
    return subject;
  }
  if (flags.target.empty()) {
    throw usage_error(
        "nothing to evaluate: give a run or bundle folder, or --recs FILE -d DATASET");
  }
  if (is_run_folder(flags.target)) {
    if (!common.datasets.empty()) {
      throw usage_error("a run is evaluated on the dataset it was trained on: leave -d out");
    }
    for (const Setting& setting : given) {
      if (setting.name == "modalities" || setting.name == "fold") {
        throw usage_error("a run keeps its own {}: leave the flag out", setting.name);
      }
    }
    OpenRun run = open_run(flags.target, log);
    subject.name = run.model;
    subject.label = label_of(run.model, run.settings.given);
    subject.settings = run.settings.train_settings;
    subject.seed = subject.settings.seed;
    apply_settings(subject.settings, given);
    subject.data = std::move(run.data);
    subject.learned = std::move(run.learned);
    subject.model = subject.learned.get();
    return subject;
  }
  if (is_bundle_folder(flags.target)) {
    if (common.datasets.empty()) {
      throw usage_error(
          "a bundle holds no held-out rows: add -d DATASET, the one it was trained on");
    }
    subject.bundle = std::make_unique<Bundle>(load_bundle(flags.target, log));
    const Json& about = subject.bundle->about;
    const Json& own = about["settings"];
    Settings stored;
    for (const char* name :
         {"protocol", "metrics", "topk", "sparse_max", "tail_ratio", "map_norm"}) {
      if (own.is_object() && own.contains(name)) stored.push_back({name, own[name], flags.target});
    }
    stored.insert(stored.end(), given.begin(), given.end());
    apply_settings(subject.settings, stored);
    subject.data = open_dataset(common.dataset(), subject.settings);
    check_same_rows(*subject.bundle, *subject.data, common.dataset());
    subject.name = about.value("model", std::string("?"));
    if (own.is_object() && own.contains("seed")) subject.seed = own["seed"];
    if (subject.seed.is_number_integer()) subject.settings.seed = subject.seed;
    Settings all;
    if (own.is_object()) {
      for (const auto& [name, value] : own.items()) all.push_back({name, value, flags.target});
    }
    if (about.contains("model")) subject.label = label_of(subject.name, all);
    subject.model = subject.bundle->model.get();
    return subject;
  }
  if (!fs::exists(flags.target)) {
    throw data_error("{}: expected a run or bundle folder, found nothing", printable(flags.target));
  }
  throw data_error(
      "{}: expected a run or bundle folder; a file of lists goes with --recs FILE -d "
      "DATASET",
      printable(flags.target));
}

Split choose_split(const std::string& typed, const Dataset& data) {
  if (typed.empty()) return has_rows(data, Split::test) ? Split::test : Split::valid;
  for (const Split split : {Split::valid, Split::test}) {
    if (typed != split_name(split)) continue;
    if (!has_rows(data, split)) {
      throw usage_error("dataset '{}' has no {} rows: choose --split {}", data.name, typed,
                        split == Split::test ? "valid" : "test");
    }
    return split;
  }
  throw usage_error("no split '{}'{}: splits are valid, test", printable(typed),
                    did_you_mean(typed, {"valid", "test"}));
}

std::string cell(double value) { return std::isnan(value) ? "-" : fmt::format("{:.4f}", value); }

/// Metrics down, slices across, the protocol beside every row; then the audit.
std::string table(const Subject& subject, const Evaluation& result) {
  const std::string protocol = result.audit["protocol"];
  std::string title =
      fmt::format("{} on {}, {} split", subject.name, subject.data->name, result.split);
  if (!subject.seed.is_null()) title += ", seed " + subject.seed.dump();

  std::vector<std::vector<std::string>> rows = {
      {"protocol", "metric", "all"}, {protocol, "users", std::to_string(result.n_users)}};
  for (const Slice& slice : result.slices) {
    rows[0].push_back(slice.name);
    rows[1].push_back(std::to_string(slice.n_users));
  }
  for (size_t j = 0; j < result.metrics.size(); ++j) {
    rows.push_back({protocol, result.metrics[j].first, cell(result.metrics[j].second)});
    for (const Slice& slice : result.slices) rows.back().push_back(cell(slice.metrics[j].second));
  }
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text = title + "\n";
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      text += c < 2 ? fmt::format("{:<{}}", row[c], widths[c])
                    : fmt::format("  {:>{}}", row[c], widths[c]);
      if (c == 0) text += "  ";
    }
    text += "\n";
  }
  text += "audit\n";
  const auto add_line = [&](const std::string& key, const Json& value) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', ' ');
    text += fmt::format("  {}: {}\n", name,
                        value.is_string() ? value.get<std::string>() : value.dump());
  };
  for (const auto& [key, value] : result.audit.items()) {
    if (key == "notes") {
      for (const Json& note : value) add_line("note", note);
    } else if (value.is_object()) {
      for (const auto& [inner, number] : value.items()) add_line(key + ": " + inner, number);
    } else {
      add_line(key, value);
    }
  }
  return text;
}

Json document(const Subject& subject, const Evaluation& result) {
  Json out = {{subject.model != nullptr ? "model" : "recs", subject.name},
              {"dataset", subject.data->name},
              {"seed", subject.seed},
              {"protocol", result.audit["protocol"]},
              {"split", result.split},
              {result.split, metrics_json(result.metrics)},
              {"n_users", result.n_users}};
  for (const Slice& slice : result.slices) {
    out["slices"][slice.name] = {{"n_users", slice.n_users},
                                 {"n_pairs", slice.n_pairs},
                                 {"metrics", metrics_json(slice.metrics)}};
  }
  out["audit"] = result.audit;
  out["time_s"] = result.time_s;
  return out;
}

void run_evaluate(const Common& common, const Flags& flags) {
  const Log log = make_log(common);
  if (!common.output.empty()) check_writable(common.output);
  const Subject subject = open_subject(common, flags, log);
  const Dataset& data = *subject.data;
  const Split split = choose_split(flags.split, data);
  if (flags.split.empty() && split == Split::valid) {
    log.warn("dataset '{}' has no test rows: these are numbers of valid", data.name);
  }
  const ReferenceOps plain(subject.settings.reference());
  const Protocol& protocol = find_protocol(subject.settings.protocol);
  EvalOptions options = eval_options(subject.settings, protocol);
  options.slices = flags.slices;
  options.per_user = flags.per_user;

  if (!flags.eval_mask.empty()) {
    auto* masked = subject.model != nullptr ? subject.model->offers().mask : nullptr;
    if (masked == nullptr) {
      throw usage_error("{} has no parts that --eval-mask could leave out", subject.name);
    }
    masked->leave_out(flags.eval_mask);
  }
  if (flags.sampled < 0 || (flags.sampled > 0 && subject.model == nullptr)) {
    throw usage_error("--sampled wants a run or bundle and a number of candidates, like 1000");
  }
  if (flags.sampled_seed < 0) throw usage_error("--sampled-seed: must be at least 0");
  if (flags.ndcg_ideal != "capped" && flags.ndcg_ideal != "all") {
    throw usage_error("--ndcg-ideal '{}': wanted capped or all", printable(flags.ndcg_ideal));
  }

  Evaluation result =
      subject.model != nullptr
          ? evaluate(*subject.model, data, protocol, split, options)
          : evaluate_lists(read_recommendations(flags.recs, data), data, protocol, split, options);
  result.audit["seed"] = subject.seed;
  // A mask of the training's settings gives way to that of the flag.
  const bool replaced = !flags.eval_mask.empty() && subject.label.rfind("eval_mask", 0) == 0;
  if (!subject.label.empty() && !replaced) result.audit["notes"].push_back(subject.label);
  if (!flags.eval_mask.empty()) {
    result.audit["eval_mask"] = flags.eval_mask;
    result.audit["notes"].push_back(eval_mask_note(flags.eval_mask));
  }
  Json sampled;
  if (flags.sampled > 0) {
    SampledOptions wanted;
    wanted.total = flags.sampled;
    wanted.ideal_all = flags.ndcg_ideal == "all";
    wanted.seed = static_cast<uint64_t>(flags.sampled_seed);
    sampled = evaluate_sampled(*subject.model, data, protocol, split, wanted);
  }
  Json shuffled;
  if (flags.shuffle) {
    if (subject.model == nullptr) throw usage_error("--shuffle-histories wants a run or bundle");
    EvalOptions plain = options;
    plain.slices = plain.per_user = false;
    plain.shuffle_histories = static_cast<uint64_t>(subject.settings.seed);
    const Evaluation after = evaluate(*subject.model, data, protocol, split, plain);
    for (const auto& [name, value] : after.metrics) {
      const double before = result.value(name);
      shuffled[name] = {{"value", std::isfinite(value) ? Json(value) : Json()},
                        {"change", before > 0 ? Json(value / before - 1) : Json()}};
    }
  }
  if (split == Split::test && is_run_folder(flags.target)) {
    count_test_look(flags.target);
    result.audit["looks_at_test"] =
        read_json(fs::path(flags.target) / "results.json")["test_looks"];
  }
  for (const Json& note : result.audit["notes"]) log.warn("{}", note.get<std::string>());

  const std::string rows = flags.per_user ? per_user_tsv(result, data) : "";
  if (!rows.empty() && !common.output.empty()) write_file(common.output, rows);
  if (common.json) {
    Json out = document(subject, result);
    if (!sampled.is_null()) out["sampled"] = sampled;
    if (!shuffled.is_null()) out["shuffled_histories"] = shuffled;
    if (flags.per_user) {
      for (size_t i = 0; i < result.per_user.size(); ++i) {
        Json row = {{"user", data.user_ids[result.per_user_users[i]]}};
        for (size_t c = 0; c < result.per_user_columns.size(); ++c) {
          const double value = result.per_user[i][c];
          row[result.per_user_columns[c]] = std::isfinite(value) ? Json(value) : Json();
        }
        out["per_user"].push_back(std::move(row));
      }
    }
    print_json(out);
    return;
  }
  std::string text = table(subject, result);
  if (!sampled.is_null()) {
    text += fmt::format(
        "\n{}: among drawn candidates, another quantity than the full ranking above; {} users, "
        "ideal of ndcg {}\n",
        sampled["name"].get<std::string>(), sampled["n_users"].dump(),
        sampled["ndcg_ideal"].get<std::string>());
    for (const auto& [name, value] : sampled["metrics"].items()) {
      text += fmt::format("{} {}  {}\n", sampled["name"].get<std::string>(), name,
                          cell(value.get<double>()));
    }
  }
  if (!shuffled.is_null()) {
    text += "\nhistories in random order: does the model read the order?\n";
    for (const auto& [name, now] : shuffled.items()) {
      text += fmt::format(
          "{:<14} {}  {}\n", name, now["value"].is_null() ? "-" : cell(now["value"].get<double>()),
          now["change"].is_null() ? "-"
                                  : fmt::format("{:+.1f} %", 100 * now["change"].get<double>()));
    }
  }
  if (common.output.empty() && !rows.empty()) text += "\n" + rows;
  print(text);
}

}  // namespace

void add_evaluate(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "evaluate",
                            "metrics of a run or bundle folder, or of anyone's file of lists", true,
                            [&common, flags] { run_evaluate(common, *flags); });
  verb->add_option("run", flags->target, "run or bundle folder");
  verb->add_option("--recs", flags->recs,
                   "file of lists instead: lines of user, item, score; or with a header");
  verb->add_option("--split", flags->split, "valid or test (default test where it has rows)");
  verb->add_option("--eval-mask", flags->eval_mask, "parts left out when ranking, a,b (PAMD)")
      ->delimiter(',')
      ->allow_extra_args(false);
  verb->add_option("--sampled", flags->sampled,
                   "also rank held-out items among so many drawn candidates, like 1000");
  verb->add_option("--sampled-seed", flags->sampled_seed,
                   "of --sampled: draws the candidates, the same for every run (999)");
  verb->add_option("--ndcg-ideal", flags->ndcg_ideal, "of --sampled: capped or all");
  verb->add_flag("--shuffle-histories", flags->shuffle,
                 "also rank with each user's history in random order");
  verb->add_flag("--slices", flags->slices, "also cold, tail, sparse and missing-modality slices");
  verb->add_flag("--per-user", flags->per_user, "also one row a user, to -o where given");
}

}  // namespace tessera::cli
