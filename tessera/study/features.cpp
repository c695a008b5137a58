#include "tessera/study/features.h"

#include <algorithm>
#include <thread>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/base/version.h"
#include "tessera/encode/content.h"
#include "tessera/encode/features.h"
#include "tessera/folder/load.h"
#include "tessera/folder/manifest.h"
#include "tessera/model/bundle.h"
#include "tessera/model/offers.h"
#include "tessera/ops/process.h"
#include "tessera/study/quality.h"
#include "tessera/study/run.h"
#include "tessera/train/train.h"

namespace tessera {
namespace {

Dataset open_dataset(const fs::path& folder, const TrainSettings& train) {
  DatasetView view;
  view.modalities = train.modalities;
  view.permute = train.permute;
  view.permute_seed = static_cast<uint64_t>(train.seed);
  view.fold = train.fold;
  return load_dataset(folder, view);
}

/// What a supplier made, ready for the folder. `about` goes into every card.
std::vector<NewFeature> packed(const std::vector<NamedRows>& made, const TrainView& data,
                               const Json& about) {
  Json inputs = Json::object();
  Json bound;  // an input that is good for this split only binds what is made from it
  for (const auto& feature : data.features) {
    inputs[feature.name] = feature.manifest.value("sha256", Json());
    if (feature.manifest.contains("valid_for") && !feature.manifest["valid_for"].is_null()) {
      bound = feature.manifest["valid_for"];
    }
  }
  std::vector<NewFeature> out;
  for (const auto& rows : made) {
    NewFeature feature;
    feature.modality = rows.modality;
    feature.rows = rows.rows.to(torch::kFloat).contiguous();
    const auto items = rows.items.to(torch::kInt64).contiguous();
    for (int64_t r = 0; r < items.size(0); ++r) {
      feature.ids.add(data.item_ids[items.const_data_ptr<int64_t>()[r]]);
    }
    feature.encoder = rows.card.is_object() ? rows.card : Json::object();
    feature.encoder.update(about);
    feature.encoder["made_by"] = "model";
    feature.source = {{"kind", "features"},
                      {"sha256", inputs},
                      {"read", items.size(0)},
                      {"missing", data.n_items - items.size(0)}};
    const bool interactions = rows.card.is_object() && rows.card.value("uses_interactions", false);
    feature.valid_for =
        interactions ? Json(data.about.value("train_sha256", train_sha256(data))) : bound;
    out.push_back(std::move(feature));
  }
  return out;
}

Json put(const FeaturesRequest& request, const std::vector<NewFeature>& features,
         const std::string& name, Model& model) {
  Json out = {{"folder", request.dataset.string()},
              {"features", put_features(request.dataset, features, feature_dtype(request.dtype))}};
  for (const auto& [file, text] : quality_files(name, model)) {
    write_file(request.dataset / file, text);
    out["files"].push_back(file);
  }
  return out;
}

/// How the features of a trained model came about: its own settings and seed, from all those of its
/// training by name.
Json card_of(const FeaturesRequest& request, const ModelInfo& info, const Json& settings) {
  const auto own = info.fields();
  Json options = Json::object();
  for (const auto& [name, value] : settings.items()) {
    if (own->knows(name)) options[name] = value;
  }
  return {{"name", info.name},
          {"tessera", kVersion},
          {"trained", request.encoder},
          {"settings", options},
          {"seed", settings.value("seed", Json())}};
}

/// What a trained supplier holds for the items and the train rows that it was trained on.
Json supplied(const FeaturesRequest& request, Model& model, FeatureSupplier& supplier,
              const ModelInfo& info, const Json& card) {
  const TrainView& before = model.data();
  const Dataset data = load_dataset(request.dataset);
  bool same = train_sha256(before) == train_sha256(data.view()) && before.n_items == data.n_items;
  for (int64_t i = 0; same && i < data.n_items; ++i) {
    same = before.item_ids[i] == data.item_ids[i];
  }
  if (!same) {
    throw data_error(
        "{} was trained on other items or train rows than those of {}, and {} makes features of "
        "its "
        "own items only; use the encoder {}",
        request.encoder, request.dataset.string(), info.name, squeezed(info.name));
  }
  const auto own = info.fields();
  Json options = Json::object();
  for (const auto& setting : request.settings) {
    if (own->knows(setting.name)) options[setting.name] = setting.value;
  }
  const torch::NoGradGuard no_grad;
  return put(request, packed(supplier.export_features(options), before, card), info.name, model);
}

/// The items of the dataset through a model that was trained before, on these items or others.
Json encode_with(const FeaturesRequest& request, Model& model, const std::string& name,
                 const Json& settings) {
  const ModelInfo& info = find_model(name);
  resolve_settings(info, request.settings);  // refuses unknown names and bad values
  const Json card = card_of(request, info, settings);
  auto* encoder = model.offers().rows;
  if (auto* supplier = model.offers().features; supplier && encoder == nullptr) {
    return supplied(request, model, *supplier, info, card);
  }
  if (encoder == nullptr) {
    throw usage_error("{} encodes no items: '{}' is a model that makes no features for others",
                      request.encoder, name);
  }
  const auto own = info.fields();
  for (const auto& setting : request.settings) {
    if (!own->knows(setting.name)) continue;
    throw usage_error("{} keeps the {} that it was trained with: leave the flag out",
                      request.encoder, printable(setting.name));
  }
  DatasetView view;
  const Json there = read_manifest(request.dataset);
  for (const auto& feature : model.data().features) {
    if (there.contains(feature.name)) view.modalities.push_back(feature.name);
  }
  if (view.modalities.empty()) {
    throw data_error("{} has none of the modalities that {} encodes", request.dataset.string(),
                     request.encoder);
  }
  const Dataset data = load_dataset(request.dataset, view);
  const auto made = encoder->encode(data.features, data.n_items);
  const TrainView& before = model.data();
  const std::string trained_on = before.about.value("train_sha256", train_sha256(before));
  for (const auto& rows : made) {
    if (!rows.card.value("uses_interactions", false) ||
        trained_on == data.about.value("train_sha256", std::string())) {
      continue;
    }
    throw data_error(
        "{} has learned from other train rows than those of {}, so its '{}' may know what is held "
        "out there; train it with freeze_pretrained = true, or use the encoder {}",
        request.encoder, request.dataset.string(), rows.modality, squeezed(name));
  }
  return put(request, packed(made, data.view(), card), info.name, model);
}

void throw_if_stopped(const FeaturesRequest& request) {
  if (!request.stop_requested()) return;
  throw RunError(Exit::interrupted_without_checkpoint,
                 "interrupted: no feature was written, call again to start over");
}

}  // namespace

Json make_features(const FeaturesRequest& request) {
  if (request.encoder.empty()) {
    throw usage_error(
        "no encoder given: wanted tfidf, exec:COMMAND, a model that makes features, or a run of "
        "one");
  }
  const auto dtype = feature_dtype(request.dtype);  // before the work
  if (is_content_encoder(request.encoder)) {
    return encode_content(request.dataset, request.encoder, request.settings, dtype, request.log,
                          request.stop_requested);
  }
  const fs::path path = request.encoder;
  if (is_run_folder(path)) {
    OpenRun run = open_run(path, request.log);
    Json settings = Json::object();
    for (const auto* part : {&run.settings.model, &run.settings.train}) {
      for (const auto& setting : *part) settings[setting.name] = setting.value;
    }
    return encode_with(request, *run.learned, run.model, settings);
  }
  if (is_bundle_folder(path)) {
    Bundle bundle = load_bundle(path, request.log);
    return encode_with(request, *bundle.model, bundle.about["model"].get<std::string>(),
                       bundle.about.value("settings", Json::object()));
  }
  const ModelInfo& info = find_model(request.encoder);
  Settings all = implied_settings(request.encoder);
  all.insert(all.end(), request.settings.begin(), request.settings.end());
  const RunSettings settings = resolve_settings(info, all);
  const TrainSettings& train = settings.train_settings;
  train.on();
  use_threads(train.threads);
  keep_freed_memory();
  const Dataset data = open_dataset(request.dataset, train);
  const Random random(static_cast<uint64_t>(train.seed));
  auto model = settings.config.make(Context{data.view(), random, train, request.log});
  auto* supplier = model->offers().features;
  if (supplier == nullptr) {
    throw usage_error("{} makes no features for others: wanted a model like PAMD, or a run of one",
                      info.name);
  }
  if (supplier->needs_training()) {
    TrainConfig config;
    config.settings = train;
    config.protocol = find_protocol(train.protocol);
    config.folder = request.output;
    if (!request.output.empty()) fs::create_directories(request.output);
    config.log = request.log;
    config.stop_requested = request.stop_requested;
    config.progress = request.progress;
    train_model(*model, data, config);
  } else {
    Watch watch;
    watch.text = request.log;
    watch.stop_requested = request.stop_requested;
    watch.progress = request.progress;
    supplier->fit(watch);
  }
  throw_if_stopped(request);
  Json options = Json::object();
  for (const auto& setting : settings.model) options[setting.name] = setting.value;
  const torch::NoGradGuard no_grad;
  return put(request,
             packed(supplier->export_features(options), data.view(),
                    {{"name", info.name},
                     {"tessera", kVersion},
                     {"settings", options},
                     {"seed", train.seed}}),
             info.name, *model);
}

}  // namespace tessera
