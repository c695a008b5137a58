#include "tessera/study/evaluate_run.h"

#include <algorithm>
#include <cmath>

#include "tessera/base/error.h"
#include "tessera/base/field_error.h"
#include "tessera/base/files.h"
#include "tessera/folder/load.h"
#include "tessera/model/bundle.h"
#include "tessera/model/offers.h"
#include "tessera/ops/process.h"
#include "tessera/study/run.h"
#include "tessera/study/study.h"

namespace tessera {
namespace {

/// What is evaluated, and the settings that its numbers come from.
struct Subject {
  std::string name;
  std::optional<int64_t> seed;
  std::shared_ptr<const Dataset> data;
  std::unique_ptr<Bundle> bundle;
  std::unique_ptr<Model> learned;
  Model* model = nullptr;  ///< null: lists
  std::string label;       ///< what the model's settings want every result to say
  TrainSettings settings;
};

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
  settings.on();
  use_threads(settings.threads);
}

std::shared_ptr<const Dataset> open_dataset(const fs::path& folder, const TrainSettings& settings) {
  DatasetView view;
  view.modalities = settings.modalities;
  view.fold = settings.fold;
  return std::make_shared<Dataset>(load_dataset(folder, view));
}

void check_same_rows(const Dataset& own, const Dataset& data, const fs::path& folder) {
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
        folder.string());
  }
}

Subject open_lists(const EvaluateRequest& request) {
  Subject out;
  apply_settings(out.settings, request.settings);
  out.data = open_dataset(request.dataset, out.settings);
  out.name = request.lists;
  return out;
}

Subject open_run_folder(const EvaluateRequest& request) {
  if (!request.dataset.empty()) {
    throw FieldError("dataset", usage_error("a run is evaluated on the dataset it was trained on: "
                                            "leave it out"));
  }
  for (const Setting& setting : request.settings) {
    if (setting.name == "modalities" || setting.name == "fold") {
      throw FieldError(setting.name, usage_error("a run keeps its own: leave it out"));
    }
  }
  OpenRun run = open_run(request.target, request.log);
  Subject out;
  out.name = run.model;
  out.label = run.settings.config.label;
  out.settings = run.settings.train_settings;
  out.seed = out.settings.seed;
  apply_settings(out.settings, request.settings);
  out.data = std::move(run.data);
  out.learned = std::move(run.learned);
  out.model = out.learned.get();
  return out;
}

Subject open_bundle_folder(const EvaluateRequest& request) {
  if (request.dataset.empty()) {
    throw FieldError("dataset", usage_error("a bundle holds no held-out rows: wanted the dataset "
                                            "that it was trained on"));
  }
  Subject out;
  const std::string what = (request.target / "model.json").string();
  out.bundle = std::make_unique<Bundle>(load_bundle(request.target, request.log));
  const Json& about = out.bundle->about;
  Settings own;
  const Json settings = json_get<Json>(about, "settings", what, Json::object());
  for (const auto& [name, value] : settings.items()) {
    own.push_back({name, value, request.target.string()});
  }
  Settings all;
  for (const char* name : {"protocol", "metrics", "topk", "sparse_max", "tail_ratio", "map_norm"}) {
    std::copy_if(own.begin(), own.end(), std::back_inserter(all),
                 [&](const Setting& one) { return one.name == name; });
  }
  all.insert(all.end(), request.settings.begin(), request.settings.end());
  apply_settings(out.settings, all);
  out.data = open_dataset(request.dataset, out.settings);
  check_same_rows(*out.bundle->data, *out.data, request.dataset);
  out.name = json_get<std::string>(about, "model", what);
  out.label = find_model(out.name).resolve(own).label;
  if (settings.contains("seed")) {
    out.seed = json_get<int64_t>(settings, "seed", what);
    out.settings.seed = *out.seed;
  }
  out.model = out.bundle->model.get();
  return out;
}

Subject open_subject(const EvaluateRequest& request) {
  if (!request.lists.empty()) return open_lists(request);
  if (is_run_folder(request.target)) return open_run_folder(request);
  if (is_bundle_folder(request.target)) return open_bundle_folder(request);
  const std::string target = printable(request.target.string());
  if (!fs::exists(request.target)) {
    throw data_error("{}: expected a run or bundle folder, found nothing", target);
  }
  throw data_error("{}: expected a run or bundle folder, found neither", target);
}

Split choose_split(const std::string& typed, const Dataset& data, const Log& log) {
  if (typed.empty()) {
    if (has_rows(data, Split::test)) return Split::test;
    log.warn("dataset '{}' has no test rows: these are numbers of valid", data.name);
    return Split::valid;
  }
  for (const Split split : {Split::valid, Split::test}) {
    if (typed != split_name(split)) continue;
    if (!has_rows(data, split)) {
      throw usage_error("dataset '{}' has no {} rows: choose {}", data.name, typed,
                        split_name(split == Split::test ? Split::valid : Split::test));
    }
    return split;
  }
  throw usage_error("no split '{}'{}: splits are valid, test", printable(typed),
                    did_you_mean(typed, {"valid", "test"}));
}

void leave_out(const Subject& subject, const std::vector<std::string>& parts) {
  auto* masked = subject.model != nullptr ? subject.model->offers().mask : nullptr;
  if (masked == nullptr) {
    throw usage_error("{} has no parts that could be left out, got {}", subject.name,
                      printable(fmt::format("{}", fmt::join(parts, ","))));
  }
  masked->leave_out(parts);
}

std::vector<Shuffled> shuffled_histories(const Subject& subject, const Protocol& protocol,
                                         Split split, EvalOptions options,
                                         const Evaluation& in_order) {
  options.slices = options.per_user = false;
  options.shuffle_histories = static_cast<uint64_t>(subject.settings.seed);
  const Evaluation after = evaluate(*subject.model, *subject.data, protocol, split, options);
  std::vector<Shuffled> out;
  for (const auto& [name, value] : after.metrics) {
    const double before = in_order.value(name);
    out.push_back({name, value, before > 0 ? value / before - 1 : std::nan("")});
  }
  return out;
}

}  // namespace

EvaluateResult evaluate_run(const EvaluateRequest& request) {
  const Subject subject = open_subject(request);
  const Dataset& data = *subject.data;
  const Split split = choose_split(request.split, data, request.log);
  const Protocol& protocol = find_protocol(subject.settings.protocol);
  EvalOptions options = eval_options(subject.settings, protocol);
  options.slices = request.slices;
  options.per_user = request.per_user;
  options.stop_requested = request.stop_requested;
  if (!request.without_parts.empty()) leave_out(subject, request.without_parts);
  if (subject.model == nullptr && (request.sampled || request.shuffle_histories)) {
    throw usage_error("lists rank no {}: wanted a run or bundle, got {}",
                      request.sampled ? "drawn candidates" : "other histories",
                      printable(request.lists));
  }

  EvaluateResult out;
  out.name = subject.name;
  out.lists = subject.model == nullptr;
  out.seed = subject.seed;
  out.data = subject.data;
  out.protocol = protocol.name;
  Evaluation& result = out.evaluation;
  result = out.lists ? evaluate_lists(read_recommendations(request.lists, data), data, protocol,
                                      split, options)
                     : evaluate(*subject.model, data, protocol, split, options);
  result.audit["seed"] = subject.seed ? Json(*subject.seed) : Json();
  // A mask of the training's settings gives way to the one that is asked for.
  const bool replaced = !request.without_parts.empty() && subject.label.rfind("eval_mask", 0) == 0;
  if (!subject.label.empty() && !replaced) result.audit["notes"].push_back(subject.label);
  if (!request.without_parts.empty()) {
    result.audit["eval_mask"] = request.without_parts;
    result.audit["notes"].push_back(eval_mask_note(request.without_parts));
  }
  if (request.sampled) {
    out.sampled = evaluate_sampled(*subject.model, data, protocol, split, *request.sampled);
  }
  if (request.shuffle_histories) {
    out.shuffled = shuffled_histories(subject, protocol, split, options, result);
  }
  if (split == Split::test && subject.learned != nullptr) {
    result.audit["looks_at_test"] = count_test_look(request.target);
  }
  return out;
}

Json EvaluateResult::json() const {
  Json out = {
      {lists ? "recs" : "model", name},      {"dataset", data->name},
      {"seed", seed ? Json(*seed) : Json()}, {"protocol", protocol},
      {"split", evaluation.split},           {evaluation.split, metrics_json(evaluation.metrics)},
      {"n_users", evaluation.n_users}};
  if (!evaluation.slices.empty()) out["slices"] = slices_json(evaluation.slices);
  out["audit"] = evaluation.audit;
  out["time_s"] = evaluation.time_s;
  if (sampled) out["sampled"] = sampled->json();
  for (const auto& one : shuffled) {
    out["shuffled_histories"][one.metric] = {{"value", number_json(one.value)},
                                             {"change", number_json(one.change)}};
  }
  for (size_t i = 0; i < evaluation.per_user.size(); ++i) {
    Json row = {{"user", data->user_ids[evaluation.per_user_users[i]]}};
    for (size_t c = 0; c < evaluation.per_user_columns.size(); ++c) {
      row[evaluation.per_user_columns[c]] = number_json(evaluation.per_user[i][c]);
    }
    out["per_user"].push_back(std::move(row));
  }
  return out;
}

}  // namespace tessera
